"""The folder of a run: one process at a time, its own config, its whole history."""

import json
import os
import pathlib
import subprocess
import sys

import pytest
from flax.traverse_util import flatten_dict

from configs import default
from tfcam_jax.experiment import config_json
from tfcam_jax.run.checkpoints import FORMAT
from tfcam_jax.run.files import WorkdirError
from tfcam_jax.run.workdir import ADDED, check_workdir, find_places, hold_workdir, load_config


def config(**overrides):
    made = default.get_config()
    made.data.manifest = "any.csv"
    made.update_from_flattened_dict(overrides)
    return config_json(made)


@pytest.fixture
def run(tmp_path):
    with hold_workdir(tmp_path / "run", config()):
        pass
    return tmp_path / "run"


def test_a_second_process_is_refused_at_once_with_the_first_ones_name(tmp_path):
    with hold_workdir(tmp_path / "run", config()):
        told = rf"another process trains in .*run \(host .*, pid {os.getpid()}\)"
        with pytest.raises(WorkdirError, match=told):
            check_workdir(tmp_path / "run", config())
        with pytest.raises(WorkdirError, match=told), hold_workdir(tmp_path / "run", config()):
            pass
    assert check_workdir(tmp_path / "run", config())


def test_a_killed_process_leaves_no_lock(tmp_path):
    code = (
        "import fcntl, sys, time; file = open(sys.argv[1], 'a+'); fcntl.flock(file, fcntl.LOCK_EX);"
        "print('held', flush=True); time.sleep(60)"
    )
    (tmp_path / "run").mkdir()
    (tmp_path / "run/.lock.holder").write_text("host h, pid 7\n")
    holder = subprocess.Popen([sys.executable, "-c", code, tmp_path / "run/.lock"], stdout=subprocess.PIPE, text=True)
    with holder:
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(WorkdirError, match="host h, pid 7"):
            check_workdir(tmp_path / "run", config())
        holder.kill()
    assert not check_workdir(tmp_path / "run", config())


@pytest.mark.parametrize(
    "name", [".lock", ".lock.holder", "..lock.holder.12", "run.json", ".run.json.123", ".config.json.7"]
)
def test_what_a_kill_before_the_config_leaves_is_no_hindrance(tmp_path, name):
    (tmp_path / name).write_text("")
    assert not check_workdir(tmp_path, config())
    with hold_workdir(tmp_path, config()):
        assert load_config(tmp_path) == config()


def test_each_start_is_recorded(run):
    first = json.loads((run / "run.json").read_text())
    for _ in range(2):
        with hold_workdir(run, config()):
            pass
    last = json.loads((run / "run.json").read_text())
    assert first["continued"] == [] and [start["command"] for start in last["continued"]] == [sys.argv, sys.argv]
    assert last | {"continued": []} == first


@pytest.mark.parametrize(
    ("key", "value"),
    [("data.num_threads", 7), ("data.num_workers", 3), ("checkpoint_every_steps", 5), ("grace_seconds", 1.0)],
)
def test_what_can_not_change_the_result_may_differ(run, key, value):
    assert check_workdir(run, config(**{key: value}))


@pytest.mark.parametrize(("key", "value"), [("data.channels", 1), ("seed", 3), ("log_every_steps", 3)])
def test_what_can_may_not(run, key, value):
    with pytest.raises(WorkdirError, match=rf"{key}: .* there, {value} asked for"):
        check_workdir(run, config(**{key: value}))


@pytest.mark.parametrize("content", ["", '{"seed": 0', "[1]", "\x00\x01"])
def test_a_damaged_config_is_named(run, content):
    (run / "config.json").write_text(content)
    for call in (lambda: check_workdir(run, config()), lambda: load_config(run)):
        with pytest.raises(WorkdirError, match=r"config\.json is damaged"):
            call()


@pytest.mark.parametrize(("number", "age"), [(FORMAT + 1, "a newer"), (None, "an older")])
def test_another_version_is_told(run, number, age):
    stored = json.loads((run / "run.json").read_text())
    stored = stored | {"format": number} if number else {k: v for k, v in stored.items() if k != "format"}
    (run / "run.json").write_text(json.dumps(stored))
    for call in (lambda: check_workdir(run, config()), lambda: load_config(run)):
        with pytest.raises(WorkdirError, match=f"written by {age} version of this project"):
            call()


