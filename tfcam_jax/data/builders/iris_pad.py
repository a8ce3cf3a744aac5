"""Live irises and presentation attacks, with the attack type as domain.

Lists are read as the training code of D-NetPAD, the LivDet-Iris 2025 baselines, VISER and Grains of Saliency reads
them; the collections themselves were not at hand, so that the names of their folders and types could not be checked.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import ClassVar

from ..listing import Row
from ..source import SPLIT_NAMES, DataError
from ..unlisted import walk_images
from . import read_text
from .file_search import FileSearch
from .listed_builder import ListedBuilder, ListedConfig, no_rows
from .owner_files import Found, below, check_pattern, find_folder, find_lists, group_of, map_places, split_by_share
from .owner_lists import Line, OwnerList, read_owner_list, share_out, tell_draw, words_besides

LIVE_NAMES = frozenset({"live", "real", "bonafide", "authentic", "genuine"})
# Classes that say attack without saying which.
UNNAMED_ATTACKS = frozenset({"attack", "attacks", "spoof", "spoofs", "fake", "pa", "presentation_attack"})
# Words of which one at least stands in a list's name that names an attack type, as in textured_contacts_test.csv.
_TYPES = re.compile(
    "print|paper|contact|lens|artificial|synthetic|cadaver|mortem|diseas|glass|prosthe|display|screen|replay|doll|plastic"
)
# Words of lists' and folders' names that say nothing of a type.
_NO_TYPE = UNNAMED_ATTACKS | LIVE_NAMES | {"iris", "irises", "pad", "livdet", "cropped"}
_LEFT_OUT = re.compile("(.+?)_left_?out(_|$)")
_UNTOLD = "attack"


@dataclass(eq=False)
class IrisPadConfig(ListedConfig):
    """Where things lie below `manual_dir`.

    Attributes:
      lists: list files (glob patterns); without any, folders named by type are read.
      images: folder that paths in the lists are relative to, or that holds the folders by type.
      maps: folder of human maps, by the image's path below `images`, else by its file name.
      group_pattern: regular expression whose first group, found in a path, names the eye or person; "" if unknown.
      type_pattern: the same of the attack type.
      type_column: name, or number from 1, of the lists' column that holds the attack type; "" if there is none.
    """

    lists: tuple[str, ...] = ("*.csv", "[cC][sS][vV][sS]/**/*.csv")
    images: str = "images"
    maps: str = "maps"
    group_pattern: str = ""
    type_pattern: str = ""
    type_column: str = ""


class IrisPad(ListedBuilder):
    """Iris images: class live or attack; the domain is the attack's type, or "live" (iris_pad.md)."""

    BUILDER_CONFIGS: ClassVar = [IrisPadConfig()]
    CLASS_NAMES = ("live", "attack")
    CITATION, MANUAL_DOWNLOAD_INSTRUCTIONS = read_text("iris_pad.bib"), read_text("iris_pad.txt")

    @classmethod
    def find_rows(cls, folder: Path, config: IrisPadConfig) -> Found:
        for key in ("group_pattern", "type_pattern"):
            check_pattern(f"data.iris_pad.{key}", getattr(config, key))
        maps = find_folder(folder, config.maps)
        lists = [path for path in find_lists(folder, config.lists) if folder / maps not in path.parents]
        if lists:
            found = _from_lists(lists, folder, config)
            found.place_images(FileSearch(folder, without=[maps]), config.images)
        else:
            found = _from_folders(folder / config.images, config)
        if not found.rows and not found.problems:
            wanted = f"neither a list {' or '.join(config.lists)} nor images in {config.images}/TYPE/"
            raise no_rows(cls, folder, wanted)
        if found.rows and not found.add_maps(folder, maps):
            found.notes.append(f"no image has a human map: {map_places(maps, found.rows[0].image, config.images)}")
        return found


def _from_lists(paths: Sequence[Path], folder: Path, config: IrisPadConfig) -> Found:
    lists = [read_owner_list(path, config.type_column) for path in paths]
    left_out = {each.path: _left_out_type(each.path) for each in lists}
    _refuse_several(left_out, folder)
    found = Found([], [problem for each in lists for problem in each.problems])
    found.notes += [note for each in lists for note in each.notes]
    lines, found.draw, notes = share_out(lists)
    found.notes += notes + ([tell_draw(lists, found.draw)] if found.draw else [])
    names = _TypeNames(lists, left_out, config.type_pattern)
    for line in lines:
        if not line.kind or line.kind.isdigit():
            given = f"class {line.kind!r}" if line.kind else "no class given"
            found.problems.append(f"{line.list}, row {line.number}: {given}; use live or the attack's type")
        label = "live" if _is_live(line.kind) else "attack" if line.kind else ""
        domain = label and ("live" if label == "live" else names.of(line))
        group = line.group or group_of(line.image, config.group_pattern)
        found.rows.append(Row(str(line.list), line.number, line.split, label, line.image, "", domain, group))
    found.notes += _type_notes(found.rows, left_out)
    return found


