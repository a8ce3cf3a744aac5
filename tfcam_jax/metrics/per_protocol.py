"""The metrics of each set of a test: closed set, open set, domains, and a leave-one-domain-out study."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import scipy
from jaxtyping import Int

from ..data.protocol import split_by_domain, split_by_protocol
from .classification import attack_detection, binary_scores, probability_metrics, ranking_metrics, rates_at
from .intervals import FEW, auroc_intervals, group_numbers, groups_of_classes
from .published_protocol import published_protocol
from .scores import Scores, ScoresError
from .thresholds import choose_thresholds

Thresholds = Mapping[str, Mapping[str, float]]  # of `thresholds.choose_thresholds`
# What a leave-one-domain-out study averages over the domains, of the margin.
SUMMARY = ("auroc", "eer", "accuracy", "balanced_accuracy")


def per_protocol_metrics(scores: Scores, thresholds: Thresholds) -> dict[str, dict[str, Any]]:
    """`set_metrics` of every set of one split: `{"sets": {"all", "closed", "open"}, "domains": {domain: ...}}`.

    Validation and training have no closed and open set, nor has the test of a network that was imported. `thresholds`
    come from validation and may be empty.
    """
    domains = split_by_domain(scores.domains, scores.labels)
    measure = lambda parts: {name: set_metrics(scores[rows], thresholds) for name, rows in parts.items()}
    return {"sets": measure(protocol_sets(scores)), "domains": measure(domains if len(domains) > 1 else {})}


def protocol_sets(scores: Scores) -> dict[str, Int[np.ndarray, " m"]]:
    """Row numbers of the sets of one split: `all`, and of a test `closed` and `open` if the seen domains are known."""
    parts = {"all": np.arange(len(scores))}
    if set(scores.splits) == {"test"} and None not in scores.seen:
        parts |= split_by_protocol(scores.seen_domains(), scores.domains, scores.labels)
    return parts


def set_metrics(scores: Scores, thresholds: Thresholds) -> dict[str, Any]:
    """Every metric of one set of images.

    `images`, `groups`, `classes` (images of each class index), `few` (a class has fewer than `FEW` groups),
    `probability_metrics`, and for two classes `scores`: for the margin and for the older score `ranking_metrics`, the
    interval of the AUROC after DeLong, from the group bootstrap (with those of accuracy and balanced accuracy, at the
    threshold of equal errors on validation) and after Newcombe for as many examples as there are groups, and under `at`
    for each threshold `rates_at` and `attack_detection`. Metrics that need both classes are absent where one is. Apart
    from these stands `published`, `published_protocol` of the softmax probability of class 1.
    """
    metrics: dict[str, Any] = {
        "images": len(scores),
        "groups": len(np.unique(group_numbers(scores.groups))),
        "classes": np.bincount(scores.labels, minlength=scores.logits.shape[-1]).tolist(),
        "few": min(groups_of_classes(scores.labels, scores.groups, scores.logits.shape[-1])) < FEW,
        **probability_metrics(scores.labels, scores.logits),
    }
    if scores.logits.shape[-1] == 2:
        metrics["scores"] = {
            name: _score_metrics(scores, score, thresholds.get(name, {}))
            for name, score in binary_scores(scores.logits).items()
        }
        attack = scipy.special.softmax(np.asarray(scores.logits, np.float64), axis=-1)[:, 1]
        metrics["published"] = published_protocol(scores.labels, attack, scores.domains, scores.groups)
    return metrics


def _score_metrics(scores: Scores, score: np.ndarray, thresholds: Mapping[str, float]) -> dict[str, Any]:
    labels, metrics = scores.labels, {}
    if len(np.unique(labels)) == 2:
        as_list = lambda bounds: bounds and list(bounds)  # what JSON gives back
        called = score >= thresholds["eer"] if thresholds else scores.logits.argmax(-1) == 1
        found = auroc_intervals(labels, score, called == (labels == 1), scores.groups)
        metrics = ranking_metrics(labels, score) | {
            "auroc_delong": as_list(found.delong),
            "bootstrap": {name: as_list(pair) for name, pair in found.bootstrap.items()},
            "auroc_newcombe": as_list(found.newcombe),
        }
    metrics["at"] = {
        name: rates_at(labels, score, threshold)
        | attack_detection(labels, score, scores.domains, threshold)
        | {"threshold": threshold}
        for name, threshold in thresholds.items()
    }
    return metrics


def leave_one_domain_out(tables: Sequence[Scores]) -> dict[str, Any]:
    """Merges the runs of a study in which each left other domains out of training.

    Every run's thresholds come from its own validation images. Its test images of domains that it never saw are
    the test of those domains (with all its test images of a class that the domain lacks).

    Returns:
      `{"domains": {domain: metrics}, "mean": {...}, "deviation": {...}}`: see `set_metrics`; a domain that several
      runs left out appears once for each, numbered. Mean and sample deviation over the rows are of AUROC, EER,
      accuracy and balanced accuracy (at validation's equal-error threshold) of the margin.

    Raises:
      ScoresError: a table without validation or test images, or whose test holds no unseen domain, or of which nobody
        knows the domains that were seen.
    """
    domains: dict[str, Any] = {}
    for number, table in enumerate(tables, start=1):
        if None in table.seen:
            raise ScoresError(f"table {number} is of an imported network: nobody knows which domains it has seen")
        val, test = (table[np.flatnonzero(np.asarray(table.splits) == split)] for split in ("val", "test"))
        for split, part in (("val", val), ("test", test)):
            if not len(part):
                raise ScoresError(f"table {number} has no image of split {split}; evaluate that run without --split")
        thresholds = choose_thresholds(val.splits, val.labels, val.logits)
        unseen = {domain for domain in test.domains if domain} - set(test.seen_domains())
        if not unseen:
            raise ScoresError(f"table {number}: its run saw every domain of its test; it left none out")
        for domain, members in split_by_domain(test.domains, test.labels).items():
            if domain in unseen:
                name = domain if domain not in domains else f"{domain} (table {number})"
                domains[name] = set_metrics(test[members], thresholds)
    summaries = [summary for summary in map(summarize_margin, domains.values()) if summary]
    over = lambda statistic: {key: float(statistic([summary[key] for summary in summaries])) for key in SUMMARY}
    deviation = over(lambda values: np.std(values, ddof=1)) if len(summaries) > 1 else {}
    return {"domains": domains, "mean": over(np.mean) if summaries else {}, "deviation": deviation}


def summarize_margin(metrics: Mapping[str, Any]) -> dict[str, float]:
    """`SUMMARY` of `set_metrics`, accuracies at validation's equal-error threshold; {} where a class is absent."""
    margin = metrics.get("scores", {}).get("margin", {})
    if "auroc" not in margin or not margin["at"]:
        return {}
    at_equal_errors = {key: margin["at"]["eer"][key] for key in ("accuracy", "balanced_accuracy")}
    return {"auroc": margin["auroc"], "eer": margin["eer"]} | at_equal_errors
