"""Which values each key of a config may have, in one table, and which do not fit each other.

What needs a network, devices or data to be known is left to `experiment.resolve` and to those that the values are for.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np

from ..data import SOURCES
from ..data.annotations.columns import NAMES as COLUMNS
from ..data.human_maps import PLACEBOS, PREDICTED
from ..data.pipeline import BALANCES
from ..data.protocol import LEAKAGE, PROTOCOLS
from ..data.transforms import LIMITS
from ..devices.placement import MODES
from ..divergences import DIVERGENCES
from ..errors import ConfigError, check_known, did_you_mean
from ..metrics.attacks import MODES as ATTACK_DETECTION
from ..metrics.classification import BETTER
from ..models import HEAD_INITS, OUTPUT_STRIDES, POOLS
from ..optimizers import OPTIMIZERS, SCHEDULES
from ..strategies import (
    ATTRIBUTIONS,
    CAM_CLASSES,
    CAM_FEATURES,
    GUIDANCE_SCHEDULES,
    STRATEGIES,
    UNMARKED,
    WEIGHTINGS,
    reads_human_maps,
)

BATCH_NORM = ("synchronized", "local")
MAP_RESIZES = ("with_image", "straight")
ENGINES = ("processes", "local", "slurm")  # of a study: of this host, jobs on it, jobs of a cluster

# Steps are counted in int32, on the device too.
MOST_STEPS = 2**31 - 1
# `jax.random.key` takes the lower 32 bits of a seed: a larger one would be another seed, unseen.
_LARGEST_SEED = 2**32 - 1
# A picture of floats of so many pixels a side fills 48 GiB.
_LARGEST_SIDE = 2**16
_MOST_THREADS = 1024  # or processes, of any machine
_MOST_MINUTES = 60 * 24 * 365
_FLOAT32 = np.finfo(np.float32)
_SMALLEST, _LARGEST = float(_FLOAT32.tiny), float(_FLOAT32.max)
_SHOWN = 80


@runtime_checkable
class Kind(Protocol):
    """What a value may be; `told` says it in words."""

    @property
    def told(self) -> str: ...

    def fits(self, value: Any) -> bool: ...


@dataclass(frozen=True)
class Number:
    """From `low` to `high`, without the ends that `above` and `below` leave out, also once it is rounded to float32."""

    low: float
    high: float = _LARGEST
    above: bool = False
    below: bool = False
    note: str = ""

    def fits(self, value: Any) -> bool:
        if isinstance(value, bool) or not isinstance(value, int | float) or not self._within(value):
            return False
        # What is below float32's range counts as 0 on the device.
        return self._within(float(np.float32(value))) and (value == 0 or abs(value) >= _SMALLEST)

    def _within(self, value: float) -> bool:
        reached = value > self.low if self.above else value >= self.low
        return reached and (value < self.high if self.below else value <= self.high)

    @property
    def told(self) -> str:
        low, high = "above" if self.above else "at least", "below" if self.below else "at most"
        return f"a finite number in float32, {low} {self.low:g}, {high} {self.high:g}{self.note}"


@dataclass(frozen=True)
class Whole:
    """A whole number, both ends included."""

    low: int
    high: int = MOST_STEPS

    def fits(self, value: Any) -> bool:
        return isinstance(value, int) and not isinstance(value, bool) and self.low <= value <= self.high

    @property
    def told(self) -> str:
        return f"a whole number, at least {self.low}, at most {self.high}"


@dataclass(frozen=True)
class Text:
    told = "a text"

    def fits(self, value: Any) -> bool:
        return isinstance(value, str) and "\0" not in value


@dataclass(frozen=True)
class OneOf:
    """One of the values that are known, of their type."""

    known: Collection[Any]

    def fits(self, value: Any) -> bool:
        return any(type(value) is type(each) and value == each for each in self.known)

    @property
    def told(self) -> str:
        return f"one of {', '.join(map(str, self.known))}"


@dataclass(frozen=True)
class Several:
    """A tuple or, in a config that was stored as JSON, a list; of so many values where `counts` are given."""

    of: Kind
    counts: tuple[int, ...] = ()
    called: str = "a tuple"

    def fits(self, value: Any) -> bool:
        right = isinstance(value, list | tuple) and (not self.counts or len(value) in self.counts)
        return right and all(map(self.of.fits, value))

    @property
    def told(self) -> str:
        return f"{self.called}, each {self.of.told}"


@dataclass(frozen=True)
class Unset:
    """A kind, or None, with which its owner's default holds."""

    or_else: Kind

    def fits(self, value: Any) -> bool:
        return value is None or self.or_else.fits(value)

    @property
    def told(self) -> str:
        return f"{self.or_else.told}; or unset"


