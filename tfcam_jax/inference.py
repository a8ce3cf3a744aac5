"""A trained model, restored from its workdir alone and applied: the data that it was trained on need not be there."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import scipy
from absl import logging
from jaxtyping import Float
from ml_collections import ConfigDict

from . import steps
from .data.checks.outcomes import load_outcomes
from .data.manifest import OpenedSplit
from .data.paths import local_path
from .data.source import DataError, Dataset, Source
from .data.unlisted import open_images
from .devices.memory import explain_out_of_memory
from .devices.placement import fetch, make_placement
from .errors import ConfigError
from .experiment import Experiment, Recipe, keep_checks, open_dataset, resolve
from .models import MODEL_CARDS
from .models.contract import Model, NetworkError
from .models.lookup import is_foreign
from .models.weights import WeightsError, find_weights, load_pretrained, merge
from .models.wheels import digest_file
from .run.checkpoints import CheckpointError, Checkpoints
from .run.data_record import check_same_data, record_data
from .run.files import WorkdirError
from .run.fingerprints import checksum_json, fingerprint_tree
from .run.published import (
    check_config,
    fetch_published,
    is_published,
    on_hub,
    read_record,
    read_variables,
)
from .run.workdir import (
    CHECKS,
    OTHER_CHECKS,
    PLACES,
    config_differences,
    find_places,
    is_run,
    load_config,
    tell_changed_network,
)

Also = Callable[[steps.EvalOutput, steps.Batch], Any]


class Prediction(NamedTuple):
    """What a model says of n images, in NumPy, float32; see `Trained.predict`.

    Probabilities are the logits' softmax; the maps are T, U and D = T - U, raw, at the feature map's resolution. For
    two classes the mean of D is the margin less the difference of the biases.
    """

    logits: Float[np.ndarray, "n classes"]
    probabilities: Float[np.ndarray, "n classes"]
    true_map: Float[np.ndarray, "n h w"]
    false_map: Float[np.ndarray, "n h w"]
    difference: Float[np.ndarray, "n h w"]


@dataclasses.dataclass(frozen=True, repr=False)
class Trained:
    """The best checkpoint of a run, ready to be applied on all devices that are here now; see `restore`.

    Attributes:
      config: of the run, locked.
      recipe: the same, resolved; its placement is that of the devices here.
      class_names: position = class index.
      domains: those that training saw; None of a network that was imported: nobody knows.
      rows: a checksum of each split of its data, see `data_record.describe_dataset`.
      state: parameters and batch statistics, on every device.
      model: the network, for `model.apply(trained.variables, trained.recipe.preprocess(images), train=False)`.
      eval_step: compiled, see `steps.make_eval_step`.
    """

    config: ConfigDict
    recipe: Recipe
    class_names: tuple[str, ...]
    domains: tuple[str, ...] | None
    rows: Mapping[str, int]
    epoch: int
    state: steps.TrainState
    model: Model
    eval_step: Callable[[Any, Any, steps.Batch], steps.EvalOutput]

    def __repr__(self) -> str:
        of = f"{self.recipe.model_name}, {self.recipe.strategy_name}, epoch {self.epoch}"
        return f"Trained({of}; classes {', '.join(self.class_names)}; {self.recipe.image_size} px)"

    @property
    def variables(self) -> dict[str, Any]:
        """What `model.apply` takes."""
        return {"params": self.state.params, "batch_stats": self.state.batch_stats}

    def predict(
        self,
        images: np.ndarray | Sequence[str | Path] | str | Path,
        labels: np.ndarray | Sequence | None = None,
    ) -> Prediction:
        """Logits and maps of images of any size, brought to the model's size as in evaluation.

        Args:
          images: uint8 [n, H, W, channels], grey (1 channel) or RGB (3); or paths of image files; or one path.
          labels: [n], class index that counts as true in the maps; None: the predicted one of each image.

        Raises:
          DataError: an image that can't be read, of another dtype or shape; or not a label for each image.
        """
        source = open_images(images, self.recipe.data.channels, labels, len(self.class_names), self.recipe.data.bits)
        output = join_outputs(output for output, _ in self.outputs(source))
        probabilities = scipy.special.softmax(output.logits, axis=-1)
        return Prediction(output.logits, probabilities, output.true_map, output.false_map, output.difference)

    def outputs(self, source: Source, also: Also = lambda output, batch: ()) -> Iterator[tuple[Any, Any]]:
        """What the eval step says of every example of a source, see `outputs_of`."""
        return outputs_of(self.eval_step, self.state, self.recipe.read_for_evaluation(source), also)


def outputs_of(
    eval_step: Callable[[Any, Any, steps.Batch], Any],
    state: steps.TrainState,
    batches: Iterable[steps.Batch],
    also: Also = lambda output, batch: (),
) -> Iterator[tuple[Any, Any]]:
    """Runs the compiled eval step over batches that lie on the devices; every process has to.

    `also` says what else to fetch of a batch: arrays with a row per example, compiled by the caller if it computes.

    Yields:
      `(what the step says, what also gave)` of each batch as NumPy arrays, in order, without padding.
    """
    remaining = iter(batches)
    while True:
        with explain_out_of_memory("Lower config.evaluation.batch_size."):
            batch = next(remaining, None)
            if batch is None:
                return
            output = eval_step(state.params, state.batch_stats, batch)
            *found, mask = fetch((output, also(output, batch), batch["mask"]))
        yield tuple(jax.tree.map(lambda leaf, real=mask > 0: leaf[real], found))


def join_outputs(outputs: Iterable[Any]) -> Any:
    """Trees of arrays, one below the other."""
    return jax.tree.map(lambda *leaves: np.concatenate(leaves), *outputs)


class InitialState(NamedTuple):
    """The state of step 0, and JSON-able where its weights come from; None: from the seed alone.

    `origin` has `source`, what the config names; of a file its path `file` and its `sha256`, of a run its folder `run`,
    `step` and `epoch`; `head`, which is `kept` or `new`; and `fingerprint`, of the values taken, the same for the same
    values wherever they come from.
    """

    state: steps.TrainState
    origin: dict[str, Any] | None


def initial_state(experiment: Experiment) -> InitialState:
    """What training begins from: the weights that the recipe names, on top of random ones from its seed.

    Raises:
      WeightsError, StateDictError: weights that can't be had or don't fit, see `load_pretrained`; a run of another
        backbone, or, where its head is to be kept, of other classes.
      WorkdirError, CheckpointError: a run that can't be restored.
      ContractError: a network of one's own that is not what the maps need, see `models.check_contract`.
    """
    recipe, num_classes = experiment.recipe, len(experiment.dataset.class_names)
    if not recipe.weights:
        variables = experiment.random_variables()
        recipe.check_network(variables, num_classes)
        return InitialState(experiment.create_state(variables), None)
    run = find_workdir(recipe.weights, "config.model.weights")
    take = _take_from_run if is_run(run) or is_published(run) else _take_from_file
    loaded, origin = take(experiment)
    recipe.check_network(loaded, num_classes)
    taken = {name: {k: v for k, v in tree.items() if recipe.keep_head or k != "head"} for name, tree in loaded.items()}
    origin |= {"head": "kept" if recipe.keep_head else "new", "fingerprint": checksum_json(fingerprint_tree(taken))}
    return InitialState(experiment.create_state(loaded), {"source": recipe.weights, **origin})


def _take_from_file(experiment: Experiment) -> tuple[dict[str, Any], dict[str, Any]]:
    recipe = experiment.recipe
    if is_foreign(recipe.model_name):
        remedy = "leave the key empty, and load the weights in that function: a module is taken with its values"
        told = f"config.model.weights is {recipe.weights!r}, and {recipe.model_name} is a network of your own"
        raise WeightsError(f"{told}; {remedy}. A run of that network can be named.")
    file = find_weights(MODEL_CARDS[recipe.model_name], recipe.weights)
    variables = experiment.random_variables()
    loaded = load_pretrained(recipe.model_name, file, variables, keep_head=recipe.keep_head)
    return loaded, {"file": str(file.resolve()), "sha256": digest_file(file)}


def _take_from_run(experiment: Experiment) -> tuple[dict[str, Any], dict[str, Any]]:
    recipe, class_names = experiment.recipe, experiment.dataset.class_names
    run = find_workdir(recipe.weights, "config.model.weights")
    trained = restore(run)
    if trained.recipe.model_name != recipe.model_name:
        told = f"{run} holds a {trained.recipe.model_name}, and config.model.name is {recipe.model_name}"
        raise WeightsError(f"{told}: set --config.model.name={trained.recipe.model_name}, or take another run.")
    if not recipe.keep_head and "head" not in trained.state.params:
        told = f"{recipe.model_name} has no layer called `head`, so that none can be new"
        raise WeightsError(f"{told}: set --config.model.keep_head=True, or call the last layer so.")
    if recipe.keep_head and trained.class_names != class_names:
        theirs, ours = ", ".join(trained.class_names), ", ".join(class_names)
        remedy = "--config.model.keep_head=False takes a new head"
        if set(trained.class_names) == set(class_names):
            remedy = f'--config.data.labels="{trained.class_names}" gives the data its order, and {remedy}'
        raise WeightsError(
            f"the head of {run} is of the classes {theirs}, in this order; the data have {ours}. {remedy}."
        )
    if trained.recipe.preprocess.keywords != recipe.preprocess.keywords:
        told = lambda each: " and ".join(f"{name} {values}" for name, values in each.preprocess.keywords.items())
        logging.warning("%s was trained on images of %s; here they are %s.", run, told(trained.recipe), told(recipe))
    values = jax.device_get(trained.variables)  # from all devices: the new run may use others
    variables = experiment.random_variables()
    values = MODEL_CARDS[recipe.model_name].fit(values, variables)  # a ViT's, where the images have another size
    loaded = merge(values, variables, keep_head=recipe.keep_head, origin=str(run))
    return loaded, {"run": str(run.resolve()), "step": int(trained.state.step), "epoch": trained.epoch}


def describe_origin(origin: Mapping[str, Any], class_names: Sequence[str]) -> str:
    """What to tell a user of `InitialState.origin`; of a file's head also which output counts as which class."""
    head = "with their head" if origin["head"] == "kept" else "with a new head"
    if "run" in origin:
        return f"Weights: {origin['run']}, step {origin['step']} (epoch {origin['epoch']}), {head}."
    told = f"Weights: {origin['file']} (SHA-256 {origin['sha256'][:16]}...), {head}."
    if origin["head"] == "kept":
        order = ", ".join(f"{index} {name}" for index, name in enumerate(class_names))
        told += f"\nThe head's classes are taken to be {order}; if that is not their order, give --config.data.labels."
    return told


