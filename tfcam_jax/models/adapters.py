"""Networks of Linen, NNX and Equinox that others wrote, called as a `Model` is. They are left as they are: no hooks.

Each returns `ModelOutput`; or (logits, features, kernel), whose bias is what the mean of the maps leaves of the logits;
or (logits, features, kernel, bias); or, where an adapter is given the name of its `head`, (logits, features). Features
are what is pooled.

Batch normalisation of others knows nothing of padding. So in training a padded row of the last batch becomes one of the
batch's examples, each in turn, and statistics are those of real images alone; where a device has none under pmap, one
is sent to it. A batch without any leaves the statistics as they were.

Variables are nested dicts of arrays, as checkpoints hold them: `params`, and as `batch_stats` all else that is an
array. States of random generators are in neither: each step makes them from the examples' `draw`, so that a run which
is continued comes to the same bits.
"""

from __future__ import annotations

import dataclasses
import importlib
import inspect
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import nnx as flax_nnx
from flax import traverse_util
from jaxtyping import Array, Bool, Float, UInt32

from ..errors import ConfigError
from .contract import ContractError, ModelOutput, check_shapes

# Names of the argument by which a network is told whether it is trained, and its value then.
_MODES = {name: True for name in ("train", "training", "is_training")}
_MODES |= {name: False for name in ("deterministic", "use_running_average", "inference", "eval", "is_eval")}
_EQUINOX_AXIS = "batch"  # by which Equinox's own examples call the axis of vmap


def linen(
    module: nn.Module, variables: Any = None, *, head: str | None = None, axis_name: str | None = None
) -> Adapter:
    """A Linen module whose call takes images [B, H, W, 3] and one of `train`, `training`, `is_training`,
    `deterministic`, `use_running_average`, or none.

    Every stream of random numbers that it asks for in training comes from `draw`, as one key for the whole batch:
    dropout is the same again on the same devices in the same mode, not between modes. Collections besides `params` and
    what it sows are kept as `batch_stats`.

    Args:
      module: not bound.
      variables: what its `init` would give, that it brings along, pretrained; None: `init` draws them.
      head: name of its method from features to logits, for a head that is not a mean and one linear layer.
      axis_name: pmap axis that the batch is spread over. Running statistics are averaged over it; for statistics of the
        whole batch the module's norms have to name it themselves.
    """
    return _Linen(head, axis_name, variables is not None, module, variables, _modes_of(module.__call__))


def nnx(model: flax_nnx.Module | Callable[[flax_nnx.Rngs], flax_nnx.Module], **options: Any) -> Adapter:
    """An NNX module whose call takes images [B, H, W, 3], or a function that makes one from `nnx.Rngs`.

    It is split into `nnx.Param`, which are trained, states of random generators, and all other variables. A copy is set
    to training or evaluation by `.train()` and `.eval()` and by arguments as in `linen`; an argument `rngs` gets
    `nnx.Rngs`. Dropout as in `linen`.

    A module, unlike a function, brings its values along: the seed changes nothing in them.

    Args:
      model: see above.
      **options: `head` and `axis_name` of `linen`; the head's method is called on the module.
    """
    if not isinstance(model, flax_nnx.Module):
        made = flax_nnx.eval_shape(lambda: model(flax_nnx.Rngs(0)))
        return _nnx(made, lambda key: model(flax_nnx.Rngs(key)), False, **options)
    return _nnx(model, lambda key: model, True, **options)


