"""Protocols: which images train, validate and test, and which of the test come from sources that training saw."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from absl import logging
from jaxtyping import Int

from ..errors import ConfigError, check_known
from .checks.leakage import find_conflicts
from .source import SPLITS, DataError, Dataset, Joined, Records, Subset

PROTOCOLS = ("published", "closed", "open", "leave_one_domain_out", "k_fold")
LEAKAGE = ("refuse", "drop")
# Weight of a split's size beside that of its classes' numbers: enough to decide between equal ones.
_ALL_CLASSES = 1e-3


def split_by_protocol(
    train_domains: Sequence[str], test_domains: Sequence[str], test_labels: Int[np.ndarray, " n"]
) -> dict[str, Int[np.ndarray, " m"]]:
    """Row numbers of the closed-set and the open-set test.

    Closed: images whose domain is among training's. Open: images of the other domains. A class that has no image
    from an unseen domain (live irises, when only attack types are new) joins the open set with its images of seen
    domains, since a test needs both classes; symmetrically for the closed set. A set that would be empty has no key:
    no `open` where training has seen every domain.
    """
    test_labels = np.asarray(test_labels)
    seen = np.isin(np.asarray(test_domains, dtype=str), np.asarray(sorted(set(train_domains)), dtype=str))
    members = {"closed": seen, "open": ~seen}
    return {name: _with_lacking_classes(own, test_labels) for name, own in members.items() if own.any()}


def split_by_domain(domains: Sequence[str], labels: Int[np.ndarray, " n"]) -> dict[str, Int[np.ndarray, " m"]]:
    """Row numbers of each domain's own test, in alphabetical order of the domains.

    A class that a domain lacks (bona fide images, in a domain that is an attack type) joins it with all its images,
    since a test needs both classes. Images without a domain belong to none.
    """
    names, labels = np.asarray(domains, dtype=str), np.asarray(labels)
    return {str(name): _with_lacking_classes(names == name, labels) for name in np.unique(names[names != ""])}


def _with_lacking_classes(member: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Row numbers of the members, and of every row of a class that has no member."""
    lacking = [label for label in np.unique(labels) if not member[labels == label].any()]
    return np.flatnonzero(member | np.isin(labels, lacking))


@dataclass(frozen=True)
class ProtocolOptions:
    """Which images train, validate and test.

    published: the owner's splits.
    closed: the owner's splits, the test restricted to domains that training saw.
    open: all images of `domains` test, wherever the owner put them; the rest as published.
    leave_one_domain_out: the same for one domain; the rest of the test is restricted to domains that training saw, so
      that the open part holds the domain left out alone. `enumerate_folds` names all of them.
    k_fold: all images in `num_folds` parts, with whole groups (and equal images) in one part and the classes spread as
      evenly as the groups allow; part `fold` tests, the next one validates, the others train.

    Attributes:
      name: one of `PROTOCOLS`.
      domains: for open and leave_one_domain_out.
      num_folds, fold, seed: for k_fold; at least 3, below `num_folds`, and of the parts.
      leakage: what to do where a group or an image would stand in two splits: "refuse", or "drop" it from training
        in favour of validation and test, and from validation in favour of test.

    Raises:
      ConfigError: an unknown name, or options that don't go together.
    """

    name: str = "published"
    domains: Sequence[str] = ()
    num_folds: int = 5
    fold: int = 0
    seed: int = 0
    leakage: str = "refuse"

    def __post_init__(self):
        check_known("config.data.protocol.name", self.name, PROTOCOLS)
        check_known("config.data.protocol.leakage", self.leakage, LEAKAGE)
        wanted = {"open": "one or more", "leave_one_domain_out": "one"}.get(self.name, "no")
        fits = {"one or more": bool(self.domains), "one": len(self.domains) == 1, "no": not self.domains}[wanted]
        if not fits:
            given = ", ".join(self.domains) or "none"
            raise ConfigError(f"protocol {self.name} takes {wanted} config.data.protocol.domains; got {given}")
        if self.seed < 0:
            raise ConfigError(f"config.data.protocol.seed must not be negative; got {self.seed}")
        if self.name == "k_fold" and not (self.num_folds >= 3 and 0 <= self.fold < self.num_folds):
            given = f"{self.num_folds} and {self.fold}"
            keys = "config.data.protocol.num_folds >= 3 and 0 <= config.data.protocol.fold < num_folds"
            raise ConfigError(f"k_fold needs {keys}; got {given}")


