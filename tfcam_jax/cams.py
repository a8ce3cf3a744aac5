"""Class activation maps (CAMs): which places of a feature map speak for which class.

Pure functions of arrays that need jax alone, and the numpy that comes with it. Notation: `h, w` places, `C` feature
channels, `K` classes; leading dimensions are free. Computation is float32 (float64 if that comes in).
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

if TYPE_CHECKING:
    from jaxtyping import Array, Bool, Float, Int, Shaped

# A map whose range is below this share of its largest magnitude is float32 rounding noise around a constant.
CONSTANT_TOLERANCE = 1e-5
# Quotients have the gradient 1 / divisor^2, which overflows float32 for a divisor below 1e-19.
SMALLEST_DIVISOR = 1e-18

# Up to so many classes their maps are computed one by one.
_FEW_CLASSES = 8

_PLACES = (-2, -1)


def at_least_float32(array: Array) -> Array:
    """Casts bfloat16, float16, integers and booleans to float32; keeps float32 and float64."""
    array = jnp.asarray(array)
    return array.astype(jnp.promote_types(array.dtype, jnp.float32))


def finite_examples(*maps: Float[Array, "*batch h w"]) -> tuple[Array, ...]:
    """`(taint, *maps)`: 0 for each example that is finite in all of these maps, else NaN; and the maps, then 0.

    What is computed of the maps and gets the taint added is NaN for such an example, and sends no NaN into the gradient
    of a caller who masks it: a `where` behind a division or a product does not do that.

    Raises:
      ValueError: maps of different shapes, or with what looks like an axis of channels, [batch, h, w, 1].
    """
    check_maps(*maps)
    maps = tuple(at_least_float32(each) for each in maps)
    # 0 * inf and 0 * nan are nan.
    taint = jax.lax.stop_gradient(functools.reduce(jnp.add, [(0 * each).sum(_PLACES) for each in maps]))
    return taint, *(jnp.where((taint == 0)[..., None, None], each, 0) for each in maps)


def check_maps(*maps: Shaped[Array, ...]) -> None:
    """Raises ValueError for maps of different shapes, which might broadcast by chance, and for an axis of channels."""
    shapes = [jnp.shape(each) for each in maps]
    if len(set(shapes)) > 1:
        raise ValueError(f"maps of one shape are needed, [*batch, h, w] each; got {', '.join(map(str, shapes))}")
    *leading, height, width = shapes[0] if len(shapes[0]) > 1 else (*shapes[0], 0, 0)
    if len(shapes[0]) < 2 or (len(leading) > 1 and width == 1 < height):
        remedy = "; maps have no axis of channels: take maps[..., 0]" if leading else ""
        raise ValueError(f"maps are [*batch, h, w]; got {shapes[0]}{remedy}")


def class_activation_maps(
    features: Float[Array, "*batch h w C"], kernel: Float[Array, "C K"]
) -> Float[Array, "*batch h w K"]:
    """Raw CAM of every class: `M_k = F W[:, k]`, without bias and without ReLU (Zhou et al., CVPR 2016).

    Args:
      features: the feature maps exactly as they are pooled, channels last, any float dtype.
      kernel: weights of the linear head on the pooled features; of one logit: `two_columns(kernel)`.

    Returns:
      The maps, at least float32. If `logits = mean_hw(features) @ kernel + bias`, then
      `mean_hw(maps[..., k]) + bias[k] == logits[..., k]`; `check_decomposition` tells whether a model's are.

    Raises:
      ValueError: a kernel that does not take the features' channels.
    """
    features, kernel = at_least_float32(features), at_least_float32(kernel)
    _check_kernel(features, kernel)
    if kernel.shape[-1] > _FEW_CLASSES:
        return jnp.einsum("...c,ck->...k", features, kernel, precision=jax.lax.Precision.HIGHEST)
    # One vector at a time: XLA fuses it with what comes before and after, in the backward pass too, whereas a matrix
    # product with so thin a matrix takes up to nine times as long on a CPU.
    of_class = lambda column: jnp.einsum("...c,c->...", features, column, precision=jax.lax.Precision.HIGHEST)
    return jnp.stack([of_class(column) for column in jnp.unstack(kernel, axis=-1)], axis=-1)


def _check_kernel(features: Array, kernel: Array) -> None:
    if kernel.ndim != 2 or kernel.shape[0] != features.shape[-1]:
        wanted = f"features of shape {features.shape} need a kernel [{features.shape[-1]}, classes]"
        turned = kernel.shape[-1:] == features.shape[-1:]
        one_logit = "two_columns(kernel[:, None])" if kernel.ndim == 1 else "kernel.T"
        raise ValueError(f"{wanted}; got one of shape {kernel.shape}" + (f": take {one_logit}" if turned else ""))


def split_true_false(
    maps: Float[Array, "*batch h w K"],
    labels: Int[Array, "*batch"],
    logits: Float[Array, "*batch K"] | None = None,
) -> tuple[Float[Array, "*batch h w"], Float[Array, "*batch h w"]]:
    """Splits the class maps into the true-class map T and the false-class map U.

    Args:
      maps: raw CAMs of all classes.
      labels: true class, 0..K-1. One outside that range gives a true map of zeros under jit, where it can't be seen.
      logits: needed for K > 2 only. There U is the sum of the other classes' maps weighted by their
        softmax among themselves; no gradient flows through the weights.

    Returns:
      `(true_map, false_map)`, at least float32. For K = 2, U is the other class's map.

    Raises:
      ValueError: fewer than two classes, or more than two without logits; labels or logits of other examples; outside
        jit also a label out of range.
    """
    num_classes = maps.shape[-1]
    if num_classes < 2:
        remedy = "a head of one logit becomes two by two_columns(kernel), two_columns(bias) and two_columns(logits)"
        raise ValueError(f"split_true_false needs maps of at least 2 classes; maps has shape {maps.shape}: {remedy}")
    maps, leading = at_least_float32(maps), maps.shape[:-3]
    labels = _check_labels(f"maps of shape {maps.shape}", labels, leading, num_classes, logits)
    if num_classes > 2 and logits is None:
        raise ValueError(
            f"split_true_false needs logits to weigh the {num_classes - 1} false classes of maps {maps.shape}"
        )
    is_true, false_weights = _true_false_weights(labels, num_classes, logits, maps.dtype)
    select = lambda weights: jnp.einsum("...hwk,...k->...hw", maps, weights, precision=jax.lax.Precision.HIGHEST)
    return select(is_true), select(false_weights)


def _check_labels(what: str, labels: Any, leading: Any, num_classes: int, logits: Any) -> Array:
    """The labels as an array. ValueError: they, or the logits, are not those of these examples."""
    labels = jnp.asarray(labels)
    if labels.shape != leading or not jnp.issubdtype(labels.dtype, jnp.integer):
        wanted = f"{what} need labels of shape {leading}, an integer class index each"
        raise ValueError(f"{wanted}; got {labels.dtype} {labels.shape}")
    if logits is not None and jnp.shape(logits) != (*leading, num_classes):
        raise ValueError(f"{what} need logits of shape {(*leading, num_classes)}; got {jnp.shape(logits)}")
    check_label_range(labels, 0, num_classes - 1)
    return labels


def check_label_range(labels: Int[Array, "*batch"], low: int, high: int) -> None:
    """Raises ValueError for a label out of range, where values can be seen (`value_range`)."""
    least, most = value_range(labels) or (low, high)
    if least < low or most > high:
        raise ValueError(f"labels lie in {low}..{high}; got {int(least if least < low else most)}")


def value_range(array: Shaped[Array, "*shape"]) -> tuple[float, float] | None:
    """Smallest and largest value; None where there are none, or they can't be seen: under jit, vmap, on other hosts."""
    hidden = isinstance(array, Tracer) or not getattr(array, "is_fully_addressable", True)
    if hidden or not np.size(array):
        return None
    values = np.asarray(array)  # jnp's functions would be traced where the caller is
    return values.min().item(), values.max().item()


