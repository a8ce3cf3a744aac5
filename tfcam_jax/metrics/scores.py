"""The scores of a model on a set of images, one row an image, in memory and as CSV."""

from __future__ import annotations

import csv
import dataclasses
from pathlib import Path

import numpy as np
import scipy
from jaxtyping import Float, Int

from ..data.csv_cells import csv_text, from_cell
from ..errors import UserError
from ..run.files import write_text
from .classification import binary_scores

_SEEN = {True: "yes", False: "no", None: ""}


class ScoresError(UserError, ValueError):
    """A table of scores that can't be used."""


@dataclasses.dataclass(frozen=True)
class Scores:
    """What is known of n images and what the model says of them."""

    ids: tuple[str, ...]  # names of the images
    splits: tuple[str, ...]  # train, val or test
    labels: Int[np.ndarray, " n"]  # class index
    domains: tuple[str, ...]  # where the image comes from; "" if unknown
    groups: tuple[str, ...]  # what must not be torn apart; "" if unknown
    seen: tuple[bool | None, ...]  # True where training had images of the same domain; None: nobody knows
    logits: Float[np.ndarray, "n classes"]

    def __post_init__(self):
        broken = np.flatnonzero(~np.isfinite(self.logits).all(-1))
        if len(broken):
            raise ScoresError(
                f"the logits of {len(broken)} images are not finite, the first being {self.ids[broken[0]]}: "
                f"{self.logits[broken[0]]}. The checkpoint's weights or that image can't be used."
            )

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, rows: Int[np.ndarray, " m"]) -> Scores:
        pick = lambda column: column[rows] if isinstance(column, np.ndarray) else tuple(column[row] for row in rows)
        return dataclasses.replace(self, **{name: pick(column) for name, column in vars(self).items()})

    def seen_domains(self) -> list[str]:
        """The domains of these images that training had images of, sorted."""
        return sorted({domain for domain, seen in zip(self.domains, self.seen, strict=True) if seen})


def join_scores(parts: list[Scores]) -> Scores:
    """The rows of several tables below one another."""
    join = lambda columns: np.concatenate(columns) if isinstance(columns[0], np.ndarray) else sum(columns, ())
    return dataclasses.replace(
        parts[0], **{name: join([getattr(part, name) for part in parts]) for name in vars(parts[0])}
    )


def write_scores(path: Path, scores: Scores, class_names: tuple[str, ...]) -> None:
    """Writes a CSV, whole or not at all (see `run.files.write_bytes`).

    Columns: id, split, label, domain, group, seen (yes, no, or empty: unknown), a logit_CLASS for each class, p
    (softmax probability of class 1 for two classes, else of the predicted class), prediction; for two classes also
    those of `binary_scores`. Floats are written so that they read back exactly, names as `data.csv_cells.to_cell` says.
    """
    proba = scipy.special.softmax(np.asarray(scores.logits, np.float64), axis=-1)
    binary = binary_scores(scores.logits) if len(class_names) == 2 else {}
    named = lambda classes: [class_names[index] for index in classes]
    exact = lambda column: list(map(repr, np.asarray(column, np.float64).tolist()))  # the shortest that reads back
    columns = {
        "id": scores.ids,
        "split": scores.splits,
        "label": named(scores.labels),
        "domain": scores.domains,
        "group": scores.groups,
        "seen": [_SEEN[seen] for seen in scores.seen],
        **{f"logit_{name}": exact(column) for name, column in zip(class_names, scores.logits.T, strict=True)},
        "p": exact(proba[:, 1] if binary else proba.max(-1)),
        "prediction": named(scores.logits.argmax(-1)),
        **{name: exact(column) for name, column in binary.items()},
    }
    write_text(path, csv_text([columns, *zip(*columns.values(), strict=True)]))


def read_scores(path: Path) -> tuple[Scores, tuple[str, ...]]:
    """Reads the scores and the names of the classes from what `write_scores` wrote.

    Raises:
      ScoresError: no such file, or not such a table.
    """
    if not path.is_file():
        raise ScoresError(f"{path}: no such table of scores; launch/evaluate.py writes scores.csv")
    try:
        with path.open(encoding="utf-8", newline="") as file:
            rows = list(reader := csv.DictReader(file, strict=True))
        header = list(reader.fieldnames or ())
        if len(set(header)) < len(header):  # the last one would count
            raise ScoresError(f"a column is there twice: {', '.join(header)}")
        names = tuple(column.removeprefix("logit_") for column in rows[0] if column.startswith("logit_"))
        column = lambda name: tuple(from_cell(row[name]) for row in rows)
        scores = Scores(
            ids=column("id"),
            splits=column("split"),
            labels=np.asarray([names.index(label) for label in column("label")]),
            domains=column("domain"),
            groups=column("group"),
            seen=tuple({told: seen for seen, told in _SEEN.items()}[row["seen"]] for row in rows),
            logits=np.asarray([[float(row[f"logit_{name}"]) for name in names] for row in rows]),
        )
    except ScoresError as error:
        raise ScoresError(f"{path}: {error}") from error
    except (csv.Error, IndexError, KeyError, TypeError, UnicodeDecodeError, ValueError) as error:
        raise ScoresError(
            f"{path} is no table of scores of launch/evaluate.py ({type(error).__name__}: {error})"
        ) from error
    return scores, names
