"""Inputs that are damaged, hostile, odd or changed since, and whether what follows is right or refused by name."""

from __future__ import annotations

import csv
import io
import json
import math
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict
from PIL import Image
from stress import hostile
from stress.tally import HUNG, REFUSED, RIGHT, UNCLEAR, WRONG, Tally, trials
from stress.worker import Case, Worker, restore

DAMAGED = {
    "image": "data/images/*",
    "map": "data/maps/*",
    "manifest": "data/manifest.csv",
    "config": "run/config.json",
    "checkpoint": "run/checkpoints/**/*",
}
# Trials of each sort among so many.
_SHARES = {"damaged": 8, "hostile": 5, "value": 5, "changed": 2}


def try_inputs(config: ConfigDict, folder: Path, context: Any, count: int, rng: random.Random, until: float) -> Tally:
    """Makes one thing odd about a sound folder at a time and runs what reads it, in a process with a time limit.

    Args:
      config: of a short run on the data in `folder / "data"`.
      folder: for the copies and the processes' output.
      context: of `runs.start_server`.
      count: trials.
      rng: decides what is done.
      until: of `time.monotonic`.
    """
    tally = Tally()
    worker = Worker(context, config, folder)
    sound = worker.prepare()
    sorts = [sort for sort, share in _SHARES.items() for _ in range(share)]
    try:
        for number in trials(count, "odd inputs", until):
            restore(folder)
            case = _MAKERS[sorts[number * 7 % len(sorts)]](config, folder / "case", rng, number)
            answer = worker.run(case)
            outcome, told = judge(folder, case, sound, answer)
            what = f"{case.action} on {case.file}, {case.how}"
            tally.add(case.kind, outcome, what, told, answer["peak"] if answer else 0.0)
    finally:
        worker.stop()
    return tally


