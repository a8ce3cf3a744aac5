"""Metrics of one explained image, with the regions that carried its margin, and what many images come to."""

from __future__ import annotations

import heapq
import itertools
import json
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float
from scipy import ndimage
from scipy.special import softmax

from ..data.source import Records
from ..steps import EvalOutput
from .map_grid import Panel, Row, draw_panels
from .page import read_chunks

# A region is where |D| is at least this share of its largest value in the image.
REGION_THRESHOLD = 0.5
# A true-class map looks right from this correlation with the human map on; the difference does not below half of it.
LOOKS_RIGHT = 0.5
TOP_REGIONS = 48


class Region(NamedTuple):
    """Connected places of one sign that carry much of a margin.

    `contribution` is what they add to the margin, negative where they speak for the false class; `places` how many;
    `box` the first row, the first column, one past the last row, one past the last column, in places.
    """

    contribution: float
    places: int
    box: tuple[int, int, int, int]


def margin_regions(
    difference: Float[np.ndarray, "h w"], threshold: float = REGION_THRESHOLD
) -> tuple[list[Region], float]:
    """Splits the mean of D of one image into the regions that carry it, and the rest.

    Regions are the 4-connected components of equal sign where |D| reaches `threshold`, in (0, 1], of its largest value;
    the largest contribution (in magnitude) first. `sum(contributions) + rest == mean(D)`, and for the margin of
    `cams.decompose_margin` the bias difference comes on top. A D that is zero everywhere has no region.
    """
    values = np.asarray(difference, np.float64)
    strong = np.abs(values) >= threshold * np.abs(values).max()
    strong &= values != 0
    regions = []
    for sign in (values > 0, values < 0):
        components = np.zeros(values.shape, int)
        ndimage.label(strong & sign, output=components)
        for number, (rows, columns) in enumerate(ndimage.find_objects(components), start=1):
            member = components == number
            box = (rows.start, columns.start, rows.stop, columns.stop)
            regions.append(Region(float(values[member].sum() / values.size), int(member.sum()), box))
    regions.sort(key=lambda region: -abs(region.contribution))
    return regions, float(values[~strong].sum() / values.size)


def is_cosmetic(
    true_agreement: Float[np.ndarray, " n"], difference_agreement: Float[np.ndarray, " n"]
) -> Bool[np.ndarray, " n"]:
    """True where T looks right (correlation with the human map from 0.5 on) while D, which decides, is below 0.25."""
    return (true_agreement >= LOOKS_RIGHT) & (difference_agreement < LOOKS_RIGHT / 2)


def describe_image(
    one: EvalOutput, agreement: dict[str, Any], row: int, records: Records, class_names: tuple[str, ...]
) -> dict[str, Any]:
    """Every metric of one image, JSON-able.

    `sum(contributions of regions) + rest + bias_difference == margin`, up to float32's rounding. The margin, and
    `p`, the softmax probability, are those of the label, or of the prediction for an image without a label.
    """
    difference, label = np.asarray(one.difference), int(records.labels[row])
    regions, rest = margin_regions(difference)
    usable, predicted = bool(one.usable), int(one.logits.argmax())
    stem = "".join(c if c.isalnum() or c in "-._" else "_" for c in records.ids[row])[-60:]
    return {
        "row": row,
        "id": records.ids[row],
        "label": None if label < 0 else class_names[label],
        "prediction": class_names[predicted],
        "right": None if label < 0 else label == predicted,
        "domain": records.domains[row],
        "group": records.groups[row],
        "logits": one.logits.astype(float).tolist(),
        "p": float(softmax(one.logits.astype(np.float64))[int(one.labels)]),
        "margin": float(one.margin),
        "mean_difference": float(difference.mean(dtype=np.float64)),
        "bias_difference": float(one.bias_difference),
        "regions": [region._asdict() for region in regions],
        "rest": rest,
        "true_agreement": float(agreement["true"]) if usable else None,
        "difference_agreement": float(agreement["difference"]) if usable else None,
        "fooling_gap": float(agreement["fooling_gap"]),
        "cosmetic": usable and bool(is_cosmetic(agreement["true"][None], agreement["difference"][None])[0]),
        "png": f"images/{row:06d}_{stem}.png",
    }


def caption(entry: dict[str, Any]) -> str:
    label = f"{entry['label']}, called {entry['prediction']}" if entry["label"] else f"called {entry['prediction']}"
    return f"{entry['id']}: {label}; margin {entry['margin']:+.3f}, p {entry['p']:.3f}"


def ledger(entry: dict[str, Any]) -> list[str]:
    """What adds up to the margin, as lines of text."""
    regions = entry["regions"]
    places = lambda region: f"region of {region['places']} place{'s' if region['places'] > 1 else ''}"
    parts = [(region["contribution"], places(region)) for region in regions[:4]]
    others = entry["rest"] + sum(region["contribution"] for region in regions[4:])
    parts += [(others, "everywhere else"), (entry["bias_difference"], "bias difference"), (entry["margin"], "margin")]
    return [f"{value:+.3f}  {name}" for value, name in parts]


