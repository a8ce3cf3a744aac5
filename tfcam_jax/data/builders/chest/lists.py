"""Lists of `split,normal|abnormal,path`, as the training code of MENTOR reads them, with a map by each image's name.

The lists themselves were not at hand.
"""

from __future__ import annotations

from collections.abc import Sequence

from ...listing import Row
from ..owner_files import Found, find_folder, group_of, map_places
from ..owner_lists import read_owner_list, share_out, words_besides
from .collection import ABNORMAL, NORMAL, Collection, Film, Reading

_NAME = "lists"


def read(reading: Reading) -> None:
    lists = [read_owner_list(reading.folder / path) for path in reading.files]
    lines, _, notes = share_out(lists)
    found = Found([], [each for own in lists for each in own.problems], [each for own in lists for each in own.notes])
    found.notes += notes
    domains = {own.path: words_besides(own.path.stem) if own.tests_only else "" for own in lists}
    for line in lines:
        label, split = line.kind.lower(), line.split or "train"
        domain, group = domains[line.list] or _NAME, line.group or group_of(line.image, reading.options.group_pattern)
        found.rows.append(Row(str(line.list), line.number, split, label, line.image, "", domain, group))
    maps = find_folder(reading.folder, reading.options.maps)
    found.place_images(reading.search, reading.root)
    if found.rows and not found.add_maps(reading.folder, maps):
        found.notes.append(f"{_NAME}: no film has a map: {map_places(maps, found.rows[0].image)}")
    reading.images = None
    reading.found.problems += found.problems
    reading.found.notes += found.notes
    reading.films += [Film(row) for row in found.rows]


def _is_list(cells: Sequence[str]) -> bool:
    return len(cells) > 2 and cells[1].lower() in (NORMAL, ABNORMAL)


COLLECTION = Collection(_NAME, ("*.csv",), read, has_splits=True, recognise=_is_list, scattered=True)
