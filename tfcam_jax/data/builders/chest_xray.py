"""Normal and abnormal chest X-rays with boxes, masks or gaze; each owner's layout is a file of `chest`."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import ClassVar

from ...errors import ConfigError, check_known
from ..listing import SplitDraw, check_chosen
from ..source import SPLITS, DataError
from ..unlisted import walk_files
from . import read_text
from .chest import COLLECTIONS
from .chest.collection import ABNORMAL, NORMAL, Collection, Film, Reading, check_splits, choose_films, split_films
from .file_search import FileSearch
from .listed_builder import ListedBuilder, ListedConfig, no_rows
from .owner_files import Found, check_pattern, find_folder

GAZE = ("fixations", "ellipses")


@dataclass(eq=False)
class ChestXrayConfig(ListedConfig):
    """What to take.

    Attributes:
      collections: keys of `COLLECTIONS`; those that aren't there are refused. Empty: all that are there.
      owner_splits: those that are split as their owners do, with all films; the others are drawn by patient.
      annotated_only: of films drawn by patient: leave out abnormal ones that nobody annotated.
      normals: of films drawn by patient: normal ones without marks, for each annotated abnormal one; 0: all.
      shares: of train, val and test, drawn by patient.
      seed: of which normal films are used and of the splits.
      degrees: standard deviation of fixations' Gaussians where the table says how many pixels made a degree (reflacx).
      reflacx_maps: the radiologists' "fixations" or the "ellipses" that they drew.
      maps: folder of the maps of collection `lists`.
      group_pattern: regular expression whose first group, found in a path of collection `lists`, names the patient.
    """

    collections: tuple[str, ...] = ()
    owner_splits: tuple[str, ...] = ("egd", "reflacx", "lists")
    annotated_only: bool = True
    normals: float = 1.0
    shares: tuple[float, ...] = (0.7, 0.1, 0.2)
    seed: int = 0
    degrees: float = 1.0
    reflacx_maps: str = "fixations"
    maps: str = "maps"
    group_pattern: str = ""


class ChestXray(ListedBuilder):
    """Frontal chest films, class normal or abnormal; the domain is the collection (chest_xray.md)."""

    BUILDER_CONFIGS: ClassVar = [ChestXrayConfig()]
    CLASS_NAMES = (NORMAL, ABNORMAL)
    CITATION, MANUAL_DOWNLOAD_INSTRUCTIONS = read_text("chest_xray.bib"), read_text("chest_xray.txt")

    @classmethod
    def find_rows(cls, folder: Path, config: ChestXrayConfig) -> Found:
        _check(config)
        files = [path for path in walk_files(folder) if not PurePosixPath(path).name.startswith(".")]
        there = {name: own for name, each in COLLECTIONS.items() if (own := each.find(folder, files))}
        chosen = config.collections or tuple(there)
        if not chosen:
            signatures = (f"{' or '.join(each.signature)} ({name})" for name, each in COLLECTIONS.items())
            raise no_rows(cls, folder, f"none of the files {', '.join(signatures)}")
        if absent := [name for name in chosen if name not in there]:
            lacks = "; ".join(f"{name} needs {' or '.join(COLLECTIONS[name].signature)}" for name in absent)
            raise no_rows(cls, folder, f"data.chest_xray.collections names what is not there: {lacks}")
        found, search = Found(), FileSearch(folder, without=[find_folder(folder, config.maps)])
        tables = {}
        for name in chosen:
            reading = Reading(folder, there[name], config, search, found)
            _add(COLLECTIONS[name], reading)
            tables |= reading.tables
        problems, notes = check_chosen(tables, config.columns, config.categories)
        found.problems += problems
        found.notes += notes
        return found


def _check(config: ChestXrayConfig) -> None:
    """Raises ConfigError or DataError for options that can't be."""
    check_pattern("data.chest_xray.group_pattern", config.group_pattern)
    check_known("data.chest_xray.reflacx_maps", config.reflacx_maps, GAZE)
    known = f"known are {', '.join(COLLECTIONS)}"
    for key in ("collections", "owner_splits"):
        unknown = [name for name in getattr(config, key) if name not in COLLECTIONS]
        if unknown:
            raise DataError([f"data.chest_xray.{key}: no collection {name!r}; {known}" for name in unknown])
    if without := [name for name in config.owner_splits if not COLLECTIONS[name].has_splits]:
        what = f"the owner of {', '.join(without)} publishes no split"
        raise ConfigError(f"data.chest_xray.owner_splits: {what}; leave it out, to draw one by patient")
    if len(config.shares) != len(SPLITS) or min(config.shares) <= 0 or abs(sum(config.shares) - 1) > 1e-6:
        wanted = "must be three numbers above 0 with the sum 1, of train, val and test"
        raise ConfigError(f"data.chest_xray.shares {wanted}; got {tuple(config.shares)}")
    if config.normals < 0 or config.seed < 0:
        raise ConfigError(f"data.chest_xray.normals and seed can't be negative; got {config.normals}, {config.seed}")


def _add(collection: Collection, reading: Reading) -> None:
    """Reads a collection and adds the films of it that are used, with their splits, files and marks."""
    name, options, found = collection.name, reading.options, reading.found
    collection.read(reading)
    films = reading.films
    if not films:
        return
    own = name in options.owner_splits
    if own:
        films, note = _owners_films(films, name, options)
    else:
        films, note = choose_films(films, name, options)
        found.draw = SplitDraw(dict(zip(SPLITS, options.shares, strict=True)), options.seed)
        films = split_films(films, found.draw.shares, options.seed)
        shares = "/".join(f"{share:.0%}" for share in options.shares)
        note += f"; train, val and test {shares} by patient, drawn with seed {options.seed}"
    found.notes.append(note)
    found.problems += check_splits(films, name, own)
    placed = Found([film.row for film in films])
    if reading.images is not None:
        placed.place_images(reading.search, reading.images)
    found.problems += placed.problems
    found.notes += [f"{name}: {each}" for each in placed.notes]
    _add_marks(found, placed, films)


def _owners_films(films: list[Film], name: str, options: ChestXrayConfig) -> tuple[list[Film], str]:
    """All films as their owner splits them; where nothing validates, a part of training by patient does."""
    note = f"{name}: {len(films)} films, {sum(film.annotated for film in films)} annotated, split as their owner does"
    if any(film.row.split == "val" for film in films):
        return films, note
    train, val, _ = options.shares
    trained = [film for film in films if film.row.split == "train"]
    drawn = split_films(trained, {"train": train, "val": val}, options.seed)
    share = f"{val / (train + val):.0%}"
    note += f", who has no validation: {share} of training, drawn by patient with seed {options.seed}, validate"
    return [*drawn, *(film for film in films if film.row.split != "train")], note


def _add_marks(found: Found, placed: Found, films: list[Film]) -> None:
    """Adds rows whose images were looked for, and the films' marks under the paths of their files."""
    for row, film in zip(placed.rows, films, strict=True):
        if film.marks and film.annotated:
            found.tables.setdefault(film.table, {})[row.image] = film.marks
            row = replace(row, map=film.table)
        found.rows.append(row)
