"""Runs that are cut off, wherever, and started again: the same bits and the same lines as one that was not."""

import json
import multiprocessing
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import threading
import time

import jax
import numpy as np
import pytest
from test_train import make_config, stored_state
from tiny_manifest import write_manifest

from tfcam_jax import training as train
from tfcam_jax.data.fingerprint import take_fingerprint
from tfcam_jax.data.pipeline import WorkerError
from tfcam_jax.data.source import DataError
from tfcam_jax.evaluation import evaluate
from tfcam_jax.experiment import build_experiment, open_dataset, resolve
from tfcam_jax.inference import restore
from tfcam_jax.run.checkpoints import Checkpoints
from tfcam_jax.run.data_record import load_fingerprint
from tfcam_jax.run.files import WorkdirError
from tfcam_jax.run.interruption import Interruption, StoppedError

REPO = pathlib.Path(__file__).parent.parent


@pytest.fixture(scope="module")
def manifest(tmp_path_factory):
    return write_manifest(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def config(manifest):
    """Three epochs of three batches; a line after the second and third, a checkpoint in their middle."""
    drawn = {"model.dropout": 0.3, "augment.map_blur": (0.1, 2.0)}
    return make_config(manifest, checkpoint_every_steps=2, **drawn, **{"guidance.weighting": "loss_share"})


@pytest.fixture(scope="module")
def like(config):
    return build_experiment(resolve(config)).random_state()


@pytest.fixture(scope="module")
def whole(config, tmp_path_factory):
    """A run that nothing happened to."""
    workdir = tmp_path_factory.mktemp("runs") / "whole"
    train.train(config, workdir)
    return workdir


class Cut(BaseException):
    """Ends a run as nothing in it expects."""


def cut(monkeypatch, owner, name, call, after=False, action=None):
    """Makes the so-many-th call of a function the last one of its run: before it, or after."""
    original, calls = getattr(owner, name), []

    def function(*arguments, **options):
        calls.append(1)
        if len(calls) != call:
            return original(*arguments, **options)
        result = original(*arguments, **options) if after else None
        if action is None:
            raise Cut
        action()
        return result if after else original(*arguments, **options)

    monkeypatch.setattr(owner, name, function)


def outcome(workdir, like):
    """Everything that a run leaves, by name: files as bytes, arrays of all checkpoints that are kept."""
    found = {name: (workdir / name).read_bytes() for name in ("metrics.jsonl", "results.json")}
    with Checkpoints(workdir, read_only=True) as checkpoints:
        for step in checkpoints.steps():
            leaves = jax.tree_util.tree_leaves_with_path(jax.device_get(checkpoints.restore(step, like)[0]))
            found |= {f"{step} {path}": np.asarray(leaf).tobytes() for path, leaf in leaves}
    return found


@pytest.mark.parametrize(
    ("owner", "name", "call", "after"),
    [
        pytest.param(train, "_start", 1, True, marks=pytest.mark.slow),
        pytest.param(train.MetricWindow, "add", 1, True, marks=pytest.mark.slow),  # before anything was saved
        (train.MetricWindow, "add", 5, False),  # in an epoch's middle, a checkpoint just before
        pytest.param(train.MetricWindow, "add", 8, True, marks=pytest.mark.slow),
        pytest.param(
            train.MetricWriter, "sync", 4, True, marks=pytest.mark.slow
        ),  # the line of validation is there, its checkpoint not
        pytest.param(train, "evaluate_source", 2, False, marks=pytest.mark.slow),
        pytest.param(Checkpoints, "save", 3, False, marks=pytest.mark.slow),
        pytest.param(Checkpoints, "save", 6, True, marks=pytest.mark.slow),
        pytest.param(train, "evaluate_best", 1, False, marks=pytest.mark.slow),
        pytest.param(train, "write_json", 1, False, marks=pytest.mark.slow),
    ],
)
def test_a_run_cut_off_comes_to_the_same(config, whole, like, tmp_path, monkeypatch, owner, name, call, after):
    with monkeypatch.context() as patched:
        cut(patched, owner, name, call, after)
        with pytest.raises(Cut):
            train.train(config, tmp_path / "cut")
    train.train(config, tmp_path / "cut")
    assert outcome(tmp_path / "cut", like) == outcome(whole, like)


@pytest.mark.slow
def test_a_run_with_a_schedule_cut_off_comes_to_the_same(config, tmp_path, monkeypatch):
    """Alpha follows the step, in the update as in the lines; norms of terms stand in lines begun before the cut."""
    config = config.copy_and_resolve_references()
    config.guidance.update(weighting=None, schedule="linear_down", schedule_share=0.8)
    config.log_gradient_norms = True
    train.train(config, tmp_path / "whole")
    like = build_experiment(resolve(config)).random_state()
    with monkeypatch.context() as patched:
        cut(patched, train.MetricWindow, "add", 5)
        with pytest.raises(Cut):
            train.train(config, tmp_path / "cut")
    train.train(config, tmp_path / "cut")
    assert outcome(tmp_path / "cut", like) == outcome(tmp_path / "whole", like)
    assert b"train/grad_norm_opposed" in outcome(tmp_path / "cut", like)["metrics.jsonl"]


def terminate():
    os.kill(os.getpid(), signal.SIGTERM)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("owner", "name", "call", "step"),
    [
        pytest.param(train.MetricWindow, "add", 1, 1, marks=pytest.mark.slow),
        (train.MetricWindow, "add", 5, 5),
        pytest.param(train.MetricWindow, "add", 6, 6, marks=pytest.mark.slow),  # the last of an epoch
        pytest.param(train, "evaluate_source", 2, 6, marks=pytest.mark.slow),  # validation is cut short and done again
    ],
)
def test_a_run_asked_to_stop_comes_to_the_same(config, whole, like, tmp_path, monkeypatch, owner, name, call, step):
    handlers = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)]
    with monkeypatch.context() as patched:
        cut(patched, owner, name, call, action=terminate)
        with pytest.raises(StoppedError, match=f"SIGTERM: saved after step {step}; the same command") as stopped:
            train.train(config, tmp_path / "cut")
    assert stopped.value.exit_code == 143
    assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)] == handlers
    assert stored_state(tmp_path / "cut", config)[1]["step"] == step
    train.train(config, tmp_path / "cut")
    assert outcome(tmp_path / "cut", like) == outcome(whole, like)


