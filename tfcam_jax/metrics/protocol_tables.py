"""The metrics of the protocol as text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ..report.page import template
from .per_protocol import SUMMARY, summarize_margin
from .tables import columns, decimal, interval, percent, tabulate
from .thresholds import NAMES

_SCORE_NAMES = {"margin": "margin z_1 - z_0 (orders as softmax p_1)", "sigmoid_logit_1": "older score sigmoid(z_1)"}
_MEASURES = {"cc": "CC", "kl": "KL", "nss": "NSS", "iou": "IoU", "energy": "energy", "pointing": "pointing"}


def format_evaluation(evaluation: Mapping[str, Any]) -> str:
    """All tables of `evaluation.evaluate`, with what a reader must know to read them."""
    names, origin, agreement = evaluation["class_names"], evaluation["thresholds_from"], evaluation["map_agreement"]
    shown = {
        "classification": _classification({**evaluation["sets"], **evaluation["domains"]}, names),
        "scores": [_score_tables(evaluation, score) for score in _SCORE_NAMES] if len(names) == 2 else [],
        "origin": origin,
        "agreement": _agreement(agreement),
        "gaps": ", ".join(f"{name} {entry['fooling_gap']:.4f}" for name, entry in agreement.items()),
        "faithfulness": _faithfulness(evaluation["faithfulness"]),
    }
    return template("evaluation.txt", "tfcam_jax.metrics").render(shown).rstrip()


def _classification(sets: Mapping[str, Any], class_names: Sequence[str]) -> str:
    """What the softmax probabilities say, a row per set."""
    share = {"accuracy": "accuracy", "balanced_accuracy": "balanced", "ece": "ECE", "brier": "Brier"}
    counts = [column for i, name in enumerate(class_names) for column in columns(str, {f"classes/{i}": name})]
    shown = [
        *columns(str, {"images": "images", "groups": "groups"}),
        *counts,
        *columns(decimal, {"cross_entropy": "cross-entropy"} | share),
    ]
    return tabulate("Classification", "set", sets.items(), shown).text()


def _score_tables(evaluation: Mapping[str, Any], score: str) -> tuple[str, str, str]:
    """Ranking, thresholds and attack detection of one score; "" for the last two where there is no threshold."""
    names, origin = evaluation["class_names"], evaluation["thresholds_from"]
    all_sets = {**evaluation["sets"], **evaluation["domains"]}
    sets = {name: own["scores"][score] for name, own in all_sets.items() if "auroc" in own["scores"][score]}
    title = f"Score: {_SCORE_NAMES[score]}. Positive (attack): {names[1]}; negative (bona fide): {names[0]}."
    shown = [
        *columns(decimal, {"auroc": "AUROC"}),
        *columns(interval, {"auroc_delong": "DeLong 95 %", "bootstrap/auroc": "group bootstrap 95 %"}),
        *columns(decimal, {"average_precision": "average precision"}),
        *columns(percent, {"eer": "EER %"}),
        *columns(decimal, {"d_prime": "d'"}),
    ]
    ranking = tabulate(title, "set", sets.items(), shown).text()
    if not evaluation["thresholds"] or not sets:
        return ranking, "", ""
    whole = {name: own for name, own in sets.items() if name in evaluation["sets"]}
    return ranking, _at_thresholds(whole, origin), _attack_detection(sets, origin)


def _at_thresholds(sets: Mapping[str, Any], origin: str) -> str:
    title = f"Operating points. Every threshold comes from the validation images ({origin})."
    items = [
        (name, at | {"point": f"{origin} {NAMES[point]}"})
        for name, own in sets.items()
        for point, at in own["at"].items()
    ]
    rates = {"tpr": "TPR %", "fpr": "FPR %", "accuracy": "accuracy %", "balanced_accuracy": "balanced %"}
    shown = columns(str, {"point": "threshold set for"}) + columns(decimal, {"threshold": "threshold"})
    return tabulate(title, "set", items, shown + columns(percent, rates)).text()


def _attack_detection(sets: Mapping[str, Any], origin: str) -> str:
    title = f"Attack detection (ISO/IEC 30107-3), threshold: {origin} EER; type of an attack: its domain."
    fixed = {f"at/fpr_{rate:g}/apcer_max": f"APCER@{100 * rate:g}" for rate in (0.01, 0.05, 0.1)}
    rates = {"at/eer/apcer_pooled": "APCER %", "at/eer/bpcer": "BPCER %", "at/eer/acer": "ACER %"}
    shown = [
        *columns(percent, {"at/eer/apcer_max": "APCER max %"}),
        *columns(lambda name: name or "-", {"at/eer/worst_type": "worst type"}),
        *columns(percent, rates | fixed),
    ]
    return tabulate(title, "set", sets.items(), shown).text()


def _agreement(agreement: Mapping[str, Any]) -> str:
    """Agreement of T, U and D with the human maps, a row per set, resolution and map; "" without human maps."""
    items = [
        (name, entry[resolution][kind] | {"maps": entry["maps"], "resolution": resolution, "map": kind})
        for name, entry in agreement.items()
        if entry["maps"]
        for resolution in ("map", "image")
        for kind in ("T", "U", "D")
    ]
    shown = columns(str, {name: name for name in ("maps", "resolution", "map")}) + columns(decimal, _MEASURES)
    return tabulate("Agreement with human maps", "set", items, shown).text() if items else ""


def _faithfulness(faithfulness: Mapping[str, Any]) -> str:
    """Perturbation curves' areas and the sanity check; "" where they were not asked for."""
    if not faithfulness:
        return ""
    keys = ("deletion", "insertion", "road_most", "road_least", "road_gap", "random_head", "random_weights")
    shown = columns(decimal, {key: key.replace("road", "ROAD").replace("_", " ") for key in keys})
    items = [(name, dict.fromkeys(keys) | faithfulness["maps"][name]) for name in ("T", "|U|", "D", "random")]
    title = f"Faithfulness, {faithfulness['images']} images of {faithfulness['split']}"
    return tabulate(title, "map", items, shown).text()


def format_leave_one_domain_out(study: Mapping[str, Any]) -> str:
    """A row per left-out domain, then mean and deviation."""
    absent = {"bootstrap": None, "auroc_delong": None} | dict.fromkeys(SUMMARY)
    margin = lambda own: own["scores"]["margin"] | summary if (summary := summarize_margin(own)) else {}
    items = [(name, absent | margin(own) | {"images": own["images"]}) for name, own in study["domains"].items()]
    blank = {"images": "", "auroc_delong": "", "bootstrap": {"auroc": ""}}
    items += [(name, blank | study[name]) for name in ("mean", "deviation") if study[name]]
    bounds = lambda pair: pair if pair == "" else interval(pair)
    shown = [
        *columns(str, {"images": "images"}),
        *columns(decimal, {"auroc": "AUROC"}),
        *columns(bounds, {"auroc_delong": "DeLong 95 %", "bootstrap/auroc": "group bootstrap 95 %"}),
        *columns(percent, {"eer": "EER %", "accuracy": "accuracy %", "balanced_accuracy": "balanced %"}),
    ]
    note = "Score: margin. Accuracies: at the equal-error threshold of each run's own validation."
    return f"{tabulate('Leave one domain out', 'left out', items, shown).text()}\n{note}"
