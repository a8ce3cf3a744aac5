"""Does the model use the places that a map marks? Perturbation curves of a trained model, and maps of random weights.

Pixels are taken away in a map's order, and the score watched. Images are what the model takes, float, of any scale.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int
from tqdm import tqdm

from .. import cams
from ..data.pipeline import Batch
from ..devices.compilation import compiler_options
from ..devices.distributed import is_first
from ..models import ModelOutput
from ..models.initialization import Initialization
from .imputation import linear_imputation

# Shares of the pixels that are replaced. ROAD needs some to impute from; its shares are those of pytorch-grad-cam.
SHARES = tuple(np.linspace(0, 1, 11).tolist())
ROAD_SHARES = (0.2, 0.4, 0.6, 0.8)
# ROAD adds noise of this standard deviation, in the images' unit, to what it fills in.
NOISE = 0.01


def measure_faithfulness(
    model: Any,
    variables: Any,
    preprocess: Callable[[jax.Array], jax.Array],
    image_size: int,
    batches: Iterable[Batch],
    images: int,
) -> dict[str, Any]:
    """Perturbation curves and sanity checks of T, |U|, D and a random order, with random numbers from seed 0.

    The model is a Flax module that returns `ModelOutput`, its variables on one device. `preprocess` brings uint8 images
    to its float32 input, of `image_size` pixels a side. The batches, on the host, hold so many labelled `images`.

    Images are looked at one by one, so that programs of one size serve any number of them, without padding, and no
    figure depends on the batches. Random numbers belong to the image's number (`index` of the batch).

    Returns:
      `images`, `shares`, `road_shares` and `maps`: for each map the mean probability of the true class at each share
      (`curves`), the areas under it (`deletion`, `insertion`, `road_most`, `road_least`, the mean over shares) and
      `road_gap`, least less most relevant first; but for the random order also `random_head` and `random_weights`, the
      mean rank correlation with the map after drawing those weights anew.
    """
    measure = _compile(model, variables, preprocess, image_size)
    collected: list[dict[str, dict[str, np.ndarray]]] = []
    progress = tqdm(total=images, desc="faithfulness", unit="image", disable=None if is_first() else True)
    # Two at a time: the imputation keeps one core busy, and the host or the other cores would wait for it.
    with progress as bar, ThreadPoolExecutor(2) as threads:
        for batch in batches:
            rows = np.flatnonzero(batch["mask"] > 0)
            of_each = ([batch[key][row] for row in rows] for key in ("image", "label", "index"))
            for found in threads.map(measure, *of_each):
                collected.append(found)
                bar.update()
    merged = jax.tree.map(lambda *leaves: np.mean(leaves, axis=0, dtype=np.float64), *collected)
    maps = {name: _areas(values) for name, values in merged.items()}
    return {"images": images, "shares": list(SHARES), "road_shares": list(ROAD_SHARES), "maps": maps}


def _areas(values: dict[str, np.ndarray]) -> dict[str, Any]:
    curves = {name: curve for name, curve in values.items() if curve.ndim}
    areas = {name: float(np.trapezoid(curves[name], SHARES)) for name in ("deletion", "insertion")}
    areas |= {name: float(curves[name].mean()) for name in ("road_most", "road_least")}
    areas["road_gap"] = areas["road_least"] - areas["road_most"]
    checks = {name: float(value) for name, value in values.items() if not value.ndim}
    return areas | checks | {"curves": {name: curve.tolist() for name, curve in curves.items()}}


def _compile(
    model: Any, variables: Any, preprocess: Callable[[jax.Array], jax.Array], size: int
) -> Callable[[np.ndarray, Any, Any], dict[str, dict[str, np.ndarray]]]:
    """Builds `measure(image, label, number)`, of one image.

    Nothing is computed twice: the image itself and the wholly blurred and empty ones, where all curves begin or end,
    go through the model once, and for each order all others in one batch.
    """
    weights_key, order_key, noise_key = jax.random.split(jax.random.key(0), 3)
    redrawn = _redraw(model, weights_key, size)
    compiled = functools.partial(jax.jit, compiler_options=compiler_options())
    apply = compiled(lambda variables, images: model.apply(variables, images, train=False))
    probabilities = lambda images: jax.nn.softmax(apply(variables, images).logits)
    prepare = jax.jit(lambda image: preprocess(image[None]))
    describe, perturb = jax.jit(_describe), jax.jit(_perturb)
    blur = jax.jit(lambda image: insert(image, jnp.zeros((1, size, size), bool)))
    random = jax.jit(lambda number, like: jax.random.uniform(jax.random.fold_in(order_key, number), like.shape))
    noise = jax.jit(lambda number, like: jax.random.normal(jax.random.fold_in(noise_key, number), like.shape))
    nothing = probabilities(jnp.zeros((1, size, size, 3)))[0]

    def measure(raw: np.ndarray, label: Any, number: Any) -> dict[str, dict[str, np.ndarray]]:
        image, labels = prepare(raw), jnp.asarray(label)[None]
        output, other = apply(variables, image), apply(redrawn, image)
        maps, checks = describe(output, other, labels)
        orders = {**maps, "random": random(number, maps["T"])}
        drawn = noise(number, image)
        inner = [probabilities(perturb(image, salience, drawn)) for salience in orders.values()]
        ends = jnp.stack([nothing, probabilities(blur(image))[0], jax.nn.softmax(output.logits)[0]])
        *inner, ends = (np.asarray(each)[:, label] for each in jax.device_get([*inner, ends]))
        curves = {name: _curves(own, *ends) for name, own in zip(orders, inner, strict=True)}
        return {name: own | jax.device_get(checks.get(name, {})) for name, own in curves.items()}

    return measure


def _redraw(model: Any, key: jax.Array, size: int) -> dict[str, Any]:
    """Random variables; of a network that brings its values along, whatever the key, each array's own, shuffled."""
    draw = Initialization(model, size)
    drawn, others = draw(key), draw(jax.random.fold_in(key, 1))
    equal = lambda a, b: jax.tree.all(jax.tree.map(lambda x, y: bool((x == y).all()), a, b))
    if not equal(drawn["params"], others["params"]):
        return drawn
    leaves, structure = jax.tree.flatten(drawn["params"])
    keys = jax.random.split(key, len(leaves))
    mixed = [jax.random.permutation(k, x.reshape(-1)).reshape(x.shape) for k, x in zip(keys, leaves, strict=True)]
    return {**drawn, "params": jax.tree.unflatten(structure, mixed)}


