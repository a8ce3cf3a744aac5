"""Plots of a comparison study: AUROC by arm, AUROC by guidance weight, AUROC by map agreement."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib.style
import numpy as np
from matplotlib import rcParams
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ..errors import visible
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


class Look(NamedTuple):
    """How an arm is drawn; a control has the colour of the arm that it controls and a hollow marker."""

    color: str
    marker: str
    filled: bool
    label: str

    def marks(self) -> dict[str, Any]:
        """Keyword arguments of Matplotlib for its dots; hollow ones hide what is behind them."""
        inside = self.color if self.filled else rcParams["axes.facecolor"]
        return {"c": inside, "edgecolors": self.color, "marker": self.marker}


class Plot(NamedTuple):
    """A drawn plot: PNG for print, and SVG for either theme of a page."""

    kind: str
    protocol: str
    png: bytes
    light: bytes
    dark: bytes

    @property
    def name(self) -> str:
        return f"{self.kind}_{self.protocol}"


def theme(name: str) -> AbstractContextManager[None]:
    """What is drawn and saved inside has the style of the plots, in colours for a "light" or a "dark" page."""
    styles = Path(__file__).parent / "templates"
    return matplotlib.style.context([styles / "plot.mplstyle", styles / f"{name}.mplstyle"])


def arm_looks(arms: Sequence[Mapping[str, Any]], placebos: Mapping[str, Sequence[str]]) -> dict[str, Look]:
    """A look for each arm: a colour for each strategy, another marker for each of its variants, hollow for controls.

    Strategies beyond the usual ones take the remaining colours in turn. No two arms look alike as long as no colour has
    more than eight controls or eight others. Arms are as `study_statistics` gives them; `arm`, `strategy` and `kind`
    are read. `placebos` are of each arm its controls.
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
        looks[name] = Look(color, _MARKERS[alike % len(_MARKERS)], filled, visible(arm_label(name, kind)))
    return {arm["arm"]: looks[arm["arm"]] for arm in arms}


def draw_study(
    statistics: Sequence[dict[str, Any]],
    selection: Mapping[str, Mapping[str, Any]],
    placebos: Mapping[str, Sequence[str]],
    reference: str,
) -> list[Plot]:
    """All plots of a study, those of each protocol together; a plot or panel without anything to show is left out.

    `statistics` stand in `statistics.reading_order`; `selection` is of `outcomes.read_selection`; `placebos` are of
    each arm its controls; the mean of the `reference` is drawn as a line across the arms.
    """
    arms = {arm["arm"]: arm for entry in statistics for arm in entry["arms"]}
    looks = arm_looks(list(arms.values()), placebos)
    order, plots = arrange(list(looks), placebos), []
    for protocol in dict.fromkeys(entry["protocol"] for entry in statistics):
        own = [entry for entry in statistics if entry["protocol"] == protocol]
        entries = [entry for entry in own if entry["set"] != "val"] or own
        chosen = {arm: own for arm, own in selection.get(protocol, {}).items() if arm in looks and looks[arm].filled}
        scored = [entry for entry in entries if any(map(_scored, entry["arms"]))]
        if scored:
            plots.append(_render("auroc", protocol, partial(draw_auroc, scored, order, looks, reference)))
        if any(len(own["alphas"]) > 1 for own in chosen.values()):
            plots.append(_render("alpha", protocol, partial(draw_alpha, chosen, scored, looks)))
        if annotated := [entry for entry in entries if any(map(_agrees, entry["arms"]))]:
            plots.append(_render("agreement", protocol, partial(draw_agreement, annotated, looks)))
    return plots


def _scored(arm: dict[str, Any]) -> bool:
    return arm["figures"]["auroc"]["mean"] is not None


def _agrees(arm: dict[str, Any]) -> bool:
    """Whether an arm has a seed with an AUROC beside the agreement of its maps with human ones."""
    return any(beside_auroc(arm, name) for name in ("cc_true", "cc_difference"))


def _render(kind: str, protocol: str, draw: Callable[[], Figure]) -> Plot:
    def save(colors: str, form: str) -> bytes:
        buffer = io.BytesIO()
        with theme(colors):
            draw().savefig(buffer, format=form, metadata={"Date": None} if form == "svg" else None)
        return buffer.getvalue()

    return Plot(kind, protocol, save("light", "png"), save("light", "svg"), save("dark", "svg"))


def draw_auroc(
    entries: Sequence[dict[str, Any]], arms: Sequence[str], looks: Mapping[str, Look], reference: str
) -> Figure:
    """A panel for each set, a row for each arm."""
    figure = Figure(figsize=(3.0 + 4.2 * len(entries), 1.1 + 0.46 * len(arms)))
    axes = figure.subplots(1, len(entries), squeeze=False, sharey=True)
    for axis, entry in zip(axes[0], entries, strict=True):
        areas = {arm["arm"]: arm["figures"]["auroc"] for arm in entry["arms"]}
        ends = [value for area in areas.values() for value in (*area["values"], *_bounds(area)) if value is not None]
        known = np.clip(ends, 0, 1)  # an interval over two seeds may leave [0, 1], the axis does not
        margin = max(0.04 * np.ptp(known), 0.005)
        axis.set_xlim(known.min() - margin, known.max() + margin)
        if reference in areas and areas[reference]["mean"] is not None:
            color = looks[reference].color
            axis.axvline(areas[reference]["mean"], color=color, linewidth=1, linestyle=(0, (4, 3)), zorder=1)
        for row, name in enumerate(arms):
            if name in areas:
                _draw_arm(axis, row, areas[name], looks[name])
        axis.set_title(f"{visible(place(entry))}: {entry['images']} images, {entry['groups']} groups")
        axis.set_xlabel("AUROC")
        _note(axis, 1.01, -0.7, "mean", va="baseline")
        axis.grid(axis="x")
    axes[0][0].set_yticks(range(len(arms)), [looks[name].label for name in arms])
    axes[0][0].set_ylim(len(arms) - 0.45, -0.55)
    return figure


