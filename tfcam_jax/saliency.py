"""Human saliency maps at the resolution of a CAM, and the control map that no human drew.

Pure functions of arrays that need jax alone, and the numpy that comes with it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
import numpy as np

from .cams import at_least_float32, check_maps, finite_examples, is_constant, normalize

if TYPE_CHECKING:
    from jaxtyping import Array, Bool, Float, Real

# Normalised distance from the centre beyond which a place belongs to the border ring. It is the value that yields
# the 28 of 49 places at 7x7 of the control's description, and the plain ring of border places at 3x3 and 4x4.
RING_RADIUS = 0.65


def to_cam_resolution(
    human_maps: Real[Array, "*batch H W"], size: tuple[int, ...]
) -> tuple[Float[Array, "*batch h w"], Bool[Array, "*batch"]]:
    """Resizes human maps to the CAM's `size = (h, w)` and normalises each to [0, 1].

    The filter is the antialiased triangle of the CYBORG code (Boyd et al., WACV 2023; Pillow's "bilinear"), on
    floats: it agrees with Pillow's float resize to 1e-7, while Pillow on uint8 rounds faint maps away.

    Args:
      human_maps: any non-negative range, floats or integers.
      size: places of the CAM.

    Returns:
      `(saliency, usable)`: maps in [0, 1], at least float32, and False for a map that is all zero or constant,
      before or after resizing, or holds NaN or inf; there the saliency is 0 everywhere.

    Raises:
      ValueError: maps with an axis of channels, [batch, H, W, 1].
    """
    check_maps(human_maps)
    return _normalized(_resize(at_least_float32(human_maps), size))


def volumes_to_cam_resolution(
    human_maps: Float[Array, "*batch D H W"], size: tuple[int, int, int]
) -> tuple[Float[Array, "*batch d h w"], Bool[Array, "*batch"]]:
    """`to_cam_resolution` of volumes, all three sides by the same filter: resizes to `size = (d, h, w)`.

    Each volume is normalised as a whole; one that is constant is not usable, and 0 everywhere. For the losses both maps
    and saliency are folded (`cams.fold_depth`).
    """
    resized = _resize(at_least_float32(human_maps), size[1:])
    if resized.shape[-3] != size[0]:
        weights = triangle_weights(resized.shape[-3], size[0]).astype(resized.dtype)
        resized = jnp.einsum("...dhw,de->...ehw", resized, weights, precision=jax.lax.Precision.HIGHEST)
    normalized, usable = _normalized(resized.reshape(*resized.shape[:-3], size[0] * size[1], size[2]))
    return normalized.reshape(resized.shape), usable


def _normalized(resized: Float[Array, "*batch h w"]) -> tuple[Float[Array, "*batch h w"], Bool[Array, "*batch"]]:
    """Each in [0, 1], and whether it says something. What resizing leaves of NaN or inf is not finite either."""
    taint, resized = finite_examples(resized)
    usable = (taint == 0) & ~is_constant(resized)  # every constant map is one still, once resized
    return jnp.where(usable[..., None, None], normalize(resized), 0), usable


def _resize(maps: Float[Array, "*batch H W"], size: tuple[int, ...]) -> Float[Array, "*batch h w"]:
    """As `jax.image.resize(maps, ..., "linear", antialias=True)` but for the last bits, in half the time on a CPU.

    That function works its weights out in every step and sums over the rows first, which copies the whole maps.
    """
    height, width = maps.shape[-2:]
    if width != size[1]:
        weights = triangle_weights(width, size[1]).astype(maps.dtype)
        maps = jnp.einsum("...w,wj->...j", maps, weights, precision=jax.lax.Precision.HIGHEST)
    if height != size[0]:
        weights = triangle_weights(height, size[0]).astype(maps.dtype)
        # A sum that is fused with its factors; as a product of matrices it would copy the maps again.
        maps = (maps[..., None, :] * weights.reshape((1,) * (maps.ndim - 2) + (*weights.shape, 1))).sum(-3)
    return maps


def triangle_weights(old: int, new: int) -> np.ndarray:
    """Weight [old, new] of each old place in each new one: a triangle over it that is two places wide, new or old."""
    scale = old / new
    centres = (np.arange(new) + 0.5) * scale - 0.5
    weights = np.maximum(0, 1 - np.abs(np.arange(old)[:, None] - centres) / max(scale, 1))
    return weights / weights.sum(axis=0)


def border_ring(size: tuple[int, ...]) -> Float[Array, "*places"]:
    """1 on the ring of places near the border, 0 inside: a map that says nothing about any image. float32.

    Of a volume's three sizes it is a shell.
    """
    centred = [(2 * jnp.arange(n) + 1) / n - 1 for n in size]
    distance = jnp.sqrt(sum(jnp.square(each) for each in jnp.meshgrid(*centred, indexing="ij")))
    return (distance > RING_RADIUS).astype(jnp.float32)
