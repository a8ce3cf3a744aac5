"""What a data set holds, in a few characters a row: whether work that goes on has the same data, and what differs.

Images and maps count by their content: files that were moved or only touched are the same ones. Names count where
something else differs too.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any, NamedTuple

from .checks.outcomes import content_of
from .source import Records, Source, shorten

# Of what is kept: of another number nothing is compared.
VERSION = 1
_WIDTH = 8  # characters of a digest: one change in 2^32 goes unseen
_NOTHING = "0" * _WIDTH
_SHOWN = 3  # names after a difference

# Columns that are compared, and how a difference in one is called. Of two the first is finer, and not always known.
_FLAGS = ("mapped", "predicted")  # one character a row
_COLUMNS = {
    ("images", "pixels"): "content",
    ("maps", "mapped"): "human maps",
    ("labels",): "labels",
    ("groups",): "groups",
    ("domains",): "domains",
    ("predicted",): "the column predicted",
}


class Comparison(NamedTuple):
    """Lines that say how data differ, each of one split: `changed` is what makes other data of them.

    `harmless`: images have other names, or are decoded otherwise from the same files; or it can't be compared.
    `classes`: how the classes differ, "" where they don't; what knows others can't go on with these.
    """

    changed: tuple[str, ...] = ()
    harmless: tuple[str, ...] = ()
    classes: str = ""


def take_fingerprint(class_names: Sequence[str], splits: Mapping[str, Source]) -> dict[str, Any]:
    """The fingerprint of some splits, as JSON has it: some 60 characters a row, beside its name.

    A source that nobody looked at, with neither contents nor digests, is read whole.
    """
    described = {name: _describe(_with_contents(source), class_names) for name, source in splits.items()}
    return {"version": VERSION, "class_names": list(class_names), "splits": described}


def digest_fingerprint(fingerprint: Mapping[str, Any]) -> str:
    """A fingerprint in 16 characters."""
    return hashlib.sha256(json.dumps(fingerprint, sort_keys=True).encode()).hexdigest()[:16]


def is_fingerprint(value: Mapping[str, Any]) -> bool:
    """Whether it is whole: columns as long as their split."""
    try:
        splits = value["splits"].values()
        lengths = [(len(column), len(s["ids"])) for s in splits for column in s.values() if isinstance(column, str)]
        whole = all(length == rows * _WIDTH or length == rows for length, rows in lengths)
        return whole and {"version", "class_names"} <= value.keys()
    except (AttributeError, KeyError, TypeError):
        return False


def _with_contents(source: Source) -> Records:
    records = source.records
    if records.image_contents is not None or records.digests is not None:
        return records
    of = lambda array: content_of(repr((array.shape, array.dtype.str)).encode() + array.tobytes())
    seen = [(of(each.image), "" if each.saliency is None else of(each.saliency)) for each in _examples(source)]
    images, maps = zip(*seen, strict=True) if seen else ((), ())
    return replace(records, image_contents=images, map_contents=maps)


def _examples(source: Source) -> Iterator[Any]:
    return (source[row] for row in range(len(source)))


def _describe(records: Records, class_names: Sequence[str]) -> dict[str, Any]:
    contents, mapped = records.map_contents, records.has_map.tolist()
    predicted = [False] * len(records) if records.predicted is None else records.predicted.tolist()
    return {
        "ids": list(records.ids),
        "images": _shortened(records.image_contents),
        "pixels": _shortened(records.digests),
        # A map that says nothing, or is not taken, is none.
        "maps": contents and _shortened(own if taken else "" for own, taken in zip(contents, mapped, strict=True)),
        "mapped": _flags(mapped),
        "labels": _hashed("" if label < 0 else class_names[int(label)] for label in records.labels),
        "groups": _hashed(records.groups),
        "domains": _hashed(records.domains),
        "predicted": _flags(predicted),
    }


def _shortened(digests: Iterable[str] | None) -> str | None:
    return None if digests is None else "".join(digest[:_WIDTH] or _NOTHING for digest in digests)


def _flags(flags: Iterable[bool]) -> str:
    return "".join("01"[flag] for flag in flags)


def _hashed(texts: Iterable[str]) -> str:
    digest = lambda text: hashlib.sha256(text.encode(errors="surrogatepass")).hexdigest()[:_WIDTH]
    return "".join(map(digest, texts))


def compare_fingerprints(then: Mapping[str, Any], now: Mapping[str, Any]) -> Comparison:
    """What differs between two fingerprints."""
    if then == now:
        return Comparison()
    if then["version"] != now["version"]:
        return Comparison((), ("what was kept of them is of another version, and is not compared",))
    changed, harmless = [], []
    before, after = dict(then["splits"]), now["splits"]
    for name in before.keys() & after.keys():
        if renamed := _renamed(before[name], after[name]):
            harmless.append(f"{name}: other names of {_told(renamed)}")
            before[name] = {**before[name], "ids": after[name]["ids"]}
    old, new = ({name: _number(split["ids"]) for name, split in splits.items()} for splits in (before, after))
    changed += _rows_differing(old, new)
    for name in (name for name in after if name in before):
        rows = [(key[0], row, new[name][key]) for key, row in old[name].items() if key in new[name]]
        if any(one[2] > other[2] for one, other in pairwise(rows)):
            changed.append(f"{name}: rows in another order")
        found = _columns_differing(before[name], after[name], rows)
        changed += [f"{name}: {line}" for line in found.changed]
        harmless += [f"{name}: {line}" for line in found.harmless]
    return Comparison(tuple(changed), tuple(sorted(harmless)), compare_classes(then["class_names"], now["class_names"]))


def compare_classes(then: Sequence[str], now: Sequence[str]) -> str:
    """How the names of classes or their order differ, in a line; "" if they don't."""
    return "" if [*then] == [*now] else f"classes: {', '.join(now)} now, {', '.join(then)} then"


