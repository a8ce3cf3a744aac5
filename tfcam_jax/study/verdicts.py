"""What the statistics of a comparison study say, in sentences made from the figures alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..metrics.tables import probability
from .statistics import LEVEL


def arm_label(arm: str, kind: str) -> str:
    """The arm's name and what it is: `difference (reconstruction)`, `difference_mean_map (placebo)`."""
    return f"{arm} ({kind})" if kind else arm


def signed(value: float) -> str:
    """A number with three decimals and its sign, the minus as a true one; what rounds to zero keeps its side."""
    return f"{value:+.3f}".replace("-", "\u2212")


def verdict(entry: dict[str, Any], comparison: dict[str, Any]) -> str:
    """One comparison: difference, interval, p-values, and whether it is significant."""
    difference, p = comparison["difference"], probability(comparison["p_seeds"])
    bounds = difference["bootstrap"] or difference["interval"]
    shown = f" [{', '.join(signed(bound).removeprefix('+') for bound in bounds)}]" if bounds else ""
    tests = f"{p if p.startswith('<') else f'= {p}'} (seeds)"
    if comparison["p_groups"] is not None:
        tests += f", {probability(comparison['p_groups'])} (groups)"
    arm = arm_label(comparison["arm"], comparison["kind"])
    other = arm_label(comparison["other"], comparison["other_kind"])
    return (
        f"{arm} - {other}, {place(entry)}: {signed(difference['mean'])}{shown}, p {tests}, "
        f"after Holm {probability(comparison['p_holm'])}: {outcome_word(comparison)}."
    )


def mark(comparison: dict[str, Any]) -> str:
    """`higher` or `lower` where the difference is significant, else `unclear`."""
    higher = "higher" if comparison["difference"]["mean"] > 0 else "lower"
    return higher if comparison["significant"] else "unclear"


def outcome_word(comparison: dict[str, Any]) -> str:
    """`significantly higher`, `significantly lower` or `not significant`."""
    return f"significantly {mark(comparison)}" if comparison["significant"] else "not significant"


def place(entry: dict[str, Any]) -> str:
    """Set and protocol: `open`, or `open (k_fold)` where the protocol is not the published one."""
    return entry["set"] if entry["protocol"] == "published" else f"{entry['set']} ({entry['protocol']})"


def heading(entry: dict[str, Any]) -> str:
    """`Open set`, with the protocol where it is not the published one."""
    return f"{entry['set'].capitalize()} set" + (f" ({entry['protocol']})" if entry["protocol"] != "published" else "")


def conclusions(study: dict[str, Any]) -> dict[str, list[str]]:
    """The summary of every set of the test by its heading."""
    found = {heading(e): summary(e, study["reference"]) for e in study["statistics"] if e["set"] != "val"}
    nothing = ["Nothing could be compared: no two arms of the study were to be compared on a set of the test."]
    return {name: sentences or nothing for name, sentences in found.items()} or {"No test": nothing}


def summary(entry: dict[str, Any], reference: str) -> list[str]:
    """Sentences on one protocol and set: the claim, the arms against the reference and against placebos, the limits."""
    against = [c for c in entry["comparisons"] if c["against"] == "reference"]
    controlled = [c for c in entry["comparisons"] if c["against"] == "placebo"]
    sentences = _claim([c for c in against if c["kind"] == "reconstruction"], reference)
    if against:
        lower = [c["arm"] for c in against if c["difference"]["mean"] < 0]
        sentences.append(
            f"Compared with {reference}, significantly higher: {_sorted(against, 'arm')}. "
            f"Lower than {reference} in the mean, significantly or not: {_names(lower)}."
        )
    if controlled:
        beaten_by = [c["other"] for c in controlled if c["difference"]["mean"] < 0]
        sentences.append(
            f"Compared with their own placebos, arms are significantly higher than: {_sorted(controlled, 'other')}. "
            f"Placebos with the higher mean, significantly or not: {_names(beaten_by)}."
        )
    return sentences + _limits(entry)


def _claim(comparisons: Sequence[dict[str, Any]], reference: str) -> list[str]:
    """Whether a reconstruction beats the reference, as the method claims."""
    if not comparisons:
        return []
    of = lambda condition: _names([c["arm"] for c in comparisons if condition(c)])
    mean = lambda c: c["difference"]["mean"]
    parts = {
        "higher but not significantly": of(lambda c: mean(c) > 0 and not c["significant"]),
        "no difference at all": of(lambda c: mean(c) == 0),
        "the other way": of(lambda c: mean(c) < 0),
    }
    shown = of(lambda c: mean(c) > 0 and c["significant"])
    listed = "".join(f"; {words}: {names}" for words, names in parts.items() if names != "none")
    return [f"That a reconstruction does better than {reference} is shown for {shown}{listed}."]


def _sorted(comparisons: Sequence[dict[str, Any]], key: str) -> str:
    of = lambda word: _names([c[key] for c in comparisons if outcome_word(c) == word])
    return (
        f"{of('significantly higher')}; significantly lower: {of('significantly lower')}; "
        f"no significant difference: {of('not significant')}"
    )


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
                f"{comparison['arm']} - {comparison['other']}: only the {len(comparison['seeds'])} common seeds are "
                f"paired; without a partner: {listed(comparison['unpaired'])}."
            )
    smallest, family = min((c["smallest_p_seeds"] for c in comparisons), default=0), len(comparisons)
    if smallest * family > LEVEL:
        seeds = max(len(c["seeds"]) for c in comparisons)
        sentences.append(
            f"With {seeds} {'seed' if seeds == 1 else 'seeds'} the smallest p-value over seeds is "
            f"{probability(smallest)}; after Holm over {family} comparisons no difference can be significant here."
        )
    if comparisons and entry["groups"] == 1:
        sentences.append("All images are one group: nothing here generalises over images.")
    return sentences


def _names(arms: Sequence[str]) -> str:
    return ", ".join(arms) or "none"
