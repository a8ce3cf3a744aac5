"""Decoded images and maps kept in a file beside their list, so that neither the next epoch nor the next start decodes.

What is kept is what comes before anything random: an image as it was decoded, or brought to the side that it is always
brought to first, and its map. A row belongs to its files by name, size and times and to how maps are read
(`inspection.keys_of`), the file to the rest (`_digest_of`): what is found is what would be decoded again.

The file is array_record's, which checks sums of all that is read. It is written aside and renamed, never changed; any
of these files may be deleted at any time.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import os
import secrets
import shutil
import struct
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from absl import logging
from array_record.python.array_record_module import ArrayRecordReader, ArrayRecordWriter
from tqdm import tqdm

from .bounds import decoding, decoding_threads
from .checks.inspection import keys_of
from .listing import ListedSource
from .source import Dataset, Example, WithRecords
from .transforms import resize_first

FOLDER = ".tfcam_jax"
CHECKS = "checks.json"  # of all lists here, as in a workdir
_ENDING = ".array_record"
_WRITING = "group_size:1"  # a chunk for each record: they are read one by one
_READING = "readahead_buffer_size:0,max_parallelism:0"
_HEADER = struct.Struct("<16sIIIII")  # key; height, width and channels of the image; of the map, 0 for none
_LIBRARIES = ("pillow", "numpy", "pydicom", "nibabel", "scipy")  # that decode
_ABANDONED = 3600.0  # seconds since an unfinished file was last written to
_AT_A_TIME = 64  # rows decoded ahead of the one that is being written
# Of the space that is left on the disk: a run needs some for its checkpoints.
_SHARE_OF_DISK = 0.5
_REMEDY = (
    "Each epoch and start decodes them anew; config.data.cache_dir names another folder, cache_megabytes=0 keeps none"
)


@dataclass(frozen=True)
class Kept:
    """What is kept of each row.

    Attributes:
      image_side: that images are brought to first; None: they stay as they were decoded.
      map_side: of maps, the same.
    """

    image_side: int | None
    map_side: int | None


def keep_decoded(dataset: Dataset, kept: Kept, folder: Path, megabytes: int, write: bool = True) -> Dataset:
    """The data set with those of its splits that read files reading from a kept file, which is made or completed.

    Args:
      dataset: as its source opened it, before anything is done to its maps.
      kept: what of each row.
      folder: of the kept files; made if need be.
      megabytes: that all kept files of the folder may have together. What does not fit is decoded each time, and told.
      write: False: read what there is, and write nothing.
    """
    listed = {split: source for split, source in dataset.splits.items() if isinstance(source, ListedSource)}
    if not listed:
        return dataset
    rows = _Rows(listed, kept)
    path = folder / f"decoded-{rows.digest}{_ENDING}"
    file = KeptFile.open(path)
    if write and (missing := rows.missing(file, megabytes)):
        try:
            file = _write(path, rows, file, missing, megabytes << 20)
        except OSError as error:
            _tell(f"{path}: decoded images can't be kept ({error.strerror or error}). {_REMEDY}.")
    elif write and file:
        os.utime(path)  # the files that were used last are the last to go
    if file is None:
        return dataset
    own = {split: Decoded(source, rows.keys[split], file) for split, source in listed.items()}
    return replace(dataset, splits={**dataset.splits, **own})


class Decoded(WithRecords):
    """A split whose rows come from a kept file where it has them, else from the files themselves."""

    def __init__(self, source: ListedSource, keys: Sequence[str], file: KeptFile):
        self.records, self._source, self._keys, self._file = source.records, source, keys, file

    def __getitem__(self, index: int) -> Example:
        found = self._file.read(self._keys[index])
        return self._source[index] if found is None else found


class KeptFile:
    """A file of examples by their keys; safe to read from several threads, and pickles for worker processes.

    A record that is damaged is told of, once for the file, and the file deleted, so that the next start makes it anew;
    what else it holds is still read.
    """

    def __init__(self, path: Path, keys: Sequence[str], left_out: Sequence[str], megabytes: int, reader: Any):
        self.path, self.keys, self.left_out, self.megabytes = path, keys, frozenset(left_out), megabytes
        self._places = {key: place for place, key in enumerate(keys)}
        self._reader, self._lock, self._damaged = reader, threading.Lock(), False

    @classmethod
    def open(cls, path: Path) -> KeptFile | None:
        """The file, its rows not read yet; None where there is none, or, with a warning, where it is damaged."""
        if not path.is_file():
            return None
        try:
            reader = ArrayRecordReader(str(path), _READING)
            index = json.loads(reader.read([reader.num_records() - 1])[0])
            file = cls(path, index["keys"], index["left_out"], index["megabytes"], reader)
            if len(file.keys) != reader.num_records() - 1:
                raise ValueError(f"{reader.num_records()} records, {len(file.keys)} keys")
        except (RuntimeError, ValueError, TypeError, KeyError, IndexError) as error:
            _tell(f"{path} is damaged ({_first_line(error)}): its images are decoded again.")
            return None
        return file

    def __contains__(self, key: str) -> bool:
        return key in self._places

    def read(self, key: str) -> Example | None:
        """The example of a key; None where there is none, or it is damaged."""
        content = self.content(key)
        return None if content is None else _unpack(content)

    def content(self, key: str) -> bytes | None:
        """The same as it lies in the file."""
        if key not in self._places:
            return None
        try:
            content = self._opened().read([self._places[key]])[0]
            if not _is_of(content, key):  # in a worker process: another process has renamed another file to this name
                raise ValueError("a record of another row")
        except (RuntimeError, ValueError) as error:
            self._tell_damage(error)
            return None
        return content

    def _opened(self) -> Any:
        with self._lock:
            if self._reader is None:
                self._reader = ArrayRecordReader(str(self.path), _READING)
            return self._reader

    def _tell_damage(self, error: Exception) -> None:
        with self._lock:
            first, self._damaged = not self._damaged, True
        if first:
            logging.warning("%s is damaged (%s): those images are decoded again.", self.path, _first_line(error))
            self.path.unlink(missing_ok=True)

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_reader": None, "_lock": None}

    def __setstate__(self, state: Mapping[str, Any]) -> None:
        vars(self).update(state, _lock=threading.Lock())


class _Rows:
    """The rows of all splits by their keys, and how to decode one."""

    def __init__(self, listed: Mapping[str, ListedSource], kept: Kept):
        self.kept = kept
        self.keys = {split: keys_of(source.reader, source.rows) for split, source in listed.items()}
        self._places = {key: (listed[split], i) for split, keys in self.keys.items() for i, key in enumerate(keys)}
        self._places.pop("", None)
        self.digest = _digest_of(kept, next(iter(listed.values())))

    def __iter__(self) -> Iterator[str]:
        return iter(self._places)

    def missing(self, file: KeptFile | None, megabytes: int) -> set[str]:
        """Keys to be written: without those that had no room in no less than there is now."""
        if file is None:
            return set(self._places)
        no_room = file.left_out if file.megabytes >= megabytes else frozenset()
        return {key for key in self._places if key not in file and key not in no_room}

    def decode(self, key: str) -> bytes | None:
        """A row's record; None if its files changed since they were looked at."""
        source, index = self._places[key]
        with decoding():
            example = resize_first(source[index], self.kept.image_side, self.kept.map_side)
        same = keys_of(source.reader, [source.rows[index]]) == [key]
        return _pack(key, example) if same else None


