"""Score files of others: a row for each image with its truth, its score and the type of attack."""

from __future__ import annotations

import glob
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

from ..data.csv_files import read_lines
from ..data.outputs import only_of, write_folder
from ..errors import UserError, did_you_mean
from ..run.files import write_json, write_text
from .attacks import is_attack, is_bona_fide
from .intervals import auroc_intervals
from .published_protocol import FIXED, format_published, published_protocol
from .tables import align, decimal, interval, percent

# Names of the columns, without case; in a file without a header they stand in this order, the first two being needed.
COLUMNS = {
    "truth": ("truth", "label", "class", "ground_truth", "target"),
    "score": ("score", "pred", "prediction", "probability", "p"),
    "type": ("type", "attack_type", "domain", "description", "pai"),
    "group": ("group", "video", "subject", "subject_id", "id_group"),
}
# How LivDet-Iris marks an image that the algorithm gave no answer for; it counts as called an attack.
NO_RESPONSE = -1.0

# What may be replaced: earlier figures, and nothing else.
_OWN = only_of("figures of score files", "scores.json", "scores.txt")


class ScoreFileError(UserError, ValueError):
    """A score file that can't be used."""


class ScoreFile(NamedTuple):
    """The rows of a file: label 1 is an attack; `score` in [0, 1], 1 where there was no answer."""

    labels: Int[np.ndarray, " n"]
    score: Float[np.ndarray, " n"]
    types: tuple[str, ...]
    groups: tuple[str, ...]
    answered: Bool[np.ndarray, " n"]


def read_score_file(path: str | Path) -> ScoreFile:
    """Reads a CSV, as LivDet-Iris 2025 publishes them (`truth,score,type` without a header) or with a header.

    Truth is 1 or the name of an attack, 0 or the name of a bona fide presentation (`attacks.BONA_FIDE`). A header's
    columns are known by `COLUMNS`, in any order; a type and a group need not be there.

    Raises:
      ScoreFileError: no such file, no such columns, or a row with another truth, or a score that is neither in [0, 1]
        nor `NO_RESPONSE`: each of the first by its row.
      DataError: no CSV, see `csv_files.read_lines`.
    """
    path = Path(path)
    if not path.is_file():
        raise ScoreFileError(f"{path}: no such file of scores")
    places, lines = _places(path, read_lines(path))
    rows, problems = [], []
    for number, cells in lines:
        try:
            rows.append(_row(places, cells))
        except ValueError as error:
            problems.append(f"row {number}: {error}")
    if problems or not rows:
        more = f", and {len(problems) - 3} more rows" if len(problems) > 3 else ""
        raise ScoreFileError(f"{path}: {'; '.join(problems[:3]) or 'no row'}{more}")
    labels, score, types, groups = zip(*rows, strict=True)
    answered = np.array(score) != NO_RESPONSE
    return ScoreFile(np.array(labels), np.where(answered, score, 1.0), types, groups, answered)


def _places(path: Path, lines: list[tuple[int, list[str]]]) -> tuple[dict[str, int], list[tuple[int, list[str]]]]:
    """Where each column stands, and the rows below the header, where there is one."""
    first = lines[0][1] if lines else []
    names = [name.lower() for name in first]
    known = {column: [i for i, name in enumerate(names) if name in aliases] for column, aliases in COLUMNS.items()}
    if not any(known.values()):  # a row as any other
        return {column: place for place, column in enumerate(COLUMNS) if place < len(first)}, lines
    for column, places in known.items():
        if len(places) > 1 or (column in ("truth", "score") and not places):
            told = f"{len(places)} columns are its {column}" if places else f"no column is its {column}"
            near = did_you_mean(column, names)
            raise ScoreFileError(
                f"{path}, row 1: {told} ({', '.join(COLUMNS[column])}); found {', '.join(first)}.{near}"
            )
    return {column: places[0] for column, places in known.items() if places}, lines[1:]


