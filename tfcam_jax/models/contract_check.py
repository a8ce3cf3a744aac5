"""Whether a network keeps the contract of `ModelOutput`: on shapes alone, and on values."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import flax.errors
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from .. import cams
from ..errors import UserError
from .contract import ContractError, Model, ModelOutput, check_shapes

_IMAGES = 4
_ROUNDING = 1e-4  # share of the largest value by which what should be equal may differ


@dataclasses.dataclass(frozen=True)
class ContractReport:
    """What a network that keeps the contract is like.

    Attributes:
      image_size: side of the images in px.
      cam_side: places a side of its CAM.
      channels: of the features.
      num_classes: of the logits.
      parameters: numbers that are trained.
      linear: the head is a mean and one linear layer; else a function, with maps from gradients.
      error: of the mean of a class's map plus its bias against its logit; None for another head.
      largest_logit: its magnitude, to compare `error` with.
    """

    image_size: int
    cam_side: int
    channels: int
    num_classes: int
    parameters: int
    linear: bool
    error: float | None
    largest_logit: float

    def __str__(self) -> str:
        what = f"{self.parameters:,} parameters, features {self.cam_side}x{self.cam_side}x{self.channels} of "
        what += f"{self.image_size} px, {self.num_classes} classes"
        if self.error is None:
            return f"{what}; the head is a function: maps are those of its gradient"
        return f"{what}; mean(CAM) + bias is the logit to {self.error:.1g} (logits up to {self.largest_logit:.2g})"


def check_contract(
    model: Model,
    variables: Any = None,
    *,
    image_size: int = 64,
    num_classes: int | None = None,
    name: str = "the network",
    tolerance: float | None = None,
) -> ContractReport:
    """Looks whether maps of a network mean what they should, before long work is put into it.

    Shapes and dtypes in training and in evaluation; after one forward pass in training, and on other images in
    evaluation: finite numbers, the same twice, each example for itself, features that depend on the image, and logits
    that are the mean of the maps plus the bias (`cams.check_decomposition`) or what `head` says of the features.

    Args:
      model: an adapter of `models.adapters`, one of our backbones, or anything else with the interface `Model`.
      variables: that it is to be trained from; None: random ones.
      image_size: side in px of the images that are made up for it.
      num_classes: that its logits must have; None: any number.
      name: by which errors call it.
      tolerance: of `cams.check_decomposition`.

    Raises:
      ContractError: names what is broken, and the remedy.
    """
    if not isinstance(model, Model):
        wanted = "wrap it: models.adapters.linen, .nnx or .equinox"
        raise ContractError(f"{name} is a {type(model).__name__} without `init` and `apply`; {wanted}")
    cam_side = check_abstractly(model, image_size, num_classes, name).features.shape[1]
    images = _some_images(image_size)
    if variables is None:
        variables = jax.jit(lambda key: model.init(key, images[:1], train=False))(jax.random.key(0))
    parameters = sum(leaf.size for leaf in jax.tree.leaves(variables["params"]))
    variables = _with_statistics(model, variables, images, name)
    evaluate = jax.jit(lambda images: _without_head(model.apply(variables, images, train=False)))
    output = evaluate(images)
    if output.kernel is not None and not np.asarray(output.kernel).any():
        # A head that begins at zero says nothing; what has to hold, holds for any parameters.
        variables = {**variables, "params": _moved(variables["params"])}
        evaluate = jax.jit(lambda images: _without_head(model.apply(variables, images, train=False)))
        output = evaluate(images)
    _check_finite(output, "evaluation", name)
    _check_evaluation(output, evaluate, images, name)
    logits = np.asarray(output.logits)
    return ContractReport(
        image_size=image_size,
        cam_side=cam_side,
        channels=output.features.shape[-1],
        num_classes=logits.shape[-1],
        parameters=parameters,
        linear=output.kernel is not None,
        error=_check_head(model, variables, images, output, tolerance, name),
        largest_logit=float(np.abs(logits).max()),
    )


def check_abstractly(model: Model, image_size: int, num_classes: int | None, name: str = "the network") -> ModelOutput:
    """What shapes alone say, in a second: the network can be called, and its output fits together.

    Returns the shapes of its output. Raises ContractError as `check_contract`.
    """
    shape = lambda batch: jax.ShapeDtypeStruct((batch, image_size, image_size, 3), jnp.float32)
    init = lambda images: model.init(jax.random.key(0), images, train=False)
    variables = _ask(name, "made", lambda: jax.eval_shape(init, shape(1)))
    if not isinstance(variables, dict) or not jax.tree.leaves(variables.get("params")):
        raise ContractError(f"{name}: its variables have no `params` that could be trained")
    plain = lambda variables, images: _without_head(model.apply(variables, images, train=False))
    for batch in (1, _IMAGES):
        output = _ask(name, "called in evaluation", lambda: jax.eval_shape(plain, variables, shape(batch)))  # noqa: B023
        _named(name, lambda: _check_output(output, batch, num_classes))  # noqa: B023
    # Without batch statistics the contract has no key for them, but steps hand an empty dict.
    trained = {"params": variables["params"], "batch_stats": variables.get("batch_stats", {})}
    both = _ask(name, "called in training", lambda: jax.eval_shape(_in_training(model), trained, shape(_IMAGES)))
    if not isinstance(both, tuple) or len(both) != 2 or not isinstance(both[1], dict):
        raise ContractError(f"{name}: with mutable=['batch_stats'] it returns (output, dict of what changed)")
    _named(name, lambda: _check_output(both[0], _IMAGES, num_classes))
    changed, before = both[1].get("batch_stats", {}), trained["batch_stats"]
    form = lambda tree: jax.tree.map(lambda leaf: (leaf.shape, str(leaf.dtype)), tree)
    if form(changed) != form(before):
        raise ContractError(
            f"{name}: training changes shapes, dtypes or names of its batch_stats, from {form(before)} to "
            f"{form(changed)}; they have to stay, or a step could not follow a step"
        )
    return output


def _in_training(model: Model) -> Callable[..., Any]:
    def forward(variables: dict[str, Any], images: Any) -> Any:
        of_batch = {"mask": jnp.ones(len(images)), "draw": jnp.arange(len(images), dtype=jnp.uint32)}
        result = model.apply(variables, images, train=True, **of_batch, mutable=["batch_stats"])
        return (_without_head(result[0]), *result[1:]) if isinstance(result, tuple) else result

    return forward


def _without_head(output: Any) -> Any:
    """What can leave `jit` and `eval_shape`: a head's own arrays may be many."""
    if isinstance(output, ModelOutput) and output.head is not None:
        return dataclasses.replace(output, head=jax.tree_util.Partial(_no_head))
    return output


