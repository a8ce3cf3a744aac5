"""The metrics of the protocol as text."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

from ..report.page import template
from .intervals import FEW
from .per_protocol import SUMMARY, summarize_margin
from .published_protocol import format_published
from .tables import Table, columns, decimal, interval, percent, tabulate
from .thresholds import NAMES

_SCORE_NAMES = {"margin": "margin z_1 - z_0 (orders as softmax p_1)", "sigmoid_logit_1": "older score sigmoid(z_1)"}
_FAITHFULNESS_ON_SCREEN = ("deletion", "insertion", "road_gap", "random_head", "random_weights")
_FAITHFULNESS = ("deletion", "insertion", "road_most", "road_least", *_FAITHFULNESS_ON_SCREEN[2:])
_DOMAINS_ON_SCREEN = 6
_ON_TESTED = "The thresholds were chosen on these very images: what is measured at a threshold is too good."
_INTERVALS = {
    "auroc_delong": "DeLong 95 %",
    "bootstrap/auroc": "group bootstrap 95 %",
    "auroc_newcombe": "Newcombe 95 %",
}
_MEASURES = {"cc": "CC", "kl": "KL", "nss": "NSS", "iou": "IoU", "energy": "energy", "pointing": "pointing"}


def format_evaluation(evaluation: Mapping[str, Any]) -> str:
    """All tables of `evaluation.evaluate`, with what a reader must know to read them."""
    names, origin, agreement = evaluation["class_names"], evaluation["thresholds_from"], evaluation["map_agreement"]
    shown = {
        "about": _about(evaluation),
        "classification": _classification({**evaluation["sets"], **evaluation["domains"]}, names).text(),
        "scores": [_score_tables(evaluation, score) for score in _SCORE_NAMES] if len(names) == 2 else [],
        "origin": origin,
        "marks": explain_star(evaluation),
        "on_tested": _ON_TESTED if evaluation["thresholds_on_tested"] else "",
        "no_thresholds": _no_thresholds(evaluation),
        "attack_detection": evaluation["attack_detection"],
        "published": _published(evaluation),
        "agreement": _agreement(agreement),
        "maps": tabulate_maps(agreement).text(),
        "faithfulness": _faithfulness(evaluation["faithfulness"], _FAITHFULNESS),
    }
    return template("evaluation.txt", "tfcam_jax.metrics").render(shown).rstrip()


def format_screen(evaluation: Mapping[str, Any]) -> str:
    """What of `format_evaluation` fits a screen: sets and the first domains at one threshold, and the maps' figures."""
    names, domains = evaluation["class_names"], evaluation["domains"]
    # A domain that makes up a whole set, by itself, would only repeat its row.
    told = list(evaluation["sets"].values())
    domains = {name: own for name, own in domains.items() if own not in told}
    first = dict(itertools.islice(domains.items(), _DOMAINS_ON_SCREEN))
    rows = evaluation["sets"] | {f"domain {name}": own for name, own in first.items()}
    shown = {
        "about": _about(evaluation),
        "sets": tabulate_sets(rows, names, bool(evaluation["thresholds"])).text(),
        "no_thresholds": "" if evaluation["thresholds"] or len(names) != 2 else _no_thresholds(evaluation),
        "hidden": len(domains) - len(first),
        "binary": len(names) == 2,
        "marks": explain_star(evaluation),
        "on_tested": _ON_TESTED if evaluation["thresholds_on_tested"] else "",
        "attacks": _attacks_on_screen(evaluation),
        "maps": tabulate_maps(evaluation["map_agreement"]).text(),
        "human": any(entry["maps"] for entry in evaluation["map_agreement"].values()),
        "faithfulness": _faithfulness(evaluation["faithfulness"], _FAITHFULNESS_ON_SCREEN),
    }
    return template("evaluation_screen.txt", "tfcam_jax.metrics").render(shown).rstrip()


def _about(evaluation: Mapping[str, Any]) -> str:
    names = ", ".join(evaluation["class_names"])
    classes = f"Positive: {evaluation['class_names'][1]}; negative: {evaluation['class_names'][0]}."
    classes = classes if len(evaluation["class_names"]) == 2 else f"Classes: {names}."
    return f"Checkpoint of epoch {evaluation['epoch']} on {evaluation['split']} of {evaluation['data']}. {classes}"


