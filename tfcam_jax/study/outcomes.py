"""What the runs of a comparison study found: one outcome per run and set, read from their workdirs."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int
from scipy.special import softmax

from ..data.protocol import split_by_protocol
from ..metrics.classification import BETTER
from ..metrics.scores import read_scores
from ..run.files import write_json


class Entry(NamedTuple):
    """One run of a study: what it is, and its folder below the study's.

    Attributes:
      folder: name of the run's workdir.
      arm: a strategy, or one of its variants or controls: "difference", "cyborg_mean_map", "cross_entropy".
      alpha: guidance weight, total = alpha * cross-entropy + (1 - alpha) * guidance; None without guidance.
      protocol: a name of `protocol.PROTOCOLS`.
      fold: "" where the protocol has one; else the number of the fold, or the domain left out.
      seed: of weights, batches and augmentation.
    """

    folder: str
    arm: str
    alpha: float | None
    protocol: str
    fold: str
    seed: int


class Outcome(NamedTuple):
    """One run's figures on one set.

    Attributes:
      arm, alpha, protocol, fold, seed: as in `Entry`; alpha is the one chosen on validation.
      set: "closed" or "open", sets of the test; "val", on which epoch and alpha were chosen and which tests nothing.
      ids: of the images; equal in all runs of a protocol and fold.
      groups: what must not be torn apart; "" if unknown.
      labels: class index.
      score: softmax probability of class 1, in [0, 1].
      figures: auroc, accuracy, cross_entropy; cc_true, cc_false, cc_difference (mean correlation of T, U and T - U with
        the human maps); fooling_gap (`faithfulness.fooling_gap`). None where there is none, as without human maps.
    """

    arm: str
    alpha: float | None
    protocol: str
    fold: str
    seed: int
    set: str
    ids: tuple[str, ...]
    groups: tuple[str, ...]
    labels: Int[np.ndarray, " n"]
    score: Float[np.ndarray, " n"]
    figures: dict[str, float | None]


def write_entries(workdir: Path, entries: Sequence[Entry], select_by: str) -> None:
    """Writes `runs.json`: which runs the study has. Not whether they are finished: that their `results.json` says."""
    write_json(workdir / "runs.json", {"select_by": select_by, "runs": [entry._asdict() for entry in entries]})


def read_entries(workdir: Path) -> tuple[list[Entry], str]:
    """The runs of a study, and the validation figure that selects."""
    stored = json.loads((workdir / "runs.json").read_text(encoding="utf-8"))
    return [Entry(**entry) for entry in stored["runs"]], stored["select_by"]


def read_outcomes(workdir: str | Path) -> list[Outcome]:
    """Outcomes of the finished runs at their arm's chosen alpha, in the order of the plan, each run's sets in order."""
    workdir = Path(workdir)
    entries, _ = read_entries(workdir)
    chosen = {
        (arm, protocol): entry["chosen"]
        for protocol, arms in read_selection(workdir).items()
        for arm, entry in arms.items()
    }
    finished = [entry for entry in entries if (workdir / entry.folder / "results.json").is_file()]
    return [
        outcome
        for entry in finished
        if entry.alpha == chosen[entry.arm, entry.protocol]
        for outcome in _run_outcomes(workdir, entry)
    ]


def read_selection(workdir: str | Path) -> dict[str, dict[str, Any]]:
    """The choice of alpha on validation, from the finished runs of a study.

    The alpha with the best mean validation figure over seeds and folds is taken, the larger one on ties. One whose runs
    did not all end well (a loss that became NaN) comes after those with more finished runs.

    Returns:
      `{protocol: {arm: {"chosen": alpha, "select_by": name, "alphas": [{"alpha", "runs", "validation", "test"}]}}}`,
      JSON-able. `alphas` is in ascending order, one entry for each alpha with finished runs (a single one, None, for an
      arm without guidance): how many, their mean validation figure, and `test`, `{set: {figure: mean over the runs}}`
      with the figures of `Outcome`. The test figures of alphas that were not chosen took no part in the choice and are
      exploration. An arm without a finished run is absent.
    """
    workdir = Path(workdir)
    entries, select_by = read_entries(workdir)
    found: dict[str, dict[str, dict[float | None, list[dict[str, Any]]]]] = {}
    for entry in entries:
        path = workdir / entry.folder / "results.json"
        if path.is_file():
            sets = json.loads(path.read_text(encoding="utf-8"))["sets"]
            by_alpha = found.setdefault(entry.protocol, {}).setdefault(entry.arm, {})
            by_alpha.setdefault(entry.alpha, []).append({name: outcome_figures(own) for name, own in sets.items()})
    return {
        protocol: {arm: _choose(by_alpha, select_by) for arm, by_alpha in arms.items()}
        for protocol, arms in found.items()
    }


def outcome_figures(entry: dict[str, Any]) -> dict[str, float | None]:
    """The figures of `Outcome` from one set's entry in `results.json`."""
    agreement = {f"cc_{name}": entry["map_agreement"][name] for name in ("true", "false", "difference")}
    return {name: entry[name] for name in ("auroc", "accuracy", "cross_entropy", "fooling_gap")} | agreement


def _choose(by_alpha: dict[float | None, list[dict[str, Any]]], select_by: str) -> dict[str, Any]:
    alphas = []
    for alpha in sorted(by_alpha, key=lambda value: -1.0 if value is None else value):
        runs = by_alpha[alpha]
        values = [run["val"][select_by] for run in runs]
        test = {
            name: _means([run[name] for run in runs if name in run]) for run in runs for name in run if name != "val"
        }
        alphas.append({"alpha": alpha, "runs": len(runs), "validation": float(np.mean(values)), "test": test})
    best = max(
        alphas, key=lambda entry: (entry["runs"], BETTER[select_by] * entry["validation"], entry["alpha"] or 0.0)
    )
    return {"chosen": best["alpha"], "select_by": select_by, "alphas": alphas}


def _means(figures: list[dict[str, float | None]]) -> dict[str, float | None]:
    known = defaultdict(list)
    for name, value in ((name, value) for entry in figures for name, value in entry.items()):
        known[name] += [] if value is None else [value]
    return {name: float(np.mean(values)) if values else None for name, values in known.items()}


def _run_outcomes(workdir: Path, entry: Entry) -> list[Outcome]:
    figures = json.loads((workdir / entry.folder / "results.json").read_text(encoding="utf-8"))["sets"]
    scores, _ = read_scores(workdir / entry.folder / "scores.csv")
    splits = np.asarray(scores.splits)
    test = np.flatnonzero(splits == "test")
    seen = sorted({domain for domain, known in zip(scores.domains, scores.seen, strict=True) if known})
    rows = {"val": np.flatnonzero(splits == "val")}
    if len(test):
        domains = [scores.domains[row] for row in test]
        rows |= {name: test[own] for name, own in split_by_protocol(seen, domains, scores.labels[test]).items()}
    probability = softmax(np.asarray(scores.logits, np.float64), axis=-1)[:, 1]
    return [
        Outcome(
            **{name: value for name, value in entry._asdict().items() if name != "folder"},
            set=name,
            ids=scores[own].ids,
            groups=scores[own].groups,
            labels=scores.labels[own],
            score=probability[own],
            figures=outcome_figures(figures[name]),
        )
        for name, own in rows.items()
    ]
