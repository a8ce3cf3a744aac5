"""One pure train step and one pure eval step.

The steps are handed a model, an optimiser and a strategy and know none of them. They are to be compiled by the
caller, with `jax.jit` (also over a mesh) or, with an `axis_name`, with `jax.pmap`; see `placement`.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import einops
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, UInt8

from . import cams, saliency
from .terms import Evidence, Strategy, Terms, Total, reduce_terms, share_terms, total_terms

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
      term_norms: that of each term's own part of it, weight included; empty where nobody asked for them. Of two terms
        they tell the angle too: `grad_norm^2 = a^2 + b^2 + 2 a b cos`.
    """

    terms: dict[str, Total]
    correct: Total
    grad_norm: Float[Array, ""]
    term_norms: Mapping[str, Float[Array, ""]] = {}


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


def create_train_state(variables: dict[str, Any], tx: Any, frozen: frozenset[str] = frozenset()) -> TrainState:
    """The state of step 0: a model's variables and a new optimiser state, of the modules that are not frozen."""
    params = variables["params"]
    trained, _ = split_params(params, frozen)
    # As one program: compiling one for each shape of a parameter takes seconds.
    return TrainState(jnp.zeros((), jnp.int32), params, variables.get("batch_stats", {}), jax.jit(tx.init)(trained))


def split_params(params: Any, frozen: frozenset[str]) -> tuple[Any, Any]:
    """Parameters that are trained, and those of the frozen modules; any tree where nothing is frozen."""
    if not frozen:
        return params, {}
    pick = lambda wanted: {name: each for name, each in params.items() if (name in frozen) == wanted}
    return pick(False), pick(True)


