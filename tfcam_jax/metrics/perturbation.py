"""Does the model use the places that a map marks? Pixels are taken away in the map's order, and the score watched.

Pure functions of arrays, to be compiled by the caller. Images are what the model takes, float, of any scale.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from .. import cams

# Weights of the eight neighbours in the imputation of Rong et al.: 1/6 for those beside, 1/12 across a corner.
_NEIGHBOURS = tuple((di, dj, 1 / 6 if di * dj == 0 else 1 / 12) for di in (-1, 0, 1) for dj in (-1, 0, 1) if di or dj)
_MAX_ITERATIONS = 300


def pixel_ranks(salience: Float[Array, "batch h w"], size: tuple[int, int]) -> Int[Array, "batch H W"]:
    """Rank of each pixel of an image of `size`, 0 for the most salient; the map is enlarged linearly.

    Of equally salient pixels the first in reading order comes first.
    """
    enlarged = jax.image.resize(cams.at_least_float32(salience), (len(salience), *size), "linear", antialias=False)
    order = jnp.argsort(-enlarged.reshape(len(salience), -1), axis=-1, stable=True)
    return jnp.argsort(order, axis=-1).reshape(enlarged.shape)


def first_ranked(ranks: Int[Array, "batch H W"], share: Float[Array, ""] | float) -> Bool[Array, "batch H W"]:
    """True for the given share (0 to 1) of each image's pixels, those of lowest rank."""
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

    The removal of ROAD (Rong et al., ICML 2022), which leaves no edge that the model could see.

    The linear system (neighbours beside weigh 1/6, those across a corner 1/12) is solved by conjugate gradients to a
    relative residual of 1e-5, or 300 iterations.

    Args:
      images: to be kept where `removed` is False.
      removed: True for pixels to impute; in no image all of them (such an image becomes 0).
      key: of the noise.
      noise: its standard deviation, in the images' unit.
    """
    gone = removed[..., None].astype(images.dtype)
    total = _neighbour_sum(jnp.ones_like(images))
    known = images * (1 - gone)
    matrix = lambda x: gone * (total * x - _neighbour_sum(gone * x))
    solution, _ = jax.scipy.sparse.linalg.cg(matrix, gone * _neighbour_sum(known), tol=1e-5, maxiter=_MAX_ITERATIONS)
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
    return sum(weight * shifted(di, dj) for di, dj, weight in _NEIGHBOURS)
