"""The folder of one run: its config, its provenance, and the refusal to overwrite another run.

config.json     the config, enough to rebuild the run without its Python file
run.json        versions, commit, devices, command of the first start, and of each later one under "continued"; under
                "weights" where those come from that it began from
metrics.jsonl   one JSON object a line
checkpoints/    see `checkpoints`
results.json    figures of the best checkpoint
data.json       see `data_record`
checks.json     what opening the data showed of each file, so that a later start looks only at what changed;
                checks.other.json the same of data that the run was last evaluated or explained on by --data
.lock           held by the process that trains here, whose name stands in .lock.holder
"""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from absl import logging
from flax import traverse_util

from ..data import SOURCES
from ..data.outputs import describe_process, locked
from ..devices.distributed import is_first, wait_for_all
from ..devices.memory import OutOfMemoryError
from ..models.lookup import describe_source
from .checkpoints import FORMAT, tell_version
from .files import WorkdirError, read_json, write_json, write_text
from .provenance import collect_provenance

# Keys that decide how fast a run goes and how often it is saved, not what comes out of it.
INDIFFERENT = (
    "parallel.mode",
    "parallel.devices",
    "parallel.shard_state",
    "data.kept_megabytes",
    "data.cache_megabytes",
    "data.cache_dir",
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
    "guidance.schedule": None,
    "guidance.schedule_share": None,
    "guidance.unmarked": None,
    "guidance.unmarked_classes": None,
    "data.resize_through": [],
    "data.maps.resize": "with_image",
    "data.bits": None,
    "model.pool": None,
    "model.output_stride": 32,
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
    "data.demo.local_agreement": 0.9,
    "data.demo.open_agreement": 0.5,
    "data.demo.normal": False,
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
    "model.train_from": "",
    "data.kept_megabytes": 1024,
    "data.cache_megabytes": 1024,
    "data.cache_dir": "",
    "model.one_logit": False,
    "model.head_init": "lecun",
    "model.dropout": 0.0,
    "model.batch_norm_momentum": 0.9,
    "evaluation.attack_detection": "auto",
    "log_gradient_norms": False,
    "compare.engine": "processes",
    "compare.cluster.partition": "",
    "compare.cluster.minutes": 240,
    "compare.cluster.cpus": 4,
    "compare.cluster.gpus": 1,
    "compare.cluster.memory_gb": 0,
    "compare.cluster.jobs": 0,
    "compare.cluster.restarts": 3,
    "compare.cluster.options": [],
}

_OF_STUDIES = "compare."
# Endings of keys whose values are places of files; relative ones are seen from the folder that the run was started in.
PLACES = (".manifest", ".data_dir", ".manual_dir", ".folders.images", ".folders.maps")
CHECKS, OTHER_CHECKS = "checks.json", "checks.other.json"
_LOCK, _HOLDER = ".lock", ".lock.holder"

# What a run leaves that died before its `config.json` was there.
_BEFORE_CONFIG = (_LOCK, f".{_HOLDER}.", "run.json", ".run.json.", ".config.json.", ".runs.json.")


def check_workdir(workdir: Path, config: Mapping[str, Any]) -> bool:
    """Whether the folder holds this very run already. Touches nothing.

    Raises:
      WorkdirError: it holds a run with another config or of another version, or files that are no run, another process
        trains in it, or it can't be written to.
    """
    if is_first():
        check_place(workdir)
        check_not_held(workdir)
    return _check_contents(workdir, config)


def _check_contents(workdir: Path, config: Mapping[str, Any]) -> bool:
    path = workdir / "config.json"
    if not path.exists():
        if workdir.exists() and not is_fresh(workdir):
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


def check_place(workdir: Path) -> None:
    """Raises WorkdirError where no folder can be made, or written to. Touches nothing."""
    try:
        there = _nearest(workdir)
    except OSError as error:
        raise WorkdirError(f"{workdir} can't be made: {error.strerror}. Choose another --workdir.") from error
    if not there.is_dir():
        told = f"a link to {os.readlink(there)}, which is no folder" if there.is_symlink() else "a file"
        raise WorkdirError(f"{there} is {told}. Choose another --workdir.")
    if not os.access(there, os.W_OK):
        raise WorkdirError(f"{there} takes no files: it is read-only, or not yours. Choose another --workdir.")


def _nearest(folder: Path) -> Path:
    """What there is of a path, from its end; a link counts, wherever it leads."""
    try:
        folder.lstat()
    except (FileNotFoundError, NotADirectoryError):
        return _nearest(folder.absolute().parent)
    return folder


def make_workdir(workdir: Path) -> None:
    """Makes the folder, if need be. Raises WorkdirError if it can't be made."""
    try:
        workdir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise WorkdirError(f"{workdir} can't be made: {error.strerror}. Choose another --workdir.") from error


def is_fresh(folder: Path) -> bool:
    """Whether a folder is empty, but for what a process leaves that dies before it has begun."""
    return all(entry.name.startswith(_BEFORE_CONFIG) for entry in folder.iterdir())


