"""What all backbones share: their settings, their convolutions and norms, and the head."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache, partial
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, UInt32

from ..errors import ConfigError
from .contract import ModelOutput
from .cpu_ops import conv_general_dilated
from .head import PooledLinearHead
from .initializers import describe, he_fan_out
from .norm import BatchNorm

# What a call computes: all; what comes before the cut; what comes behind it, from the tensor there.
SPANS = ("whole", "frozen", "trained")


class Block(nn.Module):
    """A part of a backbone, made of that backbone's convolutions and norms. Its call takes (x, train, mask)."""

    conv: Callable[..., nn.Module]
    norm: Callable[..., nn.Module]


class Part(NamedTuple):
    """A piece of a network, from one tensor to the next; `run` takes the tensor and `train`."""

    name: str
    run: Callable[[Any, bool], Any]


class Network(nn.Module):
    """What all networks here have: a check of the images, and the settings that do not depend on the kind of network.

    A subclass writes `parts` and `classify`. Between any two parts the network can be cut: what comes before is frozen,
    in training as it is in evaluation, and can be computed by itself (`SPANS`).

    Attributes:
      num_classes: K, the head's width.
      dtype: what convolutions and activations are computed in. Parameters, batch statistics, the returned features
        and logits are float32 whatever it is.
      axis_name: pmap axis that the batch is spread over; None where the images are the whole batch.
      head_init: a key of `head.HEAD_INITS`.
      dropout: share of the pooled channels that is dropped before the head, in training alone, in [0, 1).
      rematerialize: compute each block's inner activations again in the backward pass rather than keep them:
        about a third more time for a fraction of the memory. Dense blocks do so anyway (dense_block.py).
      train_from: the first part that is trained, one of `cut_points`; "": all.
    """

    num_classes: int
    dtype: jnp.dtype = jnp.float32
    axis_name: str | None = None
    head_init: str = "lecun"
    dropout: float = 0.0
    rematerialize: bool = False
    train_from: str = ""

    @nn.compact
    def __call__(
        self,
        images: Float[Array, "batch ..."],
        train: bool,
        mask: Float[Array, " batch"] | None = None,
        draw: UInt32[Array, " batch"] | None = None,
        span: str = "whole",
    ) -> ModelOutput | Float[Array, "batch ..."]:
        """Logits and the feature maps that they are made of; of span "frozen" the tensor at the cut.

        Args:
          images: [batch, H, W, 3], normalised with the mean and deviation of the model's card; for span "trained" what
            "frozen" gave of them.
          train: use and update batch statistics (needs `mutable=["batch_stats"]`), and drop channels.
          mask: 1 for an example that counts in the batch statistics, 0 for padding; None counts all.
          draw: random numbers that decide which channels of each example are dropped; not used without dropout.
          span: one of `SPANS`.

        Raises:
          ValueError: images do not have three channels, or `draw` is missing.
          ConfigError: they are so small that no place is left in the feature map, or of a size that does not fit.
        """
        if span != "trained" and (images.ndim != 4 or images.shape[-1] != 3):
            raise ValueError(f"{type(self).__name__} takes images of shape [batch, H, W, 3], not {images.shape}")
        parts = self.parts(mask)
        cut = [*(part.name for part in parts), self.ending].index(self.train_from) if self.train_from else 0
        x = images.astype(self.dtype)
        for part in parts[:cut] if span != "trained" else ():
            x = part.run(x, False)
        if cut and isinstance(x, tuple):  # the hooked tensor is frozen too, and nothing to guide by
            x, _ = x
        if span == "frozen":
            return x
        for part in parts[cut:]:
            x = part.run(x, train)
        output = self.classify(x, train, draw, images.shape)
        if span == "whole" and 0 in output.features.shape[1:3]:
            height, width = images.shape[1:3]
            raise ConfigError(
                f"images of {height}x{width} px are too small for {type(self).__name__}: "
                "its strides leave no place in the feature map; use a larger image size"
            )
        return output

    @property
    def ending(self) -> str:
        """What `classify` does, by name, as the last of the cut points."""
        return "head"

    @property
    def cut_points(self) -> tuple[str, ...]:
        """Where training may begin: every part but the first, which would be all, and the ending."""
        return (*(part.name for part in self.parts(None)[1:]), self.ending)

    def parts(self, mask: Array | None) -> list[Part]:
        """The network in its order, from images in its own dtype to what `classify` takes."""
        raise NotImplementedError

    def classify(self, x: Any, train: bool, draw: Array | None, shape: tuple[Any, ...]) -> ModelOutput:
        """What the network makes of what its last part gave; `shape` is that of the call's images, or of the tensor at
        the cut where the call began there; the other arguments are those of the call."""
        raise NotImplementedError


class Backbone(Network):
    """A convolutional network with BatchNorm that ends in global average pooling and one linear layer.

    A subclass writes `parts`. The last one gives two tensors [batch, h, w, channels]: the one that is pooled, and the
    one that CYBORG's code hooks (`ModelOutput.hooked`).

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

    def classify(self, x: Any, train: bool, draw: Array | None, shape: tuple[Any, ...]) -> ModelOutput:
        features, hooked = x if isinstance(x, tuple) else (x, None)
        dropout = self.dropout if train else 0.0
        return PooledLinearHead(self.num_classes, self.head_init, dropout, name="head")(features, hooked, draw)

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

    def block_part(self, block_type: type[Block], mask: Array | None, name: str, **fields: Any) -> Part:
        """One such block as a part, both of this name."""
        make = partial(self.block(block_type), name=name, **fields)
        return Part(name, lambda x, train: make()(x, train, mask))


class Traced(NamedTuple):
    """What shapes say of a model and one image.

    Attributes:
      output: what the model gives.
      largest: bytes of the largest output of its convolutions.
      variables: those that the model begins with, as `initializers.describe` has them.
    """

    output: ModelOutput
    largest: int
    variables: dict[str, Any]


def trace(model: Network, image_size: int | tuple[int, int]) -> Traced:
    """What shapes say of a model and an image of `image_size` px (one side or (H, W)); nothing is computed.

    Raises ConfigError for a size that the model can't take.
    """
    hashable: Any = model  # as all Flax modules, which type checkers do not know
    return _trace(hashable, *((image_size, image_size) if isinstance(image_size, int) else image_size))


@lru_cache(maxsize=32)  # a deep network is traced for a second, and asked for by its config and by its variables
def _trace(model: Any, height: int, width: int) -> Traced:
    images = jax.ShapeDtypeStruct((1, height, width, 3), jnp.float32)
    apply = lambda x: model.init_with_output(jax.random.key(0), x, train=False)
    with describe():
        program, (output, variables) = jax.make_jaxpr(apply, return_shape=True)(images)
    return Traced(output, _largest_convolution(program.jaxpr), variables)


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