def _true_false_weights(labels: Array, num_classes: int, logits: Any, dtype: Any) -> tuple[Array, Array]:
    """The share of each class in T and in U, [*batch, K]; no gradient flows through them."""
    is_true = jax.nn.one_hot(labels, num_classes, dtype=bool)
    if num_classes == 2:
        return is_true.astype(dtype), (~is_true).astype(dtype)
    others = jnp.where(is_true, -jnp.inf, at_least_float32(logits))
    return is_true.astype(dtype), jax.lax.stop_gradient(jax.nn.softmax(others, axis=-1)).astype(dtype)


def true_false_maps(
    features: Float[Array, "*batch h w C"],
    kernel: Float[Array, "C K"],
    labels: Int[Array, "*batch"],
    logits: Float[Array, "*batch K"] | None = None,
) -> tuple[Float[Array, "*batch h w"], Float[Array, "*batch h w"]]:
    """T and U of what a model pools: `split_true_false`, whose words hold here, of `class_activation_maps`."""
    return split_true_false(class_activation_maps(features, kernel), labels, logits)


def difference_salience(
    true_map: Float[Array, "*batch h w"], false_map: Float[Array, "*batch h w"]
) -> Float[Array, "*batch h w"]:
    """Raw, signed difference `D = T - U`, at least float32.

    For K = 2 its mean over places is the decision margin less the bias difference:
    `mean_hw(D) = (z_y - z_f) - (b_y - b_f)`.

    Beside Finer-CAM (Zhang et al., CVPR 2025), the CAM of `sum_j w_j (z_y - alpha z_j) / sum_j w_j` over the classes j
    that are compared, w their softmax: for a pooled linear head and alpha = 1 the two are equal for K = 2, but for its
    factor 1/(h w) and its ReLU. For K > 2, with every other class compared, both have the same weights, but the
    gradient that Finer-CAM's map is made of also runs through w, which `split_true_false` holds constant: so only D's
    mean is the margin, against the false classes' weighted mean.

    Raises:
      ValueError: maps of different shapes.
    """
    check_maps(true_map, false_map)
    return at_least_float32(true_map) - at_least_float32(false_map)


