"""Plots of a comparison study: AUROC by arm, AUROC by guidance weight, AUROC by map agreement."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from .statistics import arrange, beside_auroc
from .verdicts import arm_label, place

# Okabe and Ito, "Color universal design" (2008), without yellow and black, which one of the backgrounds swallows, and
# with gray. The usual arms look the same in every study.
_COLORS = {
    "cross_entropy": "#8A8D93",
    "cyborg": "#0072B2",
    "opposed": "#E69F00",
    "difference": "#D55E00",
    "contrast": "#009E73",
}
_OTHERS = ("#CC79A7", "#56B4E9")
_MARKERS = ("o", "s", "D", "^", "v", "P", "X", "*")
_DPI = 160


class Theme(NamedTuple):
    """Colours of what is not data."""

    background: str
    ink: str
    soft: str
    line: str


LIGHT = Theme("#ffffff", "#1c1d1f", "#5d6168", "#dcdcd8")
DARK = Theme("#1d1f23", "#e8e8e6", "#a3a7ae", "#34373d")


class Look(NamedTuple):
    """How an arm is drawn; a control has the colour of the arm that it controls and a hollow marker."""

    color: str
    marker: str
    filled: bool
    label: str

    def marks(self, theme: Theme) -> dict[str, Any]:
        """Keyword arguments of Matplotlib for its dots."""
        return {"c": self.color if self.filled else theme.background, "edgecolors": self.color, "marker": self.marker}


class Plot(NamedTuple):
    """A drawn plot: PNG for print, and SVG for either theme of a page."""

    name: str
    title: str
    text: str
    png: bytes
    light: bytes
    dark: bytes


def arm_looks(arms: Sequence[Mapping[str, Any]], placebos: Mapping[str, Sequence[str]]) -> dict[str, Look]:
    """A look for each arm: a colour for each strategy, another marker for each of its variants, hollow for controls.

    Strategies beyond the usual ones take the remaining colours in turn. No two arms look alike as long as no colour has
    more than eight controls or eight others.

    Args:
      arms: as `study_statistics` gives them; `arm`, `strategy` and `kind` are read.
      placebos: of each arm its controls.
    """
    parents = {control: arm for arm, controls in placebos.items() for control in controls}
    # The plain strategies come first, so that they have the plain marker in every study.
    order = sorted(arms, key=lambda arm: (arm["arm"] in parents, arm["arm"] != arm["strategy"]))
    looks: dict[str, Look] = {}
    others: dict[str, str] = {}
    for name, strategy, kind in ((arm["arm"], arm["strategy"], arm["kind"]) for arm in order):
        color = _COLORS.get(strategy) or others.setdefault(strategy, _OTHERS[len(others) % len(_OTHERS)])
        color = looks[parents[name]].color if parents.get(name) in looks else color
        filled = name not in parents
        alike = sum(look.color == color and look.filled == filled for look in looks.values())
        looks[name] = Look(color, _MARKERS[alike % len(_MARKERS)], filled, arm_label(name, kind))
    return {arm["arm"]: looks[arm["arm"]] for arm in arms}


def draw_study(
    statistics: Sequence[dict[str, Any]],
    selection: Mapping[str, Mapping[str, Any]],
    placebos: Mapping[str, Sequence[str]],
    reference: str,
) -> list[Plot]:
    """All plots of a study, those of each protocol together; a plot without anything to show is left out.

    Args:
      statistics: of `statistics.study_statistics`, in `reading_order`.
      selection: of `outcomes.read_selection`.
      placebos: of each arm its controls.
      reference: its mean is drawn as a line across the arms.
    """
    arms = {arm["arm"]: arm for entry in statistics for arm in entry["arms"]}
    looks = arm_looks(list(arms.values()), placebos)
    order, plots = arrange(list(looks), placebos), []
    for protocol in dict.fromkeys(entry["protocol"] for entry in statistics):
        entries = _shown(statistics, protocol)
        here = [arm for entry in entries for arm in entry["arms"]]
        if any(arm["figures"]["auroc"]["mean"] is not None for arm in here):
            draw = partial(draw_auroc, entries, order, looks, reference)
            plots.append(_render(f"auroc_{protocol}", f"AUROC by arm: {protocol}", _AUROC_TEXT, draw))
        chosen = {arm: own for arm, own in selection.get(protocol, {}).items() if arm in looks and looks[arm].filled}
        if any(len(own["alphas"]) > 1 for own in chosen.values()):
            draw = partial(draw_alpha, chosen, entries, looks)
            plots.append(_render(f"alpha_{protocol}", f"AUROC by guidance weight: {protocol}", _ALPHA_TEXT, draw))
        if any(beside_auroc(arm, name) for arm in here for name in ("cc_true", "cc_difference")):
            draw, title = partial(draw_agreement, entries, looks), f"AUROC by agreement with the human maps: {protocol}"
            plots.append(_render(f"agreement_{protocol}", title, _AGREEMENT_TEXT, draw))
    return plots


_AUROC_TEXT = (
    "Each dot is a seed; the upright bar is the mean, the line its 95 % interval over seeds and groups of images "
    "(over seeds alone where there is one group). The dashed line is the reference's mean. Hollow marks are placebos."
)
_ALPHA_TEXT = (
    "Means over runs. Filled marks: the weight chosen on validation. Hollow marks on the test sets are exploration: "
    "they took no part in the choice and prove nothing. Dotted: an arm without guidance, as all are at alpha = 1. "
    "Placebos are left out."
)
_AGREEMENT_TEXT = (
    "Each dot is one seed of an arm, the mean over its folds where there are several: correlation of T and of "
    "D = T - U with the human maps, and AUROC on the same set. r within arms: each arm's mean taken away."
)


def _shown(statistics: Sequence[dict[str, Any]], protocol: str) -> list[dict[str, Any]]:
    """The sets of the test; validation only where there is no test."""
    own = [entry for entry in statistics if entry["protocol"] == protocol]
    return [entry for entry in own if entry["set"] != "val"] or own


def _render(name: str, title: str, text: str, draw: Callable[[Theme], Figure]) -> Plot:
    return Plot(name, title, text, _save(draw(LIGHT), "png"), _save(draw(LIGHT), "svg"), _save(draw(DARK), "svg"))


def _save(figure: Figure, kind: str) -> bytes:
    """The same bytes for the same figure: no date, no random names."""
    buffer = io.BytesIO()
    with matplotlib.rc_context({"svg.hashsalt": "study", "svg.fonttype": "path"}):
        metadata = {"Date": None} if kind == "svg" else None
        figure.savefig(buffer, format=kind, dpi=_DPI, metadata=metadata)
    return buffer.getvalue()


def draw_auroc(
    entries: Sequence[dict[str, Any]], arms: Sequence[str], looks: Mapping[str, Look], reference: str, theme: Theme
) -> Figure:
    """A panel for each set, a row for each arm."""
    size = (3.0 + 4.2 * len(entries), 1.1 + 0.46 * len(arms))
    figure, axes = _panels(1, len(entries), size, theme, sharey=True)
    for axis, entry in zip(axes[0], entries, strict=True):
        by_arm = {arm["arm"]: arm for arm in entry["arms"]}
        areas = [arm["figures"]["auroc"] for arm in entry["arms"]]
        axis.set_xlim(*_limits([value for area in areas for value in (*area["values"], *_bounds(area))]))
        if reference in by_arm and by_arm[reference]["figures"]["auroc"]["mean"] is not None:
            mean = by_arm[reference]["figures"]["auroc"]["mean"]
            axis.axvline(mean, color=looks[reference].color, linewidth=1, linestyle=(0, (4, 3)), zorder=1)
        for row, name in enumerate(arms):
            if name in by_arm:
                _draw_arm(axis, row, by_arm[name]["figures"]["auroc"], looks[name], theme)
        axis.set_title(f"{place(entry)}: {entry['images']} images, {entry['groups']} groups", fontsize=10)
        axis.set_xlabel("AUROC")
        _note(axis, 1.01, -0.7, "mean", theme)
        axis.grid(axis="x", color=theme.line, linewidth=0.7)
    axes[0][0].set_yticks(range(len(arms)), [looks[name].label for name in arms])
    axes[0][0].set_ylim(len(arms) - 0.45, -0.55)
    return figure


def _draw_arm(axis: Axes, row: int, area: dict[str, Any], look: Look, theme: Theme) -> None:
    values = np.array([value for value in area["values"] if value is not None])
    if not len(values):
        _note(axis, 0.5, row, "none", theme, va="center")
        return
    width = np.diff(axis.get_xlim())[0]
    axis.scatter(values, row - 0.1 + _spread(values, width), s=22, linewidths=0.9, zorder=3, **look.marks(theme))
    bounds = _bounds(area)
    if bounds:
        axis.plot(bounds, [row + 0.28] * 2, color=look.color, linewidth=1.8, solid_capstyle="butt", zorder=2)
    axis.plot([area["mean"]] * 2, [row + 0.17, row + 0.39], color=theme.ink, linewidth=2, zorder=4)
    _note(axis, 1.01, row, f"{area['mean']:.3f}", theme, va="center")


def _note(axis: Axes, x: float, row: float, text: str, theme: Theme, **options: Any) -> None:
    axis.text(x, row, text, transform=axis.get_yaxis_transform(), color=theme.soft, fontsize=8, **options)


def _spread(values: np.ndarray, width: float) -> np.ndarray:
    """Vertical offsets that keep dots of nearly equal value apart."""
    offsets, seen = np.zeros(len(values)), {}
    for index in np.argsort(values, kind="stable"):
        column = int(values[index] / width * 34)
        number = seen[column] = seen.get(column, -1) + 1
        offsets[index] = 0.11 * (-1) ** number * ((number + 1) // 2)
    return np.clip(offsets, -0.33, 0.22)


def _bounds(area: Mapping[str, Any]) -> Sequence[float]:
    """The interval that is drawn; () without one."""
    return area["bootstrap"] or area["interval"] or ()


def _limits(values: Sequence[float | None]) -> tuple[float, float]:
    """Ends of the axis around AUROCs and intervals; an interval over two seeds may leave [0, 1], the axis does not."""
    known = np.clip([value for value in values if value is not None], 0, 1)
    margin = max(0.04 * np.ptp(known), 0.005)
    return float(known.min() - margin), float(known.max() + margin)


def draw_alpha(
    chosen: Mapping[str, Any], entries: Sequence[dict[str, Any]], looks: Mapping[str, Look], theme: Theme
) -> Figure:
    """A panel for validation and one for each set of the test; a line for each arm over its guidance weights."""
    alphas = sorted({point["alpha"] for own in chosen.values() for point in own["alphas"]} - {None})
    sets = [entry["set"] for entry in entries if entry["set"] != "val"]
    figure, axes = _panels(1, 1 + len(sets), (3.6 * (1 + len(sets)) + 0.6, 4.2), theme)
    by = next(iter(chosen.values()))["select_by"].replace("auroc", "AUROC").replace("_", "-")
    for axis, name in zip(axes[0], ["val", *sets], strict=True):
        read = lambda point, name=name: (
            point["validation"] if name == "val" else point["test"].get(name, {}).get("auroc")
        )
        for number, (arm, own) in enumerate(chosen.items()):
            points = {point["alpha"]: read(point) for point in own["alphas"] if read(point) is not None}
            shift = 0.36 * ((number + 0.5) / len(chosen) - 0.5)  # so that marks of equal height stay apart
            _draw_line(axis, points, own["chosen"], alphas, shift, looks[arm], theme)
        axis.set_xticks(range(len(alphas)), [f"{alpha:g}" for alpha in alphas])
        axis.set_xlabel("alpha")
        axis.set_ylabel(by if name == "val" else "AUROC")
        axis.set_xlim(-0.5, len(alphas) - 0.5)
        axis.set_title("validation: decides" if name == "val" else f"{name} set: hollow is exploration", fontsize=10)
        axis.grid(axis="y", color=theme.line, linewidth=0.7)
    _legend(figure, {arm: looks[arm] for arm in chosen}, theme)
    return figure


def _draw_line(
    axis: Axes,
    points: Mapping[float | None, float],
    chosen: float | None,
    alphas: Sequence[float],
    shift: float,
    look: Look,
    theme: Theme,
) -> None:
    """An arm's line over its weights; a dotted one across the panel for an arm that has none."""
    if None in points:
        axis.axhline(points[None], color=look.color, linewidth=1.4, linestyle=":")
    known = [alpha for alpha in alphas if alpha in points]
    at = lambda some: ([alphas.index(alpha) + shift for alpha in some], [points[alpha] for alpha in some])
    style = {"color": look.color, "marker": look.marker, "linewidth": 1.2}
    axis.plot(*at(known), markersize=5, markerfacecolor=theme.background, **style)
    axis.plot(*at([alpha for alpha in known if alpha == chosen]), markersize=8, **style)


