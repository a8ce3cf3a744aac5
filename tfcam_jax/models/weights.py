"""Pretrained weights: found, converted from PyTorch's names and layout, and checked against a model.

PyTorch is not needed. Names are converted by the `torch_names` of the model's card, arrays by their rank: the kernels
of convolutions go from [out, in, h, w] to [h, w, in, out], those of linear layers from [out, in] to [in, out].
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from absl import logging
from flax import traverse_util

from ..errors import UserError, did_you_mean
from . import MODEL_CARDS, ModelCard
from .hub import HUB_ERRORS, get_hub_file, hub_address
from .state_dicts import read_state_dict

FILE_SUFFIXES = (".safetensors", ".pth", ".pt", ".bin")
IMAGENET = "imagenet"
_HUB_FILE = "model.safetensors"
_PATH_BEGINS = ("/", "./", "../", "~")
_REPOSITORY = re.compile(r"[\w.-]+/[\w.-]+")

# Leaf names of PyTorch's modules that are the same for every rank -> collection and name here.
_LEAVES = {"bias": ("params", "bias"), "running_mean": ("batch_stats", "mean"), "running_var": ("batch_stats", "var")}
# A weight's rank -> its name here, and the order of PyTorch's axes here.
_WEIGHTS = {1: ("scale", (0,)), 2: ("kernel", (1, 0)), 4: ("kernel", (2, 3, 1, 0))}


class WeightsError(UserError, ValueError):
    """Weights that cannot be had, or do not fit the model."""


def load_pretrained(
    name: str, source: str | Path, variables: Mapping[str, Any], *, keep_head: bool = False
) -> dict[str, Any]:
    """The model's variables with pretrained weights in place of their values.

    Args:
      name: the backbone, a key of `MODELS`.
      source: "imagenet" for the weights that the model's card names; a file (.safetensors, or .pth from `torch.save`);
        or a repository "owner/name" of the Hugging Face Hub that holds `model.safetensors`. One that was downloaded by
        hand is looked for first, in `tfcam_jax/owner/name` of `$XDG_CACHE_HOME` or `~/.cache`, then the Hub's cache.
      variables: what `model.init` gave: `params` and `batch_stats`. Not changed.
      keep_head: take the file's head too, which must have as many classes as the model, not that of `variables`.

    Returns:
      New variables of the same tree, shapes and float32.

    Raises:
      WeightsError: `source` is a folder, or a file that does not exist, nothing is published for the model, the hub
        cannot be reached (told within seconds; the message says which file to place where), or names or shapes differ
        from the model's: all of them are listed.
      StateDictError: the file is damaged, or holds more than tensors.
    """
    if name not in MODEL_CARDS:
        raise WeightsError(f"there is no model {name!r}; models are {', '.join(MODEL_CARDS)}")
    file = find_weights(MODEL_CARDS[name], source)
    converted = convert(read_state_dict(file), MODEL_CARDS[name].torch_names)
    merged = merge(converted, variables, keep_head=keep_head, origin=str(file))
    count = len(traverse_util.flatten_dict(converted))
    logging.info("%s: loaded %d arrays of %s, %s head", name, count, file, "its" if keep_head else "a new")
    return merged


def find_weights(card: ModelCard, source: str | Path) -> Path:
    """The local file that `source` means (see `load_pretrained`), downloaded if need be."""
    if source == IMAGENET:
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
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise WeightsError(
            f"could not get {_HUB_FILE} of {repository} from the Hugging Face Hub, {hub_address()} ({reason}). "
            f"Download it where there is a connection and place it at {placed}, or give the path of a .safetensors or "
            f".pth file, or of a run, instead of {str(source)!r}, where nothing lies"
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
        path = (collection, *module.split("."), leaf)
        if path in flat:
            problems.append(f"{key}: a second array for {'/'.join(path)}")
        flat[path] = np.ascontiguousarray(array.astype(np.float32).transpose(axes))
        if not np.isfinite(flat[path]).all():
            problems.append(f"{key}: not finite")
    if problems:
        raise WeightsError("the state dict cannot be converted:\n  " + "\n  ".join(problems))
    return traverse_util.unflatten_dict(flat)


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
      WeightsError: names or shapes differ; the message calls the weights `origin` and lists every one, with both
        shapes.
    """
    new, old = traverse_util.flatten_dict(dict(converted)), traverse_util.flatten_dict(dict(variables))
    taken = lambda arrays: {path: array for path, array in arrays.items() if keep_head or path[1] != "head"}
    theirs, ours = ({path: np.shape(array) for path, array in taken(arrays).items()} for arrays in (new, old))
    problems = [
        f"{'/'.join(path)}: {theirs.get(path, 'missing')} in the weights, {ours.get(path, 'missing')} in the model"
        for path in sorted(theirs.keys() | ours.keys())
        if theirs.get(path) != ours.get(path)
    ]
    if problems:
        raise WeightsError(
            f"{origin} does not fit the model, {len(problems)} arrays differ:\n  "
            + "\n  ".join(problems)
            + _about_heads(theirs, ours)
        )
    merged = old | taken(new)
    return traverse_util.unflatten_dict({path: jnp.asarray(merged[path]) for path in old})


def _about_heads(theirs: Mapping[tuple[str, ...], Any], ours: Mapping[tuple[str, ...], Any]) -> str:
    """What to do where the kernels of two kept heads, of these shapes by their paths, are of different width."""
    one, other = (shapes.get(("params", "head", "kernel"), (0,))[-1] for shapes in (theirs, ours))
    if not one or not other or one == other:
        return ""
    if (one, other) == (1, 2):
        return "\nIts head has one output for two classes: set --config.model.one_logit=True, or take a new head."
    return (
        f"\nIts head has {one} outputs, the model's {other}: name a class for each output, in their order, by "
        "--config.data.labels, or take a new head by --config.model.keep_head=False."
    )
