"""Convolutions and poolings in forms that XLA for CPUs runs fast; on accelerators they are as good as its own.

Convolution is as `jax.lax` has it, but with 1x1 kernels as one matrix product, and channel by channel as shifts.
Poolings are made from slices: XLA for CPUs runs its own (`reduce_window`) as a scalar loop, and its gradient as a
scatter, ten times slower than these, which become vectorised loops.
"""

from __future__ import annotations

import math
from typing import Any, Literal

import jax
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

    XLA for CPUs transposes both operands of a convolution's weight gradient in memory; for 1x1 kernels, most of those
    here, that gradient is a product of the arrays as they lie, if they have two dimensions, not four. Its convolution
    of each channel by itself is a scalar loop; see `depthwise_conv`.
    """
    groups, size = options.get("feature_group_count", 1), kernel.shape[:2]
    sides = padding.upper() if isinstance(padding, str) else [tuple(pair) for pair in padding]
    if size == (1, 1) and groups == 1 and (isinstance(sides, str) or not any(map(any, sides))):
        x = x[:, :: strides[0], :: strides[1]]
        # Sizes written out: of an image too small to leave a place, -1 could not be told.
        places = x.reshape(math.prod(x.shape[:-1]), x.shape[-1])
        y = jnp.dot(places, kernel[0, 0], precision=options.get("precision"))
        return y.reshape(*x.shape[:-1], kernel.shape[-1])
    is_odd = size[0] % 2 == size[1] % 2 == 1
    keeps_size = is_odd and tuple(strides) == (1, 1) and sides in ("SAME", [(side // 2, side // 2) for side in size])
    is_dilated = any(set(options.get(key) or (1,)) != {1} for key in ("lhs_dilation", "rhs_dilation"))
    if keeps_size and groups == x.shape[-1] == kernel.shape[-1] and not is_dilated:
        return depthwise_conv(x, kernel)
    return lax.conv_general_dilated(x, kernel, strides, padding, **options)


@jax.custom_vjp
def depthwise_conv(
    x: Float[Array, "batch h w channels"], kernel: Float[Array, "size_h size_w 1 channels"]
) -> Float[Array, "batch h w channels"]:
    """Convolution of each channel with a kernel of its own, of odd size, at stride 1, zeros around the edge.

    A sum of shifted copies, which becomes one vectorised loop. Sums are float32 for smaller dtypes; the result has x's
    dtype. Its gradients are two of its own kind, so that it can be differentiated twice.
    """
    dtype = jnp.promote_types(x.dtype, jnp.float32)
    rows = kernel.astype(dtype).reshape(-1, 1, 1, 1, kernel.shape[-1])
    products = (shifted.astype(dtype) * row for shifted, row in zip(_shifts(x, kernel.shape), rows, strict=True))
    return sum(products, start=jnp.zeros((), dtype)).astype(x.dtype)


@jax.custom_vjp
def _kernel_gradient(x: Array, gradient: Array, kernel: Array) -> Array:
    """Gradient of `depthwise_conv(x, kernel)` by the kernel, of which only shape and dtype matter."""
    dtype = jnp.promote_types(x.dtype, jnp.float32)
    products = tuple(shifted.astype(dtype) * gradient.astype(dtype) for shifted in _shifts(x, kernel.shape))
    # One pass over both arrays for all places of the kernel: a sum for each would be a pass for each. The batch is
    # summed apart: of such a joint sum XLA gathers what several devices hold, a plain one becomes an all-reduce.
    add = lambda sums, values: tuple(total + value for total, value in zip(sums, values, strict=True))
    sums = lax.reduce(products, (jnp.zeros((), dtype),) * len(products), add, (1, 2))
    return jnp.stack(sums).sum(1).reshape(kernel.shape).astype(kernel.dtype)


def _shifts(x: Array, kernel_shape: tuple[int, ...]) -> list[Array]:
    """For each place of the kernel, row-major, what lies under it at every place of x."""
    (height, width), (size_h, size_w) = x.shape[1:3], kernel_shape[:2]
    padded = jnp.pad(x, ((0, 0), (size_h // 2, size_h // 2), (size_w // 2, size_w // 2), (0, 0)))
    return [padded[:, i : i + height, j : j + width] for i in range(size_h) for j in range(size_w)]


def _depthwise_backward(residuals: tuple[Array, Array], gradient: Array) -> tuple[Array, Array]:
    x, kernel = residuals
    return depthwise_conv(gradient, kernel[::-1, ::-1]), _kernel_gradient(x, gradient, kernel)


def _kernel_gradient_backward(residuals: tuple[Array, Array, Array], second: Array) -> tuple[Array, Array, Array]:
    x, gradient, kernel = residuals
    return depthwise_conv(gradient, second[::-1, ::-1]), depthwise_conv(x, second), jnp.zeros_like(kernel)


depthwise_conv.defvjp(lambda x, kernel: (depthwise_conv(x, kernel), (x, kernel)), _depthwise_backward)
_kernel_gradient.defvjp(
    lambda x, gradient, kernel: (_kernel_gradient(x, gradient, kernel), (x, gradient, kernel)),
    _kernel_gradient_backward,
)


def avg_pool_2x2(x: Float[Array, "batch h w channels"]) -> Float[Array, "batch h//2 w//2 channels"]:
    """Mean of 2x2 places at stride 2; an odd last row or column is left out."""
    x = x[:, : x.shape[1] // 2 * 2, : x.shape[2] // 2 * 2]
    return (x[:, ::2, ::2] + x[:, 1::2, ::2] + x[:, ::2, 1::2] + x[:, 1::2, 1::2]) / 4


def avg_pool_3x3(x: Float[Array, "batch h w channels"]) -> Float[Array, "batch h w channels"]:
    """Mean of 3x3 places at stride 1, zeros around the edge counted in, as PyTorch does by default."""
    return sum(_shifts(x, (3, 3)), start=jnp.zeros((), x.dtype)) / 9


def max_pool_3x3(
    x: Float[Array, "batch h w channels"], padding: int | Literal["SAME"]
) -> Float[Array, "batch h_out w_out channels"]:
    """Maximum over 3x3 places at stride 2, after padding every side with -inf.

    "SAME" is TensorFlow's padding: one place on each side of an odd size, one behind an even size and none before it.
    Of equal values the first in row-major order gets the gradient, as in PyTorch.
    """
    sides = [(size % 2, 1, 0) if padding == "SAME" else (padding, padding, 0) for size in x.shape[1:3]]
    return _max_pool(lax.pad(x, jnp.array(-jnp.inf, x.dtype), ((0, 0, 0), *sides, (0, 0, 0))))


@jax.custom_vjp
def _max_pool(x: Array) -> Array:
    return _max_and_place(x)[0]


def _max_and_place(x: Array) -> tuple[Array, Array]:
    """The maximum of each window, and which of its nine places (row-major) holds it first."""
    h, w = (max(size - 1, 0) // 2 for size in x.shape[1:3])
    best, *others = [x[:, i : i + 2 * h : 2, j : j + 2 * w : 2] for i in range(3) for j in range(3)]
    place = jnp.zeros(best.shape, jnp.int8)
    for i, value in enumerate(others, start=1):
        place = jnp.where(value > best, jnp.int8(i), place)
        best = jnp.maximum(best, value)
    return best, place


def _max_pool_forward(x: Array) -> tuple[Array, tuple[Array, tuple[int, ...]]]:
    best, place = _max_and_place(x)
    return best, (place, x.shape)


def _max_pool_backward(residuals: tuple[Array, tuple[int, ...]], gradient: Array) -> tuple[Array]:
    """Adds each place's share where its slice was taken from."""
    place, (_, height, width, _) = residuals
    h, w = gradient.shape[1:3]
    zero = jnp.zeros((), gradient.dtype)

    def share(i: int, j: int) -> Array:
        taken = jnp.where(place == 3 * i + j, gradient, zero)
        rows, columns = (i, height - max(2 * h - 1, 0) - i, 1), (j, width - max(2 * w - 1, 0) - j, 1)
        return lax.pad(taken, zero, ((0, 0, 0), rows, columns, (0, 0, 0)))

    return (sum((share(i, j) for i in range(3) for j in range(3)), start=zero),)


_max_pool.defvjp(_max_pool_forward, _max_pool_backward)
