"""Evaluation: what a checkpoint says of a set of images, and the figures of the whole protocol."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float
from tqdm import tqdm

from .cams import difference_salience, is_constant, largest_magnitude
from .data.fingerprint import digest_fingerprint, take_fingerprint
from .data.human_maps import count_maps, format_counts
from .data.outputs import only_of, write_folder
from .data.paths import local_path
from .data.protocol import split_by_protocol
from .data.source import Records, Source, Subset, choose_rows
from .devices.distributed import is_first
from .devices.placement import fetch
from .experiment import Experiment
from .inference import (
    Trained,
    check_out,
    choose_split,
    find_workdir,
    join_outputs,
    open_other_data,
    open_own_data,
    outputs_of,
    restore,
)
from .metrics import agreement
from .metrics.attacks import decide_attack_detection
from .metrics.classification import classification
from .metrics.faithfulness import measure_faithfulness
from .metrics.per_protocol import leave_one_domain_out, per_protocol_metrics, protocol_sets
from .metrics.protocol_tables import format_evaluation, format_leave_one_domain_out, format_screen
from .metrics.scores import Scores, ScoresError, join_scores, read_scores, write_scores
from .metrics.tables import Table, columns, decimal, tabulate
from .metrics.thresholds import SelectionError, choose_thresholds
from .run.checkpoints import CheckpointError, Checkpoints
from .run.files import WorkdirError, read_json, write_json, write_text
from .run.workdir import load_config
from .steps import EvalOutput, TrainState

# What may be replaced: an earlier evaluation, and nothing else.
_OWN = only_of("an evaluation", "evaluation.json", "scores.csv", "tables.txt")
_OF_D = ("positive_inside", "above_outside")  # of `agreement`, of D and the human map
_OF_BOTH = ("fooling_gap", "shared_variance")  # of T and U
_OWN_MERGED = only_of("a merged evaluation", "leave_one_domain_out.json", "leave_one_domain_out.txt")


def evaluate_source(experiment: Experiment, state: TrainState, source: Source) -> Any:
    """What the eval step says of every example of a split, once and in order: `EvalOutput` in NumPy."""
    batches = experiment.eval_epoch(source)
    return join_outputs(output for output, _ in outputs_of(experiment.eval_step, state, batches))


def evaluate_best(experiment: Experiment, checkpoints: Checkpoints) -> tuple[dict[str, Any], Scores]:
    """Metrics of the best checkpoint at the end of training; `evaluate` gives the whole protocol.

    Returns:
      What `results.json` holds, and the scores of each image of validation and test. `step` and `epoch` are the
      checkpoint's, `skipped` counts unreadable rows left out, `training_maps` is `human_maps.count_maps`, `thresholds`
      are chosen on validation for all later data, and `sets` holds `describe_set` of `val` and, where there is a test,
      of `closed` and `open` (`protocol.split_by_protocol`). Without validation, which only an imported network does
      without, there are neither thresholds nor `val`; without training's domains the test is the one set `test`.

    Raises:
      CheckpointError: there is none.
    """
    restored = checkpoints.restore_best(lambda record: experiment.abstract_state())
    if restored is None:
        raise CheckpointError("there is no best checkpoint: the run ended before its first validation")
    state, record = restored
    dataset, splits = experiment.dataset, experiment.dataset.splits
    seen = None if record["domains"] is None else set(record["domains"])
    sets, tables, thresholds = {}, [], {}
    for split in (name for name in ("val", "test") if name in splits):
        output = evaluate_source(experiment, state, splits[split])
        scores = tabulate_scores(splits[split].records, split, output.logits, seen)
        parts = {split: np.arange(len(scores))}
        if split == "val":
            thresholds = choose_thresholds(scores.splits, scores.labels, scores.logits)
        elif seen is not None:
            parts = split_by_protocol(list(seen), scores.domains, scores.labels)
        sets |= {name: describe_set(jax.tree.map(lambda x, r=rows: x[r], output)) for name, rows in parts.items()}
        tables.append(scores)
    results = {
        "step": record["step"],
        "epoch": record["epoch"],
        "class_names": list(dataset.class_names),
        "skipped": len(dataset.skipped),
        "training_maps": count_maps(dataset),
        "thresholds": thresholds,
        "sets": sets,
    }
    return results, join_scores(tables)


def describe_set(output: Any) -> dict[str, Any]:
    """Every metric that the table at the end of training shows of one set, from its `EvalOutput` in NumPy.

    `map_agreement` is the mean correlation of T, U and D with the human maps (`agreement.correlation`),
    `positive_inside` the share of images whose D is positive inside them, `above_outside` how far D lies there above
    what is outside; None without any human map. `fooling_gap` and `shared_variance` are of all images.
    """
    maps = {"true": output.true_map, "false": output.false_map, "difference": output.difference}
    human = output.saliency[output.usable]
    inside = lambda measure, values: float(measure(jnp.asarray(values[output.usable]), jnp.asarray(human)).mean())
    both = [jnp.asarray(each) for each in (output.true_map, output.false_map)]
    sign = {name: getattr(agreement, name) for name in _OF_D}
    return {
        "images": len(output.labels),
        "maps": int(output.usable.sum()),
        **classification(output.labels, output.logits),
        "map_agreement": {
            name: inside(agreement.correlation, values) if len(human) else None for name, values in maps.items()
        },
        **{name: inside(measure, maps["difference"]) if len(human) else None for name, measure in sign.items()},
        **{name: float(getattr(agreement, name)(*both).mean()) for name in _OF_BOTH},
    }


def evaluate(
    workdir: str | Path,
    data: str | Path | None = None,
    split: str | None = None,
    thresholds: str = "run",
    out: str | Path | None = None,
    faithfulness_images: int = 64,
    accept_changed_data: bool = False,
) -> dict[str, Any]:
    """Evaluates a run's best checkpoint by the whole protocol, from the workdir alone.

    Prints a screen of figures, and writes all tables as `tables.txt`, `evaluation.json` (what is returned) and
    `scores.csv` (a row per image of validation and of the split), each whole or not at all. What each part took is
    told on stderr.

    Args:
      workdir: a run, or a published model (see `inference.restore`), which needs `data` and `out`.
      data: CSV manifest of other data with the same classes; None: the run's own data.
      split: `train`, `val` or `test`; None: `test`, or `val` if the data have no test.
      thresholds: `run` takes them from the validation images of the run's own data, `data` from those of `data`.
      out: folder for the files: new, empty, or of an earlier evaluation, which is replaced; None: `evaluation` in the
        workdir, or for other data `evaluation_NAME` there, NAME being the manifest's, or its folder's if it is called
        manifest.csv.
      faithfulness_images: how many images the perturbation curves and the sanity check look at; 0 leaves them out.
      accept_changed_data: evaluate the run's own data though they are not what it was trained on; what differs is told.

    Returns:
      `epoch`, `class_names`, `data`, `data_fingerprint` (of the split: the same for the same rows, images and maps),
      `split`, `thresholds_from` (None: there are no validation images, hence no
      thresholds), `thresholds_on_tested` (they were chosen on the very images evaluated), `thresholds`,
      `attack_detection` (`attacks.AttackDetection`), `sets` and `domains` (`per_protocol_metrics`), `map_agreement` by
      set, `faithfulness` (empty if left out).

    Raises:
      WorkdirError, CheckpointError: no run with a sound checkpoint there; or `out` is left out, and the folder holds
        the evaluation of other data.
      OutputError: `out` can't be written or holds something else than an evaluation, or another process is writing it.
      DataError: data that are not there, or of other classes; the run's own, if they were changed since training.
      SelectionError: thresholds from test data, from those evaluated, or from other data where none are given.
      PublishedError: see `inference.restore`.
    """
    _check_thresholds(data, thresholds)
    check_out(workdir, out)
    workdir = find_workdir(workdir)
    data = None if data is None else local_path(data, "--data")
    load_config(workdir)  # before a folder is made in what is no run
    named = local_path(out, "--out") if out is not None else _choose_folder(workdir, data)
    writing = write_folder(named, _OWN) if is_first() else contextlib.nullcontext(named)
    with writing as folder:
        evaluation, scores = _evaluate(workdir, data, split, thresholds, faithfulness_images, accept_changed_data)
        if is_first():
            _write(folder, evaluation, scores)
    if is_first():
        _tell(named, evaluation)
    return evaluation


def _evaluate(
    workdir: Path,
    data: Path | None,
    split: str | None,
    thresholds: str,
    faithfulness_images: int,
    accept_changed_data: bool,
) -> tuple[dict[str, Any], Scores]:
    """What `evaluate` returns, and the scores of each image."""
    with _stage("model and data opened"):
        trained = restore(workdir)
        validation, tested, source = open_sources(trained, workdir, data, split, thresholds, accept_changed_data)
    with _stage(f"scores and maps of {len(source)} {tested} images"):
        scores, measured = score_source(trained, source, tested)
    val = scores if source is validation else None
    if validation is not None and val is None:
        with _stage(f"scores of {len(validation)} val images"):
            val, _ = score_source(trained, validation, "val")
    with _stage("metrics, intervals and agreement"):
        if val:
            chosen, origin = choose_thresholds(val.splits, val.labels, val.logits), "val"
        else:
            chosen, origin = stored_thresholds(workdir, trained)
        metrics = per_protocol_metrics(scores, chosen) | {"map_agreement": agreement_of_sets(scores, measured)}
    attack_detection = decide_attack_detection(trained.recipe.attack_detection, trained.class_names)
    evaluation = {
        "epoch": trained.epoch,
        "class_names": list(trained.class_names),
        "data": _name_data(trained, data),
        "data_fingerprint": digest_fingerprint(take_fingerprint(trained.class_names, {tested: source})),
        "split": tested,
        "thresholds_from": "val of the new data" if data and thresholds == "data" else origin,
        "thresholds_on_tested": val is scores and bool(chosen),
        "thresholds": chosen,
        "attack_detection": attack_detection._asdict(),
        **metrics,
        "faithfulness": _faithfulness(trained, source, tested, faithfulness_images),
    }
    tables = [scores] if not val or val is scores else [val, scores]
    return evaluation, join_scores(tables)


def _check_thresholds(data: str | Path | None, thresholds: str) -> None:
    if thresholds not in ("run", "data"):
        raise SelectionError(
            f"thresholds can't come from {thresholds!r}: choose run (validation of the run's data) or data (validation "
            "of --data). Test data serve to test."
        )
    if thresholds == "data" and not data:
        raise SelectionError(
            "--thresholds=data takes them from the validation images of --data, and no --data is given: name a "
            "manifest, or leave --thresholds out, which takes those of the run's own data."
        )


def _choose_folder(workdir: Path, data: str | Path | None) -> Path:
    """The folder for an evaluation where none was named. Raises WorkdirError if other data's evaluation is there."""
    if not data:
        return workdir / "evaluation"
    path = Path(data).resolve()
    out = workdir / f"evaluation_{path.parent.name if path.stem == 'manifest' else path.stem}"
    earlier = out / "evaluation.json"
    found = read_json(earlier, remedy="delete it").get("data") if earlier.is_file() else None
    if found not in (None, str(path)):
        raise WorkdirError(f"{out} holds the evaluation of {found}: give --out for that of {path}.")
    return out


