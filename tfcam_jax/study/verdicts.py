"""What the statistics of a comparison study say, in sentences made from the figures alone.

A single seed has no test over seeds: its sentences give the difference and its interval over images, say that it is one
pair of runs, and call nothing significant.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from ..metrics.tables import probability
from .statistics import LEVEL


def arm_label(arm: str, kind: str) -> str:
    """The arm's name and what it is: `difference (reconstruction)`, `difference_mean_map (placebo)`."""
    return f"{arm} ({kind})" if kind else arm


def place(entry: dict[str, Any]) -> str:
    """Set and protocol: `open`, or `open (k_fold)` where the protocol is not the published one."""
    return entry["set"] if entry["protocol"] == "published" else f"{entry['set']} ({entry['protocol']})"


def heading(entry: dict[str, Any]) -> str:
    """`Open set`, with the protocol where it is not the published one."""
    return f"{entry['set'].capitalize()} set" + (f" ({entry['protocol']})" if entry["protocol"] != "published" else "")


def one_seed(entry: dict[str, Any]) -> bool:
    """Whether no arm has a second seed, so that nothing can be tested over seeds."""
    return all(len(arm["seeds"]) <= 1 for arm in entry["arms"])


def runs_of_one_seed(entry: dict[str, Any]) -> str:
    """What a comparison of one seed compares."""
    return "one pair of runs" if len(entry["folds"]) == 1 else "the runs of one seed"


def mark(comparison: dict[str, Any]) -> str:
    """`higher` or `lower` where the difference is significant, else `unclear`."""
    higher = "higher" if comparison["difference"]["mean"] > 0 else "lower"
    return higher if comparison["significant"] else "unclear"


def outcome_word(entry: dict[str, Any], comparison: dict[str, Any]) -> str:
    """`significantly higher` or `lower`, else `not significant` and which test is missed; a dash for a single seed."""
    if comparison["significant"]:
        return f"significantly {mark(comparison)}"
    reason = _missed(entry, comparison)
    return "-" if reason == "one seed" else f"not significant ({reason})"


def verdict(entry: dict[str, Any], comparison: dict[str, Any]) -> str:
    """One comparison: how far apart, the interval, and whether it is significant or why not."""
    arm = arm_label(comparison["arm"], comparison["kind"])
    other = arm_label(comparison["other"], comparison["other_kind"])
    bounds = _bounds(comparison)
    return (
        f"{arm} is {_position(comparison, other)} on the {heading(entry).lower()}{f' ({bounds})' if bounds else ''}: "
        f"{_judgement(entry, comparison)}."
    )


def _missed(entry: dict[str, Any], comparison: dict[str, Any]) -> str:
    """Why a difference is not significant: what it lacks, or the test whose p-value is too large."""
    if len(comparison["seeds"]) == 1:
        return "one seed"
    if _too_few_seeds(entry):
        return "too few seeds"
    over = {"seeds": comparison["p_seeds"], _images(entry): comparison["p_groups"]}
    large = [name for name, p in over.items() if p is not None and p > LEVEL]
    return " and ".join(large) or "Holm"


def _judgement(entry: dict[str, Any], comparison: dict[str, Any]) -> str:
    seeds, images = comparison["p_seeds"], comparison["p_groups"]
    both = f"{_equals(seeds)} over seeds" + ("" if images is None else f", {_equals(images)} over {_images(entry)}")
    holm = f"{_equals(comparison['p_holm'])} after Holm"
    if comparison["significant"]:
        return f"{holm} ({both})"
    reason = _missed(entry, comparison)
    if reason == "one seed":
        test = "" if images is None else f", {_equals(images)} over its {_images(entry)}"
        return f"{runs_of_one_seed(entry)}{test}; other seeds may differ"
    if reason == "too few seeds":
        return f"not significant, as {len(comparison['seeds'])} seeds are too few for any difference ({both})"
    if reason == "Holm":
        return f"not significant among {len(entry['comparisons'])} comparisons, {holm} ({both})"
    return f"not significant, it may be chance of the {reason} ({both})"


def _position(comparison: dict[str, Any], other: str = "") -> str:
    """`0.012 ahead of cyborg`, `significantly behind cyborg, by 0.379`, `level with cyborg`."""
    mean = comparison["difference"]["mean"]
    if mean == 0:
        return f"level with {other}" if other else "level"
    by = f"{abs(mean):.3f}" if abs(mean) >= 0.0005 else "less than 0.001"
    side = ("ahead of" if mean > 0 else "behind") if other else ("ahead" if mean > 0 else "behind")
    whom = f"{side} {other}".rstrip()
    return f"significantly {whom}, by {by}" if comparison["significant"] else f"{by} {whom}"


def _bounds(comparison: dict[str, Any]) -> str:
    """`95 %: 0.004 to 0.020`, in the direction of the difference: below zero is the other way."""
    difference = comparison["difference"]
    bounds = difference["bootstrap"] or difference["interval"]
    if not bounds:
        return ""
    low, high = (-bounds[1], -bounds[0]) if difference["mean"] < 0 else bounds
    return f"95 %: {low:z.3f} to {high:z.3f}".replace("-", "\u2212")


