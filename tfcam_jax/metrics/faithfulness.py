"""Does the model use the places that a map marks? Perturbation curves of a trained model, and maps of random weights.

Pixels are taken away in a map's order, and the score watched. Images are what the model takes, float, of any scale.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int
from tqdm import tqdm

from .. import cams
from ..data.pipeline import Batch
from ..devices.distributed import is_first
from ..models import ModelOutput
from ..steps import initialize

# Shares of the pixels that are replaced. ROAD needs some to impute from.
SHARES = tuple(np.linspace(0, 1, 11).tolist())
ROAD_SHARES = tuple(np.linspace(0.1, 0.9, 9).tolist())
# Weights of the eight neighbours in the imputation of Rong et al.: 1/6 for those beside, 1/12 across a corner.
_NEIGHBOURS = tuple((di, dj, 1 / 6 if di * dj == 0 else 1 / 12) for di in (-1, 0, 1) for dj in (-1, 0, 1) if di or dj)


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

    Returns:
      `images`, `shares`, `road_shares` and `maps`: for each map the mean probability of the true class at each share
      (`curves`), the areas under it (`deletion`, `insertion`, `road_most`, `road_least`, the mean over shares) and
      `road_gap`, least less most relevant first; but for the random order also `random_head` and `random_weights`, the
      mean rank correlation with the map after drawing those weights anew.
    """
    measure = _compile(model, variables, preprocess, image_size)
    collected: list[dict[str, dict[str, np.ndarray]]] = []
    with tqdm(total=images, desc="faithfulness", unit="image", disable=None if is_first() else True) as bar:
        for batch in batches:
            real = batch["mask"] > 0
            collected.append(jax.tree.map(lambda leaf, real=real: np.asarray(leaf)[real], measure(batch)))
            bar.update(int(real.sum()))
    merged = jax.tree.map(lambda *leaves: np.concatenate(leaves).mean(0), *collected)
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
) -> Callable[[Batch], dict[str, dict[str, jax.Array]]]:
    """Builds `measure(batch)`: the model is compiled once, and each way of perturbing once."""
    weights_key, order_key, noise_key = jax.random.split(jax.random.key(0), 3)
    redrawn = initialize(model, weights_key, size)
    apply = jax.jit(lambda variables, images: model.apply(variables, images, train=False))
    probabilities = lambda images: jax.nn.softmax(apply(variables, images).logits)
    probability = jax.jit(lambda images, labels: probabilities(images)[jnp.arange(len(labels)), labels])
    impute_noisily = lambda images, removed: noisy_linear_imputation(images, removed, noise_key)
    of_share = lambda change: jax.jit(lambda images, ranks, share: change(images, first_ranked(ranks, share)))
    deleted, inserted, imputed = map(of_share, (delete, insert, impute_noisily))
    prepare = jax.jit(preprocess)
    ranks_of = jax.jit(lambda salience: pixel_ranks(salience, (size, size)))

    def measure(batch: Batch) -> dict[str, dict[str, jax.Array]]:
        raw, labels = jax.device_put((batch["image"], batch["label"]))
        images = prepare(raw)
        output, other = apply(variables, images), apply(redrawn, images)
        maps = _maps(output.features, output, labels)
        curve = lambda change, ranks, shares: jnp.stack(
            [probability(change(images, ranks, share), labels) for share in shares], axis=1
        )
        results: dict[str, dict[str, jax.Array]] = {}
        for name, salience in {**maps, "random": jax.random.uniform(order_key, maps["T"].shape)}.items():
            ranks, reverse = ranks_of(salience), ranks_of(-salience)
            results[name] = {
                "deletion": curve(deleted, ranks, SHARES),
                "insertion": curve(inserted, ranks, SHARES),
                "road_most": curve(imputed, ranks, ROAD_SHARES),
                "road_least": curve(imputed, reverse, ROAD_SHARES),
            }
        for check, features in (("random_head", output.features), ("random_weights", other.features)):
            for name, salience in _maps(features, other, labels).items():
                results[name][check] = rank_correlation(maps[name], salience)
        return results

    return measure


