"""The figures of the protocol as text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from .tables import align, decimal, interval, percent
from .thresholds import NAMES

_SCORE_NAMES = {"margin": "margin z_1 - z_0 (orders as softmax p_1)", "sigmoid_logit_1": "older score sigmoid(z_1)"}
_MEASURES = {"cc": "CC", "kl": "KL", "nss": "NSS", "iou": "IoU", "energy": "energy", "pointing": "pointing"}


def format_evaluation(evaluation: Mapping[str, Any]) -> str:
    """All tables of `evaluate.evaluate`, with what a reader must know to read them."""
    names = evaluation["class_names"]
    sections = [format_classification({**evaluation["sets"], **evaluation["domains"]}, names)]
    if len(names) == 2:
        for score in _SCORE_NAMES:
            sections.append(format_score(evaluation, score))
    sections += [format_agreement(evaluation["map_agreement"]), format_faithfulness(evaluation["faithfulness"])]
    return "\n\n".join(section for section in sections if section)


def format_classification(sets: Mapping[str, Any], class_names: Sequence[str]) -> str:
    """What the softmax probabilities say, a row per set."""
    header = ("set", "images", "groups", *class_names, "cross-entropy", "accuracy", "balanced", "ECE", "Brier")
    rows = [
        (
            name,
            *(str(n) for n in (figures["images"], figures["groups"], *figures["classes"])),
            *(decimal(figures[key]) for key in ("cross_entropy", "accuracy", "balanced_accuracy", "ece", "brier")),
        )
        for name, figures in sets.items()
    ]
    note = "Prediction: the largest logit. ECE: 15 bins. A domain is tested with all images of a class that it lacks."
    return "\n".join(["Classification", *align([header, *rows]), note])


def format_score(evaluation: Mapping[str, Any], score: str) -> str:
    """Ranking, operating points and attack detection of one score."""
    names, origin = evaluation["class_names"], evaluation["thresholds_from"]
    sets = {
        name: figures["scores"][score]
        for name, figures in {**evaluation["sets"], **evaluation["domains"]}.items()
        if "auroc" in figures["scores"][score]
    }
    whole = {name: figures for name, figures in sets.items() if name in evaluation["sets"]}
    lines = [f"Score: {_SCORE_NAMES[score]}. Positive (attack): {names[1]}; negative (bona fide): {names[0]}."]
    header = ("set", "AUROC", "DeLong 95 %", "group bootstrap 95 %", "average precision", "EER %", "d'")
    ranking = [
        (
            name,
            decimal(figures["auroc"]),
            interval(figures["auroc_delong"]),
            interval(figures["bootstrap"]["auroc"]),
            decimal(figures["average_precision"]),
            percent(figures["eer"]),
            decimal(figures["d_prime"]),
        )
        for name, figures in sets.items()
    ]
    lines += [*align([header, *ranking]), "EER: of the set's own ROC curve, a threshold that nobody knows beforehand."]
    if not evaluation["thresholds"] or not sets:
        return "\n".join([*lines, "No figures at a threshold: validation or the set lacks a class."])
    return "\n".join([*lines, "", *_operating_points(whole, origin), "", *_attack_detection(sets, origin)])


def _operating_points(sets: Mapping[str, Any], origin: str) -> list[str]:
    header = ("set", "threshold set for", "threshold", "TPR %", "FPR %", "accuracy %", "balanced %")
    rows = [
        (
            name,
            f"{origin} {NAMES[point]}",
            decimal(at["threshold"]),
            *(percent(at[key]) for key in ("tpr", "fpr", "accuracy", "balanced_accuracy")),
        )
        for name, figures in sets.items()
        for point, at in figures["at"].items()
    ]
    return [f"Operating points. Every threshold comes from the validation images ({origin}).", *align([header, *rows])]


def _attack_detection(sets: Mapping[str, Any], origin: str) -> list[str]:
    fixed = ("fpr_0.01", "fpr_0.05", "fpr_0.1")
    header = ("set", "APCER max %", "worst type", "APCER %", "BPCER %", "ACER %", "APCER@1", "APCER@5", "APCER@10")
    rows = []
    for name, figures in sets.items():
        at = figures["at"]["eer"]
        rates = [percent(at[key]) for key in ("apcer_pooled", "bpcer", "acer")]
        worst = (percent(at["apcer_max"]), str(at["worst_type"] or "-"))
        rows.append((name, *worst, *rates, *(percent(figures["at"][point]["apcer_max"]) for point in fixed)))
    return [
        f"Attack detection (ISO/IEC 30107-3), threshold: {origin} EER; type of an attack: its domain.",
        *align([header, *rows]),
        "APCER max: worst type; APCER: all attacks; ACER: mean of APCER max and BPCER.",
        f"APCER@x: of the worst type, at the threshold where BPCER is x % on {origin}; on the set it may differ.",
    ]


def format_agreement(agreement: Mapping[str, Any]) -> str:
    """Agreement of T, U and D with the human maps, a row per set, resolution and map, and the fooling gap."""
    rows = [
        (name, str(entry["maps"]), resolution, kind, *(decimal(entry[resolution][kind][key]) for key in _MEASURES))
        for name, entry in agreement.items()
        if entry["maps"]
        for resolution in ("map", "image")
        for kind in ("T", "U", "D")
    ]
    gaps = ", ".join(f"{name} {entry['fooling_gap']:.4f}" for name, entry in agreement.items())
    gap = f"Fooling gap, mean |N(T) - N(D)|, what of T the decision never sees: {gaps}."
    if not rows:
        return gap
    header = ("set", "maps", "resolution", "map", *_MEASURES.values())
    note = "Over the images with a human map. KL: smaller is better; all others: larger is better."
    return "\n".join(["Agreement with human maps", *align([header, *rows]), note, gap])


def format_faithfulness(faithfulness: Mapping[str, Any]) -> str:
    """Perturbation curves' areas, the sanity check and the fooling gap; "" where they were not asked for."""
    if not faithfulness:
        return ""
    header = ("map", "deletion", "insertion", "ROAD most", "ROAD least", "ROAD gap", "random head", "random weights")
    rows = [
        (
            name,
            *(decimal(entry[key]) for key in ("deletion", "insertion", "road_most", "road_least", "road_gap")),
            *(decimal(entry.get(key)) for key in ("random_head", "random_weights")),
        )
        for name, entry in ((name, faithfulness["maps"][name]) for name in ("T", "|U|", "D", "random"))
    ]
    return "\n".join(
        [
            f"Faithfulness, {faithfulness['images']} images of {faithfulness['split']}",
            *align([header, *rows]),
            "Areas under the true class's probability while pixels are taken away (deletion, ROAD) or put in",
            "(insertion) in the map's order. Of a faithful map deletion is small, insertion and ROAD gap (least",
            "relevant first less most relevant first) are large; `random` is the control. Last columns: rank",
            "correlation with the map of the model whose head or all weights were drawn anew; near 0 is right.",
        ]
    )


