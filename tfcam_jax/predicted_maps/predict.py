"""Predicted maps as files, and a manifest of the same data that names them."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict
from PIL import Image

from ..data import written_manifest
from ..data.outputs import claimed, write_folder
from ..data.source import DataError, Dataset, Source
from ..errors import ConfigError
from ..experiment import Recipe, open_dataset, resolve
from ..metrics.agreement import correlation
from ..metrics.tables import decimal, tabulate
from ..report.map_grid import Panel, Row, draw_panels
from ..run.files import write_json
from ..run.provenance import collect_provenance
from .predictor import Predicted, cross_fit

# Longer side of the files, px: far above any CAM's places.
_SIDE = 128
_PICTURED = 4


def predict_maps(config: ConfigDict, manifest: str | Path, folds: int = 5, steps: int = 300) -> dict[str, Any]:
    """Predicts a map for each training image that has none, by predictors that learned from those which have one.

    Images of a class without any human map are left alone: there, nobody ever marked anything. Validation and test
    images too: agreement is measured with people's maps. Writes, whole or not at all, `manifest`, which opens as the
    same data with the same splits and says `yes` in the column `predicted` of those maps; beside it, under its name, a
    folder of PNGs (`_maps`), a JSON file with what is returned, the config and versions, and a picture.

    Args:
      config: of data, backbone, weights, optimiser and augmentation, as for training; its strategy makes no difference.
      manifest: CSV to write, in the folder of the images or above; must not exist.
      folds: predictors, each without one part of the annotated images.
      steps: of each predictor, at least; whole epochs.

    Returns:
      `folds`, `epochs`; `images`, by class: training images, those `annotated` and those `predicted`; `agreement`, by
      class: mean correlation with people's maps of held-out predictions (`predicted_cc`) and of the class's `mean_map`.

    Raises:
      ConfigError: data without files, a file that is there already, fewer than two folds.
      OutputError: what can't be written, or another process is writing.
      DataError: data that can't be used, no image to learn from or to predict. PredictorError: it did not learn.
    """
    if folds < 2 or steps < 1:
        raise ConfigError(f"--folds must be at least 2 and --steps at least 1; got {folds} and {steps}")
    recipe = _recipe(config)
    listing = recipe.data.listing()
    path = written_manifest.check_target(manifest, listing)
    beside = {"maps": path.with_name(f"{path.stem}_maps"), "json": path.with_suffix(".json")}
    beside["png"] = path.with_suffix(".png")
    for other in beside.values():
        if os.path.lexists(other):
            raise ConfigError(f"{other} is there already, and would be written; give --write_manifest another name")
    with claimed(path):
        dataset = open_dataset(recipe)
        wanted = _wanted(dataset)
        train = dataset.splits["train"]
        recipe = _with_epochs(config, recipe, len(np.flatnonzero(train.records.has_map)), folds, steps)
        found, held_out = cross_fit(recipe, train, wanted, folds)
        predicted = {
            "folds": folds,
            "epochs": recipe.epochs,
            "images": _count(dataset, wanted),
            "agreement": _agreement(dataset, held_out),
        }
        with _all_or_none(beside.values()):
            names = _write_maps(beside["maps"], train, wanted, found)
            record = {**predicted, "config": recipe.stored, **collect_provenance(recipe.model_name)}
            write_json(beside["json"], record)
            _draw(beside["png"], train, wanted, found, held_out)
            written_manifest.write_manifest(path, listing, dataset, names)  # last: it names the others
    print(f"\n{format_predicted(predicted)}\n\nWritten: {path}, {', '.join(map(str, beside.values()))}")
    return predicted


@contextlib.contextmanager
def _all_or_none(paths: Iterable[Path]) -> Iterator[None]:
    """Takes away what was written of these, none of which was there, if the rest can't be."""
    try:
        yield
    except BaseException:
        for path in paths:
            shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
        raise


def _recipe(config: ConfigDict) -> Recipe:
    recipe = resolve(config)
    return dataclasses.replace(recipe, data=dataclasses.replace(recipe.data, predicted="ignore", placebo="none"))