def _row(places: dict[str, int], cells: list[str]) -> tuple[int, float, str, str]:
    given = {column: cells[place] for column, place in places.items() if place < len(cells)}
    if "score" not in given:
        raise ValueError(f"{len(cells)} cells; a row holds truth, score and, if known, type and group")
    score = float(given["score"])
    if not (0 <= score <= 1 or score == NO_RESPONSE):
        raise ValueError(f"score {given['score']} is neither in [0, 1] nor {NO_RESPONSE:g} (no answer)")
    return _truth(given["truth"]), score, given.get("type", ""), given.get("group", "")


def _truth(name: str) -> int:
    try:
        value = float(name)
    except ValueError:
        value = 1.0 if is_attack(name) else 0.0 if is_bona_fide(name) else -1.0
    if value not in (0.0, 1.0):
        raise ValueError(f"truth {name!r} is neither 0 (bona fide) nor 1 (attack), nor the name of one")
    return int(value)


def measure_score_file(file: ScoreFile) -> dict[str, Any]:
    """`intervals` of the AUROC, `unanswered` (a share), and as `levels` the `published_protocol`."""
    labels, score = file.labels, file.score
    intervals: dict[str, Any] = {}
    if len(np.unique(labels)) == 2:
        found = auroc_intervals(labels, score, (score >= FIXED) == (labels == 1), file.groups)
        intervals = {"delong": found.delong, "bootstrap": found.bootstrap["auroc"], "newcombe": found.newcombe}
    return {
        "intervals": intervals,
        "unanswered": float(1 - file.answered.mean()),
        "levels": published_protocol(labels, score, file.types, file.groups),
    }


def format_score_files(measured: dict[str, dict[str, Any]]) -> str:
    """The published protocol's table, the AUROCs' intervals, and each type's APCER, of files by name."""
    names = ("delong", "bootstrap", "newcombe")
    areas: list[tuple[str, ...]] = [
        ("file", "AUROC", "DeLong 95 %", "group bootstrap 95 %", "Newcombe 95 %", "no answer %")
    ]
    types: list[tuple[str, ...]] = [
        ("file", "type", f"APCER % at {FIXED:g}", *(f"at BPCER {rate} %" for rate in ("1", "5", "10")))
    ]
    for name, measures in measured.items():
        images = measures["levels"]["images"]
        bounds = (interval(measures["intervals"].get(key)) for key in names)
        areas.append((name, decimal(images.get("auroc")), *bounds, percent(measures["unanswered"])))
        for kind, apcer in images["fixed"]["apcer"].items():
            fixed = (percent(at["apcer"][kind]) for at in images["at_bpcer"].values())
            types.append((name, kind or "(none)", percent(apcer), *fixed))
    table = format_published({name: measures["levels"] for name, measures in measured.items()})
    return "\n".join([table, "", *align(areas), "", *(align(types) if len(types) > 1 else [])])


def score_files(patterns: Sequence[str], out: str | Path | None = None) -> dict[str, Any]:
    """Prints the tables of score files, and writes them where a folder is named.

    Args:
      patterns: files, or patterns such as `task1/*.csv`.
      out: folder for `scores.txt`, what is printed, and `scores.json`, what is returned: new, empty, or of earlier
        ones, which are replaced.

    Returns:
      `measure_score_file` of each file by its name, by its path where names repeat.

    Raises:
      ScoreFileError, DataError: no such file, or one that can't be used; nothing was written.
      OutputError: see `outputs.write_folder`.
    """
    found = [sorted(glob.glob(str(Path(pattern).expanduser()))) or [pattern] for pattern in patterns]
    paths = [Path(path) for matches in found for path in matches]
    if not paths:
        raise ScoreFileError("no file of scores was named")
    repeated = len({path.stem for path in paths}) < len(paths)
    measured = {str(path) if repeated else path.stem: measure_score_file(read_score_file(path)) for path in paths}
    text = format_score_files(measured)
    print(text)
    if out is not None:
        with write_folder(out, _OWN) as folder:
            write_text(folder / "scores.txt", text + "\n")
            write_json(folder / "scores.json", measured)
    return measured