def _clause(comparison: dict[str, Any], other: str = "", alone: bool = False) -> str:
    """A part of a sentence on one comparison; `alone`: all have one seed, which the sentences around it say."""
    details = [_bounds(comparison)]
    if len(comparison["seeds"]) > 1:
        details.append(f"{_equals(comparison['p_holm'])} after Holm")
    elif not alone:
        details.append("one seed")
    shown = ", ".join(part for part in details if part)
    return f"{comparison['arm']} is {_position(comparison, other)}{_doubt(comparison)}{f' ({shown})' if shown else ''}"


def _doubt(comparison: dict[str, Any]) -> str:
    """What stands behind a difference that is not shown: of one seed it is judged by its images alone."""
    if comparison["significant"] or comparison["difference"]["mean"] == 0:
        return ""
    if len(comparison["seeds"]) > 1:
        return ", not significantly"
    bounds, p = comparison["difference"]["bootstrap"], comparison["p_groups"]
    return ", which may be chance" if (bounds and bounds[0] <= 0 <= bounds[1]) or (p or 0) > LEVEL else ""


def conclusions(study: dict[str, Any]) -> dict[str, list[str]]:
    """The summary of every set of the test by its heading."""
    found = {heading(e): summary(e, study["reference"]) for e in study["statistics"] if e["set"] != "val"}
    nothing = ["Nothing could be compared: no two arms of the study were to be compared on a set of the test."]
    return {name: sentences or nothing for name, sentences in found.items()} or {"No test": nothing}


def summary(entry: dict[str, Any], reference: str) -> list[str]:
    """Sentences on one protocol and set: the claim, the other arms, arms and their placebos, and the limits."""
    against = [c for c in entry["comparisons"] if c["against"] == "reference"]
    others = [c for c in against if c["kind"] != "reconstruction"]
    controlled = [c for c in entry["comparisons"] if c["against"] == "placebo"]
    sentences = _claim(entry, [c for c in against if c["kind"] == "reconstruction"], reference)
    if others:
        sentences.append(_joined(_clause(c, reference, one_seed(entry)) for c in others))
    if controlled:
        sentences.append(_joined(_clause(c, f"its placebo {c['other']}", one_seed(entry)) for c in controlled))
    return sentences + _limits(entry)


def _claim(entry: dict[str, Any], comparisons: Sequence[dict[str, Any]], reference: str) -> list[str]:
    """Whether a reconstruction beats the reference, as the method claims."""
    if not comparisons:
        return []
    won = [c["arm"] for c in comparisons if mark(c) == "higher"]
    where = f"on the {heading(entry).lower()}"
    if one_seed(entry):
        opening = f"One seed cannot tell whether a reconstruction beats {reference} {where}"
    elif won:
        opening = f"{_names(won)} {'beats' if len(won) == 1 else 'beat'} {reference} significantly {where}"
    else:
        opening = f"No reconstruction beats {reference} significantly {where}"
    best_first = sorted(comparisons, key=lambda c: -c["difference"]["mean"])
    return [f"{opening}: {_joined(_clause(c, alone=one_seed(entry)) for c in best_first)}"]


def _limits(entry: dict[str, Any]) -> list[str]:
    """What could not be compared, and what no comparison here can show."""
    sentences, comparisons = list(entry["missing"]), entry["comparisons"]
    listed = lambda seeds: ", ".join(map(str, seeds))
    for arm in entry["arms"]:
        if arm["incomplete"]:
            sentences.append(f"{arm['arm']}: seeds {listed(arm['incomplete'])} lack a fold and count nowhere.")
    for comparison in comparisons:
        if comparison["unpaired"]:
            sentences.append(
                f"{comparison['arm']} and {comparison['other']}: only the {len(comparison['seeds'])} common seeds are "
                f"paired; without a partner: {listed(comparison['unpaired'])}."
            )
    if comparisons and one_seed(entry):
        interval = f", its interval over {_images(entry)} alone" if entry["groups"] > 1 else ""
        sentences.append(f"Each difference is of {runs_of_one_seed(entry)}{interval}: another seed may turn it around.")
    elif _too_few_seeds(entry):
        seeds = max(len(c["seeds"]) for c in comparisons)
        smallest = _equals(min(c["smallest_p_seeds"] for c in comparisons))
        sentences.append(
            f"{seeds} {'seed is' if seeds == 1 else 'seeds are'} too few: at best {smallest} over seeds, so that "
            f"after Holm over {len(comparisons)} comparisons nothing can be significant."
        )
    if comparisons and entry["groups"] == 1:
        sentences.append("All images are one group: nothing here generalises over images.")
    return sentences


def _too_few_seeds(entry: dict[str, Any]) -> bool:
    """Whether Holm's first step is out of reach of any difference."""
    comparisons = entry["comparisons"]
    return min((c["smallest_p_seeds"] for c in comparisons), default=0) * len(comparisons) > LEVEL


def _images(entry: dict[str, Any]) -> str:
    """What a test over groups exchanges: images, where each is a group of its own."""
    return "images" if entry["groups"] == entry["images"] else "groups of images"


def _equals(p: float) -> str:
    shown = probability(p)
    return f"p {shown}" if shown.startswith("<") else f"p = {shown}"


def _joined(clauses: Iterable[str]) -> str:
    return "; ".join(clauses) + "."


def _names(arms: Sequence[str]) -> str:
    return " and ".join([", ".join(arms[:-1]), arms[-1]] if len(arms) > 1 else arms)
