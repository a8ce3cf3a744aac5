"""What all backbones share: their settings, their convolutions and norms, and the head."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, UInt32

from ..errors import ConfigError
from .contract import ModelOutput
from .cpu_ops import conv_general_dilated
from .head import PooledLinearHead
from .norm import BatchNorm

he_fan_out = nn.initializers.variance_scaling(2.0, "fan_out", "normal")


class Block(nn.Module):
    """A part of a backbone, made of that backbone's convolutions and norms. Its call takes (x, train, mask)."""

    conv: Callable[..., nn.Module]
    norm: Callable[..., nn.Module]


class Network(nn.Module):
    """What all networks here have: a check of the images, and the settings that do not depend on the kind of network.

    A subclass writes `classify`.

    Attributes:
      num_classes: K, the head's width.
      dtype: what convolutions and activations are computed in. Parameters, batch statistics, the returned features
        and logits are float32 whatever it is.
      axis_name: pmap axis that the batch is spread over; None where the images are the whole batch.
      head_init: a key of `head.HEAD_INITS`.
      dropout: share of the pooled channels that is dropped before the head, in training alone, in [0, 1).
      rematerialize: compute each block's inner activations again in the backward pass rather than keep them:
        about a third more time for a fraction of the memory.
    """

    num_classes: int
    dtype: jnp.dtype = jnp.float32
    axis_name: str | None = None
    head_init: str = "lecun"
    dropout: float = 0.0
    rematerialize: bool = False

    @nn.compact
    def __call__(
        self,
        images: Float[Array, "batch H W 3"],
        train: bool,
        mask: Float[Array, " batch"] | None = None,
        draw: UInt32[Array, " batch"] | None = None,
    ) -> ModelOutput:
        """Logits and the feature maps that they are made of.

        Args:
          images: normalised with the mean and deviation of the model's card.
          train: use and update batch statistics (needs `mutable=["batch_stats"]`), and drop channels.
          mask: 1 for an example that counts in the batch statistics, 0 for padding; None counts all.
          draw: random numbers that decide which channels of each example are dropped; not used without dropout.

        Raises:
          ValueError: images do not have three channels, or `draw` is missing.
          ConfigError: they are so small that no place is left in the feature map, or of a size that does not fit.
        """
        if images.ndim != 4 or images.shape[-1] != 3:
            raise ValueError(f"{type(self).__name__} takes images of shape [batch, H, W, 3], not {images.shape}")
        output = self.classify(images.astype(self.dtype), train, mask, draw)
        if 0 in output.features.shape[1:3]:
            height, width = images.shape[1:3]
            raise ConfigError(
                f"images of {height}x{width} px are too small for {type(self).__name__}: "
                "its strides leave no place in the feature map; use a larger image size"
            )
        return output

    def classify(self, x: Array, train: bool, mask: Array | None, draw: Array | None) -> ModelOutput:
        """What the network makes of images in its own dtype; the arguments are those of the call."""
        raise NotImplementedError


class Backbone(Network):
    """A convolutional network with BatchNorm that ends in global average pooling and one linear layer.

    A subclass writes `feature_maps`, the network up to the tensor that is pooled; see there.

    Attributes:
      batch_norm_groups: `groups` of `BatchNorm`.
      freeze_batch_norm: `frozen` of `BatchNorm`.
      batch_norm_momentum: `momentum` of `BatchNorm`.
      kernel_init: initialiser of all convolutions.
      epsilon: added to the variance in BatchNorm.
    """

    batch_norm_groups: int = 1
    freeze_batch_norm: bool = False
    batch_norm_momentum: float = 0.9
    kernel_init: nn.initializers.Initializer = he_fan_out
    epsilon: float = 1e-5

    def classify(self, x: Array, train: bool, mask: Array | None, draw: Array | None) -> ModelOutput:
        features, hooked = self.feature_maps(x, train, mask)
        dropout = self.dropout if train else 0.0
        return PooledLinearHead(self.num_classes, self.head_init, dropout, name="head")(features, hooked, draw)

    def feature_maps(
        self, x: Array, train: bool, mask: Array | None
    ) -> tuple[Float[Array, "batch h w channels"], Float[Array, "batch h w channels"]]:
        """The tensor that is pooled, and the one that CYBORG's code hooks (`ModelOutput.hooked`)."""
        raise NotImplementedError

    @property
    def conv(self) -> Callable[..., nn.Conv]:
        """Constructor of the network's convolutions: no bias; no padding unless `padding` says so."""
        return partial(
            nn.Conv,
            padding="VALID",
            use_bias=False,
            dtype=self.dtype,
            kernel_init=self.kernel_init,
            conv_general_dilated=conv_general_dilated,
        )

    @property
    def norm(self) -> Callable[..., BatchNorm]:
        return partial(
            BatchNorm,
            momentum=self.batch_norm_momentum,
            epsilon=self.epsilon,
            axis_name=self.axis_name,
            groups=self.batch_norm_groups,
            frozen=self.freeze_batch_norm,
        )

    def block(self, block_type: type[Block]) -> Callable[..., Any]:
        """Constructor of the network's blocks of this type, rematerialised if wanted."""
        built = nn.remat(block_type, static_argnums=(2,)) if self.rematerialize else block_type
        return partial(built, conv=self.conv, norm=self.norm)


class Traced(NamedTuple):
    """Shapes of what a model gives for one image, and bytes of the largest output of its convolutions."""

    output: ModelOutput
    largest: int


def trace(model: Network, image_size: int | tuple[int, int]) -> Traced:
    """What shapes say of a model and an image of `image_size` px (one side or (H, W)); nothing is computed.

    Raises ConfigError for a size that the model can't take.
    """
    height, width = (image_size, image_size) if isinstance(image_size, int) else image_size
    images = jax.ShapeDtypeStruct((1, height, width, 3), jnp.float32)
    apply = lambda x: model.init_with_output(jax.random.key(0), x, train=False)[0]
    program, output = jax.make_jaxpr(apply, return_shape=True)(images)
    return Traced(output, _largest_convolution(program.jaxpr))


def _largest_convolution(program: Any) -> int:
    """Bytes of the largest output of a convolution in a jaxpr, or in one that it calls."""
    own = [
        math.prod(result.aval.shape) * result.aval.dtype.itemsize
        for equation in program.eqns
        if equation.primitive.name == "conv_general_dilated"
        for result in equation.outvars
    ]
    called = [value for equation in program.eqns for value in equation.params.values()]
    inner = [getattr(value, "jaxpr", value) for value in called]
    return max([*own, *(_largest_convolution(each) for each in inner if hasattr(each, "eqns"))], default=0)


def cam_size(model: Network, image_size: int | tuple[int, int]) -> tuple[int, int]:
    """Height and width of the feature map, hence of the CAM, for such an image; see `trace`."""
    _, height, width, _ = trace(model, image_size).output.features.shape
    return height, width