def equinox(model: Any, state: Any = None, *, head: str | None = None, axis_name: str | None = None) -> Adapter:
    """An Equinox module of one image [3, H, W], or a function that makes one, or it and its state, from a key.

    It is called under `jax.vmap` with the axis "batch", which its BatchNorm has to name, and returns per image: logits
    [K], features [C, h, w], and the kernel [C, K] (the transposed weight of `eqx.nn.Linear`), which is the same for
    every image. Inexact arrays are trained; `eqx.nn.State` and other arrays are `batch_stats`. It is given `state`, and
    by name `key` and `inference`, where its call has such arguments; `eqx.nn.inference_mode` sets the rest. Each
    image's key comes from its own `draw`: dropout is the same in all modes, on any devices.

    A module, unlike a function, brings its values along: the seed changes nothing in them.

    Args:
      model: see above.
      state: of a module that has one: the second result of `eqx.nn.make_with_state`.
      head: name of its method from features [C, h, w] to logits, for a head that is not a mean and one linear layer.
      axis_name: as in `linen`; a BatchNorm of the whole batch then names ("batch", axis_name).
    """
    eqx = import_equinox()
    brings = isinstance(model, eqx.Module)
    make = (lambda key: (model, state)) if brings else model

    def with_state(key: Array) -> Any:
        made = make(key)
        if isinstance(made, tuple):
            model, state = made
            return (model, state) if state is not None else eqx.nn.make_with_state(lambda: model)()
        return eqx.nn.make_with_state(lambda: made)()

    abstract = eqx.filter_eval_shape(with_state, jax.random.key(0))
    (params, rest), static = _partition(abstract[0]), eqx.filter(abstract[0], _is_array, inverse=True)
    forms = _Form.of(params), _Form.of({"state": abstract[1], "buffers": rest})
    call = inspect.signature(type(abstract[0]).__call__).parameters
    takes_state = bool(jax.tree.leaves(abstract[1])) or "state" in call
    return _Equinox(head, axis_name, brings, with_state, static, *forms, takes_state, frozenset(call))


def import_equinox() -> Any:
    """Equinox, asked for only where such a network is given."""
    try:
        return importlib.import_module("equinox")
    except ModuleNotFoundError as error:
        if error.name != "equinox":
            raise
        raise ConfigError("an Equinox network needs equinox, which is not installed: pip install equinox") from error


@dataclasses.dataclass(frozen=True, eq=False)
class Adapter:
    """A `Model`; see the functions above, which make one. `brings_values`: the key changes nothing in `init`."""

    head: str | None
    axis_name: str | None
    brings_values: bool

    def init(self, rngs: Array, images: Float[Array, "batch H W 3"], train: bool = False) -> dict[str, Any]:
        """Variables from a key; of a network that brings its values along, those."""
        raise NotImplementedError

    def apply(
        self,
        variables: dict[str, Any],
        images: Float[Array, "batch H W 3"],
        train: bool = False,
        mask: Float[Array, " batch"] | None = None,
        draw: UInt32[Array, " batch"] | None = None,
        mutable: Any = False,
    ) -> Any:
        """See `contract.Model`. Raises ContractError for a network that returns something else."""
        count = images.shape[0]  # an exported program leaves it open
        real = jnp.ones(count, bool) if mask is None else mask > 0
        if train:
            if draw is None:
                raise ValueError("training needs a random number for each example, `draw`")
            images = _fill_padding(images, real, self.axis_name)
        draw = jnp.zeros(count, jnp.uint32) if draw is None else draw
        raw, changed = self.forward(variables, images, train, draw)
        head = None
        if self.head is not None:
            head = jax.tree_util.Partial(self.apply_head, variables)
        output = as_output(raw, head)
        if not mutable:
            return output
        return output, {"batch_stats": _running(variables["batch_stats"], changed, real, self.axis_name)}

    def forward(self, variables: dict[str, Any], images: Array, train: bool, draw: Array) -> tuple[Any, Any]:
        """What the network itself returns of a batch, channels last, and its changed `batch_stats`."""
        raise NotImplementedError

    def apply_head(self, variables: dict[str, Any], features: Float[Array, "batch h w channels"]) -> Array:
        """The logits of other features, in evaluation."""
        raise NotImplementedError


@dataclasses.dataclass(frozen=True, eq=False)
class _Linen(Adapter):
    module: nn.Module
    variables: Any
    modes: dict[str, bool]

    def init(self, rngs: Array, images: Array, train: bool = False) -> dict[str, Any]:
        variables = self.variables
        if variables is None:
            streams = {"params": rngs, "dropout": _further(rngs)}
            variables = self.module.init(streams, images, **_set(self.modes, False))
        variables = dict(nn.meta.unbox(variables))
        params = variables.pop("params", {})
        variables.pop("intermediates", None)
        return {"params": params, "batch_stats": variables}

    def forward(self, variables: dict[str, Any], images: Array, train: bool, draw: Array) -> tuple[Any, Any]:
        collections, key = variables["batch_stats"], _key_of_batch(draw)
        everything, modes = {"params": variables["params"], **collections}, _set(self.modes, train)
        if not train:
            return self.module.apply(everything, images, **modes), collections
        rngs = {"params": key, "dropout": _further(key)}
        return self.module.apply(everything, images, **modes, rngs=rngs, mutable=list(collections))

    def apply_head(self, variables: dict[str, Any], features: Array) -> Array:
        collections = {"params": variables["params"], **variables["batch_stats"]}
        logits: Any = self.module.apply(collections, features, method=self.head)
        return logits


