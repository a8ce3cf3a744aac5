"""What a model takes and returns: the contract between networks and class activation maps."""

from __future__ import annotations

from typing import Any, Protocol, runtime_checkable

import flax.struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from .. import cams
from ..errors import ConfigError


class NetworkError(ConfigError):
    """A network that others wrote and that can't be found or made."""


class ContractError(NetworkError):
    """A network that does not return what `ModelOutput` promises, or can't be called as `Model` says."""


@flax.struct.dataclass
class ModelOutput:
    """Logits and what a class activation map needs, all float32. One of `kernel` and `head` is there.

    Attributes:
      logits: of every class.
      features: the tensor that the maps are made of.
      kernel: weights of the one linear layer behind the mean over places. Then
        `logits == features.mean((1, 2)) @ kernel + bias`, so that the mean of a class's map plus its bias is that
        class's logit; in training with dropout it is the logit's mean over masks.
      bias: of that layer.
      hooked: of the shape of `features`, what CYBORG's code (Boyd et al., WACV 2023) takes for it: an earlier tensor,
        but in Inception, where the two are the same. Nothing is said of its mean. None: the network has no such tensor.
      head: for a network whose logits are another function of `features`: that function, of features of this batch, a
        `jax.tree_util.Partial` of whatever else it needs, as parameters. Maps are then those of the logits' gradient
        (`cams.gradient_class_activation_maps`), and what their mean leaves of the logit counts as bias.
    """

    logits: Float[Array, "batch classes"]
    features: Float[Array, "batch h w channels"]
    kernel: Float[Array, "channels classes"] | None
    bias: Float[Array, " classes"] | None
    hooked: Float[Array, "batch h w channels"] | None = None
    head: jax.tree_util.Partial | None = None

    def true_false_maps(
        self, labels: Int[Array, " batch"], features: Float[Array, "batch h w channels"] | None = None
    ) -> tuple[Float[Array, "batch h w"], Float[Array, "batch h w"]]:
        """T and U, raw, see `cams.split_true_false`; of `features` in place of the model's own where they are given."""
        features = self.features if features is None else features
        if self.kernel is not None:
            return cams.true_false_maps(features, self.kernel, labels, self.logits)
        return cams.gradient_true_false_maps(self._head, features, labels, self.logits)

    def decompose_margin(self, labels: Int[Array, " batch"]) -> cams.Decomposition:
        """`cams.decompose_margin`; without a kernel the difference of the biases is what the mean of D leaves."""
        if self.kernel is not None and self.bias is not None:
            return cams.decompose_margin(self.features, self.kernel, self.bias, labels, self.logits)
        return cams.decompose_gradient_margin(self._head, self.features, labels, self.logits)

    def class_map(self, index: int) -> Float[Array, "batch h w"]:
        """The raw map of one class."""
        if self.kernel is not None:
            return cams.class_activation_maps(self.features, self.kernel[:, index : index + 1])[..., 0]
        weights = jnp.broadcast_to(jax.nn.one_hot(index, self.logits.shape[-1]), self.logits.shape)
        return cams.gradient_class_activation_maps(self._head, self.features, weights)

    def at(self, features: Float[Array, "batch h w channels"]) -> ModelOutput:
        """What the same head says of other features."""
        if self.kernel is not None and self.bias is not None:
            logits = features.mean((1, 2)) @ self.kernel + self.bias[None]
        else:
            logits = self._head(features)
        return ModelOutput(logits, features, self.kernel, self.bias, head=self.head)

    @property
    def _head(self) -> jax.tree_util.Partial:
        if self.head is None:
            raise ValueError("a ModelOutput needs the kernel of its linear head, or the head itself as a function")
        return self.head


