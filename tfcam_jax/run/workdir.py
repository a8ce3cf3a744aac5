"""The folder of one run: its config, its provenance, and the refusal to overwrite another run.

config.json     the config, enough to rebuild the run without its Python file
run.json        versions, commit, devices, command of the first start, and of each later one under "continued"; under
                "weights" where those come from that it began from
metrics.jsonl   one JSON object a line
checkpoints/    see `checkpoints`
results.json    figures of the best checkpoint
checks.json     what opening the data showed of each file, so that a later start looks only at what changed;
                checks.other.json the same of data that the run was last evaluated or explained on by --data
.lock           held by the process that trains here, whose name stands in .lock.holder
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from absl import logging
from filelock import FileLock, Timeout
from flax import traverse_util

from ..data import SOURCES
from ..devices.distributed import is_first, wait_for_all
from ..models.lookup import describe_source
from .checkpoints import FORMAT, tell_version
from .files import WorkdirError, read_json, write_json, write_text
from .provenance import collect_provenance

# Keys that decide how fast a run goes and how often it is saved, not what comes out of it.
INDIFFERENT = (
    "parallel.mode",
    "parallel.devices",
    "parallel.shard_state",
    "data.num_threads",
    "data.num_workers",
    "checkpoint_every_steps",
    "grace_seconds",
    "evaluation.attack_detection",
)
# Keys that came after the first runs of this format, and what runs whose config lacks them did.
ADDED = {
    "guidance.cam_features": None,
    "guidance.weighting": None,
    "data.resize_through": [],
    "data.maps.resize": "with_image",
    "data.bits": None,
    "model.pool": None,
    "data.maps.invert": False,
    "data.maps.page": None,
    "data.maps.categories": [],
    "data.maps.columns.image": "",
    "data.maps.columns.annotator": "",
    "data.maps.columns.category": "",
    "data.maps.columns.x": "",
    "data.maps.columns.y": "",
    "data.maps.columns.width": "",
    "data.maps.columns.height": "",
    "data.maps.columns.x_min": "",
    "data.maps.columns.y_min": "",
    "data.maps.columns.x_max": "",
    "data.maps.columns.y_max": "",
    "data.maps.columns.x_center": "",
    "data.maps.columns.y_center": "",
    "data.maps.columns.box": "",
    "data.maps.columns.polygon": "",
    "data.maps.columns.duration": "",
    "data.maps.columns.unit": "",
    "data.maps.columns.image_width": "",
    "data.maps.columns.image_height": "",
    "data.maps.predicted": "use",
    "data.maps.share": 1.0,
    "data.maps.share_seed": 0,
    "data.iris_pad.type_pattern": "",
    "data.iris_pad.type_column": "",
    "data.chest_xray.owner_splits": ["egd", "reflacx", "lists"],
    "data.chest_xray.normals": 1.0,
    "data.chest_xray.shares": [0.7, 0.1, 0.2],
    "data.chest_xray.seed": 0,
    "data.chest_xray.degrees": 1.0,
    "data.chest_xray.reflacx_maps": "fixations",
    "data.chest_xray.maps": "maps",
    "data.chest_xray.group_pattern": "",
    "data.folders.images": "",
    "data.folders.maps": "",
    "data.folders.map_names": ["map", "mask", "heatmap", "saliency", "blended"],
    "data.folders.image_names": [],
    "data.folders.group_pattern": "",
    "data.folders.domain_pattern": "",
    "data.folders.shares": [0.7, 0.15, 0.15],
    "data.folders.seed": 0,
    "augment.map_blur": [],
    "model.one_logit": False,
    "model.head_init": "lecun",
    "model.dropout": 0.0,
    "model.batch_norm_momentum": 0.9,
    "evaluation.attack_detection": "auto",
}

CHECKS, OTHER_CHECKS = "checks.json", "checks.other.json"
_LOCK, _HOLDER = ".lock", ".lock.holder"

# What a run leaves that died before its `config.json` was there.
_BEFORE_CONFIG = (_LOCK, f".{_HOLDER}.", "run.json", ".run.json.", ".config.json.")


def check_workdir(workdir: Path, config: Mapping[str, Any]) -> bool:
    """Whether the folder holds this very run already. Touches nothing.

    Raises:
      WorkdirError: it holds a run with another config or of another version, or files that are no run, or another
        process trains in it.
    """
    if workdir.exists() and not workdir.is_dir():
        raise WorkdirError(f"{workdir} is a file. Choose another --workdir.")
    if (workdir / _LOCK).exists() and is_first():
        with _locked(workdir):
            pass
    return _check_contents(workdir, config)


def _check_contents(workdir: Path, config: Mapping[str, Any]) -> bool:
    path = workdir / "config.json"
    if not path.exists():
        if workdir.exists() and not all(entry.name.startswith(_BEFORE_CONFIG) for entry in workdir.iterdir()):
            raise WorkdirError(
                f"{workdir} exists and is not a run of this project: it has no config.json. Choose another --workdir."
            )
        return False
    differences = "\n".join(config_differences(read_json(path), config).values())
    if differences:
        raise WorkdirError(
            f"{workdir} holds a run with another config ({path}):\n{differences}\n"
            "Choose another --workdir, or repeat that run's settings to continue it."
        )
    _check_format(workdir)
    return True


def _check_format(workdir: Path) -> None:
    path = workdir / "run.json"
    found = _read_run(path).get("format", 1) if path.exists() else FORMAT
    if found != FORMAT:
        raise WorkdirError(tell_version(workdir, found))


@contextlib.contextmanager
def _locked(workdir: Path) -> Iterator[None]:
    """Holds the lock of a workdir, which dies with its holder; refuses at once if another process does."""
    path = workdir / _LOCK
    with contextlib.ExitStack() as held:
        try:
            held.enter_context(FileLock(path, fallback_to_soft=False).acquire(blocking=False))
        except Timeout as error:
            holder = workdir / _HOLDER
            name = holder.read_text(encoding="utf-8").strip() if holder.exists() else "it is just starting"
            raise WorkdirError(
                f"another process trains in {workdir} ({name}). Wait for it, stop it, or choose another --workdir."
            ) from error
        except OSError as error:
            if error.errno not in (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS):
                raise
            logging.warning("%s: this file system has no locks; see to it that one process trains here.", path)
        yield


def config_differences(stored: Mapping[str, Any], config: Mapping[str, Any]) -> dict[str, str]:
    """Keys, with dots, that two configs have otherwise and that can change what comes out of a run; a line tells each.

    `stored` is "there" in it, `config` asked for. Options of sources that both do without make no difference.
    """
    there, wanted = (ADDED | traverse_util.flatten_dict(dict(tree), sep=".") for tree in (stored, config))
    absent, used = "(absent)", [str(tree.get("data.source")) for tree in (there, wanted)]
    unused = tuple(f"data.{source}." for source in SOURCES if source not in used)
    return {
        key: f"  {key}: {there.get(key, absent)!r} there, {wanted.get(key, absent)!r} asked for"
        for key in sorted((there.keys() | wanted.keys()).difference(INDIFFERENT))
        if there.get(key, absent) != wanted.get(key, absent) and not key.startswith(unused)
    }


@contextlib.contextmanager
def hold_workdir(workdir: Path, config: Mapping[str, Any]) -> Iterator[None]:
    """Makes the folder if need be, keeps other processes from training in it, and writes config and provenance.

    The lock belongs to the open file, so that nothing of it is left when the process dies, however it dies. The first
    process of a run holds it for the others.

    Raises:
      WorkdirError: as in `check_workdir`, which is asked once more under the lock, or the folder can't be written.
    """
    if not is_first():
        wait_for_all("made the workdir")
        if not (workdir / "config.json").exists():
            raise WorkdirError(
                f"{workdir} is not here, though the first process made it: --workdir has to lie on a file system that "
                "all hosts of the run share."
            )
        yield
        return
    try:
        workdir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise WorkdirError(f"{workdir} can't be made: {error.strerror}. Choose another --workdir.") from error
    with _locked(workdir):
        continued = _check_contents(workdir, config)
        write_text(workdir / _HOLDER, f"host {socket.gethostname()}, pid {os.getpid()}\n")
        path, start = workdir / "run.json", collect_provenance(config["model"]["name"])
        if continued and path.exists():
            run = _read_run(path)
            _tell_other_source(run, start["network"], "the run goes on with the new code")
            run["continued"] = [*run.get("continued", []), start]
        else:
            run = {"format": FORMAT, **start, "continued": []}
        write_json(path, run)
        if not continued:
            write_json(workdir / "config.json", config)  # last: with it, the run exists
        wait_for_all("made the workdir")
        yield


def tell_changed_network(workdir: Path, model_name: str) -> None:
    """A warning where the module of a foreign network is another one than when the run was trained."""
    path = workdir / "run.json"
    if path.exists():
        _tell_other_source(
            _read_run(path), describe_source(model_name), "what is shown here is the new code with the old weights"
        )


def _tell_other_source(run: Mapping[str, Any], source: Mapping[str, Any] | None, outcome: str) -> None:
    """A warning where the file of a foreign network, `source`, is another one than when the run began."""
    then = (run.get("network") or {}).get("sha256")
    if source and then and then != source["sha256"]:
        logging.warning("%s was changed since the run began: %s.", source["file"], outcome)


def load_config(workdir: Path) -> dict[str, Any]:
    """The config of a run, with the keys of `ADDED` that it may lack.

    Raises WorkdirError if there is none, or it can't be read or is of another version.
    """
    path = workdir / "config.json"
    if not path.exists():
        raise WorkdirError(f"{path} does not exist: {workdir} holds no run. Give the --workdir of a finished training.")
    config = read_json(path)
    _check_format(workdir)
    flat = traverse_util.flatten_dict(config, keep_empty_nodes=True, sep=".")
    return traverse_util.unflatten_dict(ADDED | flat, sep=".")


def is_run(folder: Path) -> bool:
    """Whether a folder holds a run, in whatever state; a `config.json` alone may be another project's."""
    return (folder / "config.json").is_file() and any((folder / name).exists() for name in ("run.json", "checkpoints"))


def note_weights(workdir: Path, origin: Mapping[str, Any]) -> None:
    """Keeps in `run.json` where the weights come from that this run begins from, see `inference.InitialState`."""
    path = workdir / "run.json"
    write_json(path, _read_run(path) | {"weights": dict(origin)})


def _read_run(path: Path) -> dict[str, Any]:
    return read_json(path, remedy="delete it: it says what the run was made with, and nothing depends on it")