def find_workdir(name: str | Path, what: str = "--workdir") -> Path:
    """The folder of a run, or of a published model, from what a user calls it by, as `what`.

    That is the folder itself or the `checkpoints` in it, or `hf://owner/name[@revision]`, which is downloaded: see
    `published.fetch_published`, also for what it raises.
    """
    if on_hub(name):
        return fetch_published(name)
    path = local_path(name, what)
    return path.parent if path.name == "checkpoints" and is_run(path.parent) else path


def check_out(workdir: str | Path, out: str | Path | None) -> None:
    """Raises WorkdirError where nothing says where files are to go, and the model is one that nothing is written to."""
    if out is None and (on_hub(workdir) or is_published(local_path(workdir, "--workdir"))):
        raise WorkdirError(f"{workdir} is a published model, to which nothing is written: give a folder as --out.")


def restore(workdir: str | Path) -> Trained:
    """Restores the best checkpoint of a run, or a published model.

    Args:
      workdir: a run's folder, one that `launch/publish.py` wrote, or the place of such a one on the Hugging Face Hub,
        `hf://owner/name` or `hf://owner/name@revision`. A published model has no optimiser state.

    Raises:
      WorkdirError: the folder holds no run, or its config can't be read.
      CheckpointError: no checkpoint was finished there, or it is damaged.
      PublishedError: a published model can't be had, is damaged, or would run code of a stranger.
      NetworkError: the module of a network of one's own can't be imported, or is not what it was.
    """
    workdir = find_workdir(workdir)
    stored, published = load_config(workdir), is_published(workdir)
    config = ConfigDict(check_config(workdir, stored) if published else find_places(workdir, stored)).lock()
    try:
        recipe = resolve(config, make_placement(), untrained=True)
    except AttributeError as error:
        raise WorkdirError(f"{workdir / 'config.json'} is of another version of this project: {error}") from error
    except NetworkError:
        raise  # the config is sound; the user's module is not there, or another one now
    except ConfigError as error:
        raise WorkdirError(f"{workdir / 'config.json'} is damaged, or of another version: {error}") from error
    tell_changed_network(workdir, recipe.model_name)
    state, record = (_restore_published if published else _restore_checkpoint)(workdir, recipe)
    model = recipe.make_model(num_classes=len(record["class_names"]))
    return Trained(
        config=config,
        recipe=recipe,
        class_names=tuple(record["class_names"]),
        domains=None if record["domains"] is None else tuple(record["domains"]),
        rows=record["rows"],
        epoch=record["epoch"],
        state=state,
        model=model,
        eval_step=recipe.placement.compile_eval_step(steps.make_eval_step(model, recipe.preprocess)),
    )


