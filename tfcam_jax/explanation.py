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
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from absl import logging
from jaxtyping import Float, UInt8
from tqdm import tqdm

from . import cams
from .data.fingerprint import compare_fingerprints, digest_fingerprint, take_fingerprint
from .data.outputs import write_folder
from .data.paths import local_path
from .data.source import Records, Source, Subset
from .data.unlisted import open_image_folder
from .errors import UserError
from .inference import Trained, check_out, choose_split, find_workdir, open_other_data, open_own_data, restore
from .metrics.agreement import correlation, fooling_gap
from .report import summary as of_report
from .report.page import write_page
from .report.pictures import crop, data_uri, pack_maps, sheet
from .run.files import write_json
from .run.workdir import load_config
from .steps import EvalOutput

CHUNK = 128  # images, at least
# Longest side of the input's picture in the page, by the number of images.
_SMALL, _LARGE, _MANY = 112, 192, 1500


class ReportError(UserError, RuntimeError):
    """A report that can't be written where it was asked for."""


class Explained(NamedTuple):
    """One batch of `explain_source`, in NumPy: place of each image in the source, the image as preprocessing takes it.

    `agreement` has of each image `true` and `difference`, the correlation of T and of D with the human map (in [-1, 1];
    0 where there is none), and `fooling_gap`, see `metrics.agreement.fooling_gap`.
    """

    rows: np.ndarray
    images: UInt8[np.ndarray, "n S S channels"]
    output: EvalOutput
    agreement: dict[str, Float[np.ndarray, " n"]]


def explain_source(trained: Trained, source: Source) -> Iterator[Explained]:
    """Explains every image of a source, in order, a batch at a time, on all local devices."""
    also = lambda output, batch: (batch["index"], batch["image"], _agreement(output))
    for output, (rows, images, agreement) in trained.outputs(source, also):
        yield Explained(rows, images, output, agreement)


@jax.jit
def _agreement(output: EvalOutput) -> dict[str, jax.Array]:
    true_map, false_map = output.true_map, output.false_map
    magnitude = cams.largest_magnitude(true_map, false_map)
    difference = cams.normalize(cams.difference_salience(true_map, false_map), magnitude)
    return {
        "true": correlation(true_map, output.saliency),
        "difference": correlation(difference, output.saliency),
        "fooling_gap": fooling_gap(true_map, false_map),
    }


def explain(
    workdir: str | Path,
    out: str | Path | None = None,
    images: str | Path | None = None,
    split: str | None = None,
    data: str | Path | None = None,
    accept_changed_data: bool = False,
) -> Path:
    """Explains images with a run's best checkpoint and writes the report.

    Args:
      workdir: a run, or a published model (see `inference.restore`), which needs `out`, and `images` or `data`.
      out: folder of the report, which must not exist or be empty; None: `report` in the workdir. In the end it holds
        `index.html` (complete in itself), `figures.json`, `mean_maps.png` and `images/`, a PNG per image.
      images: folder of unlabelled images; the predicted class counts as the true one.
      split: `train`, `val` or `test` of the run's data or of `data`; None: `test`, or `val` if there is no test. Not
        with `images`.
      data: CSV manifest of other data with the same classes.
      accept_changed_data: explain the run's own data though they are not what it was trained on; what differs is told.

    Returns:
      The path of `index.html`.

    Raises:
      WorkdirError, CheckpointError: no run with a sound checkpoint there.
      PublishedError: see `inference.restore`.
      DataError: no such images, broken ones (each is named), or other classes; the run's own, if they were changed.
      ReportError: `out` holds something, or images and a split were asked for at once.
      OutputError: `out` can't be written, or another process is writing it.
    """
    check_out(workdir, out)
    name, workdir = Path(workdir).resolve().name, find_workdir(workdir)
    named = local_path(out, "--out") if out is not None else workdir / "report"
    if images is not None:
        images = _folder_beside(local_path(images, "--images"), named)
    if images is not None and (split or data is not None):
        raise ReportError("give either a folder of images, or a split of the run's data or of a manifest")
    data = None if data is None else local_path(data, "--data")
    load_config(workdir)  # before a folder is made in what is no run
    with write_folder(named, _refuse, keep=True) as staging:
        trained = restore(workdir)
        source, title = _open(trained, workdir, images, split, data, accept_changed_data)
        about = {
            "title": title,
            "run": name,
            "strategy": trained.recipe.strategy_name,
            "model": trained.recipe.model_name,
            "epoch": trained.epoch,
            "class_names": list(trained.class_names),
            "images": len(source),
            "image_size": trained.recipe.image_size,
        }
        of_data = take_fingerprint(trained.class_names, {title: source})
        _prepare(staging, about, trained, of_data)
        about["data_fingerprint"] = digest_fingerprint(of_data)
        chunks = _write_chunks(trained, source, staging)
        summary = of_report.summarize(chunks, trained.class_names)
        of_report.draw_mean_maps(summary, staging / "mean_maps.png")
        of_report.write_figures(staging / "figures.json", about, summary, chunks)
        write_page(staging / "index.html", about, summary, chunks)
        shutil.rmtree(staging / "chunks")
        (staging / "fingerprint.json").unlink()
    return named / "index.html"


