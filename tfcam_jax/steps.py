"""One pure train step and one pure eval step.

The steps are handed a model, an optimiser and a strategy and know none of them. They are to be compiled by the
caller, with `jax.jit` (also over a mesh) or, with an `axis_name`, with `jax.pmap`; see `placement`.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import einops
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, UInt8

from . import cams, saliency
from .terms import Evidence, Strategy, Terms, Total, reduce_terms, total_terms

Batch = dict[str, Array]


class TrainState(NamedTuple):
    """Everything that a step changes."""

    step: Int[Array, ""]
    params: Any
    batch_stats: Any
    opt_state: Any


class StepMetrics(NamedTuple):
    """What one train step reports, over all devices.

    Attributes:
      terms: each term's sum over the examples that entered it, and their number.
      correct: right predictions, and the number of examples.
      grad_norm: global L2 norm of the gradient.
    """

    terms: dict[str, Total]
    correct: Total
    grad_norm: Float[Array, ""]


class EvalOutput(NamedTuple):
    """What the eval step says of each example, float32.

    Attributes:
      logits: of every class.
      labels: class that counts as true: the example's label, or the predicted class where it has none (-1).
      true_map, false_map: T and U for that class, raw.
      margin, bias_difference: `mean(T - U) + bias_difference == margin`, see `cams.decompose_margin`.
      saliency: the human map at the maps' resolution; zero where there is none.
      usable: False where there is none, see `saliency.to_cam_resolution`.
    """

    logits: Float[Array, "batch classes"]
    labels: Int[Array, " batch"]
    true_map: Float[Array, "batch h w"]
    false_map: Float[Array, "batch h w"]
    margin: Float[Array, " batch"]
    bias_difference: Float[Array, " batch"]
    saliency: Float[Array, "batch h w"]
    usable: Bool[Array, " batch"]

    @property
    def difference(self) -> Array | np.ndarray:
        """D = T - U, on the device as on the host, of a batch as of one example."""
        return self.true_map - self.false_map


def standardize(
    images: UInt8[Array, "batch H W channels"], mean: tuple[float, ...], std: tuple[float, ...]
) -> Float[Array, "batch H W 3"]:
    """`(images / 255 - mean) / std` in float32; one channel is repeated to three, here on the device."""
    images = images.astype(jnp.float32) / 255
    images = jnp.broadcast_to(images, (*images.shape[:-1], 3))
    per_channel = lambda values: jnp.asarray(values, jnp.float32).reshape(1, 1, 1, 3)
    return (images - per_channel(mean)) / per_channel(std)


def initialize(model: Any, key: Array, image_size: int) -> dict[str, Any]:
    """Variables of a model, `params` and `batch_stats`, from a random key."""
    return jax.jit(lambda key: model.init(key, jnp.zeros((1, image_size, image_size, 3)), train=False))(key)


def create_train_state(variables: dict[str, Any], tx: Any) -> TrainState:
    """The state of step 0: a model's variables and a new optimiser state."""
    params = variables["params"]
    # As one program: compiling one for each shape of a parameter takes seconds.
    return TrainState(jnp.zeros((), jnp.int32), params, variables.get("batch_stats", {}), jax.jit(tx.init)(params))


def make_train_step(
    model: Any,
    tx: Any,
    strategy: Strategy,
    preprocess: Callable[[Array], Array],
    axis_name: str | None = None,
    accumulate_steps: int = 1,
    gather: Callable[[Any], Any] = lambda params: params,
    scatter: Callable[[Any], Any] = lambda gradient: gradient,
) -> Callable[[TrainState, Batch], tuple[TrainState, StepMetrics]]:
    """Builds the train step.

    Args:
      model: a `models.Model`, as a Flax module that returns `ModelOutput`.
      tx: Optax gradient transformation, which gets the gradient of the whole batch, over all devices.
      strategy: from `Evidence` to terms.
      preprocess: from uint8 images to the model's float32 input.
      axis_name: pmap axis over which the batch is spread; None where one program sees the whole batch.
      accumulate_steps: parts that the batch is worked through in, one after the other, to need less memory. Terms are
        divided by their counts over the whole batch, so that the update is that of the whole batch but for BatchNorm's
        statistics, which are those of each part. A strategy that leaves out flat maps, or leaves weights to the step,
        knows counts and means only after all forward passes, which it then does twice: a third more time.
      gather: from the parameters as they are kept to those that the model computes with, on every device.
      scatter: from such a gradient to one that is spread like the parameters.

    Returns:
      `step(state, batch) -> (state, metrics)`, pure. The batch holds `image` uint8 [B, H, W, C], `saliency`
      [B, H, W] (all zero: no map; H and W need not be the image's), `label` int [B], `mask` [B] (0 for padding),
      `weight` [B] of the cross-entropy and `draw` uint32 [B], the random numbers of dropout. B is a multiple of
      `accumulate_steps` on every device. What label, weight and saliency of a row with mask 0 are plays no part.

    The step raises ValueError for arrays of other shapes and, called outside jit where values can be seen, for a label
    that is no class; under jit such a label makes the loss NaN.
    """
    forward = functools.partial(_forward, model, strategy, preprocess)

    def part_of_gradient(params: Any, batch_stats: Any, part: Batch, whole: dict[str, Total] | None):
        def loss(params: Any):
            terms, updated, correct = forward(params, batch_stats, part)
            share, totals = reduce_terms(terms, axis_name, whole)
            return share, (totals, updated, correct)

        gradient, (totals, updated, correct) = jax.grad(loss, has_aux=True)(params)
        return (gradient, totals, correct), updated

    def train_step(state: TrainState, batch: Batch) -> tuple[TrainState, StepMetrics]:
        params = gather(state.params)
        if accumulate_steps == 1:
            sums, batch_stats = part_of_gradient(params, state.batch_stats, batch, None)
        else:
            # Each part takes one row of every so many: no row changes its device.
            split = lambda x: einops.rearrange(x, "(row part) ... -> part row ...", part=accumulate_steps)
            parts = {name: split(x) for name, x in batch.items()}
            total = lambda _, part: (total_terms(forward(params, state.batch_stats, part)[0], axis_name), ())
            whole, _ = _accumulate(total, (), parts)
            gradient_of = lambda stats, part: part_of_gradient(params, stats, part, whole)
            sums, batch_stats = _accumulate(gradient_of, state.batch_stats, parts)
        gradient, totals, correct = sums
        if axis_name is not None:
            gradient, correct = jax.lax.psum((gradient, correct), axis_name)
        gradient = scatter(gradient)
        updates, opt_state = tx.update(gradient, state.opt_state, state.params)
        params = jax.tree.map(jnp.add, state.params, updates)
        grad_norm = jnp.sqrt(sum(jnp.square(leaf).sum() for leaf in jax.tree.leaves(gradient)))
        metrics = StepMetrics(totals, correct, grad_norm)
        return TrainState(state.step + 1, params, batch_stats, opt_state), metrics

    return train_step


