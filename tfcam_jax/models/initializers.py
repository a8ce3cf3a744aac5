"""What a model's variables are at first: how each is drawn, and the drawing itself, on the host.

Inside Flax's `init` each parameter is drawn by a random generator that is compiled for its shape; on a CPU that takes
longer than the first steps of training (DenseNet-121: 10 s). The initialisers here can be asked for what they
would draw instead (`describe`): then shapes are traced once, and NumPy draws the values, without any program. Each
array has a stream of its own, of the key and its path: neither the order of the layers nor the devices change it.

In a model's own `init`, that of a user's script, they draw in JAX as any initialiser does: other values for the same
key, of the same distributions.
"""

from __future__ import annotations

import contextlib
import contextvars
import dataclasses
import hashlib
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

Shape = Sequence[int]

_describing = contextvars.ContextVar("describing", default=False)

# Standard deviation of a standard normal number that is drawn anew beyond 2.
_TRUNCATED_DEVIATION = 0.87962566103423978


class _Standard(NamedTuple):
    """A distribution before it is scaled, as JAX draws it from a key and NumPy from a generator, in float32."""

    on_device: Callable[[jax.Array, Shape, Any], jax.Array]
    on_host: Callable[[np.random.Generator, Shape], np.ndarray]


def _truncated_normal(generator: np.random.Generator, shape: Shape) -> np.ndarray:
    values = generator.standard_normal(math.prod(shape), np.float32)
    while (beyond := np.flatnonzero(np.abs(values) > 2)).size:
        values[beyond] = generator.standard_normal(beyond.size, np.float32)
    return values.reshape(tuple(shape))


_STANDARD = {
    "normal": _Standard(jax.random.normal, lambda generator, shape: generator.standard_normal(shape, np.float32)),
    "truncated normal": _Standard(
        lambda key, shape, dtype: jax.random.truncated_normal(key, -2, 2, shape, dtype), _truncated_normal
    ),
    "uniform": _Standard(
        lambda key, shape, dtype: jax.random.uniform(key, shape, dtype, -1, 1),
        lambda generator, shape: 2 * generator.random(shape, np.float32) - 1,
    ),
    "constant": _Standard(
        lambda key, shape, dtype: jnp.ones(shape, dtype), lambda generator, shape: np.ones(shape, np.float32)
    ),
}


@dataclasses.dataclass(frozen=True)
class Initializer:
    """An initialiser as Flax takes it, `(key, shape, dtype) -> values`, that can say what it draws.

    Attributes:
      standard: `normal`, `truncated normal` (within two deviations), `uniform` (from -1 to 1) or `constant` (1).
      gain: what its values are multiplied by.
      fan: "in" or "out": they are also divided by the root of the number of a kernel's inputs, or outputs.
    """

    standard: str
    gain: float
    fan: str = ""

    def __call__(self, key: Any, shape: Shape, dtype: Any = jnp.float32) -> Any:
        if _describing.get():
            return Described(jnp.zeros(shape, dtype), self)
        return jnp.asarray(self.scale(shape), dtype) * _STANDARD[self.standard].on_device(key, shape, dtype)

    def scale(self, shape: Shape) -> float:
        """What the standard values of an array of this shape, [..., inputs, outputs], are multiplied by."""
        if not self.fan:
            return self.gain
        others = shape[-1] if self.fan == "in" else shape[-2]
        return self.gain / math.sqrt(math.prod(shape) / others)

    def on_host(self, generator: np.random.Generator, like: jax.ShapeDtypeStruct) -> np.ndarray:
        """Values of this shape and dtype."""
        values = _STANDARD[self.standard].on_host(generator, like.shape)
        values *= np.float32(self.scale(like.shape))
        return values.astype(like.dtype, copy=False)


def truncated_normal(deviation: float) -> Initializer:
    """A normal number of this deviation, drawn anew beyond twice that: its own deviation is 0.88 of it."""
    return Initializer("truncated normal", deviation)


def normal(deviation: float) -> Initializer:
    return Initializer("normal", deviation)


def uniform(bound: float) -> Initializer:
    """From -bound to bound."""
    return Initializer("uniform", bound)


def constant(value: float) -> Initializer:
    return Initializer("constant", value)


zeros, ones = constant(0.0), constant(1.0)
lecun_normal = Initializer("truncated normal", 1 / _TRUNCATED_DEVIATION, "in")
he_normal = Initializer("truncated normal", math.sqrt(2) / _TRUNCATED_DEVIATION, "in")
he_fan_out = Initializer("normal", math.sqrt(2), "out")


class Described(flax.struct.PyTreeNode, nn.meta.AxisMetadata):
    """A variable's shape and dtype, in Flax's box for what is to be said of a variable, with what draws it."""

    value: Any
    initializer: Initializer = flax.struct.field(pytree_node=False)

    def unbox(self) -> Any:
        return self.value

    def replace_boxed(self, val: Any) -> Any:
        return self.replace(value=val)

    def add_axis(self, index: int, params: dict[Any, Any]) -> Any:
        raise NotImplementedError("no network here stacks the variables of its layers")

    def remove_axis(self, index: int, params: dict[Any, Any]) -> Any:
        raise NotImplementedError("no network here stacks the variables of its layers")


@contextlib.contextmanager
def describe() -> Iterator[None]:
    """In this context variables that an `Initializer` draws are zeros in a `Described`."""
    token = _describing.set(True)
    try:
        yield
    finally:
        _describing.reset(token)


def all_described(variables: Any) -> bool:
    """Whether an `Initializer` draws every one of the variables."""
    return all(map(_is_described, jax.tree.leaves(variables, is_leaf=_is_described)))


def draw(variables: Any, key: jax.Array) -> Any:
    """Draws described variables, as NumPy arrays. `key` has a value: this can't be compiled."""
    seed = np.asarray(jax.random.key_data(key)).tobytes()
    draw_one = lambda path, each: _draw(seed + jax.tree_util.keystr(path).encode(), each)
    return jax.tree_util.tree_map_with_path(draw_one, variables, is_leaf=_is_described)


def _is_described(each: Any) -> bool:
    return isinstance(each, Described)


def _draw(name: bytes, described: Described) -> np.ndarray:
    key = int.from_bytes(hashlib.sha256(name).digest()[:16], "little")
    return described.initializer.on_host(np.random.Generator(np.random.Philox(key=key)), described.value)
