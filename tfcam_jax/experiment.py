"""From a config to the parts of a run: data, model, optimiser, strategy, compiled steps.

The one place that reads model, data and optimiser keys and hands them on as plain arguments.
"""

from __future__ import annotations

import dataclasses
import difflib
import functools
from collections.abc import Callable, Iterator
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from . import steps
from .data import SOURCES
from .data.human_maps import PLACEBOS, Smooth
from .data.pipeline import BALANCES, eval_batches, train_batches, watch_workers
from .data.protocol import ProtocolOptions
from .data.recipe import DataRecipe
from .data.source import Dataset, Source
from .data.transforms import Augment
from .devices.placement import MODES, Placement, PlacementError, make_placement
from .errors import ConfigError
from .metrics.classification import BETTER
from .models import MODEL_CARDS, MODELS, cam_size
from .models.weights import load_pretrained
from .optimizers import make_optimizer, make_schedule
from .strategies import make_strategy

BATCH_NORM = ("synchronized", "local")


@dataclasses.dataclass(frozen=True)
class Experiment:
    """What a config describes, built and ready to run.

    Attributes:
      dataset: the splits, validated.
      steps_per_epoch: training batches in an epoch.
      initialize: compiled; the model's random variables from a key.
      random_state: makes the state of step 0 from the seed alone; also what a checkpoint is restored like.
      initial_state: the same with the pretrained weights that the config names, if any.
      train_step: compiled; its state argument is donated.
      eval_step: compiled.
      train_epoch: `train_epoch(epoch, first_batch=0)`, this process's part of the batches of one epoch of training, on
        the host, the first ones left out where an epoch goes on in its middle.
      put_batch: starts such a batch's way to the devices and returns at once.
      eval_epoch: batches on the devices of all processes that hold each example of a split once, in order but for
        padding (`mask` 0, `index` -1).
    """

    dataset: Dataset
    steps_per_epoch: int
    initialize: Callable[[jax.Array], dict[str, Any]]
    random_state: Callable[[], steps.TrainState]
    initial_state: Callable[[], steps.TrainState]
    train_step: Callable[[steps.TrainState, steps.Batch], tuple[steps.TrainState, steps.StepMetrics]]
    eval_step: Callable[[Any, Any, steps.Batch], steps.EvalOutput]
    train_epoch: Callable[..., Iterator[steps.Batch]]
    put_batch: Callable[[steps.Batch], steps.Batch]
    eval_epoch: Callable[[Source], Iterator[steps.Batch]]