def test_a_damaged_checkpoint_is_made_anew(config, whole, like, tmp_path, caplog):
    workdir = shutil.copytree(whole, tmp_path / "run")
    for path in (workdir / "checkpoints/9/state").rglob("*"):
        if path.is_file():
            path.write_bytes(b"")
    train.train(config, workdir)
    assert "checkpoints/9/state is damaged" in caplog.text and "from the checkpoint of step 8" in caplog.text
    assert outcome(workdir, like) == outcome(whole, like)


def test_other_data_are_refused_and_named_unless_they_are_accepted(manifest, tmp_path, monkeypatch, caplog):
    folder, workdir = shutil.copytree(manifest.parent, tmp_path / "data"), tmp_path / "run"
    config = make_config(folder / "manifest.csv", checkpoint_every_steps=1)
    with monkeypatch.context() as patched:
        cut(patched, train.MetricWindow, "add", 2)
        with pytest.raises(Cut):
            train.train(config, workdir)
    kept = (workdir / "data.json").read_bytes()
    train0, val0 = folder / "images/train0.png", folder / "images/val0.png"
    content = train0.read_bytes()
    train0.write_bytes(val0.read_bytes())
    val0.write_bytes(content)
    shutil.copy(folder / "maps/train1.png", folder / "maps/train2.png")
    rows = (folder / "manifest.csv").read_text()
    fewer = rows.replace("train,dark,images/train4.png,maps/train4.png,old,train4\n", "")
    (folder / "manifest.csv").write_text(fewer.replace("old,train2", "old,train6"))
    with pytest.raises(DataError) as refused:
        train.train(config, workdir)
    assert (workdir / "data.json").read_bytes() == kept
    assert str(refused.value).splitlines()[1:-1] == [
        "  train: removed 1 image (images/train4.png)",
        "  train: content of 1 image (images/train0.png)",
        "  train: human maps of 1 image (images/train2.png)",
        "  train: groups of 1 image (images/train2.png)",
        "  val: content of 1 image (images/val0.png)",
    ]
    caplog.clear()
    train.train(config, workdir, accept_changed_data=True)
    assert "removed 1 image (images/train4.png)" in caplog.text
    dataset = open_dataset(resolve(config))
    assert load_fingerprint(workdir) == take_fingerprint(dataset.class_names, dataset.splits)  # its own from now on


