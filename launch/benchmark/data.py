"""How fast images are read: this package's pipeline, tf.data and PyTorch's DataLoader doing the same work.

Work: read an image file and its map (PNG), decode both, cut the same random 80 to 100 % of each side out of both,
resize them with an antialiased triangle filter, flip both with probability 1/2, and stack batches of uint8 images and
float32 maps. Beside it this package as it trains: maps brought to the CAM's places (`in training`), and images read as
they were kept decoded (`kept`). Each runs in a process of its own, all on the same number of cores, several rounds in
turn.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib.util
import json
import os
import resource
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from launch.benchmark.fresh_process import call_afresh
from tfcam_jax.data.decoded import FOLDER, Kept, keep_decoded
from tfcam_jax.data.listing import ListedSource, MapReader, Row
from tfcam_jax.data.pipeline import train_batches
from tfcam_jax.data.source import Dataset, Records, Subset
from tfcam_jax.data.transforms import Augment
from tfcam_jax.metrics.tables import align

KINDS = ("jpeg", "png")
STORED, SIZE, BATCH = 256, 224, 32  # pixels, pixels, images
PLACES = 7  # of a CAM, a side
SMALLEST = 0.8  # share of a side that is kept
_SEED = 0
_FILES = 256
_WARM_UP = 4  # batches


def write_images(folder: Path, kind: str, count: int = _FILES) -> None:
    """Writes drawn 256 px images (clouds and fine grain, as photographs have) and maps."""
    suffix = {"jpeg": "jpg", "png": "png"}[kind]
    for name in ("images", "maps"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    for i in range(count):
        rng = np.random.default_rng([_SEED, i])
        coarse = Image.fromarray(rng.integers(0, 256, (12, 12, 3), np.uint8)).resize((STORED, STORED), Image.BICUBIC)
        grain = rng.normal(0, 6, (STORED, STORED, 3))
        pixels = np.clip(np.asarray(coarse) + grain, 0, 255).astype(np.uint8)
        Image.fromarray(pixels).save(folder / f"images/{i}.{suffix}", quality=90)
        blob = Image.fromarray(rng.integers(0, 256, (5, 5), np.uint8)).resize((STORED, STORED), Image.BICUBIC)
        blob.save(folder / f"maps/{i}.png")


def open_images(folder: Path) -> ListedSource:
    """The written images as a source."""
    images = sorted(path.name for path in (folder / "images").iterdir())
    rows = tuple(
        Row(str(folder), i, "train", "any", f"images/{name}", f"maps/{Path(name).stem}.png")
        for i, name in enumerate(images)
    )
    empty = ("",) * len(rows)
    records = Records(tuple(images), np.zeros(len(rows), np.int32), empty, empty, np.ones(len(rows), bool))
    return ListedSource(rows, MapReader(folder), 3, records)


def tfcam_jax_batches(
    folder: Path, cores: int, places: int | None = None, keep: bool = False
) -> Iterator[dict[str, np.ndarray]]:
    """This package's batches without end; `places` as of `train_batches`, and `keep` from images kept decoded."""
    dataset, epoch = Dataset("drawn", ("any",), {"train": open_images(folder)}), 0
    if keep:
        dataset = keep_decoded(dataset, Kept(None, None), folder / FOLDER, megabytes=1024)
    while True:
        yield from train_batches(
            dataset.splits["train"],
            epoch=epoch,
            seed=_SEED,
            batch_size=BATCH,
            image_size=SIZE,
            places=places,
            augment=Augment(flip=0.5, crop=1 - SMALLEST),
            num_threads=cores,
        )
        epoch += 1


def tf_data_batches(folder: Path, cores: int) -> Iterator[object]:
    """tf.data's batches without end."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    import tensorflow as tf

    tf.config.threading.set_intra_op_parallelism_threads(cores)
    tf.config.threading.set_inter_op_parallelism_threads(cores)
    images = sorted(str(path) for path in (folder / "images").iterdir())
    maps = [str(folder / "maps" / f"{Path(name).stem}.png") for name in images]

    def load(image_path, map_path):
        image = tf.io.decode_image(tf.io.read_file(image_path), 3, expand_animations=False)
        saliency = tf.io.decode_png(tf.io.read_file(map_path), 1)
        kept = tf.random.uniform([2], SMALLEST, 1.0)
        corner = tf.random.uniform([2]) * (1 - kept)
        start, stop = tf.cast(corner * STORED, tf.int32), tf.cast((corner + kept) * STORED, tf.int32)
        cut = lambda x: x[start[0] : stop[0], start[1] : stop[1]]
        image = tf.image.resize(cut(image), (SIZE, SIZE), antialias=True)
        saliency = tf.image.resize(tf.cast(cut(saliency), tf.float32) / 255, (SIZE, SIZE), antialias=True)
        if tf.random.uniform([]) < 0.5:
            image, saliency = image[:, ::-1], saliency[:, ::-1]
        return tf.cast(tf.round(image), tf.uint8), saliency

    dataset = tf.data.Dataset.from_tensor_slices((images, maps)).shuffle(len(images)).repeat()
    dataset = dataset.map(load, num_parallel_calls=cores, deterministic=True).batch(BATCH).prefetch(2)
    options = tf.data.Options()
    options.threading.private_threadpool_size = cores
    yield from dataset.with_options(options).as_numpy_iterator()


def dataloader_batches(folder: Path, cores: int) -> Iterator[object]:
    """Batches of PyTorch's DataLoader without end; worker processes where there is more than one core."""
    import torch

    torch.set_num_threads(1)
    loader = torch.utils.data.DataLoader(
        PillowFiles(folder),
        batch_size=BATCH,
        shuffle=True,
        num_workers=cores if cores > 1 else 0,
        persistent_workers=cores > 1,
    )
    while True:
        yield from loader


