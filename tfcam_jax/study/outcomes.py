"""What the runs of a comparison study found: one outcome per run and set, read from their workdirs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
from absl import logging
from jaxtyping import Float, Int
from scipy.special import softmax

from ..data.protocol import split_by_domain, split_by_protocol
from ..data.source import shorten
from ..metrics.classification import BETTER, classification
from ..metrics.scores import Scores, read_scores
from ..run.files import read_json, write_json

# What `evaluation.describe_set` did not measure in the first runs of this format.
_LATER = ("positive_inside", "above_outside", "shared_variance")


class Entry(NamedTuple):
    """One run of a study: what it is, and the name of its workdir below the study's."""

    folder: str
    arm: str  # a strategy, or one of its variants or controls: "difference", "cyborg_mean_map", "cross_entropy"
    alpha: float | None  # total = alpha * cross-entropy + (1 - alpha) * guidance; None without guidance, or loss_share
    protocol: str  # a name of `protocol.PROTOCOLS`
    fold: str  # "" where the protocol has one; else the number of the fold, or the domain left out
    seed: int  # of weights, batches and augmentation


class Outcome(NamedTuple):
    """What one run reached on one set; the first five fields as in `Entry`.

    `set` is "closed" or "open", sets of the test, or "val", on which epoch and alpha were chosen and which tests
    nothing. `metrics` are auroc, accuracy, cross_entropy; cc_true, cc_false, cc_difference (mean correlation of T, U
    and T - U with the human maps); positive_inside, above_outside, fooling_gap and shared_variance, means of what
    `agreement` has under these names: None where there is none, as without maps, or in runs of before it was measured.
    `by_domain` has the AUROC of each of several domains of a test of two classes (`protocol.split_by_domain`).
    """

    arm: str
    alpha: float | None
    protocol: str
    fold: str
    seed: int
    set: str
    ids: tuple[str, ...]  # of the images; equal in all runs of a protocol and fold
    groups: tuple[str, ...]  # what must not be torn apart; "" if unknown
    labels: Int[np.ndarray, " n"]  # class index
    score: Float[np.ndarray, " n"]  # softmax probability of class 1, in [0, 1]
    metrics: dict[str, float | None]
    by_domain: Mapping[str, float] = MappingProxyType({})


def write_entries(workdir: Path, entries: Sequence[Entry], select_by: str) -> None:
    """Writes `runs.json`: which runs the study has. Not whether they are finished: that their `results.json` says.

    Runs that it had before and has no more are told: their folders stay, and no table has them.
    """
    path, folders = workdir / "runs.json", {entry.folder for entry in entries}
    before = [entry["folder"] for entry in read_json(path)["runs"]] if path.is_file() else []
    if gone := [folder for folder in before if folder not in folders]:
        logging.warning(
            "%s: %d runs of before are not asked for now, and are left out of all tables (%s); their folders stay.",
            *(workdir, len(gone), ", ".join(shorten(gone, 3))),
        )
    write_json(path, {"select_by": select_by, "runs": [entry._asdict() for entry in entries]})


def read_outcomes(workdir: str | Path) -> list[Outcome]:
    """Outcomes of the finished runs at their arm's chosen alpha, in the order of the plan, each run's sets in order."""
    workdir, chosen = Path(workdir), read_selection(workdir)
    return [
        outcome
        for entry, sets in _finished(workdir)
        if entry.alpha == chosen[entry.protocol][entry.arm]["chosen"]
        for outcome in _run_outcomes(workdir, entry, sets)
    ]


def _finished(workdir: Path) -> Iterator[tuple[Entry, dict[str, Any]]]:
    """The finished runs of a study and the metrics of each run's sets, as `results.json` has them."""
    for entry in (Entry(**entry) for entry in read_json(workdir / "runs.json")["runs"]):
        path = workdir / entry.folder / "results.json"
        if path.is_file():
            yield entry, read_json(path)["sets"]