def _no_head(features: Array) -> Array:
    raise NotImplementedError


def _check_output(output: Any, batch: int, num_classes: int | None) -> None:
    if not isinstance(output, ModelOutput):
        raise ContractError(f"a Model returns ModelOutput, not {type(output).__name__}; models.adapters make it so")
    check_shapes(output)
    found, (_, height, width, _) = output.logits.shape, output.features.shape
    if found[0] != batch:
        raise ContractError(f"{batch} images give logits of shape {found}")
    if num_classes is not None and found[1] != num_classes:
        raise ContractError(f"it has {found[1]} logits; the data have {num_classes} classes: use `num_classes`")
    if height != width or not height:
        shape = output.features.shape
        raise ContractError(
            f"features of square images are square, [batch, h, w, channels]; got {shape}: channels are the last axis, "
            "and strides have to leave a place"
        )


def _with_statistics(model: Model, variables: dict[str, Any], images: Array, name: str) -> dict[str, Any]:
    """Variables after one forward pass in training: running statistics may be nothing before the first."""
    variables = {"params": variables["params"], "batch_stats": variables.get("batch_stats", {})}
    output, changed = jax.jit(_in_training(model))(variables, images)
    _check_finite(output, "training", name)
    return {**variables, "batch_stats": changed.get("batch_stats", {})}


def _check_finite(output: ModelOutput, where: str, name: str) -> None:
    for part in ("features", "kernel", "bias", "logits"):
        values = getattr(output, part)
        if values is not None and not np.isfinite(np.asarray(values)).all():
            raise ContractError(
                f"{name}: its {part} are NaN or infinite in {where}, of images of mean 0 and deviation 1. Look at its "
                "initialisation, its norms' epsilon, or the weights that it brings along"
            )