def make_train_step(
    model: Any,
    tx: Any,
    strategy: Strategy,
    preprocess: Callable[[Array], Array],
    axis_name: str | None = None,
    accumulate_steps: int = 1,
    gather: Callable[[Any], Any] = lambda params: params,
    scatter: Callable[[Any], Any] = lambda gradient: gradient,
    frozen: frozenset[str] = frozenset(),
    total_steps: int | None = None,
    term_norms: bool = False,
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
      frozen: names of modules whose parameters stay as they are: they get neither gradient nor weight decay.
      total_steps: of the whole training, for strategies that change over it.
      term_norms: report the norm of each term's gradient too. Each term then has a backward pass of its own, and their
        sum is the gradient, up to rounding that of the step without them.

    Returns:
      `step(state, batch) -> (state, metrics)`, pure. The batch holds `image` uint8 [B, H, W, C], `saliency`
      [B, H, W] (all zero: no map; H and W need not be the image's), `label` int [B], `mask` [B] (0 for padding),
      `weight` [B] of the cross-entropy and `draw` uint32 [B], the random numbers of dropout. `mirrored`, like `image`,
      is what a strategy that looks at mirror images sees; without it, the image mirrored, which of images that are
      features already would be another thing. B is a multiple of `accumulate_steps` on every device. What label, weight
      and saliency of a row with mask 0 are plays no part.

    The step raises ValueError for arrays of other shapes and, called outside jit where values can be seen, for a label
    that is no class; under jit such a label makes the loss NaN.
    """

    def part_of_gradient(forward: Any, params: Any, batch_stats: Any, part: Batch, whole: dict[str, Total] | None):
        trained, still = split_params(params, frozen)

        def loss(trained: Any):
            terms, updated, correct = forward({**trained, **still} if frozen else trained, batch_stats, part)
            if term_norms:
                shares, totals = share_terms(terms, axis_name, whole)
            else:
                share, totals = reduce_terms(terms, axis_name, whole)
                shares = {"loss": share}
            return shares, (totals, updated, correct)

        gradients, (totals, updated, correct) = _gradient_of_each(loss, trained)
        return (gradients, totals, correct), updated

    def train_step(state: TrainState, batch: Batch) -> tuple[TrainState, StepMetrics]:
        params, progress = gather(state.params), functools.partial(_progress, state.step, total_steps)
        forward = functools.partial(_forward, model, strategy, preprocess, progress)
        if accumulate_steps == 1:
            sums, batch_stats = part_of_gradient(forward, params, state.batch_stats, batch, None)
        else:
            # Each part takes one row of every so many: no row changes its device.
            split = lambda x: einops.rearrange(x, "(row part) ... -> part row ...", part=accumulate_steps)
            parts = {name: split(x) for name, x in batch.items()}
            total = lambda _, part: (total_terms(forward(params, state.batch_stats, part)[0], axis_name), ())
            whole, _ = _accumulate(total, (), parts)
            gradient_of = lambda stats, part: part_of_gradient(forward, params, stats, part, whole)
            sums, batch_stats = _accumulate(gradient_of, state.batch_stats, parts)
        gradients, totals, correct = sums
        if axis_name is not None:
            gradients, correct = jax.lax.psum((gradients, correct), axis_name)
        gradients = {name: scatter(gradient) for name, gradient in gradients.items()}
        gradient = functools.reduce(functools.partial(jax.tree.map, jnp.add), gradients.values())
        trained, still = split_params(state.params, frozen)
        updates, opt_state = tx.update(gradient, state.opt_state, trained)
        trained = jax.tree.map(jnp.add, trained, updates)
        params = {**trained, **still} if frozen else trained
        norms = {name: _norm(own) for name, own in gradients.items()} if term_norms else {}
        metrics = StepMetrics(totals, correct, _norm(gradient), norms)
        return TrainState(state.step + 1, params, batch_stats, opt_state), metrics

    return train_step


def _progress(step: Int[Array, ""], total_steps: int | None) -> Float[Array, ""]:
    """Share of training that is done. ValueError where nobody said how long it is."""
    if total_steps is None:
        raise ValueError("this strategy changes over training: make_train_step needs total_steps")
    return step / total_steps


def _gradient_of_each(loss: Callable[[Any], tuple[dict[str, Array], Any]], params: Any) -> tuple[dict[str, Any], Any]:
    """The gradient of each of several losses by name, and what else they come with: one forward pass for all."""
    losses, pull_back, rest = jax.vjp(loss, params, has_aux=True)
    only = lambda name: {other: jnp.full_like(value, other == name) for other, value in losses.items()}
    return {name: pull_back(only(name))[0] for name in losses}, rest


def _norm(gradient: Any) -> Float[Array, ""]:
    leaves = jax.tree.leaves(gradient)
    # Vectors, most of a network's arrays, as one: to the compiler each sum is work.
    vectors = [jnp.ravel(leaf) for leaf in leaves if leaf.ndim < 2]
    together = [jnp.concatenate(vectors)] if vectors else []
    return jnp.sqrt(sum(jnp.square(leaf).sum() for leaf in (*together, *(leaf for leaf in leaves if leaf.ndim >= 2))))


def _forward(
    model: Any,
    strategy: Strategy,
    preprocess: Callable[[Array], Array],
    progress: Callable[[], Array],
    params: Any,
    batch_stats: Any,
    batch: Batch,
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
    # Statistics are updated by the images as they are.
    seen_mirrored = lambda: preprocess(batch["mirrored"]) if "mirrored" in batch else jnp.flip(images, 2)
    more = {"input_gradient": input_gradient, "mirrored": lambda: apply(seen_mirrored())[0], "progress": progress}
    evidence = Evidence(output, labels, mask, weight, batch["saliency"], **more)
    correct = (output.logits.argmax(-1) == labels) & mask
    return strategy(evidence), updated.get("batch_stats", {}), Total(correct.sum(), mask.sum())


def _check_batch(batch: Batch) -> None:
    """Raises ValueError for arrays of other numbers of examples, which might broadcast by chance."""
    shapes = {name: x.shape for name, x in batch.items()}
    rows, labels = shapes["image"][:1], shapes["label"]
    per_row = {name: shapes[name] for name in ("mask", "weight", "draw")}
    per_row |= {name: shapes[name][:1] for name in ("label", "mirrored") if name in shapes}
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