def _no_thresholds(evaluation: Mapping[str, Any]) -> str:
    lacking = (
        "validation or the set lacks a class" if evaluation["thresholds_from"] else "there are no validation images"
    )
    return f"No figures at a threshold: {lacking}."


def explain_star(evaluation: Mapping[str, Any]) -> str:
    """What the star after a set's name in `tabulate_sets` means; "" where no row has one."""
    starred = any(own["few"] for own in (*evaluation["sets"].values(), *evaluation["domains"].values()))
    return f"*: fewer than {FEW} groups of a class; there and for an AUROC of 0 or 1, Newcombe's." if starred else ""


def _starred(sets: Mapping[str, Any]) -> dict[str, Any]:
    return {f"{name} *" if own["few"] else name: own for name, own in sets.items()}


def tabulate_sets(sets: Mapping[str, Any], class_names: Sequence[str], at_thresholds: bool = True) -> Table:
    """A row for each set of `per_protocol_metrics`, with the number of images of each class."""
    if len(class_names) == 2:
        return _binary_sets(sets, class_names, at_thresholds)
    return _classification(sets, class_names)


def _binary_sets(sets: Mapping[str, Any], class_names: Sequence[str], at_thresholds: bool) -> Table:
    """One row a set: the margin's AUROC with the interval to trust, and what its threshold of equal errors gives.

    Without thresholds: what the larger logit gives.
    """
    absent = {"auroc": None, "eer": None, "interval": None}
    items = [
        (
            name,
            own | absent | own["scores"]["margin"] | _interval(own) | (_at_equal_errors(own) if at_thresholds else {}),
        )
        for name, own in _starred(sets).items()
    ]
    shown = [
        *columns(str, {"images": "images"}),
        *(column for i, name in enumerate(class_names) for column in columns(str, {f"classes/{i}": name})),
        *columns(decimal, {"auroc": "AUROC"}),
        *columns(interval, {"interval": "95 %"}),
        *columns(percent, {"eer": "EER %", "accuracy": "accuracy %", "balanced_accuracy": "balanced %"}),
        *columns(decimal, {"ece": "ECE"}),
    ]
    point = "at the threshold where validation has equal errors" if at_thresholds else "of the larger logit"
    title = f"Sets. EER: of the set itself; accuracies: {point}."
    return tabulate(title, "set", items, shown)


def _interval(own: Mapping[str, Any]) -> dict[str, Any]:
    margin = own["scores"]["margin"]
    if "auroc" not in margin:
        return {}
    return {
        "interval": margin["auroc_newcombe"] if own["few"] else margin["bootstrap"]["auroc"] or margin["auroc_newcombe"]
    }


def _at_equal_errors(own: Mapping[str, Any]) -> dict[str, Any]:
    rates = own["scores"]["margin"]["at"].get("eer", {})
    return {key: rates.get(key) for key in ("accuracy", "balanced_accuracy")}


def _attacks_on_screen(evaluation: Mapping[str, Any]) -> str:
    sets = {name: own["scores"]["margin"] for name, own in evaluation["sets"].items() if "scores" in own}
    if not evaluation["attack_detection"]["shown"] or not evaluation["thresholds"]:
        return ""
    return _attack_detection(sets, evaluation["thresholds_from"])


def tabulate_maps(agreement: Mapping[str, Any]) -> Table:
    """A row for each set of `evaluation.agreement_of_sets`: correlations with human maps, D inside them, the fooling
    gap, and the share of variance that T and U have in common."""
    items = [(name, entry | entry["map"]) for name, entry in agreement.items()]
    human = columns(str, {"maps": "human maps"})
    if any(entry["maps"] for entry in agreement.values()):
        human += columns(decimal, {f"{kind}/cc": f"CC {kind}" for kind in ("T", "U", "D")})
        human += columns(decimal, {"positive_inside": "D inside > 0", "above_outside": "D in - out"})
    both = columns(decimal, {"fooling_gap": "fooling gap", "shared_variance": "shared var."})
    return tabulate("Maps of the model", "set", items, human + both)


