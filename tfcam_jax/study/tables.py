"""The tables of a comparison study: aligned text, Markdown and CSV from the same rows."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any, NamedTuple

from ..metrics.tables import Table, columns, decimal, interval, probability, tabulate
from .statistics import METRICS
from .verdicts import arm_label, heading, mark, outcome_word, place, verdict

_OTHER_METRICS = {
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


class Section(NamedTuple):
    """What is known of one protocol and set.

    Attributes:
      title: names both.
      tables: of the arms, of the comparisons (where there are any), and last of each seed.
      verdicts: of each comparison `verdicts.mark` and `verdicts.verdict`.
    """

    title: str
    tables: list[Table]
    verdicts: list[tuple[str, str]]


class Contents(NamedTuple):
    """What the report shows in every form, in this order."""

    conclusions: dict[str, list[str]]
    overview: list[Table]
    sections: list[Section]
    selection: Table | None


def contents(study: dict[str, Any]) -> Contents:
    """Tables and sentences of a study as `page.write_study` returns it, its statistics in `reading_order`."""
    return Contents(
        study["conclusions"],
        overview(study),
        [
            Section(heading(entry), _set_tables(entry), [(mark(c), verdict(entry, c)) for c in entry["comparisons"]])
            for entry in study["statistics"]
        ],
        _selection_table(study),
    )


def overview(study: dict[str, Any]) -> list[Table]:
    """A table for each protocol that tests anything, a row for each arm.

    AUROC on every test set, the open one last; of the last set the comparison with the reference, the maps' agreement
    with human maps and the fooling gap too. The study's statistics stand in `reading_order`.
    """
    tested = [entry for entry in study["statistics"] if entry["set"] != "val"]
    protocols = dict.fromkeys(entry["protocol"] for entry in tested)
    of = lambda protocol: [entry for entry in reversed(tested) if entry["protocol"] == protocol]
    return [_overview_table(of(protocol), study["reference"]) for protocol in protocols]


def _overview_table(entries: Sequence[dict[str, Any]], reference: str) -> Table:
    last = entries[-1]
    areas = {e["set"]: {arm["arm"]: arm["figures"]["auroc"] for arm in e["arms"]} for e in entries}
    against = {c["arm"]: c for c in last["comparisons"] if c["against"] == "reference"}
    compared = [
        *columns(partial(decimal, form="+.3f"), {"difference/mean": f"minus {reference} ({last['set']})"}),
        *columns(partial(interval, form="+.3f"), {"difference/bootstrap": "95 %"}),
        *columns(probability, {"p_seeds": "p seeds", "p_groups": "p groups", "p_holm": "Holm"}),
    ]
    agreement = {"cc_true": "CC T", "cc_difference": "CC D", "fooling_gap": "gap"}
    of_last = lambda cell: lambda arm: cell(against[arm["arm"]]) if arm["arm"] in against else "-"
    shown = [
        *_ALPHA,
        *((f"{name} AUROC", lambda arm, own=own: _with_deviation(own.get(arm["arm"]))) for name, own in areas.items()),
        *((head, of_last(cell)) for head, cell in compared),
        *columns(partial(decimal, form="z.2f"), {f"figures/{name}/mean": head for name, head in agreement.items()}),
    ]
    title = f"At a glance: mean and deviation over seeds; comparison and maps on the {heading(last).lower()}"
    return tabulate(title, "arm", _labelled(last), shown)


_ALPHA = columns(partial(decimal, form="g"), {"alpha": "alpha"})


def _labelled(entry: dict[str, Any], of: str = "arms") -> list[tuple[str, dict[str, Any]]]:
    return [(arm_label(item["arm"], item["kind"]), item) for item in entry[of]]


def _with_deviation(area: dict[str, Any] | None) -> str:
    if area is None:
        return "-"
    return decimal(area["mean"], ".3f") + ("" if area["deviation"] is None else f" ± {area['deviation']:.3f}")


def _set_tables(entry: dict[str, Any]) -> list[Table]:
    compared = [_comparison_table(entry)] if entry["comparisons"] else []
    return [_arm_table(entry), *compared, _seed_table(entry)]


def _arm_table(entry: dict[str, Any]) -> Table:
    shown = [
        *_ALPHA,
        ("seeds", lambda arm: str(len(arm["seeds"]))),
        *columns(decimal, {"figures/auroc/mean": "AUROC", "figures/auroc/deviation": "deviation"}),
        *columns(interval, {"figures/auroc/interval": "95 % seeds", "figures/auroc/bootstrap": "95 % seeds, groups"}),
        *columns(decimal, {f"figures/{name}/mean": head for name, head in _OTHER_METRICS.items()}),
    ]
    folds = f", {len(entry['folds'])} folds" if len(entry["folds"]) > 1 else ""
    title = f"{place(entry)}: {entry['images']} images, {entry['groups']} groups{folds}"
    return tabulate(title, "arm", _labelled(entry), shown)


def _comparison_table(entry: dict[str, Any]) -> Table:
    shown = [
        ("minus that of", lambda c: arm_label(c["other"], c["other_kind"])),
        *columns(partial(decimal, form="+.4f"), {"difference/mean": "difference"}),
        *columns(interval, {"difference/bootstrap": "95 % seeds, groups"}),
        ("outcome", outcome_word),
        *columns(probability, {"p_holm": "after Holm", "p_seeds": "p (seeds)", "p_groups": "p (groups)"}),
        *columns(partial(decimal, form=".2f"), {"effect_size": "effect"}),
        ("won", lambda c: f"{100 * c['seeds_won']:.0f} %"),
        ("seeds", lambda c: str(len(c["seeds"]))),
    ]
    title = f"{place(entry)}: paired comparisons, a family of {len(entry['comparisons'])}"
    return tabulate(title, "AUROC of", _labelled(entry, "comparisons"), shown)


def _seed_table(entry: dict[str, Any]) -> Table:
    seeds = sorted({seed for arm in entry["arms"] for seed in arm["seeds"]})
    of = lambda arm: dict(zip(arm["seeds"], arm["figures"]["auroc"]["values"], strict=True))
    shown = [(f"seed {seed}", lambda arm, seed=seed: decimal(of(arm).get(seed))) for seed in seeds]
    return tabulate(f"{place(entry)}: AUROC of each seed", "arm", _labelled(entry), shown)


def _selection_table(study: dict[str, Any]) -> Table | None:
    """Which alpha each arm got and why; None where nobody had a choice."""
    kinds = {arm["arm"]: arm["kind"] for entry in study["statistics"] for arm in entry["arms"]}
    items = [
        (arm_label(arm, kinds.get(arm, "")), own | {"protocol": protocol})
        for protocol, arms in study["selection"].items()
        for arm, own in arms.items()
        if len(own["alphas"]) > 1
    ]
    points = lambda alphas: ", ".join(f"{point['alpha']:g}: {point['validation']:.4f}" for point in alphas)
    shown = [
        *columns(str, {"protocol": "protocol"}),
        *columns(partial(decimal, form="g"), {"chosen": "alpha"}),
        *columns(str, {"select_by": "chosen by validation"}),
        *columns(points, {"alphas": "mean on validation by alpha"}),
    ]
    return tabulate("Choice of alpha: equal budget, validation alone", "arm", items, shown) if items else None


def as_text(shown: Contents) -> str:
    """All tables and sentences as aligned text."""
    return _document(shown, Table.text, lambda text: f"{text}\n{'=' * len(text)}")


def as_markdown(shown: Contents) -> str:
    """All tables and sentences as Markdown."""
    line = lambda row: f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in row)} |"

    def block(table: Table) -> str:
        rule = "| --- |" + " ---: |" * (len(table.header) - 1)
        return "\n".join([f"### {table.title}", "", line(table.header), rule, *map(line, table.rows)])

    return _document(shown, block, lambda text: f"## {text}")


def _document(shown: Contents, block: Callable[[Table], str], title: Callable[[str], str]) -> str:
    bullets = lambda items: "\n".join(f"- {item}" for item in items)
    parts = [title("What was found")]
    for name, sentences in shown.conclusions.items():
        parts += [f"{name}:", bullets(sentences)]
    parts += map(block, shown.overview)
    for section in shown.sections:
        parts += [title(section.title), *map(block, section.tables)]
        parts += [bullets(sentence for _, sentence in section.verdicts)] if section.verdicts else []
    parts += [block(shown.selection)] if shown.selection else []
    return "\n\n".join([*parts, title("How to read this"), bullets(NOTES)]) + "\n"


def arms_csv(study: dict[str, Any]) -> str:
    """A row for each protocol, set and arm, in full precision; an empty cell is a figure that does not exist."""
    shown = [*_raw("protocol", "set", "arm", "kind", "alpha"), _SEEDS, *_raw("images", "groups")]
    for name in METRICS:
        shown += columns(_same, {f"figures/{name}/{moment}": f"{name}_{moment}" for moment in ("mean", "deviation")})
        shown += _bounds(f"figures/{name}/interval", f"{name}_")
    shown += _bounds("figures/auroc/bootstrap", "auroc_bootstrap_")
    return _csv(shown, (entry | arm for entry in study["statistics"] for arm in entry["arms"]))


def comparisons_csv(study: dict[str, Any]) -> str:
    """A row for each comparison, in full precision."""
    shown = [
        *_raw("protocol", "set", "arm", "other", "against"),
        _SEEDS,
        *columns(_same, {"difference/mean": "difference", "difference/deviation": "deviation"}),
        *_bounds("difference/interval", ""),
        *_bounds("difference/bootstrap", "bootstrap_"),
        *_raw("p_seeds", "smallest_p_seeds", "p_groups", "p", "p_holm", "effect_size", "seeds_won", "significant"),
    ]
    return _csv(shown, (entry | comparison for entry in study["statistics"] for comparison in entry["comparisons"]))


def seeds_csv(study: dict[str, Any]) -> str:
    """A row for each protocol, set, arm and seed: the figures behind every mean, in full precision."""
    rows = (
        entry | arm | {"seed": seed} | {name: arm["figures"][name]["values"][number] for name in METRICS}
        for entry in study["statistics"]
        for arm in entry["arms"]
        for number, seed in enumerate(arm["seeds"])
    )
    return _csv(_raw("protocol", "set", "arm", "alpha", "seed", *METRICS), rows)


_Column = tuple[str, Callable[[Any], Any]]
_SEEDS: _Column = ("seeds", lambda item: " ".join(map(str, item["seeds"])))


def _same(value: Any) -> Any:
    return value


def _raw(*keys: str) -> list[_Column]:
    return columns(_same, {key: key for key in keys})


def _bounds(path: str, prefix: str) -> list[_Column]:
    ((_, pair),) = columns(_same, {path: ""})
    bound = lambda index: lambda item: (pair(item) or (None, None))[index]
    return [(f"{prefix}low", bound(0)), (f"{prefix}high", bound(1))]


def _csv(shown: Iterable[_Column], items: Iterable[dict[str, Any]]) -> str:
    heads, cells = zip(*shown, strict=True)
    buffer = io.StringIO()
    csv.writer(buffer, lineterminator="\n").writerows([heads, *([cell(item) for cell in cells] for item in items)])
    return buffer.getvalue()