def _nnx(
    example: flax_nnx.Module,
    make: Callable[[Array], flax_nnx.Module],
    brings_values: bool,
    head: str | None = None,
    axis_name: str | None = None,
) -> Adapter:
    structure, *states = flax_nnx.split(example, *_NNX_PARTS)
    params, generators, rest = map(_Form.of, states)
    return _Nnx(head, axis_name, brings_values, make, structure, params, generators, rest, _modes_of(example.__call__))


_NNX_PARTS = (flax_nnx.Param, flax_nnx.RngState, ...)


@dataclasses.dataclass(frozen=True, eq=False)
class _Nnx(Adapter):
    make: Callable[[Array], flax_nnx.Module]
    structure: Any
    params: _Form
    generators: _Form
    rest: _Form
    modes: dict[str, bool]

    def init(self, rngs: Array, images: Array, train: bool = False) -> dict[str, Any]:
        _, params, _, rest = flax_nnx.split(self.make(rngs), *_NNX_PARTS)
        return {"params": self.params.to_dict(params), "batch_stats": self.rest.to_dict(rest)}

    def forward(self, variables: dict[str, Any], images: Array, train: bool, draw: Array) -> tuple[Any, Any]:
        key = _key_of_batch(draw)
        model: Any = self._merge(variables, key, train)
        options = _set(self.modes, train)
        if "rngs" in inspect.signature(model.__call__).parameters:
            options["rngs"] = flax_nnx.Rngs(_further(key))
        raw = model(images, **options)
        *_, rest = flax_nnx.split(model, flax_nnx.Intermediate, *_NNX_PARTS)
        return raw, self.rest.to_dict(rest)

    def apply_head(self, variables: dict[str, Any], features: Array) -> Array:
        model = self._merge(variables, jax.random.key(0), train=False)
        return getattr(model, self.head or "")(features)

    def _merge(self, variables: dict[str, Any], key: Array, train: bool) -> flax_nnx.Module:
        generators = self.generators.map(lambda number, leaf: _generator(jax.random.fold_in(key, number), leaf))
        parts = self.params.from_dict(variables["params"]), generators, self.rest.from_dict(variables["batch_stats"])
        model = flax_nnx.merge(self.structure, *parts)
        (model.train if train else model.eval)()
        return model


def _generator(key: Array, like: Any) -> Array:
    """A key, or a count of 0, of the shape and dtype of a part of a generator's state."""
    if not jnp.issubdtype(like.dtype, jax.dtypes.prng_key):
        return jnp.zeros(like.shape, like.dtype)
    return jax.random.split(key, like.shape) if like.shape else key


@dataclasses.dataclass(frozen=True, eq=False)
class _Equinox(Adapter):
    make: Callable[[Array], Any]
    static: Any
    params: _Form
    rest: _Form
    takes_state: bool
    call: frozenset[str]

    def init(self, rngs: Array, images: Array, train: bool = False) -> dict[str, Any]:
        model, state = self.make(rngs)
        params, buffers = _partition(model)
        rest = {"state": state, "buffers": buffers}
        return {"params": self.params.to_dict(params), "batch_stats": self.rest.to_dict(rest)}

    def forward(self, variables: dict[str, Any], images: Array, train: bool, draw: Array) -> tuple[Any, Any]:
        model, rest = self._combine(variables, train)

        def one(image: Array, number: Array, state: Any) -> Any:
            options = {"key": jax.random.key(number), "inference": not train}
            options = {name: value for name, value in options.items() if name in self.call}
            image = jnp.moveaxis(image, -1, 0)
            if not self.takes_state:
                return _parts(model(image, **options)), state
            result = model(image, state, **options)
            if not isinstance(result, tuple) or len(result) != 2:
                raise ContractError(f"a network with a state returns (output, state), not {_describe(result)}")
            return _parts(result[0]), result[1]

        shared = _Parts(0, 0, None, None, 0)
        mapped = jax.vmap(one, in_axes=(0, 0, None), out_axes=(shared, None), axis_name=_EQUINOX_AXIS)
        parts, state = mapped(images, draw, rest["state"])
        return parts.whole(), self.rest.to_dict({**rest, "state": state})

    def apply_head(self, variables: dict[str, Any], features: Array) -> Array:
        model, _ = self._combine(variables, train=False)
        return jax.vmap(getattr(model, self.head or ""), axis_name=_EQUINOX_AXIS)(jnp.moveaxis(features, -1, 1))

    def _combine(self, variables: dict[str, Any], train: bool) -> tuple[Any, dict[str, Any]]:
        eqx, rest = import_equinox(), self.rest.from_dict(variables["batch_stats"])
        model = eqx.combine(self.params.from_dict(variables["params"]), rest["buffers"], self.static)
        return eqx.nn.inference_mode(model, value=not train), rest