def _describe(
    output: ModelOutput, other: ModelOutput, labels: jax.Array
) -> tuple[dict[str, jax.Array], dict[str, dict[str, jax.Array]]]:
    """The maps of an image, and each one's rank correlations with those of redrawn weights."""
    maps, by_head, by_weights = (_maps(each, labels) for each in (output, other.at(output.features), other))
    checks = lambda name: {
        "random_head": rank_correlation(maps[name], by_head[name])[0],
        "random_weights": rank_correlation(maps[name], by_weights[name])[0],
    }
    return maps, {name: checks(name) for name in maps}


def _perturb(
    image: Float[Array, "1 H W C"], salience: Float[Array, "1 h w"], noise: Float[Array, "1 H W C"]
) -> Float[Array, "versions H W C"]:
    """All versions of an image between the ends of the curves of one order, curve by curve; see `_curves`."""
    height, width = image.shape[1:3]
    ranks, reverse = (pixel_ranks(each, (height, width))[0] for each in (salience, -salience))
    removed = lambda ranks, shares: jnp.stack([first_ranked(ranks, share) for share in shares])
    first = removed(ranks, SHARES[1:-1])
    filled = jnp.concatenate([removed(ranks, ROAD_SHARES), removed(reverse, ROAD_SHARES)])
    repeated = jnp.broadcast_to(image, (len(filled), *image.shape[1:]))
    imputed = jnp.where(filled[..., None], linear_imputation(repeated, filled) + NOISE * noise, image)
    return jnp.concatenate([delete(image, first), insert(image, first), imputed])