def two_columns(one_logit: Float[Array, "*leading 1"]) -> Float[Array, "*leading 2"]:
    """`(-x / 2, x / 2)`: a head of one logit as a head of two classes, the same decision and the same loss.

    For its kernel [C, 1], bias [1] and logits [B, 1] alike; the logit speaks for class 1. The softmax of class 1 is
    then `sigmoid(z)`, U = -T, and D = 2 T is the logit's own map. Other splits mislead: with `(0, w)` one class's map
    is constant, with `(-w, w)` D and the margin are doubled.

    Raises:
      ValueError: the last dimension is not 1.
    """
    if jnp.shape(one_logit)[-1:] != (1,):
        wanted = "two_columns takes what a head of one logit has: kernel [C, 1], bias [1] or logits [B, 1]"
        raise ValueError(f"{wanted}; got shape {jnp.shape(one_logit)}")
    half = at_least_float32(one_logit) / 2
    return jnp.concatenate([-half, half], axis=-1)


def present_absent_maps(
    maps: Float[Array, "*batch h w L"], labels: Int[Array, "*batch L"]
) -> tuple[Float[Array, "*batch L h w"], Float[Array, "*batch L h w"]]:
    """T and U of every label of a multi-label head, where each label is a decision of its own, by one logit.

    `T_l = s_l M_l / 2` and `U_l = -T_l`, with `s_l` 1 where label l is present and -1 where it is absent: T is the
    evidence for what is true of the label, its presence or its absence, U the evidence for the contrary. It is what
    `two_columns` gives each label alone, so that `D_l = T_l - U_l = s_l M_l` is the logit's own map, signed.

    Args:
      maps: raw CAMs of the labels' logits, `class_activation_maps(features, kernel)`.
      labels: 1 present, 0 absent; below 0: unknown, whose maps are zero (constant: to be masked out).

    Returns:
      `(true_map, false_map)`, at least float32, a map for each label. They go into any loss, which then gives a value
      for each label of each example.

    Raises:
      ValueError: labels of another shape, or that are not integers; outside jit also one above 1.
    """
    maps, labels = at_least_float32(maps), jnp.asarray(labels)
    wanted = (*maps.shape[:-3], maps.shape[-1])
    if labels.shape != wanted or not jnp.issubdtype(labels.dtype, jnp.integer):
        given = f"got {labels.dtype} {labels.shape}"
        raise ValueError(f"maps of shape {maps.shape} need labels of shape {wanted}, 1, 0 or -1 each; {given}")
    check_label_range(labels, jnp.iinfo(labels.dtype).min, 1)
    sign = jnp.where(labels < 0, 0, jnp.where(labels > 0, 1, -1)).astype(maps.dtype)
    true_map = jnp.moveaxis(maps, -1, -3) * (sign / 2)[..., None, None]
    return true_map, -true_map