def assign_splits(
    records: Records, published: Sequence[str], class_names: Sequence[str] | None = None, **options: Any
) -> dict[str, Int[np.ndarray, " m"]]:
    """Which rows of a whole data set train, validate and test: row numbers by split, in order; "test" if it has rows.

    `published` is the owner's split of each row, `options` are fields of `ProtocolOptions`. Errors tell of classes by
    `class_names`, or by their indices without. Raises ConfigError as these
    do, and DataError, which names the rows, for an unknown domain, a split left without a class, and leakage.
    """
    protocol = ProtocolOptions(**options)
    name, domains = protocol.name, protocol.domains
    split = np.array(published, dtype="<U5")
    if name in ("open", "leave_one_domain_out"):
        known = sorted(set(records.domains))
        told = f"there are {', '.join(known)}"
        if wrong := [domain for domain in domains if domain not in known]:
            key = "config.data.protocol.domains"
            raise DataError([f"{key}: no image has domain {domain!r}; {told}" for domain in wrong])
        split[np.isin(records.domains, list(domains))] = "test"
    if name == "k_fold":
        split = _k_fold(records, protocol)
    if name in ("closed", "leave_one_domain_out"):
        seen = set(np.asarray(records.domains)[split == "train"]) | set(domains)
        split[(split == "test") & ~np.isin(records.domains, sorted(seen))] = ""
    if name != "published":  # The owner's own splits were checked when the data were opened.
        split = _without_leakage(records, split, drop=protocol.leakage == "drop")
    rows = {part: np.flatnonzero(split == part) for part in SPLITS}
    _check_classes(name, records, rows, class_names)
    return {part: own for part, own in rows.items() if len(own) or part != "test"}


def apply_protocol(dataset: Dataset, **options: Any) -> Dataset:
    """The data set with its images assigned anew; `options` are fields of `ProtocolOptions`."""
    whole = Joined(list(dataset.splits.values()))
    published = [split for split, source in dataset.splits.items() for _ in range(len(source))]
    rows = assign_splits(whole.records, published, dataset.class_names, **options)
    if options.get("name", "published") == "published":
        return dataset
    return dataclasses.replace(dataset, splits={split: Subset(whole, own) for split, own in rows.items()})


def enumerate_folds(dataset: Dataset, name: str, num_folds: int = 5) -> list[dict[str, Any]]:
    """Fields of `ProtocolOptions` for each fold of a protocol, in a fixed order.

    leave_one_domain_out: each domain that training or validation holds and that is not all that a class has there.
    k_fold: each part. Other protocols have a single fold. Raises DataError if no domain can be left out.
    """
    if name == "k_fold":
        return [{"name": name, "num_folds": num_folds, "fold": fold} for fold in range(num_folds)]
    if name != "leave_one_domain_out":
        return [{"name": name}]
    records = Joined([source for split, source in dataset.splits.items() if split != "test"]).records
    domains_of = lambda label: {d for d, other in zip(records.domains, records.labels, strict=True) if other == label}
    needed = set.union(*(own for own in map(domains_of, np.unique(records.labels)) if len(own) == 1), set())
    folds = [{"name": name, "domains": (domain,)} for domain in sorted(set(records.domains) - needed)]
    if not folds:
        raise DataError([f"{dataset.name}: no domain can be left out, as each is all that a class has in training"])
    return folds


def draw_splits(
    labels: Sequence[str], groups: Sequence[str], digests: Sequence[str], shares: Mapping[str, float], seed: int
) -> list[str]:
    """Deals rows out to splits at random: whole groups (and equal images), each class by the shares as far as can be.

    Large groups come first, in random order among equally large ones; each goes where the numbers of its classes are
    then nearest to the shares. The last groups of a class go to splits that lack it, so that a class of as many groups
    as there are splits is in each; one of fewer is missing somewhere.

    Args:
      labels: of each row.
      groups: of each row; "": none.
      digests: of each row, equal for equal pixels; "": unknown.
      shares: of the splits, above 0; their sum makes no difference.
      seed: of the random order.

    Returns:
      A key of `shares` for each row.
    """
    units, (names, classes) = _units(groups, digests), np.unique(labels, return_inverse=True)
    counts = np.zeros((units.max(initial=-1) + 1, len(names) + 1))  # of each class, and of all
    np.add.at(counts, (units, classes), 1)
    counts[:, -1] = counts.sum(1)
    wanted = np.outer([*shares.values()], counts.sum(0)) / sum(shares.values())
    given, left = np.zeros_like(wanted), (counts > 0).sum(0)
    order = np.random.default_rng(seed).permutation(len(counts))
    dealt = np.zeros(len(counts), int)
    for unit in order[np.argsort(-counts[order, -1], kind="stable")]:
        own = counts[unit]
        lacking = (given == 0) & (own > 0)
        urgent = (lacking & (left <= lacking.sum(0))).any(1)
        # What adding this unit does to the sum of (given - wanted)^2 / wanted.
        change = own * (2 * (given - wanted) + own) / wanted
        cost = change[:, :-1].sum(1) + _ALL_CLASSES * change[:, -1]
        dealt[unit] = split = int(np.argmin(np.where(urgent | ~urgent.any(), cost, np.inf)))
        given[split] += own
        left -= own > 0
    return [[*shares][split] for split in dealt[units]]