def _name_data(trained: Trained, data: str | Path | None) -> str:
    own = trained.recipe.data
    return str(Path(data).resolve()) if data else str(own.options.get("manifest", own.source))


@contextlib.contextmanager
def _stage(what: str) -> Iterator[None]:
    """Tells on stderr, where progress goes, what was done and how long it took, with or without a terminal."""
    start = time.perf_counter()
    yield
    if is_first():
        tqdm.write(f"{what}: {time.perf_counter() - start:.1f} s", file=sys.stderr)


def _write(folder: Path, evaluation: dict[str, Any], scores: Scores) -> None:
    write_scores(folder / "scores.csv", scores, tuple(evaluation["class_names"]))
    write_text(folder / "tables.txt", format_evaluation(evaluation) + "\n")
    write_json(folder / "evaluation.json", evaluation)


def _tell(out: Path, evaluation: dict[str, Any]) -> None:
    both = "both scores, " if len(evaluation["class_names"]) == 2 else ""
    print(
        f"{format_screen(evaluation)}\n\n"
        f"The rest ({both}every threshold and domain, six measures of agreement, ROAD) is in\n{out / 'tables.txt'};\n"
        "beside it are evaluation.json, all figures, and scores.csv, a row per image."
    )


def evaluate_leave_one_domain_out(tables: list[str | Path], out: str | Path | None = None) -> dict[str, Any]:
    """Merges the `scores.csv` of several evaluations into one table, see `per_protocol.leave_one_domain_out`.

    `tables` are such CSV files, or the workdirs or evaluation folders that hold them. `out` is a folder for
    `leave_one_domain_out.json` and `.txt`; without it nothing is written.

    Raises:
      ScoresError: tables that are not there, don't fit together, or left no domain out.
    """
    read = []
    for table in (local_path(table, "--leave_one_domain_out") for table in tables):
        inside = (table / "scores.csv", table / "evaluation" / "scores.csv")
        read.append(read_scores(next(filter(Path.is_file, inside), table)))
    for table, (_, names) in zip(tables, read, strict=True):
        if names != read[0][1]:
            raise ScoresError(f"{table} has classes {', '.join(names)}; {tables[0]} has {', '.join(read[0][1])}")
    study = leave_one_domain_out([scores for scores, _ in read])
    text = format_leave_one_domain_out(study)
    if out is not None:
        with write_folder(out, _OWN_MERGED) as folder:
            write_json(folder / "leave_one_domain_out.json", study)
            write_text(folder / "leave_one_domain_out.txt", text + "\n")
    print(text)
    return study


