"""From a source to batches of fixed shape: Grain's shuffling, threads and worker processes."""

from __future__ import annotations

from dataclasses import dataclass

import grain
import numpy as np
from absl import flags

from .source import Source
from .transforms import IDENTITY, Augment, apply

# image uint8 [B, S, S, channels]; saliency float32 [B, S, S], all zero = no map; label int32 [B]; mask float32 [B],
# 1 for an example, 0 for padding; index int32 [B], the row in `source.records`, -1 for padding.
Batch = dict[str, np.ndarray]

# Batches that a worker or a reading thread prepares ahead of the one that is being trained on.
_BATCHES_AHEAD = 2


@dataclass(frozen=True)
class _Load:
    """Row number to one transformed example. A class, as it travels to worker processes."""

    source: Source
    image_size: int
    augment: Augment

    def __call__(self, index: int, rng: np.random.Generator | None = None) -> Batch:
        image, saliency = apply(self.source[index], self.image_size, self.augment, rng)
        label = self.source.records.labels[index]
        return {"image": image, "saliency": saliency, "label": np.int32(label), "index": np.int32(index)}


@dataclass(frozen=True)
class _PadAndStack:
    batch_size: int

    def __call__(self, examples: list[Batch]) -> Batch:
        missing = self.batch_size - len(examples)
        batch = {name: np.stack([example[name] for example in examples]) for name in examples[0]}
        batch["mask"] = np.ones(len(examples), np.float32)
        pad = lambda name, x: np.pad(
            x, [(0, missing)] + [(0, 0)] * (x.ndim - 1), constant_values=-1 if name == "index" else 0
        )
        return {name: pad(name, column) for name, column in batch.items()} if missing else batch


def train_batches(
    source: Source,
    *,
    epoch: int,
    seed: int,
    batch_size: int,
    image_size: int,
    augment: Augment = IDENTITY,
    num_threads: int = 4,
    num_workers: int = 0,
) -> grain.DatasetIterator[Batch]:
    """One epoch: every example once, in an order and with an augmentation that depend on (seed, epoch) alone.

    Args:
      source: the split to read.
      epoch: number of the epoch, >= 0.
      seed: of the run, >= 0.
      batch_size: examples per batch; the last batch is padded with masked zeros, never dropped.
      image_size: side of the square images and maps.
      augment: random geometry.
      num_threads: threads that read and transform, per process; 0 works in the caller's thread.
      num_workers: worker processes; 0 works in this one. Neither number changes what comes out. With workers,
        a script needs the usual `if __name__ == "__main__"` guard.

    Returns:
      An iterator of batches, whose `get_state`, `set_state` resume in the middle of the epoch.
    """
    dataset = grain.MapDataset.range(len(source)).seed(_epoch_seed(seed, epoch)).shuffle()
    dataset = dataset.random_map(_Load(source, image_size, augment))
    return _iterate(dataset, batch_size, num_threads, num_workers)


def eval_batches(
    source: Source, *, batch_size: int, image_size: int, num_threads: int = 4, num_workers: int = 0
) -> grain.DatasetIterator[Batch]:
    """Every example exactly once, in the split's order, not augmented; otherwise as `train_batches`."""
    dataset = grain.MapDataset.range(len(source)).map(_Load(source, image_size, IDENTITY))
    return _iterate(dataset, batch_size, num_threads, num_workers)


def _epoch_seed(seed: int, epoch: int) -> int:
    return int(np.random.SeedSequence([seed, epoch]).generate_state(1)[0])


def _iterate(
    dataset: grain.MapDataset, batch_size: int, num_threads: int, num_workers: int
) -> grain.DatasetIterator[Batch]:
    # Batching comes before the split over threads and workers, which therefore cannot change it.
    dataset = dataset.batch(batch_size, batch_fn=_PadAndStack(batch_size))
    options = grain.ReadOptions(num_threads=num_threads, prefetch_buffer_size=max(num_threads, _BATCHES_AHEAD))
    iterable = dataset.to_iter_dataset(options)
    if num_workers:
        if not flags.FLAGS.is_parsed():
            flags.FLAGS.mark_as_parsed()  # Grain reads its own flags, which are unparsed outside absl's app.run.
        iterable = iterable.mp_prefetch(grain.MultiprocessingOptions(num_workers, _BATCHES_AHEAD))
    return iter(iterable)
