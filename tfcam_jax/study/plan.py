"""Which runs a comparison study has: arms x alphas x protocols and their folds x seeds, each with its config."""

from __future__ import annotations

import copy
from collections.abc import Collection, Sequence
from typing import Any, NamedTuple
from urllib.parse import quote

from flax import traverse_util

from ..data.human_maps import PLACEBOS
from ..data.protocol import PROTOCOLS, apply_protocol, enumerate_folds
from ..data.source import Dataset
from ..errors import ConfigError, check_known
from ..experiment import ConfigDict, resolve
from ..run.config_values import check_values
from ..strategies import STRATEGIES, alpha_of, reads_human_maps, strategy_options
from .outcomes import Entry

# What a variant can't change: it would not be the same study any more.
_FIXED_IN_VARIANTS = ("seed", "compare", "data.protocol")


class Run(NamedTuple):
    """One run: its entry in the study's list, and its whole config."""

    entry: Entry
    config: ConfigDict


def plan_arms(config: ConfigDict) -> dict[str, ConfigDict]:
    """The arms by name, each a config without `compare`: strategies, their placebo controls, variants.

    A control is called `STRATEGY_PLACEBO`, as "cyborg_mean_map". A guidance option that a strategy does not have is
    left out of its arm where another arm's strategy has it.

    Raises:
      ConfigError: unknown strategies or placebos, a name given twice, a variant that changes what the base does not
        have or what all arms share, values that `experiment.resolve` refuses.
    """
    check_values(config.to_dict())
    compare = config.compare
    _check_names("compare.strategies", compare.strategies, STRATEGIES)
    _check_names("compare.placebos", compare.placebos, PLACEBOS[1:])
    arms = {strategy: _arm_of(config, strategy) for strategy in compare.strategies}
    controlled = placebo_arms(config)
    if compare.placebos:
        # In the others a placebo would change nothing.
        _check_names("compare.placebo_of", compare.placebo_of, sorted(filter(reads_human_maps, STRATEGIES)))
        if not controlled:
            raise ConfigError("config.compare.placebo_of names none of config.compare.strategies: no arm to control.")
    for strategy, controls in controlled.items():
        for control, placebo in zip(controls, compare.placebos, strict=True):
            arms[control] = copy.deepcopy(arms[strategy])
            arms[control].data.maps.placebo = placebo
    for name, changes in compare.variants.items():
        if name in arms:
            raise ConfigError(f"config.compare.variants: {name!r} is the name of another arm already")
        arms[name] = _variant_arm(config, name, changes)
    if not arms:
        raise ConfigError("config.compare.strategies and compare.variants are empty: nothing to compare.")
    if compare.reference not in arms:
        remedy = f"Give --config.compare.reference={next(iter(arms))}, or another of them."
        raise ConfigError(
            f"config.compare.reference is {compare.reference!r}; the arms are {', '.join(arms)}. {remedy}"
        )
    for name, arm in arms.items():
        try:
            resolve(arm)
        except ConfigError as error:
            raise ConfigError(f"arm {name!r}: {error}") from error
    return arms


def placebo_arms(config: ConfigDict) -> dict[str, list[str]]:
    """The controls of each strategy that has any, by name of its arm."""
    compare = config.compare
    return {
        strategy: [f"{strategy}_{placebo}" for placebo in compare.placebos]
        for strategy in compare.placebo_of
        if strategy in compare.strategies and compare.placebos
    }


def plan_runs(config: ConfigDict, arms: dict[str, ConfigDict], dataset: Dataset) -> list[Run]:
    """All runs, those that share data next to each other, and of those the ones that share compiled programs.

    Arms are of `plan_arms`. Domains and groups of the dataset, as `experiment.open_source` opens it, make the folds.

    Raises:
      ConfigError: protocols, alphas or seeds that can't be used.
      DataError: a protocol that these data can't serve.
    """
    seeds, alphas = config.compare.seeds, config.compare.alphas
    if not seeds or len(set(seeds)) < len(seeds):
        raise ConfigError(f"config.compare.seeds must be different numbers, at least one; got {tuple(seeds)}")
    if len(set(alphas)) < len(alphas):
        raise ConfigError(f"config.compare.alphas must be different numbers; got {tuple(alphas)}")
    if alphas and config.guidance.alpha is not None:
        raise ConfigError("config.guidance.alpha and config.compare.alphas are both given: leave one unset.")
    if alphas and config.guidance.weighting == "loss_share":
        raise ConfigError(
            "config.guidance.weighting is 'loss_share', by which each step finds its own alpha, and "
            "config.compare.alphas is given: leave one unset. (A variant may have that weighting beside the grid.)"
        )
    # Arms with the same maps next to each other: what is decoded serves them all.
    names = sorted(arms, key=lambda name: PLACEBOS.index(arms[name].data.maps.placebo))
    return [
        _make_run(arms[name], name, alpha, protocol, seed)
        for protocol in plan_protocols(config, dataset)
        for name in names
        for alpha in _alphas(arms[name], alphas)
        for seed in seeds
    ]