@dataclasses.dataclass(frozen=True)
class PillowFiles:
    """A map-style data set for the DataLoader, with Pillow as most of its users have it."""

    folder: Path

    def __len__(self) -> int:
        return len(self.names)

    @functools.cached_property
    def names(self) -> list[str]:
        return sorted(path.name for path in (self.folder / "images").iterdir())

    def __getitem__(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        name = self.names[index]
        image = Image.open(self.folder / "images" / name, formats=("PNG", "JPEG")).convert("RGB")
        saliency = Image.fromarray(
            np.asarray(Image.open(self.folder / f"maps/{Path(name).stem}.png", formats=("PNG",)), np.float32) / 255
        )
        rng = np.random.default_rng()
        width, height = rng.uniform(SMALLEST, 1, 2) * STORED
        left, top = rng.uniform(0, STORED - width), rng.uniform(0, STORED - height)
        box, flip = (left, top, left + width, top + height), rng.random() < 0.5
        image, saliency = (x.resize((SIZE, SIZE), Image.BILINEAR, box=box) for x in (image, saliency))
        if flip:
            image, saliency = (x.transpose(Image.Transpose.FLIP_LEFT_RIGHT) for x in (image, saliency))
        return np.array(image), np.array(saliency)


PIPELINES: dict[str, tuple[Callable[[Path, int], Iterator[object]], str]] = {
    "tfcam_jax": (tfcam_jax_batches, "tfcam_jax"),
    "in training": (functools.partial(tfcam_jax_batches, places=PLACES), "tfcam_jax"),
    "kept": (functools.partial(tfcam_jax_batches, places=PLACES, keep=True), "tfcam_jax"),
    "tf.data": (tf_data_batches, "tensorflow"),
    "DataLoader": (dataloader_batches, "torch"),
}


def measure(name: str, folder: Path, cores: int, seconds: float) -> tuple[float, float]:
    """Runs one pipeline in this process, on so many cores, for so long.

    Returns:
      Images per second, and images per second of processor time that this process used (not its workers).
    """
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, set(sorted(os.sched_getaffinity(0))[:cores]))
    batches = PIPELINES[name][0](folder, cores)
    for _ in range(_WARM_UP):
        next(batches)
    start, used, images = time.perf_counter(), time.process_time(), 0
    while time.perf_counter() - start < seconds:
        next(batches)
        images += BATCH
    return images / (time.perf_counter() - start), images / (time.process_time() - used)


def benchmark(cores: int = 1, rounds: int = 3, seconds: float = 8.0, kinds: Sequence[str] = KINDS) -> str:
    """Compares the pipelines that are installed.

    Args:
      cores: that each may use.
      rounds: of all pipelines in turn; the table shows medians and ranges.
      seconds: of each measurement.
      kinds: of files.

    Returns:
      An aligned table of images per second and core, with a line for each library that is not installed. On one core
      also images per second of processor time, which other work on the machine disturbs less.
    """
    installed = [name for name, (_, library) in PIPELINES.items() if importlib.util.find_spec(library)]
    rows = [("files", "per second of", *installed)]
    with tempfile.TemporaryDirectory() as folder:
        for kind in kinds:
            write_images(Path(folder) / kind, kind)
            found = _rounds(installed, Path(folder) / kind, cores, rounds, seconds)
            for i, clock in enumerate(("wall clock", "processor") if cores == 1 else ("wall clock",)):
                rates = [[pair[i] / cores for pair in found[name]] for name in installed]
                rows.append((f"{STORED} px {kind}", clock, *map(_median_and_range, rates)))
    missing = [
        f"{name}: {PIPELINES[name][1]} is not installed; left out" for name in PIPELINES if name not in installed
    ]
    title = f"images per second and core, {cores} core(s), median of {rounds} (lowest-highest)"
    return "\n".join([title, *align(rows), *missing])


def _rounds(
    names: Sequence[str], folder: Path, cores: int, rounds: int, seconds: float
) -> dict[str, list[tuple[float, float]]]:
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in names}
    for _ in range(rounds):
        for name in names:
            call = f"measure({name!r}, Path({str(folder)!r}), {cores}, {seconds})"
            found[name].append(tuple(call_afresh(__name__, call, {})))
    return found


def _median_and_range(rates: Sequence[float]) -> str:
    return f"{statistics.median(rates):.0f} ({min(rates):.0f}-{max(rates):.0f})"


def stream(images: int) -> str:
    """Reads a set of so many images (256 files over and over) once, and tells time and memory.

    The peak counts the whole process: libraries, records, prefetched batches.
    """
    with tempfile.TemporaryDirectory() as folder:
        write_images(Path(folder), "jpeg")
        source = Subset(open_images(Path(folder)), np.arange(images) % _FILES)
        megabytes = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        start, before, seen = time.perf_counter(), megabytes(), 0
        for batch in train_batches(source, epoch=0, seed=_SEED, batch_size=BATCH, image_size=SIZE, num_threads=2):
            seen += int(batch["mask"].sum())
        seconds = time.perf_counter() - start
    figures = {"images": seen, "seconds": round(seconds), "peak MB": round(megabytes()), "MB before": round(before)}
    return json.dumps(figures)
