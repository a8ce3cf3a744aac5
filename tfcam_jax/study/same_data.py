"""A study whose runs were all made on the same data: what its runs keep of theirs, against the data of now."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

from ..data.fingerprint import Comparison
from ..data.source import shorten
from ..experiment import resolve
from ..run.checkpoints import Checkpoints
from ..run.data_record import compare_with_run, keep_fingerprint, tell_differences
from .plan import Run
from .worker import ExperimentCache

_SHOWN = 2  # names of runs


def check_study_data(cache: ExperimentCache, runs: Sequence[Run], workdir: Path, accept: bool) -> None:
    """Compares the data of now with those of each run that has a checkpoint, finished or not.

    Where changed data are accepted, finished runs stay as they are and the others go on with the data of now.

    Raises DataError, which names runs and what differs, unless it is accepted.
    """
    found: dict[Comparison, list[str]] = defaultdict(list)
    for run in runs:
        folder = workdir / run.entry.folder
        if not (folder / "checkpoints").is_dir():
            continue
        now = cache.data_record(resolve(run.config))
        with Checkpoints(folder, read_only=True) as checkpoints:
            comparison = compare_with_run(folder, checkpoints.newest_record, now)
        found[comparison].append(run.entry.folder)
        if accept and comparison.changed and not (folder / "results.json").is_file():
            keep_fingerprint(folder, now)
    for comparison, folders in found.items():
        of = f"those that {', '.join(shorten(folders, _SHOWN))} {'was' if len(folders) == 1 else 'were'} trained on"
        what = f"{workdir}: the data are not {of}"
        tell_differences(what, comparison, accept, "make a study of these in another --workdir")
