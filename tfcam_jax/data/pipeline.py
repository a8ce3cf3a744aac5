"""From a source to batches of fixed shape, in threads or worker processes (Grain), and on to the device."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import grain
import numpy as np
from absl import flags
from jaxtyping import Float, Int

from ..errors import UserError, check_known
from .bounds import decoding
from .kept_features import KeptFeatures
from .source import Source
from .transforms import IDENTITY, Augment, Resize, apply

# image uint8 [B, S, S, channels], or of a `KeptFeatures` its features [B, ...]; mirrored, like image, of a
# `KeptFeatures` alone and where it is asked for: features of the mirror image, which can't be made of the image's;
# saliency [B, s, s], all zero = no map: float32 of the image's size in evaluation, in training as its `Resize` says;
# label int32 [B]; mask float32 [B], 1 for an example, 0 for padding; weight float32 [B], of the cross-entropy, 0 for
# padding; draw uint32 [B], random, 0 in evaluation and for padding; index int32 [B], the row in `source.records`, -1
# for padding.
Batch = dict[str, np.ndarray]

BALANCES = ("none", "weights", "sampling")

# Batches that a worker or a reading thread prepares ahead of the one that is being trained on.
_BATCHES_AHEAD = 2


@dataclass(frozen=True)
class _LoadBatch:
    """Number of a batch to this host's part of it. A class, as it travels to worker processes.

    Attributes:
      order: row of each position in the epoch.
      weights: of each row.
      draws: of each position.
      seed: of the augmentation, joined by the position, so that neither hosts nor workers change a draw; None: none.
      resize: how images and maps come to their size.
      mirrored: give kept features of the mirror images too.
    """

    source: Source
    order: np.ndarray
    weights: np.ndarray
    draws: np.ndarray
    seed: tuple[int, ...] | None
    batch_size: int
    resize: Resize
    augment: Augment
    shard_index: int
    shard_count: int
    mirrored: bool = False

    def __call__(self, number: int) -> Batch:
        count = -(-self.batch_size // self.shard_count)
        start, end = number * self.batch_size, (number + 1) * self.batch_size
        start += self.shard_index * count
        positions = range(start, min(start + count, end, len(self.order)))
        batch: Batch = {}
        for i, position in enumerate(positions):
            row = int(self.order[position])
            rng = None if self.seed is None else np.random.default_rng([*self.seed, position])
            read = self._read(row, rng)
            batch = batch or self._padding(count, read)
            for name, array in read.items():
                batch[name][i] = array
            batch["label"][i] = self.source.records.labels[row]
            batch["mask"][i], batch["weight"][i], batch["index"][i] = 1, self.weights[row], row
            batch["draw"][i] = self.draws[position]
        # A host beyond the end of the last batch still needs to know how many channels its padding has.
        return batch or self._padding(count, self._read(0, None))

    def _read(self, row: int, rng: np.random.Generator | None) -> Batch:
        """Image, or its features, and map of one row."""
        if isinstance(self.source, KeptFeatures):
            image, saliency, mirrored = self.source.read(row, self.resize, self.augment, rng)
            return {"image": image, "saliency": saliency} | ({"mirrored": mirrored} if self.mirrored else {})
        with decoding():  # until both have their final size
            image, saliency = apply(self.source[row], self.resize, self.augment, rng)
        return {"image": image, "saliency": saliency}

    def _padding(self, count: int, read: Batch) -> Batch:
        return {
            **{name: np.zeros((count, *array.shape), array.dtype) for name, array in read.items()},
            "label": np.zeros(count, np.int32),
            "mask": np.zeros(count, np.float32),
            "weight": np.zeros(count, np.float32),
            "draw": np.zeros(count, np.uint32),
            "index": np.full(count, -1, np.int32),
        }


def train_batches(
    source: Source,
    *,
    epoch: int,
    seed: int,
    batch_size: int,
    image_size: int,
    resize_through: tuple[int, ...] = (),
    map_size: int | None = None,
    places: int | None = None,
    augment: Augment = IDENTITY,
    balance: str = "none",
    mirrored: bool = False,
    num_threads: int = 4,
    num_workers: int = 0,
    shard_index: int = 0,
    shard_count: int = 1,
    first_batch: int = 0,
) -> grain.DatasetIterator[Batch]:
    """One epoch, in an order and with an augmentation that depend on (seed, epoch) alone.

    The iterator returned can be resumed by its `get_state` and `set_state` too.

    Args:
      source: the split to read.
      epoch: number of the epoch, >= 0.
      seed: of the run, >= 0.
      batch_size: examples per batch over all hosts; the last batch is padded with masked zeros, never dropped.
      image_size: side of the square images and maps.
      resize_through: sides that images are resized to before, see `Resize`.
      map_size: side of maps that are resized alone, see `Resize`; None: with the image.
      places: side that maps are brought to last, to travel, see `Resize`; None: they stay as they are.
      augment: random geometry and colour.
      balance: "none" and "weights" give every example once; "weights" weighs it by n / (classes * n_class), so that
        each class counts alike and the mean weight is 1; "sampling" draws as many examples, each class as often
        as any other (but for a remainder): a rare class's examples several times, a frequent class's some.
      mirrored: of a source of kept features, give those of the mirror images too, of which it must have two views.
      num_threads: threads that read and transform, per process; 0 works in the caller's thread.
      num_workers: worker processes; 0 works in this one. Neither number changes what comes out. With workers,
        a script needs the usual `if __name__ == "__main__"` guard.
      shard_index: number of this host, from 0.
      shard_count: of hosts; each gets its `batch_size / shard_count` (rounded up) consecutive examples of each
        batch, the last ones fewer and padded, so that the batches over all hosts are the same for any number of them.
      first_batch: batches to leave out at the start: an epoch that was cut off goes on as if it had not been, also
        with other numbers of threads, workers and hosts.

    Raises:
      ConfigError: an unknown balance.
      ValueError: a host's number that is not below theirs.
    """
    labels = source.records.labels
    order = epoch_order(labels, epoch=epoch, seed=seed, balance=balance)
    weights = class_weights(labels) if balance == "weights" else np.ones(len(labels), np.float32)
    # A third number keeps the draws of order, augmentation and dropout apart.
    of_augment, shard = (seed, epoch, 1), (shard_index, shard_count)
    draws = np.random.default_rng([seed, epoch, 2]).integers(2**32, size=len(order), dtype=np.uint32)
    resize = Resize(image_size, resize_through, map_size, places)
    load = _LoadBatch(source, order, weights, draws, of_augment, batch_size, resize, augment, *shard, mirrored)
    return _iterate(load, first_batch, num_threads, num_workers)


def eval_batches(
    source: Source,
    *,
    batch_size: int,
    image_size: int,
    resize_through: tuple[int, ...] = (),
    num_threads: int = 4,
    num_workers: int = 0,
    shard_index: int = 0,
    shard_count: int = 1,
) -> grain.DatasetIterator[Batch]:
    """Every example exactly once, in the split's order, not augmented; otherwise as `train_batches`."""
    count, shard = len(source), (shard_index, shard_count)
    order, weights, draws = np.arange(count), np.ones(count, np.float32), np.zeros(count, np.uint32)
    resize = Resize(image_size, resize_through)
    load = _LoadBatch(source, order, weights, draws, None, batch_size, resize, IDENTITY, *shard)
    return _iterate(load, 0, num_threads, num_workers)


