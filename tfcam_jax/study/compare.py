"""The comparison study: arms, protocols, folds and seeds on the same data, weights and batches, and what comes out."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from ..data.human_maps import check_maps, deal_maps
from ..data.paths import local_path
from ..data.protocol import apply_protocol, split_by_protocol
from ..data.source import Dataset, Subset, choose_rows
from ..devices.placement import fetch
from ..errors import UserError
from ..evaluation import evaluate_source
from ..experiment import ConfigDict, config_json, keep_checks, resolve
from ..inference import choose_split
from ..report.map_grid import Panel, Row, draw_panels
from ..run.checkpoints import Checkpoints
from ..run.files import WorkdirError, write_text
from ..run.progress import launch_command
from ..run.provenance import collect_provenance
from ..run.workdir import (
    CHECKS,
    check_not_held,
    check_place,
    check_workdir,
    is_fresh,
    locked_workdir,
    make_workdir,
    note_holder,
)
from .engines import open_engine
from .jobs import train_in_jobs
from .outcomes import Entry, Outcome, read_outcomes, read_selection, write_entries
from .page import screen, write_study
from .plan import Run, placebo_arms, plan_arms, plan_runs
from .same_data import check_study_data
from .shares import choose_shares, leave_memory
from .worker import ExperimentCache, train_here, train_in_processes

# Trains runs; returns the error and traceback of each that failed, by folder.
Trainer = Callable[[Sequence[Run], tqdm], dict[str, str]]


class FailedRunsError(UserError, RuntimeError):
    """Runs of a study that failed; the others are done."""


def compare(
    config: ConfigDict, workdir: str | Path, num_images: int = 6, accept_changed_data: bool = False
) -> dict[str, Any]:
    """Trains every arm of `config.compare` under every protocol with every seed, then writes what came out.

    All arms of a seed share initial weights, batches and number of steps. Runs that are finished already are taken as
    they are, cut-off ones continue, and a run that fails does not stop the others. Leaves `runs.json` (the plan), the
    files of `page.write_study`, `maps.png`, and a workdir for each run.

    Args:
      config: as `configs/default.py` gives it.
      workdir: folder of the study. A study may grow: with more seeds, alphas or arms only what is new is trained.
      num_images: rows of the picture.
      accept_changed_data: go on though runs were trained on other data than there are now; what differs is told.

    Returns:
      What `study.json` holds, see `page.write_study`.

    Raises:
      ConfigError, DataError, WorkdirError: before the first run starts, also where another process is at the study.
        DataError also where runs, finished or not, were trained on other data than there are now; and at the end, where
        the data were changed meanwhile.
      StoppedError: after SIGTERM or SIGINT; the same command goes on.
      FailedRunsError: some runs failed; `failures.txt` tells why, the same command tries them again.
    """
    workdir = local_path(workdir, "--workdir")
    check_place(workdir)
    if workdir.exists() and not (workdir / "runs.json").is_file() and not is_fresh(workdir):
        raise WorkdirError(f"{workdir} exists and holds no study of this version. Choose another --workdir.")
    check_not_held(workdir)
    arms = plan_arms(config)
    cache = ExperimentCache(config.compare.held_megabytes, workdir / CHECKS)
    train = choose_trainer(config, cache, workdir)
    dataset = cache.source(resolve(next(iter(arms.values()))))
    runs = plan_runs(config, arms, dataset)
    _check_runs(workdir, runs, dataset)
    check_study_data(cache, runs, workdir, accept_changed_data)
    make_workdir(workdir)
    with locked_workdir(workdir):
        note_holder(workdir)
        return _train_and_report(config, cache, runs, workdir, train, num_images, accept_changed_data)


def _train_and_report(
    config: ConfigDict,
    cache: ExperimentCache,
    runs: Sequence[Run],
    workdir: Path,
    train: Trainer,
    num_images: int,
    accept_changed_data: bool,
) -> dict[str, Any]:
    """Trains what is not trained yet, and reports. Raises FailedRunsError in the end if runs failed."""
    write_entries(workdir, [run.entry for run in runs], config.evaluation.select_by)  # first: with it, it is a study
    keep_checks(workdir / CHECKS, cache.checked)
    waiting = [run for run in runs if not (workdir / run.entry.folder / "results.json").is_file()]
    failures = run_all(runs, workdir, train)
    check_study_data(cache, waiting, workdir, accept_changed_data)  # processes of their own opened the data themselves
    study = _report(config, cache, runs, set(failures), workdir, num_images) if len(failures) < len(runs) else {}
    path = workdir / "failures.txt"
    if not failures:
        path.unlink(missing_ok=True)
        return study
    write_text(path, "\n".join(f"{folder}\n{text}" for folder, text in failures.items()))
    reasons = "\n".join(f"  {folder}: {text.splitlines()[0]}" for folder, text in failures.items())
    raise FailedRunsError(
        f"{len(failures)} of {len(runs)} runs failed; the others are done. The same command tries them again; {path} "
        f"tells more.\n{reasons}"
    )


def _report(
    config: ConfigDict, cache: ExperimentCache, runs: Sequence[Run], failed: set[str], workdir: Path, num_images: int
) -> dict[str, Any]:
    """Tests, tables, plots, page and the picture of maps, from the runs that are finished."""
    selection = read_selection(workdir)
    outcomes = read_outcomes(workdir)
    shown = choose_shown(runs, selection, config.compare.strategies, failed)
    study = write_study(
        workdir,
        outcomes,
        selection,
        {**collect_provenance(config.model.name), "config": config_json(config)},
        reference=config.compare.reference,
        placebos=placebo_arms(config),
        strategies={run.entry.arm: run.config.strategy for run in runs},
        maps=draw_comparison(cache, shown, workdir, num_images),
    )
    best = workdir / best_run(outcomes, runs).folder
    paths = f"Page with maps, plots and all tables: {workdir / 'index.html'}\n"
    paths += f"Where a run's decisions come from: {launch_command('explain.py', best)}"
    tqdm.write(f"\n{screen(study)}\n\n{paths}")
    return study


def best_run(outcomes: Sequence[Outcome], runs: Sequence[Run]) -> Entry:
    """The run of the highest AUROC on the open set, else the closed one, else validation: one to look into."""
    order = {"open": 2, "closed": 1, "val": 0}
    best = max(outcomes, key=lambda o: (order[o.set], o.metrics["auroc"] or 0.0))
    return next(run.entry for run in runs if run.entry[1:] == best[:5])


def choose_trainer(config: ConfigDict, cache: ExperimentCache, workdir: Path) -> Trainer:
    """How the runs are trained: in this process, in several of this host, or in jobs, as `compare.engine` says.

    Before jax is asked for devices here. Raises ConfigError where the engine can't be had.
    """
    held_megabytes = config.compare.held_megabytes
    if config.compare.engine != "processes":
        engine = open_engine(config, workdir)
        restarts = config.compare.cluster.restarts
        return lambda runs, bar: train_in_jobs(engine, runs, workdir, restarts, held_megabytes, bar)
    shares = choose_shares(config)
    leave_memory(shares)

    def train(runs: Sequence[Run], bar: tqdm) -> dict[str, str]:
        # A single run too gets its share alone, where there is one: it is to be as the others.
        if len(shares) == 1 or (len(runs) < 2 and not shares[0].environment):
            return train_here(cache, runs, workdir, bar)
        return train_in_processes(runs, workdir, shares, held_megabytes, bar, cache.told)

    return train


def run_all(runs: Sequence[Run], workdir: Path, train: Trainer) -> dict[str, str]:
    """Trains the runs that have no results yet; returns the error and traceback of each that failed, by folder."""
    waiting = [run for run in runs if not (workdir / run.entry.folder / "results.json").is_file()]
    options = {"desc": workdir.name, "unit": "run", "disable": None, "dynamic_ncols": True}
    # Time left from the mean over all runs.
    with tqdm(total=len(runs), initial=len(runs) - len(waiting), smoothing=0, **options) as bar:
        return train(waiting, bar) if waiting else {}


def choose_shown(
    runs: Sequence[Run], selection: dict[str, Any], strategies: Sequence[str], failed: set[str]
) -> dict[str, Run]:
    """Whose maps to show: of the first protocol, fold and seed every strategy's, at its chosen alpha."""
    first = runs[0].entry
    kept = {}
    for run in runs:
        entry = run.entry
        same = (entry.protocol, entry.fold, entry.seed) == (first.protocol, first.fold, first.seed)
        arms = selection.get(entry.protocol, {})
        if same and entry.arm in arms and entry.folder not in failed and entry.alpha == arms[entry.arm]["chosen"]:
            kept[entry.arm] = run
    return {strategy: kept[strategy] for strategy in strategies if strategy in kept}