class _Parts(NamedTuple):
    """What an Equinox network says of one image; mapped, of a batch."""

    logits: Any
    features: Any
    kernel: Any
    bias: Any
    hooked: Any

    def whole(self) -> Any:
        """The same of a batch, features with their channels last, as `as_output` takes it."""
        features = jnp.moveaxis(self.features, 1, -1)
        if self.kernel is None:
            return self.logits, features
        if self.bias is None:
            return self.logits, features, self.kernel
        hooked = None if self.hooked is None else jnp.moveaxis(self.hooked, 1, -1)
        return ModelOutput(self.logits, features, self.kernel, self.bias, hooked)


def _parts(raw: Any) -> _Parts:
    if isinstance(raw, ModelOutput):
        if raw.head is not None:
            raise ContractError("an Equinox network names its head: adapters.equinox(model, head='name of the method')")
        return _Parts(raw.logits, raw.features, raw.kernel, raw.bias, raw.hooked)
    if not isinstance(raw, tuple) or len(raw) not in (2, 3, 4):
        raise ContractError(_WANTED.format(_describe(raw)))
    found = _Parts(*raw, *[None] * (5 - len(raw)))
    if jnp.ndim(found.features) != 3:
        shape = jnp.shape(found.features)
        raise ContractError(f"features of one image are [channels, h, w], as they are pooled, in Equinox; got {shape}")
    return found


def _is_array(leaf: Any) -> bool:
    return isinstance(leaf, jax.ShapeDtypeStruct) or import_equinox().is_array(leaf)


def _partition(model: Any) -> tuple[Any, Any]:
    """Inexact arrays, and other arrays, of a model that may be abstract."""
    eqx, is_inexact = import_equinox(), lambda leaf: _is_array(leaf) and jnp.issubdtype(leaf.dtype, jnp.inexact)
    is_other = lambda leaf: _is_array(leaf) and not is_inexact(leaf)
    return eqx.filter(model, is_inexact), eqx.filter(model, is_other)


_WANTED = (
    "a network returns ModelOutput, or (logits, features, kernel), or (logits, features, kernel, bias), not {}. Write "
    "a module that calls the network up to the tensor that is pooled, then its head, and returns these; see the README "
    "of tfcam_jax/models"
)


def _describe(raw: Any) -> str:
    if isinstance(raw, tuple | list):
        return f"a {type(raw).__name__} of {len(raw)}"
    return f"an array of shape {jnp.shape(raw)}" if hasattr(raw, "shape") else type(raw).__name__


def as_output(raw: Any, head: jax.tree_util.Partial | None = None) -> ModelOutput:
    """What a network returns of a batch as `ModelOutput`.

    A bias that is not given is the mean, over the batch, of what the maps' means leave of the logits; whether that is
    the same for every example, as it has to be, `check_contract` tells.

    Raises ContractError for anything else, or shapes that don't fit together.
    """
    if isinstance(raw, ModelOutput):
        output = raw
    elif isinstance(raw, tuple) and len(raw) == 2 and head is not None:
        output = ModelOutput(*raw, kernel=None, bias=None)
    elif isinstance(raw, tuple) and len(raw) == 2:
        wanted = "or name its head: adapters.linen(module, head='name of the method'), and nnx and equinox alike"
        raise ContractError(f"{_WANTED.format('a tuple of 2')}; {wanted}")
    elif isinstance(raw, tuple) and len(raw) in (3, 4):
        output = ModelOutput(*raw, *[None] * (4 - len(raw)))
    else:
        raise ContractError(_WANTED.format(_describe(raw)))
    output = output if head is None else dataclasses.replace(output, head=head)
    check_shapes(output)
    if output.kernel is not None and output.bias is None:
        pooled = output.features.mean((1, 2))
        left = output.logits - jnp.matmul(pooled, output.kernel, precision="highest")
        output = dataclasses.replace(output, bias=left.mean(0))
    return output


