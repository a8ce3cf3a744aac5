"""The figures of each set of a test: closed set, open set, domains, and a leave-one-domain-out study."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Int

from ..data.protocol import split_by_domain, split_by_protocol
from .attack_detection import attack_detection
from .classification import binary_scores, probability_figures, ranking_figures, rates_at
from .intervals import delong_interval, group_bootstrap, group_numbers
from .scores import Scores, ScoresError
from .thresholds import choose_thresholds

Thresholds = Mapping[str, Mapping[str, float]]  # of `operating_points.choose_thresholds`


def protocol_figures(scores: Scores, thresholds: Thresholds, seed: int = 0) -> dict[str, dict[str, Any]]:
    """Figures of every set of one split.

    Args:
      scores: of one split.
      thresholds: from validation; may be empty.
      seed: of the bootstrap.

    Returns:
      `{"sets": {"all": ..., "closed": ..., "open": ...}, "domains": {domain: ...}}`, see `set_figures`. For the
      validation split and for training there is "all" alone, as they have no closed and open set.
    """
    of = lambda rows: set_figures(scores[rows], thresholds, seed)
    domains = split_by_domain(scores.domains, scores.labels)
    return {
        "sets": {name: of(rows) for name, rows in protocol_sets(scores).items()},
        "domains": {name: of(rows) for name, rows in domains.items()} if len(domains) > 1 else {},
    }


def protocol_sets(scores: Scores) -> dict[str, Int[np.ndarray, " m"]]:
    """Row numbers of the sets of one split: `all`, and of a test `closed` and `open`."""
    parts = {"all": np.arange(len(scores))}
    if set(scores.splits) == {"test"}:
        seen = sorted({domain for domain, known in zip(scores.domains, scores.seen, strict=True) if known})
        parts |= split_by_protocol(seen, scores.domains, scores.labels)
    return parts


def set_figures(scores: Scores, thresholds: Thresholds, seed: int = 0) -> dict[str, Any]:
    """Every figure of one set of images.

    Returns:
      `images`, `groups`, `classes` (images of each class index), the figures of `probability_figures`, and for two
      classes `scores`: for the margin and for the older score those of `ranking_figures`, the interval of the AUROC
      after DeLong and from the group bootstrap (with those of accuracy and balanced accuracy, at the threshold of
      equal errors on validation), and under `at` for each threshold `rates_at` and `attack_detection`. Figures that
      need both classes are absent where one is.
    """
    labels = scores.labels
    figures = {
        "images": len(scores),
        "groups": len(np.unique(group_numbers(scores.groups))),
        "classes": np.bincount(labels, minlength=scores.logits.shape[-1]).tolist(),
        **probability_figures(labels, scores.logits),
    }
    if scores.logits.shape[-1] != 2:
        return figures
    figures["scores"] = {
        name: _score_figures(scores, score, thresholds.get(name, {}), seed)
        for name, score in binary_scores(scores.logits).items()
    }
    return figures


def _score_figures(scores: Scores, score: np.ndarray, thresholds: Mapping[str, float], seed: int) -> dict[str, Any]:
    labels, figures = scores.labels, {}
    if len(np.unique(labels)) == 2:
        figures |= ranking_figures(labels, score)
        as_list = lambda bounds: bounds and list(bounds)  # what JSON gives back
        figures["auroc_delong"] = as_list(delong_interval(labels, score))
        called = score >= thresholds["eer"] if thresholds else scores.logits.argmax(-1) == 1
        correct = (called == (labels == 1)).astype(np.float64)
        bounds = group_bootstrap(labels, score, correct, scores.groups, seed=seed)
        figures["bootstrap"] = {name: as_list(pair) for name, pair in bounds.items()}
    figures["at"] = {
        name: rates_at(labels, score, threshold)
        | attack_detection(labels, score, scores.domains, threshold)
        | {"threshold": threshold}
        for name, threshold in thresholds.items()
    }
    return figures


def leave_one_domain_out(tables: Sequence[Scores], seed: int = 0) -> dict[str, Any]:
    """Merges the runs of a study in which each left other domains out of training.

    Every run's thresholds come from its own validation images. Its test images of domains that it never saw are
    the test of those domains (with all its test images of a class that the domain lacks).

    Returns:
      `{"domains": {domain: figures}, "mean": {...}, "deviation": {...}}`: see `set_figures`; a domain that several
      runs left out appears once for each, numbered. Mean and sample deviation over the rows are of AUROC, EER,
      accuracy and balanced accuracy (at validation's equal-error threshold) of the margin.

    Raises:
      ScoresError: a table without validation or test images, or whose test holds no unseen domain.
    """
    domains: dict[str, Any] = {}
    for number, table in enumerate(tables, start=1):
        rows = {split: np.flatnonzero(np.asarray(table.splits) == split) for split in ("val", "test")}
        empty = [split for split, members in rows.items() if not len(members)]
        if empty:
            raise ScoresError(f"table {number} has no image of split {empty[0]}; evaluate that run without --split")
        val, test = table[rows["val"]], table[rows["test"]]
        thresholds = choose_thresholds(val.splits, val.labels, val.logits)
        unseen = {domain for domain, seen in zip(test.domains, test.seen, strict=True) if not seen and domain}
        if not unseen:
            raise ScoresError(f"table {number}: its run saw every domain of its test; it left none out")
        for domain, members in split_by_domain(test.domains, test.labels).items():
            if domain in unseen:
                name = domain if domain not in domains else f"{domain} (table {number})"
                domains[name] = set_figures(test[members], thresholds, seed)
    summary = [values for values in map(_summary, domains.values()) if values]
    over = lambda statistic: {
        key: float(statistic([values[key] for values in summary])) for key in (summary[0] if summary else {})
    }
    deviation = over(lambda values: np.std(values, ddof=1)) if len(summary) > 1 else {}
    return {"domains": domains, "mean": over(np.mean), "deviation": deviation}


def _summary(figures: dict[str, Any]) -> dict[str, float]:
    margin = figures.get("scores", {}).get("margin", {})
    if "auroc" not in margin or not margin["at"]:
        return {}
    at = margin["at"]["eer"]
    return {key: margin[key] for key in ("auroc", "eer")} | {key: at[key] for key in ("accuracy", "balanced_accuracy")}