def draw_agreement(entries: Sequence[dict[str, Any]], looks: Mapping[str, Look], theme: Theme) -> Figure:
    """A row for each set; T to the left, D to the right."""
    figure, axes = _panels(len(entries), 2, (9.2, 3.5 * len(entries) + 1.0), theme, sharey="row")
    for line, entry in zip(axes, entries, strict=True):
        for axis, key, name in zip(line, ("cc_true", "cc_difference"), ("T", "D = T - U"), strict=True):
            for arm in entry["arms"]:
                points = beside_auroc(arm, key)
                if points:
                    x, y = zip(*points, strict=True)
                    look = looks[arm["arm"]]
                    axis.scatter(x, y, s=28, linewidths=1, alpha=0.9, zorder=3, **look.marks(theme))
            r = entry["correlations"][key]["within_arms"]
            note = "" if r is None else f", r within arms {r:+.2f}"
            axis.set_title(f"{place(entry)}: {name}{note}", fontsize=10)
            axis.set_xlabel(f"correlation of {name} with the human maps")
            axis.grid(color=theme.line, linewidth=0.7)
        line[0].set_ylabel("AUROC")
    shown = {arm["arm"] for entry in entries for arm in entry["arms"]}
    _legend(figure, {arm: look for arm, look in looks.items() if arm in shown}, theme)
    return figure