@flax.struct.dataclass
class MultiLabelOutput:
    """What a network with a logit for each of L labels says, each label as two classes, absent and present.

    Attributes:
      output: the network's own.
      logits: (-z / 2, z / 2) of every label, whose softmax is the sigmoid of z (`cams.two_columns`).
    """

    output: ModelOutput
    logits: Float[Array, "batch labels 2"]

    @property
    def features(self) -> Float[Array, "batch h w channels"]:
        return self.output.features

    @property
    def hooked(self) -> Float[Array, "batch h w channels"] | None:
        return self.output.hooked

    def true_false_maps(
        self, labels: Int[Array, "batch labels"], features: Float[Array, "batch h w channels"] | None = None
    ) -> tuple[Float[Array, "batch labels h w"], Float[Array, "batch labels h w"]]:
        """T and U of every label, see `cams.present_absent_maps`; of `features` where they are given."""
        output = self.output if features is None else self.output.at(features)
        maps = jnp.stack([output.class_map(index) for index in range(output.logits.shape[-1])], axis=-1)
        return cams.present_absent_maps(maps, labels)

    def decompose_margin(self, labels: Int[Array, "batch labels"]) -> cams.Decomposition:
        """T, U and D of every label, its margin (the logit, signed by what is true) and what D's mean leaves of it."""
        true_map, false_map = self.true_false_maps(labels)
        difference = cams.difference_salience(true_map, false_map)
        margin = jnp.where(labels < 0, 0, jnp.where(labels > 0, 1, -1)) * (self.logits[..., 1] - self.logits[..., 0])
        return cams.Decomposition(true_map, false_map, difference, margin, margin - difference.mean((-2, -1)))


def check_shapes(output: ModelOutput) -> None:
    """Raises ContractError, with the remedy, unless the shapes of a `ModelOutput` fit together and all is float32."""
    named = {name: getattr(output, name) for name in ("logits", "features", "kernel", "bias")}
    shapes = {name: None if value is None else jnp.shape(value) for name, value in named.items()}
    logits, features, kernel, bias = shapes.values()
    if logits is None or len(logits) != 2:
        raise ContractError(f"logits are [batch, classes]; got {logits}")
    if features is None or len(features) != 4 or features[0] != logits[0]:
        wanted = f"features are [batch, h, w, channels], with {logits[0]} examples as the logits"
        raise ContractError(
            f"{wanted}; got {features}. Hand over the tensor that is pooled, before its mean over places."
        )
    if kernel is None and output.head is None:
        raise ContractError("there is neither the kernel of a linear head nor a head; give one of them")
    if kernel is not None and kernel != (features[3], logits[1]):
        wanted = f"the kernel is [channels, classes], {(features[3], logits[1])} here"
        remedy = "Hand over the weights of the one linear layer behind the mean over places."
        if kernel == (logits[1], features[3]):
            remedy = "It is transposed, as Equinox and PyTorch keep it: hand over weight.T."
        elif kernel[:1] == features[1:2]:
            remedy = "Are the features channels first? Channels are their last axis."
        raise ContractError(f"{wanted}; got {kernel}. {remedy}")
    if bias is not None and bias != logits[1:]:
        raise ContractError(f"the bias is [classes], {logits[1:]} here; got {bias}")
    for name, value in named.items():
        if value is not None and not (jnp.issubdtype(value.dtype, jnp.floating) and jnp.finfo(value.dtype).bits >= 32):
            remedy = f"cast before the mean over places: {name}.astype(jnp.float32)"
            raise ContractError(f"{name} is {value.dtype}; maps and logits are at least float32: {remedy}")


@runtime_checkable
class Model(Protocol):
    """What steps need of a network. Flax's Linen modules are called in this way, others through `adapters`."""

    def init(self, rngs: Any, /, *args: Any, **kwargs: Any) -> Any:
        """`init(key, images, train=False)`: random variables from a key and images [batch, H, W, 3].

        A dict of `params`, which are trained, and `batch_stats`, which a forward pass in training may change.
        """
        ...

    def apply(self, variables: Any, /, *args: Any, **kwargs: Any) -> Any:
        """`apply(variables, images, train=...)` is a `ModelOutput`.

        In training also `mask` [batch], 1 for an example that counts in batch statistics and 0 for padding, `draw`
        uint32 [batch], random numbers of each example for dropout, and `mutable=["batch_stats"]`, for which the output
        comes with a dict of the changed `batch_stats`.
        """
        ...