def fold_depth(volume: Shaped[Array, "*volume"], channels: bool = False) -> Shaped[Array, "*folded"]:
    """Slices one below the other, so that volumes go through every function here and in `losses` as images do.

    Maps, means over places, min-max and all losses look at places as a set: where they lie plays no part (but for
    `saliency.border_ring` and resizing, which take three sizes). D of a volume folded is D, folded.

    Args:
      volume: maps or saliency [*batch, d, h, w], which become [*batch, d h, w].
      channels: features or class maps, [*batch, d, h, w, C], which become [*batch, d h, w, C].
    """
    first = volume.ndim - 3 - channels
    if first < 0:
        raise ValueError(f"fold_depth needs three dimensions of places; got shape {volume.shape}, channels={channels}")
    d, h = volume.shape[first : first + 2]
    return volume.reshape(*volume.shape[:first], d * h, *volume.shape[first + 2 :])


def check_decomposition(
    features: Float[Array, "*batch h w C"],
    kernel: Float[Array, "C K"],
    bias: Float[Array, " K"],
    logits: Float[Array, "*batch K"],
    tolerance: float | None = None,
) -> float:
    """Whether a model's CAMs decompose its logits, `mean_hw(M_k) + b_k == z_k`, on a batch; in NumPy, outside `jit`.

    It holds for a mean over places and one linear layer alone. Behind any other head, maps of `features` and `kernel`
    are no shares of the decision.

    Args:
      features: the tensor that is pooled, of the model as in evaluation.
      kernel: weights of the linear head.
      bias: of the head; zeros without one.
      logits: what the model itself says of these examples.
      tolerance: of the largest error, as a share of the largest `mean_hw(|F|) |W| + |b|`; None: 1e-3, or 2e-2 where
        features or logits are of half precision.

    Returns:
      The largest error, in the logits' unit.

    Raises:
      ValueError: beyond the tolerance or not finite; it names the error, where it is, and what to hand over instead.
        Also arrays that don't fit together or are traced, and a kernel of zeros, which fits any head.
    """
    _check_kernel(features, kernel)
    shapes = (kernel.shape[-1:], (*features.shape[:-3], kernel.shape[-1]))
    if (jnp.shape(bias), jnp.shape(logits)) != shapes:
        wanted = f"bias of shape {shapes[0]} (zeros without one) and logits of shape {shapes[1]}"
        raise ValueError(f"features and kernel need {wanted}; got {jnp.shape(bias)} and {jnp.shape(logits)}")
    is_half = any(jnp.finfo(each.dtype).bits < 32 for each in (features, logits))
    tolerance = (2e-2 if is_half else 1e-3) if tolerance is None else tolerance
    try:
        pooled, weights, biases, said = (np.asarray(each, np.float64) for each in (features, kernel, bias, logits))
    except jax.errors.TracerArrayConversionError as error:
        raise ValueError("check_decomposition looks at values: call it on a batch outside jit and grad") from error
    if not weights.any():
        raise ValueError("the kernel is zero, as new heads may begin: any head would fit; check after some steps")
    errors = pooled.mean((-3, -2)) @ weights + biases - said
    largest = float(np.abs(errors).max())
    allowed = tolerance * float((np.abs(pooled).mean((-3, -2)) @ np.abs(weights) + np.abs(biases)).max())
    if largest <= allowed:
        return largest
    if np.ptp(errors.reshape(-1, errors.shape[-1]), axis=0).max() <= allowed:
        remedy = "It is the same for every example: hand over the head's bias."
    elif np.abs(pooled.max((-3, -2)) @ weights + biases - said).max() <= allowed:
        remedy = "The logits are those of a global max pool: pool by the mean, or take grad_cam_difference."
    else:
        remedy = (
            "Hand over the tensor that is pooled, after the last norm and activation, and the model in evaluation. A "
        )
        remedy += "head that pools otherwise or has more layers has no such maps: take grad_cam_difference."
    *example, k = (int(i) for i in np.unravel_index(np.abs(errors).argmax(), errors.shape))
    where = f"example {', '.join(map(str, example)) or 0}, class {k}; logits up to {np.abs(said).max():.3g}"
    raise ValueError(f"mean(M) + b is off the logits by up to {largest:.3g} ({where}). {remedy}")


