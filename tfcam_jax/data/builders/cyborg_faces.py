"""Real and synthetic faces with human maps: the UND WACV 2023 CYBORG collection."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import ClassVar

from ..csv_files import read_list
from ..listing import Row
from . import read_text
from .listed_builder import ListedBuilder, ListedConfig, no_rows
from .owner_files import Found, below, find_lists, group_of, index_maps

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

    train_lists: tuple[str, ...] = ("train*.csv",)
    test_lists: tuple[str, ...] = ("test*.csv",)
    images: str = "images"
    heatmaps: str = "heatmaps"
    group_pattern: str = ""


class CyborgFaces(ListedBuilder):
    """Photographed (class Real) and generated (Synthetic) faces with human maps for training (cyborg_faces.md)."""

    BUILDER_CONFIGS: ClassVar = [CyborgFacesConfig()]
    CLASS_NAMES = ("Real", "Synthetic")
    CITATION, MANUAL_DOWNLOAD_INSTRUCTIONS = read_text("cyborg_faces.bib"), read_text("cyborg_faces.txt")

    @classmethod
    def find_rows(cls, folder: Path, config: CyborgFacesConfig) -> Found:
        train = find_lists(folder, config.train_lists)
        test = [path for path in find_lists(folder, config.test_lists) if path not in train]
        if not train:
            raise no_rows(cls, folder, f"no list file {' or '.join(config.train_lists)}")
        maps = index_maps(folder / config.heatmaps)
        hint = f"{folder / config.heatmaps}: no human maps here; unpack them or correct `heatmaps`"
        found = Found(problems=[] if maps else [hint])
        for path in [*train, *test]:
            lines, wrong = read_list(path, (3,), "split,class,path")
            found.problems += wrong
            for number, (split, label, image) in lines:
                if split not in ("train", "test"):
                    found.problems.append(f"{path}, row {number}: unknown split {split!r}; use train or test")
                split = ("train" if split == "train" else "val") if path in train else "test"
                image = below(config.images, image)
                person = group_of(image, config.group_pattern)
                found.rows.append(Row(str(path), number, split, label, image, "", domain_of(image), person))
        found.add_maps(maps, config.heatmaps, config.images, split="train")
        return found


def domain_of(path: str) -> str:
    """Generator or collection that a path names; its folder's name if it names none that is known."""
    flat = re.sub(r"[-_ .]", "", path.lower())
    known = next((domain for part, domain in SOURCES_IN_PATHS.items() if part in flat), None)
    return known or PurePosixPath(path).parent.name
