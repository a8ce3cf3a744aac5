"""Live irises and presentation attacks, with the attack type as domain."""

from __future__ import annotations

import re
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import ClassVar

from ..list_files import group_of, read_list, split_by_share, walk_images
from ..listing import Listing, MapReader, Row
from .listed_builder import ListedBuilder, ListedConfig, no_rows

LIVE_NAMES = frozenset({"live", "real", "bonafide", "authentic", "genuine"})
# Classes that say attack without saying which; its type is then the name of the image's folder.
UNNAMED_ATTACKS = frozenset({"attack", "attacks", "spoof", "fake", "pa"})
_SPLIT_NAMES = {
    "train": "train", "training": "train", "val": "val", "validation": "val", "test": "test", "testing": "test"
}  # fmt: skip


@dataclass(eq=False)
class IrisPadConfig(ListedConfig):
    """Where things lie below `manual_dir`.

    Attributes:
      lists: list files (glob patterns); without any, folders named by type are read.
      images: folder that paths in the lists are relative to, or that holds the folders by type.
      maps: folder of human maps, by the image's path below `images`, else by its file name.
      group_pattern: regular expression whose first group, found in a path, names the eye or person; "" if unknown.
    """

    lists: tuple[str, ...] = ("*.csv",)
    images: str = "images"
    maps: str = "maps"
    group_pattern: str = ""


class IrisPad(ListedBuilder):
    """Iris images: class live or attack; the domain is the attack's type, or "live".

    The published splits are those of the lists or folders. To leave attack types out, one after the other, set
    data.protocol.name="leave_one_domain_out". Licence: each collection's own, agreed with its owner; neither images nor
    prepared sets may be passed on.
    """

    BUILDER_CONFIGS: ClassVar = [IrisPadConfig()]
    CLASS_NAMES = ("live", "attack")
    CITATION = """@misc{das2020livdet,
  title = {Iris Liveness Detection Competition (LivDet-Iris) -- The 2020 Edition},
  author = {Das, Priyanka and McGrath, Joseph and Fang, Zhaoyuan and Boyd, Aidan and Jang, Ganghee and
            Mohammadi, Amir and Purnapatra, Sandip and Yambay, David and Marcel, S{\'e}bastien and
            Trokielewicz, Mateusz and Maciejewicz, Piotr and Bowyer, Kevin and Czajka, Adam and Schuckers, Stephanie
            and others},
  year = {2020},
  note = {arXiv:2009.00749}
}"""
    MANUAL_DOWNLOAD_INSTRUCTIONS = """
1. Iris collections are given out by their owners on request, each under its own licence; the citation names the
   organisers of LivDet-Iris 2020, and https://cvrl.nd.edu/projects/data/ lists Notre Dame's.
2. Put them into one folder, either with list files without a header
     *.csv       lines `split,class,path` or `split,class,path,group`: split train, val or test; class live or the
                 attack's type (attack: the type is the image's folder); group the eye or person.
                 Lines `path,class` are a test list.
     images/     what the paths are relative to
     maps/       human maps, by the same path or by file name
   or with folders
     images/TYPE/...          types live, textured_contacts, printout, ...; split 70/10/20 by group or file name
     images/SPLIT/TYPE/...    the same, with splits of your own
   Other names are given as data.iris_pad.lists, .images and .maps.
3. python launch/prepare.py --config=configs/iris_pad.py --config.data.iris_pad.manual_dir=FOLDER --check
"""

    @classmethod
    def list_rows(cls, folder: Path, config: IrisPadConfig) -> Listing:
        lists = sorted({path for pattern in config.lists for path in folder.glob(pattern)})
        rows, problems = _from_lists(lists, config) if lists else _from_folders(folder / config.images, config)
        if not rows and not problems:
            raise no_rows(
                cls, folder, f"neither a list {' or '.join(config.lists)} nor images in {config.images}/TYPE/"
            )
        maps = _maps_by_path(folder / config.maps)
        rows = [_with_map(row, maps, config) for row in rows]
        problems += _ambiguous(rows)
        reader = MapReader(folder, config.combine, config.sigma, config.pixels_per_degree)
        return Listing(cls.name, tuple(rows), cls.CLASS_NAMES, reader, tuple(problems))


