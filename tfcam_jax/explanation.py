"""The report on a checkpoint: what carried its decisions, image by image and over the set, as a page and as data.

The images are worked through in chunks. Each chunk leaves its PNGs and one JSON file in a folder beside the report's,
which becomes the report once all are there: a report that was cut off goes on where it stopped, and no chunk is held
in memory longer than its turn.
"""

from __future__ import annotations

import hashlib
import heapq
import itertools
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import UInt8
from scipy.special import softmax
from tqdm import tqdm

from .data.image_folder import open_image_folder
from .data.source import DataError, Records, Source, Subset
from .experiment import data_recipe, open_dataset
from .inference import TrainedModel, restore_trained
from .report.decomposition import Explanation, is_cosmetic, make_explain_step, margin_regions
from .report.map_grid import Panel, Row, draw_panels
from .report.page import write_page
from .report.pictures import crop, data_uri, pack_maps, sheet
from .run.workdir import write_json

CHUNK = 128  # images, at least
TOP_REGIONS = 48
# Longest side of the input's picture in the page, by the number of images.
_SMALL, _LARGE, _MANY = 112, 192, 1500


class ReportError(RuntimeError):
    """A report that can't be written where it was asked for."""


class Explained(NamedTuple):
    """One batch of `explain_source`, in NumPy.

    Attributes:
      rows: place of each image in the source.
      images: as the model's preprocessing takes them.
      explanation: see `explain.Explanation`.
    """

    rows: np.ndarray
    images: UInt8[np.ndarray, "n S S channels"]
    explanation: Explanation


def explain_source(trained: TrainedModel, source: Source) -> Iterator[Explained]:
    """Explains every image of a source, in order, a batch at a time, on all local devices."""
    yield from _explain(trained, jax.jit(make_explain_step(trained.model, trained.preprocess)), source)


def _explain(trained: TrainedModel, step: Any, source: Source) -> Iterator[Explained]:
    for batch in trained.eval_epoch(source):
        real = np.asarray(batch["mask"]) > 0
        keep = lambda leaf, real=real: np.asarray(leaf)[real]
        inputs = {name: batch[name] for name in ("image", "label", "saliency")}
        explanation = step(trained.state.params, trained.state.batch_stats, inputs)
        yield Explained(keep(batch["index"]), keep(batch["image"]), jax.tree.map(keep, explanation))


def write_report(
    workdir: str | Path,
    out: str | Path,
    images: str | Path | None = None,
    split: str | None = None,
    data: str | Path | None = None,
) -> Path:
    """Explains images with a run's best checkpoint and writes the report.

    Args:
      workdir: a run.
      out: folder of the report, which must not exist or be empty. In the end it holds `index.html` (complete in
        itself), `figures.json`, `mean_maps.png` and `images/`, a PNG per image.
      images: folder of unlabelled images; the predicted class counts as the true one.
      split: `train`, `val` or `test` of the run's data or of `data`; where none is given `test`, or `val` if there is
        no test. Not with `images`.
      data: CSV manifest of other data with the same classes.

    Returns:
      The path of `index.html`.

    Raises:
      WorkdirError, CheckpointError: no run with a sound checkpoint there.
      DataError: no such images, broken ones (each is named), or other classes.
      ReportError: `out` holds something, or images and a split were asked for at once.
    """
    workdir, out = Path(workdir), Path(out)
    if images and (split or data):
        raise ReportError("give either a folder of images, or a split of the run's data or of a manifest")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ReportError(f"{out} exists already and is not empty; choose another folder with --out, or delete it")
    trained = restore_trained(workdir)
    source, title = _open(trained, images, split, data)
    about = {
        "title": title,
        "run": workdir.resolve().name,
        "strategy": trained.config.strategy,
        "model": trained.config.model.name,
        "epoch": trained.epoch,
        "class_names": list(trained.class_names),
        "images": len(source),
        "image_size": trained.image_size,
    }
    staging = _prepare(out, about, trained, source.records)
    chunks = _write_chunks(trained, source, staging)
    summary = summarize(chunks, trained.class_names)
    _draw_mean_maps(summary, staging / "mean_maps.png")
    _write_figures(staging / "figures.json", about, summary, chunks)
    write_page(staging / "index.html", about, summary, chunks)
    return _finish(staging, out)


def _open(
    trained: TrainedModel, images: str | Path | None, split: str | None, data: str | Path | None
) -> tuple[Source, str]:
    if images:
        return open_image_folder(images, trained.config.data.channels), Path(images).name
    if data:
        opened = data_recipe(trained.config).open_split(data, split, trained.class_names)
        return opened.source, f"{Path(data).name}, {opened.split}"
    dataset = open_dataset(trained.config)
    split = split or ("test" if "test" in dataset.splits else "val")
    if split not in dataset.splits:
        raise DataError([f"no split {split!r} in these data; there are {', '.join(dataset.splits)}"])
    if tuple(dataset.class_names) != trained.class_names:
        now, then = ", ".join(dataset.class_names), ", ".join(trained.class_names)
        raise DataError([f"the data of the run have classes {now} now; it was trained on {then}"])
    return dataset.splits[split], f"{dataset.name}, {split}"


