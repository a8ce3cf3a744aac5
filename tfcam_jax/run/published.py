"""A model in a folder that can be shared: what `sharing.publish` writes, and what a folder or the Hub gives back.

model.safetensors   parameters and batch statistics by their paths (`params/head/kernel`), in Flax's layout
config.json         the run's config; of the places of its files only their names
tfcam_jax.json      the record: format, classes, data, epoch, and the SHA-256 of each other file
results.json        figures and thresholds of the best checkpoint, where the run has them

Beside them lie a model card and pictures, which restoring does not need. What comes from the Hub is anybody's: it is
bounded in size, compared with its checksums, and makes this process neither run code nor read files that it names.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
import safetensors
import safetensors.numpy
from absl import logging
from huggingface_hub import constants
from huggingface_hub.errors import EntryNotFoundError, RevisionNotFoundError

from ..errors import UserError
from ..models.hub import HUB_ERRORS, cached_hub_file, first_line, get_newest_hub_file, hub_address, is_from_hub, refusal
from ..models.wheels import digest_file
from .files import read_json, write_bytes
from .fingerprints import describe_leaves

FORMAT = 1
WEIGHTS, CONFIG, RECORD, RESULTS = "model.safetensors", "config.json", "tfcam_jax.json", "results.json"
_MOST_BYTES = {WEIGHTS: 2**34, CONFIG: 2**24, RECORD: 2**24, RESULTS: 2**24}
_ON_HUB = re.compile(r"hf:/{1,2}([\w.-]+/[\w.-]+)(?:@([\w-][\w.-]*(?:/[\w-][\w.-]*)*))?")
# NumPy's types as safetensors calls them.
_SHORT = {"float32": "F32", "float16": "F16", "bfloat16": "BF16", "int32": "I32", "uint32": "U32", "uint8": "U8"}
# What a record must hold, besides what only a reader of the file needs.
_FIELDS: dict[str, type | tuple[type, ...]] = {
    "class_names": list,
    "domains": (list, type(None)),
    "data": dict,
    "rows": dict,
    "epoch": int,
    "step": int,
    "files": dict,
}


class PublishedError(UserError, RuntimeError):
    """A published model that can't be had, is damaged, or asks for more than a stranger's may."""


def on_hub(name: str | Path) -> bool:
    """Whether a run is called by its place on the Hugging Face Hub, `hf://owner/name` or `hf://owner/name@revision`."""
    return str(name).startswith("hf:")


def is_published(folder: Path) -> bool:
    """Whether a folder holds a published model."""
    return (folder / RECORD).is_file()


def fetch_published(name: str | Path) -> Path:
    """The local folder, in the Hub's cache, of the model that `hf://owner/name[@revision]` names.

    The branch, main unless a revision is given, is looked up each time. Where the Hub can't be reached the copy of the
    last time serves, which is told with its commit.

    Raises:
      PublishedError: not such a name, no such repository, revision or model, or no connection and no copy. Without a
        connection within seconds.
    """
    parsed = _ON_HUB.fullmatch(str(name))
    if not parsed:
        raise PublishedError(
            f"{name} is no place on the Hugging Face Hub; write hf://owner/name, or @revision after it."
        )
    repository, revision = parsed[1], parsed[2] or constants.DEFAULT_REVISION
    if constants.HF_HUB_OFFLINE:
        return _take_cached(repository, revision, "HF_HUB_OFFLINE is set")
    try:
        return _download(repository, revision)
    except HUB_ERRORS as error:
        if status := refusal(error):
            raise PublishedError(_tell_refusal(repository, revision, status, error)) from error
        return _take_cached(repository, revision, first_line(error))


def _download(repository: str, revision: str) -> Path:
    record = get_newest_hub_file(repository, RECORD, revision, _MOST_BYTES[RECORD])
    folder = record.parent
    for name in _needed(folder):
        get_newest_hub_file(repository, name, folder.name, _MOST_BYTES[name])
    return folder


def _needed(folder: Path) -> list[str]:
    listed = read_record(folder)["files"]
    return [WEIGHTS, CONFIG, *([RESULTS] if RESULTS in listed else [])]


def _take_cached(repository: str, revision: str, reason: str) -> Path:
    record = cached_hub_file(repository, RECORD, revision)
    if record and all((record.parent / name).is_file() for name in _needed(record.parent)):
        folder = record.parent
        logging.warning("hf://%s: %s; the copy of commit %s is taken, of %s.", repository, reason, folder.name, folder)
        return folder
    raise PublishedError(
        f"hf://{repository} could not be had from {hub_address()} ({reason}), and no copy of {revision} is here. Try "
        "again with a connection, or download the repository elsewhere and give its folder as --workdir."
    )


def _tell_refusal(repository: str, revision: str, status: int, error: Exception) -> str:
    where = f"{hub_address()}/{repository} at {revision}"
    if isinstance(error, EntryNotFoundError):
        return f"{where} holds no model of launch/publish.py: it has no {RECORD}, or not all that this one lists."
    if isinstance(error, RevisionNotFoundError):
        return f"{where}: there is no such branch, tag or commit. Leave @{revision} out for main."
    return (
        f"{where} is not to be had (HTTP {status}): there is no such repository, or it is private. For one that you "
        "may read, log in with `hf auth login`, or set HF_TOKEN."
    )


def read_record(folder: Path) -> dict[str, Any]:
    """The record of a published folder. Raises PublishedError if it is of another format, WorkdirError if damaged."""
    record = read_json(folder / RECORD, remedy="publish or download it again")
    if record.get("format") != FORMAT:
        raise PublishedError(
            f"{folder / RECORD} has format {record.get('format')!r}; this version reads {FORMAT}. Take the version of "
            "tfcam_jax that its README.md names."
        )
    wrong = [name for name, kind in _FIELDS.items() if not isinstance(record.get(name), kind)]
    if wrong or not all(isinstance(name, str) for name in (*record["class_names"], *(record["domains"] or ()))):
        raise PublishedError(
            f"{folder / RECORD} is damaged: {wrong or ['class_names or domains']} are not what they "
            "must be. Publish or download it again."
        )
    return record


def check_config(folder: Path, config: dict[str, Any]) -> dict[str, Any]:
    """The config of a published folder as it may be used here.

    From the Hub, how many threads and processes read images is not the stranger's to say. Raises PublishedError if
    files are not those of the record, or a repository's config names a network by the module to import it from.
    """
    record = read_record(folder)
    for name in (CONFIG, *({RESULTS} & record["files"].keys())):
        _check_digest(folder, name, record)
    if not is_from_hub(folder):
        return config
    network = config["model"]["name"]
    if ":" in str(network):
        raise PublishedError(
            f"the network of this repository is {network!r}, code of a package of its owner's, and what a repository "
            "names is not imported. If you trust it: install that package, clone the repository, and give the clone's "
            "folder as --workdir."
        )
    return {**config, "data": {**config["data"], "num_threads": 2, "num_workers": 0}}


def _check_digest(folder: Path, name: str, record: Mapping[str, Any]) -> None:
    path = folder / name
    if not path.is_file() or digest_file(path) != record["files"].get(name):
        raise PublishedError(
            f"{path} is absent, damaged, or was changed since it was published: its SHA-256 is not that in {RECORD}. "
            "Publish or download it again."
        )


def write_variables(path: Path, variables: Mapping[str, Any]) -> None:
    """Writes `params` and `batch_stats`, whole and on the host, as safetensors; by the paths of their leaves."""
    arrays = [np.ascontiguousarray(leaf) for leaf in jax.tree.leaves(variables)]
    named = dict(zip(describe_leaves(variables), arrays, strict=True))
    metadata = {"format": "flax", "written_by": f"tfcam_jax, format {FORMAT}"}
    write_bytes(path, safetensors.numpy.save(named, metadata=metadata))


def read_variables(folder: Path, like: Any) -> dict[str, Any]:
    """The variables of a published folder as NumPy arrays, in the tree of `like`, which may be abstract.

    Names, shapes and types are compared before an array is read. Raises PublishedError for other ones, and for a file
    that is not the record's.
    """
    path, wanted = folder / WEIGHTS, describe_leaves(like)
    try:
        with safetensors.safe_open(path, framework="numpy") as opened:
            names = list(opened.keys())
            slices = {name: opened.get_slice(name) for name in names}
            found = {name: [list(each.get_shape()), each.get_dtype()] for name, each in slices.items()}
    except (OSError, safetensors.SafetensorError) as error:
        raise PublishedError(f"{path} is absent or damaged ({error}). Publish or download it again.") from error
    expected = {name: [shape, _SHORT.get(dtype, dtype)] for name, (shape, dtype) in wanted.items()}
    if found != expected:
        names = sorted(name for name in found.keys() | expected.keys() if found.get(name) != expected.get(name))
        raise PublishedError(
            f"{path} does not fit the network of its config.json, {len(names)} arrays differ: {names[0]} is "
            f"{found.get(names[0], 'absent')} there, {expected.get(names[0], 'absent')} in the network."
        )
    _check_digest(folder, WEIGHTS, read_record(folder))
    arrays = safetensors.numpy.load_file(path)
    return jax.tree.unflatten(jax.tree.structure(like), [arrays[name] for name in wanted])