def add_maps(sums: dict[str, Any], entry: dict[str, Any], one: EvalOutput) -> None:
    """Adds D, and where there is a human map N(D) - S, to the sums of every set that the image belongs to."""
    keys = ["all images", f"class {entry['label'] or entry['prediction']}"]
    if entry["right"] is not None:
        keys += ["right" if entry["right"] else "wrong", f"{entry['label']}, {'right' if entry['right'] else 'wrong'}"]
    keys += [f"domain {entry['domain']}"] if entry["domain"] else []
    difference = np.asarray(one.difference, np.float64)
    low, high = difference.min(), difference.max()
    normalized = (difference - low) / (high - low) if high > low else np.zeros_like(difference)
    for key in keys:
        into = sums.setdefault(key, {"images": 0, "maps": 0, "difference": 0.0, "disagreement": 0.0})
        into["images"] += 1
        into["difference"] = (np.asarray(into["difference"]) + difference).tolist()
        if one.usable:
            into["maps"] += 1
            into["disagreement"] = (np.asarray(into["disagreement"]) + normalized - one.saliency).tolist()


def summarize(chunks: list[Path], class_names: tuple[str, ...]) -> dict[str, Any]:
    """Figures over all images, from the chunks' files one after the other.

    Returns:
      `figures` (means and counts), `mean_maps` by set (`images`, `difference`: mean D; `maps`, `disagreement`: mean of
      N(D) - S over those with a human map, positive where the model looks and people do not) and `regions`, those of
      the largest contributions to a margin.
    """
    sums: dict[str, Any] = {}
    totals: dict[str, list[float]] = {}
    regions: list[dict[str, Any]] = []
    for chunk in read_chunks(chunks):
        for key, part in chunk["sums"].items():
            into = sums.setdefault(key, {"images": 0, "maps": 0, "difference": 0.0, "disagreement": 0.0})
            for name, value in part.items():
                into[name] = np.asarray(into[name]) + np.asarray(value)
        for entry in chunk["entries"]:
            for name in ("right", "margin", "true_agreement", "difference_agreement", "fooling_gap", "cosmetic"):
                if entry[name] is not None:
                    total = totals.setdefault(name, [0.0, 0])
                    total[0], total[1] = total[0] + entry[name], total[1] + 1
        regions = heapq.nlargest(
            TOP_REGIONS, itertools.chain(regions, chunk["regions"]), key=lambda region: abs(region["contribution"])
        )
    mean = lambda name: totals[name][0] / totals[name][1] if name in totals else None
    means = {}
    for key, part in sorted(sums.items(), key=lambda item: _order(item[0], class_names)):
        images, maps = int(part["images"]), int(part["maps"])
        disagreement = (part["disagreement"] / maps).tolist() if maps else None
        difference = (part["difference"] / images).tolist()
        means[key] = {"images": images, "maps": maps, "difference": difference, "disagreement": disagreement}
    figures = {
        **{name: means["all images"][name] for name in ("images", "maps")},
        "accuracy": mean("right"),
        "mean_margin": mean("margin"),
        **{name: mean(name) for name in ("true_agreement", "difference_agreement", "fooling_gap")},
        "cosmetic": int(totals["cosmetic"][0]),
    }
    return {"figures": figures, "mean_maps": means, "regions": regions}


def _order(key: str, class_names: tuple[str, ...]) -> tuple[int, str]:
    first = ["all images", *(f"class {name}" for name in class_names), "right", "wrong"]
    return (first.index(key), "") if key in first else (len(first) + key.startswith("domain "), key)


def draw_mean_maps(summary: dict[str, Any], path: Path) -> None:
    rows = []
    for key, part in summary["mean_maps"].items():
        disagreement = None if part["disagreement"] is None else np.asarray(part["disagreement"])
        panels = [Panel("mean D", np.asarray(part["difference"]), signed=True)]
        panels.append(Panel("N(D) - human map", disagreement, signed=True))
        rows.append(Row(f"{key}\n{part['images']} images", panels))
    draw_panels(rows, path, title="Where the margin comes from: each panel on its own scale, white 0")


def write_figures(path: Path, about: dict[str, Any], summary: dict[str, Any], chunks: list[Path]) -> None:
    """`figures.json`: about, summary and images, written one image after the other."""
    regions = [{k: v for k, v in region.items() if k != "crop"} for region in summary["regions"]]
    with path.open("w", encoding="utf-8") as file:
        head = json.dumps({"about": about, "summary": {**summary, "regions": regions}}, indent=1)
        file.write(head.removesuffix("\n}") + ',\n "images": [')
        entries = (entry for chunk in read_chunks(chunks) for entry in chunk["entries"])
        for number, entry in enumerate(entries):
            file.write(("," if number else "") + "\n  " + json.dumps(entry))
        file.write("\n ]\n}\n")