def _renamed(then: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """New names of rows of a split that is otherwise the very same; none where it is not."""
    if then["images"] is None or {**then, "ids": 0, "pixels": 0} != {**now, "ids": 0, "pixels": 0}:
        return []
    return [there for here, there in zip(then["ids"], now["ids"], strict=True) if here != there]


def _number(ids: Sequence[str]) -> dict[tuple[str, int], int]:
    """The row of each name; a name that occurs again is told apart by how often it did before."""
    seen: Counter[str] = Counter()
    rows = {}
    for row, name in enumerate(ids):
        rows[name, seen[name]] = row
        seen[name] += 1
    return rows


_Rows = Mapping[str, Mapping[tuple[str, int], int]]


def _rows_differing(old: _Rows, new: _Rows) -> list[str]:
    """A line for each pair of splits between which rows went, and each split that lost or gained some."""
    gone, come = _only_in(old, new), _only_in(new, old)
    told: dict[str, list[str]] = defaultdict(list)
    for key, split in gone.items():
        told[f"{split} to {come[key]}: moved" if key in come else f"{split}: removed"].append(key[0])
    for key, split in come.items():
        if key not in gone:
            told[f"{split}: added"].append(key[0])
    return [f"{what} {_told(names)}" for what, names in told.items()]


def _only_in(one: _Rows, other: _Rows) -> dict[tuple[str, int], str]:
    """The split of each row that the same split of the other does not have."""
    return {key: split for split, rows in one.items() for key in rows if key not in other.get(split, ())}


def _columns_differing(
    then: Mapping[str, Any], now: Mapping[str, Any], rows: Sequence[tuple[str, int, int]]
) -> Comparison:
    """What differs of rows that are in both: their name, place then and place now."""

    def differing(column: str) -> dict[str, None]:
        one, other, width = then[column], now[column], 1 if column in _FLAGS else _WIDTH
        at = lambda text, row: text[row * width : (row + 1) * width]
        return {name: None for name, here, there in rows if at(one, here) != at(other, there)}

    changed, harmless = [], []
    known = lambda column: then[column] is not None and now[column] is not None
    for columns, what in _COLUMNS.items():
        column = next(filter(known, columns), None)
        if column is None:
            harmless.append(f"{what} can't be compared")
            continue
        names = differing(column)
        if column == "images" and known("pixels"):  # a file that was saved otherwise shows the same
            seen = differing("pixels")
            if decoded := [name for name in seen if name not in names]:
                harmless.append(f"the files of {_told(decoded)} are as before, and decoded otherwise")
            names = [name for name in names if name in seen]
        if names:
            changed.append(f"{what} of {_told(names)}")
        if column == "mapped":
            harmless.append("of human maps it is known alone which images have one, not what they show")
    return Comparison(tuple(changed), tuple(harmless))


def _told(names: Iterable[str]) -> str:
    names = list(names)
    return f"{len(names)} {'image' if len(names) == 1 else 'images'} ({', '.join(shorten(names, _SHOWN))})"
