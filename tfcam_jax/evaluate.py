"""Evaluation: predictions of a checkpoint and their figures on validation, closed set and open set."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jaxtyping import Bool, Float, Int

from . import metrics
from .checkpoints import CheckpointError, Checkpoints
from .data.source import Source
from .experiment import Experiment, build_experiment
from .protocol import split_by_protocol
from .steps import TrainState
from .workdir import load_config, write_json


@dataclasses.dataclass(frozen=True)
class Predictions:
    """What a model says of n images, as NumPy arrays; see `steps.EvalOutput`."""

    labels: Int[np.ndarray, " n"]
    logits: Float[np.ndarray, "n classes"]
    true_map: Float[np.ndarray, "n h w"]
    false_map: Float[np.ndarray, "n h w"]
    saliency: Float[np.ndarray, "n h w"]
    usable: Bool[np.ndarray, " n"]

    def __getitem__(self, rows: Int[np.ndarray, " m"]) -> Predictions:
        return Predictions(**{f.name: getattr(self, f.name)[rows] for f in dataclasses.fields(self)})

    def classification(self) -> dict[str, float | None]:
        """Cross-entropy, accuracy, AUROC; see `metrics.classification`."""
        return metrics.classification(self.labels, self.logits)

    def map_agreement(self) -> dict[str, float | None]:
        """Mean correlation of T, U and D = T - U with the human maps; see `metrics.map_correlation`."""
        maps = {"true": self.true_map, "false": self.false_map, "difference": self.true_map - self.false_map}
        return {name: metrics.map_correlation(m, self.saliency, self.usable) for name, m in maps.items()}


def evaluate_source(experiment: Experiment, state: TrainState, source: Source) -> Predictions:
    """Runs the eval step over every example of a split, once and in order."""
    outputs = []
    for batch in experiment.eval_epoch(source):
        real = batch["mask"] > 0
        output = experiment.eval_step(state.params, state.batch_stats, {k: v for k, v in batch.items() if k != "index"})
        outputs.append(jax.tree.map(lambda leaf, real=real: np.asarray(leaf)[real], output))
    merged = jax.tree.map(lambda *leaves: np.concatenate(leaves), *outputs)
    return Predictions(labels=source.records.labels, **merged._asdict())


def evaluate_best(experiment: Experiment, checkpoints: Checkpoints) -> dict[str, Any]:
    """Figures of the best checkpoint.

    Returns:
      `{"epoch", "class_names", "skipped", "sets"}`; `skipped` counts unreadable rows left out, `sets`
      holds `val` and, where there is a test split, `closed` and `open` (see
      `protocol.split_by_protocol`), each with `images`, `maps`, `accuracy`, `auroc`, `cross_entropy` and
      `map_agreement`.

    Raises:
      CheckpointError: there is none.
    """
    restored = checkpoints.restore("best", experiment.random_state())
    if restored is None:
        raise CheckpointError("there is no best checkpoint: the run ended before its first validation")
    state, record = restored
    splits = experiment.dataset.splits
    sets = {"val": figures(evaluate_source(experiment, state, splits["val"]))}
    if "test" in splits:
        test = evaluate_source(experiment, state, splits["test"])
        parts = split_by_protocol(splits["train"].records.domains, splits["test"].records.domains, test.labels)
        sets |= {name: figures(test[rows]) for name, rows in parts.items()}
    dataset = experiment.dataset
    return {
        "epoch": record["epoch"],
        "class_names": list(dataset.class_names),
        "skipped": len(dataset.skipped),
        "sets": sets,
    }


def figures(predictions: Predictions) -> dict[str, Any]:
    """Everything that the tables show of one set."""
    return {
        "images": len(predictions.labels),
        "maps": int(predictions.usable.sum()),
        **predictions.classification(),
        "map_agreement": predictions.map_agreement(),
    }


def evaluate(workdir: str | Path) -> dict[str, Any]:
    """Restores a run's best checkpoint and evaluates it, from the workdir alone; writes `results.json` there.

    Raises:
      WorkdirError, CheckpointError: no finished run there.
    """
    workdir = Path(workdir)
    config = load_config(workdir)
    experiment = build_experiment(config)
    with Checkpoints(workdir) as checkpoints:
        results = evaluate_best(experiment, checkpoints)
    write_json(workdir / "results.json", results)
    print(format_results(results, title=f"{config.strategy}: best checkpoint, epoch {results['epoch']}"))
    return results


def format_results(results: dict[str, Any], title: str) -> str:
    """An aligned table, a row per set."""
    header = ("set", "images", "maps", "cross-entropy", "accuracy", "AUROC", "CC true", "CC false", "CC difference")
    rows = [
        (
            name,
            f"{entry['images']}",
            f"{entry['maps']}",
            *(decimal(entry[key]) for key in ("cross_entropy", "accuracy", "auroc")),
            *(decimal(entry["map_agreement"][key]) for key in ("true", "false", "difference")),
        )
        for name, entry in results["sets"].items()
    ]
    notes = "CC: correlation of the model's maps with the human maps, over the images that have one."
    return "\n".join([title, *align([header, *rows]), notes])


def decimal(value: float | None) -> str:
    """Four decimals, or a dash for a figure that does not exist."""
    return "-" if value is None else f"{value:.4f}"


def align(rows: list[tuple[str, ...]]) -> list[str]:
    """Lines of a table: first column to the left, the others to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(
            cell.rjust(width) if i else cell.ljust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in rows
    ]
