"""A run as a folder that others can restore, with a model card; and, if asked for, its way to the Hugging Face Hub."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from absl import logging

from ..data.outputs import write_folder
from ..data.paths import local_path
from ..data.source import DataError, Dataset, Records
from ..errors import ConfigError
from ..inference import Trained, choose_split, open_own_data, restore
from ..metrics.protocol_tables import format_evaluation
from ..models.wheels import digest_file
from ..run.files import WorkdirError, read_json, write_json, write_text
from ..run.fingerprints import checksum_json
from ..run.published import (
    CONFIG,
    FORMAT,
    RECORD,
    RESULTS,
    WEIGHTS,
    is_published,
    on_hub,
    read_record,
    write_variables,
)
from ..run.workdir import load_config
from .card import Contents, write_card
from .maps import draw_examples, draw_mean_maps
from .privacy import file_name, public_evaluation, public_provenance, without_paths
from .push import PushError, check_repository, push_folder

CARD, EVALUATION, TABLES, MAPS, EXAMPLES = "README.md", "evaluation.json", "tables.txt", "maps.png", "examples.png"
_PUBLIC = (CARD, EVALUATION, TABLES, MAPS, EXAMPLES, WEIGHTS, CONFIG, RESULTS, RECORD)


def publish(
    workdir: str | Path,
    repository: str,
    out: str | Path | None = None,
    *,
    push: bool = False,
    private: bool = True,
    license: str | None = None,
    images: int = 0,
) -> Path:
    """Writes a run's best checkpoint as a folder for the Hugging Face Hub, and pushes it if asked to.

    Nothing private goes into it: no image or its name, no path, command or host. What the run does not have is left
    out, and logged.

    Args:
      workdir: a run; or a folder that this function wrote, to push it as it is.
      repository: "owner/name", also where it is not pushed: the card says how to restore it from there.
      out: the folder, whole in the end or not there; None: `published` in the workdir. One of the same run is replaced.
      push: make the repository if need be and commit the folder's files to it.
      private: a repository that is made is private; one that is public already is then refused.
      license: the Hub's identifier of one, such as `apache-2.0`; None: the card says that none was given.
      images: how many images, with their maps, are shown in `examples.png`, and so become public.

    Returns:
      The folder.

    Raises:
      PushError: no such name of a repository, or it can't be pushed to; the folder stays.
      WorkdirError, CheckpointError: no run with a sound checkpoint there, or `out` holds something else.
      OutputError: `out` can't be written, or another process is writing it.
      ConfigError: fewer than no images.
    """
    check_repository(repository)
    if images < 0:
        raise ConfigError(f"--images is {images}; it must be at least 0.")
    if on_hub(workdir):
        raise WorkdirError(f"{workdir} is on the Hub already. Give the folder of a run, or of a published model.")
    folder = local_path(workdir, "--workdir")
    if is_published(folder):
        _check_as_it_is(folder, repository, push)
    else:
        run, folder = folder, local_path(out, "--out") if out is not None else folder / "published"
        _write_folder(run, folder, repository, license, images)
    if push:
        url = push_folder(folder, _files(folder), repository, private)
        print(f"Pushed: {url}\nRestore it by --workdir=hf://{repository}")
    return folder


def _files(folder: Path) -> list[str]:
    return [RECORD, *(name for name in read_record(folder)["files"] if name in _PUBLIC)]


def _check_as_it_is(folder: Path, repository: str, push: bool) -> None:
    record = read_record(folder)
    if not push:
        raise WorkdirError(f"{folder} is published already: --push pushes it as it is; for a new one give the run.")
    if record.get("repository") != repository:
        raise PushError(
            f"{folder} was written for {record.get('repository')}, which its card names, not for {repository}: give "
            "that, or publish the run anew."
        )


def _write_folder(run: Path, out: Path, repository: str, license: str | None, images: int) -> None:
    load_config(run)  # before a folder is made in what is no run
    run_of = _identify(run)
    with write_folder(out, lambda held: _check_replaceable(held, run_of)) as partial:
        about = {"repository": repository, "run": run_of, "license": license}
        _fill(partial, restore(run), run, about, images)
    print(f"Published: {out}")


def _identify(run: Path) -> int:
    """A number that is the same for the same run, wherever it lies and however far it has come."""
    read = lambda name: read_json(run / name) if (run / name).is_file() else {}
    return checksum_json([read(CONFIG), read("run.json").get("started")])


def _check_replaceable(out: Path, run: int) -> None:
    """Raises WorkdirError unless the folder is what this command wrote of this run, untouched since."""
    if not is_published(out):
        raise WorkdirError(f"{out} exists and is not a published model: choose another --out.")
    record = read_record(out)
    if record.get("run") != run:
        raise WorkdirError(f"{out} holds the model of another run ({record.get('repository')}): choose another --out.")
    held = {path.name for path in out.iterdir()}
    touched = sorted(held ^ {RECORD, *record["files"]}) or [
        name for name, digest in record["files"].items() if digest_file(out / name) != digest
    ]
    if touched:
        raise WorkdirError(
            f"{out} was changed since it was published ({', '.join(touched)}). To push it as it is give "
            f"--workdir={out} --push; for a new one choose another --out, or delete it."
        )


def _fill(folder: Path, trained: Trained, run: Path, about: dict[str, Any], images: int) -> None:
    """Writes every file into a new folder, the record last."""
    dataset = _open(trained, run)
    state = jax.device_get(trained.state)
    write_variables(folder / WEIGHTS, {"params": state.params, "batch_stats": state.batch_stats})
    config, changed = without_paths(trained.recipe.stored)
    if changed:
        print(f"{CONFIG}: of {', '.join(changed)} the names of files alone are published.")
    write_json(folder / CONFIG, config)
    results, evaluation = _results(trained, run), _evaluation(trained, run)
    if results:
        write_json(folder / RESULTS, results)
    if evaluation:
        write_json(folder / EVALUATION, evaluation)
        write_text(folder / TABLES, format_evaluation(evaluation) + "\n")
    provenance = public_provenance(read_json(run / "run.json") if (run / "run.json").is_file() else {})
    own = trained.recipe.data
    data = {
        "source": own.source,
        "name": file_name(own.place),
        "splits": _splits(dataset, results),
    }
    contents = Contents(
        trained=trained,
        config=config,
        repository=about["repository"],
        license=about["license"],
        data=data,
        evaluation=evaluation,
        results=results,
        provenance=provenance,
        pictures=_draw(folder, trained, dataset, images),
    )
    if about["license"] is None:
        logging.warning("no --license is given: the card says so, and others may not use the model.")
    write_text(folder / CARD, write_card(contents))
    record = {
        "format": FORMAT,
        **about,
        "class_names": list(trained.class_names),
        "domains": None if trained.domains is None else list(trained.domains),
        "rows": dict(trained.rows),
        "data": data,
        "epoch": trained.epoch,
        "step": int(state.step),
        "thresholds": results and results["thresholds"],
        "trained": provenance,
        "files": {path.name: digest_file(path) for path in sorted(folder.iterdir())},
    }
    write_json(folder / RECORD, record)


def _open(trained: Trained, run: Path) -> Dataset | None:
    """The run's own data; None, with a warning, where they are not there any more, or others."""
    try:
        return open_own_data(trained, run)
    except DataError as error:
        told = str(error).partition("\nRestore them")[0]  # the remedies are others' flags
        logging.warning("the picture is left out, as the run's data are not to be had: %s", told)
        return None