def _folder_beside(images: Path, out: Path) -> Path:
    """The folder of images; ReportError where the report would lie in it, and be images of the next one."""
    if Path(os.path.realpath(out)).is_relative_to(os.path.realpath(images)):
        raise ReportError(f"{out} lies in {images}, the folder of images, whose part it would be: give another --out")
    return images


def _refuse(out: Path) -> None:
    """Raises ReportError: a report is not replaced."""
    what = "holds a report already" if (out / "figures.json").exists() else "exists already and is not empty"
    raise ReportError(f"{out} {what}: give another folder, as --out={_free(out)}, or delete it for a new report")


def _free(folder: Path) -> Path:
    """The first folder of that name with a number that does not exist yet."""
    return next(path for n in itertools.count(2) if not (path := folder.with_name(f"{folder.name}{n}")).exists())


def _open(
    trained: Trained,
    workdir: Path,
    images: str | Path | None,
    split: str | None,
    data: str | Path | None,
    accept_changed_data: bool,
) -> tuple[Source, str]:
    if images is not None:
        return open_image_folder(images, trained.recipe.data.channels, trained.recipe.data.bits), Path(images).name
    if data is not None:
        (opened,) = open_other_data(trained, workdir, data, [split])
        return opened.source, f"{Path(data).name}, {opened.split}"
    dataset = open_own_data(trained, workdir, accept_changed_data)
    split = choose_split(dataset, split)
    return dataset.splits[split], f"{dataset.name}, {split}"


def _prepare(staging: Path, about: dict[str, Any], trained: Trained, data: dict[str, Any]) -> None:
    """Readies the folder that is worked in: what it holds of the very same report is kept, anything else is not."""
    content = hashlib.sha256()
    for leaf in jax.tree.leaves((trained.state.params, trained.state.batch_stats)):
        content.update(np.asarray(leaf).tobytes())
    fingerprint = {"about": about, "weights": content.hexdigest(), "data": data}
    path = staging / "fingerprint.json"
    if path.exists():
        kept = json.loads(path.read_text(encoding="utf-8"))
        other = _tell_other(kept, fingerprint)
        if not other:
            return
        logging.warning("the report that was cut off is begun anew, as it is of %s", other)
    for entry in staging.iterdir():
        shutil.rmtree(entry) if entry.is_dir() else entry.unlink()
    for folder in ("chunks", "images"):
        (staging / folder).mkdir()
    write_json(path, fingerprint)


def _tell_other(kept: dict[str, Any], wanted: dict[str, Any]) -> str:
    """What a report that was cut off is of, other than the one wanted; "" if it is that."""
    if "data" not in kept:
        return "an earlier version"
    if kept["weights"] != wanted["weights"]:
        return "another checkpoint"
    found = compare_fingerprints(kept["data"], wanted["data"])
    if kept["data"]["splits"].keys() != wanted["data"]["splits"].keys():
        return f"other data: {', '.join(kept['data']['splits'])}"
    if any(found):
        return f"other data: {'; '.join([*found.changed, *found.harmless, *filter(None, [found.classes])])}"
    return "" if kept["about"] == wanted["about"] else "another run"


def _write_chunks(trained: Trained, source: Source, staging: Path) -> list[Path]:
    """Explains chunk by chunk; one that is there already is not made again."""
    batch = trained.recipe.eval_batch_size
    size = -(-CHUNK // batch) * batch
    longest = _LARGE if len(source) <= _MANY else _SMALL
    paths = []
    with tqdm(total=len(source), desc="explaining", unit="image", disable=None) as bar:
        for number, start in enumerate(range(0, len(source), size)):
            rows = range(start, min(start + size, len(source)))
            paths.append(staging / "chunks" / f"{number:05d}.json")
            if not paths[-1].exists():
                batches = explain_source(trained, Subset(source, rows))
                write_json(paths[-1], _chunk(batches, source.records, trained.class_names, start, staging, longest))
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
    """Metrics and pictures of some images, and their share of the set's sums. Writes their PNGs."""
    entries, pictures, regions, sums = [], [], [], {}
    for explained in batches:
        for i, row in enumerate(explained.rows + start):
            image = explained.images[i]
            one, agreement = jax.tree.map(lambda leaf, i=i: leaf[i], (explained.output, explained.agreement))
            entry = of_report.describe_image(one, agreement, int(row), records, class_names)
            entries.append(entry)
            maps = np.stack([one.true_map, one.false_map, one.difference])
            packed, reach = pack_maps(maps)
            human = np.rint(255 * one.saliency).astype(int).tolist() if one.usable else None
            pictures.append({"input": data_uri(image, longest), "maps": packed, "reach": reach, "human": human})
            for region in entry["regions"][:3]:
                piece = crop(image, region["box"], maps.shape[1:])
                regions.append({"row": int(row), **region, "crop": piece})
            of_report.add_maps(sums, entry, one)
            named: dict[str, np.ndarray] = dict(zip(("T", "U", "D = T - U"), maps, strict=True))
            human_map = one.saliency if one.usable else None
            page = sheet(image, human_map, named, {"D = T - U"}, of_report.caption(entry), of_report.ledger(entry))
            page.save(staging / entry["png"])
    regions = heapq.nlargest(of_report.TOP_REGIONS, regions, key=lambda region: abs(region["contribution"]))
    for region in regions:
        region["crop"] = data_uri(region["crop"], 96)
    return {"entries": entries, "pictures": pictures, "regions": regions, "sums": sums}