class _TypeNames:
    """Attack types of lines whose class says attack alone.

    It is the type's own column, what the pattern finds in the path, what the list's name says, or the folder of the
    image; a folder that holds live irises too, or whose name is made of words such as "images" and "spoof", is none.
    """

    def __init__(self, lists: Sequence[OwnerList], left_out: Mapping[Path, str], pattern: str):
        self._pattern = pattern
        self._by_list = {each.path: left_out[each.path] if each.tests_only else "" for each in lists}
        self._by_list |= {path: _type_in_name(path) for path, kind in left_out.items() if not kind}
        self._otherwise = {path: f"not_{kind}" if kind else _UNTOLD for path, kind in left_out.items()}
        self._of_live = {_folder(line.image) for each in lists for line in each.lines if _is_live(line.kind)}

    def of(self, line: Line) -> str:
        told = (_plain(line.kind), _plain(line.type), _plain(group_of(line.image, self._pattern)))
        named = next((kind for kind in told if kind and kind not in UNNAMED_ATTACKS), "")
        return named or self._by_list[line.list] or self._by_folder(line.image) or self._otherwise[line.list]

    def _by_folder(self, image: str) -> str:
        folder = _folder(image)
        kind = _plain(folder.rpartition("/")[2])
        return "" if folder in self._of_live or not words_besides(kind, _NO_TYPE) else kind


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
        kind = _plain(kinds[0])
        named = _plain(group_of(path, config.type_pattern)) or (kinds[-1] if kind in UNNAMED_ATTACKS else kind)
        label = "live" if _is_live(kind) else "attack"
        domain = label if label == "live" else _UNTOLD if not words_besides(named, _NO_TYPE) else _plain(named)
        image, group = below(config.images, path), group_of(path, config.group_pattern)
        found.rows.append(Row(str(folder), 0, split or split_by_share(group or path), label, image, "", domain, group))
    return found


def _refuse_several(left_out: Mapping[Path, str], folder: Path) -> None:
    """Raises DataError for lists of several left-out types: each type's lists are a data set of their own."""
    types = sorted(set(left_out.values()) - {""})
    if len(types) < 2:
        return
    first = sorted(path.relative_to(folder).as_posix() for path, kind in left_out.items() if kind == types[0])
    what = f"lists of {len(types)} left-out attack types ({', '.join(types)}), each a data set of its own"
    command = f'--config.data.iris_pad.lists="{tuple(first)!r}"'
    raise DataError([f"{folder}: {what}; name the lists of one, as in {command}"])


def _type_notes(rows: Sequence[Row], left_out: Mapping[Path, str]) -> list[str]:
    """What is told of types that are left out, and of attacks whose type nothing tells."""
    notes = [f"{path.name}: attack type {kind} is left out of training" for path, kind in left_out.items() if kind]
    domains = Counter(row.domain for row in rows)
    for domain in sorted({f"not_{kind}" for kind in left_out.values() if kind} | {_UNTOLD}):
        if count := domains[domain]:
            remedy = "data.iris_pad.type_pattern or type_column would tell it"
            notes.append(f"the type of {count} attacks is not told, so that their domain is {domain}; {remedy}")
    return notes


def _left_out_type(path: Path) -> str:
    """The attack type that a list's name says is left out; "" for other lists."""
    match = _LEFT_OUT.match(_plain(path.stem))
    return match[1] if match else ""


def _type_in_name(path: Path) -> str:
    """The attack type in a list's name, without the words that say nothing of one."""
    name = words_besides(path.stem, _NO_TYPE)
    return name if _TYPES.search(name) else ""


def _is_live(kind: str) -> bool:
    return re.sub(r"[^a-z0-9]", "", kind.lower()) in LIVE_NAMES


def _folder(image: str) -> str:
    return image.replace("\\", "/").rpartition("/")[0].lower()


def _plain(kind: str) -> str:
    return re.sub(r"[^a-z0-9]+", "_", kind.lower()).strip("_")
