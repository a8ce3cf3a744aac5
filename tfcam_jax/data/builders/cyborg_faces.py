"""Real and synthetic faces with human maps: the UND WACV 2023 CYBORG collection."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import ClassVar

from ..listing import Row
from . import read_text
from .file_search import FileSearch
from .listed_builder import ListedBuilder, ListedConfig, no_rows
from .owner_files import Found, check_pattern, find_folder, find_lists, group_of, map_places
from .owner_lists import OwnerList, read_owner_list

# What a path says of where a face comes from. Longer names first: "stylegan2" is a part of "stylegan2ada".
SOURCES_IN_PATHS = {
    "stylegan2ada": "stylegan2-ada",
    "stylegan3": "stylegan3",
    "stylegan2": "stylegan2",
    "stylegan": "stylegan",
    "progan": "progan",
    "starganv2": "stargan-v2",
    "stargan": "stargan-v2",
    "srefi": "srefi",
    "celebahq": "celeba-hq",
    "celeba": "celeba-hq",
    "ffhq": "ffhq",
    "frgc": "frgc-subset",
}
_CLASSES = {"real": "Real", "synthetic": "Synthetic", "fake": "Synthetic"}
# Folders whose name says a class or a split and no source: 0_real, 1_fake, train, val.
_NO_SOURCE = re.compile(r"(\d+[-_ ])?(real|fake|synthetic|train|val|test|images?|data)")
# What a folder or list is called besides its source: ffhq_aligned, celeba-hq_real_aligned, original_data.
_BESIDES = re.compile(r"[-_ ](aligned|cropped|real|fake|synthetic|data|images?|train|val|test)$")


@dataclass(eq=False)
class CyborgFacesConfig(ListedConfig):
    """Where things lie below `manual_dir`.

    Attributes:
      train_lists: list files (glob patterns) whose `train` rows are for training and whose `test` rows validate.
      test_lists: list files whose rows, whatever their split, are for testing.
      images: folder that the paths in the lists are relative to, a leading slash being ignored.
      heatmaps: folder of the maps of training images, by the image's path below `images`, else by its file name.
      group_pattern: regular expression whose first group, found in a path, names the person; "" if unknown.
    """

    train_lists: tuple[str, ...] = ("csvs/original.csv",)
    test_lists: tuple[str, ...] = ("csvs/gan_test_sets/*.csv",)
    images: str = ""
    heatmaps: str = "heatmaps"
    group_pattern: str = ""


class CyborgFaces(ListedBuilder):
    """Photographed (class Real) and generated (Synthetic) faces with human maps for training (cyborg_faces.md)."""

    BUILDER_CONFIGS: ClassVar = [CyborgFacesConfig()]
    CLASS_NAMES = ("Real", "Synthetic")
    CITATION, MANUAL_DOWNLOAD_INSTRUCTIONS = read_text("cyborg_faces.bib"), read_text("cyborg_faces.txt")

    @classmethod
    def find_rows(cls, folder: Path, config: CyborgFacesConfig) -> Found:
        check_pattern("data.cyborg_faces.group_pattern", config.group_pattern)
        train = find_lists(folder, config.train_lists)
        test = [path for path in find_lists(folder, config.test_lists) if path not in train]
        if not train:
            others = ", ".join(path.relative_to(folder).as_posix() for path in find_lists(folder, ("*.csv", "*/*.csv")))
            hint = f" (there are {others}: name them as `train_lists` and `test_lists`)" if others else ""
            raise no_rows(cls, folder, f"no list file {' or '.join(config.train_lists)}{hint}")
        found, heatmaps = Found(), find_folder(folder, config.heatmaps)
        for path in [*train, *test]:
            own = read_owner_list(path, splits=("train", "test"))
            found.problems += own.problems
            found.notes += own.notes
            found.rows += _rows(own, tests=path not in train, pattern=config.group_pattern)
        # Numbers name faces of every generator: a name alone says nothing.
        found.place_images(FileSearch(folder, without=[heatmaps]), config.images, by_name=False)
        if not found.add_maps(folder, heatmaps, split="train"):
            images = [row.image for row in found.rows if row.split == "train"]
            places = f": {map_places(heatmaps, images[0], config.images)}" if images else ""
            hint = f"no human map of a training image here{places}; unpack them or correct `heatmaps`"
            found.problems.append(f"{folder / heatmaps}: {hint}")
        return found


def _rows(own: OwnerList, tests: bool, pattern: str) -> list[Row]:
    """A row for each line, its image as listed."""
    rows = []
    for line in own.lines:
        split = "test" if tests else {"train": "train", "test": "val"}.get(line.split, line.split)
        label = _CLASSES.get(line.kind.lower(), line.kind)
        domain, group = domain_of(line.image, own.path.stem), line.group or group_of(line.image, pattern)
        rows.append(Row(str(own.path), line.number, split, label, line.image, "", domain, group))
    return rows


def domain_of(path: str, list_name: str = "") -> str:
    """Generator or collection that a path names.

    If it names none that is known, it is the nearest folder that names neither a class nor a split, or else the list's
    name; both without what they say besides ("_aligned", "_data").
    """
    flat = re.sub(r"[-_ .]", "", path.lower())
    known = next((domain for part, domain in SOURCES_IN_PATHS.items() if part in flat), None)
    folders = PurePosixPath(path.replace("\\", "/").strip("/").lower()).parts[:-1]
    named = [name for name in map(_bare, reversed(folders)) if name and not _NO_SOURCE.fullmatch(name)]
    # Folders of a few digits only number the images.
    named = [name for name in named if not name.isdigit()]
    return known or next(iter(named), "") or _bare(list_name.lower())


def _bare(name: str) -> str:
    while (shorter := _BESIDES.sub("", name)) != name:
        name = shorter
    return name
