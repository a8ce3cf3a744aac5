"""The arithmetic of DenseNet's blocks: loops over layers of one size, and a backward pass that keeps little.

A layer reads the channels of all layers before it and adds some. Written one after the other, each layer is a program
of its own, since no two have the same number of channels, and each copies what it reads. Here a block's channels lie in
one array, into which every layer writes its own. Neighbouring layers are padded to the channels of the widest, with
zeros, and are run by one loop: their program is compiled once. The array is all that the backward pass needs: it works
out the inside of each layer again (the "memory-efficient" DenseNet of Pleiss et al., arXiv 1707.06990). Statistics of a
channel are the same for every layer that reads it, and are taken once.

`jax.checkpoint` in both passes is for whoever differentiates them once more, as losses on input gradients do: the loops
would keep the inside of all their layers.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from .cpu_ops import conv_general_dilated
from .norm import Moments, Over, apply_norm, count_values, find_moments, moments_pullback

# How many channels layers may read in all, as a multiple of those that they would without padding. On CPUs more padding
# costs the step time, and more groups the start.
MOST_PADDED = 1.25

Affine = tuple[Array, Array]
Statistics = tuple[Array, Array]
Carry = tuple[Array, Array, Array]  # channels, and their means and variances; or gradients by them


class Layer(NamedTuple):
    """What a dense layer computes with; of several layers of one size, stacked along a new first axis.

    Attributes:
      norm1: scale and bias [channels].
      kernel1: [1, 1, channels, inner].
      norm2: scale and bias [inner].
      kernel2: [3, 3, inner, growth].
      given: mean and variance [1, channels] for the first norm, and [1, inner] for the second; None to take those of
        the batch.
    """

    norm1: Affine
    kernel1: Array
    norm2: Affine
    kernel2: Array
    given: tuple[Statistics, Statistics] | None


class How(NamedTuple):
    """What normalising takes: what statistics are taken over, and what is added to the variance."""

    over: Over
    epsilon: float


def run_block(
    over: Over,
    epsilon: float,
    layers: Sequence[Layer],
    x: Float[Array, "batch h w channels"],
    weights: Float[Array, " batch"],
) -> tuple[Float[Array, "batch h w more_channels"], tuple[Moments, Moments] | None]:
    """A dense block.

    Differentiable backwards any number of times, not forwards.

    Args:
      over: what statistics are taken over, of layers that have none given.
      epsilon: of the norms.
      layers: in their order, all with given statistics or none.
      x: the block's input.
      weights: 1 for an example that counts in the statistics, 0 for padding.

    Returns:
      the input and, behind it, the channels of each layer; and the statistics of all these channels, and of those
      inside the layers, [groups, layers, inner], or None where they are given.
    """
    first, growth = x.shape[-1], layers[0].kernel2.shape[-1]
    room = len(layers) * growth
    # In halves, so that the gradient of x, a sum over all layers, is written to memory once: XLA for CPUs fuses sums
    # into what comes before the block, the max pooling, and works them out again for each of its places, but no
    # concatenation.
    halves = jnp.split(x, [first // 2], axis=-1)
    channels = jnp.concatenate([*halves, jnp.zeros((*x.shape[:-1], room), x.dtype)], axis=-1)
    groups = [_stack(layers[group]) for group in group_layers([layer.kernel1.shape[2] for layer in layers])]
    run_groups = partial(_run_groups, How(over, epsilon), groups, channels)
    if layers[0].given is not None:
        nothing = jnp.zeros((1, 0), weights.dtype)
        (channels, *_), _ = run_groups((nothing, nothing), weights)
        return channels, None
    left, right = (find_moments(over, half, weights) for half in halves)
    behind = jnp.zeros((over.groups, room), weights.dtype)
    of_input = tuple(jnp.concatenate([*each, behind], axis=1) for each in zip(left[:2], right[:2], strict=True))
    (channels, mean, var), inside = run_groups(of_input, weights)
    mean_inside, var_inside = (jnp.concatenate(each).swapaxes(0, 1) for each in zip(*inside, strict=True))
    return channels, (Moments(mean, var, left.count), Moments(mean_inside, var_inside, left.count[..., None]))


def run_layers(
    epsilon: float, layers: Sequence[Layer], x: Float[Array, "batch h w channels"]
) -> Float[Array, "batch h w more_channels"]:
    """A dense block with given statistics, one layer after the other.

    For inference, which is a fifth faster so on CPUs: its programs are few, and padding has nothing to pay for.
    Raises ValueError for layers without statistics.
    """
    how, channels, weights = How(Over(1, None), epsilon), [x], jnp.ones(x.shape[:1], x.dtype)
    for layer in layers:
        if layer.given is None:
            raise ValueError("inference normalises by given statistics")
        before = jnp.concatenate(channels, axis=-1)
        new, _ = _layer(how, layer, before, layer.given[0], weights)
        channels.append(new)
    return jnp.concatenate(channels, axis=-1)


def group_layers(channels: Sequence[int]) -> list[slice]:
    """Splits layers, by the channels that they read, into as few groups of one length as `MOST_PADDED` allows."""

    def split(count: int) -> list[slice]:
        size = math.ceil(len(channels) / count)
        return [slice(start, min(start + size, len(channels))) for start in range(0, len(channels), size)]

    padded = lambda groups: sum(max(channels[group]) * len(channels[group]) for group in groups)
    return next(
        groups for groups in map(split, range(1, len(channels) + 1)) if padded(groups) <= MOST_PADDED * sum(channels)
    )


def _stack(layers: Sequence[Layer]) -> Layer:
    """Layers padded to the last one's channels, which are the most."""
    width = layers[-1].kernel1.shape[2]
    along = lambda axis, x: jnp.pad(x, [(0, width - x.shape[i] if i == axis % x.ndim else 0) for i in range(x.ndim)])

    def padded(layer: Layer) -> Layer:
        wide = partial(jax.tree.map, partial(along, -1))
        given = layer.given and (wide(layer.given[0]), layer.given[1])
        return layer._replace(norm1=wide(layer.norm1), kernel1=along(2, layer.kernel1), given=given)

    return jax.tree.map(lambda *each: jnp.stack(each), *map(padded, layers))


