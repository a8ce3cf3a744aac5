"""Convolution as `jax.lax` has it, but with 1x1 kernels as one matrix product."""

from __future__ import annotations

import math
from typing import Any

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float


def conv_general_dilated(
    x: Float[Array, "batch h w channels"],
    kernel: Float[Array, "size_h size_w channels_per_group features"],
    strides: tuple[int, int],
    padding: Any,
    **options: Any,
) -> Float[Array, "batch h_out w_out features"]:
    """`jax.lax.conv_general_dilated` for NHWC and HWIO, to be handed to `nn.Conv`.

    XLA for CPUs transposes both operands of a convolution's weight gradient in memory. Most convolutions here are
    1x1, and their weight gradient is a matrix product of the arrays as they lie, if they have two dimensions, not
    four.
    """
    is_pointwise = kernel.shape[:2] == (1, 1) and options.get("feature_group_count", 1) == 1
    is_padded = not isinstance(padding, str) and any(map(any, padding))
    if not is_pointwise or is_padded:
        return lax.conv_general_dilated(x, kernel, strides, padding, **options)
    x = x[:, :: strides[0], :: strides[1]]
    # Sizes written out: of an image too small to leave a place, -1 could not be told.
    y = jnp.dot(x.reshape(math.prod(x.shape[:-1]), x.shape[-1]), kernel[0, 0], precision=options.get("precision"))
    return y.reshape(*x.shape[:-1], kernel.shape[-1])