def test_a_config_changed_since_the_training_is_refused(whole, tmp_path):
    workdir = shutil.copytree(whole, tmp_path / "run")
    stored = json.loads((workdir / "config.json").read_text())
    stored["data"]["num_threads"], stored["data"]["mean"] = 1, [0.5, 0.5, 0.4]
    (workdir / "config.json").write_text(json.dumps(stored))
    with pytest.raises(WorkdirError, match=r"data\.mean: None in training, .*0\.4.* in the file"):
        restore(workdir)


@pytest.mark.slow
def test_a_file_that_vanishes_stops_the_run(tmp_path, monkeypatch):
    manifest = write_manifest(tmp_path / "data")
    cut(monkeypatch, train.MetricWindow, "add", 3, True, (tmp_path / "data/images/train4.png").unlink)
    with pytest.raises(DataError, match=r"train4\.png"):  # kept decoded, it would be read no more
        train.train(make_config(manifest, **{"data.cache_megabytes": 0}), tmp_path / "run")


@pytest.mark.slow
def test_a_worker_that_is_killed_stops_the_run(tmp_path, monkeypatch):
    manifest = write_manifest(tmp_path / "data", train=200)

    def kill_workers():
        children = multiprocessing.active_children()
        assert children
        for child in children:
            child.kill()

    cut(monkeypatch, train.MetricWindow, "add", 2, True, kill_workers)
    started = time.monotonic()
    with pytest.raises(WorkerError, match=r"exit code -9.*num_workers"):
        train.train(make_config(manifest, **{"data.num_workers": 1}), tmp_path / "run")
    assert time.monotonic() - started < 60


@pytest.mark.slow
def test_evaluation_beside_a_running_training_reads_what_is_complete(whole, tmp_path):
    workdir = shutil.copytree(whole, tmp_path / "run")
    (workdir / "checkpoints/12.orbax-checkpoint-tmp-1").mkdir()
    evaluate(workdir, out=tmp_path / "evaluation", faithfulness_images=0)
    assert (workdir / "checkpoints/12.orbax-checkpoint-tmp-1").is_dir()


def test_signals_are_left_alone_outside_the_main_thread():
    told = []

    def inside():
        with Interruption(1.0) as stop:
            told.append(stop.requested(1))

    thread = threading.Thread(target=inside)
    thread.start()
    thread.join()
    assert told == [False]


def test_an_ignored_signal_stays_ignored():
    """As in a process whose parent ends it when Ctrl-C is pressed."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with Interruption(1.0) as stop:
            os.kill(os.getpid(), signal.SIGINT)
            assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN and not stop.requested(1)
    finally:
        signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize(
    ("body", "status"),
    [
        ("time.sleep(60)", -signal.SIGTERM),  # the second signal ends it at once
        ("time.sleep(59)", 143),  # the grace time is over
    ],
)
def test_a_process_that_does_not_stop_is_ended(body, status):
    code = (
        "import os, signal, threading, time\nfrom tfcam_jax.run.interruption import Interruption\n"
        f"with Interruption(0.5 if {status} > 0 else 50) as stop:\n"
        "    print('ready', flush=True)\n"
        "    try:\n        threading.Event().wait(0.01)\n    finally:\n"
        f"        {body}\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=REPO
    )
    with process:
        assert process.stdout.readline() == "ready\n"
        process.send_signal(signal.SIGTERM)
        told = process.stderr.readline() + process.stderr.readline()
        if status < 0:
            process.send_signal(signal.SIGTERM)
        assert process.wait(20) == status
    assert "SIGTERM: finishing the step and saving" in told


@pytest.mark.parametrize(("parent", "second"), [(None, signal.SIG_DFL), ("a study", signal.SIG_IGN)])
def test_a_second_signal_ends_at_once_but_not_one_of_a_studys_processes(monkeypatch, capfd, parent, second):
    """To all processes of a study a signal may come twice: by itself and from the parent, which alone decides."""
    monkeypatch.setattr(multiprocessing, "parent_process", lambda: parent)
    with Interruption(60.0) as stop:
        terminate()
        assert stop.requested(0)
        assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)] == [second] * 2
    assert ("once more ends at once" in capfd.readouterr().err) == (parent is None)