class HeldError(WorkdirError):
    """A folder that another process is at work in.

    Attributes:
      holder: who, as `note_holder` wrote; that it is just starting, where it has not yet.
    """

    def __init__(self, workdir: Path, holder: str):
        remedy = "Wait for it, stop it, or choose another --workdir."
        super().__init__(f"another process trains in {workdir} ({holder}). {remedy}")
        self.holder = holder


def check_not_held(workdir: Path) -> None:
    """Raises HeldError if another process is at work in the folder. Touches nothing."""
    if os.path.lexists(workdir / _LOCK):
        with locked_workdir(workdir):
            pass


def find_holder(workdir: Path) -> str | None:
    """Who is at work in the folder, see `HeldError`; None where nobody is, as far as this host can see.

    On another host a lock is seen where the file system passes it on.
    """
    try:
        check_not_held(workdir)
    except HeldError as error:
        return error.holder
    return None


def locked_workdir(workdir: Path) -> contextlib.AbstractContextManager[None]:
    """Holds the lock of the folder of a run or study, which dies with its holder; refuses at once if another does."""
    return locked(workdir / _LOCK, lambda: _refusal(workdir))


def _refusal(workdir: Path) -> HeldError:
    holder, name = workdir / _HOLDER, "it is just starting"
    if holder.is_file():
        with holder.open(encoding="utf-8", errors="backslashreplace") as file:
            name = file.readline(200).strip()
    return HeldError(workdir, name)


def note_holder(workdir: Path) -> None:
    """Says in the folder, whose lock this process holds, who does."""
    write_text(workdir / _HOLDER, f"{describe_process()}\n")


def config_differences(stored: Mapping[str, Any], config: Mapping[str, Any]) -> dict[str, str]:
    """Keys, with dots, that two configs have otherwise and that can change what comes out of a run; a line tells each.

    `stored` is "there" in it, `config` asked for. Options of sources that both do without make no difference.
    """
    there, wanted = (_with_added(traverse_util.flatten_dict(dict(tree), sep=".")) for tree in (stored, config))
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
    make_workdir(workdir)
    with locked_workdir(workdir):
        continued = _check_contents(workdir, config)
        note_holder(workdir)
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
        try:
            yield
        except OutOfMemoryError:
            if not continued:
                _clear(workdir)
            raise


def _clear(workdir: Path) -> None:
    """Removes what a start left that failed before its first checkpoint, so that another config may take the folder."""
    if any(entry.name.isdigit() for entry in workdir.glob("checkpoints/*")):
        return
    for entry in workdir.iterdir():
        if not entry.name.startswith(_LOCK):
            shutil.rmtree(entry) if entry.is_dir() else entry.unlink()


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
    return traverse_util.unflatten_dict(_with_added(flat), sep=".")


def _with_added(flat: Mapping[str, Any]) -> dict[str, Any]:
    """A flat config with the keys of `ADDED` that it lacks; those of studies only where it has others of them.

    A run of a study does not say what it is compared with.
    """
    compared = any(key.startswith(_OF_STUDIES) for key in flat)
    return {key: value for key, value in ADDED.items() if compared or not key.startswith(_OF_STUDIES)} | dict(flat)


def find_places(workdir: Path, config: dict[str, Any]) -> dict[str, Any]:
    """A run's config with whole paths for the relative places of its data; of two that could be meant, one is told.

    They are seen from the folder that the run was last started in, which `run.json` names; where nothing lies there any
    more, or an older version did not name it, from the one that the user is in.
    """
    path = workdir / "run.json"
    run = _read_run(path) if path.exists() else {}
    started = [run, *run.get("continued", [])][-1].get("folder")
    flat: dict[str, Any] = dict(traverse_util.flatten_dict(config, keep_empty_nodes=True, sep="."))
    relative = lambda value: isinstance(value, str) and value and not value.startswith("~") and not os.path.isabs(value)
    for key, value in flat.items():
        if not key.endswith(PLACES) or not relative(value):
            continue
        here, there = Path(value).absolute(), Path(started or "", value).absolute()
        taken = here if here.exists() and not there.exists() else there
        flat[key] = str(taken)
        if taken != there:
            logging.warning("%s of the run was %s, which is not there any more: %s is taken.", key, there, here)
        elif here.exists() and here != there:
            logging.warning("%s of the run is that of where it was started, %s, not %s.", key, there, here)
    return traverse_util.unflatten_dict(flat, sep=".")


def is_run(folder: Path) -> bool:
    """Whether a folder holds a run, in whatever state; a `config.json` alone may be another project's."""
    return (folder / "config.json").is_file() and any((folder / name).exists() for name in ("run.json", "checkpoints"))


def note_weights(workdir: Path, origin: Mapping[str, Any]) -> None:
    """Keeps in `run.json` where the weights come from that this run begins from, see `inference.InitialState`."""
    path = workdir / "run.json"
    write_json(path, _read_run(path) | {"weights": dict(origin)})


def _read_run(path: Path) -> dict[str, Any]:
    return read_json(path, remedy="delete it: it says what the run was made with, and nothing depends on it")
