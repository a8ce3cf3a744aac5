"""A config resolved once into a `Recipe` of plain values, and the parts of a run that are built from it.

Nothing behind this module asks the config for a key: data, models, steps, training and evaluation take the recipe.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import math
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl import logging

from . import steps
from .data.checks.outcomes import Outcome, load_outcomes, outcomes_json
from .data.decoded import CHECKS, FOLDER, Kept, keep_decoded
from .data.kept_features import bytes_of_maps
from .data.listing import READING
from .data.paths import local_path
from .data.pipeline import Batch, eval_batches, train_batches, watch_workers
from .data.protocol import ProtocolOptions
from .data.recipe import DataRecipe
from .data.source import Dataset, Source
from .data.transforms import IDENTITY, Augment, Resize
from .devices.distributed import is_first
from .devices.memory import device_memory, host_memory
from .devices.placement import Placement, make_placement
from .errors import ConfigError, check_known
from .models import Model, models_with
from .models.contract_check import check_contract
from .models.frozen import Frozen, TrainedPart, apply_frozen
from .models.initialization import Initialization
from .models.lookup import NamedNetwork, find_network, is_foreign
from .models.resolution import describe_cam, finer
from .models.tasks import one_logit
from .optimizers import make_optimizer, make_schedule
from .run.config_values import MOST_STEPS, check_together, check_values
from .run.files import WorkdirError, write_text
from .run.kept_step import keep_trace
from .strategies import (
    STRATEGIES,
    alpha_of,
    check_places,
    make_strategy,
    reads_human_maps,
    reads_images,
    reads_mirrored,
    remaining_guidance,
    strategy_options,
)
from .terms import Strategy

if TYPE_CHECKING:
    ConfigDict = Any  # its keys are known at run time alone
else:
    from ml_collections import ConfigDict

_LOOP = ("seed", "epochs", "batch_size", "accumulate_steps")
_LOOP += ("log_every_steps", "log_gradient_norms", "checkpoint_every_steps", "grace_seconds")
_OF_MODEL = ("head_init", "dropout", "rematerialize")
# What only some networks have, and the value that asks for nothing.
_OF_SOME_MODELS = {"freeze_batch_norm": False, "batch_norm_momentum": 0.9, "pool": None, "output_stride": 32}
_OF_SCHEDULE = ("learning_rate", "step_epochs", "step_factor", "warmup_epochs")
_OF_OPTIMIZER = ("name", "momentum", "weight_decay", "clip_norm")

# Outcomes of a folder's lists, for each of the list that is opened.
_MOST_OTHERS = 10
# A batch of so many times the images of training has little in it.
_MOST_PADDING = 16


@dataclasses.dataclass(frozen=True)
class Recipe:
    """What a config asks for, checked. A field that is not explained here is the config's key of that name.

    Attributes:
      stored: the whole config as JSON has it, kept with a run and compared with it.
      make_network: from `num_classes` and further fields of `models.Network`.
      make_model: the same, of one logit where that is asked for.
      guidance: the strategy's options, those that are unset as None.
      alpha: the weight of cross-entropy in the loss, with a schedule at its beginning; None where there is nothing else
        in it, or `loss_share`.
      loss_share: each step finds alpha from its losses, see `strategies.share_losses`.
      reads_maps: human maps, or placebos in their place, are to enter the loss.
      image_size: pixels a side.
      map_size: places a side that training's maps are resized to alone; None: with the image. See `Resize`.
      cam_side: places a side of the CAM at that size.
      preprocess: from uint8 images to the model's float32 input.
      make_optimizer: from the number of steps in an epoch.
      local_batch_norm: batch statistics are those of each device's part.
      frozen: what `model.train_from` freezes; None: nothing.
      kept_megabytes: of its features at most, with the human maps, in memory.
      cache_megabytes: of decoded images at most, on the disk.
      cache_folder: where they are kept; None: the data are none of files, or nothing is kept.
    """

    stored: Mapping[str, Any]
    seed: int
    epochs: int
    batch_size: int
    accumulate_steps: int
    log_every_steps: int
    log_gradient_norms: bool
    checkpoint_every_steps: int | None
    grace_seconds: float
    select_by: str
    attack_detection: str
    eval_batch_size: int
    num_threads: int
    num_workers: int
    balance: str
    strategy_name: str
    guidance: Mapping[str, Any]
    alpha: float | None
    loss_share: bool
    reads_maps: bool
    model_name: str
    make_network: Callable[..., Model]
    make_model: Callable[..., Model]
    weights: str
    keep_head: bool
    image_size: int
    resize_through: tuple[int, ...]
    map_size: int | None
    cam_side: int
    preprocess: functools.partial[jax.Array]
    make_optimizer: Callable[[int], optax.GradientTransformation]
    augment: Augment
    data: DataRecipe
    placement: Placement
    local_batch_norm: bool
    train_from: str
    frozen: Frozen | None
    kept_megabytes: int
    cache_megabytes: int
    cache_folder: Path | None

    @property
    def frozen_modules(self) -> frozenset[str]:
        """Names of the modules whose parameters and statistics stay as they are."""
        return self.frozen.modules if self.frozen else frozenset()

    @property
    def views(self) -> dict[str, int]:
        """How many views there are of each image of a split, where training only mirrors them."""
        return {"train": 2 if self.augment.flip or self.mirrored else 1, "val": 1, "test": 1}

    @property
    def mirrored(self) -> bool:
        """Whether the loss looks at each image's mirror image too."""
        return reads_mirrored(self.strategy_name, self.alpha)

    @property
    def needs_images(self) -> str:
        """Why each step needs images, though a part of the network is frozen; "": its features would do."""
        if self.augment.of_pixels:
            return f"augment.{self.augment.of_pixels[0]} makes other pixels of an image each time"
        if reads_images(self.strategy_name, self.alpha):
            return f"strategy {self.strategy_name} asks for the gradient by the image"
        if self.num_workers:
            return f"each of {self.num_workers} processes that read (data.num_workers) would need them"
        if jax.process_count() > 1:
            return "each of several processes would need those of all images"
        return ""

    def why_not_kept(self, dataset: Dataset) -> str:
        """Why features of the frozen part can't be kept in memory, so that each step computes them; "": they can."""
        if self.needs_images:
            return self.needs_images
        needed = math.ceil(self.bytes_kept(dataset) / 2**20)
        if needed > self.kept_megabytes:
            return f"{needed:,} MiB would be needed, data.kept_megabytes is {self.kept_megabytes:,}"
        return ""

    @property
    def of_features(self) -> tuple[Any, ...]:
        """What decides the frozen part's features beside its weights and the choice of images."""
        data = self.data.source, dict(self.data.options), self.data.channels
        sizes = self.image_size, self.resize_through, self.preprocess.keywords
        of_model = self.model_name, self.train_from, *(self.stored["model"][key] for key in ("dtype", "output_stride"))
        return of_model, data, sizes, self.eval_batch_size

    def bytes_kept(self, dataset: Dataset) -> int:
        """Memory of the frozen part's features of a data set, and of its human maps."""
        of_image = self.frozen.bytes_of_image if self.frozen else 0
        as_they_are = Resize(self.image_size, self.resize_through), IDENTITY
        of_maps = lambda split: (self.training_resize, self.augment) if split == "train" else as_they_are
        return sum(
            len(source) * self.views[split] * of_image + bytes_of_maps(source, *of_maps(split))
            for split, source in dataset.splits.items()
        )

    def describe_cam(self) -> str:
        """How fine the CAM is, and what would make it finer, in a line."""
        return describe_cam(self.model_name, self.image_size, self.cam_side, self.stored["model"]["output_stride"])

    @property
    def training_resize(self) -> Resize:
        """How training's images and maps come to their size: maps travel at the CAM's places where those will do."""
        places = self.image_size if reads_images(self.strategy_name, self.alpha) else self.cam_side
        return Resize(self.image_size, self.resize_through, self.map_size, places)

    @property
    def kept_decoded(self) -> Kept:
        """What is the same of an image and its map whenever they are read, whatever is drawn."""
        uncropped = None if self.augment.crop else self.image_size
        first = self.resize_through[0] if self.resize_through else uncropped
        changed = self.data.blur or self.data.threshold or self.data.placebo != "none"  # at the size of their files
        return Kept(first, None if changed or self.map_size else first)

    @property
    def unmarked_classes(self) -> tuple[str, ...]:
        """Names of the classes whose images without a human map are guided too, see `strategies.guide_unmarked`."""
        return tuple(self.guidance["unmarked_classes"] or ())

    def strategy_for(self, class_names: Sequence[str]) -> Strategy:
        """The strategy for data of these classes. Raises ConfigError where its options name one that is not there."""
        for name in self.unmarked_classes:
            check_known("one of config.guidance.unmarked_classes", name, class_names)
        indices = tuple(class_names.index(name) for name in self.unmarked_classes)
        return make_strategy(self.strategy_name, **{**self.guidance, "unmarked_classes": indices or None})

    def alpha_at(self, total_steps: int) -> Callable[[int], float] | None:
        """The weight of cross-entropy by the number of steps that are done, where a schedule changes it or the loss has
        more terms than one beside it; else None.
        """
        alpha, schedule = self.alpha, self.guidance["schedule"] or "fixed"
        if alpha is None or (schedule == "fixed" and not self.unmarked_classes):
            return None
        # As the step on the device has it, in float32.
        done = lambda step: np.float32(step) / np.float32(total_steps)
        remaining = lambda step: remaining_guidance(schedule, self.guidance["schedule_share"], done(step))
        return lambda step: float(1 - (1 - alpha) * remaining(step))

    def abstract_state(self, num_classes: int) -> steps.TrainState:
        """Shapes and dtypes of the state that a run saves; needs no data."""
        variables, tx = self.initialization(num_classes).abstract, self.make_optimizer(1)
        return jax.eval_shape(lambda given: steps.create_train_state(given, tx, self.frozen_modules), variables)

    def initialization(self, num_classes: int) -> Initialization:
        """The model's variables at first."""
        return Initialization(self.make_model(num_classes=num_classes), self.image_size)

    def model_for_training(self, num_classes: int) -> Model:
        """The model as the devices need it. Raises ConfigError where a foreign one does not fit them."""
        groups = {"batch_norm_groups": self.placement.num_devices} if self.local_batch_norm else {}
        return self.make_model(num_classes=num_classes, axis_name=self.placement.axis_name, **groups)

    def check_network(self, variables: dict[str, Any], num_classes: int) -> None:
        """Raises ContractError where a foreign network, with these variables, breaks the contract."""
        if is_foreign(self.model_name):
            options = {"image_size": self.image_size, "num_classes": num_classes, "name": self.model_name}
            model = self.make_model(num_classes=num_classes)
            logging.info("%s: %s", self.model_name, check_contract(model, variables, **options))

    def read_for_evaluation(self, source: Source) -> Iterator[steps.Batch]:
        """Batches that hold each example of a source once, in order but for padding, spread over the devices."""
        batches = eval_batches(source, batch_size=self.eval_batch_size, **self._reading())
        return map(self.placement.put_batch, watch_workers(batches))

    def read_for_training(self, source: Source, epoch: int, first_batch: int = 0) -> Iterator[Batch]:
        """This process's part of the batches of one epoch, on the host, without the first ones; read from now on."""
        of_batches = ("seed", "batch_size", "map_size", "augment", "balance", "mirrored")
        options = {name: getattr(self, name) for name in of_batches}
        options["places"] = self.training_resize.places
        batches = train_batches(source, epoch=epoch, first_batch=first_batch, **options, **self._reading())
        batches.start_prefetch()
        return watch_workers(batches)

    def _reading(self) -> dict[str, Any]:
        return {
            "image_size": self.image_size,
            "resize_through": self.resize_through,
            "num_threads": self.num_threads,
            "num_workers": self.num_workers,
            "shard_index": jax.process_index(),
            "shard_count": jax.process_count(),
        }


