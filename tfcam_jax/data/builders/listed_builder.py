"""The common part of the TFDS builders: from an owner's files, through the checks, to a prepared data set."""

from __future__ import annotations

import hashlib
import os
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from tensorflow_datasets.core import constants

from ..bounds import open_image
from ..checks.inspection import inspect, usable_rows
from ..checks.outcomes import USABLE, Outcome, Outcomes
from ..decode import check_channels, decode_image
from ..listing import OF_READER, Listing, MapReader, Row, by_split, check_annotator, listed_records
from ..paths import split_map_cell
from ..source import DataError, Dataset
from .owner_files import Found
from .tfds_source import OrderedBuilder, columns_path, open_directory, open_prepared, pack, png, save_records

_SKIPPED, _NOTES = "skipped.txt", "notes.txt"


@dataclass(eq=False)
class ListedConfig(tfds.core.BuilderConfig):
    """Options that every such builder has; what is prepared depends on all of them.

    `skip_unreadable` leaves out rows whose files can't be read, instead of stopping; for the rest see
    `listing.MapReader`.
    """

    name: str = "default"
    combine: str = "mean"
    sigma: float = 50.0
    pixels_per_degree: float = 0.0
    invert: bool = False
    page: int | None = None
    bits: int | None = None
    degrees: float = 0.0
    columns: Mapping[str, str] = field(default_factory=dict)
    categories: tuple[str, ...] = ()
    skip_unreadable: bool = False


class ListedBuilder(OrderedBuilder, skip_registration=True):
    """A builder that checks rows of files below `manual_dir` and packs them, as 8-bit images and maps.

    Maps are stored with their peak at 255, as only their shape counts and faint ones would round away.
    """

    @classmethod
    def find_rows(cls, folder: Path, config: Any) -> Found:
        """The rows of the owner's files, no image opened, by a config of this builder's kind.

        Raises DataError where nothing of the owner's layout is there.
        """
        raise NotImplementedError

    @classmethod
    def list_files(cls, *, manual_dir: str, data_dir: str = "", **options) -> Listing:
        """The owner's files, no image opened; arguments as in `open_files` (`data_dir` makes no difference)."""
        return find_listing(cls, manual_dir, type(cls.BUILDER_CONFIGS[0])(**options))

    @classmethod
    def open_files(
        cls, *, manual_dir: str = "", data_dir: str = "", channels: int = 3, known: Outcomes | None = None, **options
    ) -> Dataset:
        """Opens a prepared set, preparing it first if these files with these options have not been yet.

        Args:
          manual_dir: where the owner's files lie; "" opens the one set that `data_dir` holds.
          data_dir: folder for prepared sets; "" means TFDS's own default.
          channels: 3 for RGB, 1 for grey.
          known: makes no difference: files are checked when they are prepared, and not again.
          **options: fields of the builder's config, whose name becomes a digest of them, of the rows and of the files'
            sizes and times, so that whatever changes is prepared anew beside the old.

        Raises:
          DataError: whatever must be put right in the files, all at once, nothing being left on disk; or no prepared
            set.
        """
        check_channels(channels)
        config = type(cls.BUILDER_CONFIGS[0])(**options)
        if manual_dir:
            listing = find_listing(cls, manual_dir, config)
            config.name = _fingerprint(listing, config)
            builder = cls(data_dir=data_dir or None, config=config, file_format="array_record")
            dataset, folder = open_prepared(builder, channels, manual_dir), builder.data_dir
            dataset = replace(dataset, drawn=listing.draw is not None)
        else:
            folder = _only_prepared(cls, data_dir)
            dataset = open_directory(folder, channels)
        return replace(dataset, skipped=_lines(Path(folder) / _SKIPPED), notes=_lines(Path(folder) / _NOTES))

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Iterator]:
        config: Any = self.builder_config
        listing = find_listing(type(self), dl_manager.manual_dir, config)
        usable, skipped = usable_rows(inspect(listing), config.skip_unreadable)
        folder = Path(self.data_path)
        for name, told in ((_SKIPPED, skipped), (_NOTES, usable.remarks)):
            (folder / name).write_text("\n".join(told), encoding="utf-8")
        examples = {}
        for split, rows, found in by_split(usable.listing.rows, usable.outcomes):
            save_records(columns_path(folder, split), listed_records(rows, found, listing.class_names))
            examples[split] = (len(rows), self._generate_examples(listing.reader, rows, found))
        return self._counted(examples)

    def _generate_examples(self, reader: MapReader, rows: Sequence[Row], outcomes: Sequence[Outcome]) -> Iterator:
        for number, (row, outcome) in enumerate(zip(rows, outcomes, strict=True)):
            saliency = reader.read(row, *outcome.size) if outcome.map == USABLE else None
            if saliency is not None:
                saliency = np.rint(255 * saliency / max(saliency.max(), 1e-12)).astype(np.uint8)
            known = {"label": row.label, "domain": row.domain, "group": row.group, "id": row.image}
            yield number, pack(_eight_bit(reader.open(row.image), reader.bits), saliency, **known)