def test_a_key_that_came_later_is_known_with_what_older_runs_did():
    """Else runs of before can't be restored. A default that changes is no longer what older runs did."""
    keys = flatten_dict(json.loads(default.get_config().to_json()), sep=".", keep_empty_nodes=True)
    first = set((pathlib.Path(__file__).parent / "first_config_keys.txt").read_text().split())
    assert keys.keys() - ADDED.keys() == first
    assert {key: keys[key] for key in ADDED} == ADDED


def test_options_of_a_source_that_is_not_used_make_no_difference(tmp_path):
    with hold_workdir(tmp_path / "run", config()):
        pass
    unused = {"data.cyborg_faces.images": "elsewhere", "data.demo.num_train": 7}
    assert check_workdir(tmp_path / "run", config(**unused))
    with pytest.raises(WorkdirError, match=r"data.demo.num_train: 1600 there, 7 asked for"):
        check_workdir(tmp_path / "run", config(**unused, **{"data.source": "demo"}))


@pytest.mark.parametrize("kind", ["link", "dangling", "folder"])
def test_a_lock_that_is_no_file_of_its_own_is_refused_and_left(tmp_path, kind):
    """Somebody else's file would be locked, or made."""
    (tmp_path / "precious").write_text("of somebody")
    (tmp_path / "run").mkdir()
    lock = tmp_path / "run/.lock"
    if kind == "folder":
        lock.mkdir()
    else:
        lock.symlink_to("../precious" if kind == "link" else "../nowhere")
    for call in (lambda: check_workdir(tmp_path / "run", config()), lambda: hold(tmp_path / "run")):
        with pytest.raises(WorkdirError, match=r"\.lock is a (link|folder), where a lock file would be"):
            call()
    assert (tmp_path / "precious").read_text() == "of somebody" and not (tmp_path / "nowhere").exists()
    assert [path.name for path in (tmp_path / "run").iterdir()] == [".lock"]


def hold(workdir):
    with hold_workdir(workdir, config()):
        pass


def test_a_holders_name_may_be_no_text(tmp_path):
    with hold_workdir(tmp_path / "run", config()):
        (tmp_path / "run/.lock.holder").write_bytes(b"\xff\xfe" * 1000)
        with pytest.raises(WorkdirError, match=r"another process trains in .*run \(\\xff") as caught:
            check_workdir(tmp_path / "run", config())
    assert len(str(caught.value)) < 2000


@pytest.mark.parametrize(("name", "told"), [("file", "is a file"), ("file/run", "is a file"), ("link", "is a link to")])
def test_a_workdir_that_can_not_be_made_is_told_before_any_work(tmp_path, name, told):
    (tmp_path / "file").write_text("of somebody")
    (tmp_path / "link").symlink_to("nowhere")
    with pytest.raises(WorkdirError, match=told):
        check_workdir(tmp_path / name, config())
    with pytest.raises(WorkdirError, match="can't be made: File name too long"):
        check_workdir(tmp_path / ("x" * 300), config())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "link"]


def test_relative_places_of_data_are_those_of_where_the_run_was_started(tmp_path, monkeypatch, caplog):
    places = {"data.manifest": "my/data.csv", "data.folders.images": "", "data.cyborg_faces.manual_dir": "/whole"}
    for folder in ("start", "elsewhere"):
        (tmp_path / folder / "my").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "start")
    with hold_workdir(tmp_path / "run", config(**places)):
        pass
    (tmp_path / "start/my/data.csv").touch()
    monkeypatch.chdir(tmp_path / "elsewhere")
    found = lambda: flatten_dict(find_places(tmp_path / "run", load_config(tmp_path / "run")), sep=".")
    assert {key: found()[key] for key in places} == places | {"data.manifest": f"{tmp_path}/start/my/data.csv"}
    assert not caplog.messages
    (tmp_path / "elsewhere/my/data.csv").touch()  # another one, of the same name
    assert found()["data.manifest"] == f"{tmp_path}/start/my/data.csv"
    assert f"{tmp_path}/start/my/data.csv, not {tmp_path}/elsewhere/my/data.csv" in caplog.messages[-1]
    (tmp_path / "start/my/data.csv").unlink()  # moved with the run
    assert found()["data.manifest"] == f"{tmp_path}/elsewhere/my/data.csv"
    assert "is not there any more" in caplog.messages[-1]
