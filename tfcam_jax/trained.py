"""A trained model, restored from its workdir alone: the data that it was trained on need not be there."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from ml_collections import ConfigDict

from . import steps
from .checkpoints import CheckpointError, Checkpoints
from .compilation import compiler_options
from .data.pipeline import eval_batches
from .data.source import Dataset, Source
from .experiment import abstract_state, build_model, check_values, preprocessing
from .fingerprints import checksum_json
from .workdir import WorkdirError, config_differences, is_indifferent, load_config


@dataclasses.dataclass(frozen=True)
class TrainedModel:
    """The best checkpoint of a run, ready to be applied on all local devices.

    Attributes:
      config: of the run.
      class_names: position = class index.
      domains: those that training saw.
      epoch: of the checkpoint.
      state: parameters and batch statistics, on every device.
      model: the Flax module, for `model.apply({"params": ..., "batch_stats": ...}, preprocess(images), train=False)`.
      image_size: pixels a side.
      preprocess: from uint8 images [B, S, S, channels] to the model's float32 input.
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
    eval_step: Callable[[Any, Any, steps.Batch], steps.EvalOutput]

    def eval_epoch(self, source: Source) -> Iterator[steps.Batch]:
        """Batches that hold each example of a source once, in order, spread over the devices."""
        devices = jax.local_devices()
        size = -(-self.config.evaluation.batch_size // len(devices)) * len(devices)
        spread = NamedSharding(Mesh(np.asarray(devices), "data"), PartitionSpec("data"))
        data = self.config.data
        options = {"num_threads": data.num_threads, "num_workers": data.num_workers}
        for batch in eval_batches(source, batch_size=size, image_size=self.image_size, **options):
            yield jax.device_put(batch, spread)


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
    if not (workdir / "checkpoints").is_dir():
        raise CheckpointError(_unfinished(workdir))
    replicated = NamedSharding(Mesh(np.asarray(jax.local_devices()), "data"), PartitionSpec())
    place = lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=replicated)

    def like(record: dict[str, Any]) -> steps.TrainState:
        _check_config(workdir, record["config"], config)
        return jax.tree.map(place, abstract_state(config, len(record["class_names"])))

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
        eval_step=jax.jit(steps.make_eval_step(model, preprocess), compiler_options=compiler_options()),
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