def _restore_published(workdir: Path, recipe: Recipe) -> tuple[steps.TrainState, dict[str, Any]]:
    record = read_record(workdir)
    like = recipe.abstract_state(len(record["class_names"]))
    variables = read_variables(workdir, {"params": like.params, "batch_stats": like.batch_stats})
    step = jnp.asarray(record["step"], like.step.dtype)
    return recipe.placement.put_state(steps.TrainState(step=step, opt_state=(), **variables)), record


def _restore_checkpoint(workdir: Path, recipe: Recipe) -> tuple[steps.TrainState, dict[str, Any]]:
    def like(record: dict[str, Any]) -> steps.TrainState:
        _check_config(workdir, record["config"], recipe.stored)
        return recipe.placement.abstract_state(recipe.abstract_state(len(record["class_names"])))

    restored = None
    if (workdir / "checkpoints").is_dir():
        with Checkpoints(workdir, read_only=True) as checkpoints:
            restored = checkpoints.restore_best(like)
    if restored is None:
        script = "train.py" if recipe.epochs else "evaluate.py"
        raise CheckpointError(
            f"{workdir} has no best checkpoint: the run ended before its first validation. Continue it with "
            f"launch/{script} and the same config."
        )
    return restored


def open_own_data(trained: Trained, workdir: str | Path, accept_changed_data: bool = False) -> Dataset:
    """The data that a run was trained on, as its recipe names them.

    Raises DataError if they are broken, of other classes now, or, unless that is accepted, in anything others than
    those trained on: `data_record.check_same_data`. A published model comes without them: DataError names them.
    """
    if is_published(Path(workdir)):
        raise DataError([f"{workdir} was published without its images. {_describe_absent(read_record(Path(workdir)))}"])
    checks = Path(workdir) / CHECKS
    dataset = open_dataset(trained.recipe, checks)
    if tuple(dataset.class_names) != trained.class_names:
        now, then = ", ".join(dataset.class_names), ", ".join(trained.class_names)
        problem = f"the data of the run have classes {now} now; it was trained on {then}."
        raise DataError([f"{problem} Restore them, or give other data with --data."])
    domains = None if trained.domains is None else list(trained.domains)
    described = {"class_names": list(trained.class_names), "domains": domains, "rows": trained.rows}
    remedy = "give others with --data"
    if dataset.drawn:
        remedy += " (splits are drawn anew when images come or go: prepare --write_manifest keeps those of a later run)"
    now, name = record_data(dataset), trained.recipe.data.place
    check_same_data(Path(workdir), name, now, lambda: described, accept_changed_data, remedy)
    keep_checks(checks, dataset.checked)
    return dataset