def _loops(
    how: How, groups: Sequence[Layer], channels: Array, statistics: Statistics, weights: Array
) -> tuple[Carry, list[Statistics]]:
    """Groups of layers of one size: fills in their own channels, and those channels' statistics.

    Returns these, and the means and variances of the second norms, [layers, groups, inner] for each group of layers.
    """
    carry, inside = (channels, *statistics), []
    for starts, layers in zip(_starts(groups, channels), groups, strict=True):
        add_channels = jax.checkpoint(partial(_add_channels, how, weights))
        carry, inner = lax.scan(add_channels, carry, (starts, layers))
        inside.append(inner)
    return carry, inside


def _add_channels(how: How, weights: Array, carry: Carry, each: tuple[Array, Layer]) -> tuple[Carry, Statistics]:
    """Writes a layer's own channels behind those that it reads."""
    (channels, mean, var), (start, layer) = carry, each
    new, inner = _layer(how, layer, channels[..., : _width(layer)], _first(layer, (mean, var)), weights)
    write = lambda whole, part: lax.dynamic_update_slice_in_dim(whole, part, start, axis=whole.ndim - 1)
    if layer.given is None:
        own = find_moments(how.over, new, weights)
        mean, var = write(mean, own.mean), write(var, own.var)
    return (write(channels, new), mean, var), inner