def resolve(config: ConfigDict, placement: Placement | None = None, *, untrained: bool = False) -> Recipe:
    """Checks a config and unpacks it. Looks at no data.

    Args:
      config: as `configs/default.py` gives it.
      placement: devices to use in place of those that the config asks for.
      untrained: nothing is to be trained by it: take 0 epochs too, which evaluate a network as it comes
        (`training.import_network`), and what would do nothing in training.

    Raises:
      ConfigError: a key that nothing reads, or a value that would fail late or do nothing sensible; names the key and
        what is allowed.
    """
    if not hasattr(config, "to_json"):
        what = f"config is a {type(config).__name__}, not an ml_collections.ConfigDict"
        raise ConfigError(f"{what}; configs/*.py make one: `from configs import manifest; manifest.get_config()`")
    values = config.to_dict()
    check_values(values)
    check_together(values, untrained)
    stored, network = config_json(config), find_network(config.model.name)
    image_size = network.default("image_size") if config.data.image_size is None else config.data.image_size
    mean, std = (tuple(config.data[key] or network.default(key)) for key in ("mean", "std"))
    if is_foreign(config.model.name):  # its module may say otherwise one day, and a run keeps what it was trained with
        stored["data"] |= {"image_size": image_size, "mean": list(mean), "std": list(std)}
    of_model = {"dtype": jnp.dtype(config.model.dtype), **{key: config.model[key] for key in _OF_MODEL}}
    of_model |= _of_some_models(config, network)
    _check_weights(config, untrained, network, of_model)
    seen = network.look(image_size, **of_model)
    cam_side = seen.cam_side
    _check_hooked(config, seen.is_hooked)
    of_model |= {"train_from": config.model.train_from} if config.model.train_from else {}
    frozen = network.freeze(image_size, **of_model) if config.model.train_from else None
    guidance = _take(config.guidance, _guidance_options())
    # Made again once the classes are known, by their indices; here for what it says of its options.
    indices = tuple(range(len(config.guidance.unmarked_classes or ()))) or None
    make_strategy(config.strategy, **guidance | {"unmarked_classes": indices})
    alpha = alpha_of(config.strategy, config.guidance.alpha, config.guidance.weighting)
    _check_places(config, image_size, cam_side, alpha)
    if coarse := [side for side in config.data.resize_through if side < cam_side]:
        raise ConfigError(
            f"config.data.resize_through is {tuple(config.data.resize_through)}: an image of {coarse[0]} px a side has "
            f"fewer pixels than the CAM has places ({cam_side} a side). Give sides of at least config.data.image_size."
        )
    devices = _take(config.parallel, ("mode", "devices", "shard_state"))
    make_network = functools.partial(network.make, **of_model)
    recipe = Recipe(
        **{name: config[name] for name in _LOOP},
        **{name: config.data[name] for name in ("num_threads", "num_workers", "balance")},
        stored=stored,
        select_by=config.evaluation.select_by,
        attack_detection=config.evaluation.attack_detection,
        eval_batch_size=config.evaluation.batch_size,
        strategy_name=config.strategy,
        guidance=guidance,
        alpha=alpha,
        loss_share=config.guidance.weighting == "loss_share",
        reads_maps=reads_human_maps(config.strategy, alpha) or config.data.maps.placebo != "none",
        model_name=config.model.name,
        make_network=make_network,
        make_model=functools.partial(one_logit, make_network) if config.model.one_logit else make_network,
        weights=config.model.weights,
        keep_head=config.model.keep_head,
        image_size=image_size,
        resize_through=Resize(image_size, tuple(config.data.resize_through)).through,
        map_size=cam_side if config.data.maps.resize == "straight" else None,
        cam_side=cam_side,
        preprocess=functools.partial(steps.standardize, mean=mean, std=std),
        make_optimizer=_optimizer(config),
        augment=_augment(config),
        data=_data_recipe(config),
        placement=placement or make_placement(**devices),
        local_batch_norm=config.parallel.batch_norm == "local",
        train_from=config.model.train_from,
        frozen=frozen,
        kept_megabytes=config.data.kept_megabytes,
        cache_megabytes=config.data.cache_megabytes,
        cache_folder=_cache_folder(config),
    )
    if not untrained:
        _check_memory(recipe, seen.largest)
    # Made again once the data are known; here for what they say of their options.
    recipe.make_optimizer(1)
    recipe.model_for_training(2)
    return recipe


