"""Plots of a comparison study: AUROC by arm, AUROC by guidance weight, AUROC by map agreement."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from .study_verdicts import arm_label, place

# Okabe and Ito, "Color universal design" (2008), without yellow and black, which one of the backgrounds swallows.
_PALETTE = ("#0072B2", "#E69F00", "#D55E00", "#009E73", "#CC79A7", "#56B4E9")
_MARKERS = ("o", "s", "D", "^", "v", "P", "X", "*")
# The usual arms look the same in every study.
_FIXED = {"cross_entropy": 6, "cyborg": 0, "opposed": 1, "difference": 2, "contrast": 3, "energy": 4, "sham": 5}
_GRAY = "#8A8D93"
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
    """How an arm is drawn; a control has the colour of the arm that it controls and an open marker."""

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


def arm_looks(arms: Sequence[str], placebos: Mapping[str, Sequence[str]]) -> dict[str, Look]:
    """A look for each arm; no two arms share colour, marker and filling, up to 48 arms without controls.

    Controls beyond an arm's first differ from it by the marker.
    """
    parents = {control: arm for arm, controls in placebos.items() for control in controls}
    free = [number for number in range(len(_PALETTE) * len(_MARKERS)) if number not in _FIXED.values()]
    own = [arm for arm in arms if arm not in parents]
    numbers = {arm: _FIXED[arm] for arm in own if arm in _FIXED}
    numbers |= dict(zip([arm for arm in own if arm not in _FIXED], free * (len(own) // len(free) + 1), strict=False))
    looks = {arm: Look(*_appearance(number), True, arm_label(arm)) for arm, number in numbers.items()}
    for arm in arms:
        if arm in parents:
            parent = looks.get(parents[arm], Look(_GRAY, "o", True, ""))
            place_in_family = list(placebos[parents[arm]]).index(arm)
            marker = _MARKERS[(_MARKERS.index(parent.marker) + place_in_family) % len(_MARKERS)]
            looks[arm] = Look(parent.color, marker, False, arm_label(arm, parents))
    return {arm: looks[arm] for arm in arms}


def _appearance(number: int) -> tuple[str, str]:
    if number == _FIXED["cross_entropy"]:
        return _GRAY, "s"
    return _PALETTE[number % len(_PALETTE)], _MARKERS[number // len(_PALETTE) % len(_MARKERS)]


def draw_study(
    statistics: Sequence[dict[str, Any]],
    selection: Mapping[str, Mapping[str, Any]],
    placebos: Mapping[str, Sequence[str]],
    reference: str,
) -> list[Plot]:
    """All plots of a study, those of each protocol together; a plot without anything to show is left out.

    Args:
      statistics: of `study_statistics.study_statistics`.
      selection: of `study_outcomes.read_selection`.
      placebos: of each arm its controls.
      reference: its mean is drawn as a line across the arms.
    """
    arms = list(dict.fromkeys(arm["arm"] for entry in statistics for arm in entry["arms"]))
    looks = arm_looks(arms, placebos)
    plots = []
    for protocol in dict.fromkeys(entry["protocol"] for entry in statistics):
        entries = _shown(statistics, protocol)
        if any(arm["figures"]["auroc"]["mean"] is not None for entry in entries for arm in entry["arms"]):
            order = arrange(arms, placebos)
            draw = lambda theme, e=entries, o=order: draw_auroc(e, o, looks, reference, theme)
            plots.append(_render(f"auroc_{protocol}", f"AUROC by arm: {protocol}", _AUROC_TEXT, draw))
        by_alpha = {arm: own["alphas"] for arm, own in selection.get(protocol, {}).items() if arm in looks}
        if any(len(alphas) > 1 for alphas in by_alpha.values()):
            chosen = selection[protocol]
            draw = lambda theme, c=chosen, e=entries: draw_alpha(c, e, looks, theme)
            plots.append(_render(f"alpha_{protocol}", f"AUROC by guidance weight: {protocol}", _ALPHA_TEXT, draw))
        if any(_points(arm, "cc_difference") or _points(arm, "cc_true") for e in entries for arm in e["arms"]):
            draw = lambda theme, e=entries: draw_agreement(e, looks, theme)
            title = f"AUROC by agreement with the human maps: {protocol}"
            plots.append(_render(f"agreement_{protocol}", title, _AGREEMENT_TEXT, draw))
    return plots


_AUROC_TEXT = (
    "Each dot is a seed; the upright bar is the mean, the line its 95 % interval over seeds and groups of images "
    "(over seeds alone where there is one group). The dashed line is the reference's mean. Open marks are placebos."
)
_ALPHA_TEXT = (
    "Mean over seeds. Filled marks are the weights chosen on validation, larger ones of those that tie. On the test sets "
    "only they count; the other points are exploration and took no part in the choice. alpha = 1 is cross-entropy alone."
)
_AGREEMENT_TEXT = (
    "Each dot is one seed of an arm, the mean over its folds where there are several: correlation of T and of D = T - U "
    "with the human maps, and AUROC on the same set. r within arms: each arm's mean taken away."
)


def arrange(arms: Sequence[str], placebos: Mapping[str, Sequence[str]]) -> list[str]:
    """The arms in their order, each followed by its controls."""
    controls = {control for own in placebos.values() for control in own}
    own = [name for arm in arms if arm not in controls for name in (arm, *placebos.get(arm, ()))]
    return [arm for arm in dict.fromkeys([*own, *arms]) if arm in arms]


def _shown(statistics: Sequence[dict[str, Any]], protocol: str) -> list[dict[str, Any]]:
    """The sets of the test, the open one first; validation only where there is no test."""
    own = [entry for entry in statistics if entry["protocol"] == protocol]
    tests = [entry for entry in own if entry["set"] != "val"]
    return sorted(tests or own, key=lambda entry: entry["set"] != "open")


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
        known = [v for arm in entry["arms"] for v in arm["figures"]["auroc"]["values"] if v is not None]
        axis.set_xlim(*_limits(known))
        if reference in by_arm and by_arm[reference]["figures"]["auroc"]["mean"] is not None:
            mean = by_arm[reference]["figures"]["auroc"]["mean"]
            axis.axvline(mean, color=looks[reference].color, linewidth=1, linestyle=(0, (4, 3)), zorder=1)
        for row, name in enumerate(arms):
            if name in by_arm:
                _draw_arm(axis, row, by_arm[name]["figures"]["auroc"], looks[name], theme)
        axis.set_title(f"{place(entry)}: {entry['images']} images, {entry['groups']} groups", fontsize=10)
        axis.set_xlabel("AUROC")
        axis.grid(axis="x", color=theme.line, linewidth=0.7)
    axes[0][0].set_yticks(range(len(arms)), [looks[name].label for name in arms])
    axes[0][0].set_ylim(len(arms) - 0.45, -0.55)
    return figure


def _draw_arm(axis: Axes, row: int, figures: dict[str, Any], look: Look, theme: Theme) -> None:
    values = np.array([value for value in figures["values"] if value is not None])
    if not len(values):
        axis.text(0.5, row, "none", transform=axis.get_yaxis_transform(), color=theme.soft, va="center", fontsize=8)
        return
    width = np.diff(axis.get_xlim())[0]
    axis.scatter(values, row - 0.1 + _spread(values, width), s=22, linewidths=0.9, zorder=3, **look.marks(theme))
    bounds = figures["bootstrap"] or figures["interval"]
    if bounds:
        axis.plot(bounds, [row + 0.28] * 2, color=look.color, linewidth=1.8, solid_capstyle="butt", zorder=2)
    axis.plot([figures["mean"]] * 2, [row + 0.17, row + 0.39], color=theme.ink, linewidth=2, zorder=4)
    text = f"{figures['mean']:.3f}"
    axis.text(1.01, row, text, transform=axis.get_yaxis_transform(), color=theme.soft, va="center", fontsize=8)


def _spread(values: np.ndarray, width: float) -> np.ndarray:
    """Vertical offsets that keep dots of nearly equal value apart."""
    offsets, seen = np.zeros(len(values)), {}
    for index in np.argsort(values, kind="stable"):
        column = int(values[index] / width * 34)
        number = seen[column] = seen.get(column, -1) + 1
        offsets[index] = 0.11 * (-1) ** number * ((number + 1) // 2)
    return np.clip(offsets, -0.33, 0.22)


def _limits(values: Sequence[float]) -> tuple[float, float]:
    low, high = min(values), max(values)
    margin = max(0.06 * (high - low), 0.01)
    return low - margin, min(high + margin, 1.005) if high <= 1 else high + margin


def draw_alpha(
    chosen: Mapping[str, Any], entries: Sequence[dict[str, Any]], looks: Mapping[str, Look], theme: Theme
) -> Figure:
    """A panel for validation and one for each set of the test; a line for each arm over its guidance weights."""
    arms = {arm: own for arm, own in chosen.items() if arm in looks}
    alphas = sorted({point["alpha"] for own in arms.values() for point in own["alphas"]} - {None})
    sets = [entry["set"] for entry in entries if entry["set"] != "val"]
    by = next(iter(arms.values()))["select_by"]
    figure, axes = _panels(1, 1 + len(sets), (3.6 * (1 + len(sets)) + 0.6, 4.2), theme)
    panels = [("val", f"validation {by}"), *((name, "AUROC") for name in sets)]
    for axis, (name, quantity) in zip(axes[0], panels, strict=True):
        read = lambda point, name=name: (
            point["validation"] if name == "val" else point["test"].get(name, {}).get("auroc")
        )
        for arm, own in arms.items():
            _draw_line(axis, [(p["alpha"], read(p)) for p in own["alphas"]], own["chosen"], alphas, looks[arm], theme)
        axis.set_xticks(range(len(alphas)), [f"{alpha:g}" for alpha in alphas])
        axis.set_xlabel("alpha")
        axis.set_ylabel(quantity)
        axis.set_xlim(-0.4, len(alphas) - 0.6)
        axis.set_title("validation: decides" if name == "val" else f"{name}: open marks are exploration", fontsize=10)
        axis.grid(color=theme.line, linewidth=0.7)
    _legend(figure, {arm: looks[arm] for arm in arms}, theme)
    return figure


def _draw_line(
    axis: Axes,
    points: Sequence[tuple[float | None, float | None]],
    chosen: float | None,
    alphas: Sequence[float],
    look: Look,
    theme: Theme,
) -> None:
    """An arm's line over its weights; a dotted one across the panel for an arm that has none."""
    known = [(alphas.index(alpha), value) for alpha, value in points if alpha is not None and value is not None]
    for alpha, value in points:
        if alpha is None and value is not None:
            axis.axhline(value, color=look.color, linewidth=1.2, linestyle=":")
    if not known:
        return
    x, y = zip(*known, strict=True)
    # Placebos are dashed, as their open markers mean something else here.
    style = {"color": look.color, "linestyle": "-" if look.filled else "--", "linewidth": 1.2, "marker": look.marker}
    axis.plot(x, y, markersize=5, markerfacecolor=theme.background, **style)
    if chosen in alphas:
        best = [pair for pair in known if pair[0] == alphas.index(chosen)]
        axis.plot(*zip(*best, strict=True), markersize=8, **style | {"linestyle": ""})