@dataclass(frozen=True)
class Sections:
    """Any names, each with a section of its own, whose keys are looked at elsewhere."""

    told = "a section for each name"

    def fits(self, value: Any) -> bool:
        return isinstance(value, Mapping) and all(isinstance(each, Mapping) for each in value.values())


def _texts(names: str) -> dict[str, Kind]:
    return dict.fromkeys(names.split(), _TEXT)


_TEXT, _TRUTH, _SEED, _SIDE = Text(), OneOf((True, False)), Whole(0, _LARGEST_SEED), Whole(1, _LARGEST_SIDE)
_TEXTS, _POSITIVE = Several(_TEXT), Number(0, above=True)
_SHARE, _SHARE_BELOW_1 = Number(0, 1), Number(0, 1, below=True)
_THREE_SHARES = Several(_SHARE, (3,), "three numbers")

_MAPS: dict[str, Any] = {
    "combine": _TEXT,
    "sigma": Number(0, 1e6, above=True),
    "pixels_per_degree": Number(0, 1e6),
    "invert": _TRUTH,
    "page": Unset(Whole(1)),
    "categories": _TEXTS,
    "columns": dict.fromkeys(COLUMNS, _TEXT),
    "blur": Number(0, 0.5),
    "threshold": _SHARE,
    "resize": OneOf(MAP_RESIZES),
    "predicted": OneOf(PREDICTED),
    "share": Number(0, 1, above=True),
    "share_seed": _SEED,
    "placebo": OneOf(PLACEBOS),
}
_SOURCES: dict[str, Any] = {
    "manifest": _TEXT,
    "folders": {
        **_texts("images maps group_pattern domain_pattern"),
        "map_names": _TEXTS,
        "image_names": _TEXTS,
        "shares": _THREE_SHARES,
        "seed": _SEED,
    },
    "demo": {
        "data_dir": _TEXT,
        "seed": _SEED,
        **dict.fromkeys(("num_train", "num_val", "num_test"), Whole(2)),
        **dict.fromkeys(("shortcut_agreement", "local_agreement", "open_agreement"), _SHARE),
        "normal": _TRUTH,
    },
    "cyborg_faces": {
        **_texts("manual_dir data_dir images heatmaps group_pattern"),
        "train_lists": _TEXTS,
        "test_lists": _TEXTS,
    },
    "iris_pad": {**_texts("manual_dir data_dir images maps group_pattern type_pattern type_column"), "lists": _TEXTS},
    "chest_xray": {
        **_texts("manual_dir data_dir reflacx_maps maps group_pattern"),
        "collections": _TEXTS,
        "owner_splits": _TEXTS,
        "annotated_only": _TRUTH,
        "normals": Number(0, 1e6),
        "shares": _THREE_SHARES,
        "seed": _SEED,
        "degrees": Number(0, 180, above=True),
    },
}
VALUES: dict[str, Any] = {
    "seed": _SEED,
    "epochs": Whole(0),
    "batch_size": Whole(1),
    "accumulate_steps": Whole(1),
    "strategy": OneOf(STRATEGIES),
    "guidance": {
        "alpha": Unset(_SHARE),
        "weighting": Unset(OneOf(WEIGHTINGS)),
        "divergence": Unset(OneOf(DIVERGENCES)),
        "cam_class": Unset(OneOf(CAM_CLASSES)),
        "cam_features": Unset(OneOf(CAM_FEATURES)),
        "attribution": Unset(OneOf(ATTRIBUTIONS)),
        "schedule": Unset(OneOf(GUIDANCE_SCHEDULES)),
        "schedule_share": Unset(Number(0, 1, above=True)),
        "unmarked": Unset(OneOf(UNMARKED)),
        "unmarked_classes": Unset(_TEXTS),
    },
    "data": {
        "source": OneOf(SOURCES),
        "image_size": Unset(_SIDE),
        "resize_through": Several(_SIDE),
        "channels": OneOf((1, 3)),
        "mean": Unset(_THREE_SHARES),
        "std": Unset(Several(Number(0, 1e3, above=True), (3,), "three numbers")),
        "bits": Unset(Whole(0, 16)),
        "num_threads": Whole(0, _MOST_THREADS),
        "num_workers": Whole(0, _MOST_THREADS),
        "kept_megabytes": Whole(0),
        "cache_megabytes": Whole(0),
        "cache_dir": _TEXT,
        "skip_unreadable": _TRUTH,
        "balance": OneOf(BALANCES),
        "maps": _MAPS,
        "protocol": {
            "name": OneOf(PROTOCOLS),
            "domains": _TEXTS,
            "num_folds": Whole(3),
            "fold": Whole(0),
            "seed": _SEED,
            "leakage": OneOf(LEAKAGE),
        },
        "labels": Unset(_TEXTS),
        **_SOURCES,
    },
    "augment": {
        **{name: Number(0, limit) for name, limit in LIMITS.items()},
        "map_blur": Several(_POSITIVE, (0, 2), "no or two numbers"),
    },
    "model": {
        "name": _TEXT,
        "weights": _TEXT,
        "train_from": _TEXT,
        **dict.fromkeys(("keep_head", "one_logit", "freeze_batch_norm", "rematerialize"), _TRUTH),
        "dtype": OneOf(("float32", "bfloat16")),
        "head_init": OneOf(HEAD_INITS),
        "dropout": _SHARE_BELOW_1,
        "batch_norm_momentum": _SHARE_BELOW_1,
        "pool": Unset(OneOf(POOLS)),
        "output_stride": OneOf(OUTPUT_STRIDES),
    },
    "optimizer": {
        "name": OneOf(OPTIMIZERS),
        "learning_rate": Number(0, 1e6, above=True),  # at 0 BatchNorm's statistics alone would move
        "momentum": Unset(_SHARE_BELOW_1),
        "weight_decay": Number(0, 1e6),
        "clip_norm": Number(0, note="; 0: no clipping"),
        "schedule": OneOf(SCHEDULES),
        "step_epochs": Unset(Whole(1)),
        "step_factor": Unset(Number(0, 1e6, above=True)),  # at 0 Optax leaves the learning rate as it is
        "warmup_epochs": Number(0),
    },
    "parallel": {
        "mode": OneOf(MODES),
        "devices": Unset(Whole(1)),
        "shard_state": _TRUTH,
        "batch_norm": OneOf(BATCH_NORM),
    },
    "evaluation": {
        "batch_size": Whole(1),
        "select_by": OneOf(BETTER),
        "attack_detection": OneOf(ATTACK_DETECTION),
    },
    "log_every_steps": Whole(1),
    "log_gradient_norms": _TRUTH,
    "checkpoint_every_steps": Unset(Whole(1)),
    "grace_seconds": Number(1, 1e6),  # a timer's own limit is the platform's
    "compare": {
        **dict.fromkeys(("strategies", "placebos", "placebo_of", "protocols"), _TEXTS),
        "variants": Sections(),
        "alphas": Several(_SHARE),
        "seeds": Several(_SEED),
        "reference": _TEXT,
        "processes": Whole(0, _MOST_THREADS),
        "held_megabytes": Whole(0),
        "engine": OneOf(ENGINES),
        "cluster": {
            "partition": _TEXT,
            "minutes": Whole(1, _MOST_MINUTES),
            "cpus": Whole(1, _MOST_THREADS),
            "gpus": Whole(0, _MOST_THREADS),
            "memory_gb": Whole(0),
            "jobs": Whole(0),
            "restarts": Whole(0),
            "options": _TEXTS,
        },
    },
}


