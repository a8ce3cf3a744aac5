"""What a data set is made of and what may be wrong with it, as text."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import StratifiedGroupKFold, cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from ..listing import ABSENT, CONSTANT, EMPTY, USABLE, Check, Inspection, Row
from ..source import SPLITS
from .near_duplicates import alike_pairs

# How many pairs or groups a section lists before it counts the rest.
_SHOWN = 10
# With fewer groups than this share of the images, they are not independent observations.
_FEW_GROUPS = 0.5
_FOLDS = 5


@dataclass(frozen=True)
class Report:
    """Text for people, and the numbers behind it.

    Attributes:
      text: aligned tables and lists.
      problems: what must be mended before training.
      notes: what a user should know, and nothing needs to be mended.
      figures: the counts, as plain numbers, for JSON.
    """

    text: str
    problems: tuple[str, ...]
    notes: tuple[str, ...]
    figures: Mapping[str, Any]


def make_report(inspection: Inspection, extra_problems: Sequence[str] = ()) -> Report:
    """Describes an inspected data set.

    Args:
      inspection: from `rows.inspect`.
      extra_problems: found elsewhere, as by a protocol; told with the others.
    """
    listing, checks = inspection.listing, inspection.checks
    pairs = list(zip(listing.rows, checks, strict=True))
    problems = (*inspection.problems, *extra_problems)
    near = _near_duplicates(pairs)
    notes = [*_map_notes(pairs), *_domain_notes(pairs), *_group_notes(pairs), *_border_note(pairs, listing.class_names)]
    sections = {
        "Images": align(_content_table(pairs)),
        "Human maps": align(_map_table(pairs)),
        "Sizes (width x height)": _sizes(checks),
        "Groups": align(_group_table(pairs)),
        f"Duplicates: {_duplicates(pairs)}": (),
        f"Near-duplicates across splits: {len(near)}": _shorten(near),
        f"Notes: {len(notes)}": notes,
        f"Problems: {len(problems)}": problems,
    }
    title = f"{listing.name}: {len(pairs)} rows, classes {', '.join(listing.class_names)}"
    body = [line for head, lines in sections.items() for line in ("", head, *(f"  {line}" for line in lines))]
    figures = {
        "rows": len(pairs),
        "maps": dict(Counter(check.map for check in checks)),
        "near_duplicates": len(near),
        "unreadable": len(inspection.unreadable),
        "problems": len(problems),
    }
    return Report("\n".join([title, *body]), tuple(problems), tuple([*notes, *near]), figures)


def align(rows: Sequence[Sequence[str]]) -> list[str]:
    """Lines of a table: text to the left, numbers to the right."""
    if not rows:
        return []
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    pad = lambda cell, width: cell.rjust(width) if cell[:1].isdigit() or cell == "-" else cell.ljust(width)
    return ["  ".join(pad(cell, width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]


def _content_table(pairs: Sequence[tuple[Row, Check]]) -> list[tuple[str, ...]]:
    counts = Counter((row.split, row.label, row.domain) for row, _ in pairs)
    maps = Counter((row.split, row.label, row.domain) for row, check in pairs if check.map == USABLE)
    rank = {split: i for i, split in enumerate(SPLITS)}
    keys = sorted(counts, key=lambda key: (rank.get(key[0], 9), *key))
    rows = [
        (split, label, domain or "-", f"{counts[key]}", f"{maps[key]}")
        for key in keys
        for split, label, domain in [key]
    ]
    return [("split", "class", "domain", "images", "maps"), *rows]


def _map_table(pairs: Sequence[tuple[Row, Check]]) -> list[tuple[str, ...]]:
    rows = [("split", "usable", "constant", "empty", "absent", "several annotators", "their agreement (CC)")]
    for split in _splits(pairs):
        own = [check for row, check in pairs if row.split == split]
        kinds = Counter(check.map for check in own)
        agreed = [check.agreement for check in own if check.agreement is not None]
        several = sum(check.annotators > 1 for check in own)
        counts = [f"{kinds[kind]}" for kind in (USABLE, CONSTANT, EMPTY, ABSENT)]
        rows.append((split, *counts, f"{several}", f"{np.mean(agreed):.3f}" if agreed else "-"))
    return rows


def _sizes(checks: Sequence[Check]) -> list[str]:
    sizes = Counter(check.size for check in checks if check.digest)
    if not sizes:
        return ["no image could be read"]
    heights, widths = zip(*sizes, strict=True)
    (height, width), count = sizes.most_common(1)[0]
    span = f"from {min(widths)} x {min(heights)} to {max(widths)} x {max(heights)}"
    return [f"{len(sizes)} different, {span} (each side on its own); {count} images are {width} x {height}"]


def _group_table(pairs: Sequence[tuple[Row, Check]]) -> list[tuple[str, ...]]:
    rows = [("split", "groups", "largest", "images without a group")]
    for split in _splits(pairs):
        groups = Counter(row.group for row, _ in pairs if row.split == split)
        alone = groups.pop("", 0)
        rows.append((split, f"{len(groups)}", f"{max(groups.values(), default=0)}", f"{alone}"))
    return rows


def _splits(pairs: Sequence[tuple[Row, Check]]) -> list[str]:
    found = {row.split for row, _ in pairs}
    return [split for split in SPLITS if split in found]


def _duplicates(pairs: Sequence[tuple[Row, Check]]) -> str:
    rows_of = defaultdict(list)
    for row, check in pairs:
        if check.digest:
            rows_of[check.digest].append(row)
    repeated = [rows for rows in rows_of.values() if len(rows) > 1]
    across = sum(len({row.split for row in rows}) > 1 for rows in repeated)
    return (
        f"{sum(len(rows) - 1 for rows in repeated)} images repeat another one's pixels; {across} of them across splits"
    )


def _near_duplicates(pairs: Sequence[tuple[Row, Check]]) -> list[str]:
    seen = [(row, check) for row, check in pairs if check.digest]
    alike = alike_pairs(*([getattr(check, name) for _, check in seen] for name in ("hash", "thumbnail", "digest")))
    lines = []
    for first, second in alike:
        one, other = seen[first][0], seen[second][0]
        if one.split != other.split:
            groups = f"groups {other.group or 'unknown'} and {one.group or 'unknown'}"
            lines.append(f"{other.place}: {other.image} ({other.split}) looks like {one.image} ({one.split}), {groups}")
    return lines


def _map_notes(pairs: Sequence[tuple[Row, Check]]) -> list[str]:
    train = [(row, check) for row, check in pairs if row.split == "train"]
    maps = Counter(row.label for row, check in train if check.map == USABLE)
    classes = sorted({row.label for row, _ in train})
    notes = []
    if not maps:
        notes.append("training has no human maps: only strategies that use none will do anything")
    elif without := [label for label in classes if not maps[label]]:
        notes.append(
            f"training has maps of class {', '.join(sorted(maps))} only, none of {', '.join(without)}: what maps teach "
            "is then also where that class's objects lie; compare with placebo maps (data.maps.placebo)"
        )
    wrong = sum(check.map in (CONSTANT, EMPTY) for _, check in pairs)
    if wrong:
        notes.append(f"{wrong} maps are empty or constant; they count as absent")
    return notes


def _domain_notes(pairs: Sequence[tuple[Row, Check]]) -> list[str]:
    domains = {split: {row.domain for row, _ in pairs if row.split == split} for split in SPLITS}
    notes = []
    if unseen := sorted(domains["test"] - domains["train"]):
        notes.append(f"open set: test alone has the domains {', '.join(unseen)}")
    classes = defaultdict(set)
    for row, _ in pairs:
        if row.split == "train":
            classes[row.domain].add(row.label)
    single = sorted(domain for domain, labels in classes.items() if len(labels) == 1)
    if len(classes) > 1 and len(single) == len(classes):
        notes.append("in training each domain has one class only: whatever tells domains apart tells classes apart")
    return notes


def _group_notes(pairs: Sequence[tuple[Row, Check]]) -> list[str]:
    notes = []
    for split in _splits(pairs):
        groups = [row.group for row, _ in pairs if row.split == split]
        named = [group for group in groups if group]
        if named and len(set(named)) < _FEW_GROUPS * len(named):
            size = len(named) / len(set(named))
            notes.append(
                f"{split}: {len(named)} images come from {len(set(named))} groups only ({size:.1f} images each); "
                "figures vary as those of so many groups do: resample by group"
            )
    return notes


def _border_note(pairs: Sequence[tuple[Row, Check]], class_names: Sequence[str]) -> list[str]:
    """AUROC of a linear classifier that sees the outermost pixels of 16 x 16 only, cross-validated in training."""
    members = [
        (row, check) for row, check in pairs if row.split == "train" and check.digest and row.label in class_names
    ]
    labels = np.array([class_names.index(row.label) for row, _ in members])
    groups = np.array([row.group or row.image for row, _ in members])
    counts = [len(set(groups[labels == label])) for label in range(len(class_names))]
    if len(class_names) != 2 or min(counts) < 2 * _FOLDS:
        return []
    pixels = np.stack([check.thumbnail for _, check in members]).astype(np.float32)
    border = np.ones(pixels.shape[1:], bool)
    border[1:-1, 1:-1] = False
    folds = StratifiedGroupKFold(_FOLDS, shuffle=True, random_state=0)
    model = make_pipeline(StandardScaler(), LogisticRegression(C=0.01, max_iter=1000))
    scores = cross_val_predict(model, pixels[:, border], labels, groups=groups, cv=folds, method="decision_function")
    return [
        f"the border alone (outermost 1/16 of each side, linear, {_FOLDS} folds by group) tells training's classes "
        f"with AUROC {roc_auc_score(labels, scores):.2f}; .50 would be chance"
    ]


def _shorten(lines: Iterable[str]) -> list[str]:
    lines = list(lines)
    return lines if len(lines) <= _SHOWN else [*lines[:_SHOWN], f"... and {len(lines) - _SHOWN} more"]