def _digest_of(kept: Kept, source: ListedSource) -> str:
    """Of what decides a kept file's contents beside the rows' files: the list, what is kept, and what decodes."""
    place = os.path.realpath(source.reader.folder), source.rows[0].list
    what = (place, kept.image_side, kept.map_side, source.channels, _code())
    return hashlib.sha256(repr(what).encode()).hexdigest()[:16]


@cache
def _code() -> tuple[str, ...]:
    """What decodes: the modules of this folder themselves, as nobody would count up a version, and libraries."""
    here, digest = Path(__file__).parent, hashlib.sha256()
    for path in sorted([*here.glob("*.py"), *here.glob("annotations/*.py")]):
        digest.update(path.read_bytes())
    found = {each.metadata["Name"].lower(): each.version for each in map(_distribution, _LIBRARIES) if each}
    return digest.hexdigest(), *(f"{name} {version}" for name, version in found.items())


def _distribution(name: str) -> importlib.metadata.Distribution | None:
    return next(iter(importlib.metadata.distributions(name=name)), None)


def _write(path: Path, rows: _Rows, old: KeptFile | None, missing: set[str], limit: int) -> KeptFile | None:
    """Writes the rows to a new file in the place of the old one, of which what there is is copied; and opens it.

    Raises OSError where it can't be written; the old file is then left.
    """
    folder = path.parent
    folder.mkdir(parents=True, exist_ok=True)
    ignore = folder / ".gitignore"
    if not ignore.exists():
        ignore.write_text("# Decoded images, which may be deleted at any time.\n*\n", encoding="utf-8")
    room, left_out = _Room(folder, path, limit), []
    with _aside(path) as (partial, writer):
        keys = []
        for key, record in _records(rows, old, missing):
            if record is None:
                continue
            if not room.take(len(record)):
                left_out.append(key)
                continue
            writer.write(record)
            keys.append(key)
        index = {"keys": keys, "left_out": left_out, "megabytes": limit >> 20}
        writer.write(json.dumps(index).encode())
        writer.close()  # raises what went wrong in any `write`, as on a full disk
        partial.replace(path)
    size = f"{path.stat().st_size / 2**20:,.0f} MB"
    logging.info("%s: %d decoded images are kept (%s)", path, len(keys), size)
    if left_out:
        limits = f"config.data.cache_megabytes is {limit >> 20:,}, and half of the free space counts"
        told = f"{len(left_out)} of {len(keys) + len(left_out)} decoded images had no room and are decoded each time"
        _tell(f"{path}: {told} ({limits}).")
    return KeptFile.open(path)


