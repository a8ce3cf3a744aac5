"""What networks with LayerNorm share: their norm, their perceptron, and a head that normalises what is pooled.

**The maps of such a head.** With `p` the mean of the features over places, mu and sigma the mean and the deviation of
p's channels, the logits are `z = ((p - mu) / sigma * scale + shift) @ kernel + bias`. LayerNorm does not change if p is
multiplied by a number (it is homogeneous of degree 0), so the gradient of z times p is zero but for epsilon: the mean
of a map from the exact gradient would say nothing of the logit. Here sigma counts as a number that is given, as Ali et
al., ICML 2022 ("XAI for Transformers: Better Explanations through Conservative Propagation"), have it. Given it the
logits are linear in the features, and the maps decompose them exactly:

    mean_hw(M_k) + shift @ kernel[:, k] + bias[k] == z_k

The gradient of a loss on the maps flows through sigma, as everywhere in training: it is held in the maps' own gradient
alone. Over images, sigma scales each image's maps by one number.
"""

from __future__ import annotations

import math
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, UInt32

from .backbone import Network
from .contract import ModelOutput
from .head import LinearParameters, drop_channels, linear
from .initializers import ones, truncated_normal, zeros

EPSILON = 1e-6
kernel_init = truncated_normal(0.02)


class NormedNetwork(Network):
    """A network of LayerNorm and no BatchNorm: nothing in it looks at other examples."""

    def normed_head(
        self, features: Float[Array, "batch h w channels"], train: bool, draw: UInt32[Array, " batch"] | None
    ) -> ModelOutput:
        """A mean over places, LayerNorm and one linear layer; its maps as told at the top of this module."""
        features = features.astype(jnp.promote_types(features.dtype, jnp.float32))
        scale, shift = NormParameters(name="norm")(features.shape[-1])
        kernel, bias = self.linear_head(features.shape[-1])
        pooled = features.mean((1, 2))
        inverse = inverse_deviation(pooled)
        normed = centre(pooled) * inverse * scale[None] + shift[None]
        logits = linear(drop_channels(normed, self.dropout if train else 0.0, draw), kernel, bias)
        head = jax.tree_util.Partial(normed_linear_logits, inverse, scale, shift, kernel, bias)
        return ModelOutput(logits, features, None, None, head=head)

    def linear_head(self, channels: int) -> tuple[Float[Array, "channels classes"], Float[Array, " classes"]]:
        """Kernel and bias of the last layer."""
        return LinearParameters(self.num_classes, self.head_init, name="head")(channels)


def normed_linear_logits(
    held: Float[Array, "batch 1"],
    scale: Float[Array, " channels"],
    shift: Float[Array, " channels"],
    kernel: Float[Array, "channels classes"],
    bias: Float[Array, " classes"],
    features: Float[Array, "batch h w channels"],
) -> Float[Array, "batch classes"]:
    """Logits of a mean over places, LayerNorm and one linear layer, linear in `features` for whoever differentiates.

    Args:
      held: 1 / sigma of these examples' own features. Of other features the value is theirs, and they too get no
        gradient through it.
      scale: of LayerNorm.
      shift: of LayerNorm.
      kernel: of the linear layer.
      bias: of the linear layer.
      features: exactly as they are pooled.
    """
    pooled = features.mean((-3, -2))
    inverse = held * jax.lax.stop_gradient(inverse_deviation(pooled) / held)
    return linear(centre(pooled) * inverse * scale[None] + shift[None], kernel, bias)


def centre(x: Float[Array, "*batch channels"]) -> Float[Array, "*batch channels"]:
    return x - x.mean(-1, keepdims=True)


def inverse_deviation(x: Float[Array, "*batch channels"]) -> Float[Array, "*batch 1"]:
    """1 / sigma of LayerNorm, with its epsilon: at most 1,000, where the channels are all the same."""
    return jax.lax.rsqrt(jnp.square(centre(x)).mean(-1, keepdims=True) + EPSILON)


def layer_norm(
    x: Float[Array, "*batch channels"], scale: Float[Array, " channels"], shift: Float[Array, " channels"]
) -> Float[Array, "*batch channels"]:
    """LayerNorm over channels, of parameters that are at hand."""
    along = lambda values: values.reshape(*[1] * (x.ndim - 1), -1)
    return centre(x) * inverse_deviation(x) * along(scale) + along(shift)


class NormParameters(nn.Module):
    """Scale and shift of a LayerNorm, which whoever asks for them applies itself."""

    @nn.compact
    def __call__(self, channels: int) -> tuple[Float[Array, " channels"], Float[Array, " channels"]]:
        scale = self.param("scale", ones, (channels,))
        return scale, self.param("bias", zeros, (channels,))


# Moments and products are float32, the result has the input's dtype.
LayerNorm = partial(nn.LayerNorm, epsilon=EPSILON, scale_init=ones, bias_init=zeros)
gelu = partial(jax.nn.gelu, approximate=False)


class DenseParameters(nn.Module):
    """Kernel and bias of a linear layer, which whoever asks for them applies itself."""

    features: int

    @nn.compact
    def __call__(self, channels: int) -> tuple[Float[Array, "channels features"], Float[Array, " features"]]:
        return _declare(self, channels)


class Dense(nn.Module):
    """A linear layer over the last axis, as one product of matrices: XLA for CPUs transposes those of more axes."""

    features: int
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "*places channels"]) -> Float[Array, "*places features"]:
        kernel, bias = (array.astype(self.dtype) for array in _declare(self, x.shape[-1]))
        rows = x.astype(self.dtype).reshape(math.prod(x.shape[:-1]), x.shape[-1])
        return (rows @ kernel + bias[None]).reshape(*x.shape[:-1], self.features)


def _declare(layer: DenseParameters | Dense, channels: int) -> tuple[Array, Array]:
    kernel = layer.param("kernel", kernel_init, (channels, layer.features))
    return kernel, layer.param("bias", zeros, (layer.features,))


class Perceptron(nn.Module):
    """Two linear layers around GELU, the exact one."""

    hidden: int
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "*places channels"]) -> Float[Array, "*places channels"]:
        hidden = gelu(Dense(self.hidden, self.dtype, name="fc1")(x))
        return Dense(x.shape[-1], self.dtype, name="fc2")(hidden)