def _curves(
    inner: Float[np.ndarray, " versions"], nothing: np.floating, blurred: np.floating, whole: np.floating
) -> dict[str, np.ndarray]:
    """Curves of one image and order from the true class's probability of each version that `_perturb` gives."""
    steps = len(SHARES) - 2
    deleted, inserted, most, least = np.split(inner, [steps, 2 * steps, 2 * steps + len(ROAD_SHARES)])
    curve = lambda start, middle, end: np.concatenate([[start], middle, [end]])
    return {
        "deletion": curve(whole, deleted, nothing),
        "insertion": curve(blurred, inserted, whole),
        "road_most": most,
        "road_least": least,
    }


def _maps(output: ModelOutput, labels: jax.Array) -> dict[str, jax.Array]:
    """T, |U| and D."""
    true_map, false_map = output.true_false_maps(labels)
    return {"T": true_map, "|U|": jnp.abs(false_map), "D": true_map - false_map}


def pixel_ranks(salience: Float[Array, "batch h w"], size: tuple[int, int]) -> Int[Array, "batch H W"]:
    """Rank of each pixel of an image of `size`, 0 for the most salient; the map is enlarged linearly.

    Of equally salient pixels the first in reading order comes first.
    """
    enlarged = jax.image.resize(cams.at_least_float32(salience), (len(salience), *size), "linear", antialias=False)
    order = jnp.argsort(-enlarged.reshape(len(salience), -1), axis=-1, stable=True)
    return jnp.argsort(order, axis=-1).reshape(enlarged.shape)


def first_ranked(ranks: Int[Array, "*batch H W"], share: float) -> Bool[Array, "*batch H W"]:
    """True for the share (0 to 1) of each image's pixels that ranks lowest."""
    return ranks < round(share * ranks.shape[-2] * ranks.shape[-1])


def delete(images: Float[Array, "#batch H W C"], removed: Bool[Array, "batch H W"]) -> Float[Array, "batch H W C"]:
    """Replaces pixels by 0, the mean of standardised images (deletion of Petsiuk et al., RISE, 2018)."""
    return jnp.where(removed[..., None], 0, images)


def insert(images: Float[Array, "#batch H W C"], shown: Bool[Array, "batch H W"]) -> Float[Array, "batch H W C"]:
    """Shows pixels in the blurred image (insertion of Petsiuk et al., RISE, 2018).

    The blur takes away everything finer than a sixteenth of the image.
    """
    height, width = images.shape[1:3]
    few = (len(images), max(height // 16, 1), max(width // 16, 1), images.shape[-1])
    blurred = jax.image.resize(jax.image.resize(images, few, "linear", antialias=True), images.shape, "cubic")
    return jnp.where(shown[..., None], images, blurred)


def rank_correlation(a: Float[Array, "batch h w"], b: Float[Array, "batch h w"]) -> Float[Array, " batch"]:
    """Spearman's correlation over places, in [-1, 1]; 0 where a map is constant.

    A map that explains the model must change when the weights are drawn anew (Adebayo et al., NeurIPS 2018): its
    correlation with the map of the random model should be near 0. Tied places are ranked in reading order.
    """
    flat = lambda x: x.reshape(len(x), -1)
    ranks = lambda x: jnp.argsort(jnp.argsort(flat(x), axis=-1, stable=True), axis=-1).astype(jnp.float32)
    x, y = (r - r.mean(-1, keepdims=True) for r in (ranks(a), ranks(b)))
    value = (x * y).sum(-1) / jnp.sqrt(jnp.square(x).sum(-1) * jnp.square(y).sum(-1))
    return jnp.where(cams.is_constant(a) | cams.is_constant(b), 0, value)