def draw_comparison(cache: ExperimentCache, shown: dict[str, Run], workdir: Path, num_images: int) -> Path | None:
    """Draws `maps.png`: the same images under every arm of `shown`, T and T - U. None, no picture, without an arm."""
    rows: list[list[Panel]] = []
    captions: list[str] = []
    for arm, run in shown.items():
        experiment = cache.experiment(resolve(run.config))
        source = _shown_images(experiment.dataset, num_images)
        like = experiment.abstract_state()
        with Checkpoints(workdir / run.entry.folder, read_only=True) as checkpoints:
            restored = checkpoints.restore_best(lambda record, like=like: like)
        assert restored, "a run that is finished has a best checkpoint"
        predictions = evaluate_source(experiment, restored[0], source)
        if not rows:
            batches = [fetch(batch) for batch in experiment.eval_epoch(source)]
            images = [image for batch in batches for image in batch["image"][batch["mask"] > 0]]
            captions = [experiment.dataset.class_names[label] for label in predictions.labels]
            human = [s if u else None for s, u in zip(predictions.saliency, predictions.usable, strict=True)]
            rows = [[Panel("input", i), Panel("human map", h)] for i, h in zip(images, human, strict=True)]
        for row, true, false in zip(rows, predictions.true_map, predictions.false_map, strict=True):
            row += [Panel(f"{arm}\nT", true), Panel(f"{arm}\nT - U", true - false, signed=True)]
    if not rows:
        return None
    title = (
        "True-class map T: lowest place blue, highest red. Difference T - U: red for the true class, blue against it, "
        "white 0. Each panel on its own scale; below it the range of its values"
    )
    draw_panels([Row(c, r) for c, r in zip(captions, rows, strict=True)], workdir / "maps.png", title)
    return workdir / "maps.png"


def _check_runs(workdir: Path, runs: Sequence[Run], dataset: Dataset) -> None:
    """Finds what would fail in a later run: a folder of another run, no map in training, maps that can't be dealt."""
    looked = set()
    for run in runs:
        check_workdir(workdir / run.entry.folder, config_json(run.config))
        placebo, recipe = run.config.data.maps.placebo, resolve(run.config)
        recipe.strategy_for(dataset.class_names)
        key = json.dumps([dict(run.config.data.protocol), placebo, recipe.reads_maps])
        if not recipe.reads_maps or key in looked:
            continue
        looked.add(key)
        arranged = apply_protocol(dataset, **run.config.data.protocol)
        check_maps(arranged)
        if placebo == "other_image":
            deal_maps(arranged.splits["train"].records, run.entry.seed)


def _shown_images(dataset: Dataset, number: int) -> Subset:
    """Images to look at: of the open set where there is one, else of the test, else of validation."""
    split = choose_split(dataset, None)
    shown = dataset.splits[split]
    if split == "test":
        parts = split_by_protocol(dataset.splits["train"].records.domains, shown.records.domains, shown.records.labels)
        shown = Subset(shown, parts["open" if "open" in parts else "closed"])
    return Subset(shown, choose_rows(shown.records, number))