def is_constant(
    maps: Float[Array, "*batch h w"], magnitude: Float[Array, "*batch"] | None = None
) -> Bool[Array, "*batch"]:
    """True where a map's range is float32 rounding, at most 1e-5 of its largest magnitude or 1e-18: constant.

    `magnitude` is the largest of what the maps were computed from, where that may be far above their own: a difference
    of two nearly equal maps holds the rounding of those maps. None: the maps' own.
    """
    maps = at_least_float32(maps)
    span = maps.max(axis=_PLACES) - maps.min(axis=_PLACES)
    if magnitude is None:
        magnitude = largest_magnitude(maps)
    return span <= CONSTANT_TOLERANCE * magnitude + SMALLEST_DIVISOR


def largest_magnitude(*maps: Float[Array, "*batch h w"]) -> Float[Array, "*batch"]:
    """Largest absolute value over the places of one or several maps; no gradient flows through it."""
    largest = [jnp.abs(at_least_float32(each)).max(axis=_PLACES) for each in maps]
    return jax.lax.stop_gradient(functools.reduce(jnp.maximum, largest))


def is_rounding(maps: Float[Array, "*batch h w"], magnitude: Float[Array, "*batch"]) -> Bool[Array, "*batch"]:
    """True where a map is nowhere above float32 rounding of what it was computed from, as D is of two equal maps.

    That is 1e-5 of `magnitude`, the largest of those maps (`largest_magnitude`), or 1e-18.
    """
    return largest_magnitude(maps) <= CONSTANT_TOLERANCE * magnitude + SMALLEST_DIVISOR


