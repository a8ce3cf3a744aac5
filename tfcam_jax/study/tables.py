"""The tables of a comparison study: aligned text, Markdown and CSV from the same rows."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from ..metrics.tables import align, decimal, interval
from .statistics import FIGURES
from .verdicts import arm_label, heading, outcome_word, place, probability, summary, verdict

_OTHER_FIGURES = {
    "accuracy": "accuracy",
    "cross_entropy": "cross-entropy",
    "cc_true": "CC T",
    "cc_false": "CC U",
    "cc_difference": "CC D",
    "fooling_gap": "fooling gap",
}

NOTES = (
    "reconstruction: a loss made from the method's stated hypothesis, not the paper's own formula. placebo: the same "
    "loss with maps that say nothing about the image.",
    "Mean, deviation and interval are over seeds, Student's; the interval over seeds and groups comes from a bootstrap "
    "of both levels, drawn together for all arms. k_fold: folds weighted by their pairs of a positive and a negative. "
    "leave_one_domain_out: mean over domains.",
    "p (seeds): exact permutation of signs over seeds; generalises over initial weights and batches, on these test "
    "images. p (groups): both arms exchanged within groups of test images, all seeds together; generalises over images "
    "of the same sources, for these trained models. After Holm: the larger of both, corrected for all comparisons of "
    "the same protocol and set; significant at 0.05. None generalises over data sets or settings of training.",
    "effect: mean paired difference over its deviation, corrected for few seeds (Hedges). won: share of seeds, ties "
    "half. CC: mean correlation of T, U and D = T - U with the human maps. gap, fooling gap: mean |N(T) - N(D)|, N "
    "min-max to [0, 1]: how far what T shows is from what decides. val: epoch and alpha were chosen on it, so "
    "its figures are too good and nothing is tested there.",
)


class Table(NamedTuple):
    """Rows of text; the first column is a name, all others are figures."""

    title: str
    header: tuple[str, ...]
    rows: list[tuple[str, ...]]


def overview(study: dict[str, Any]) -> list[Table]:
    """A table for each protocol that tests anything, a row for each arm.

    AUROC on every test set, the open one last; of the last set the comparison with the reference, the maps' agreement
    with human maps and the fooling gap too.
    """
    tested = [entry for entry in study["statistics"] if entry["set"] != "val"]
    protocols = {protocol: [] for protocol in dict.fromkeys(entry["protocol"] for entry in tested)}
    for entry in sorted(tested, key=lambda entry: (entry["set"] == "open", entry["set"])):
        protocols[entry["protocol"]].append(entry)
    return [_overview_table(entries, study["reference"]) for entries in protocols.values()]


def _overview_table(entries: Sequence[dict[str, Any]], reference: str) -> Table:
    last = entries[-1]
    areas = [{arm["arm"]: arm["figures"]["auroc"] for arm in entry["arms"]} for entry in entries]
    against = {c["arm"]: c for c in last["comparisons"] if c["against"] == "reference"}
    compared = (f"less {reference} ({last['set']})", "95 %", "p seeds", "p groups", "Holm")
    sets = (f"{entry['set']} AUROC" for entry in entries)
    rows = [
        (
            arm_label(arm["arm"], arm["kind"]),
            _alpha(arm),
            *(_with_deviation(area.get(arm["arm"])) for area in areas),
            *(_compared(against[arm["arm"]]) if arm["arm"] in against else ("-",) * len(compared)),
            *(_short(arm["figures"][name]["mean"]) for name in ("cc_true", "cc_difference", "fooling_gap")),
        )
        for arm in last["arms"]
    ]
    title = f"At a glance: mean and deviation over seeds; comparison and maps on the {heading(last).lower()}"
    return Table(title, ("arm", "alpha", *sets, *compared, "CC T", "CC D", "gap"), rows)


def _compared(comparison: dict[str, Any]) -> tuple[str, ...]:
    bounds = comparison["difference"]["bootstrap"]
    return (
        f"{comparison['difference']['mean']:+.3f}",
        "-" if bounds is None else f"{bounds[0]:+.3f}..{bounds[1]:+.3f}",
        probability(comparison["p_seeds"]),
        _p_groups(comparison),
        probability(comparison["p_holm"]),
    )


def _alpha(arm: dict[str, Any]) -> str:
    return "-" if arm["alpha"] is None else f"{arm['alpha']:g}"


def _p_groups(comparison: dict[str, Any]) -> str:
    return "-" if comparison["p_groups"] is None else probability(comparison["p_groups"])


def _with_deviation(area: dict[str, Any] | None) -> str:
    if area is None or area["mean"] is None:
        return "-"
    return f"{area['mean']:.3f}" + ("" if area["deviation"] is None else f" ± {area['deviation']:.3f}")


def _short(value: float | None) -> str:
    return "-" if value is None else f"{value:z.2f}"


def set_tables(entry: dict[str, Any]) -> list[Table]:
    """Arms, comparisons (where there are any) and the figure of each seed, of one entry of `study_statistics`."""
    tables = [_arm_table(entry)]
    if entry["comparisons"]:
        tables.append(_comparison_table(entry))
    return [*tables, _seed_table(entry)]


def _arm_table(entry: dict[str, Any]) -> Table:
    header = (
        "arm",
        "alpha",
        "seeds",
        "AUROC",
        "deviation",
        "95 % seeds",
        "95 % seeds, groups",
        *_OTHER_FIGURES.values(),
    )
    rows = []
    for arm in entry["arms"]:
        area = arm["figures"]["auroc"]
        rows.append(
            (
                arm_label(arm["arm"], arm["kind"]),
                _alpha(arm),
                str(len(arm["seeds"])),
                decimal(area["mean"]),
                decimal(area["deviation"]),
                interval(area["interval"]),
                interval(area["bootstrap"]),
                *(decimal(arm["figures"][name]["mean"]) for name in _OTHER_FIGURES),
            )
        )
    folds = f", {len(entry['folds'])} folds" if len(entry["folds"]) > 1 else ""
    return Table(f"{place(entry)}: {entry['images']} images, {entry['groups']} groups{folds}", header, rows)


def _comparison_table(entry: dict[str, Any]) -> Table:
    header = ("AUROC of", "less that of", "difference", "95 % seeds, groups", "outcome", "after Holm")
    header += ("p (seeds)", "p (groups)", "effect", "won", "seeds")
    rows = [
        (
            arm_label(c["arm"], c["kind"]),
            arm_label(c["other"], c["other_kind"]),
            f"{c['difference']['mean']:+.4f}",
            interval(c["difference"]["bootstrap"]),
            outcome_word(c),
            probability(c["p_holm"]),
            probability(c["p_seeds"]),
            _p_groups(c),
            "-" if c["effect_size"] is None else f"{c['effect_size']:.2f}",
            f"{100 * c['seeds_won']:.0f} %",
            str(len(c["seeds"])),
        )
        for c in entry["comparisons"]
    ]
    return Table(f"{place(entry)}: paired comparisons, a family of {len(rows)}", header, rows)


def _seed_table(entry: dict[str, Any]) -> Table:
    seeds = sorted({seed for arm in entry["arms"] for seed in arm["seeds"]})
    rows = []
    for arm in entry["arms"]:
        values = dict(zip(arm["seeds"], arm["figures"]["auroc"]["values"], strict=True))
        rows.append((arm_label(arm["arm"], arm["kind"]), *(decimal(values.get(seed)) for seed in seeds)))
    return Table(f"{place(entry)}: AUROC of each seed", ("arm", *(f"seed {seed}" for seed in seeds)), rows)


def selection_table(study: dict[str, Any]) -> Table | None:
    """Which alpha each arm got and why; None where nobody had a choice."""
    kinds = {arm["arm"]: arm["kind"] for entry in study["statistics"] for arm in entry["arms"]}
    rows = [
        (
            arm_label(arm, kinds.get(arm, "")),
            protocol,
            "-" if own["chosen"] is None else f"{own['chosen']:g}",
            own["select_by"],
            ", ".join(f"{point['alpha']:g}: {point['validation']:.4f}" for point in own["alphas"]),
        )
        for protocol, arms in study["selection"].items()
        for arm, own in arms.items()
        if len(own["alphas"]) > 1
    ]
    header = ("arm", "protocol", "alpha", "chosen by validation", "mean on validation by alpha")
    return Table("Choice of alpha: equal budget, validation alone", header, rows) if rows else None


def as_text(study: dict[str, Any]) -> str:
    """All tables and sentences as aligned text."""
    block = lambda table: "\n".join([table.title, *align([table.header, *table.rows])])
    return _document(study, block, lambda text: f"{text}\n{'=' * len(text)}")


def as_markdown(study: dict[str, Any]) -> str:
    """All tables and sentences as Markdown."""
    line = lambda row: f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in row)} |"

    def block(table: Table) -> str:
        rule = "| --- |" + " ---: |" * (len(table.header) - 1)
        return "\n".join([f"### {table.title}", "", line(table.header), rule, *map(line, table.rows)])

    return _document(study, block, lambda text: f"## {text}")


def _document(study: dict[str, Any], block: Callable[[Table], str], title: Callable[[str], str]) -> str:
    bullets = lambda items: "\n".join(f"- {item}" for item in items)
    parts = [title("What was found")]
    for name, sentences in conclusions(study).items():
        parts += [f"{name}:", bullets(sentences)]
    parts += map(block, overview(study))
    for entry in study["statistics"]:
        parts += [title(heading(entry)), *map(block, set_tables(entry))]
        if entry["comparisons"]:
            parts.append(bullets([verdict(entry, comparison) for comparison in entry["comparisons"]]))
    chosen = selection_table(study)
    parts += [block(chosen)] if chosen else []
    return "\n\n".join([*parts, title("How to read this"), bullets(NOTES)]) + "\n"


def conclusions(study: dict[str, Any]) -> dict[str, list[str]]:
    """The summary of every set of the test by its heading, the open ones first."""
    entries = sorted(study["statistics"], key=lambda entry: entry["set"] != "open")
    found = {heading(entry): summary(entry, study["reference"]) for entry in entries if entry["set"] != "val"}
    nothing = ["Nothing could be compared: no two arms of the study were to be compared on a set of the test."]
    return {name: sentences or nothing for name, sentences in found.items()} or {"No test": nothing}


def arms_csv(study: dict[str, Any]) -> str:
    """A row for each protocol, set and arm, in full precision; an empty cell is a figure that does not exist."""
    moments = [f"{figure}_{moment}" for figure in FIGURES for moment in ("mean", "deviation", "low", "high")]
    first = ("protocol", "set", "arm", "kind", "alpha", "seeds", "images", "groups")
    rows = [(*first, *moments, "auroc_bootstrap_low", "auroc_bootstrap_high")]
    for entry in study["statistics"]:
        for arm in entry["arms"]:
            seeds = " ".join(map(str, arm["seeds"]))
            name = (entry["protocol"], entry["set"], arm["arm"], arm["kind"])
            cells = [*name, arm["alpha"], seeds, entry["images"], entry["groups"]]
            for figure in FIGURES:
                own = arm["figures"][figure]
                cells += [own["mean"], own["deviation"], *(own["interval"] or (None, None))]
            rows.append((*cells, *(arm["figures"]["auroc"]["bootstrap"] or (None, None))))
    return _csv(rows)


def comparisons_csv(study: dict[str, Any]) -> str:
    """A row for each comparison, in full precision."""
    keys = ("p_seeds", "smallest_p_seeds", "p_groups", "p", "p_holm", "effect_size", "seeds_won", "significant")
    first = ("protocol", "set", "arm", "other", "against", "seeds", "difference", "deviation")
    rows = [(*first, "low", "high", "bootstrap_low", "bootstrap_high", *keys)]
    for entry in study["statistics"]:
        for c in entry["comparisons"]:
            own = c["difference"]
            bounds = [*(own["interval"] or (None, None)), *(own["bootstrap"] or (None, None))]
            name = (entry["protocol"], entry["set"], c["arm"], c["other"], c["against"], " ".join(map(str, c["seeds"])))
            rows.append((*name, own["mean"], own["deviation"], *bounds, *(c[key] for key in keys)))
    return _csv(rows)


def seeds_csv(study: dict[str, Any]) -> str:
    """A row for each protocol, set, arm and seed: the figures behind every mean, in full precision."""
    rows = [("protocol", "set", "arm", "alpha", "seed", *FIGURES)]
    for entry in study["statistics"]:
        for arm in entry["arms"]:
            for number, seed in enumerate(arm["seeds"]):
                values = (arm["figures"][figure]["values"][number] for figure in FIGURES)
                rows.append((entry["protocol"], entry["set"], arm["arm"], arm["alpha"], seed, *values))
    return _csv(rows)


def _csv(rows: Sequence[Sequence[Any]]) -> str:
    buffer = io.StringIO()
    csv.writer(buffer, lineterminator="\n").writerows(rows)
    return buffer.getvalue()