def _from_lists(lists: list[Path], config: IrisPadConfig) -> tuple[list[Row], list[str]]:
    rows, problems = [], []
    for path in lists:
        lines, wrong = read_list(path, (2, 3, 4), "split,class,path or split,class,path,group or path,class")
        problems += wrong
        for line in lines:
            if len(line.cells) == 2:
                image, kind = line.cells
                split, group = "test", ""
            else:
                split, kind, image, group = (*line.cells, "")[:4]
            if not kind:
                problems.append(f"{path}, row {line.number}: no class given; use live or the attack's type")
            image = f"{config.images}/{image.lstrip('/')}" if config.images else image.lstrip("/")
            split = _SPLIT_NAMES.get(split.lower(), split)
            rows.append(_row(str(path), line.number, split, kind, image, group, config))
    return rows, problems


def _from_folders(folder: Path, config: IrisPadConfig) -> tuple[list[Row], list[str]]:
    rows, problems = [], []
    for number, below in enumerate(walk_images(folder) if folder.is_dir() else (), start=1):
        *folders, _ = PurePosixPath(below).parts
        split = _SPLIT_NAMES.get(folders[0].lower()) if folders else None
        kinds = folders[1:] if split else folders
        if not kinds:
            problems.append(f"{folder / below}: lies in no folder named by its type; use TYPE/ or SPLIT/TYPE/")
            continue
        image = f"{config.images}/{below}" if config.images else below
        group = group_of(image, config.group_pattern)
        split = split or split_by_share(group or below)
        rows.append(_row(str(folder), number, split, kinds[0], image, group, config))
    return rows, problems


def _row(place: str, number: int, split: str, kind: str, image: str, group: str, config: IrisPadConfig) -> Row:
    kind = re.sub(r"[^a-z0-9]+", "_", kind.lower()).strip("_")
    live = kind.replace("_", "") in LIVE_NAMES
    if kind in UNNAMED_ATTACKS:
        kind = re.sub(r"[^a-z0-9]+", "_", PurePosixPath(image).parent.name.lower()).strip("_")
    label = "live" if live else "attack" if kind else ""
    group = group or group_of(image, config.group_pattern)
    return Row(place, number, split, label, image, domain="live" if live else kind, group=group)


def _maps_by_path(folder: Path) -> dict[str, list[str]]:
    """Paths of maps, under the path and under the file name, both without the suffix."""
    maps = defaultdict(list)
    if folder.is_dir():
        for path in sorted(path for path in folder.rglob("*") if path.is_file() and not path.name.startswith(".")):
            below = path.relative_to(folder)
            for key in {below.with_suffix("").as_posix(), below.stem}:
                maps[key].append(below.as_posix())
    return maps


def _with_map(row: Row, maps: dict[str, list[str]], config: IrisPadConfig) -> Row:
    below = PurePosixPath(row.image)
    if config.images:
        below = below.relative_to(config.images)
    found = maps.get(below.with_suffix("").as_posix()) or maps.get(below.stem) or []
    return Row(**{**vars(row), "map": "|".join(f"{config.maps}/{name}" for name in found)})


def _ambiguous(rows: list[Row]) -> list[str]:
    """Images that share a file name must have their maps by path."""
    first: dict[str, Row] = {}
    problems = []
    for row in rows:
        other = first.setdefault(row.map, row) if row.map else row
        if other.image != row.image:
            what = f"map {row.map} would also be that of {other.image} ({other.place})"
            problems.append(f"{row.place}: {what}; put maps under the images' paths")
    return problems
