"""What a data set is made of and what may be wrong with it, as text."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ...errors import visible
from ..listing import Listing, Row, by_split
from ..source import SPLITS, shorten
from .inspection import Inspection
from .near_duplicates import alike_pairs
from .outcomes import ABSENT, CONSTANT, EMPTY, USABLE, Outcome

# How many pairs or groups a section lists before it counts the rest.
_SHOWN = 10
# With fewer groups than this share of the images, they are not independent observations.
_FEW_GROUPS = 0.5
_FOLDS = 5
# Of files of one list that aren't there: with more, they are counted.
_SHOWN_MISSING = 3


Pairs = Sequence[tuple[Row, Outcome]]
Splits = Sequence[tuple[str, Sequence[Row], Sequence[Outcome]]]


@dataclass(frozen=True)
class Report:
    """Text for people, and the numbers behind it.

    Attributes:
      text: aligned tables and lists.
      problems: what must be put right before training.
      figures: the counts, the problems, and notes of what a user should know and need do nothing about, for JSON.
    """

    text: str
    problems: Sequence[str]
    figures: Mapping[str, Any]


def make_report(inspection: Inspection, extra_problems: Sequence[str] = (), extra_notes: Sequence[str] = ()) -> Report:
    """Describes a data set that was inspected closely; tells what was found elsewhere, as by a protocol, too."""
    listing, seen = inspection.listing, inspection.outcomes
    pairs, splits = list(zip(listing.rows, seen, strict=True)), list(by_split(listing.rows, seen))
    problems = (*inspection.problems, *extra_problems)
    near = _near_duplicates(pairs)
    notes = [*extra_notes, *inspection.remarks, *_map_notes(pairs), *_domain_notes(pairs), *_group_notes(splits)]
    notes += _border_note(pairs, listing.class_names)
    sections = {
        "Images": align(_content_table(pairs)),
        "Human maps": align(_map_table(splits)),
        "Sizes (width x height)": _sizes(seen),
        "Groups": align(_group_table(splits)),
        f"Duplicates: {_duplicates(pairs)}": (),
        f"Near-duplicates across splits: {len(near)}": shorten(near, _SHOWN),
        f"Notes: {len(notes)}": notes,
        f"Problems: {len(problems)}": _compact(problems, pairs),
    }
    title = f"{listing.name}: {len(pairs)} rows, classes {', '.join(listing.class_names)}"
    body = [line for head, lines in sections.items() for line in ("", head, *(f"  {line}" for line in lines))]
    figures = {
        "rows": len(pairs),
        "maps": dict(Counter(each.map for each in seen)),
        "near_duplicates": len(near),
        "unreadable": len(inspection.unreadable),
        "problems": list(problems),
        "notes": [*notes, *near],
    }
    return Report("\n".join(map(visible, [title, *body])), problems, figures)


def describe_listing(listing: Listing) -> str:
    """What was understood of a data set's lists, no image opened: lists, classes, and what each split holds."""
    title = f"{listing.name}, as listed below {listing.reader.folder}; classes {', '.join(listing.class_names)}"
    lists = Counter(row.list for row in listing.rows)
    table: list[tuple[str, ...]] = [("split", "class", "images", "with a map", "groups", "domains")]
    members = defaultdict(list)
    for row in listing.rows:
        members[row.split, row.label].append(row)
    order = {split: number for number, split in enumerate(("", *SPLITS))}
    for split, label in sorted(members, key=lambda key: (order.get(key[0], len(order)), key)):
        own = members[split, label]
        groups = len({row.group for row in own} - {""})
        domains = ", ".join(sorted({row.domain for row in own} - {""})) or "-"
        counts = (len(own), sum(bool(row.map) for row in own), groups)
        drawn = "+".join(listing.draw.shares) if listing.draw else "?"
        table.append((split or drawn, label, *map(str, counts), domains))
    if len(lists) > 2 * _SHOWN:
        lists = dict(lists.most_common(_SHOWN)) | {f"... and {len(lists) - _SHOWN} more": None}
    told = [f"{path}: {count} images" if count else path for path, count in lists.items()]
    return "\n".join([title, *(f"  {line}" for line in (*told, *align(table)))])


