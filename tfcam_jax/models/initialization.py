"""The variables of a model at first: their shapes, and how they are had from a random key."""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from .backbone import Network, trace
from .frozen import TrainedPart
from .initializers import all_described, draw
from .tasks import MultiLabel, OneLogit


class Initialization:
    """The variables of a model at first; what it takes is found out once, from shapes alone.

    Networks all of whose variables an `Initializer` draws, as ours, are drawn on the host without a program, see
    `initializers`; others by their own `init`, compiled.

    Attributes:
      abstract: shapes and dtypes of the variables, `params` and, where the model has any, `batch_stats`.
    """

    def __init__(self, model: Any, image_size: int) -> None:
        """Of a `models.Model`, for images of so many pixels a side."""
        while isinstance(model, (OneLogit, MultiLabel, TrainedPart)):
            model = model.model  # their variables are those of the network within
        is_ours = isinstance(model, Network)
        self._described = trace(model, image_size).variables if is_ours else None
        self._init = jax.jit(lambda key: model.init(key, jnp.zeros((1, image_size, image_size, 3)), train=False))
        if self._described is not None and all_described(self._described):
            self.abstract: dict[str, Any] = nn.meta.unbox(self._described)
        else:
            self._described, self.abstract = None, jax.eval_shape(self._init, jax.eval_shape(jax.random.key, 0))

    def __call__(self, key: jax.Array) -> dict[str, Any]:
        """Draws them, on this process's first device. `key` has a value: this can't be compiled."""
        if self._described is None:
            return self._init(key)
        # A state made of them may be donated: it shares no memory with what NumPy holds.
        return jax.device_put(draw(self._described, key), may_alias=False)


def initialize(model: Any, key: jax.Array, image_size: int) -> dict[str, Any]:
    """Variables of a model from a random key, once; see `Initialization`."""
    return Initialization(model, image_size)(key)