def _draw_arm(axis: Axes, row: int, area: dict[str, Any], look: Look) -> None:
    values = np.array([value for value in area["values"] if value is not None])
    if not len(values):
        _note(axis, 0.5, row, "none")
        return
    low, high = axis.get_xlim()
    axis.scatter(values, row - 0.1 + _spread(values, high - low), s=22, linewidths=0.9, zorder=3, **look.marks())
    if bounds := _bounds(area):
        axis.plot(bounds, [row + 0.28] * 2, color=look.color, linewidth=1.8, solid_capstyle="butt", zorder=2)
    ink = rcParams["axes.labelcolor"]
    axis.plot([area["mean"]] * 2, [row + 0.17, row + 0.39], color=ink, linewidth=2, zorder=4)
    _note(axis, 1.01, row, f"{area['mean']:.3f}")


def _note(axis: Axes, x: float, row: float, text: str, va: str = "center") -> None:
    axis.text(x, row, text, transform=axis.get_yaxis_transform(), fontsize=8, va=va)


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


def draw_alpha(chosen: Mapping[str, Any], entries: Sequence[dict[str, Any]], looks: Mapping[str, Look]) -> Figure:
    """A panel for validation and one for each set of the test; a line for each arm over its guidance weights."""
    alphas = sorted({point["alpha"] for own in chosen.values() for point in own["alphas"]} - {None})
    sets = [entry["set"] for entry in entries if entry["set"] != "val"]
    figure = Figure(figsize=(3.6 * (1 + len(sets)) + 0.6, 4.2))
    axes = figure.subplots(1, 1 + len(sets), squeeze=False)
    by = next(iter(chosen.values()))["select_by"].replace("auroc", "AUROC").replace("_", "-")
    for axis, name in zip(axes[0], ["val", *sets], strict=True):
        for number, (arm, own) in enumerate(chosen.items()):
            values = {
                point["alpha"]: point["validation"] if name == "val" else point["test"].get(name, {}).get("auroc")
                for point in own["alphas"]
            }
            known = {alpha: value for alpha, value in values.items() if value is not None}
            shift = 0.36 * ((number + 0.5) / len(chosen) - 0.5)  # so that marks of equal height stay apart
            places = {alpha: place + shift for place, alpha in enumerate(alphas) if alpha in known}
            _draw_line(axis, places, known, own["chosen"], looks[arm])
        axis.set_xticks(range(len(alphas)), [f"{alpha:g}" for alpha in alphas])
        axis.set_xlabel("alpha")
        axis.set_ylabel(by if name == "val" else "AUROC")
        axis.set_xlim(-0.5, len(alphas) - 0.5)
        axis.set_title("validation: decides" if name == "val" else f"{name} set: hollow is exploration")
        axis.grid(axis="y")
    _legend(figure, [looks[arm] for arm in chosen])
    return figure


def _draw_line(
    axis: Axes, places: Mapping[float, float], values: Mapping[float | None, float], chosen: float | None, look: Look
) -> None:
    """An arm's line over the places of its weights; a dotted one across the panel for an arm that has none."""
    if None in values:
        axis.axhline(values[None], color=look.color, linewidth=1.4, linestyle=":")
    style = {"color": look.color, "marker": look.marker, "linewidth": 1.2}
    hollow = rcParams["axes.facecolor"]
    axis.plot(list(places.values()), [values[alpha] for alpha in places], markersize=5, markerfacecolor=hollow, **style)
    if chosen is not None and chosen in places:
        axis.plot(places[chosen], values[chosen], markersize=8, **style)


def draw_agreement(entries: Sequence[dict[str, Any]], looks: Mapping[str, Look]) -> Figure:
    """A row for each set; T to the left, D to the right."""
    figure = Figure(figsize=(9.2, 3.5 * len(entries) + 1.0))
    axes = figure.subplots(len(entries), 2, squeeze=False, sharey="row")
    for line, entry in zip(axes, entries, strict=True):
        for axis, key, name in zip(line, ("cc_true", "cc_difference"), ("T", "D = T - U"), strict=True):
            for arm in entry["arms"]:
                if points := beside_auroc(arm, key):
                    x, y = zip(*points, strict=True)
                    axis.scatter(x, y, s=28, linewidths=1, alpha=0.9, zorder=3, **looks[arm["arm"]].marks())
            r = entry["correlations"][key]["within_arms"]
            axis.set_title(f"{visible(place(entry))}: {name}" + ("" if r is None else f", r within arms {r:+.2f}"))
            axis.set_xlabel(f"correlation of {name} with the human maps")
            axis.grid()
        line[0].set_ylabel("AUROC")
    shown = {arm["arm"] for entry in entries for arm in entry["arms"]}
    _legend(figure, [look for arm, look in looks.items() if arm in shown])
    return figure


def _legend(figure: Figure, looks: Sequence[Look]) -> None:
    handles = [figure.axes[0].scatter([], [], s=30, linewidths=1, label=look.label, **look.marks()) for look in looks]
    figure.legend(handles=handles, loc="outside lower center", ncols=max(1, int(figure.get_size_inches()[0] / 2.7)))