@contextmanager
def _aside(path: Path) -> Iterator[tuple[Path, Any]]:
    """A writer of a file that is nobody else's; it is gone at the end if it was not renamed."""
    partial = path.with_name(f".{path.name}.{os.getpid()}{secrets.token_hex(4)}")
    try:
        with partial.open("xb"):  # says why it can't be, which array_record does not
            pass
        yield partial, ArrayRecordWriter(str(partial), _WRITING)
    except RuntimeError as error:
        raise OSError(_first_line(error)) from error
    finally:
        partial.unlink(missing_ok=True)


def _records(rows: _Rows, old: KeptFile | None, missing: set[str]) -> Iterator[tuple[str, bytes | None]]:
    """Each key's record, in order: of the old file, or decoded, in threads, a few ahead."""
    bar = tqdm(total=len(missing), desc="decoding", unit=" images", delay=3, disable=None)

    def record(key: str) -> tuple[str, bytes | None]:
        found = old.content(key) if old and key not in missing else None
        return key, rows.decode(key) if found is None and key in missing else found

    with ThreadPoolExecutor(decoding_threads()) as executor, bar:
        keys = iter(rows)
        while chunk := list(islice(keys, _AT_A_TIME)):
            for key, content in executor.map(record, chunk):
                bar.update(key in missing)
                yield key, content


class _Room:
    """What kept files may still take. Other files of the folder go for new ones, those that were not used longest."""

    def __init__(self, folder: Path, path: Path, limit: int):
        _clear_abandoned(folder)
        used = {each: each.stat() for each in folder.glob(f"*{_ENDING}") if each != path}
        self._others = sorted(used, key=lambda each: used[each].st_mtime)
        self._left = min(limit, int(shutil.disk_usage(folder).free * _SHARE_OF_DISK)) - sum(
            each.st_size for each in used.values()
        )

    def take(self, count: int) -> bool:
        """Whether so many bytes have room; records are no larger in the file, but for a few bytes."""
        while count > self._left and self._others:
            oldest = self._others.pop(0)
            self._left += oldest.stat().st_size if oldest.exists() else 0
            oldest.unlink(missing_ok=True)
        if count > self._left:
            return False
        self._left -= count
        return True


def _clear_abandoned(folder: Path) -> None:
    """Deletes what a process left unfinished that was killed."""
    for each in folder.glob(f".*{_ENDING}.*"):
        if time.time() - each.stat().st_mtime > _ABANDONED:
            each.unlink(missing_ok=True)


def _pack(key: str, example: Example) -> bytes:
    image, saliency = example.image, example.saliency
    size = (0, 0) if saliency is None else saliency.shape
    floats = b"" if saliency is None else np.asarray(saliency, "<f4").tobytes()
    return _HEADER.pack(bytes.fromhex(key), *image.shape, *size) + image.tobytes() + floats


def _is_of(content: bytes, key: str) -> bool:
    return content[:16] == bytes.fromhex(key)


def _unpack(content: bytes) -> Example:
    _, *image_shape, height, width = _HEADER.unpack_from(content)
    size = int(np.prod(image_shape))
    image = np.frombuffer(content, np.uint8, size, _HEADER.size).reshape(image_shape)
    saliency = None
    if height:
        saliency = np.frombuffer(content, "<f4", height * width, _HEADER.size + size).reshape(height, width)
    return Example.from_arrays(image, saliency)


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0][:200]


_told: set[str] = set()


def _tell(text: str) -> None:
    """A warning, once in a process: a study opens the same data again and again."""
    if text not in _told:
        _told.add(text)
        logging.warning("%s", text)