def draw_agreement(entries: Sequence[dict[str, Any]], looks: Mapping[str, Look], theme: Theme) -> Figure:
    """A row for each set; T to the left, D to the right."""
    figure, axes = _panels(len(entries), 2, (9.2, 3.5 * len(entries) + 1.0), theme, sharey="row")
    for line, entry in zip(axes, entries, strict=True):
        for axis, key, name in zip(line, ("cc_true", "cc_difference"), ("T", "D = T - U"), strict=True):
            for arm in entry["arms"]:
                points = _points(arm, key)
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


def _points(arm: dict[str, Any], key: str) -> list[tuple[float, float]]:
    pairs = zip(arm["figures"][key]["values"], arm["figures"]["auroc"]["values"], strict=True)
    return [pair for pair in pairs if None not in pair]


def _panels(
    rows: int, columns: int, size: tuple[float, float], theme: Theme, **shared: Any
) -> tuple[Figure, np.ndarray]:
    figure = Figure(figsize=size, layout="constrained", facecolor=theme.background)
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
    handles = [axis.scatter([], [], s=30, linewidths=1, label=look.label, **look.marks(theme)) for look in looks.values()]
    columns = max(1, int(figure.get_size_inches()[0] / 2.7))
    figure.legend(
        handles=handles, loc="outside lower center", ncols=columns, frameon=False, fontsize=8.5, labelcolor=theme.ink
    )
