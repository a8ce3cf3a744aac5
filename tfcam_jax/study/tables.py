"""The tables of a comparison study, to be set as text, Markdown or HTML, and the same figures as CSV."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any

from ..data.csv_cells import csv_text
from ..metrics.tables import Table, columns, decimal, interval, probability, tabulate
from .statistics import METRICS
from .verdicts import arm_label, heading, one_seed, outcome_word, place, runs_of_one_seed

_AGREEMENT = {"cc_true": "CC T", "cc_false": "CC U", "cc_difference": "CC D"}
_OF_MAPS = {
    **_AGREEMENT,
    "positive_inside": "D inside > 0",
    "above_outside": "D inside - outside",
    "fooling_gap": "fooling gap",
    "shared_variance": "shared variance",
}
_ACROSS = {
    "within_arms": "all, each arm's mean taken away",
    "across_arms": "means of the arms",
    "over_all": "all runs as they are",
}
_ALPHA = columns(partial(decimal, form="g"), {"alpha": "alpha"})
_DOMAINS_A_TABLE = 8
_NUMBER_OF_SEEDS = columns(lambda seeds: str(len(seeds)), {"seeds": "seeds"})


def overview(study: dict[str, Any]) -> list[Table]:
    """A table for each protocol that tests anything, a row for each arm.

    AUROC on every test set, the open one last; of the last set the comparison with the reference, the maps' agreement
    with human maps and the fooling gap too. Here and in `set_tables` a column without a figure is left out, and with
    one seed every test over seeds. The study's statistics stand in `reading_order`.
    """
    tested = [entry for entry in study["statistics"] if entry["set"] != "val"]
    of = lambda protocol: [entry for entry in reversed(tested) if entry["protocol"] == protocol]
    return [_overview_table(of(entry["protocol"]), study["reference"]) for entry in overview_entries(study)]


def overview_entries(study: dict[str, Any]) -> list[dict[str, Any]]:
    """Of each protocol the set whose comparisons its table in `overview` shows: the first to be read."""
    first: dict[str, dict[str, Any]] = {}
    for entry in study["statistics"]:
        if entry["set"] != "val":
            first.setdefault(entry["protocol"], entry)
    return list(first.values())


def overview_note(study: dict[str, Any]) -> str:
    """What the p-values of the tables of `overview` are, in a line; nothing where nothing is compared."""
    compared = [entry for entry in overview_entries(study) if entry["comparisons"]]
    if not compared:
        return ""
    if not all(map(one_seed, compared)):
        return "Holm: the larger of both p, corrected for all comparisons of the set; significant up to 0.05."
    tested = any(c["p_groups"] is not None for entry in compared for c in entry["comparisons"])
    of_images = f" p groups: over test images, for {runs_of_one_seed(compared[0])}; other seeds may differ."
    return "One seed: no test over seeds." + (of_images if tested else "")


def _overview_table(entries: Sequence[dict[str, Any]], reference: str) -> Table:
    last = entries[-1]
    areas = {e["set"]: {arm["arm"]: arm["figures"]["auroc"] for arm in e["arms"]} for e in entries}
    against = {c["arm"]: c for c in last["comparisons"] if c["against"] == "reference"}
    tests = {"against/p_seeds": "p seeds", "against/p_groups": "p groups", "against/p_holm": "Holm"}
    if one_seed(last):
        tests = {"against/p_groups": "p groups"}
    agreement = {"cc_true": "CC T", "cc_difference": "CC D", "fooling_gap": "gap"}
    shown = [
        *_ALPHA,
        *columns(_with_deviation, {f"areas/{name}": f"{name} AUROC" for name in areas}),
        *columns(partial(decimal, form="+.3f"), {"against/difference/mean": f"minus {reference}"}),
        *columns(partial(interval, form="+.3f"), {"against/difference/bootstrap": "95 %"}),
        *columns(probability, tests),
        *columns(partial(decimal, form="z.2f"), {f"figures/{name}/mean": head for name, head in agreement.items()}),
    ]
    of = lambda arm: {"against": against.get(arm), "areas": {name: own.get(arm) for name, own in areas.items()}}
    items = [(label, arm | of(arm["arm"])) for label, arm in _labelled(last["arms"])]
    over = "one seed" if all(map(one_seed, entries)) else "mean and deviation over seeds"
    title = f"At a glance: {over}; comparison and maps on the {heading(last).lower()}"
    return _without_empty(tabulate(title, "arm", items, shown))


def _without_empty(table: Table) -> Table:
    """The table without the columns that hold no figure in any row."""
    filled = [any(row[i] != "-" for row in table.rows) for i in range(len(table.header))]
    keep = lambda row: tuple(cell for cell, kept in zip(row, filled, strict=True) if kept)
    return Table(table.title, keep(table.header), [keep(row) for row in table.rows])


def _labelled(items: Iterable[dict[str, Any]]) -> list[tuple[str, dict[str, Any]]]:
    return [(arm_label(item["arm"], item["kind"]), item) for item in items]


def _with_deviation(area: dict[str, Any] | None) -> str:
    if area is None:
        return "-"
    return decimal(area["mean"], ".3f") + ("" if area["deviation"] is None else f" ± {area['deviation']:.3f}")


def set_tables(entry: dict[str, Any]) -> list[Table]:
    """The tables of one protocol and set: of the arms, their AUROC by domain where there are several, and their maps,
    and where there are any of the comparisons, and of how agreement goes with the AUROC.
    """
    tables = [_arm_table(entry), *_domain_tables(entry), _maps_table(entry)]
    tables += [_comparison_table(entry)] if entry["comparisons"] else []
    return tables + [table for table in [_correlation_table(entry)] if table.rows]


def _arm_table(entry: dict[str, Any]) -> Table:
    shown = [
        *_ALPHA,
        *_NUMBER_OF_SEEDS,
        *columns(decimal, {"figures/auroc/mean": "AUROC", "figures/auroc/deviation": "deviation"}),
        *columns(interval, {"figures/auroc/interval": "95 % seeds", "figures/auroc/bootstrap": _both_levels(entry)}),
        *columns(decimal, {"figures/accuracy/mean": "accuracy", "figures/cross_entropy/mean": "cross-entropy"}),
    ]
    folds = f", {len(entry['folds'])} folds" if len(entry["folds"]) > 1 else ""
    title = f"{place(entry)}: {entry['images']} images, {entry['groups']} groups{folds}"
    return _without_empty(tabulate(title, "arm", _labelled(entry["arms"]), shown))


def _domain_tables(entry: dict[str, Any]) -> list[Table]:
    """AUROC of each domain of the test, against all images of a class that the domain lacks; so many to a table."""
    names = sorted({name for arm in entry["arms"] for name in arm.get("by_domain", {})})
    return [
        tabulate(
            f"{place(entry)}: AUROC by domain",
            "arm",
            _labelled(entry["arms"]),
            # Not by path: a domain's name may hold anything.
            [(name, lambda arm, name=name: _with_deviation(arm["by_domain"].get(name))) for name in some],
        )
        for some in (names[i : i + _DOMAINS_A_TABLE] for i in range(0, len(names), _DOMAINS_A_TABLE))
    ]


def _maps_table(entry: dict[str, Any]) -> Table:
    """Where the maps lie, which sign D has there, and how much of them is shared; means over seeds."""
    shown = columns(partial(decimal, form="z.3f"), {f"figures/{name}/mean": head for name, head in _OF_MAPS.items()})
    return _without_empty(tabulate(f"{place(entry)}: maps", "arm", _labelled(entry["arms"]), shown))


def _correlation_table(entry: dict[str, Any]) -> Table:
    """A row for each arm with seeds enough, and for all arms together; no row where nothing can be said."""
    found, arms = entry["correlations"], entry["arms"]
    of_arm = lambda arm: {name: own["by_arm"].get(arm["arm"]) for name, own in found.items()}
    rows = [(label, of_arm(arm) | {"points": len(arm["seeds"])}) for label, arm in _labelled(arms)]
    points = dict.fromkeys(_ACROSS, max(own["runs"] for own in found.values())) | {"across_arms": len(arms)}
    of_all = lambda key: {name: own[key] for name, own in found.items()} | {"points": points[key]}
    rows += [(label, of_all(key)) for key, label in _ACROSS.items()]
    rows = [(label, row) for label, row in rows if any(row[name] is not None for name in found)]
    shown = [*columns(str, {"points": "points"}), *columns(partial(decimal, form="+.2f"), _AGREEMENT)]
    table = tabulate(f"{place(entry)}: correlation of AUROC with agreement", "arm", rows, shown)
    return _without_empty(table) if rows else table


def _both_levels(entry: dict[str, Any]) -> str:
    return "95 % groups" if one_seed(entry) else "95 % seeds, groups"


def _comparison_table(entry: dict[str, Any]) -> Table:
    alone = one_seed(entry)
    over_seeds = {} if alone else {"p_holm": "after Holm", "p_seeds": "p (seeds)"}
    shown = [
        ("minus that of", lambda c: arm_label(c["other"], c["other_kind"])),
        *columns(partial(decimal, form="+.4f"), {"difference/mean": "difference"}),
        *columns(interval, {"difference/bootstrap": _both_levels(entry)}),
        ("outcome", partial(outcome_word, entry)),
        *columns(probability, over_seeds | {"p_groups": "p (groups)"}),
        *columns(partial(decimal, form=".2f"), {"effect_size": "effect"}),
        *([] if alone else columns(lambda share: f"{100 * share:.0f} %", {"seeds_won": "won"})),
        *_NUMBER_OF_SEEDS,
    ]
    title = f"{place(entry)}: paired comparisons, " + (
        f"of {runs_of_one_seed(entry)} each" if alone else f"a family of {len(entry['comparisons'])}"
    )
    return _without_empty(tabulate(title, "AUROC of", _labelled(entry["comparisons"]), shown))


def seed_table(entry: dict[str, Any]) -> Table | None:
    """The AUROC of each seed; None with one seed, whose figures the table of the arms has."""
    if one_seed(entry):
        return None
    seeds = sorted({seed for arm in entry["arms"] for seed in arm["seeds"]})
    of = lambda arm: dict(zip(arm["seeds"], arm["figures"]["auroc"]["values"], strict=True))
    shown = [(f"seed {seed}", lambda arm, seed=seed: decimal(of(arm).get(seed))) for seed in seeds]
    return tabulate(f"{place(entry)}: AUROC of each seed", "arm", _labelled(entry["arms"]), shown)


def selection_table(study: dict[str, Any]) -> Table | None:
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


def arms_csv(study: dict[str, Any]) -> str:
    """A row for each protocol, set and arm, in full precision; an empty cell is a figure that does not exist."""
    shown = {key: key for key in ("protocol", "set", "arm", "kind", "alpha", "seeds", "images", "groups")}
    for name in METRICS:
        shown |= {f"figures/{name}/{moment}": f"{name}_{moment}" for moment in ("mean", "deviation")}
        shown |= _bounds(f"figures/{name}/interval", f"{name}_")
    shown |= _bounds("figures/auroc/bootstrap", "auroc_bootstrap_")
    return _csv(shown, (entry | arm for entry in study["statistics"] for arm in entry["arms"]))


def comparisons_csv(study: dict[str, Any]) -> str:
    """A row for each comparison, in full precision."""
    tests = ("p_seeds", "smallest_p_seeds", "p_groups", "p", "p_holm", "effect_size", "seeds_won", "significant")
    shown = {
        **{key: key for key in ("protocol", "set", "arm", "other", "against", "seeds")},
        **{"difference/mean": "difference", "difference/deviation": "deviation"},
        **_bounds("difference/interval", ""),
        **_bounds("difference/bootstrap", "bootstrap_"),
        **{key: key for key in tests},
    }
    return _csv(shown, (entry | comparison for entry in study["statistics"] for comparison in entry["comparisons"]))


def seeds_csv(study: dict[str, Any]) -> str:
    """A row for each protocol, set, arm and seed: the figures behind every mean, in full precision."""
    rows = (
        entry | arm | {"seed": seed} | {name: arm["figures"][name]["values"][number] for name in METRICS}
        for entry in study["statistics"]
        for arm in entry["arms"]
        for number, seed in enumerate(arm["seeds"])
    )
    return _csv({key: key for key in ("protocol", "set", "arm", "alpha", "seed", *METRICS)}, rows)


def _bounds(path: str, prefix: str) -> dict[str, str]:
    return {f"{path}/0": f"{prefix}low", f"{path}/1": f"{prefix}high"}


def _csv(shown: dict[str, str], items: Iterable[dict[str, Any]]) -> str:
    """Columns by path as in `metrics.tables.columns`; a list is its values with spaces between."""
    cell: Callable[[Any], Any] = lambda value: " ".join(map(str, value)) if isinstance(value, list) else value
    heads, cells = zip(*columns(cell, shown), strict=True)
    return csv_text([heads, *([cell(item) for cell in cells] for item in items)])