def check_values(config: Mapping[str, Any]) -> None:
    """Raises ConfigError for the first key that is unknown or missing, or whose value is not allowed.

    `config` is nested. Its section `compare` may be missing: a study's runs have none.
    """
    _check_section("config", config, VALUES)


def _check_section(section: str, given: Mapping[str, Any], known: Mapping[str, Any]) -> None:
    for key in given:
        if key not in known:
            near = did_you_mean(str(key), known)
            raise ConfigError(f"{section} has no key {key!r}.{near} Its keys: {', '.join(known)}.")
    for key, kind in known.items():
        place = f"{section}.{key}"
        if key in given:
            check_value(place, given[key], kind)
        elif place != "config.compare":
            raise ConfigError(f"{section} has no {key!r}; start from configs/default.py, which has all keys.")


def check_value(place: str, value: Any, kind: Any) -> None:
    """Raises ConfigError, which names the place, for a value that is not of the kind, or of the section of kinds."""
    if isinstance(kind, Mapping):
        if not isinstance(value, Mapping):
            raise ConfigError(f"{place} is {_show(value)}; it is a section, with the keys {', '.join(kind)}.")
        _check_section(place, value, kind)
    elif not kind.fits(value):
        if isinstance(value, str) and isinstance(names := kind.or_else if isinstance(kind, Unset) else kind, OneOf):
            check_known(place, value[:_SHOWN], names.known)  # tells which is near
        raise ConfigError(f"{place} is {_show(value)}; it must be {kind.told}.")