def _with_epochs(config: ConfigDict, recipe: Recipe, annotated: int, folds: int, steps: int) -> Recipe:
    """The recipe with as many epochs as make the steps, its learning rate falling as a cosine over them."""
    changed: Any = config.copy_and_resolve_references()
    size = annotated - annotated // folds
    with changed.unlocked():
        changed.epochs = -(-steps // -(-size // recipe.batch_size))
        changed.optimizer.schedule, changed.optimizer.step_epochs, changed.optimizer.step_factor = "cosine", None, None
        changed.optimizer.warmup_epochs = 0.0
    return dataclasses.replace(resolve(changed), data=recipe.data)


def _wanted(dataset: Dataset) -> np.ndarray:
    """Rows of training without a map, of classes that have maps."""
    records = dataset.splits["train"].records
    mapped = np.unique(records.labels[records.has_map])
    if not len(mapped):
        raise DataError([f"{dataset.name}: no training image has a usable human map; there is nothing to learn from"])
    rows = np.flatnonzero(~records.has_map & np.isin(records.labels, mapped))
    if not len(rows):
        names = ", ".join(dataset.class_names[label] for label in mapped)
        raise DataError([f"{dataset.name}: every training image of {names} has a human map; there is none to predict"])
    return rows


def _count(dataset: Dataset, wanted: np.ndarray) -> dict[str, dict[str, int]]:
    records = dataset.splits["train"].records
    of = lambda rows, label: int((records.labels[rows] == label).sum())
    rows = {"images": np.arange(len(records)), "annotated": np.flatnonzero(records.has_map), "predicted": wanted}
    return {
        name: {what: of(chosen, label) for what, chosen in rows.items()}
        for label, name in enumerate(dataset.class_names)
    }


def _agreement(dataset: Dataset, held_out: Predicted) -> dict[str, dict[str, float]]:
    """Correlation of held-out predictions with people's maps, and of the mean of the class's other maps."""
    records = dataset.splits["train"].records
    labels = records.labels[records.has_map]
    agree = lambda maps, human: float(correlation(jnp.asarray(maps), jnp.asarray(human)).mean())
    found = {}
    for label in np.unique(labels):
        human = held_out.saliency[labels == label]
        others = (human.sum(0) - human) / max(len(human) - 1, 1)
        own = {"predicted_cc": agree(held_out.maps[labels == label], human), "mean_map": agree(others, human)}
        found[dataset.class_names[label]] = own
    return found


def _write_maps(maps: Path, train: Source, wanted: np.ndarray, found: np.ndarray) -> dict[str, str]:
    """Writes the maps as PNGs, all or none; image to the map's path below the folder that `maps` is in."""
    names = {train.records.ids[row]: f"{train.records.ids[row]}.png" for row in wanted}
    with write_folder(maps) as partial:
        for row, values in zip(wanted, found, strict=True):
            target = partial / names[train.records.ids[row]]
            target.parent.mkdir(parents=True, exist_ok=True)
            _picture(values, train[int(row)].picture.size).save(target)
    return {image: f"{maps.name}/{name}" for image, name in names.items()}


def _picture(values: np.ndarray, size: tuple[int, int]) -> Image.Image:
    """A map as 8 bits, stretched from 0 to 255, of the image's aspect ratio."""
    scale = min(1.0, _SIDE / max(size))
    shape = max(1, round(size[0] * scale)), max(1, round(size[1] * scale))
    enlarged = np.asarray(Image.fromarray(values.astype(np.float32)).resize(shape, Image.Resampling.BICUBIC))
    low, high = enlarged.min(), enlarged.max()
    return Image.fromarray(np.rint(255 * (enlarged - low) / max(high - low, 1e-9)).astype(np.uint8))


def _draw(path: Path, train: Source, wanted: np.ndarray, found: np.ndarray, held_out: Predicted) -> None:
    """Some annotated images with people's map and the held-out prediction, and some with a prediction alone."""
    annotated = np.flatnonzero(train.records.has_map)
    spread = lambda count: np.linspace(0, count - 1, min(_PICTURED, count)).round().astype(int)
    image = lambda row: Panel("image", train[int(row)].image)
    rows = [
        Row(
            train.records.ids[annotated[i]][-24:],
            (image(annotated[i]), Panel("people's", held_out.saliency[i]), Panel("predicted", held_out.maps[i])),
        )
        for i in spread(len(annotated))
    ]
    rows += [
        Row(
            train.records.ids[wanted[i]][-24:],
            (image(wanted[i]), Panel("people's", None), Panel("predicted", found[i])),
        )
        for i in spread(len(wanted))
    ]
    draw_panels(rows, path, "Predicted maps; of annotated images by a predictor that had not seen their group")


def format_predicted(predicted: Mapping[str, Any]) -> str:
    """An aligned table of what `predict_maps` returns, a row per class, and what to make of it."""
    images, agreement = predicted["images"], predicted["agreement"]
    items = [(name, {**counts, **agreement.get(name, {})}) for name, counts in images.items()]
    count = lambda key: (key, lambda item: str(item[key]))
    share = lambda head, key: (head, lambda item: decimal(item.get(key)))
    shown = [count("images"), count("annotated"), count("predicted")]
    shown += [share("CC predicted", "predicted_cc"), share("CC mean map", "mean_map")]
    table = tabulate("Predicted maps of training", "class", items, shown).text()
    notes = ["CC: mean correlation with people's maps, of held-out predictions and of the class's mean map."]
    notes += [
        f"{name}: held-out predictions agree no better than the class's mean map; they say little of the single image."
        for name, own in agreement.items()
        if own["predicted_cc"] <= own["mean_map"]
    ]
    notes += [f"{name}: no image is annotated; none is predicted." for name in images if name not in agreement]
    return "\n".join([table, *notes])