def _prepare(out: Path, about: dict[str, Any], trained: TrainedModel, records: Records) -> Path:
    """The folder that is worked in, beside the report's: what it holds of the very same report is kept."""
    staging = out.parent / f".{out.name}.partial"
    content = hashlib.sha256(repr((records.ids, records.labels.tolist(), records.domains, records.groups)).encode())
    for leaf in jax.tree.leaves((trained.state.params, trained.state.batch_stats)):
        content.update(np.asarray(leaf).tobytes())
    fingerprint = {"about": about, "content": content.hexdigest()}
    path = staging / "fingerprint.json"
    if path.exists() and json.loads(path.read_text(encoding="utf-8")) == fingerprint:
        return staging
    if staging.exists():
        shutil.rmtree(staging)
    for folder in ("chunks", "images"):
        (staging / folder).mkdir(parents=True)
    write_json(path, fingerprint)
    return staging


def _write_chunks(trained: TrainedModel, source: Source, staging: Path) -> list[Path]:
    """Explains chunk by chunk; one that is there already is not made again."""
    batch = trained.config.evaluation.batch_size
    size = -(-CHUNK // batch) * batch
    step = jax.jit(make_explain_step(trained.model, trained.preprocess))
    longest = _LARGE if len(source) <= _MANY else _SMALL
    paths = []
    with tqdm(total=len(source), desc="explaining", unit="image", disable=None) as bar:
        for number, start in enumerate(range(0, len(source), size)):
            rows = range(start, min(start + size, len(source)))
            paths.append(staging / "chunks" / f"{number:05d}.json")
            if not paths[-1].exists():
                batches = _explain(trained, step, Subset(source, rows))
                chunk = _chunk(batches, source.records, trained.class_names, start, staging, longest)
                write_json(paths[-1], chunk)
            bar.update(len(rows))
    return paths


def _chunk(
    batches: Iterator[Explained],
    records: Records,
    class_names: tuple[str, ...],
    start: int,
    staging: Path,
    longest: int,
) -> dict[str, Any]:
    """Figures and pictures of some images, and their share of the set's sums. Writes their PNGs."""
    entries, pictures, regions, sums = [], [], [], {}
    for explained in batches:
        for i, row in enumerate(explained.rows + start):
            image = explained.images[i]
            one = jax.tree.map(lambda leaf, i=i: leaf[i], explained.explanation)
            entry = image_figures(one, int(row), records, class_names)
            entries.append(entry)
            parts = one.decomposition
            maps = np.stack([parts.true_map, parts.false_map, parts.difference])
            packed, reach = pack_maps(maps)
            human = np.rint(255 * one.saliency).astype(int).tolist() if one.usable else None
            pictures.append({"input": data_uri(image, longest), "maps": packed, "reach": reach, "human": human})
            for region in entry["regions"][:3]:
                piece = crop(image, region["box"], parts.difference.shape)
                regions.append({"row": int(row), **region, "crop": piece})
            _add_maps(sums, entry, one)
            named = dict(zip(("T", "U", "D = T - U"), maps, strict=True))
            human_map = one.saliency if one.usable else None
            sheet(image, human_map, named, _caption(entry), _ledger(entry)).save(staging / entry["png"])
    regions = heapq.nlargest(TOP_REGIONS, regions, key=lambda region: abs(region["contribution"]))
    for region in regions:
        region["crop"] = data_uri(region["crop"], 96)
    return {"entries": entries, "pictures": pictures, "regions": regions, "sums": sums}


def image_figures(one: Explanation, row: int, records: Records, class_names: tuple[str, ...]) -> dict[str, Any]:
    """All figures of one image, JSON-able.

    `sum(contributions of regions) + rest + bias_difference == margin`, up to float32's rounding. The margin, and
    `p`, the softmax probability, are those of the label, or of the prediction for an image without a label.
    """
    parts, label = one.decomposition, int(records.labels[row])
    regions, rest = margin_regions(parts.difference)
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
        "margin": float(parts.margin),
        "mean_difference": float(parts.difference.mean(dtype=np.float64)),
        "bias_difference": float(parts.bias_difference),
        "regions": [region._asdict() for region in regions],
        "rest": rest,
        "true_agreement": float(one.true_agreement) if usable else None,
        "difference_agreement": float(one.difference_agreement) if usable else None,
        "fooling_gap": float(one.fooling_gap),
        "cosmetic": usable and bool(is_cosmetic(one.true_agreement[None], one.difference_agreement[None])[0]),
        "png": f"images/{row:06d}_{stem}.png",
    }


