"""A network by the name that a config gives: one of `MODELS`, or `package.module:function`, which others wrote.

Of a foreign network, `config.model.name` names a function, or class, on Python's path. It is called as
`build(num_classes, **options)` with those of our options (`Backbone`'s fields of the config, and `axis_name` and
`batch_norm_groups` of the devices) that its signature has, and with `rngs`, an `nnx.Rngs`, or `key`, a random key,
where it has one of these: then each seed gives other weights. It returns a Linen, NNX or Equinox module (for Equinox
also the module and its state), a function from `nnx.Rngs` to an NNX module, or anything with the interface `Model`,
such as the adapters. Attributes `image_size`, `mean` and `std` of the function stand for the keys of `config.data` of
those names.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib
import inspect
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import flax.linen as nn
import jax.numpy as jnp

from ..errors import ConfigError, check_known, did_you_mean
from . import MODEL_CARDS, MODELS, ModelCard, settings_of
from .backbone import Backbone, trace
from .contract import ContractError, Model, ModelOutput, NetworkError
from .contract_check import check_abstractly
from .frozen import Frozen, find_frozen
from .wheels import digest_file

_FOREIGN = ":"
# Fields of a model, and the key of the config that sets each.
_OF_CONFIG = ("dtype", "head_init", "dropout", "rematerialize", "batch_norm_momentum", "freeze_batch_norm", "pool")
_OF_CONFIG += ("output_stride",)
_KEYS = {name: f"config.model.{name}" for name in _OF_CONFIG}
_OF_DEVICES = ("axis_name", "batch_norm_groups")
_DEFAULTS = {each.name: each.default for each in dataclasses.fields(Backbone) if each.name in {*_KEYS, *_OF_DEVICES}}
# The pool is of vision transformers alone; a foreign function's own output_stride stays unless one is set.
_DEFAULTS |= {"pool": None}


class Seen(NamedTuple):
    """Of a model at a size.

    Attributes:
      cam_side: places a side of the CAM.
      is_hooked: it has the tensor that CYBORG's code hooks.
      largest: bytes of the largest output of its convolutions, of one image; 0 of a foreign network.
    """

    cam_side: int
    is_hooked: bool
    largest: int


@dataclasses.dataclass(frozen=True)
class NamedNetwork:
    """What a name stands for.

    Attributes:
      make: from `num_classes` and further fields of `Backbone` to the model. Of a foreign network it raises ConfigError
        for a field that is set and that the network does not take, ContractError for what is no network.
      card: its facts; None of a foreign network.
    """

    name: str
    make: Callable[..., Model]
    card: ModelCard | None
    build: Callable[..., Any]

    def default(self, key: str) -> Any:
        """`image_size`, `mean` or `std` where `config.data` leaves it open. ConfigError where nothing says it."""
        value = getattr(self.build if self.card is None else self.card, key, None)
        if value is not None:
            return value
        attribute = f"build.{key} = ..."
        raise ConfigError(
            f"config.data.{key} is not set, and {self.name} does not say it: give --config.data.{key}=..., as the "
            f"network was trained, or write {attribute!r} beside the function."
        )

    def brings_values(self, **fields: Any) -> bool:
        """Whether a model with these fields has values of its own, whatever the key of `init`."""
        return self.card is None and getattr(self.make(num_classes=2, **fields), "brings_values", False)

    def freeze(self, image_size: int, **fields: Any) -> Frozen:
        """What the field `train_from` freezes. ConfigError for no cut point, and for a foreign network."""
        if self.card is None:
            raise ConfigError(
                f"config.model.train_from is {fields['train_from']!r}, and {self.name} is a network of your own, whose "
                "parts are not known here: leave the key empty, and freeze in the network (jax.lax.stop_gradient)."
            )
        return _freeze(self.make, self.name, image_size, **fields)

    @property
    def settings(self) -> frozenset[str] | None:
        """What can be set of it: the fields of its class; None of a foreign network, whose function is asked."""
        return None if self.card is None else settings_of(self.name)

    def look(self, image_size: int, **fields: Any) -> Seen:
        """What shapes alone say of a model with these fields.

        Raises ConfigError as `make` does, and ContractError where a foreign network is broken.
        """
        if self.card is None:
            return _look_at_foreign(self.make, self.name, image_size, **fields)
        network: Any = self.make(num_classes=2, **fields)
        output, largest, _ = trace(network, image_size)
        return _seen(output, largest)


@functools.cache
def _freeze(make: Callable[..., Any], name: str, image_size: int, **fields: Any) -> Frozen:
    return find_frozen(make(num_classes=2, **fields), name, image_size)


@functools.cache
def _look_at_foreign(make: Callable[..., Any], name: str, image_size: int, **fields: Any) -> Seen:
    return _seen(check_abstractly(make(num_classes=3, **fields), image_size, 3, name))


def _seen(output: ModelOutput, largest: int = 0) -> Seen:
    return Seen(output.features.shape[1], output.hooked is not None, largest)


def is_foreign(name: str) -> bool:
    return _FOREIGN in name


def find_network(name: str) -> NamedNetwork:
    """What a config's model.name stands for.

    Raises:
      ConfigError: an unknown name.
      NetworkError: a module or function that can't be imported. It names it, and the remedy.
    """
    if is_foreign(name):
        build = _find_function(name)
        return NamedNetwork(name, _maker(name, build), None, build)
    try:
        check_known("config.model.name", name, MODELS)
    except ConfigError as error:
        raise ConfigError(f"{error} A network of your own: package.module:function.") from error
    return NamedNetwork(name, MODELS[name], MODEL_CARDS[name], MODELS[name])


def describe_source(name: str) -> dict[str, Any] | None:
    """File and SHA-256 of the module that a foreign network comes from, JSON-able; None of our own."""
    if not is_foreign(name):
        return None
    module = importlib.import_module(name.partition(_FOREIGN)[0])
    path = getattr(module, "__file__", None)
    return {"name": name, "file": path, "sha256": digest_file(Path(path)) if path else None}


def _find_function(name: str) -> Callable[..., Any]:
    where = f"config.model.name is {name!r}"
    stem, _, attribute = name.partition(_FOREIGN)
    if not attribute.isidentifier() or not all(part.isidentifier() for part in stem.split(".")):
        raise NetworkError(f"{where}; a network of your own is named package.module:function, as my_nets.resnet:build.")
    try:
        module = importlib.import_module(stem)
    except ModuleNotFoundError as error:
        if error.name and (stem == error.name or stem.startswith(f"{error.name}.")):
            raise NetworkError(
                f"{where}, and there is no module {error.name!r} on Python's path. Install its package, give its "
                "folder in PYTHONPATH, or start from the folder that it lies in (the launch scripts look there too). A "
                "trained run needs it as training did."
            ) from error
        raise NetworkError(
            f"{where}; importing {stem} failed: it needs {error.name}, which is not installed."
        ) from error
    except Exception as error:
        raise NetworkError(f"{where}; importing {stem} raised {type(error).__name__}: {error}") from error
    build = getattr(module, attribute, None)
    if build is None:
        names = [each for each, value in vars(module).items() if callable(value) and not each.startswith("_")]
        near = did_you_mean(attribute, names) or f" It has {', '.join(names) or 'no function'}."
        raise NetworkError(f"{where}, and {module.__file__} has no {attribute!r}.{near}")
    if not callable(build):
        raise NetworkError(f"{where}, which is a {type(build).__name__}, no function: build(num_classes) -> network.")
    return build


@functools.cache  # so that what is known of a function's networks is found again
def _maker(name: str, build: Callable[..., Any]) -> Callable[..., Model]:
    return functools.partial(_make, name, build)


def _make(name: str, build: Callable[..., Any], num_classes: int, **fields: Any) -> Model:
    from . import adapters  # brings flax.nnx, which our own networks do without

    # The metaclass of NNX and Equinox hides what a class is made from.
    of_class = inspect.isclass(build)
    parameters = dict(inspect.signature(build.__init__ if of_class else build).parameters)
    if of_class:
        parameters.pop(next(iter(parameters)))  # self
    axis_name = fields.get("axis_name")
    options = _options(name, parameters, {**_DEFAULTS, **fields})
    # A function's first parameter is the number of classes, whatever its name; a class may have it anywhere.
    named = {"num_classes": num_classes} if "num_classes" in parameters else {}
    positional = () if named else (num_classes,)

    def call(**generator: Any) -> Any:
        try:
            return build(*positional, **named, **options, **generator)
        except ConfigError:
            raise
        except Exception as error:
            given = ", ".join([f"num_classes={num_classes}", *(f"{k}={v!r}" for k, v in options.items()), *generator])
            raise ContractError(f"{name}, called with {given}, raised {type(error).__name__}: {error}") from error

    if "rngs" in parameters:
        return adapters.nnx(lambda rngs: call(rngs=rngs), axis_name=axis_name)
    if "key" in parameters:
        return adapters.equinox(lambda key: call(key=key), axis_name=axis_name)
    return _as_model(name, call(), axis_name)


def _options(name: str, parameters: dict[str, inspect.Parameter], fields: dict[str, Any]) -> dict[str, Any]:
    """Those of our fields that a function takes. ConfigError for others that are not as they are by default."""
    takes_all = any(each.kind is inspect.Parameter.VAR_KEYWORD for each in parameters.values())
    takes = lambda field: takes_all or field in parameters
    if not takes("batch_norm_groups"):
        fields = _without_groups(name, fields, takes("axis_name"))
    for field, value in fields.items():
        if field in _KEYS and not takes(field) and value != _DEFAULTS.get(field):
            shown = jnp.dtype(value).name if field == "dtype" else value
            listed = ", ".join(parameters) or "none"
            raise ConfigError(
                f"{_KEYS[field]} is {shown}, and {name} takes no {field!r} (its parameters: {listed}). Leave the key "
                f"as it is, or let the function take it."
            )
    return {field: value for field, value in fields.items() if takes(field)}


def _without_groups(name: str, fields: dict[str, Any], takes_axis: bool) -> dict[str, Any]:
    """Fields without `batch_norm_groups`, for a network whose norms see what one program sees."""
    fields, axis_name = dict(fields), fields.get("axis_name")
    if fields.pop("batch_norm_groups", 1) > 1:
        if axis_name is None:
            raise ConfigError(
                f"config.parallel.batch_norm is local, and {name} takes no 'batch_norm_groups': its norms see the "
                "whole batch in parallel.mode=mesh. Set synchronized, or parallel.mode=pmap."
            )
        fields["axis_name"] = None
    elif axis_name is not None and not takes_axis:
        raise ConfigError(
            f"config.parallel.mode is pmap, and {name} takes no 'axis_name': its norms would see each device's part "
            "alone. Take mesh, say so by config.parallel.batch_norm=local, or let the function take the axis's name."
        )
    return fields


def _as_model(name: str, made: Any, axis_name: str | None) -> Model:
    """Whatever a function returned, as a `Model`."""
    from flax import nnx

    from . import adapters

    if isinstance(made, adapters.Adapter):
        return dataclasses.replace(made, axis_name=axis_name)
    if isinstance(made, nn.Module):
        own = {"train", "mask", "draw"} <= inspect.signature(made.__call__).parameters.keys()
        return made if own else adapters.linen(made, axis_name=axis_name)
    if isinstance(made, nnx.Module):
        return adapters.nnx(made, axis_name=axis_name)
    if "equinox" in sys.modules:
        eqx = adapters.import_equinox()
        if isinstance(made, eqx.Module):
            return adapters.equinox(made, axis_name=axis_name)
        if isinstance(made, tuple) and len(made) == 2 and isinstance(made[0], eqx.Module):
            return adapters.equinox(*made, axis_name=axis_name)
    if isinstance(made, Model) and not inspect.isclass(made):
        return made
    if callable(made):
        factory: Any = made
        return adapters.nnx(factory, axis_name=axis_name)
    raise ContractError(
        f"{name} returned a {type(made).__name__}; it has to return a Linen, NNX or Equinox module, (Equinox module, "
        "state), a function from nnx.Rngs to a module, or an object with `init` and `apply`."
    )