def _layer(how: How, layer: Layer, x: Array, statistics: Statistics, weights: Array) -> tuple[Array, Statistics]:
    """A layer's own channels, from those before it, and what its second norm normalised by.

    Both convolutions come after a norm and ReLU. The padded channels of `x` may hold anything: scale and bias are zero.
    """
    convolve = lambda x, kernel, pad: conv_general_dilated(
        x, kernel.astype(x.dtype), (1, 1), ((pad, pad), (pad, pad)), dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    x = jax.nn.relu(apply_norm(how.epsilon, x, layer.norm1, statistics))
    x = convolve(x, layer.kernel1, 0)
    inner = find_moments(how.over, x, weights)[:2] if layer.given is None else layer.given[1]
    x = jax.nn.relu(apply_norm(how.epsilon, x, layer.norm2, inner))
    return convolve(x, layer.kernel2, 1), lax.stop_gradient(inner)


def _width(layers: Layer) -> int:
    return layers.kernel1.shape[-2]


def _starts(groups: Sequence[Layer], channels: Array) -> list[Array]:
    """Where the own channels of each layer begin, by group; the last layer's end where `channels` do."""
    growth, counts = groups[0].kernel2.shape[-1], [len(layers.kernel2) for layers in groups]
    first = channels.shape[-1] - growth * sum(counts)
    return [first + growth * (sum(counts[:i]) + jnp.arange(count)) for i, count in enumerate(counts)]


def _first(layer: Layer, statistics: Sequence[Array]) -> Statistics:
    """What a layer's first norm normalises by, of the statistics of all channels."""
    if layer.given is not None:
        return layer.given[0]
    mean, var = (each[:, : _width(layer)] for each in statistics)
    return mean, var


_run_groups = jax.custom_vjp(_loops, nondiff_argnums=(0,))


def _forward(how: How, groups: Sequence[Layer], channels: Array, statistics: Statistics, weights: Array):
    result = _loops(how, groups, channels, statistics, weights)
    return result, (groups, *result[0], weights)


def _backward(how: How, saved: Any, gradients: Any) -> tuple[list[Layer], Array, Statistics, Array]:
    """From the last layer to the first, with the channels of all of them at hand."""
    groups, channels, mean, var, weights = saved
    moments = Moments(mean, var, count_values(how.over, channels, weights))
    carry, of_groups = gradients[0], []
    for starts, layers in reversed(list(zip(_starts(groups, channels), groups, strict=True))):
        add_gradients = jax.checkpoint(partial(_add_gradients, how, weights, channels, moments))
        carry, of_layers = lax.scan(add_gradients, carry, (starts, layers), reverse=True)
        of_groups.insert(0, of_layers)
    of_channels, of_mean, of_var = carry
    return of_groups, of_channels, (of_mean, of_var), jnp.zeros_like(weights)


def _add_gradients(
    how: How, weights: Array, channels: Array, moments: Moments, carry: Carry, each: tuple[Array, Layer]
) -> tuple[Carry, Layer]:
    """Hands what a layer's own channels got from the layers behind it to the channels that it reads."""
    (mean, var, count), (of_channels, of_mean, of_var), (start, layer) = moments, carry, each
    own = lambda x: lax.dynamic_slice_in_dim(x, start, layer.kernel2.shape[-1], axis=x.ndim - 1)
    gradient = own(of_channels)
    if layer.given is None:
        of_own = Moments(own(mean), own(var), count)
        gradient += moments_pullback(how.over, own(channels), weights, of_own, (own(of_mean), own(of_var)))
    function = lambda layer, x, statistics: _layer(how, layer, x, _first(layer, statistics), weights)
    _, pull_back, _ = jax.vjp(function, layer, channels[..., : _width(layer)], (mean, var), has_aux=True)
    by_layer, by_channels, (by_mean, by_var) = pull_back(gradient)
    of_channels = of_channels.at[..., : _width(layer)].add(by_channels)
    return (of_channels, of_mean + by_mean, of_var + by_var), by_layer


_run_groups.defvjp(_forward, _backward)