def find_listing(builder: type[ListedBuilder], manual_dir: str | os.PathLike, config: ListedConfig) -> Listing:
    """The rows below `manual_dir`.

    Raises DataError, which says how to obtain the data: no such folder, a zip in its place, or nothing of the layout.
    """
    folder = Path(manual_dir)
    if folder.is_file() and zipfile.is_zipfile(folder):
        raise DataError([f"{folder}: a zip archive; unpack it and give the folder"])
    if not str(manual_dir) or not folder.is_dir():
        raise DataError([f"data.{builder.name}.manual_dir: no folder {str(manual_dir)!r}; {_how(builder)}"])
    found = builder.find_rows(folder, config)
    reading = {name: getattr(config, name) for name in OF_READER}
    reader = MapReader(folder, **reading, tables=found.tables, degrees=config.degrees)
    told = (*found.problems, *check_annotator(reader, found.rows)), tuple(found.notes)
    return Listing(builder.name, tuple(found.rows), builder.CLASS_NAMES, reader, *told, found.draw)


def no_rows(builder: type[ListedBuilder], folder: Path, wanted: str) -> DataError:
    """What to raise where a folder holds nothing of the layout; names a zip that nobody unpacked."""
    packed = sorted(path.name for path in folder.iterdir() if path.suffix == ".zip")
    hint = f"unpack {', '.join(packed)}; " if packed else ""
    return DataError([f"{folder}: {wanted}; {hint}{_how(builder)}"])


def _how(builder: type[ListedBuilder]) -> str:
    return f"how to obtain and unpack the data:\n\n{builder.MANUAL_DOWNLOAD_INSTRUCTIONS}"


def _lines(path: Path) -> tuple[str, ...]:
    """The lines of a file beside a prepared set; none where it is of an earlier version and has no such file."""
    return tuple(path.read_text(encoding="utf-8").splitlines()) if path.is_file() else ()


def _only_prepared(builder: type[ListedBuilder], data_dir: str) -> str:
    folder = Path(data_dir or constants.DATA_DIR).expanduser() / builder.name
    found = sorted(path.parent for path in folder.glob("*/*/features.json"))
    if len(found) != 1:
        what = f"holds {len(found)} prepared sets" if found else "holds no prepared set"
        key = f"data.{builder.name}.manual_dir"
        raise DataError([f"{folder} {what}; set {key} to the folder of the owner's files\n{_how(builder)}"])
    return str(found[0])


def _fingerprint(listing: Listing, config: ListedConfig) -> str:
    ours = {field.name for field in fields(config)} - {field.name for field in fields(tfds.core.BuilderConfig)}
    digest = hashlib.sha256(repr([(name, getattr(config, name)) for name in sorted(ours)]).encode())
    tables = [(path, sorted(table.items())) for path, table in sorted(listing.reader.tables.items())]
    digest.update(repr((listing.rows, listing.problems, listing.notes, listing.draw, tables)).encode())
    for row in listing.rows:
        for name in (row.image, *(path for _, path in split_map_cell(row.map))):
            path = listing.reader.folder / name
            status = path.stat() if path.is_file() else None
            digest.update(repr((name, status and (status.st_size, status.st_mtime_ns))).encode())
    return digest.hexdigest()[:16]


def _eight_bit(encoded: bytes, bits: int | None) -> bytes:
    """The file as it is, if any reader of TFDS sets will take it for what we do; otherwise a PNG of what we see."""
    if encoded[128:132] != b"DICM":
        image = open_image(encoded)
        plain = image.format in ("PNG", "JPEG") and image.mode in ("L", "RGB")
        if plain and not image.has_transparency_data and image.getexif().get(0x0112, 1) == 1:
            return encoded
    return png(decode_image(encoded, 3, bits))
