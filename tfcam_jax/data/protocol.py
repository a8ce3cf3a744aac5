"""Protocols: which images train, validate and test, and which of the test come from sources that training saw."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
from absl import logging
from jaxtyping import Int
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from sklearn.model_selection import StratifiedGroupKFold

from .source import SPLITS, DataError, Dataset, Joined, Records, Subset

PROTOCOLS = ("published", "closed", "open", "leave_one_domain_out", "k_fold")
LEAKAGE = ("refuse", "drop")


def split_by_protocol(
    train_domains: Sequence[str], test_domains: Sequence[str], test_labels: Int[np.ndarray, " n"]
) -> dict[str, Int[np.ndarray, " m"]]:
    """Row numbers of the closed-set and the open-set test.

    Closed: images whose domain is among training's. Open: images of the other domains. A class that has no image
    from an unseen domain (live irises, when only attack types are new) joins the open set with its images of seen
    domains, since a test needs both classes; symmetrically for the closed set.

    Returns:
      `{"closed": rows, "open": rows}`, without a key whose set would be empty: no `open` where training has seen
      every domain.
    """
    test_labels = np.asarray(test_labels)
    seen = np.isin(np.asarray(test_domains, dtype=str), np.asarray(sorted(set(train_domains)), dtype=str))
    parts = {}
    for name, member in (("closed", seen), ("open", ~seen)):
        if not member.any():
            continue
        parts[name] = _with_lacking_classes(member, test_labels)
    return parts


def split_by_domain(domains: Sequence[str], labels: Int[np.ndarray, " n"]) -> dict[str, Int[np.ndarray, " m"]]:
    """Row numbers of each domain's own test, in alphabetical order of the domains.

    A class that a domain lacks (bona fide images, in a domain that is an attack type) joins it with all its images,
    since a test needs both classes. Images without a domain belong to none.
    """
    names, labels = np.asarray(domains, dtype=str), np.asarray(labels)
    parts = {}
    for name in np.unique(names[names != ""]):
        parts[str(name)] = _with_lacking_classes(names == name, labels)
    return parts


def _with_lacking_classes(member: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Row numbers of the members, and of every row of a class that has no member."""
    lacking = [label for label in np.unique(labels) if not member[labels == label].any()]
    return np.flatnonzero(member | np.isin(labels, lacking))


def assign_splits(
    records: Records,
    published: Sequence[str],
    *,
    name: str = "published",
    domains: Sequence[str] = (),
    num_folds: int = 5,
    fold: int = 0,
    seed: int = 0,
    leakage: str = "refuse",
) -> dict[str, Int[np.ndarray, " m"]]:
    """Which rows of a whole data set train, validate and test.

    published: the owner's splits.
    closed: the owner's splits, the test restricted to domains that training saw.
    open: all images of `domains` test, wherever the owner put them; the rest as published.
    leave_one_domain_out: the same for one domain; the rest of the test is restricted to domains that training saw, so
      that the open part holds the domain left out alone. `enumerate_folds` names all of them.
    k_fold: all images in `num_folds` parts, with whole groups (and equal images) in one part and the classes spread as
      evenly as the groups allow; part `fold` tests, the next one validates, the others train.

    Args:
      records: all rows.
      published: the owner's split of each row.
      name: one of `PROTOCOLS`.
      domains: for open and leave_one_domain_out.
      num_folds: for k_fold, at least 3.
      fold: for k_fold, below `num_folds`.
      seed: of the parts of k_fold.
      leakage: what to do where a group or an image would stand in two splits: "refuse", or "drop" it from training
        in favour of validation and test, and from validation in favour of test.

    Returns:
      Row numbers by split, in order; no "test" where the owner has none.

    Raises:
      ValueError: an unknown name, or options that don't go with the protocol.
      DataError: an unknown domain, a split left without a class, leakage; names the rows.
    """
    check_options(name, domains, num_folds, fold, seed, leakage)
    split = np.array(published, dtype="<U5")
    if name in ("open", "leave_one_domain_out"):
        split[np.isin(records.domains, _known_domains(records, domains))] = "test"
    if name == "k_fold":
        split = _k_fold(records, num_folds, fold, seed)
    if name in ("closed", "leave_one_domain_out"):
        seen = set(np.asarray(records.domains)[split == "train"]) | set(domains)
        split[(split == "test") & ~np.isin(records.domains, sorted(seen))] = ""
    if name != "published":  # The owner's own splits were checked when the data were opened.
        split = _without_leakage(records, split, drop=leakage == "drop")
    rows = {part: np.flatnonzero(split == part) for part in SPLITS}
    _check_classes(name, records, rows)
    return {part: own for part, own in rows.items() if len(own) or part != "test"}


def apply_protocol(dataset: Dataset, **options: Any) -> Dataset:
    """The data set with its images assigned anew; `options` as in `assign_splits`."""
    if options.get("name", "published") == "published":
        assign_splits(_records(dataset), _published(dataset), **options)
        return dataset
    whole = Joined(list(dataset.splits.values()))
    rows = assign_splits(whole.records, _published(dataset), **options)
    return dataclasses.replace(dataset, splits={split: Subset(whole, own) for split, own in rows.items()})


