"""Which file is the map of which image, by their names alone."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from .annotations import is_table
from .array_files import ARRAYS, suffix_of
from .decode import image_suffixes
from .source import SPLIT_NAMES

# What stands at the end of a map's name, after the image's: 1_map.png, 1-mask.png, 1_heatmap_anna.npy.
MAP_NAMES = ("map", "mask", "heatmap", "saliency", "blended")
# Images whose names are other images' with one and the same ending are looked into if there are so many, and if they
# are such a share of all that have any ending: endings that differ from file to file are names, not kinds of files.
_FEWEST, _LEAST_SHARE = 3, 0.1


@dataclass
class FoundMaps:
    """What was found.

    Attributes:
      of: image to annotator and map, a pair for each map; the annotator is "" where the name doesn't say.
      orphans: maps, by their names, whose image isn't there.
      others: files that are neither a map nor an image.
      problems: maps that could be those of several images.
    """

    of: dict[str, list[tuple[str, str]]] = field(default_factory=lambda: defaultdict(list))
    orphans: list[str] = field(default_factory=list)
    others: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    def add(self, path: str, images: Sequence[str], annotator: str, remedy: str) -> None:
        """Gives the map to its image, or tells of which images it could be."""
        if len(images) > 1:
            self.problems.append(f"map {path} could be that of {' or '.join(images[:3])}; {remedy}")
        else:
            self.of[images[0]].append((annotator, path))


def find_beside(files: Iterable[str], map_names: Sequence[str]) -> tuple[list[str], FoundMaps]:
    """The images among the files of a folder, and the maps that lie beside them, in the same subfolder.

    A map has its image's name with one of `map_names` after it, and an annotator's after that; an array or a table of
    marks may also have the image's name alone. All paths are those given.
    """
    suffixes, found, images = image_suffixes(), FoundMaps(), []
    files = list(files)
    named = defaultdict(list)
    for path in files:
        if suffix_of(path) in suffixes:
            named[_stem(path)].append(path)
    for path in files:
        is_image, stem = suffix_of(path) in suffixes, _stem(path)
        if not (is_image or suffix_of(path) in ARRAYS or is_table(path)):
            found.others.append(path)
            continue
        marked = list(_without_mark(stem, map_names))
        bases = marked if is_image else [*marked, (stem, "")]
        if own := [(named[base], annotator) for base, annotator in bases if base in named]:
            found.add(path, *own[0], "give these images names that differ in more than their suffix")
        elif marked:
            found.orphans.append(path)
        else:
            (images if is_image else found.others).append(path)
    return images, found


def find_below(
    files: Iterable[str], images: Mapping[str, tuple[str, str]], map_names: Sequence[str], place: str
) -> FoundMaps:
    """Maps in a folder of their own, for images of another one.

    A map has its image's path, or as much of that path's end as no other image has; `map_names` and an annotator may
    follow, and what stands before it in its own path names the annotator too. Folders that are called like another
    class or split than the image's are never taken for that.

    Args:
      files: paths below the maps' folder.
      images: split ("" where none is given) and class by path below the images' folder.
      map_names: as of `find_beside`.
      place: the maps' folder, to tell of.
    """
    suffixes, found = image_suffixes() | ARRAYS.keys(), FoundMaps()
    classes = {label for _, label in images.values()}
    ends = defaultdict(list)
    for image in images:
        for end in _ends(_stem(image)):
            ends[end].append(image)

    def fits(folder: str, image: str) -> bool:
        split, label = images[image]
        named_split = SPLIT_NAMES.get(folder.lower(), split)
        return (folder not in classes or folder == label) and (not split or named_split == split)

    for path in files:
        if not (suffix_of(path) in suffixes or is_table(path)):
            found.others.append(path)
            continue
        stem = _stem(path)
        for base, annotator in ((stem, ""), *_without_mark(stem, map_names)):
            parts = base.split("/")
            matches = (
                (parts[:i], [image for image in ends.get(end, ()) if all(fits(part, image) for part in parts[:i])])
                for i, end in enumerate(_ends(base))
            )
            if match := next(((before, own) for before, own in matches if own), None):
                names = [*match[0], *([annotator] if annotator else [])]
                found.add(f"{place}/{path}", match[1], "_".join(names), "put maps under the images' paths")
                break
        else:
            found.orphans.append(path)
    of = {image: [(who, path[len(place) + 1 :]) for who, path in own] for image, own in found.of.items()}
    return FoundMaps(of, found.orphans, found.others, found.problems)


def common_endings(images: Iterable[str], known: Sequence[str]) -> dict[str, list[tuple[str, str]]]:
    """Endings that many images' names have after that of another image beside them, each with these pairs of images.

    `1_gt.png` beside `1.jpg` has the ending "gt", in small letters; where `1_gt_anna.png` is there too, it counts with
    that. An ending without a letter (`1_2.png`) says nothing, one of `known` is expected; of a chain of endings the
    image at its start counts.
    """
    named = defaultdict(list)
    for path in images:
        named[_stem(path)].append(path)
    ended: set[str] = set()
    found: dict[str, list[tuple[str, tuple[str, str]]]] = defaultdict(list)
    for stem in sorted(named, key=len):
        if any(base in named for base, _ in _without_mark(stem, known)):
            continue
        for cut in reversed([match.start() for match in re.finditer("[-_. ]", stem)]):
            base, ending = stem[:cut], stem[cut + 1 :].lower()
            if base in named and base not in ended and re.search(r"[^\W\d_]", ending) and "/" not in ending:
                ended.add(stem)
                found[re.split("[-_. ]", ending)[0]] += [(ending, (path, named[base][0])) for path in named[stem]]
                break
    least = max(_FEWEST, _LEAST_SHARE * sum(map(len, found.values())))
    whole = lambda start, own: own[0][0] if len({ending for ending, _ in own}) == 1 else start
    return {whole(start, own): [pair for _, pair in own] for start, own in found.items() if len(own) >= least}


def names_in_use(maps: Iterable[str], map_names: Sequence[str]) -> list[str]:
    """Those of `map_names` that stand in the names of these maps."""
    stems = [_stem(path) for path in maps]
    return [name for name in map_names if any([*_without_mark(stem, [name])] for stem in stems)]


def name_annotators(maps: Sequence[tuple[str, str]]) -> list[tuple[str, str]]:
    """The same maps of one image, without annotators' names where some have none or several have the same."""
    names = [name for name, _ in maps]
    return list(maps) if all(names) and len(set(names)) == len(names) else [("", path) for _, path in maps]


def _without_mark(stem: str, map_names: Sequence[str]) -> Iterator[tuple[str, str]]:
    """A map's name without what says that it is one, and the annotator; nothing if it doesn't say so."""
    names = "|".join(map(re.escape, map_names))
    match = re.fullmatch(rf"(.*[^/])[-_. ](?:{names})(?:[-_. ]([^/]+)|(\d+))?", stem, re.IGNORECASE) if names else None
    if match:
        yield match[1], match[2] or match[3] or ""


def _ends(path: str) -> Iterator[str]:
    """The path, the path without its first folder, and so on down to the file's name."""
    parts = path.split("/")
    return ("/".join(parts[i:]) for i in range(len(parts)))


def _stem(path: str) -> str:
    return path[: len(path) - len(suffix_of(path))]