def damage(config: ConfigDict, folder: Path, rng: random.Random, number: int) -> Case:
    """Damages one file: flips a bit, overwrites, cuts, empties or removes it."""
    kind = rng.choice(sorted(DAMAGED))
    path = rng.choice(sorted(path for path in folder.glob(DAMAGED[kind]) if path.is_file()))
    content = bytearray(path.read_bytes())
    how = rng.choice(("bit", "bit", "bytes", "cut", "empty", "gone"))
    if how == "bit" and content:
        place = rng.randrange(8 * len(content))
        content[place // 8] ^= 1 << place % 8
        how = f"bit {place} flipped"
    elif how == "bytes" and content:
        place = rng.randrange(len(content))
        content[place : place + 4] = rng.randbytes(len(content[place : place + 4]))
        how = f"4 bytes from {place} overwritten"
    elif how == "cut" and content:
        place = rng.randrange(len(content))
        del content[place:]
        how = f"cut after {place} bytes"
    else:
        content.clear()
        how = "gone" if how == "gone" else "emptied"
    path.unlink()
    if how != "gone":
        path.write_bytes(content)
    actions = ("continue", "evaluate") if kind in ("config", "checkpoint") else ("train", "train", "continue")
    return Case(f"damaged {kind}s", str(path.relative_to(folder)), how, rng.choice(actions))


def replace(config: ConfigDict, folder: Path, rng: random.Random, number: int) -> Case:
    """Puts a hostile file in place of a sound one."""
    kind = rng.choice(sorted(hostile.FILES))
    file, how = hostile.put(folder, kind, rng)
    return Case(f"hostile {kind.removesuffix('s')}s", file, how, "weights" if kind == "weights" else "train")


def set_value(config: ConfigDict, folder: Path, rng: random.Random, number: int) -> Case:
    """Sets one key of the config to an odd value."""
    key, value = hostile.value_of(config, rng)
    return Case("config values", key, repr(value)[:60], "train", value)


def change(config: ConfigDict, folder: Path, rng: random.Random, number: int) -> Case:
    """Changes what a run was stopped on, soundly; or touches it, which is no change."""
    manifest = folder / "data/manifest.csv"
    rows = _rows(manifest)
    members = [i for i, row in enumerate(rows) if row[0] == "train"]
    one, other = rng.sample(members, 2)
    how = rng.choice(sorted(_CHANGES))
    file = _CHANGES[how](folder / "data", rows, one, other, rng)
    _write_rows(manifest, rows)
    return Case("changed data", file, how, "continue")


def _new_image(data: Path, rows: list[list[str]], one: int, other: int, rng: random.Random) -> str:
    pixels = np.random.default_rng(rng.randrange(2**32)).integers(0, 256, (32, 32, 3), np.uint8)
    Image.fromarray(pixels).save(data / rows[one][2])
    return rows[one][2]


def _new_map(data: Path, rows: list[list[str]], one: int, other: int, rng: random.Random) -> str:
    path = data / rows[one][3]
    human = np.zeros((32, 32), np.uint8)
    human[:9, rng.randrange(20) :] = 255
    if path.suffix == ".npy":
        np.save(path, np.float32(human) / np.float32(255))
    else:
        Image.fromarray(human).save(path)
    return rows[one][2]


def _swap_cells(column: int) -> Callable[..., str]:
    def swap(data: Path, rows: list[list[str]], one: int, other: int, rng: random.Random) -> str:
        other = next((i for i in range(1, len(rows)) if rows[i][column] != rows[one][column]), other)
        rows[one][column], rows[other][column] = rows[other][column], rows[one][column]
        return rows[one][2]

    return swap


def _set_cell(column: int, value: str) -> Callable[..., str]:
    def put(data: Path, rows: list[list[str]], one: int, other: int, rng: random.Random) -> str:
        rows[one][column] = value
        return rows[one][2]

    return put


def _remove(data: Path, rows: list[list[str]], one: int, other: int, rng: random.Random) -> str:
    return rows.pop(one)[2]


def _touch(data: Path, rows: list[list[str]], one: int, other: int, rng: random.Random) -> str:
    path = data / rows[one][rng.choice((2, 3))]
    path.write_bytes(path.read_bytes())
    return _TOUCHED


_TOUCHED = "(a file written again)"
_CHANGES: dict[str, Callable[..., str]] = {
    "another image": _new_image,
    "another map": _new_map,
    "maps swapped": _swap_cells(3),
    "labels swapped": _swap_cells(1),
    "another domain": _set_cell(4, "third"),
    "another group": _set_cell(5, "nobody"),
    "no map": _set_cell(3, ""),
    "a row removed": _remove,
    "the same again": _touch,
}
_MAKERS = {"damaged": damage, "hostile": replace, "value": set_value, "changed": change}


def judge(folder: Path, case: Case, sound: dict[str, Any], answer: dict[str, Any] | None) -> tuple[str, str]:
    """The outcome of a case, and what was told."""
    if answer is None:
        return HUNG, ""
    if "error" in answer:
        named = not answer["traceback"] and _names(case, answer["error"]) and case.file != _TOUCHED
        return (REFUSED if named else UNCLEAR), f"{answer['error']} {answer['traceback']}"[-600:]
    if case.value is not None:
        return (RIGHT if _is_finite(answer["result"]) else WRONG), f"{answer['result']}"
    # JSON, as results.json has it; a NaN would not equal itself.
    if json.dumps(answer["result"]) == json.dumps(sound.get(case.action)):
        return (WRONG if case.kind == "changed data" and case.file != _TOUCHED else RIGHT), "the same result"
    warned = any("checkpoints" in line and "damaged" in line for line in answer["warnings"])
    if case.kind == "damaged checkpoints" and warned and case.action == "continue":
        return RIGHT, "the next best checkpoint's"
    if case.action == "train" and _says_otherwise(folder, case):
        return RIGHT, "the file says something else now"
    return WRONG, f"warnings: {answer['warnings']}"


def _is_finite(result: Any) -> bool:
    if isinstance(result, dict):
        return bool(result) and all(map(_is_finite, result.values()))
    return not isinstance(result, float) or math.isfinite(result)


def _says_otherwise(folder: Path, case: Case) -> bool:
    """Whether a damage can't be seen: JPEG, NPY and CSV have no checksum."""
    before, after = folder / "sound" / case.file, folder / "case" / case.file
    if case.kind == "damaged manifests":
        return _rows(before) != _rows(after)
    return case.kind in ("damaged images", "damaged maps") and before.suffix in (".jpg", ".npy")


def _names(case: Case, message: str) -> bool:
    """Whether a message leads to the file or key: names it, or its checkpoint."""
    if case.kind == "damaged checkpoints":
        return "/".join(Path(case.file).parts[1:3]) in message
    if case.kind == "hostile tables" and "none of the 20 training images has a usable human map" in message:
        return True  # the one table has marks of none, soundly
    if case.kind == "damaged maps" and "human maps of 1 image" in message:  # a run that goes on knows whose map differs
        return Path(case.file).stem in message
    names = (case.file, *([case.value] if isinstance(case.value, str) and case.value else ()))
    return any(name in message for name in (names if case.value is not None else (Path(case.file).name,)))


def _rows(path: Path) -> list[list[str]]:
    return list(csv.reader(io.StringIO(path.read_text(encoding="utf-8"))))


def _write_rows(path: Path, rows: list[list[str]]) -> None:
    with path.open("w", newline="") as file:
        csv.writer(file).writerows(rows)