def enumerate_folds(dataset: Dataset, name: str, num_folds: int = 5) -> list[dict[str, Any]]:
    """Options of `assign_splits` for each fold of a protocol, in a fixed order.

    leave_one_domain_out: each domain that training or validation holds and that is not all that a class has there.
    k_fold: each part. Other protocols have a single fold.

    Raises:
      DataError: leave_one_domain_out, if no domain can be left out.
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


def _records(dataset: Dataset) -> Records:
    return Joined(list(dataset.splits.values())).records


def _published(dataset: Dataset) -> list[str]:
    return [split for split, source in dataset.splits.items() for _ in range(len(source))]


def check_options(
    name: str = "published",
    domains: Sequence[str] = (),
    num_folds: int = 5,
    fold: int = 0,
    seed: int = 0,
    leakage: str = "refuse",
) -> None:
    """Raises ValueError for options of `assign_splits` that don't go together; needs no data."""
    if name not in PROTOCOLS:
        raise ValueError(f"protocol.name must be one of {', '.join(PROTOCOLS)}; got {name!r}")
    if leakage not in LEAKAGE:
        raise ValueError(f"protocol.leakage must be one of {', '.join(LEAKAGE)}; got {leakage!r}")
    wanted = {"open": "one or more", "leave_one_domain_out": "one"}.get(name, "no")
    fits = {"one or more": len(domains) > 0, "one": len(domains) == 1, "no": not domains}[wanted]
    if not fits:
        raise ValueError(f"protocol {name} takes {wanted} protocol.domains; got {', '.join(domains) or 'none'}")
    if seed < 0:
        raise ValueError(f"protocol.seed must not be negative; got {seed}")
    if name == "k_fold" and not (num_folds >= 3 and 0 <= fold < num_folds):
        raise ValueError(f"k_fold needs num_folds >= 3 and 0 <= fold < num_folds; got {num_folds} and {fold}")


def _known_domains(records: Records, domains: Sequence[str]) -> list[str]:
    known = sorted(set(records.domains))
    unknown = [domain for domain in domains if domain not in known]
    if unknown:
        raise DataError([f"protocol.domains: no image has domain {domain!r}; there are {', '.join(known)}"
                         for domain in unknown])  # fmt: skip
    return list(domains)


def _units(records: Records) -> Int[np.ndarray, " n"]:
    """A number for each row, equal for rows that are linked by a chain of equal groups or equal pixels."""
    n = len(records)
    rows, keys, names = [], [], {}
    for column in (records.groups, records.digests or ("",) * n):
        for row, value in enumerate(column):
            if value:
                rows.append(row)
                keys.append(n + names.setdefault((column is records.groups, value), len(names)))
    size = n + len(names)
    links = coo_array((np.ones(len(rows), np.int8), (np.array(rows, int), np.array(keys, int))), shape=(size, size))
    return connected_components(links, directed=False)[1][:n]


def _k_fold(records: Records, num_folds: int, fold: int, seed: int) -> np.ndarray:
    units = _units(records)
    if len(np.unique(units)) < num_folds:
        raise DataError([f"k_fold: {num_folds} folds of {len(np.unique(units))} groups; use fewer folds"])
    parts = StratifiedGroupKFold(num_folds, shuffle=True, random_state=seed).split(units, records.labels, units)
    tested = [test for _, test in parts]
    split = np.full(len(records), "train")
    split[tested[fold]], split[tested[(fold + 1) % num_folds]] = "test", "val"
    return split


def _without_leakage(records: Records, split: np.ndarray, drop: bool) -> np.ndarray:
    """Refuses rows whose group or pixels stand in a later split too, or takes them out."""
    order = {part: i for i, part in enumerate(SPLITS)}
    holder: dict[tuple[str, str], int] = {}  # The last split that a key stands in, by a row of it.
    columns = {"image": records.ids, "pixels": records.digests or (), "group": records.groups}
    members = np.flatnonzero(split != "")
    for kind, column in columns.items():
        for row in members if column else ():
            before = holder.setdefault((kind, column[row]), row)
            if order[split[row]] > order[split[before]]:
                holder[kind, column[row]] = row
    problems, leaking = [], []
    for row in members:
        for kind, column in columns.items():
            other = holder[kind, column[row]] if column and column[row] else row
            if split[other] != split[row]:
                what = f"group {records.groups[row]}" if kind == "group" else f"equal {kind}"
                problems.append(f"{records.ids[row]} ({split[row]}) and {records.ids[other]} ({split[other]}): {what}")
                leaking.append(row)
                break
    if problems and not drop:
        raise DataError(
            [f"{problem} in two splits; set protocol.leakage=drop, or mend the groups" for problem in problems]
        )
    if problems:
        logging.warning("protocol: %d rows left out whose group or pixels stand in a later split", len(leaking))
        split = split.copy()
        split[leaking] = ""
    return split


def _check_classes(name: str, records: Records, rows: dict[str, np.ndarray]) -> None:
    problems = []
    wanted = set(np.unique(records.labels).tolist())
    for split, own in rows.items():
        found = set(np.unique(records.labels[own]).tolist())
        if found != wanted and (len(own) or split != "test"):
            problems.append(f"protocol {name}: split {split} has {len(own)} images, of classes {sorted(found)} only; "
                            f"there are {sorted(wanted)}")  # fmt: skip
    # A test of one class is told by evaluation too; training and validation can't do with it.
    if problems:
        raise DataError(problems)