def absolute(values: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """`|x|` with gradient 0 at 0, where that of `jnp.abs` is 1 and would push at what fits already."""
    return values * jax.lax.stop_gradient(jnp.sign(values))


def mean_activation(features: Float[Array, "*batch h w C"]) -> Float[Array, "*batch h w"]:
    """Mean over channels of |F|: where the features are active at all, whatever class they speak for.

    Not negative, at least float32. It knows no head: what both classes share is in it as much as what parts them. Of
    tokens behind a layer norm, as in ViTs, it varies little over places. An example that is not finite is NaN with
    gradient 0.
    """
    channels = features.shape[-1]
    # Channels beside each other are a map too, of which the examples that are not finite can be told.
    taint, flat = finite_examples(features.reshape(*features.shape[:-2], features.shape[-2] * channels))
    return absolute(flat.reshape(features.shape)).mean(-1) + taint[..., None, None]


def normalize(
    maps: Float[Array, "*batch h w"], magnitude: Float[Array, "*batch"] | None = None
) -> Float[Array, "*batch h w"]:
    """Min-max normalisation of each map to [0, 1]; the gradient flows through minimum and maximum.

    A constant map (see `is_constant`, also for `magnitude`) gives value 0 and gradient 0, one that is not finite gives
    NaN and gradient 0. At least float32.
    """
    taint, maps = finite_examples(maps)
    constant = is_constant(maps, magnitude)[..., None, None]
    maps = maps / 16  # to the bit the same, and the range of the largest floats has a reciprocal too
    low = maps.min(axis=_PLACES, keepdims=True)
    high = maps.max(axis=_PLACES, keepdims=True)
    # Two `where`s: with one, the division that is not taken still sends NaN into the gradient.
    span = jnp.where(constant, 1, high - low)
    return jnp.where(constant, 0, (maps - low) / span) + taint[..., None, None]


class Decomposition(NamedTuple):
    """T, U and D = T - U, raw; for two classes `difference.mean((-2, -1)) + bias_difference == margin`."""

    true_map: Float[Array, "batch h w"]
    false_map: Float[Array, "batch h w"]
    difference: Float[Array, "batch h w"]
    margin: Float[Array, " batch"]
    bias_difference: Float[Array, " batch"]


def decompose_margin(
    features: Float[Array, "batch h w channels"],
    kernel: Float[Array, "channels classes"],
    bias: Float[Array, " classes"],
    labels: Int[Array, " batch"],
    logits: Float[Array, "batch classes"] | None = None,
) -> Decomposition:
    """Splits the decision margin over the places of the feature map (method text, fact 1).

    Args:
      features: exactly as they are pooled.
      kernel: weights of the linear head.
      bias: of the linear head.
      labels: class that counts as true; the predicted one to explain a decision without a label.
      logits: the model's own; None: the means of the maps plus the bias, which are the same up to rounding.

    Returns:
      float32. The margin is the true logit less the false one, which of more than two classes is the others' mean,
      weighted as in the false map.
    """
    maps = class_activation_maps(features, kernel)
    logits = maps.mean((-3, -2)) + bias[None] if logits is None else at_least_float32(logits)
    true_map, false_map = split_true_false(maps, labels, logits)
    # The same weights on maps of one place turn logits and biases into true and false ones.
    per_class = lambda values: split_true_false(values[:, None, None, :], labels, logits)
    biases = jnp.broadcast_to(bias[None], logits.shape)
    (true_logit, false_logit), (true_bias, false_bias) = per_class(logits), per_class(biases)
    margin, bias_difference = (true_logit - false_logit)[:, 0, 0], (true_bias - false_bias)[:, 0, 0]
    return Decomposition(true_map, false_map, difference_salience(true_map, false_map), margin, bias_difference)


def gradient_class_activation_maps(
    head: Callable[[Array], Array],
    features: Float[Array, "*batch h w C"],
    class_weights: Float[Array, "*batch K"],
    *,
    relu: bool = False,
    per_place: bool = False,
) -> Float[Array, "*batch h w"]:
    """Map of a logit, or of any weighted sum of logits, from its gradient by `features`: for heads of any kind.

    The gradient, summed over places, weighs the channels; the map is their weighted sum. That is Grad-CAM (Selvaraju et
    al., ICCV 2017) but for the factor 1/(h w) of its mean over places, left out so that behind a mean over places and
    one linear layer the map *is* the class's CAM. Of a difference of logits it is DiffGradCAM (arXiv 2506.08514), blind
    to what all logits share. Behind other heads its mean is a linear approximation of the logits' sum.

    A pure function: it can be compiled, mapped and trained through (the gradient of the gradient, about a second pass
    backwards through `head`).

    Args:
      head: from features to logits [*batch, K]; each example's logits must depend on its own features alone.
      features: any tensor of the network.
      class_weights: of the logits in the sum: one-hot for one class's map, 1 and -1 for a difference.
      relu: only what speaks for the sum, as Grad-CAM has it; else signed.
      per_place: each place by its own gradient, not by the sum over places (HiResCAM, Draelos and Carin,
        arXiv 2011.08891): for heads that treat places differently, as attention does.

    Returns:
      At least float32. Zero where no logit in the sum depends on the features.

    Raises:
      ValueError: weights of another shape than the head's logits.
    """
    return _gradient_maps(head, features, per_place)[1](class_weights, relu)


def _gradient_maps(
    head: Callable[[Array], Array], features: Array, per_place: bool = False
) -> tuple[Array, Callable[..., Array]]:
    """The head's logits, and a function from class weights to the map: one forward pass serves several maps."""
    features = at_least_float32(features)
    logits, pull_back = jax.vjp(head, features)

    def maps(class_weights: Array, relu: bool = False) -> Array:
        if jnp.shape(class_weights) != logits.shape:
            wanted = f"a head with logits of shape {logits.shape} needs class weights of that shape"
            raise ValueError(f"{wanted}; got {jnp.shape(class_weights)}")
        (gradient,) = pull_back(jnp.asarray(class_weights, logits.dtype))
        if per_place:
            signed = (features * gradient).sum(-1)
        else:
            weights = gradient.sum((-3, -2))
            signed = jnp.einsum("...hwc,...c->...hw", features, weights, precision=jax.lax.Precision.HIGHEST)
        return jax.nn.relu(signed) if relu else signed

    return logits, maps


def gradient_true_false_maps(
    head: Callable[[Array], Array],
    features: Float[Array, "*batch h w C"],
    labels: Int[Array, "*batch"],
    logits: Float[Array, "*batch K"] | None = None,
) -> tuple[Float[Array, "*batch h w"], Float[Array, "*batch h w"]]:
    """T and U of a head of any kind, by `gradient_class_activation_maps`: of the true logit and of the false one.

    The false logit of more than two classes is the others' mean, weighted by their softmax, in which no gradient flows
    (see `split_true_false`). For a mean over places and one linear layer the two are `true_false_maps`.

    `logits` are the model's own, that the weights are taken from; None: those that `head` gives.
    """
    own, maps = _gradient_maps(head, features)
    true, false = _weights_of_head(own, labels, logits)
    return maps(true), maps(false)


def _weights_of_head(own: Array, labels: Array, logits: Array | None) -> tuple[Array, Array]:
    """`_true_false_weights` of what a head gave, `own`, after the checks of `split_true_false`."""
    if own.shape[-1] < 2:
        remedy = "a head of one logit becomes two by two_columns(logits) inside it"
        raise ValueError(f"T and U need logits of at least 2 classes; the head gives {own.shape}: {remedy}")
    labels = _check_labels(f"logits of shape {own.shape}", labels, own.shape[:-1], own.shape[-1], logits)
    return _true_false_weights(labels, own.shape[-1], own if logits is None else logits, own.dtype)


def decompose_gradient_margin(
    head: Callable[[Array], Array],
    features: Float[Array, "batch h w channels"],
    labels: Int[Array, " batch"],
    logits: Float[Array, "batch classes"] | None = None,
) -> Decomposition:
    """`decompose_margin` for a head of any kind, with the maps of `gradient_true_false_maps`.

    The margin is the logits' own. `bias_difference` is what the mean of D leaves of it: biases, and for a head that is
    not linear also how far the linear approximation is off, so that the sum holds by definition.
    """
    said, maps = _gradient_maps(head, features)
    true, false = _weights_of_head(said, labels, logits)
    margin = ((true - false) * (said if logits is None else at_least_float32(logits))).sum(-1)
    true_map, false_map = maps(true), maps(false)
    difference = difference_salience(true_map, false_map)
    return Decomposition(true_map, false_map, difference, margin, margin - difference.mean((-2, -1)))


def grad_cam_difference(
    head: Callable[[Array], Array],
    features: Float[Array, "batch h w channels"],
    labels: Int[Array, " batch"],
) -> Float[Array, "batch h w"]:
    """D of a head of any kind, signed: the gradient map of the true logit less the false one.

    D = T - U of `gradient_true_false_maps`, see there; equal to D for a pooled linear head.

    Args:
      head: from features to logits [batch, classes]; each image's logits must depend on its own features only.
      features: of the layer to look at.
      labels: class that counts as true.
    """
    logits, maps = _gradient_maps(head, features)
    true, false = _weights_of_head(logits, labels, None)
    return maps(true - false)