def _classification(sets: Mapping[str, Any], class_names: Sequence[str]) -> Table:
    """What the softmax probabilities say, a row per set."""
    area = {"auroc": "AUROC"} if len(class_names) > 2 else {}  # two classes have tables of their own for it
    share = area | {"accuracy": "accuracy", "balanced_accuracy": "balanced", "ece": "ECE", "brier": "Brier"}
    counts = [column for i, name in enumerate(class_names) for column in columns(str, {f"classes/{i}": name})]
    shown = [
        *columns(str, {"images": "images", "groups": "groups"}),
        *counts,
        *columns(decimal, {"cross_entropy": "cross-entropy"} | share),
    ]
    return tabulate("Classification", "set", sets.items(), shown)


def _score_tables(evaluation: Mapping[str, Any], score: str) -> tuple[str, str, str]:
    """Ranking, thresholds and, where asked for, attack detection of one score; "" where there is no threshold."""
    origin, attack_detection = evaluation["thresholds_from"], evaluation["attack_detection"]["shown"]
    all_sets = {**evaluation["sets"], **evaluation["domains"]}
    of_score = lambda sets: {
        name: own["scores"][score] for name, own in sets.items() if "auroc" in own["scores"][score]
    }
    sets = of_score(all_sets)
    roles = [f"{name} ({role})" if attack_detection else name for name, role in _roles(evaluation["class_names"])]
    title = f"Score: {_SCORE_NAMES[score]}. Positive: {roles[1]}; negative: {roles[0]}."
    shown = [
        *columns(decimal, {"auroc": "AUROC"}),
        *columns(interval, _INTERVALS),
        *columns(decimal, {"average_precision": "average precision"}),
        *columns(percent, {"eer": "EER %"}),
        *columns(decimal, {"d_prime": "d'"}),
    ]
    ranking = tabulate(title, "set", of_score(_starred(all_sets)).items(), shown).text()
    if not evaluation["thresholds"] or not sets:
        return ranking, "", ""
    whole = {name: own for name, own in sets.items() if name in evaluation["sets"]}
    attacks = _attack_detection(sets, origin) if attack_detection else ""
    return ranking, _at_thresholds(whole, origin), attacks


def _roles(class_names: Sequence[str]) -> list[tuple[str, str]]:
    return list(zip(class_names, ("bona fide", "attack"), strict=True))


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


def _published(evaluation: Mapping[str, Any]) -> str:
    sets = {name: own["published"] for name, own in evaluation["sets"].items() if "published" in own}
    return format_published(sets) if evaluation["attack_detection"]["shown"] else ""


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


def _faithfulness(faithfulness: Mapping[str, Any], keys: Sequence[str]) -> str:
    """Perturbation curves' areas and the sanity check; "" where they were not asked for."""
    if not faithfulness:
        return ""
    shown = columns(decimal, {key: key.replace("road", "ROAD").replace("_", " ") for key in keys})
    items = [(name, dict.fromkeys(keys) | faithfulness["maps"][name]) for name in ("T", "|U|", "D", "random")]
    title = f"Faithfulness, {faithfulness['images']} images of {faithfulness['split']}"
    return tabulate(title, "map", items, shown).text()


def format_leave_one_domain_out(study: Mapping[str, Any]) -> str:
    """A row per left-out domain, then mean and deviation."""
    absent = {"bootstrap": None, "auroc_delong": None, "auroc_newcombe": None} | dict.fromkeys(SUMMARY)
    margin = lambda own: own["scores"]["margin"] | summary if (summary := summarize_margin(own)) else {}
    items = [(name, absent | margin(own) | {"images": own["images"]}) for name, own in study["domains"].items()]
    blank = {"images": "", "auroc_delong": "", "auroc_newcombe": "", "bootstrap": {"auroc": ""}}
    items += [(name, blank | study[name]) for name in ("mean", "deviation") if study[name]]
    bounds = lambda pair: pair if pair == "" else interval(pair)
    shown = [
        *columns(str, {"images": "images"}),
        *columns(decimal, {"auroc": "AUROC"}),
        *columns(bounds, _INTERVALS),
        *columns(percent, {"eer": "EER %", "accuracy": "accuracy %", "balanced_accuracy": "balanced %"}),
    ]
    note = "Score: margin. Accuracies: at the equal-error threshold of each run's own validation."
    return f"{tabulate('Leave one domain out', 'left out', items, shown).text()}\n{note}"
