"""Live irises and presentation attacks, with the attack type as domain."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import ClassVar

from ..csv_files import read_list
from ..listing import Row
from ..source import SPLIT_NAMES
from ..unlisted import walk_images
from . import read_text
from .listed_builder import ListedBuilder, ListedConfig, no_rows
from .owner_files import Found, below, find_lists, group_of, index_maps, split_by_share

LIVE_NAMES = frozenset({"live", "real", "bonafide", "authentic", "genuine"})
# Classes that say attack without saying which; its type is then the name of the image's folder.
UNNAMED_ATTACKS = frozenset({"attack", "attacks", "spoof", "fake", "pa"})


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
    """Iris images: class live or attack; the domain is the attack's type, or "live" (iris_pad.md)."""

    BUILDER_CONFIGS: ClassVar = [IrisPadConfig()]
    CLASS_NAMES = ("live", "attack")
    CITATION, MANUAL_DOWNLOAD_INSTRUCTIONS = read_text("iris_pad.bib"), read_text("iris_pad.txt")

    @classmethod
    def find_rows(cls, folder: Path, config: IrisPadConfig) -> Found:
        lists = find_lists(folder, config.lists)
        found = _from_lists(lists, config) if lists else _from_folders(folder / config.images, config)
        if not found.rows and not found.problems:
            wanted = f"neither a list {' or '.join(config.lists)} nor images in {config.images}/TYPE/"
            raise no_rows(cls, folder, wanted)
        found.add_maps(index_maps(folder / config.maps), config.maps, config.images)
        return found


def _from_lists(lists: Sequence[Path], config: IrisPadConfig) -> Found:
    found = Found()
    for path in lists:
        lines, wrong = read_list(path, (2, 3, 4), "split,class,path or split,class,path,group or path,class")
        found.problems += wrong
        for number, cells in lines:
            split, kind, image, group = ("test", *reversed(cells), "") if len(cells) == 2 else (*cells, "")[:4]
            if not kind:
                found.problems.append(f"{path}, row {number}: no class given; use live or the attack's type")
            split = SPLIT_NAMES.get(split.lower(), split)
            row = Row(str(path), number, split, "", below(config.images, image), group=group)
            found.rows.append(_classify(row, kind, config))
    return found


def _from_folders(folder: Path, config: IrisPadConfig) -> Found:
    found = Found()
    for path in walk_images(folder):
        *folders, _ = PurePosixPath(path).parts
        split = SPLIT_NAMES.get(folders[0].lower()) if folders else None
        kinds = folders[1:] if split else folders
        if not kinds:
            hint = "lies in no folder named by its type; use TYPE/ or SPLIT/TYPE/"
            found.problems.append(f"{folder / path}: {hint}")
            continue
        row = _classify(Row(str(folder), 0, "", "", below(config.images, path)), kinds[0], config)
        found.rows.append(replace(row, split=split or split_by_share(row.group or path)))
    return found


def _classify(row: Row, kind: str, config: IrisPadConfig) -> Row:
    """The row with its class, its domain and, where its list doesn't name one, its group."""
    live = re.sub(r"[^a-z0-9]", "", kind.lower()) in LIVE_NAMES
    kind = _plain(kind)
    if kind in UNNAMED_ATTACKS:
        kind = _plain(PurePosixPath(row.image).parent.name)
    label = "live" if live else "attack" if kind else ""
    group = row.group or group_of(row.image, config.group_pattern)
    return replace(row, label=label, domain="live" if live else kind, group=group)


def _plain(kind: str) -> str:
    return re.sub(r"[^a-z0-9]+", "_", kind.lower()).strip("_")