def _forward(
    model: Any, strategy: Strategy, preprocess: Callable[[Array], Array], params: Any, batch_stats: Any, batch: Batch
) -> tuple[Terms, Any, Total]:
    """Forward pass: the strategy's terms, the updated batch statistics, right predictions and how many there are."""
    _check_batch(batch)
    variables = {"params": params, "batch_stats": batch_stats}
    images, labels, mask = preprocess(batch["image"]), batch["label"], batch["mask"] > 0
    of_batch = {"mask": batch["mask"], "draw": batch["draw"]}
    apply = lambda x: model.apply(variables, x, train=True, **of_batch, mutable=["batch_stats"])
    output, updated = apply(images)
    per_decision = lambda x: jnp.broadcast_to(x.reshape(*x.shape, *[1] * (labels.ndim - 1)), labels.shape)
    mask = per_decision(mask) & (labels >= 0)
    # What is masked may be anything, and 0 * nan is nan, in the gradient too.
    labels, weight = jnp.where(mask, labels, 0), jnp.where(mask, per_decision(batch["weight"]), 0)
    cams.check_label_range(labels, 0, output.logits.shape[-1] - 1)
    log_probabilities = lambda logits: jnp.where(mask[..., None], jax.nn.log_softmax(logits), 0)
    input_gradient = lambda: jax.grad(lambda x: log_probabilities(apply(x)[0].logits).sum())(images)
    evidence = Evidence(output, labels, mask, weight, batch["saliency"], input_gradient)
    correct = (output.logits.argmax(-1) == labels) & mask
    return strategy(evidence), updated.get("batch_stats", {}), Total(correct.sum(), mask.sum())


def _check_batch(batch: Batch) -> None:
    """Raises ValueError for arrays of other numbers of examples, which might broadcast by chance."""
    shapes = {name: x.shape for name, x in batch.items()}
    rows, labels = shapes["image"][:1], shapes["label"]
    per_row = {name: shapes[name] for name in ("mask", "weight", "draw")} | {"label": labels[:1]}
    wrong = {name: shape for name, shape in per_row.items() if shape != rows}
    if shapes["saliency"][:-2] not in (rows, labels):
        wrong["saliency"] = shapes["saliency"]
    if wrong:
        told = ", ".join(f"{name} {shape}" for name, shape in wrong.items())
        raise ValueError(f"a batch of {rows[0]} images needs a row for each; got {told}")


def _accumulate(function: Callable[[Any, Batch], tuple[Any, Any]], carry: Any, parts: Batch) -> tuple[Any, Any]:
    """Sums `function(carry, part) -> (summand, carry)` over the parts, one after the other; the sums and last carry."""
    first = jax.tree.map(lambda x: x[0], parts)
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(lambda: function(carry, first)[0]))

    def body(state: tuple[Any, Any], part: Batch):
        summand, carry = function(state[1], part)
        return (jax.tree.map(jnp.add, state[0], summand), carry), None

    return jax.lax.scan(body, (zeros, carry), parts)[0]


def make_eval_step(model: Any, preprocess: Callable[[Array], Array]) -> Callable[[Any, Any, Batch], EvalOutput]:
    """Builds `step(params, batch_stats, batch) -> EvalOutput`, pure; each example stands for itself."""

    def eval_step(params: Any, batch_stats: Any, batch: Batch) -> EvalOutput:
        variables = {"params": params, "batch_stats": batch_stats}
        output = model.apply(variables, preprocess(batch["image"]), train=False)
        labels = jnp.where(batch["label"] < 0, output.logits.argmax(-1), batch["label"])
        parts = output.decompose_margin(labels)
        human, usable = saliency.to_cam_resolution(batch["saliency"], parts.true_map.shape[-2:])
        maps, margin = (parts.true_map, parts.false_map), (parts.margin, parts.bias_difference)
        return EvalOutput(output.logits, labels, *maps, *margin, human, usable)

    return eval_step