def _guidance_options() -> list[str]:
    """Those of all strategies, each once."""
    return list(dict.fromkeys(option for name in STRATEGIES for option in strategy_options(name)))


def _take(section: ConfigDict, names: Iterable[str]) -> dict[str, Any]:
    return {name: section[name] for name in names}


def _fields(owner: type) -> list[str]:
    return [field.name for field in dataclasses.fields(owner)]


def config_json(config: ConfigDict) -> dict[str, Any]:
    """A config as JSON has it: tuples are lists."""
    return json.loads(config.to_json())


def _of_some_models(config: ConfigDict, network: NamedNetwork) -> dict[str, Any]:
    """The settings that this network has and others do not; ConfigError for one that would do nothing here."""
    given = {key: config.model[key] for key, nothing in _OF_SOME_MODELS.items() if config.model[key] != nothing}
    known = network.settings
    if known is None:  # one that others wrote says so itself
        return given
    for key, value in given.items():
        if key not in known:
            why = {
                "pool": "it pools by the mean alone",
                "output_stride": f"its strides are fixed, those of {', '.join(models_with(key))} are not",
            }.get(key, "it has no BatchNorm")
            unset = "leave it unset" if key == "pool" else f"leave it at {_OF_SOME_MODELS[key]}"
            raise ConfigError(f"config.model.{key} is {value}, which does nothing for {network.name}: {why}; {unset}.")
    if config.parallel.batch_norm == "local" and "batch_norm_groups" not in known:
        raise ConfigError(
            f"config.parallel.batch_norm is local, which does nothing for {network.name}: it has no BatchNorm; leave "
            "it at synchronized."
        )
    return given


