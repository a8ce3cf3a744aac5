"""What a run keeps of the data that it was trained on, and the refusal to go on with others unasked.

`data.json` in the workdir is their fingerprint, with a checksum: a flipped bit is not to pass for another map. Each
checkpoint has less of them, for runs without that file (`describe_dataset`).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from absl import logging

from ..data.fingerprint import Comparison, compare_classes, compare_fingerprints, is_fingerprint, take_fingerprint
from ..data.source import DataError, Dataset
from ..devices.distributed import is_first
from ..errors import visible
from .files import write_text
from .fingerprints import checksum_json

_FILE = "data.json"
_FLAG = "--accept_changed_data"
_NOT_KEPT = "groups, and the content of images and maps, were not kept with the run and can't be compared"


class DataRecord(NamedTuple):
    """What there is to compare of data: their fingerprint, and what a checkpoint has of them."""

    fingerprint: Mapping[str, Any]
    described: Mapping[str, Any]


def record_data(dataset: Dataset) -> DataRecord:
    """Of a data set, split and with the maps that a run takes."""
    return DataRecord(take_fingerprint(dataset.class_names, dataset.splits), describe_dataset(dataset))


Described = Callable[[], Mapping[str, Any] | None]


def check_same_data(workdir: Path, name: str, now: DataRecord, described: Described, accept: bool, remedy: str) -> None:
    """Compares data with those that a run was trained on.

    Args:
      workdir: of the run.
      name: of the data, for messages.
      now: of the data as they are.
      described: see `compare_with_run`.
      accept: changed data are wanted; what differs is a warning.
      remedy: what else to do about them, beside restoring them.

    Raises:
      DataError: they differ; names splits, what differs and the first images.
    """
    found = compare_with_run(workdir, described, now)
    tell_differences(f"{name}: the data are not those that the run was trained on", found, accept, remedy)


def compare_with_run(workdir: Path, described: Described, now: DataRecord) -> Comparison:
    """What differs between the data of a run and those of now; nothing where it was trained on none yet.

    `described` gives what a checkpoint has of its data, None without one; asked where the workdir has no fingerprint.
    """
    if then := load_fingerprint(workdir):
        return compare_fingerprints(then, now.fingerprint)
    known = described()
    return _compare_described(known, now.described) if known else Comparison()


def tell_differences(what: str, found: Comparison, accept: bool, remedy: str) -> None:
    """Raises DataError of what changed, or tells it where that is accepted; harmless differences are told."""
    lines = [*filter(None, [found.classes]), *found.changed]
    if found.classes:
        raise DataError(lines, f"{what}:", f"Restore them, or {remedy}.")
    if found.changed and not accept:
        remedies = f"Restore them, {remedy}, or give {_FLAG} to go on with them as they are."
        raise DataError(lines, f"{what}:", remedies)
    if not is_first():
        return
    if found.changed:
        told = "\n  ".join(map(visible, [f"{what}:", *lines]))
        logging.warning("%s\n%s is given: they are taken as they are.", told, _FLAG)
    for line in found.harmless:
        logging.warning("%s: %s", what.partition(":")[0], line)


def load_fingerprint(workdir: Path) -> dict[str, Any] | None:
    """The fingerprint that a run keeps; None without one, or, with a warning, where it is damaged."""
    path = workdir / _FILE
    try:
        kept = json.loads(path.read_text(encoding="utf-8"))
        checksum = kept.pop("crc32")
        if checksum == checksum_json(kept) and is_fingerprint(kept):
            return kept
        reason = "its checksum is wrong"
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        reason = str(error)
    if is_first():
        logging.warning("%s is damaged (%s): the data are compared by what the checkpoint has of them.", path, reason)
    return None


def keep_fingerprint(workdir: Path, record: DataRecord) -> None:
    """Keeps the fingerprint of what the run is trained on from now; in one process. Raises WorkdirError."""
    if not is_first():
        return
    path, taken = workdir / _FILE, record.fingerprint
    text = json.dumps({"crc32": checksum_json(taken), **taken}, separators=(",", ":"))
    if not path.is_file() or path.read_bytes() != text.encode():
        write_text(path, text)


def describe_dataset(dataset: Dataset) -> dict[str, Any]:
    """What a checkpoint has of its data, JSON-able.

    `class_names`; `domains` of training, None without it; `rows`, a checksum of each split's names, labels and which of
    them have a map; `pixels`, one of its images' digests where the source knows them.
    """
    trained_on = dataset.splits.get("train")
    records = {name: split.records for name, split in dataset.splits.items()}
    rows = lambda of: checksum_json([of.ids, of.labels.tolist(), of.has_map.tolist()])
    return {
        "class_names": list(dataset.class_names),
        "domains": sorted(set(trained_on.records.domains)) if trained_on is not None else None,
        "rows": {name: rows(of) for name, of in records.items()},
        "pixels": {name: checksum_json(of.digests) for name, of in records.items()},
    }


def _compare_described(then: Mapping[str, Any], now: Mapping[str, Any]) -> Comparison:
    changed = ["train: its domains"] if then["domains"] != now["domains"] else []
    differs = lambda key: sorted(
        name for name in then[key].keys() | now[key].keys() if then[key].get(name) != now[key].get(name)
    )
    changed += [f"{split}: its rows, by name, label or whether they have a map" for split in differs("rows")]
    pixels = differs("pixels") if "pixels" in then else []
    harmless = [f"{split}: images were changed, or are decoded otherwise" for split in pixels]
    return Comparison(tuple(changed), (*harmless, _NOT_KEPT), compare_classes(then["class_names"], now["class_names"]))