def _compact(problems: Sequence[str], pairs: Pairs) -> list[str]:
    """The problems, but of many images of one list that aren't there their count, the first, and where they'd be."""
    missing, counts = defaultdict(list), Counter(row.list for row, _ in pairs)
    for row, seen in pairs:
        if seen.missing:
            missing[row.list].append((row, seen))
    missing = {path: own for path, own in missing.items() if len(own) > _SHOWN_MISSING}
    hidden = {problem for own in missing.values() for _, seen in own for problem in seen.problems}
    lines = [problem for problem in problems if problem not in hidden]
    for path, own in missing.items():
        first = [f"row {row.number}: {row.image}" if row.number else row.image for row, _ in own]
        lines.append(
            f"{path}: {len(own)} of {counts[path]} images do not exist: {', '.join(shorten(first, _SHOWN_MISSING))}"
        )
        if places := own[0][0].looked:
            lines += ["  the first was looked for at", *(f"    {place}" for place in places)]
    return lines


def align(rows: Sequence[Sequence[str]]) -> list[str]:
    """Lines of a table: text to the left, numbers to the right."""
    rows = [tuple(map(visible, row)) for row in rows]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    pad = lambda cell, width: cell.rjust(width) if cell[:1].isdigit() or cell == "-" else cell.ljust(width)
    return ["  ".join(pad(cell, width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]


def _content_table(pairs: Pairs) -> list[tuple[str, ...]]:
    counts = Counter((row.split, row.label, row.domain) for row, _ in pairs)
    maps = Counter((row.split, row.label, row.domain) for row, seen in pairs if seen.map == USABLE)
    keys = sorted(counts, key=lambda key: ([*SPLITS, key[0]].index(key[0]), *key))
    rows = [(*key[:2], key[2] or "-", f"{counts[key]}", f"{maps[key]}") for key in keys]
    return [("split", "class", "domain", "images", "maps"), *rows]


def _map_table(splits: Splits) -> list[tuple[str, ...]]:
    head = ("split", "usable", "constant", "empty", "absent", "several annotators", "their agreement (CC)")
    rows: list[tuple[str, ...]] = [head]
    for split, _, own in splits:
        kinds = Counter(seen.map for seen in own)
        agreed = [seen.agreement for seen in own if seen.agreement is not None]
        counts = [kinds[kind] for kind in (USABLE, CONSTANT, EMPTY, ABSENT)]
        several = sum(seen.annotators > 1 for seen in own)
        rows.append((split, *map(str, [*counts, several]), f"{np.mean(agreed):.3f}" if agreed else "-"))
    return rows


def _sizes(seen: Sequence[Outcome]) -> list[str]:
    sizes = Counter(each.size for each in seen if each.digest)
    if not sizes:
        return ["no image could be read"]
    heights, widths = zip(*sizes, strict=True)
    (height, width), count = sizes.most_common(1)[0]
    span = f"from {min(widths)} x {min(heights)} to {max(widths)} x {max(heights)}"
    return [f"{len(sizes)} different, {span} (each side on its own); {count} images are {width} x {height}"]


def _group_table(splits: Splits) -> list[tuple[str, ...]]:
    table = [("split", "groups", "largest", "images without a group")]
    for split, rows, _ in splits:
        groups = Counter(row.group for row in rows)
        alone = groups.pop("", 0)
        table.append((split, f"{len(groups)}", f"{max(groups.values(), default=0)}", f"{alone}"))
    return table


def _duplicates(pairs: Pairs) -> str:
    rows_of = defaultdict(list)
    for row, seen in pairs:
        if seen.digest:
            rows_of[seen.digest].append(row)
    repeats = sum(len(rows) - 1 for rows in rows_of.values())
    across = sum(len({row.split for row in rows}) > 1 for rows in rows_of.values())
    return f"{repeats} images repeat another one's pixels; {across} of them across splits"


def _near_duplicates(pairs: Pairs) -> list[str]:
    readable = [(row, seen) for row, seen in pairs if seen.digest]
    columns = ([getattr(seen, name) for _, seen in readable] for name in ("hash", "thumbnail", "digest"))
    lines = []
    for first, second in alike_pairs(*columns):
        one, other = readable[first][0], readable[second][0]
        if one.split != other.split:
            groups = f"groups {other.group or 'unknown'} and {one.group or 'unknown'}"
            lines.append(f"{other.place}: {other.image} ({other.split}) looks like {one.image} ({one.split}), {groups}")
    return lines


def _map_notes(pairs: Pairs) -> list[str]:
    train = [(row, seen) for row, seen in pairs if row.split == "train"]
    maps = Counter(row.label for row, seen in train if seen.map == USABLE)
    classes = sorted({row.label for row, _ in train})
    notes = []
    if not maps and any(seen.digest for _, seen in train):
        notes.append("training has no human maps: only strategies that use none will do anything")
    elif maps and (without := [label for label in classes if not maps[label]]):
        notes.append(
            f"training has maps of class {', '.join(sorted(maps))} only, none of {', '.join(without)}: what maps teach "
            "is then also where that class's objects lie; compare with placebo maps (data.maps.placebo)"
        )
    wrong = sum(seen.map in (CONSTANT, EMPTY) for _, seen in pairs)
    if wrong:
        notes.append(f"{wrong} maps are empty or constant; they count as absent")
    return notes


def _domain_notes(pairs: Pairs) -> list[str]:
    trained = defaultdict(set)
    for row, _ in pairs:
        if row.split == "train":
            trained[row.domain].add(row.label)
    notes = []
    if unseen := sorted({row.domain for row, _ in pairs if row.split == "test"} - trained.keys()):
        notes.append(f"open set: test alone has the domains {', '.join(unseen)}")
    if len(trained) > 1 and all(len(labels) == 1 for labels in trained.values()):
        notes.append("in training each domain has one class only: whatever tells domains apart tells classes apart")
    return notes


def _group_notes(splits: Splits) -> list[str]:
    notes = []
    for split, rows, _ in splits:
        named = [row.group for row in rows if row.group]
        if named and len(set(named)) < _FEW_GROUPS * len(named):
            size = len(named) / len(set(named))
            notes.append(
                f"{split}: {len(named)} images come from {len(set(named))} groups only ({size:.1f} images each); "
                "figures vary as those of that many groups do: resample by group"
            )
    return notes


def _border_note(pairs: Pairs, class_names: Sequence[str]) -> list[str]:
    """AUROC of a linear classifier that sees the outermost pixels of 16 x 16 only, cross-validated in training."""
    members = [(row, seen) for row, seen in pairs if row.split == "train" and seen.digest and row.label in class_names]
    labels = np.array([class_names.index(row.label) for row, _ in members])
    groups = np.array([row.group or row.image for row, _ in members])
    counts = [len(set(groups[labels == label])) for label in range(len(class_names))]
    if len(class_names) != 2 or min(counts) < 2 * _FOLDS:
        return []
    from sklearn.linear_model import LogisticRegression  # 1.4 s that nothing else here needs
    from sklearn.metrics import roc_auc_score
    from sklearn.model_selection import StratifiedGroupKFold, cross_val_predict
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    pixels = np.asarray([seen.thumbnail for _, seen in members], np.float32)
    border = np.ones(pixels.shape[1:], bool)
    border[1:-1, 1:-1] = False
    folds = StratifiedGroupKFold(_FOLDS, shuffle=True, random_state=0)
    model = make_pipeline(StandardScaler(), LogisticRegression(C=0.01, max_iter=1000))
    scores = cross_val_predict(model, pixels[:, border], labels, groups=groups, cv=folds, method="decision_function")
    return [
        f"the border alone (outermost 1/16 of each side, linear, {_FOLDS} folds by group) tells training's classes "
        f"with AUROC {roc_auc_score(labels, scores):.2f}; .50 would be chance"
    ]