def _caption(entry: dict[str, Any]) -> str:
    label = f"{entry['label']}, called {entry['prediction']}" if entry["label"] else f"called {entry['prediction']}"
    return f"{entry['id']}: {label}; margin {entry['margin']:+.3f}, p {entry['p']:.3f}"


def _ledger(entry: dict[str, Any]) -> list[str]:
    """What adds up to the margin, as lines of text."""
    regions = entry["regions"]
    lines = [f"{region['contribution']:+.3f}  region of {region['places']} places" for region in regions[:4]]
    others = entry["rest"] + sum(region["contribution"] for region in regions[4:])
    return [
        *lines,
        f"{others:+.3f}  everywhere else",
        f"{entry['bias_difference']:+.3f}  bias difference",
        f"{entry['margin']:+.3f}  margin",
    ]


def _add_maps(sums: dict[str, Any], entry: dict[str, Any], one: Explanation) -> None:
    """Adds D, and where there is a human map N(D) - S, to the sums of every set that the image belongs to."""
    keys = ["all images", f"class {entry['label'] or entry['prediction']}"]
    if entry["right"] is not None:
        keys += ["right" if entry["right"] else "wrong", f"{entry['label']}, {'right' if entry['right'] else 'wrong'}"]
    keys += [f"domain {entry['domain']}"] if entry["domain"] else []
    difference = one.decomposition.difference.astype(np.float64)
    low, high = difference.min(), difference.max()
    normalized = (difference - low) / (high - low) if high > low else np.zeros_like(difference)
    for key in keys:
        into = sums.setdefault(key, {"images": 0, "maps": 0, "difference": 0.0, "disagreement": 0.0})
        into["images"] += 1
        into["difference"] = (np.asarray(into["difference"]) + difference).tolist()
        if one.usable:
            into["maps"] += 1
            into["disagreement"] = (np.asarray(into["disagreement"]) + normalized - one.saliency).tolist()


def read_chunk(path: Path) -> dict[str, Any]:
    """What `_chunk` left."""
    return json.loads(path.read_text(encoding="utf-8"))


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
    for path in chunks:
        chunk = read_chunk(path)
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
    means = {
        key: {
            "images": int(part["images"]),
            "maps": int(part["maps"]),
            "difference": (part["difference"] / part["images"]).tolist(),
            "disagreement": (part["disagreement"] / part["maps"]).tolist() if part["maps"] else None,
        }
        for key, part in sorted(sums.items(), key=lambda item: _order(item[0], class_names))
    }
    figures = {
        "images": means["all images"]["images"],
        "maps": means["all images"]["maps"],
        "accuracy": mean("right"),
        "mean_margin": mean("margin"),
        "true_agreement": mean("true_agreement"),
        "difference_agreement": mean("difference_agreement"),
        "fooling_gap": mean("fooling_gap"),
        "cosmetic": int(totals["cosmetic"][0]),
    }
    return {"figures": figures, "mean_maps": means, "regions": regions}


def _order(key: str, class_names: tuple[str, ...]) -> tuple[int, str]:
    first = ["all images", *(f"class {name}" for name in class_names), "right", "wrong"]
    return (first.index(key), "") if key in first else (len(first) + key.startswith("domain "), key)


def _draw_mean_maps(summary: dict[str, Any], path: Path) -> None:
    rows = []
    for key, part in summary["mean_maps"].items():
        disagreement = part["disagreement"]
        panels = [
            Panel("mean D", np.asarray(part["difference"])),
            Panel("N(D) - human map", None if disagreement is None else np.asarray(disagreement)),
        ]
        rows.append(Row(f"{key}\n{part['images']} images", panels))
    draw_panels(rows, path, title="Where the margin comes from, each panel on its own scale")


def _write_figures(path: Path, about: dict[str, Any], summary: dict[str, Any], chunks: list[Path]) -> None:
    """`figures.json`: about, summary and images, written one image after the other."""
    regions = [{k: v for k, v in region.items() if k != "crop"} for region in summary["regions"]]
    with path.open("w", encoding="utf-8") as file:
        head = json.dumps({"about": about, "summary": {**summary, "regions": regions}}, indent=1)
        file.write(head.removesuffix("\n}") + ',\n "images": [')
        entries = (entry for chunk in chunks for entry in read_chunk(chunk)["entries"])
        for number, entry in enumerate(entries):
            file.write(("," if number else "") + "\n  " + json.dumps(entry))
        file.write("\n ]\n}\n")


def _finish(staging: Path, out: Path) -> Path:
    shutil.rmtree(staging / "chunks")
    (staging / "fingerprint.json").unlink()
    if out.exists():
        out.rmdir()  # it is empty, or this raises
    staging.rename(out)
    return out / "index.html"