def read_selection(workdir: str | Path) -> dict[str, dict[str, Any]]:
    """The choice of alpha on validation, from the finished runs of a study.

    The alpha with the best mean validation metric over seeds and folds is taken, the larger one on ties. One whose runs
    did not all end well (a loss that became NaN) comes after those with more finished runs.

    Returns:
      `{protocol: {arm: {"chosen": alpha, "select_by": name, "alphas": [{"alpha", "runs", "validation", "test"}]}}}`,
      JSON-able, without arms that have no finished run. `alphas` ascend (a single one, None, for an arm without
      guidance): the number of runs, their mean validation metric, and `test`, `{set: {metric: mean over the runs}}`
      with the metrics of `Outcome`: of an alpha that was not chosen it took no part in the choice and is exploration.
    """
    select_by = read_json(Path(workdir) / "runs.json")["select_by"]
    found: dict[str, dict[str, dict[float | None, list[dict[str, Any]]]]] = {}
    for entry, sets in _finished(Path(workdir)):
        by_alpha = found.setdefault(entry.protocol, {}).setdefault(entry.arm, {})
        by_alpha.setdefault(entry.alpha, []).append({name: _metrics(own) for name, own in sets.items()})
    return {
        protocol: {arm: _choose(by_alpha, select_by) for arm, by_alpha in arms.items()}
        for protocol, arms in found.items()
    }


def _metrics(entry: dict[str, Any]) -> dict[str, float | None]:
    """The metrics of `Outcome` from one set's entry in `results.json`."""
    agreement = {f"cc_{name}": entry["map_agreement"][name] for name in ("true", "false", "difference")}
    found = {name: entry[name] for name in ("auroc", "accuracy", "cross_entropy", "fooling_gap")} | agreement
    return found | {name: entry.get(name) for name in _LATER}


def _choose(by_alpha: dict[float | None, list[dict[str, Any]]], select_by: str) -> dict[str, Any]:
    alphas = []
    for alpha in sorted(by_alpha, key=lambda value: -1.0 if value is None else value):
        runs = by_alpha[alpha]
        values = [run["val"][select_by] for run in runs]
        tested = dict.fromkeys(name for run in runs for name in run if name != "val")
        test = {name: _means([run[name] for run in runs if name in run]) for name in tested}
        alphas.append({"alpha": alpha, "runs": len(runs), "validation": float(np.mean(values)), "test": test})
    best = max(
        alphas, key=lambda entry: (entry["runs"], BETTER[select_by] * entry["validation"], entry["alpha"] or 0.0)
    )
    return {"chosen": best["alpha"], "select_by": select_by, "alphas": alphas}


def _means(runs: list[dict[str, float | None]]) -> dict[str, float | None]:
    known = {name: [value for run in runs if (value := run[name]) is not None] for name in runs[0]}
    return {name: float(np.mean(values)) if values else None for name, values in known.items()}


def _run_outcomes(workdir: Path, entry: Entry, sets: dict[str, Any]) -> list[Outcome]:
    scores, _ = read_scores(workdir / entry.folder / "scores.csv")
    splits = np.asarray(scores.splits)
    test = np.flatnonzero(splits == "test")
    parts = split_by_protocol(scores.seen_domains(), scores[test].domains, scores.labels[test])
    rows = {"val": np.flatnonzero(splits == "val")} | {name: test[own] for name, own in parts.items()}
    probability = softmax(np.asarray(scores.logits, np.float64), axis=-1)[:, 1]
    return [
        Outcome(
            *entry[1:],
            set=name,
            ids=scores[own].ids,
            groups=scores[own].groups,
            labels=scores.labels[own],
            score=probability[own],
            metrics=_metrics(sets[name]),
            by_domain={} if name == "val" else _by_domain(scores[own]),
        )
        for name, own in rows.items()
    ]


def _by_domain(scores: Scores) -> dict[str, float]:
    if scores.logits.shape[-1] != 2:
        return {}
    parts = split_by_domain(scores.domains, scores.labels)
    # One that makes up the whole set, as that of the only normal images does, would but repeat its figure.
    parts = {name: rows for name, rows in parts.items() if len(rows) < len(scores)}
    areas = {name: classification(scores.labels[rows], scores.logits[rows])["auroc"] for name, rows in parts.items()}
    found = {name: area for name, area in areas.items() if area is not None}
    return found if len(found) > 1 else {}