def epoch_order(labels: Int[np.ndarray, " n"], *, epoch: int, seed: int, balance: str) -> Int[np.ndarray, " n"]:
    """Rows in the order in which an epoch takes them; see `train_batches`."""
    check_known("balance", balance, BALANCES)
    rng = np.random.default_rng([seed, epoch, 0])
    if balance != "sampling":
        return rng.permutation(len(labels))
    classes = np.unique(labels)
    # The remainder goes to other classes in other epochs.
    shares = len(labels) // len(classes) + (rng.permutation(len(classes)) < len(labels) % len(classes))
    drawn = []
    for label, share in zip(classes, shares.tolist(), strict=True):
        rows = np.flatnonzero(labels == label)
        # In whole rounds, so that no row of the class is drawn more often than any other by more than one.
        rounds = [rng.permutation(rows) for _ in range(-(-share // len(rows)))]
        drawn.append(np.concatenate(rounds)[:share])
    return rng.permutation(np.concatenate(drawn))


def class_weights(labels: Int[np.ndarray, " n"]) -> Float[np.ndarray, " n"]:
    """Weight of each example by its class, n / (classes * n_class): classes add up alike, the mean is 1."""
    _, position, counts = np.unique(labels, return_inverse=True, return_counts=True)
    return (len(labels) / (len(counts) * counts))[position].astype(np.float32)


def prefetch_to_device(batches: Iterable[Any], put: Callable[[Any], Any], ahead: int = 2) -> Iterator[Any]:
    """Keeps batches on their way to the device while the one before is being trained on; yields what `put` returned.

    `put` starts a host batch's transfer and returns at once, as `jax.device_put` does; `ahead` (>= 1) batches are in
    flight or wait on the device beyond the one handed out.
    """
    if ahead < 1:
        raise ValueError(f"ahead must be at least 1; got {ahead}")
    waiting: deque = deque()
    for batch in batches:
        waiting.append(put(batch))
        if len(waiting) > ahead:
            yield waiting.popleft()
    yield from waiting


class WorkerError(UserError, RuntimeError):
    """A process that reads images died."""


def watch_workers(batches: Iterable[Batch]) -> Iterator[Batch]:
    """The same batches; raises WorkerError, which says what to try, within seconds where a worker process died."""
    try:
        yield from batches
    except RuntimeError as error:
        if "Worker process was terminated" not in str(error):  # Grain has no type of its own for it
            raise
        raise WorkerError(
            f"a process that reads images died ({error}) If it was killed for want of memory, lower data.num_workers, "
            "or set it to 0; then give the same command again: training continues from the last checkpoint."
        ) from error


def _iterate(load: _LoadBatch, first: int, num_threads: int, num_workers: int) -> grain.DatasetIterator[Batch]:
    if not 0 <= load.shard_index < load.shard_count:
        raise ValueError(f"shard_index {load.shard_index} must lie below the number of hosts, {load.shard_count}")
    # The split over threads and workers is one of whole batches, and therefore cannot change them.
    dataset = grain.MapDataset.range(first, -(-len(load.order) // load.batch_size)).map(load)
    options = grain.ReadOptions(num_threads=num_threads, prefetch_buffer_size=max(num_threads, _BATCHES_AHEAD))
    iterable = dataset.to_iter_dataset(options)
    if num_workers:
        if not flags.FLAGS.is_parsed():
            flags.FLAGS.mark_as_parsed()  # Grain reads its own flags, which are unparsed outside absl's app.run.
        iterable = iterable.mp_prefetch(grain.MultiprocessingOptions(num_workers, _BATCHES_AHEAD))
    return iter(iterable)