def plan_protocols(config: ConfigDict, dataset: Dataset) -> list[dict[str, Any]]:
    """The folds of every protocol of `compare.protocols`, as values of `data.protocol`; that of the config if empty."""
    own = config.data.protocol
    if not config.compare.protocols:
        return [dict(own)]
    _check_names("compare.protocols", config.compare.protocols, PROTOCOLS)
    if own.name != "published" and own.name not in config.compare.protocols:
        raise ConfigError(f"config.data.protocol.name is {own.name!r}, which is not in config.compare.protocols.")
    if own.domains and "open" not in config.compare.protocols:
        raise ConfigError("config.data.protocol.domains serve protocol open, which is not in config.compare.protocols.")
    shared = {"num_folds": own.num_folds, "fold": 0, "seed": own.seed, "leakage": own.leakage}
    domains = {"open": tuple(own.domains)}
    folds = [fold for name in config.compare.protocols for fold in enumerate_folds(dataset, name, own.num_folds)]
    protocols = [{**shared, "domains": domains.get(fold["name"], ()), **fold} for fold in folds]
    for protocol in protocols:
        apply_protocol(dataset, **protocol)
    return protocols


def _make_run(arm: ConfigDict, name: str, alpha: float | None, protocol: dict[str, Any], seed: int) -> Run:
    config = copy.deepcopy(arm)
    config.seed = seed
    config.data.protocol.update(protocol)
    config.guidance.alpha = alpha
    # What tells the folds of a protocol apart.
    folds = {"k_fold": str(protocol["fold"]), "leave_one_domain_out": "".join(protocol["domains"][:1])}
    fold = folds.get(protocol["name"], "")
    parts = [name, "" if alpha is None else f"alpha{alpha!r}", protocol["name"], fold and f"fold_{fold}", f"seed{seed}"]
    folder = "-".join(quote(part, safe=" ()+,") for part in parts if part)
    return Run(Entry(folder, name, alpha, protocol["name"], fold, seed), config)


def _alphas(arm: ConfigDict, alphas: Sequence[float]) -> Sequence[float | None]:
    """Those of the study, unless the arm has its own; the strategy's default without any; None where it has none."""
    own = alpha_of(arm.strategy, arm.guidance.alpha, arm.guidance.weighting)
    if own is None or arm.guidance.alpha is not None or not alphas:
        return (own,)
    return [float(alpha) for alpha in alphas]


def _arm_of(config: ConfigDict, strategy: str) -> ConfigDict:
    """The config of an arm, without the guidance options and changes of maps that only strategies of other arms read.

    It does not say which others it is compared with: a study may grow without new runs of the old.
    """
    arm = copy.deepcopy(config)
    if config.compare.protocols:  # each run gets its own
        arm.data.protocol.update(name="published", domains=(), fold=0)
    with arm.unlocked():
        del arm["compare"]
    arm.strategy = strategy
    own = strategy_options(strategy) if strategy in STRATEGIES else []
    of_any = {option for name in config.compare.strategies for option in strategy_options(name)}
    for option in of_any - set(own):
        arm.guidance[option] = None
    if strategy in STRATEGIES and not reads_human_maps(strategy):
        arm.augment.map_blur, arm.data.maps.placebo = (), PLACEBOS[0]
    return arm


def _variant_arm(config: ConfigDict, name: str, changes: ConfigDict) -> ConfigDict:
    given: dict[str, Any] = traverse_util.flatten_dict(changes.to_dict(), sep=".")
    fixed = [key for key in given if any(key == other or key.startswith(f"{other}.") for other in _FIXED_IN_VARIANTS)]
    if fixed:
        raise ConfigError(f"config.compare.variants.{name} sets {fixed[0]!r}, which all arms of a study share")
    arm = _arm_of(config, given.get("strategy", config.strategy))
    try:
        arm.update_from_flattened_dict(given)
    except (KeyError, TypeError, ValueError) as error:
        message = error.args[0] if error.args else error
        raise ConfigError(f"config.compare.variants.{name}: {message}") from error
    return arm


def _check_names(key: str, names: Sequence[str], known: Collection[str]) -> None:
    for name in names:
        check_known(f"one of config.{key}", name, known)
    if len(set(names)) < len(names):
        raise ConfigError(f"config.{key} names one twice: {', '.join(names)}.")
