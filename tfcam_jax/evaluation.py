"""Evaluation: what a checkpoint says of a set of images, and the figures of the whole protocol."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float, Int
from tqdm import tqdm

from .cams import difference_salience, is_constant, largest_magnitude
from .data.protocol import split_by_protocol
from .data.source import DataError, Records, Source
from .devices.distributed import is_first
from .devices.placement import fetch
from .experiment import Experiment, data_recipe, open_dataset
from .inference import TrainedModel, restore_trained
from .metrics import agreement
from .metrics.classification import classification
from .metrics.faithfulness import study_faithfulness
from .metrics.per_protocol import leave_one_domain_out, protocol_figures, protocol_sets
from .metrics.perturbation import fooling_gap
from .metrics.protocol_tables import format_evaluation, format_leave_one_domain_out
from .metrics.scores import Scores, ScoresError, join_scores, read_scores, write_scores
from .metrics.tables import align, decimal
from .metrics.thresholds import SelectionError, choose_thresholds
from .run.checkpoints import CheckpointError, Checkpoints
from .run.workdir import WorkdirError, read_json, write_json, write_text
from .steps import EvalOutput, TrainState


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
        """Cross-entropy, accuracy, AUROC; see `classification_metrics.classification`."""
        return classification(self.labels, self.logits)

    def map_agreement(self) -> dict[str, float | None]:
        """Mean correlation of T, U and D = T - U with the human maps (`agreement.correlation`); None without any."""
        maps = {"true": self.true_map, "false": self.false_map, "difference": self.true_map - self.false_map}
        if not self.usable.any():
            return dict.fromkeys(maps)
        human = jnp.asarray(self.saliency[self.usable])
        agree = lambda values: agreement.correlation(jnp.asarray(values[self.usable]), human)
        return {name: float(agree(values).mean()) for name, values in maps.items()}


def evaluate_source(runner: Experiment | TrainedModel, state: TrainState, source: Source) -> Predictions:
    """Runs the eval step over every example of a split, once and in order."""
    outputs = []
    for batch in runner.eval_epoch(source):
        output, mask = fetch((runner.eval_step(state.params, state.batch_stats, batch), batch["mask"]))
        outputs.append(jax.tree.map(lambda leaf, real=mask > 0: leaf[real], output))
    merged = jax.tree.map(lambda *leaves: np.concatenate(leaves), *outputs)
    return Predictions(labels=source.records.labels, **merged._asdict())


def evaluate_best(experiment: Experiment, checkpoints: Checkpoints) -> tuple[dict[str, Any], Scores]:
    """Figures of the best checkpoint at the end of training; `evaluate` gives the whole protocol.

    Returns:
      `({"epoch", "class_names", "skipped", "thresholds", "sets"}, scores)`; `skipped` counts unreadable rows left out;
      `thresholds` are those of `operating_points.choose_thresholds` on validation, by which later data are judged;
      `sets` holds `val` and, where there is a test split, `closed` and `open` (see
      `protocol.split_by_protocol`), each with `images`, `maps`, `accuracy`, `auroc`, `cross_entropy`, `map_agreement`
      and `fooling_gap`; `scores` are those of validation and test, image by image.

    Raises:
      CheckpointError: there is none.
    """
    state = experiment.random_state()
    restored = checkpoints.restore_best(lambda record: state)
    if restored is None:
        raise CheckpointError("there is no best checkpoint: the run ended before its first validation")
    state, record = restored
    splits = experiment.dataset.splits
    val = evaluate_source(experiment, state, splits["val"])
    sets, tables = {"val": figures(val)}, [_scores(splits, "val", val)]
    if "test" in splits:
        test = evaluate_source(experiment, state, splits["test"])
        parts = split_by_protocol(splits["train"].records.domains, splits["test"].records.domains, test.labels)
        sets |= {name: figures(test[rows]) for name, rows in parts.items()}
        tables.append(_scores(splits, "test", test))
    dataset = experiment.dataset
    results = {
        "epoch": record["epoch"],
        "class_names": list(dataset.class_names),
        "skipped": len(dataset.skipped),
        "thresholds": choose_thresholds(["val"] * len(val.labels), val.labels, val.logits),
        "sets": sets,
    }
    return results, join_scores(tables)


def _scores(splits: Mapping[str, Source], split: str, predictions: Predictions) -> Scores:
    seen = set(splits["train"].records.domains)
    return tabulate_scores(splits[split].records, split, predictions.logits, seen)


def figures(predictions: Predictions) -> dict[str, Any]:
    """Everything that the tables at the end of training show of one set."""
    return {
        "images": len(predictions.labels),
        "maps": int(predictions.usable.sum()),
        **predictions.classification(),
        "map_agreement": predictions.map_agreement(),
        "fooling_gap": float(fooling_gap(*map(jnp.asarray, (predictions.true_map, predictions.false_map))).mean()),
    }


def evaluate(
    workdir: str | Path,
    data: str | Path | None = None,
    split: str | None = None,
    thresholds: str = "run",
    out: str | Path | None = None,
    faithfulness_images: int = 64,
) -> dict[str, Any]:
    """Evaluates a run's best checkpoint by the whole protocol, from the workdir alone.

    Writes `evaluation.json` (what is returned), `tables.txt` and `scores.csv` (a row per image of validation and of
    the split).

    Args:
      workdir: a run.
      data: CSV manifest of other data with the same classes; the run's own data where none is given.
      split: `train`, `val` or `test`; where none is given `test`, or `val` if the data have no test.
      thresholds: `run` takes them from the validation images of the run's own data, `data` from those of `data`.
      out: folder for the files, made if need be; `evaluation` in the workdir where none is given.
      faithfulness_images: how many images the perturbation curves and the sanity check look at; 0 leaves them out.

    Returns:
      `epoch`, `class_names`, `split`, `thresholds_from`, `thresholds`, `sets` and `domains` (`protocol_figures`),
      `map_agreement` by set, `faithfulness` (empty if left out).

    Raises:
      WorkdirError, CheckpointError: no run with a sound checkpoint there.
      DataError: data that are not there, or of other classes.
      SelectionError: thresholds from test data were asked for.
    """
    if thresholds not in ("run", "data"):
        raise SelectionError(
            f"thresholds can't come from {thresholds!r}: choose run (validation of the run's data) or data (validation "
            "of --data). Test data serve to test."
        )
    workdir, out = Path(workdir), Path(out) if out else Path(workdir) / "evaluation"
    if out.exists() and not out.is_dir():
        raise WorkdirError(f"{out} is a file; give a folder as --out")
    trained = restore_trained(workdir)
    validation, tested, source = open_sources(trained, data, split, thresholds)
    scores, measured = score_source(trained, source, tested)
    val = scores if source is validation else validation and score_source(trained, validation, "val")[0]
    chosen = choose_thresholds(val.splits, val.labels, val.logits) if val else stored_thresholds(workdir, trained)
    evaluation = {
        "epoch": trained.epoch,
        "class_names": list(trained.class_names),
        "split": tested,
        "thresholds_from": "val of the new data" if data and thresholds == "data" else "val",
        "thresholds": chosen,
        **protocol_figures(scores, chosen),
        "map_agreement": agreement_figures(scores, measured),
        "faithfulness": study_faithfulness(trained, source, tested, faithfulness_images),
    }
    tables = [scores] if not val or val is scores else [val, scores]
    write_evaluation(out, evaluation, join_scores(tables), trained.class_names)
    return evaluation


def evaluate_leave_one_domain_out(tables: list[str | Path], out: str | Path | None = None) -> dict[str, Any]:
    """Merges the `scores.csv` of several evaluations (or of folders that hold one) into one table.

    Args:
      tables: CSV files, or the workdirs or evaluation folders that hold them.
      out: folder for `leave_one_domain_out.json` and `.txt`; nothing is written where none is given.

    Returns:
      See `protocol.leave_one_domain_out`.

    Raises:
      ScoresError: tables that are not there, don't fit together, or left no domain out.
    """
    read = [read_scores(_scores_path(Path(table))) for table in tables]
    for table, (_, names) in zip(tables, read, strict=True):
        if names != read[0][1]:
            raise ScoresError(f"{table} has classes {', '.join(names)}; {tables[0]} has {', '.join(read[0][1])}")
    study = leave_one_domain_out([scores for scores, _ in read])
    text = format_leave_one_domain_out(study)
    if out:
        Path(out).mkdir(parents=True, exist_ok=True)
        write_json(Path(out) / "leave_one_domain_out.json", study)
        write_text(Path(out) / "leave_one_domain_out.txt", text + "\n")
    print(text)
    return study


def _scores_path(path: Path) -> Path:
    inside = [path / "scores.csv", path / "evaluation" / "scores.csv"]
    return next((candidate for candidate in inside if candidate.is_file()), path)


def open_sources(
    trained: TrainedModel, data: str | Path | None, split: str | None, thresholds: str
) -> tuple[Source | None, str, Source]:
    """Opens what `evaluate` asks for, and nothing else.

    Returns:
      `(validation, split, tested)`; no validation where the thresholds are those of the run and the data others.

    Raises:
      DataError: no such split, other classes, broken files.
    """
    if data:
        recipe, classes = data_recipe(trained.config), trained.class_names
        opened = recipe.open_split(data, split, classes)
        validation = recipe.open_split(data, "val", classes).source if thresholds == "data" else None
        return validation, opened.split, opened.source
    dataset = open_dataset(trained.config)
    if tuple(dataset.class_names) != trained.class_names:
        raise DataError(
            [
                f"the data of the run have classes {', '.join(dataset.class_names)} now; it was trained on "
                f"{', '.join(trained.class_names)}. Restore them, or give other data with --data."
            ]
        )
    split = split or ("test" if "test" in dataset.splits else "val")
    if split not in dataset.splits:
        raise DataError([f"no split {split!r} in these data; there are {', '.join(dataset.splits)}"])
    return dataset.splits["val"], split, dataset.splits[split]


def score_source(
    trained: TrainedModel, source: Source, split: str
) -> tuple[Scores, dict[str, Float[np.ndarray, " n"] | dict[str, Any]]]:
    """Runs the model over every image of a source, in constant memory but for a row of figures per image.

    Returns:
      the scores, and per image `fooling_gap`, `map` and `image` (`agreement.measure_maps`).
    """
    measure = jax.jit(_measure)
    logits, measured = [], []
    with tqdm(total=len(source), desc=f"scoring {split}", unit="image", disable=None if is_first() else True) as bar:
        for batch in trained.eval_epoch(source):
            output = trained.eval_step(trained.state.params, trained.state.batch_stats, batch)
            fetched = fetch((output.logits, measure(output, batch["saliency"]), batch["mask"]))
            real = fetched[2] > 0
            logits.append(fetched[0][real])
            measured.append(jax.tree.map(lambda leaf, real=real: leaf[real], fetched[1]))
            bar.update(int(real.sum()))
    scores = tabulate_scores(source.records, split, np.concatenate(logits), set(trained.domains))
    return scores, jax.tree.map(lambda *leaves: np.concatenate(leaves), *measured)


def tabulate_scores(
    records: Records, split: str, logits: Float[np.ndarray, "n classes"], seen_domains: set[str]
) -> Scores:
    """What the model says of each image beside what is known of it."""
    return Scores(
        ids=tuple(records.ids),
        splits=(split,) * len(records),
        labels=np.asarray(records.labels),
        domains=tuple(records.domains),
        groups=tuple(records.groups),
        seen=tuple(domain in seen_domains for domain in records.domains),
        logits=logits,
    )


def _measure(output: EvalOutput, image_saliency: jax.Array) -> dict[str, Any]:
    difference = difference_salience(output.true_map, output.false_map)
    noise = is_constant(difference, largest_magnitude(output.true_map, output.false_map))[:, None, None]
    flat = jnp.where(noise, difference.mean((1, 2), keepdims=True), difference)
    maps = {"T": output.true_map, "U": output.false_map, "D": flat}
    measured = agreement.measure_maps(maps, output.saliency, image_saliency, output.usable)
    return {"fooling_gap": fooling_gap(output.true_map, output.false_map), **measured}


def agreement_figures(scores: Scores, measured: dict[str, Any]) -> dict[str, Any]:
    """Means over the images with a human map, of all images and of the closed and the open set of a test."""
    entries = {}
    for name, rows in protocol_sets(scores).items():
        part = jax.tree.map(lambda leaf, rows=rows: leaf[rows], measured)
        usable = ~np.isnan(part["map"]["T"]["cc"])
        mean = lambda leaf, usable=usable: float(leaf[usable].mean()) if usable.any() else None
        entries[name] = {
            "maps": int(usable.sum()),
            "fooling_gap": float(part["fooling_gap"].mean()),
            "map": jax.tree.map(mean, part["map"]),
            "image": jax.tree.map(mean, part["image"]),
        }
    return entries


def stored_thresholds(workdir: Path, trained: TrainedModel) -> dict[str, dict[str, float]]:
    """The thresholds that the end of training left, from its validation images.

    Raises:
      WorkdirError: training did not end, or went on after it had ended.
    """
    path = workdir / "results.json"
    results = read_json(path, remedy="continue the training, which writes it anew") if path.exists() else {}
    if results.get("epoch") != trained.epoch:
        raise WorkdirError(
            f"{path} holds no thresholds for the checkpoint of epoch {trained.epoch}: the training has not ended. "
            "Continue it with launch/train.py, or take the thresholds from validation images of the new data with "
            "--thresholds=data."
        )
    return results["thresholds"]


def write_evaluation(out: Path, evaluation: dict[str, Any], scores: Scores, class_names: tuple[str, ...]) -> None:
    """Writes the three files of an evaluation, each whole or not at all, and prints the tables: in one process."""
    if not is_first():
        return
    text = format_evaluation(evaluation)
    out.mkdir(parents=True, exist_ok=True)
    write_scores(out / "scores.csv", scores, class_names)
    write_text(out / "tables.txt", text + "\n")
    write_json(out / "evaluation.json", evaluation)
    print(f"{text}\n\nTables, figures and scores of every image: {out}")


def format_results(results: dict[str, Any], title: str) -> str:
    """An aligned table of what `evaluate_best` returns, a row per set."""
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