def format_leave_one_domain_out(study: Mapping[str, Any]) -> str:
    """A row per left-out domain, then mean and deviation."""
    header = ("left out", "images", "AUROC", "DeLong 95 %", "group bootstrap 95 %", "EER %", "accuracy %", "balanced %")
    rows = []
    for name, figures in study["domains"].items():
        margin = figures.get("scores", {}).get("margin", {})
        if "auroc" not in margin or not margin["at"]:
            rows.append((name, str(figures["images"]), *("-",) * 6))
            continue
        at = margin["at"]["eer"]
        bounds = (interval(margin["auroc_delong"]), interval(margin["bootstrap"]["auroc"]))
        rates = (percent(margin["eer"]), percent(at["accuracy"]), percent(at["balanced_accuracy"]))
        rows.append((name, str(figures["images"]), decimal(margin["auroc"]), *bounds, *rates))
    for name in ("mean", "deviation"):
        if study[name]:
            values = study[name]
            rates = (percent(values[key]) for key in ("eer", "accuracy", "balanced_accuracy"))
            rows.append((name, "", decimal(values["auroc"]), "", "", *rates))
    note = "Score: margin. Accuracies: at the equal-error threshold of each run's own validation."
    return "\n".join(["Leave one domain out", *align([header, *rows]), note])
