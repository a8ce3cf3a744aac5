"""A trained model, restored from its workdir alone: the data that it was trained on need not be there."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
from ml_collections import ConfigDict

from . import steps
from .data.source import Dataset, Source
from .devices.placement import Placement, make_placement
from .experiment import ConfigError, abstract_state, build_model, check_values, preprocessing, read_for_evaluation
from .run.checkpoints import CheckpointError, Checkpoints
from .run.files import WorkdirError
from .run.fingerprints import checksum_json
from .run.workdir import config_differences, is_indifferent, load_config


@dataclasses.dataclass(frozen=True)
class TrainedModel:
    """The best checkpoint of a run, ready to be applied on all devices that are here now.

    Attributes:
      config: of the run.
      class_names: position = class index.
      domains: those that training saw.
      epoch: of the checkpoint.
      state: parameters and batch statistics, on every device.
      model: the Flax module, for `model.apply({"params": ..., "batch_stats": ...}, preprocess(images), train=False)`.
      image_size: pixels a side.
      preprocess: from uint8 images [B, S, S, channels] to the model's float32 input.
      placement: the devices.
      eval_step: compiled, see `steps.make_eval_step`.
    """

    config: ConfigDict
    class_names: tuple[str, ...]
    domains: tuple[str, ...]
    epoch: int
    state: steps.TrainState
    model: nn.Module
    image_size: int
    preprocess: Callable[[jax.Array], jax.Array]
    placement: Placement
    eval_step: Callable[[Any, Any, steps.Batch], steps.EvalOutput]

    def eval_epoch(self, source: Source) -> Iterator[steps.Batch]:
        """See `experiment.read_for_evaluation`."""
        return read_for_evaluation(self.config, self.placement, source)


def describe_dataset(dataset: Dataset) -> dict[str, Any]:
    """What a checkpoint has to know of its data, JSON-able.

    `class_names`, `domains`; `rows`, a checksum of each split's names, labels and which of them have a map; `pixels`,
    one of its images' digests where the source knows them.
    """
    rows = lambda records: checksum_json([records.ids, records.labels.tolist(), records.has_map.tolist()])
    return {
        "class_names": list(dataset.class_names),
        "domains": sorted(set(dataset.splits["train"].records.domains)),
        "rows": {name: rows(split.records) for name, split in dataset.splits.items()},
        "pixels": {name: checksum_json(split.records.digests) for name, split in dataset.splits.items()},
    }


def restore_trained(workdir: str | Path) -> TrainedModel:
    """Restores the best checkpoint of a run.

    Raises:
      WorkdirError: the folder holds no run, or its config can't be read.
      CheckpointError: no checkpoint was finished there, or it is damaged.
    """
    workdir = Path(workdir)
    config = load_config(workdir)
    try:
        check_values(config)
    except AttributeError as error:
        raise WorkdirError(f"{workdir / 'config.json'} is of another version of this project: {error}") from error
    except ConfigError as error:
        raise WorkdirError(f"{workdir / 'config.json'} is damaged: {error}") from error
    if not (workdir / "checkpoints").is_dir():
        raise CheckpointError(_unfinished(workdir))
    placement = make_placement()

    def like(record: dict[str, Any]) -> steps.TrainState:
        _check_config(workdir, record["config"], config)
        return placement.abstract_state(abstract_state(config, len(record["class_names"])))

    with Checkpoints(workdir, read_only=True) as checkpoints:
        restored = checkpoints.restore_best(like)
    if restored is None:
        raise CheckpointError(_unfinished(workdir))
    state, record = restored
    model = build_model(config, len(record["class_names"]))
    image_size, preprocess = preprocessing(config)
    return TrainedModel(
        config=config,
        class_names=tuple(record["class_names"]),
        domains=tuple(record["domains"]),
        epoch=record["epoch"],
        state=state,
        model=model,
        image_size=image_size,
        preprocess=preprocess,
        placement=placement,
        eval_step=placement.compile_eval_step(steps.make_eval_step(model, preprocess)),
    )


def _check_config(workdir: Path, trained: dict[str, Any], config: ConfigDict) -> None:
    """Refuses a `config.json` that was changed since in more than speed and places of files."""
    differences = [
        line
        for key, line in config_differences(trained, config)
        if not is_indifferent(key) and not key.endswith((".manifest", ".data_dir", ".manual_dir", "batch_size"))
    ]
    if differences:
        raise WorkdirError(
            f"{workdir / 'config.json'} is not the config that the checkpoints were trained with:\n"
            + "\n".join(differences).replace("there,", "in training,").replace("asked for", "in the file")
            + "\nSet these values back."
        )


def _unfinished(workdir: Path) -> str:
    return (
        f"{workdir} has no best checkpoint: the run ended before its first validation. Continue it with "
        "launch/train.py and the same config."
    )