def _maps(features: jax.Array, head: ModelOutput, labels: jax.Array) -> dict[str, jax.Array]:
    """T, |U| and D of features under a head."""
    logits = features.mean((1, 2)) @ head.kernel + head.bias[None]
    true_map, false_map = cams.true_false_maps(features, head.kernel, labels, logits)
    return {"T": true_map, "|U|": jnp.abs(false_map), "D": true_map - false_map}


def pixel_ranks(salience: Float[Array, "batch h w"], size: tuple[int, int]) -> Int[Array, "batch H W"]:
    """Rank of each pixel of an image of `size`, 0 for the most salient; the map is enlarged linearly.

    Of equally salient pixels the first in reading order comes first.
    """
    enlarged = jax.image.resize(cams.at_least_float32(salience), (len(salience), *size), "linear", antialias=False)
    order = jnp.argsort(-enlarged.reshape(len(salience), -1), axis=-1, stable=True)
    return jnp.argsort(order, axis=-1).reshape(enlarged.shape)


def first_ranked(ranks: Int[Array, "batch H W"], share: Float[Array, ""] | float) -> Bool[Array, "batch H W"]:
    """True for the share (0 to 1) of each image's pixels that ranks lowest."""
    return ranks < jnp.round(share * ranks.shape[1] * ranks.shape[2])


def delete(images: Float[Array, "batch H W C"], removed: Bool[Array, "batch H W"]) -> Float[Array, "batch H W C"]:
    """Replaces pixels by 0, the mean of standardised images (deletion of Petsiuk et al., RISE, 2018)."""
    return jnp.where(removed[..., None], 0, images)


def insert(images: Float[Array, "batch H W C"], shown: Bool[Array, "batch H W"]) -> Float[Array, "batch H W C"]:
    """Shows pixels in the blurred image (insertion of Petsiuk et al., RISE, 2018).

    The blur takes away everything finer than a sixteenth of the image.
    """
    height, width = images.shape[1:3]
    few = (len(images), max(height // 16, 1), max(width // 16, 1), images.shape[-1])
    blurred = jax.image.resize(jax.image.resize(images, few, "linear", antialias=True), images.shape, "cubic")
    return jnp.where(shown[..., None], images, blurred)


def noisy_linear_imputation(
    images: Float[Array, "batch H W C"], removed: Bool[Array, "batch H W"], key: Array, noise: float = 0.01
) -> Float[Array, "batch H W C"]:
    """Replaces removed pixels so that each is the weighted mean of its eight neighbours, plus a little noise.

    The removal of ROAD (Rong et al., ICML 2022), which leaves no edge that the model could see. The linear system is
    solved by conjugate gradients to a relative residual of 1e-5, or 300 iterations. An image that is removed as a whole
    becomes 0. `noise` is the standard deviation of what `key` draws, in the images' unit.
    """
    gone = removed[..., None].astype(images.dtype)
    total = _neighbour_sum(jnp.ones_like(images))
    known = images * (1 - gone)
    matrix = lambda x: gone * (total * x - _neighbour_sum(gone * x))
    solution, _ = jax.scipy.sparse.linalg.cg(matrix, gone * _neighbour_sum(known), tol=1e-5, maxiter=300)
    return known + gone * (solution + noise * jax.random.normal(key, images.shape, images.dtype))


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


def _neighbour_sum(x: Float[Array, "batch H W C"]) -> Float[Array, "batch H W C"]:
    """Weighted sum of each pixel's neighbours within the image."""
    height, width = x.shape[1:3]
    padded = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    shifted = lambda di, dj: padded[:, 1 + di : 1 + di + height, 1 + dj : 1 + dj + width]
    return sum((weight * shifted(di, dj) for di, dj, weight in _NEIGHBOURS), start=jnp.zeros_like(x))