def _show(value: Any) -> str:
    """A value for an error; an integer may have more digits than Python prints."""
    if isinstance(value, int) and value.bit_length() > 4 * _SHOWN:
        return f"a number of {value.bit_length()} bits"
    shown = repr(value)
    return shown if len(shown) <= _SHOWN else f"{shown[:_SHOWN]}..."


def check_together(config: Mapping[str, Any], untrained: bool) -> None:
    """Raises ConfigError for values, each allowed, that do not fit each other, or that do nothing beside others.

    `untrained`: nothing is to be trained by this config; what training alone reads may be as it is.
    """
    data, maps, model = config["data"], config["data"]["maps"], config["model"]
    if maps["resize"] == "straight" and config["strategy"] == "input_gradient":
        raise ConfigError(
            "config.data.maps.resize=straight gives maps of the CAM's size, and strategy input_gradient needs them at "
            "the image's: set config.data.maps.resize=with_image."
        )
    if config["accumulate_steps"] > config["batch_size"]:
        raise ConfigError(
            f"config.accumulate_steps is {config['accumulate_steps']}: a batch of {config['batch_size']} examples "
            "(config.batch_size) has not as many parts."
        )
    if untrained:
        return
    vain: dict[str, tuple[bool, str]] = {
        "data.maps.placebo": (maps["placebo"] != "none", "none"),
        "augment.map_blur": (bool(config["augment"]["map_blur"]), "()"),
    }
    for key, (given, nothing) in vain.items():
        if given and not reads_human_maps(config["strategy"]):
            what = f"config.{key} changes training's human maps, and strategy {config['strategy']} reads none"
            raise ConfigError(f"{what}: leave it at {nothing}, or take a strategy that does.")
    if config["augment"]["saturation"] and data["channels"] == 1:
        raise ConfigError("config.augment.saturation does nothing to grey images (config.data.channels=1): leave it 0.")
    if model["freeze_batch_norm"] and model["batch_norm_momentum"] != 0.9:
        raise ConfigError(
            f"config.model.batch_norm_momentum is {model['batch_norm_momentum']}, which does nothing where "
            "config.model.freeze_batch_norm keeps the statistics: leave it at 0.9."
        )
    for key, nothing in {"freeze_batch_norm": False, "batch_norm_momentum": 0.9, "rematerialize": False}.items():
        if model["train_from"] == "head" and model[key] != nothing:
            raise ConfigError(
                f"config.model.{key} is {model[key]}, which does nothing where config.model.train_from=head freezes "
                f"all that it is for: leave it at {nothing}."
            )
    if data["labels"] and data["source"] not in ("manifest", "folders"):
        raise ConfigError(
            f"config.data.labels names the classes of manifests and folders; source {data['source']} has its own. "
            "Leave it unset."
        )
    if data["protocol"]["fold"] and data["protocol"]["name"] != "k_fold":
        raise ConfigError("config.data.protocol.fold is a part of protocol k_fold: leave it 0, or take that protocol.")
    if config["optimizer"]["warmup_epochs"] > config["epochs"]:
        raise ConfigError(
            f"config.optimizer.warmup_epochs is {config['optimizer']['warmup_epochs']}: the learning rate would still "
            f"rise when training ends (config.epochs={config['epochs']}). Give fewer."
        )