@dataclasses.dataclass(frozen=True)
class _Form:
    """A tree's shape, and its leaves' names in a nested dict."""

    example: Any
    names: tuple[tuple[str, ...], ...]

    @classmethod
    def of(cls, tree: Any) -> _Form:
        """Of a tree of arrays, abstract or not; only shapes are kept."""
        tree = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(jnp.shape(leaf), leaf.dtype), tree)
        paths = [path for path, _ in jax.tree_util.tree_leaves_with_path(tree)]
        # The last part of an NNX variable's path is `value`, whatever the variable.
        names = tuple(tuple(part for part in map(_name, path) if part not in ("", "value")) for path in paths)
        if len(set(names)) < len(names):
            names = tuple(tuple(map(_name, path)) for path in paths)
        return cls(tree, names)

    def to_dict(self, tree: Any) -> dict[str, Any]:
        leaves = jax.tree.leaves(tree)
        if len(leaves) != len(self.names):
            raise ContractError(
                f"the network has {len(leaves)} arrays of a kind of which it had {len(self.names)} when it was made: "
                "variables may change in a call, but not come or go"
            )
        return traverse_util.unflatten_dict(dict(zip(self.names, leaves, strict=True)))

    def from_dict(self, nested: dict[str, Any]) -> Any:
        flat = traverse_util.flatten_dict(nested)
        return jax.tree.unflatten(jax.tree.structure(self.example), [flat[name] for name in self.names])

    def map(self, function: Callable[[int, Any], Array]) -> Any:
        """A tree of this form, of values that a leaf's number and shape give."""
        leaves, structure = jax.tree.flatten(self.example)
        return jax.tree.unflatten(structure, [function(*each) for each in enumerate(leaves)])


def _name(part: Any) -> str:
    for attribute in ("name", "key", "idx"):
        if hasattr(part, attribute):
            return str(getattr(part, attribute))
    return str(part)


def _modes_of(call: Callable[..., Any]) -> dict[str, bool]:
    """The arguments that tell a call whether it trains, and their values then."""
    return {name: _MODES[name] for name in inspect.signature(call).parameters if name in _MODES}


def _set(modes: dict[str, bool], train: bool) -> dict[str, Any]:
    return {name: value == train for name, value in modes.items()}


def _key_of_batch(draw: UInt32[Array, " batch"]) -> Array:
    """One key for a batch, whatever the order of its examples; padding, whose draw is 0, adds nothing."""
    return jax.random.key(draw.sum(dtype=jnp.uint32))


def _further(key: Array) -> Array:
    return jax.random.fold_in(key, 1)


def _fill_padding(
    images: Float[Array, "batch H W 3"], real: Bool[Array, " batch"], axis_name: str | None
) -> Float[Array, "batch H W 3"]:
    """Padded rows become the real ones in turn; of a device without any, the first of the first device that has some.

    No gradient flows to an image by its copies.
    """

    def fill(images: Array) -> Array:
        count = real.sum()
        in_order = jnp.argsort(~real, stable=True)
        source = in_order[(jnp.cumsum(~real) - 1) % jnp.maximum(count, 1)]
        copies = jnp.where(count > 0, images[source], elsewhere[None])
        return jnp.where(real[:, None, None, None], images, jax.lax.stop_gradient(copies))

    elsewhere = jnp.zeros_like(images[0])
    if axis_name is not None:
        index, size = jax.lax.axis_index(axis_name), jax.lax.axis_size(axis_name)
        first = jax.lax.pmin(jnp.where(real.any(), index, size), axis_name)
        own = images[jnp.argmax(real)] * (index == first)
        elsewhere = jax.lax.psum(jax.lax.stop_gradient(own), axis_name)
    return jax.lax.cond(real.all(), lambda images: images, fill, images)


def _running(before: Any, after: Any, real: Bool[Array, " batch"], axis_name: str | None) -> Any:
    """Batch statistics after a step: those of the devices, averaged by their examples; as before without any."""
    count = real.sum().astype(jnp.float32)
    total = count if axis_name is None else jax.lax.psum(count, axis_name)
    share = count / jnp.maximum(total, 1)

    def merge(old: Array, new: Array) -> Array:
        if axis_name is not None and jnp.issubdtype(new.dtype, jnp.inexact):
            new = jax.lax.psum(new * share.astype(new.dtype), axis_name)
        return jnp.where(total > 0, new, old).astype(old.dtype)

    return jax.tree.map(merge, before, after)