def build_experiment(
    config: ConfigDict, dataset: Dataset | None = None, programs: Experiment | None = None
) -> Experiment:
    """Builds everything that a config describes; validates the data.

    Args:
      config: as `configs/default.py` gives it.
      dataset: what `open_dataset` gives for this config, where it is open already.
      programs: an experiment whose config differs in the seed alone and which has as many steps in an epoch: its
        compiled functions serve here too.

    Raises:
      ConfigError: a value that names nothing or lies outside its range.
      DataError: images, maps or lists that can't be trained on.
    """
    check_values(config)
    placement = _placement(config)
    dataset = dataset or open_dataset(config)
    steps_per_epoch = -(-len(dataset.splits["train"]) // config.batch_size)
    tx = _optimizer(config, steps_per_epoch)
    image_size, preprocess = preprocessing(config)
    if programs:
        initialize, train_step, eval_step = programs.initialize, programs.train_step, programs.eval_step
    else:
        model = build_model(
            config, len(dataset.class_names), placement.axis_name, _batch_norm_groups(config, placement)
        )
        initialize = jax.jit(lambda key: steps.initialize(model, key, image_size))
        train_step = _compile_train_step(config, placement, model, tx, len(dataset.class_names))
        eval_step = placement.compile_eval_step(steps.make_eval_step(model, preprocess))
    variables = functools.partial(initialize, jax.random.key(config.seed))
    create_state = lambda variables: placement.put_state(steps.create_train_state(variables, tx))
    return Experiment(
        dataset=dataset,
        steps_per_epoch=steps_per_epoch,
        initialize=initialize,
        random_state=lambda: create_state(variables()),
        initial_state=lambda: create_state(_pretrained(config, variables())),
        train_step=train_step,
        eval_step=eval_step,
        train_epoch=lambda epoch, first_batch=0: watch_workers(
            train_batches(
                dataset.splits["train"],
                epoch=epoch,
                first_batch=first_batch,
                seed=config.seed,
                batch_size=config.batch_size,
                augment=Augment(**config.augment),
                balance=config.data.balance,
                **_reading(config),
            )
        ),
        put_batch=functools.partial(placement.put_train_batch, accumulate_steps=config.accumulate_steps),
        eval_epoch=functools.partial(read_for_evaluation, config, placement),
    )


def read_for_evaluation(config: ConfigDict, placement: Placement, source: Source) -> Iterator[steps.Batch]:
    """Batches that hold each example of a source once, in order but for padding, spread over the devices."""
    batches = watch_workers(eval_batches(source, batch_size=config.evaluation.batch_size, **_reading(config)))
    return map(placement.put_batch, batches)


def _reading(config: ConfigDict) -> dict[str, int]:
    """What reading for training and for evaluation have in common."""
    return {
        "image_size": preprocessing(config)[0],
        "num_threads": config.data.num_threads,
        "num_workers": config.data.num_workers,
        "shard_index": jax.process_index(),
        "shard_count": jax.process_count(),
    }


def _placement(config: ConfigDict) -> Placement:
    options = config.parallel
    try:
        return make_placement(options.mode, options.devices, options.shard_state)
    except PlacementError as error:
        raise ConfigError(f"config.{error}") from error


def _batch_norm_groups(config: ConfigDict, placement: Placement) -> int:
    return placement.num_devices if config.parallel.batch_norm == "local" else 1


def _compile_train_step(
    config: ConfigDict, placement: Placement, model: nn.Module, tx: Any, num_classes: int
) -> Callable[[steps.TrainState, steps.Batch], tuple[steps.TrainState, steps.StepMetrics]]:
    step = steps.make_train_step(
        model,
        tx,
        make_strategy(config.strategy, **config.guidance),
        preprocessing(config)[1],
        axis_name=placement.axis_name,
        accumulate_steps=config.accumulate_steps,
        gather=placement.gather,
        scatter=placement.scatter,
    )
    return placement.compile_train_step(step, abstract_state(config, num_classes))


def check_values(config: ConfigDict) -> None:
    """Refuses values that would fail late or do nothing sensible; looks at no data.

    Raises:
      ConfigError: names the key, the value and what is allowed.
    """
    tables: dict[str, tuple[str, Any]] = {
        "data.source": (config.data.source, SOURCES),
        "model.name": (config.model.name, MODELS),
        "evaluation.select_by": (config.evaluation.select_by, BETTER),
        "data.channels": (config.data.channels, (1, 3)),
        "model.dtype": (config.model.dtype, ("float32", "bfloat16")),
        "parallel.mode": (config.parallel.mode, MODES),
        "parallel.batch_norm": (config.parallel.batch_norm, BATCH_NORM),
        "data.balance": (config.data.balance, BALANCES),
        "data.maps.placebo": (config.data.maps.placebo, PLACEBOS),
    }
    for key, (value, known) in tables.items():
        if value not in known:
            nearest = difflib.get_close_matches(str(value), [str(k) for k in known], n=1)
            hint = f" Did you mean {nearest[0]!r}?" if nearest else ""
            raise ConfigError(f"config.{key} is {value!r}.{hint} Known: {', '.join(map(str, known))}.")
    for key, value in {
        "epochs": config.epochs,
        "batch_size": config.batch_size,
        "accumulate_steps": config.accumulate_steps,
        "data.image_size": preprocessing(config)[0],
        "evaluation.batch_size": config.evaluation.batch_size,
        "log_every_steps": config.log_every_steps,
        "checkpoint_every_steps": 1 if config.checkpoint_every_steps is None else config.checkpoint_every_steps,
        "grace_seconds": config.grace_seconds,
    }.items():
        if value < 1:
            raise ConfigError(f"config.{key} is {value}; it must be at least 1.")
    if config.accumulate_steps > config.batch_size:
        raise ConfigError(
            f"config.accumulate_steps is {config.accumulate_steps}: a batch of {config.batch_size} examples "
            "(config.batch_size) has not as many parts."
        )
    if config.data.source == "manifest" and not config.data.manifest:
        raise ConfigError("config.data.manifest is empty: give --config.data.manifest=PATH of the CSV.")
    try:  # built again once the data are known; here for what they say of their options
        ProtocolOptions(**config.data.protocol)
        Smooth(config.data.maps.blur, config.data.maps.threshold)
        make_strategy(config.strategy, **config.guidance)
        _optimizer(config, steps_per_epoch=1)
        cam_size(build_model(config, num_classes=2), preprocessing(config)[0])
    except (ValueError, TypeError) as error:
        raise ConfigError(str(error)) from error


def open_dataset(config: ConfigDict) -> Dataset:
    """Opens and validates the data that a config names, split by its protocol, with the maps it asks for."""
    return arrange_dataset(open_source(config), config)


def open_source(config: ConfigDict) -> Dataset:
    """The same as the owner splits it, with the maps as they are."""
    return data_recipe(config).open()


def arrange_dataset(dataset: Dataset, config: ConfigDict) -> Dataset:
    """Splits what `open_source` gave by the config's protocol and gives it the maps that the config asks for."""
    return data_recipe(config).arrange(dataset)


def data_recipe(config: ConfigDict) -> DataRecipe:
    """What a config says of its data."""
    maps = config.data.maps
    return DataRecipe(
        source=config.data.source,
        options=source_options(config),
        channels=config.data.channels,
        protocol=dict(config.data.protocol),
        blur=maps.blur,
        threshold=maps.threshold,
        placebo=maps.placebo,
        seed=config.seed,
    )


def source_options(config: ConfigDict) -> dict[str, Any]:
    """Keyword arguments, but for `channels`, of the source that a config names."""
    data = config.data
    if data.source == "demo":
        return dict(data.demo)
    options = (
        {"manifest": data.manifest, "labels": data.labels or ()} if data.source == "manifest" else data[data.source]
    )
    reading = {key: data.maps[key] for key in ("combine", "sigma", "pixels_per_degree")}
    chosen = {**options, **reading, "skip_unreadable": data.skip_unreadable}
    # A config that was stored as JSON has lists where it had tuples.
    return {key: tuple(value) if isinstance(value, list | tuple) else value for key, value in chosen.items()}


def build_model(
    config: ConfigDict, num_classes: int, axis_name: str | None = None, batch_norm_groups: int = 1
) -> nn.Module:
    """The model that a config names, for `num_classes` classes; the other arguments as in `models.Backbone`."""
    return MODELS[config.model.name](
        num_classes=num_classes,
        dtype=jnp.dtype(config.model.dtype),
        freeze_batch_norm=config.model.freeze_batch_norm,
        rematerialize=config.model.rematerialize,
        axis_name=axis_name,
        batch_norm_groups=batch_norm_groups,
    )


def preprocessing(config: ConfigDict) -> tuple[int, Callable[[jax.Array], jax.Array]]:
    """Image size, and the function from uint8 images to the model's input; what is unset is the model's own."""
    card = MODEL_CARDS[config.model.name]
    mean, std = tuple(config.data.mean or card.mean), tuple(config.data.std or card.std)
    return config.data.image_size or card.image_size, functools.partial(steps.standardize, mean=mean, std=std)


def _pretrained(config: ConfigDict, variables: dict[str, Any]) -> dict[str, Any]:
    if not config.model.weights:
        return variables
    return load_pretrained(config.model.name, config.model.weights, variables, keep_head=config.model.keep_head)


def abstract_state(config: ConfigDict, num_classes: int) -> steps.TrainState:
    """Shapes and dtypes of the state that a run of this config saves; needs no data."""
    model, tx = build_model(config, num_classes), _optimizer(config, steps_per_epoch=1)
    initialize = lambda: steps.initialize(model, jax.random.key(config.seed), preprocessing(config)[0])
    return jax.eval_shape(lambda: steps.create_train_state(initialize(), tx))


def _optimizer(config: ConfigDict, steps_per_epoch: int) -> Any:
    options = config.optimizer
    schedule = make_schedule(
        options.schedule,
        options.learning_rate,
        steps_per_epoch=steps_per_epoch,
        epochs=config.epochs,
        step_epochs=options.step_epochs,
        step_factor=options.step_factor,
        warmup_epochs=options.warmup_epochs,
    )
    return make_optimizer(
        options.name,
        schedule,
        momentum=options.momentum,
        weight_decay=options.weight_decay,
        clip_norm=options.clip_norm,
    )
