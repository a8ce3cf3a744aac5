"""How far a model's map agrees with a human map: one value per example.

Pure functions of arrays. `maps` is a raw map of the model, signed and of any scale; `saliency` is the human map in
[0, 1], not constant (see `saliency.to_cam_resolution`), of the same shape. A constant model map points nowhere; each
function says what it gets. Definitions follow Bylinskii et al., "What do different evaluation metrics tell us about
saliency models?" (TPAMI 2019), except where a docstring names another source.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from .. import divergences
from ..cams import at_least_float32, difference_salience, is_constant, largest_magnitude, normalize

# A place belongs to the human region where the human map is at least this.
REGION = 0.5

_PLACES = (-2, -1)


def correlation(maps: Float[Array, "*batch h w"], saliency: Float[Array, "*batch h w"]) -> Float[Array, "*batch"]:
    """Pearson correlation over places, in [-1, 1]; a constant map gets 0."""
    return 1 - divergences.pearson(maps, saliency)


def kl_divergence(maps: Float[Array, "*batch h w"], saliency: Float[Array, "*batch h w"]) -> Float[Array, "*batch"]:
    """KL divergence of the human map from the min-max normalised map, both as distributions; nats, at least 0.

    A constant map counts as uniform.
    """
    return divergences.kl(normalize(maps), saliency)


def normalized_scanpath_saliency(
    maps: Float[Array, "*batch h w"], saliency: Float[Array, "*batch h w"]
) -> Float[Array, "*batch"]:
    """Mean z-score of the map where people looked, each place weighing as much as the human map says.

    For a map of single fixations this is the NSS. A constant map gets 0.
    """
    maps, saliency = at_least_float32(maps), at_least_float32(saliency)
    constant = is_constant(maps)[..., None, None]
    spread = jnp.where(constant, 1, maps.std(_PLACES, keepdims=True))
    z = jnp.where(constant, 0, (maps - maps.mean(_PLACES, keepdims=True)) / spread)
    return (saliency * z).sum(_PLACES) / saliency.sum(_PLACES)


def iou_at_equal_area(maps: Float[Array, "*batch h w"], saliency: Float[Array, "*batch h w"]) -> Float[Array, "*batch"]:
    """Intersection over union of the human region with the map's highest places, as many as the region has.

    In [0, 1]; chance is about a / (2 - a) for a region of the share a. Of equally high places the first in reading
    order are taken, so a constant map gets the top rows.
    """
    flat = lambda x: x.reshape(*x.shape[:-2], -1)
    region, values = flat(saliency >= REGION), flat(at_least_float32(maps))
    area = region.sum(-1, keepdims=True)
    lowest_chosen = jnp.take_along_axis(jnp.sort(values, axis=-1), values.shape[-1] - jnp.maximum(area, 1), axis=-1)
    above, level = values > lowest_chosen, values == lowest_chosen
    chosen = above | (level & (jnp.cumsum(level, axis=-1) <= area - above.sum(-1, keepdims=True)))
    return (chosen & region).sum(-1) / (chosen | region).sum(-1)


def energy_inside(maps: Float[Array, "*batch h w"], saliency: Float[Array, "*batch h w"]) -> Float[Array, "*batch"]:
    """Share of the map's positive part that lies where people looked, in [0, 1] (Wang et al., Score-CAM, 2020).

    Places weigh as much as the human map says. A map without a positive place gets 0.
    """
    positive = jnp.maximum(at_least_float32(maps), 0)
    total = positive.sum(_PLACES)
    return (positive * saliency).sum(_PLACES) / jnp.where(total > 0, total, 1)


def pointing_game(maps: Float[Array, "*batch h w"], saliency: Float[Array, "*batch h w"]) -> Float[Array, "*batch"]:
    """1 where the map's highest place lies in the human region, else 0 (Zhang et al., IJCV 2018), without tolerance.

    Of several highest places the share that lies inside, so a constant map gets the region's share of the image.
    """
    maps = at_least_float32(maps)
    highest = maps >= maps.max(_PLACES, keepdims=True)
    return (highest & (saliency >= REGION)).sum(_PLACES) / highest.sum(_PLACES)


def fooling_gap(true_map: Float[Array, "*batch h w"], false_map: Float[Array, "*batch h w"]) -> Float[Array, "*batch"]:
    """How much of the true-class map is decoration that the decision never sees: mean |N(T) - N(T - U)|, in [0, 1].

    Where T and U differ by rounding alone, N(T - U) is 0, as in `losses.difference_loss`.
    """
    difference = difference_salience(true_map, false_map)
    normalized = normalize(difference, largest_magnitude(true_map, false_map))
    return jnp.abs(normalize(true_map) - normalized).mean(_PLACES)


def positive_inside(
    difference: Float[Array, "*batch h w"], saliency: Float[Array, "*batch h w"]
) -> Float[Array, "*batch"]:
    """1 where D speaks for the label where people looked: its mean inside the human map is above 0; else 0.

    Each place weighs as much as the human map says. Tells what agreement without a sign does not: `energy` of |D|.
    """
    return ((at_least_float32(difference) * saliency).sum(_PLACES) > 0).astype(jnp.float32)


def above_outside(maps: Float[Array, "*batch h w"], saliency: Float[Array, "*batch h w"]) -> Float[Array, "*batch"]:
    """Mean inside the human map less the mean outside, in units of the map's standard deviation over places.

    Places weigh inside as the human map S says, outside as 1 - S. Of a map of two levels, higher where S is 1 and not
    where it is 0, it is `1 / sqrt(a (1 - a))` for a region of the share a, the largest value. A constant map gets 0.
    """
    maps, saliency = at_least_float32(maps), at_least_float32(saliency)
    constant = is_constant(maps)
    mean = lambda weights: (maps * weights).sum(_PLACES) / weights.sum(_PLACES)
    return jnp.where(constant, 0, (mean(saliency) - mean(1 - saliency)) / jnp.where(constant, 1, maps.std(_PLACES)))


def shared_variance(
    true_map: Float[Array, "*batch h w"], false_map: Float[Array, "*batch h w"]
) -> Float[Array, "*batch"]:
    """How much of both maps' variance over places lies in what they share: `var(A) / (var(A) + var(B))`, in [0, 1].

    T = A + B and U = A - B, with `A = (T + U) / 2`, of two classes the mean column's map W_mean F, which the decision
    never sees, and `B = (T - U) / 2`. 0 of an antisymmetric head, 1/2 of maps that vary alike and independently, 1
    where the maps differ by a constant; 0 where both are constant.
    """
    magnitude = largest_magnitude(true_map, false_map)
    scale = jnp.where(magnitude == 0, 1, magnitude)[..., None, None]  # squares stay within range
    true_map, false_map = at_least_float32(true_map) / scale, at_least_float32(false_map) / scale
    shared, own = ((true_map + false_map) / 2).var(_PLACES), ((true_map - false_map) / 2).var(_PLACES)
    constant = is_constant(true_map) & is_constant(false_map)
    return jnp.where(constant, 0, shared / jnp.where(constant, 1, shared + own))


MEASURES: dict[str, Callable[..., Array]] = {
    "cc": correlation,
    "kl": kl_divergence,
    "nss": normalized_scanpath_saliency,
    "iou": iou_at_equal_area,
    "energy": energy_inside,
    "pointing": pointing_game,
}


def measure_maps(
    maps: dict[str, Float[Array, "batch h w"]],
    saliency: Float[Array, "batch h w"],
    image_saliency: Float[Array, "batch H W"],
    usable: Bool[Array, " batch"],
) -> dict[str, dict[str, dict[str, Float[Array, " batch"]]]]:
    """Every measure of every map, at the map's resolution and at the image's, where they are brought linearly.

    `maps` are by name; `image_saliency` has any non-negative range; `usable` is False where there is no human map.

    Returns:
      `{"map" | "image": {name of the map: {measure: values}}}`, NaN where no human map is usable.
    """
    size = image_saliency.shape[-2:]
    enlarge = lambda x: jax.image.resize(x, (*x.shape[:-2], *size), "linear", antialias=False)
    valid = usable[:, None, None]
    at = lambda human, bring: {
        name: {
            key: jnp.where(usable, measure(bring(values), jnp.where(valid, human, 1)), jnp.nan)
            for key, measure in MEASURES.items()
        }
        for name, values in maps.items()
    }
    return {"map": at(saliency, lambda x: x), "image": at(normalize(image_saliency), enlarge)}
