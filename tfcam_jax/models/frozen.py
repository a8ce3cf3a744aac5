"""A network in two: the part before its cut, which is frozen, and the part that is trained, each as a model."""

from __future__ import annotations

import dataclasses
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Shaped

from ..errors import ConfigError, did_you_mean
from .backbone import Network
from .contract import Model


class Frozen(NamedTuple):
    """What is frozen of a network.

    Attributes:
      modules: names of its modules, as `params` and `batch_stats` have them.
      bytes_of_image: of the tensor at the cut.
    """

    modules: frozenset[str]
    bytes_of_image: int


def find_frozen(model: Network, name: str, image_size: int) -> Frozen:
    """What `train_from` freezes of a model; shapes alone are looked at. ConfigError for what is no cut point."""
    if model.train_from not in model.cut_points:
        raise ConfigError(
            f"config.model.train_from is {model.train_from!r}, and {name} can't be cut there."
            f"{did_you_mean(model.train_from, model.cut_points)} Its cut points: {', '.join(model.cut_points)}."
        )
    images = jnp.zeros((1, image_size, image_size, 3))
    apply = lambda: model.init_with_output(jax.random.key(0), images, train=False, span="frozen")
    at_cut, variables = jax.eval_shape(apply)
    return Frozen(frozenset(variables["params"]), math.prod(at_cut.shape) * at_cut.dtype.itemsize)


@dataclasses.dataclass(frozen=True)
class TrainedPart:
    """What is behind the cut, as a `Model` whose images are tensors at the cut; variables are the whole network's."""

    model: Model

    def init(self, rngs: Array, images: Float[Array, "batch H W channels"], train: bool) -> dict[str, Any]:
        """The whole network's variables, from images."""
        return self.model.init(rngs, images, train)

    def apply(self, variables: dict[str, Any], images: Float[Array, "batch ..."], train: bool, **options: Any) -> Any:
        """As the whole network's own."""
        return self.model.apply(variables, images, train=train, span="trained", **options)


def apply_frozen(
    model: Model, variables: dict[str, Any], images: Float[Array, "batch H W 3"]
) -> Shaped[Array, "batch ..."]:
    """The tensor at the cut, in the network's own dtype; batch statistics are those of the weights."""
    at_cut: Any = model.apply(variables, images, train=False, span="frozen")
    return at_cut