def open_sources(
    trained: Trained,
    workdir: Path,
    data: str | Path | None,
    split: str | None,
    thresholds: str,
    accept_changed_data: bool = False,
) -> tuple[Source | None, str, Source]:
    """`(validation, split, tested)`; no validation where the data have none, or they are others than the run's, whose
    thresholds are stored.

    Raises SelectionError if other data's thresholds would be chosen on what is tested.
    """
    if not data:
        dataset = open_own_data(trained, workdir, accept_changed_data)
        split = choose_split(dataset, split)
        return dataset.splits.get("val"), split, dataset.splits[split]
    tested, *validation = open_other_data(trained, workdir, data, [split, *(["val"] if thresholds == "data" else [])])
    if validation and tested.split == "val":
        raise SelectionError(
            f"--thresholds=data would choose thresholds on the val images of {data}, the ones evaluated: figures at "
            "such a threshold are too good. Evaluate its test images, or leave --thresholds out."
        )
    return validation[0].source if validation else None, tested.split, tested.source


def score_source(trained: Trained, source: Source, split: str) -> tuple[Scores, dict[str, Any]]:
    """Scores, and in constant memory of each image what `agreement` says of its maps: `map` and `image`
    (`measure_maps`), `_OF_D`, NaN without a human map, and `_OF_BOTH`."""
    measure = jax.jit(_measure)
    logits, measured = [], []
    with tqdm(total=len(source), desc=f"scoring {split}", unit="image", disable=None if is_first() else True) as bar:
        for output, found in trained.outputs(source, lambda output, batch: measure(output, batch["saliency"])):
            logits.append(output.logits)
            measured.append(found)
            bar.update(len(output.logits))
    seen = None if trained.domains is None else set(trained.domains)
    scores = tabulate_scores(source.records, split, np.concatenate(logits), seen)
    return scores, join_outputs(measured)