def _results(trained: Trained, run: Path) -> dict[str, Any] | None:
    found = read_json(run / RESULTS) if (run / RESULTS).is_file() else {}
    if found.get("epoch") == trained.epoch:
        return found
    logging.warning("%s has no results of epoch %d: the card has no figures of training.", run, trained.epoch)
    return None


def _evaluation(trained: Trained, run: Path) -> dict[str, Any] | None:
    path = run / "evaluation" / EVALUATION
    found = read_json(path, remedy="evaluate again") if path.is_file() else {}
    if found.get("epoch") == trained.epoch:
        return public_evaluation(found)
    reason = f"{path} is of epoch {found['epoch']}, not {trained.epoch}" if found else f"{path} is not there"
    logging.warning("%s: the card has no intervals. launch/evaluate.py --workdir=%s writes it.", reason, run)
    return None


def _splits(dataset: Dataset | None, results: dict[str, Any] | None) -> dict[str, Any] | None:
    """`describe_split` of each split; without the data, of training alone and from the run's results."""
    if dataset:
        return {name: describe_split(split.records, dataset.class_names) for name, split in dataset.splits.items()}
    if not results:
        return None
    counts = results["training_maps"]
    total = {key: sum(each[key] for each in counts.values()) for key in ("images", "maps")}
    return {"train": {**total, "classes": {name: each["images"] for name, each in counts.items()}, "domains": []}}


def describe_split(records: Records, class_names: tuple[str, ...]) -> dict[str, Any]:
    """Of a split, JSON-able: how many `images`, with a human map (`maps`) and by class; and the names of domains."""
    return {
        "images": len(records),
        "maps": int(np.sum(records.has_map)),
        "classes": {name: int(np.sum(records.labels == label)) for label, name in enumerate(class_names)},
        "domains": sorted({domain for domain in records.domains if domain}),
    }


def _draw(folder: Path, trained: Trained, dataset: Dataset | None, images: int) -> Mapping[str, str]:
    """Draws what can be drawn; file names to what they show."""
    if dataset is None:
        return {}
    split = choose_split(dataset, None)
    source = dataset.splits[split]
    draw_mean_maps(trained, source, split, folder / MAPS)
    told = f"Means over the {len(source)} images of {split}, by class, of the human maps, T, U and D."
    if not images:
        return {MAPS: told}
    drawn = draw_examples(trained, source, images, split, folder / EXAMPLES)
    logging.warning("%s shows %d images of %s, which become public with it.", EXAMPLES, drawn, split)
    return {MAPS: told, EXAMPLES: f"Examples of {split}."}