def _check_hooked(config: ConfigDict, is_hooked: bool) -> None:
    if config.guidance.cam_features == "hooked" and config.model.train_from == "head":
        raise ConfigError(
            "config.guidance.cam_features is hooked, a tensor that config.model.train_from=head freezes: leave it "
            "unset, or train from an earlier part."
        )
    if config.guidance.cam_features == "hooked" and not is_hooked:
        raise ConfigError(
            f"config.guidance.cam_features is hooked, and {config.model.name} has no such tensor; leave it unset."
        )


def _check_weights(config: ConfigDict, untrained: bool, network: NamedNetwork, of_model: dict[str, Any]) -> None:
    """Without training there must be a network, and its head; and what is to be kept must come from somewhere."""
    if config.epochs == 0 and not untrained:
        raise ConfigError(
            "config.epochs is 0; it must be at least 1 to train. To evaluate or explain a network as it "
            "comes: launch/evaluate.py or launch/explain.py with --config, --config.model.weights=FILE, "
            "--config.model.keep_head=True and a new --workdir."
        )
    kept = [key for key in ("keep_head", "freeze_batch_norm", "train_from") if config.model[key] and not untrained]
    if config.model.weights:
        if config.epochs == 0 and not config.model.keep_head:
            raise ConfigError(
                "config.model.keep_head is False: nothing is trained here, so a new head would be random. Set "
                "--config.model.keep_head=True to take that of the weights."
            )
    elif (config.epochs == 0 or kept) and not network.brings_values(**of_model):
        keeps = f"config.model.{kept[0]} would keep random values" if kept else ""
        raise ConfigError(
            f"config.model.weights is empty: {keeps or 'nothing is trained here, so the weights would be random'}. "
            "Give the path of a .safetensors or .pth file, or of a run; a network of your own may bring its values."
        )