def open_other_data(
    trained: Trained, workdir: Path, manifest: str | Path, splits: Sequence[str | None]
) -> list[OpenedSplit]:
    """Splits of another manifest than the run's, for its classes and read as its own data; see `DataRecipe.open_split`.

    What was found of the files is kept in the workdir, but not in a published model's. Raises DataError if they are
    broken, have other classes, or no such split.
    """
    manifest = local_path(manifest, "--data")
    checks = None if is_published(workdir) else workdir / OTHER_CHECKS
    known, data = load_outcomes(checks) if checks else None, trained.recipe.data
    opened = [data.open_split(manifest, split, trained.class_names, known) for split in splits]
    if checks:
        keep_checks(checks, {key: outcome for each in opened for key, outcome in each.checked.items()})
    return opened


def _describe_absent(record: Mapping[str, Any]) -> str:
    """What a published model was trained on, and what to evaluate or explain instead."""
    data, counts = record["data"], record["data"].get("splits") or {}
    sizes = ", ".join(f"{split['images']} {name}" for name, split in counts.items())
    own = f"It was trained on {data.get('name')} (data.source={data.get('source')}" + (f": {sizes})" if sizes else ")")
    return f"{own}. Give that or other data with the same classes by --data=MANIFEST.csv; explain takes --images too."


def choose_split(dataset: Dataset, split: str | None) -> str:
    """The split asked for; `test`, or `val` if there is no test, where none is. Raises DataError if it is not there."""
    split = split or ("test" if "test" in dataset.splits else "val")
    if split not in dataset.splits:
        raise DataError([f"no split {split!r} in these data; there are {', '.join(dataset.splits)}"])
    return split


def _check_config(workdir: Path, trained: Mapping[str, Any], config: Mapping[str, Any]) -> None:
    """Refuses a `config.json` that was changed since in more than speed and places of files."""
    differences = [
        line for key, line in config_differences(trained, config).items() if not key.endswith((*PLACES, "batch_size"))
    ]
    if differences:
        raise WorkdirError(
            f"{workdir / 'config.json'} is not the config that the checkpoints were trained with:\n"
            + "\n".join(differences).replace("there,", "in training,").replace("asked for", "in the file")
            + "\nSet these values back."
        )