def _units(groups: Sequence[str], digests: Sequence[str]) -> Int[np.ndarray, " n"]:
    """A number for each row, equal for rows that are linked by a chain of equal groups or equal pixels."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    n = len(groups)
    links = []
    for column in (groups, digests):
        first: dict[str, int] = {}
        links += [(row, first.setdefault(value, row)) for row, value in enumerate(column) if value]
    pairs = np.array(links, int).reshape(-1, 2).T
    return connected_components(coo_array((np.ones(len(links)), tuple(pairs)), shape=(n, n)), directed=False)[1]


def deal_folds(records: Records, num_folds: int, seed: int) -> Int[np.ndarray, " n"]:
    """Number of each row's fold: whole groups (and equal images) in one, the classes spread as the groups allow.

    Raises DataError: fewer groups than folds.
    """
    from sklearn.model_selection import StratifiedGroupKFold  # 1.4 s that nothing else needs

    units = _units(records.groups, records.digests or ())
    if len(np.unique(units)) < num_folds:
        raise DataError([f"{num_folds} folds of {len(np.unique(units))} groups; use fewer folds"])
    parts = StratifiedGroupKFold(num_folds, shuffle=True, random_state=seed)
    fold = np.zeros(len(records), int)
    for number, (_, own) in enumerate(parts.split(units, records.labels, units)):
        fold[own] = number
    return fold


def _k_fold(records: Records, protocol: ProtocolOptions) -> np.ndarray:
    part = deal_folds(records, protocol.num_folds, protocol.seed)
    split = np.full(len(records), "train")
    split[part == protocol.fold], split[part == (protocol.fold + 1) % protocol.num_folds] = "test", "val"
    return split


def _without_leakage(records: Records, split: np.ndarray, drop: bool) -> np.ndarray:
    """Refuses rows whose group or pixels stand in a later split too, or takes them out."""
    members = np.flatnonzero(split != "")
    kept, parts = records[members], split[members].tolist()
    columns = {"image": kept.ids, "pixels": kept.digests, "group": kept.groups}
    columns = {kind: column for kind, column in columns.items() if column is not None}
    found = find_conflicts(columns, parts, [SPLITS.index(part) for part in parts])
    leaking = members[[row for row, _, _ in found]]
    problems = []
    for row, other, kind in found:
        what = f"group {kept.groups[row]}" if kind == "group" else f"equal {kind}"
        pair = f"{kept.ids[row]} ({parts[row]}) and {kept.ids[other]} ({parts[other]})"
        problems.append(f"{pair}: {what} in two splits; set config.data.protocol.leakage=drop, or correct the groups")
    if problems and not drop:
        raise DataError(problems)
    if problems:
        logging.warning("protocol: %d rows left out whose group or pixels stand in a later split", len(leaking))
        split = split.copy()
        split[leaking] = ""
    return split


def _check_classes(name: str, records: Records, rows: dict[str, np.ndarray], class_names: Sequence[str] | None) -> None:
    problems = []
    wanted = np.unique(records.labels).tolist()
    named = lambda labels: ", ".join(str(class_names[label] if class_names else label) for label in labels)
    for split, own in rows.items():
        found = np.unique(records.labels[own]).tolist()
        if found != wanted and (len(own) or split != "test"):
            what = f"{len(own)} images, of classes {named(found)} only" if len(own) else "no images"
            what += f"; there are {named(wanted)}"
            problems.append(f"protocol {name}: split {split} has {what}")
    # A test of one class is told by evaluation too; training and validation can't do with it.
    if problems:
        raise DataError(problems)