def _panels(
    rows: int, columns: int, size: tuple[float, float], theme: Theme, **shared: Any
) -> tuple[Figure, np.ndarray]:
    figure = Figure(figsize=size, layout="constrained", facecolor=theme.background)
    figure.get_layout_engine().set(h_pad=0.1)
    axes = figure.subplots(rows, columns, squeeze=False, **shared)
    for axis in axes.flat:
        axis.set_facecolor(theme.background)
        axis.tick_params(colors=theme.soft, labelcolor=theme.ink, labelsize=9, length=3)
        axis.set_axisbelow(True)
        for name, spine in axis.spines.items():
            spine.set_visible(name in ("left", "bottom"))
            spine.set_color(theme.soft)
        for text in (axis.title, axis.xaxis.label, axis.yaxis.label):
            text.set_color(theme.ink)
    return figure, axes


def _legend(figure: Figure, looks: Mapping[str, Look], theme: Theme) -> None:
    axis = figure.axes[0]
    handles = [
        axis.scatter([], [], s=30, linewidths=1, label=look.label, **look.marks(theme)) for look in looks.values()
    ]
    columns = max(1, int(figure.get_size_inches()[0] / 2.7))
    figure.legend(
        handles=handles, loc="outside lower center", ncols=columns, frameon=False, fontsize=8.5, labelcolor=theme.ink
    )
