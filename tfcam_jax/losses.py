"""Guidance losses on class activation maps: `[..., h, w]` in, one value per example, `[...]`, out.

Pure functions of arrays that need jax alone; the caller masks and reduces, for which there is `masked_mean`. `true_map`
and `false_map` are *raw* CAMs (see `cams`), `saliency` is the human map in [0, 1] at the CAM's resolution, float or
boolean, as `saliency.to_cam_resolution` gives it. ValueError: maps of different shapes, a saliency of integers or,
outside jit where values can be seen, beyond [0, 1]. Any float dtype comes in, computation is float32 (float64 if that
comes in). N(x) is `cams.normalize`: of a constant map it is 0 with gradient 0. Such an example says nothing and belongs
masked out; `cams.is_constant` finds it. An example with NaN or inf has value NaN and gradient 0: masked, it does not
matter.

`opposed_loss`, `difference_loss` and `contrast_loss` are **reconstructions** from the hypothesis stated in the
abstract of "Divisive Decisions" (Piland, Sweet, Czajka, arXiv 2507.17000), not formulas printed there.
`unsigned_energy_loss`, `aligned_loss`, `place_and_sign_loss`, `order_loss`, `against_loss`, `uneven_loss` and
`consistency_loss` are this project's **own**, made to test why guidance helps.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp

from .cams import (
    SMALLEST_DIVISOR,
    absolute,
    at_least_float32,
    check_maps,
    difference_salience,
    finite_examples,
    is_constant,
    is_rounding,
    largest_magnitude,
    normalize,
    value_range,
)
from .divergences import by_peak, mse
from .saliency import border_ring

if TYPE_CHECKING:
    from jaxtyping import Array, Bool, Float

Divergence = Callable[[jax.Array, jax.Array], jax.Array]

_PLACES = (-2, -1)
# Rounding of what was normalised elsewhere.
_TOLERANCE = 1e-3
# By how many of the map's standard deviations `order_loss` wants one place above another. Two levels can lie at least 2
# apart, so that it leaves a map's shape free; without a margin a flat map would do.
ORDER_MARGIN = 0.5


def cyborg_loss(
    true_map: Float[Array, "*batch h w"], saliency: Float[Array, "*batch h w"], divergence: Divergence = mse
) -> Float[Array, "*batch"]:
    """`d(N(T), S)`: the true-class map like the human's (Boyd et al., WACV 2023, arXiv 2112.00686).

    In [0, 1] for mse and l1. Hand over the predicted class's map to reproduce the CYBORG code.
    """
    return divergence(normalize(true_map), _human_map(saliency, true_map.shape))


def opposed_loss(
    true_map: Float[Array, "*batch h w"],
    false_map: Float[Array, "*batch h w"],
    saliency: Float[Array, "*batch h w"],
    divergence: Divergence = mse,
) -> Float[Array, "*batch"]:
    """`1/2 d(N(T), S) + 1/2 d(N(U), 1 - S)`: the false-class map like the complement. Reconstruction 1.

    Equals `cyborg_loss` (but for kl) where N(U) = 1 - N(T), as with an antisymmetric head.
    """
    saliency = _human_map(saliency, true_map.shape, false_map.shape)
    return 0.5 * divergence(normalize(true_map), saliency) + 0.5 * divergence(normalize(false_map), 1 - saliency)


def difference_loss(
    true_map: Float[Array, "*batch h w"],
    false_map: Float[Array, "*batch h w"],
    saliency: Float[Array, "*batch h w"],
    divergence: Divergence = mse,
) -> Float[Array, "*batch"]:
    """`d(N(T - U), S)`: the margin's own map like the human's. Reconstruction 2.

    Blind to whatever both maps share, hence to a vector added to every column of the head's kernel.
    """
    saliency = _human_map(saliency, true_map.shape, false_map.shape)
    difference = difference_salience(true_map, false_map)
    magnitude = largest_magnitude(true_map, false_map)
    return divergence(normalize(difference, magnitude), saliency)


def contrast_loss(
    true_map: Float[Array, "*batch h w"], false_map: Float[Array, "*batch h w"], saliency: Float[Array, "*batch h w"]
) -> Float[Array, "*batch"]:
    """With `V = N(T) - N(U)`: `mean(S (1 - V)^2) / mean(S) / 2 + mean((1 - S) V^2) / mean(1 - S) / 2`.

    A contrastive loss over places: the maps diverge (margin 1) where people looked and agree elsewhere; both
    regions weigh the same. Reconstruction 3. In [0, 2.5]. A region of weight 0 (S all 0, or all 1) contributes 0.
    """
    saliency = _human_map(saliency, true_map.shape, false_map.shape)
    taint, true_map, false_map, saliency = finite_examples(true_map, false_map, saliency)
    divide = normalize(true_map) - normalize(false_map)
    apart = _weighted_mean(jnp.square(1 - divide), saliency)
    together = _weighted_mean(jnp.square(divide), 1 - saliency)
    return 0.5 * apart + 0.5 * together + taint


def energy_loss(maps: Float[Array, "*batch h w"], saliency: Float[Array, "*batch h w"]) -> Float[Array, "*batch"]:
    """`1 - sum(S A+) / sum(A+)`: share of positive attribution outside the human map (Rao et al., ICCV 2023).

    `maps` is T or D, raw. In [0, 1]. Without any positive attribution: value 1, gradient 0.
    """
    taint, maps, saliency = finite_examples(maps, _human_map(saliency, maps.shape))
    return 1 - _weighted_mean(saliency, jax.nn.relu(maps)) + taint


def outside_loss(maps: Float[Array, "*batch h w"], saliency: Float[Array, "*batch h w"]) -> Float[Array, "*batch"]:
    """`sum((1 - S) A^2)`: attribution outside the human map, nothing asked inside (RRR* in Rao et al., ICCV 2023).

    `maps` is T or D, raw. Not bounded above; 0 where S is 1 everywhere.
    """
    taint, maps, saliency = finite_examples(maps, _human_map(saliency, maps.shape))
    return ((1 - saliency) * jnp.square(maps)).sum(_PLACES) + taint


def entropy_loss(true_map: Float[Array, "*batch h w"]) -> Float[Array, "*batch"]:
    """Attention entropy `-sum p ln p` of `p = N(T) / sum N(T)`, in nats, in [0, ln(h w)] (Piland et al., 2303.00818).

    Needs no human map. A constant map gives value 0, gradient 0.
    """
    taint, true_map = finite_examples(true_map)
    mass = normalize(true_map)
    total = mass.sum(_PLACES, keepdims=True)
    p = mass / jnp.where(total == 0, 1, total)
    # The minimum's place has p = 0 exactly, where p ln p is 0 but its derivative is not finite.
    return -(p * jnp.log(jnp.where(p == 0, 1, p))).sum(_PLACES) + taint


def hard_negative_loss(false_map: Float[Array, "*batch h w"]) -> Float[Array, "*batch"]:
    """`mean(U^2)`: CAMs of absent classes pushed to 0 (after Sun et al., ECCV 2020). Needs no human map."""
    taint, false_map = finite_examples(false_map)
    return jnp.square(false_map).mean(_PLACES) + taint


def sham_loss(true_map: Float[Array, "*batch h w"], divergence: Divergence = mse) -> Float[Array, "*batch"]:
    """`cyborg_loss` towards the border ring: a control, whose gain is not owed to what people found important."""
    ring = border_ring(true_map.shape[-2:])
    return cyborg_loss(true_map, jnp.broadcast_to(ring, true_map.shape), divergence)


def unsigned_energy_loss(
    true_map: Float[Array, "*batch h w"], false_map: Float[Array, "*batch h w"], saliency: Float[Array, "*batch h w"]
) -> Float[Array, "*batch"]:
    """`1 - sum(S |D|) / sum(|D|)`, D = T - U: share of the difference, whichever its sign, outside the human map. Own.

    The literal reading of the hypothesis that the two maps diverge *on* the important places. **It can be met with the
    wrong sign**, D negative where people looked and positive nowhere: cross-entropy alone then speaks for the margin.
    Look at the sign before you praise it (`metrics.agreement.positive_inside`). In [0, 1]; of a soft S smallest, as
    `energy_loss`, with all of it at S's peak. Where T and U are equal up to rounding: value 1, gradient 0.
    """
    taint, difference, saliency = _difference(true_map, false_map, saliency)
    return 1 - _weighted_mean(saliency, absolute(difference)) + taint


def aligned_loss(
    true_map: Float[Array, "*batch h w"],
    false_map: Float[Array, "*batch h w"],
    saliency: Float[Array, "*batch h w"],
    divergence: Divergence = mse,
) -> Float[Array, "*batch"]:
    """`1/2 d(N(T), S) + 1/2 d(N(U), S)`: *both* maps like the human's, against the paper's hypothesis. Own, a control.

    It guides what both classes share and asks nothing of D: at 0 both maps are affine in S with positive slopes, so
    that D is affine in S with a slope of either sign, or constant. The range is that of the distance.
    """
    saliency = _human_map(saliency, true_map.shape, false_map.shape)
    return 0.5 * divergence(normalize(true_map), saliency) + 0.5 * divergence(normalize(false_map), saliency)


def against_loss(
    true_map: Float[Array, "*batch h w"], false_map: Float[Array, "*batch h w"], saliency: Float[Array, "*batch h w"]
) -> Float[Array, "*batch"]:
    """`sum(S (-D)+) / (sum(S) max|D|)`, D = T - U: evidence against the label where people looked. Own.

    Asks D's sign and nothing of its size or shape: 0 as soon as D is nowhere negative inside S. In [0, 1]. `max|D|` is
    a constant for the gradient, which is then the same for each place that is negative, however many are. The plain
    share of D's energy inside S would have gradient 0 where all of D is negative there, just where the sign is wrong.
    Where T and U are equal up to rounding, or S is 0: value 0, gradient 0.
    """
    taint, difference, saliency = _difference(true_map, false_map, saliency)
    return _weighted_mean(jax.nn.relu(-by_peak(difference)), saliency) + taint


def place_and_sign_loss(
    true_map: Float[Array, "*batch h w"],
    false_map: Float[Array, "*batch h w"],
    saliency: Float[Array, "*batch h w"],
    divergence: Divergence = mse,
) -> Float[Array, "*batch"]:
    """`d(N(T), S)` plus `against_loss`: T says where, and D is to speak for the label there. Own.

    Equals `cyborg_loss` where D is nowhere negative inside S. In [0, 2] for mse and l1.
    """
    return cyborg_loss(true_map, saliency, divergence) + against_loss(true_map, false_map, saliency)


def order_loss(maps: Float[Array, "*batch h w"], saliency: Float[Array, "*batch h w"]) -> Float[Array, "*batch"]:
    """Places inside the human map above places outside, and nothing else: a hinge over pairs of places. Own.

    With Z the map less its mean, in units of its standard deviation over places, and pairs (p, q) weighing as much as
    people found p more important than q, `w_pq = (S_p - S_q)+`:

        sum_pq w_pq (m - (Z_p - Z_q))+ / sum_pq w_pq        m = 0.5 (`ORDER_MARGIN`)

    0 once every pair is in order by the margin: how much evidence lies outside, and what the map looks like inside,
    does not matter then. A pair that is out of order has the same pull however far it is. `maps` is T or D, raw; a
    common factor or offset of a map changes nothing. At least 0, about 0.85 for noise; not bounded by 1. A constant map
    gives value m, a constant S value 0, both with gradient 0. It compares (h w)^2 pairs: for maps up to some 32 x 32.
    """
    taint, maps, saliency = finite_examples(maps, _human_map(saliency, maps.shape))
    constant = is_constant(maps)[..., None, None]
    maps = by_peak(maps)  # squares stay within range
    centred = maps - maps.mean(_PLACES, keepdims=True)
    spread = jnp.sqrt(jnp.where(constant, 1, jnp.square(centred).mean(_PLACES, keepdims=True)))
    above = _pairs(jnp.where(constant, 0, centred / spread))
    return _weighted_mean(jax.nn.relu(ORDER_MARGIN - above), jax.nn.relu(_pairs(saliency))) + taint


def uneven_loss(true_map: Float[Array, "*batch h w"], false_map: Float[Array, "*batch h w"]) -> Float[Array, "*batch"]:
    """Variance over places of `D / max|D|`, D = T - U: how far D is from flat. Own; needs no human map.

    For images on which nobody has anything to mark. In [0, 1]. `max|D|` is a constant for the gradient, so that the
    mean of D, the margin, is left alone. Where T and U are equal up to rounding: value 0, gradient 0.
    """
    taint, difference, _ = _difference(true_map, false_map, jnp.ones_like(at_least_float32(true_map)))
    relative = by_peak(difference)
    return jnp.square(relative - relative.mean(_PLACES, keepdims=True)).mean(_PLACES) + taint


def consistency_loss(
    true_map: Float[Array, "*batch h w"],
    false_map: Float[Array, "*batch h w"],
    other_true_map: Float[Array, "*batch h w"],
    other_false_map: Float[Array, "*batch h w"],
    divergence: Divergence = mse,
) -> Float[Array, "*batch"]:
    """`1/2 d(N(D), N(D')) + 1/2 d(N(D'), N(D))`, D = T - U of one view of an image and D' of another. Own.

    The other view's maps are those at the same places of the image: moved back as the view was moved. Needs no human
    map. The maps of one class alike in transformed views train segmentation from labels in SEAM (Wang et al., CVPR
    2020); D is this project's choice. The gradient goes through both. 0 also where both D are equal for another reason:
    it doesn't say where evidence is to lie. Where a D is constant up to rounding, its N is 0.
    """
    check_maps(true_map, false_map, other_true_map, other_false_map)
    views = ((true_map, false_map), (other_true_map, other_false_map))
    one, other = (normalize(difference_salience(*maps), largest_magnitude(*maps)) for maps in views)
    return 0.5 * divergence(one, other) + 0.5 * divergence(other, one)


def input_gradient_loss(
    input_gradient: Float[Array, "*batch H W channels"], saliency: Float[Array, "*batch H W"]
) -> Float[Array, "*batch"]:
    """`sum((1 - S) g^2)`, g the gradient of `sum_k log p_k` by the image: RRR (Ross et al., IJCAI 2017).

    `saliency` is in [0, 1] at the *image's* resolution. Not bounded above.
    """
    saliency = _human_map(saliency, input_gradient.shape[:-1])
    # Channels beside each other are a map too, of which the examples that are not finite can be told.
    taint, flat = finite_examples(input_gradient.reshape(*input_gradient.shape[:-2], -1))
    squares = jnp.square(flat.reshape(input_gradient.shape)).sum(-1)
    of_saliency, squares, saliency = finite_examples(squares, saliency)
    return ((1 - saliency) * squares).sum(_PLACES) + taint + of_saliency


def masked_mean(
    per_example: Float[Array, "*batch"], mask: Bool[Array, "*batch"], axis_name: str | tuple[str, ...] | None = None
) -> Float[Array, ""]:
    """Mean over the examples that the mask marks, of all devices; 0, with gradient 0, if there is none.

    Under `jit` the arrays span all devices: leave out `axis_name`. Under `pmap` and `shard_map`, where each device sees
    its own part and may hold more or fewer marked examples than another, name the axis: sum and count are summed over
    it before they are divided. Then use it just as the mean over the device's own part, in a loss whose gradient, or
    whose value, is brought together by `jax.lax.pmean`:

    - the value is the mean over all devices, the same on each;
    - the gradient is that of the number of devices times this device's share of it, so that its `pmean` is the gradient
      of the mean over all. (Under `shard_map` with its default `check_vma=True` gradients by replicated parameters are
      summed on their own: there it is the loss that wants the `pmean`.)

    Raises:
      ValueError: a mask of another shape, or that is not boolean.
    """
    values, mask = at_least_float32(per_example), jnp.asarray(mask)
    if mask.shape != values.shape or mask.dtype != bool:
        wanted = f"masked_mean of values of shape {values.shape} needs a boolean mask of that shape (`weights > 0`)"
        raise ValueError(f"{wanted}; got {mask.dtype} {mask.shape}")
    # `where`, not a product: 0 * nan is nan, and what is masked may be anything.
    total, count = jnp.where(mask, values, 0).sum(), mask.sum().astype(values.dtype)
    if axis_name is None:
        return total / jnp.maximum(count, 1)
    count = jnp.maximum(jax.lax.psum(count, axis_name), 1)
    share = total * jax.lax.psum(1, axis_name) / count
    everywhere = jax.lax.psum(jax.lax.stop_gradient(total), axis_name) / count
    return everywhere + (share - jax.lax.stop_gradient(share))


def _human_map(saliency: Array, *shapes: tuple[int, ...]) -> Array:
    """The human map, at least float32. ValueError: other shapes, integers, or values that are no share."""
    shape, dtype = jnp.shape(saliency), jnp.asarray(saliency).dtype
    if any(other != shape for other in shapes):
        given = ", ".join(map(str, shapes))
        raise ValueError(
            f"a loss takes maps and saliency of one shape; got {given} and saliency {shape}. "
            "saliency.to_cam_resolution(human_maps, (h, w)) brings human maps to the maps' places."
        )
    if jnp.issubdtype(dtype, jnp.integer):
        remedy = "saliency.to_cam_resolution(human_maps, (h, w)) makes it so, or divide by the largest value"
        raise ValueError(f"saliency is {dtype}; a loss takes floats in [0, 1]: {remedy}")
    low, high = value_range(saliency) or (0, 1)
    if low < -_TOLERANCE or high > 1 + _TOLERANCE:  # not if it holds NaN
        raise ValueError(
            f"saliency lies in [{low:.4g}, {high:.4g}]; a loss takes [0, 1]: saliency.to_cam_resolution(human_maps, "
            "(h, w)) makes it so, or divide by the largest value"
        )
    return at_least_float32(saliency)


def _difference(true_map: Array, false_map: Array, saliency: Array) -> tuple[Array, Array, Array]:
    """`finite_examples`' taint, D (0 where it is rounding of the two maps alone) and the human map, checked."""
    saliency = _human_map(saliency, true_map.shape, false_map.shape)
    taint, true_map, false_map, saliency = finite_examples(true_map, false_map, saliency)
    difference = difference_salience(true_map, false_map)
    noise = is_rounding(difference, largest_magnitude(true_map, false_map))[..., None, None]
    return taint, jnp.where(noise, 0, difference), saliency


def _pairs(maps: Array) -> Array:
    """[..., h w, h w]: of every pair of places the first one's value less the second one's."""
    flat = maps.reshape(*maps.shape[:-2], maps.shape[-2] * maps.shape[-1])
    return flat[..., :, None] - flat[..., None, :]


def _weighted_mean(values: Array, weights: Array) -> Array:
    """Mean over places with non-negative weights; 0, with gradient 0, if the weights' sum is next to 0."""
    total = weights.sum(_PLACES)
    empty = total < SMALLEST_DIVISOR
    return jnp.where(empty, 0, (weights * values).sum(_PLACES) / jnp.where(empty, 1, total))
