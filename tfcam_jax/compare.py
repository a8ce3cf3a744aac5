"""Several strategies on the same data, weights and batches: a table and a picture."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict
from tqdm import tqdm

from .checkpoints import Checkpoints
from .data.evaluation_sets import choose_rows
from .data.source import Subset
from .evaluate import evaluate_source
from .experiment import build_experiment, check_values
from .panels import Panel, Row, draw_panels
from .placement import fetch
from .protocol import split_by_protocol
from .strategies import strategy_options
from .tables import align, decimal
from .train import train
from .workdir import check_workdir, write_json


def compare(config: ConfigDict, workdir: str | Path, num_images: int = 6) -> dict[str, Any]:
    """Trains every strategy of `config.compare` with every seed, then writes `table.txt`, `results.json`, `maps.png`.

    Runs that are finished already are taken as they are. All arms of a seed share initial weights and batches.

    Args:
      config: as `configs/default.py` gives it.
      workdir: folder of the comparison; each run has its own folder in it.
      num_images: rows of the picture.

    Returns:
      Results of each run, `{strategy: {seed: results}}`.

    Raises:
      ConfigError, DataError, WorkdirError: before the first run starts.
    """
    workdir = Path(workdir)
    arms = {
        (strategy, seed): _arm(config, strategy, seed)
        for strategy in config.compare.strategies
        for seed in config.compare.seeds
    }
    for (strategy, seed), arm in arms.items():
        check_values(arm)
        check_workdir(_folder(workdir, strategy, seed), arm)
    results: dict[str, dict[int, Any]] = {}
    for (strategy, seed), arm in arms.items():
        results.setdefault(strategy, {})[seed] = train(arm, _folder(workdir, strategy, seed))
    table = format_comparison(results)
    (workdir / "table.txt").write_text(table + "\n", encoding="utf-8")
    write_json(workdir / "results.json", results)
    draw_comparison(arms, workdir, num_images)
    tqdm.write(f"\n{table}\n\nMaps side by side: {workdir / 'maps.png'}")
    return results


def format_comparison(results: dict[str, dict[int, Any]]) -> str:
    """An aligned table, a row per strategy; means over the seeds."""
    header = ("strategy", "seeds", "closed-set AUROC", "open-set AUROC", "CC true", "CC difference")
    rows = []
    for strategy, by_seed in results.items():
        sets = [run["sets"] for run in by_seed.values()]
        where = "open" if "open" in sets[0] else "closed" if "closed" in sets[0] else "val"
        rows.append(
            (
                strategy,
                str(len(sets)),
                decimal(_mean([s["closed"]["auroc"] for s in sets if "closed" in s])),
                decimal(_mean([s["open"]["auroc"] for s in sets if "open" in s])),
                decimal(_mean([s[where]["map_agreement"]["true"] for s in sets])),
                decimal(_mean([s[where]["map_agreement"]["difference"] for s in sets])),
            )
        )
    note = f"CC: correlation of the true-class map T and of T - U with the human maps, {where} set."
    return "\n".join([*align([header, *rows]), note])


def draw_comparison(arms: dict[tuple[str, int], ConfigDict], workdir: Path, num_images: int) -> None:
    """Draws `maps.png`: the same images under every strategy, T and T - U, first seed."""
    first_seed = min(seed for _, seed in arms)
    rows: list[list[Panel]] = []
    captions: list[str] = []
    for (strategy, seed), arm in arms.items():
        if seed != first_seed:
            continue
        experiment = build_experiment(arm)
        source = _shown(experiment.dataset, num_images)
        like = experiment.random_state()
        with Checkpoints(_folder(workdir, strategy, seed), read_only=True) as checkpoints:
            state, _ = checkpoints.restore_best(lambda record, like=like: like)
        predictions = evaluate_source(experiment, state, source)
        if not rows:
            batches = [fetch(batch) for batch in experiment.eval_epoch(source)]
            images = [image for batch in batches for image in batch["image"][batch["mask"] > 0]]
            captions = [f"{experiment.dataset.class_names[label]}" for label in predictions.labels]
            human = [s if u else None for s, u in zip(predictions.saliency, predictions.usable, strict=True)]
            rows = [[Panel("input", i), Panel("human map", h)] for i, h in zip(images, human, strict=True)]
        for row, true, false in zip(rows, predictions.true_map, predictions.false_map, strict=True):
            row += [Panel(f"{strategy}\nT", true), Panel(f"{strategy}\nT - U", true - false)]
    title = "True-class map T and difference T - U, each panel on its own scale, red highest, blue lowest"
    draw_panels([Row(c, r) for c, r in zip(captions, rows, strict=True)], workdir / "maps.png", title)


def _arm(config: ConfigDict, strategy: str, seed: int) -> ConfigDict:
    """The config of one run. A guidance option that other arms have and this one does not is left out of it."""
    arm = copy.deepcopy(config)
    arm.strategy = strategy
    arm.seed = seed
    of_any = {option for name in config.compare.strategies for option in strategy_options(name)}
    for option in of_any - set(strategy_options(strategy)):
        arm.guidance[option] = None
    return arm


def _folder(workdir: Path, strategy: str, seed: int) -> Path:
    return workdir / f"{strategy}-seed{seed}"


def _shown(dataset: Any, number: int) -> Subset:
    """Images to look at: of the open set where there is one, else of the test, else of validation."""
    if "test" not in dataset.splits:
        return Subset(dataset.splits["val"], choose_rows(dataset.splits["val"].records, number))
    test = dataset.splits["test"]
    parts = split_by_protocol(dataset.splits["train"].records.domains, test.records.domains, test.records.labels)
    chosen = Subset(test, parts.get("open", parts.get("closed")))
    return Subset(chosen, choose_rows(chosen.records, number))


def _mean(values: list[float | None]) -> float | None:
    values = [value for value in values if value is not None]
    return float(np.mean(values)) if values else None