def tabulate_scores(
    records: Records, split: str, logits: Float[np.ndarray, "n classes"], seen_domains: set[str] | None
) -> Scores:
    """What the model says of each image beside what is known of it; no `seen_domains`: nobody knows them."""
    return Scores(
        ids=tuple(records.ids),
        splits=(split,) * len(records),
        labels=np.asarray(records.labels),
        domains=tuple(records.domains),
        groups=tuple(records.groups),
        seen=tuple(None if seen_domains is None else domain in seen_domains for domain in records.domains),
        logits=logits,
    )


def _measure(output: EvalOutput, image_saliency: jax.Array) -> dict[str, Any]:
    difference = difference_salience(output.true_map, output.false_map)
    noise = is_constant(difference, largest_magnitude(output.true_map, output.false_map))[:, None, None]
    flat = jnp.where(noise, difference.mean((1, 2), keepdims=True), difference)
    maps = {"T": output.true_map, "U": output.false_map, "D": flat}
    measured = agreement.measure_maps(maps, output.saliency, image_saliency, output.usable)
    of_human = lambda measure: jnp.where(
        output.usable, measure(flat, jnp.where(output.usable[:, None, None], output.saliency, 1)), jnp.nan
    )
    return {
        **{name: of_human(getattr(agreement, name)) for name in _OF_D},
        **{name: getattr(agreement, name)(output.true_map, output.false_map) for name in _OF_BOTH},
        **measured,
    }