def _check_places(config: ConfigDict, image_size: int, cam_side: int, alpha: float | None) -> None:
    try:
        check_places(config.strategy, alpha, cam_side**2)
    except ConfigError as error:
        remedy = finer(config.model.name, image_size, cam_side, config.model.output_stride)
        raise ConfigError(f"config.data.image_size is {image_size}: {error} Take {remedy}.") from error


def _check_memory(recipe: Recipe, largest: int) -> None:
    """Raises ConfigError for a batch that can't fit: of what it needs at least, the batch, its floats, one activation.

    What is needed besides depends on the network and on XLA, and is left to the try.
    """
    size, devices = recipe.image_size, recipe.placement.mesh.local_devices
    stored = size**2 * recipe.data.channels
    of_map = {"batch_size": 2 * recipe.training_resize.map_side**2, "evaluation.batch_size": 4 * size**2}
    computed = 4 * 3 * size**2 + largest
    of_host, of_device = host_memory(), device_memory(devices)
    for key, rows, parts in (
        ("batch_size", recipe.batch_size, recipe.accumulate_steps),
        ("evaluation.batch_size", recipe.eval_batch_size, 1),
    ):
        on_device = -(-rows // recipe.placement.num_devices)
        of_image = stored + of_map[key]
        device = on_device * of_image + -(-on_device // parts) * computed
        host = -(-rows // jax.process_count()) * of_image + (0 if of_device else len(devices) * device)
        for place, needed, there in (("the host", host, of_host), ("a device", device, of_device)):
            if there and needed > there:
                parted = "" if parts > 1 or "." in key else ", or work it through in parts (config.accumulate_steps)"
                raise ConfigError(
                    f"config.{key} is {rows}, of images of {size} px (config.data.image_size): at least "
                    f"{needed / 2**30:.1f} GiB, and {place} has {there / 2**30:.1f} GiB. Lower one of them{parted}."
                )


def _augment(config: ConfigDict) -> Augment:
    options = _take(config.augment, _fields(Augment))
    options["map_blur"] = tuple(options["map_blur"])  # a list in a config that was stored as JSON
    return Augment(**options)


def _optimizer(config: ConfigDict) -> Callable[[int], optax.GradientTransformation]:
    options, of_schedule = _take(config.optimizer, _OF_OPTIMIZER), _take(config.optimizer, _OF_SCHEDULE)
    schedule = functools.partial(make_schedule, config.optimizer.schedule, epochs=config.epochs, **of_schedule)
    return lambda steps_per_epoch: make_optimizer(schedule=schedule(steps_per_epoch=steps_per_epoch), **options)


def _data_recipe(config: ConfigDict) -> DataRecipe:
    data, maps = config.data, config.data.maps
    if data.source == "manifest" and not data.manifest:
        raise ConfigError("config.data.manifest is empty: give --config.data.manifest=PATH of the CSV.")
    if data.source == "folders" and not data.folders.images:
        wanted = "--config.data.folders.images=FOLDER, which has a folder for each class"
        raise ConfigError(f"config.data.folders.images is empty: give {wanted}.")
    options = {"manifest": data.manifest} if data.source == "manifest" else data[data.source]
    if data.source in ("manifest", "folders"):
        options = {**options, "labels": data.labels or (), "to_train": config.epochs > 0}
    own = {"bits": data.bits, "columns": {meaning: name for meaning, name in maps.columns.items() if name}}
    reading = {key: own[key] if key in own else maps[key] for key in READING}
    reading["skip_unreadable"] = data.skip_unreadable
    if data.source != "demo":
        options = {**options, **reading}
    return DataRecipe(
        source=data.source,
        # A config that was stored as JSON has lists where it had tuples.
        options={key: tuple(value) if isinstance(value, list) else value for key, value in dict(options).items()},
        channels=data.channels,
        protocol=_take(data.protocol, _fields(ProtocolOptions)),
        **{key: maps[key] for key in ("predicted", "share", "share_seed", "blur", "threshold", "placebo")},
        seed=config.seed,
    )


def _cache_folder(config: ConfigDict) -> Path | None:
    """Where decoded images are kept: in a folder of its own beside the manifest, or in the folder of images."""
    data = config.data
    beside = {"manifest": lambda: Path(data.manifest).parent, "folders": lambda: Path(data.folders.images)}
    if not data.cache_megabytes or data.source not in beside:
        return None
    return local_path(data.cache_dir or beside[data.source]() / FOLDER, "config.data.cache_dir")


def open_dataset(recipe: Recipe, checks: Path | None = None, keep: bool = False) -> Dataset:
    """`open_source`, split by the recipe's protocol, with the maps that it asks for."""
    return recipe.data.arrange(open_source(recipe, checks, keep))


def open_source(recipe: Recipe, checks: Path | None = None, keep: bool = False, told: Collection[str] = ()) -> Dataset:
    """Opens and validates the recipe's data, as their owner splits them, with the maps as they are.

    The files `checks` and, of what is kept decoded, `CHECKS` say which files were found sound before; without them all
    are looked at. `keep`: images are read as they were kept decoded, and kept so if they were not; they then have the
    size that they are brought to first. Raises DataError for images, maps or lists that can't be used; what was
    guessed, drawn or left out is logged, unless it is among `told`.
    """
    shared = recipe.cache_folder and recipe.cache_folder / CHECKS
    earlier = load_outcomes(shared) if shared else {}
    dataset = recipe.data.open(earlier | (load_outcomes(checks) if checks else {}))
    for note in named_notes(dataset) if is_first() else ():
        if note not in told:
            logging.warning("%s", note)
    if keep and shared:
        dataset = keep_decoded(dataset, recipe.kept_decoded, shared.parent, recipe.cache_megabytes, write=is_first())
        if shared.parent.is_dir():
            keep_checks(shared, _with_others(earlier, dataset.checked))
    return dataset


def named_notes(dataset: Dataset) -> list[str]:
    """What a user should know of how the data were taken, each line under their name."""
    return [f"{dataset.name}: {note}" for note in dataset.notes]


def _with_others(earlier: Mapping[str, Outcome], checked: Mapping[str, Outcome]) -> dict[str, Outcome]:
    """Outcomes with those of other lists, while they are not many more: of files that changed nobody asks again."""
    both = {**earlier, **checked}
    return both if len(both) <= _MOST_OTHERS * len(checked) else dict(checked)


def keep_checks(checks: Path, checked: Mapping[str, Outcome]) -> None:
    """Keeps what opening the data showed, for `open_source`; in one process, and only where it says something new.

    A folder that can't be written to is a warning: the next start then looks at every file again.
    """
    if not is_first() or not checked or load_outcomes(checks) == checked:
        return
    try:
        write_text(checks, outcomes_json(checked))
    except WorkdirError as error:
        logging.warning("%s The next start checks all images again.", error)


Keep = Callable[[Any, Callable[[], Any]], Any]


def _make_anew(key: Any, make: Callable[[], Any]) -> Any:
    return make()


class OnFeatures(NamedTuple):
    """Programs for a network whose first part is frozen; compiled when they are first called.

    Attributes:
      features: from parameters, batch statistics and a batch of images to the frozen part's features, a row per image.
      train_step, eval_step: `Experiment`'s, of batches whose images are such features.
    """

    features: Callable[[Any, Any, steps.Batch], Any]
    train_step: Callable[[steps.TrainState, steps.Batch], tuple[steps.TrainState, steps.StepMetrics]]
    eval_step: Callable[[Any, Any, steps.Batch], steps.EvalOutput]


@dataclasses.dataclass(frozen=True)
class Experiment:
    """What a recipe describes, built and ready to run.

    Attributes:
      dataset: the splits, validated.
      initialize: the model's random variables from a key.
      create_state: makes the state of step 0 from the model's variables.
      train_step: compiled, like `eval_step`; its state argument is donated.
      eval_epoch: see `Recipe.read_for_evaluation`.
      on_features: the same steps on kept features, where a part of the network is frozen.
      keep: `keep(key, make)` is `make()`, or what an earlier run with an equal key made.
    """

    recipe: Recipe
    dataset: Dataset
    steps_per_epoch: int
    initialize: Callable[[jax.Array], dict[str, Any]]
    create_state: Callable[[dict[str, Any]], steps.TrainState]
    train_step: Callable[[steps.TrainState, steps.Batch], tuple[steps.TrainState, steps.StepMetrics]]
    eval_step: Callable[[Any, Any, steps.Batch], steps.EvalOutput]
    eval_epoch: Callable[[Source], Iterator[steps.Batch]]
    on_features: OnFeatures | None = None
    keep: Keep = _make_anew

    def random_variables(self) -> dict[str, Any]:
        """The model's variables from the seed alone."""
        return self.initialize(jax.random.key(self.recipe.seed))

    def random_state(self) -> steps.TrainState:
        """The state of step 0 from the seed alone."""
        return self.create_state(self.random_variables())

    def abstract_state(self) -> steps.TrainState:
        """What a checkpoint is restored like: shapes, dtypes and places of the state."""
        return self.recipe.placement.abstract_state(self.recipe.abstract_state(len(self.dataset.class_names)))

    def train_epoch(self, epoch: int, first_batch: int = 0) -> Iterator[Batch]:
        """See `Recipe.read_for_training`."""
        return self.recipe.read_for_training(self.dataset.splits["train"], epoch, first_batch)

    def put_batch(self, batch: Batch) -> steps.Batch:
        """Starts a training batch's way to the devices and returns at once."""
        return self.recipe.placement.put_train_batch(batch, self.recipe.accumulate_steps)


def build_experiment(
    recipe: Recipe,
    dataset: Dataset | None = None,
    programs: Experiment | None = None,
    keep: Keep = _make_anew,
    strategy: Strategy | None = None,
) -> Experiment:
    """Builds everything that a recipe describes.

    `dataset` is what `open_dataset` gives for it, where it is open already. `programs` is an experiment whose recipe
    differs in the seed alone, and which has the same classes and as many steps in an epoch: its compiled functions
    serve here too. `keep` is what the features of a frozen part are kept by. `strategy` takes the place of the recipe's
    own.
    """
    dataset = dataset or open_dataset(recipe)
    trained_on = len(dataset.splits["train"]) if "train" in dataset.splits else 1  # schedules want a length
    if recipe.epochs and "train" in dataset.splits and recipe.batch_size >= _MOST_PADDING * trained_on:
        raise ConfigError(
            f"config.batch_size is {recipe.batch_size}, and there are {trained_on} images to train on: nearly all of "
            f"each step would be padding. Give at most {trained_on}."
        )
    steps_per_epoch = -(-trained_on // recipe.batch_size)
    if recipe.epochs * steps_per_epoch > MOST_STEPS:
        raise ConfigError(
            f"config.epochs is {recipe.epochs}: {steps_per_epoch} steps each are more than can be counted. It must be "
            f"at most {MOST_STEPS // steps_per_epoch}."
        )
    tx, placement, num_classes = recipe.make_optimizer(steps_per_epoch), recipe.placement, len(dataset.class_names)
    if programs:
        initialize, on_features = programs.initialize, programs.on_features
        train_step, eval_step = programs.train_step, programs.eval_step
    else:
        model = recipe.model_for_training(num_classes)
        initialize = recipe.initialization(num_classes)
        total_steps, kept = max(1, recipe.epochs * steps_per_epoch), None
        if strategy is None and not is_foreign(recipe.model_name):  # of those the code may change unseen
            config = {**recipe.stored, "seed": None}
            kept = {"config": config, "classes": list(dataset.class_names), "steps_per_epoch": steps_per_epoch}
        strategy = strategy or recipe.strategy_for(dataset.class_names)
        compile_steps = functools.partial(_compile_steps, recipe, tx, num_classes, strategy, total_steps, kept)
        train_step, eval_step = compile_steps(model, recipe.preprocess)
        on_features = _compile_on_features(recipe, model, num_classes, compile_steps) if recipe.frozen else None
    return Experiment(
        recipe=recipe,
        dataset=dataset,
        steps_per_epoch=steps_per_epoch,
        initialize=initialize,
        create_state=lambda variables: placement.put_state(
            steps.create_train_state(variables, tx, recipe.frozen_modules)
        ),
        train_step=train_step,
        eval_step=eval_step,
        eval_epoch=recipe.read_for_evaluation,
        on_features=on_features,
        keep=keep,
    )


def _compile_steps(
    recipe: Recipe,
    tx: Any,
    num_classes: int,
    strategy: Strategy,
    total_steps: int,
    kept: Mapping[str, Any] | None,
    model: Any,
    preprocess: Callable[[jax.Array], jax.Array],
) -> tuple[Any, Any]:
    """The train step and the eval step of a model. `kept` is what decides the former's trace, if it may be kept."""
    placement = recipe.placement
    options = {name: getattr(placement, name) for name in ("axis_name", "gather", "scatter")}
    options |= {"accumulate_steps": recipe.accumulate_steps, "frozen": recipe.frozen_modules}
    options |= {"total_steps": total_steps, "term_norms": recipe.log_gradient_norms}
    train_step = steps.make_train_step(model, tx, strategy, preprocess, **options)
    if kept and placement.mode == "jit":
        train_step = keep_trace(train_step, **kept, of_features=isinstance(model, TrainedPart))
    train_step = placement.compile_train_step(train_step, recipe.abstract_state(num_classes))
    return train_step, placement.compile_eval_step(steps.make_eval_step(model, preprocess))


def _compile_on_features(
    recipe: Recipe, model: Any, num_classes: int, compile_steps: Callable[..., tuple[Any, Any]]
) -> OnFeatures:
    network = recipe.make_network(num_classes=num_classes)

    def features(params: Any, batch_stats: Any, batch: steps.Batch) -> jax.Array:
        variables = {"params": params, "batch_stats": batch_stats}
        return apply_frozen(network, variables, recipe.preprocess(batch["image"]))

    as_they_are = lambda features: features
    return OnFeatures(
        recipe.placement.compile_eval_step(features),
        *compile_steps(TrainedPart(model), as_they_are),
    )