def _check_evaluation(output: ModelOutput, evaluate: Callable[[Array], ModelOutput], images: Array, name: str) -> None:
    again, other = evaluate(images), evaluate(jnp.concatenate([images[:1], images[1:][::-1] * 0.5]))
    for part in ("features", "logits"):
        first, second, among_others = (np.asarray(getattr(each, part)) for each in (output, again, other))
        allowed = _ROUNDING * float(np.abs(first).max())
        if np.abs(first - second).max() > allowed:
            remedy = "it still draws random numbers: turn dropout off by its argument train or deterministic"
            raise ContractError(
                f"{name}: its {part} of the same images differ from call to call in evaluation; {remedy}"
            )
        if np.abs(first[0] - among_others[0]).max() > allowed:
            remedy = "its norms still use the batch's statistics: turn that off by its argument train, "
            remedy += "use_running_average or inference"
            raise ContractError(
                f"{name}: its {part} of an image depend on the others of its batch in evaluation; {remedy}"
            )
    features = np.asarray(output.features)
    if np.abs(features - features[:1]).max() <= _ROUNDING * np.abs(features).max():
        raise ContractError(
            f"{name}: its features are the same for every image; hand over the tensor that is computed from the image"
        )


def _check_head(
    model: Model,
    variables: dict[str, Any],
    images: Array,
    output: ModelOutput,
    tolerance: float | None,
    name: str,
) -> float | None:
    if output.kernel is not None:
        if output.bias is None:
            raise ContractError(f"{name}: a ModelOutput with a kernel has a bias too; zeros where the head has none")
        try:
            return cams.check_decomposition(output.features, output.kernel, output.bias, output.logits, tolerance)
        except ValueError as error:
            raise ContractError(f"{name}: {error}") from error

    def by_head(images: Array) -> Array:
        inner = model.apply(variables, images, train=False)
        return inner.head(inner.features)

    said, logits = np.asarray(_ask(name, "asked for its head", lambda: jax.jit(by_head)(images))), output.logits
    off = float(np.abs(said - np.asarray(logits)).max()) if said.shape == logits.shape else np.inf
    if off > (1e-3 if tolerance is None else tolerance) * max(float(np.abs(said).max()), 1e-6):
        raise ContractError(
            f"{name}: its head makes of its own features logits off by {off:.3g} (shape {said.shape}): features have "
            "to be the very tensor that the head takes"
        )
    return None


def _named(name: str, check: Callable[[], None]) -> None:
    try:
        check()
    except ContractError as error:
        raise ContractError(f"{name}: {error}") from error


def _ask(name: str, what: str, function: Callable[[], Any]) -> Any:
    """What a foreign network returns; whatever it raises instead, as a ContractError with its words and a remedy."""
    try:
        return function()
    except ContractError as error:
        raise ContractError(f"{name}: {error}") from error
    except UserError:
        raise
    except Exception as error:
        said = (str(error).strip().splitlines() or [""])[0]
        raise ContractError(f"{name}, {what}, raised {type(error).__name__}: {said}{_remedy(error, what)}") from error


def _remedy(error: Exception, what: str) -> str:
    said = str(error)
    if isinstance(error, flax.errors.InvalidRngError) and "evaluation" in what:
        return (
            "\nIn evaluation there are no random numbers: turn dropout off where train is False or deterministic True."
        )
    if "unbound axis name" in said:
        return '\nUnder Equinox images are mapped with the axis "batch": BatchNorm(..., axis_name="batch").'
    if "out_axes" in said:
        return "\nOf an Equinox network, kernel, bias and state have to be the same for every image of a batch."
    return ""


def _some_images(size: int) -> Float[Array, "batch H W 3"]:
    """Images that differ in mean, contrast and coarseness, so that no mean over places hides a difference."""
    rng = np.random.default_rng(0)
    coarse = rng.normal(size=(_IMAGES, 4, 4, 3))
    places = np.arange(size) * 4 // size
    fine = 0.3 * rng.normal(size=(_IMAGES, size, size, 3))
    contrast, mean = np.array([0.2, 0.6, 1.0, 1.6]), np.array([-0.5, 0.5, 0.0, 0.2])
    images = (coarse[:, places][:, :, places] + fine) * contrast[:, None, None, None] + mean[:, None, None, None]
    return jnp.asarray(images, jnp.float32)


def _moved(params: Any) -> Any:
    """Parameters a little off, none zero."""
    leaves, structure = jax.tree.flatten(params)
    keys = jax.random.split(jax.random.key(1), len(leaves))
    moved = [
        leaf + 0.05 * jax.random.normal(key, leaf.shape, leaf.dtype) for key, leaf in zip(keys, leaves, strict=True)
    ]
    return jax.tree.unflatten(structure, moved)