def _faithfulness(trained: Trained, source: Source, split: str, images: int) -> dict[str, Any]:
    """`measure_faithfulness` of some images, spread over the classes, those with a human map first; {} of none."""
    if not images:
        return {}
    subset, recipe = Subset(source, choose_rows(source.records, images)), trained.recipe
    # On one device, image by image; every process does the same.
    variables = jax.device_put(jax.device_get(trained.variables))
    batches = map(fetch, recipe.read_for_evaluation(subset))
    with _stage(f"faithfulness of {len(subset)} images"):
        return {"split": split} | measure_faithfulness(
            trained.model, variables, recipe.preprocess, recipe.image_size, batches, len(subset)
        )


def agreement_of_sets(scores: Scores, measured: dict[str, Any]) -> dict[str, Any]:
    """Means of what `score_source` measured, of all images and of the closed and the open set of a test.

    Those of human maps over the images that have one; None if none has.
    """
    entries = {}
    for name, rows in protocol_sets(scores).items():
        part = jax.tree.map(lambda leaf, rows=rows: leaf[rows], measured)
        usable = ~np.isnan(part["map"]["T"]["cc"])
        mean = lambda leaf, usable=usable: float(leaf[usable].mean()) if usable.any() else None
        entries[name] = {
            "maps": int(usable.sum()),
            **{name: mean(part[name]) for name in _OF_D},
            **{name: float(part[name].mean()) for name in _OF_BOTH},
            "map": jax.tree.map(mean, part["map"]),
            "image": jax.tree.map(mean, part["image"]),
        }
    return entries


def stored_thresholds(workdir: Path, trained: Trained) -> tuple[dict[str, dict[str, float]], str | None]:
    """The thresholds that the end of training left, and the split that they come from; none where it had no validation.

    Raises WorkdirError if training has not ended.
    """
    path = workdir / "results.json"
    results = read_json(path, remedy="continue the training, which writes it anew") if path.exists() else {}
    if results.get("epoch") != trained.epoch:
        raise WorkdirError(
            f"{path} holds no thresholds for the checkpoint of epoch {trained.epoch}: the training has not ended. "
            "Continue it with launch/train.py, or take the thresholds from validation images of the new data with "
            "--thresholds=data."
        )
    return results["thresholds"], "val" if "val" in results["sets"] else None


def tabulate_results(results: dict[str, Any], title: str) -> Table:
    """A row for each set of what `evaluate_best` returns."""
    metrics = {"cross_entropy": "cross-entropy", "accuracy": "accuracy", "auroc": "AUROC"}
    metrics |= {f"map_agreement/{name}": f"CC {name}" for name in ("true", "false", "difference")}
    shown = [*columns(str, {"images": "images", "maps": "maps"}), *columns(decimal, metrics)]
    return tabulate(title, "set", results["sets"].items(), shown)


def format_results(results: dict[str, Any], title: str) -> str:
    """An aligned table of what `evaluate_best` returns, a row per set."""
    note = "CC: correlation of the model's maps with the human maps, over the images that have one."
    if "closed" in results["sets"]:
        note += "\nclosed: test images of the domains that training saw; open: of others."
    table = tabulate_results(results, title).text()
    return f"{table}\n{note}\nTraining images with a human map: {format_counts(results['training_maps'])}."
