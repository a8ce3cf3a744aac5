"""Several processes on this machine: the same run as one, one writer, and no survivor when one of them dies."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest
from tiny_manifest import write_manifest
from tiny_run import tiny_config

from tfcam_jax import training as train
from tfcam_jax.devices import distributed
from tfcam_jax.devices.distributed import DistributedError, end_with_others, initialize, started_by_cluster
from tfcam_jax.experiment import build_experiment, resolve
from tfcam_jax.inference import restore

REPO = Path(__file__).parents[1]
SCRIPTS = sorted((REPO / "launch").glob("*.sh"))
# Of tests/tiny_run.py's config; seven images a batch, which two processes can't share evenly.
CHANGES = {"batch_size": 7, "epochs": 2, "log_every_steps": 2, "optimizer.clip_norm": 1.0}


@pytest.fixture(scope="module")
def manifest(tmp_path_factory):
    return write_manifest(tmp_path_factory.mktemp("data"), train=24)


def make_config(manifest, **changes):
    config = tiny_config(manifest)
    config.update_from_flattened_dict({**CHANGES, **changes})
    return config


def environment():
    """One device a process; compiled as fast as the tests in this process are."""
    flags = os.environ["XLA_FLAGS"] + " --xla_force_host_platform_device_count=1"
    return {**os.environ, "XLA_FLAGS": flags, "PYTHON": sys.executable, "PYTHONPATH": str(REPO)}


def train_command(manifest, workdir, **changes):
    flags = {
        "data.manifest": manifest,
        "data.labels": "('dark','bright')",
        "data.image_size": 32,
        "model.name": "small_cnn",
        "optimizer.learning_rate": 0.05,
        "strategy": "difference",
        "evaluation.batch_size": 5,
        **CHANGES,
        **changes,
    }
    return [
        "launch/train.py",
        "--config=configs/default.py",
        f"--workdir={workdir}",
        *(f"--config.{key}={value}" for key, value in flags.items()),
    ]


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


@pytest.mark.slow
@pytest.mark.end_to_end
def test_two_processes_train_as_one(manifest, tmp_path):
    """By launch/local_processes.sh: parameters, lines and results of one process; one writes and shows them."""
    done = subprocess.run(
        [REPO / "launch/local_processes.sh", "2", *train_command(manifest, tmp_path / "two")],
        cwd=REPO,
        env=environment() | {"PORT": str(free_port())},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert (done.stdout + done.stderr).count("best checkpoint, epoch") == 1
    config = make_config(manifest)
    results = train.train(config, tmp_path / "one")
    one, two = (jax.device_get(restore(tmp_path / name).state) for name in ("one", "two"))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6, rtol=0), one, two)
    lines = [[json.loads(x) for x in (tmp_path / n / "metrics.jsonl").read_text().splitlines()] for n in ("one", "two")]
    assert len(lines[0]) == len(lines[1]) == 6
    for here, there in zip(*lines, strict=True):
        assert here == pytest.approx(there, rel=1e-4, abs=1e-5)
    written = json.loads((tmp_path / "two/results.json").read_text())
    assert written["sets"].keys() == results["sets"].keys() == {"val", "closed", "open"}
    for name, there in written["sets"].items():
        here = dict(results["sets"][name])
        assert there.pop("map_agreement") == pytest.approx(here.pop("map_agreement"), abs=1e-4)
        assert there == pytest.approx(here, abs=1e-4)
    assert len(list((tmp_path / "two/tensorboard").iterdir())) == 1


@pytest.mark.slow
@pytest.mark.end_to_end
def test_processes_end_when_one_is_killed(manifest, tmp_path):
    """kill -9 in the middle of the run: the other ends by itself within seconds and says why."""
    port, workdir = free_port(), tmp_path / "run"
    logs = [tmp_path / f"{number}.log" for number in range(2)]
    joined = lambda number: [f"--coordinator_address=127.0.0.1:{port}", "--num_processes=2", f"--process_id={number}"]
    processes = []
    for number, log in enumerate(logs):
        with log.open("w") as file:
            command = [sys.executable, *train_command(manifest, workdir, epochs=10_000), *joined(number)]
            started = subprocess.Popen(command, cwd=REPO, env=environment(), stdout=file, stderr=file)
            processes.append(started)
    try:
        metrics = workdir / "metrics.jsonl"
        while not metrics.exists() or metrics.read_text().count("\n") < 3:
            assert all(process.poll() is None for process in processes), [log.read_text() for log in logs]
            time.sleep(0.1)
        processes[1].send_signal(signal.SIGKILL)
        assert processes[0].wait(timeout=60) != 0
    finally:
        for process in processes:
            process.kill()
            process.wait()
    said = logs[0].read_text()
    assert "another task died" in said or "another process ended first" in said, said
    assert not (workdir / "results.json").exists()


def test_each_process_reads_its_part(manifest, monkeypatch):
    whole = list(build_experiment(resolve(make_config(manifest))).train_epoch(1))
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    parts = []
    for number in range(2):
        monkeypatch.setattr(jax, "process_index", lambda number=number: number)
        parts.append(list(build_experiment(resolve(make_config(manifest))).train_epoch(1)))
    for batch, *shares in zip(whole, *parts, strict=True):
        assert [len(share["index"]) for share in shares] == [4, 4]
        rows = np.concatenate([share["index"] for share in shares])
        np.testing.assert_array_equal(rows[rows >= 0], batch["index"][batch["index"] >= 0])


@pytest.mark.parametrize(
    ("variables", "several"),
    [
        ({}, False),
        ({"SLURM_JOB_ID": "7", "SLURM_NTASKS": "8", "SLURM_PROCID": "0"}, False),  # a batch script, outside srun
        ({"SLURM_STEP_NODELIST": "n[1-2]", "SLURM_PROCID": "3", "SLURM_NTASKS": "8"}, True),
        ({"SLURM_STEP_NODELIST": "n1", "SLURM_PROCID": "0", "SLURM_NTASKS": "1"}, False),
        ({"SLURM_STEP_NODELIST": "n1", "SLURM_PROCID": "0", "SLURM_NTASKS": "8", "SLURM_STEP_NUM_TASKS": "1"}, False),
        ({"OMPI_COMM_WORLD_SIZE": "2"}, True),
        ({"OMPI_COMM_WORLD_SIZE": "1"}, False),
        ({"TPU_WORKER_HOSTNAMES": "t0,t1"}, True),
        ({"TPU_WORKER_HOSTNAMES": "localhost"}, False),
    ],
)
def test_cluster_is_known_by_its_variables(variables, several):
    assert started_by_cluster(variables) == several


def test_without_others_a_process_stays_alone(monkeypatch):
    monkeypatch.setattr(jax.distributed, "initialize", lambda **_: pytest.fail("looked for others"))
    monkeypatch.setattr(distributed, "started_by_cluster", lambda _: False)
    assert not initialize()
    with pytest.raises(DistributedError, match="give --num_processes, --process_id too"):
        initialize(coordinator_address="127.0.0.1:1")
    monkeypatch.setattr(distributed, "started_by_cluster", lambda _: True)
    assert not initialize(num_processes=1)


def test_numbers_that_do_not_fit_are_an_error():
    with pytest.raises(DistributedError, match="--process_id is 2; of 2 processes the last is number 1"):
        initialize("127.0.0.1:1", num_processes=2, process_id=2)


def test_cluster_fills_in_what_is_not_given(monkeypatch):
    asked = {}
    monkeypatch.setattr(jax.distributed, "initialize", lambda **given: asked.update(given))
    monkeypatch.setattr(distributed, "started_by_cluster", lambda _: True)
    initialize(coordinator_address="host:1", heartbeat_seconds=7)
    expected = {"coordinator_address": "host:1", "num_processes": None, "process_id": None}
    assert asked == {**expected, "heartbeat_timeout_seconds": 7}


def exit_after(error: Exception) -> SystemExit:
    """As a launch script exits: the error's message is printed already."""
    told = SystemExit(1)
    told.__context__ = error
    return told


@pytest.mark.parametrize(
    ("error", "status", "text"),
    [
        (SystemExit("error: no such file"), 1, "process 1 of 2: error: no such file"),
        (SystemExit(143), 143, ""),
        (RuntimeError("Gloo all-reduce failed"), 1, "another process ended first"),
        (exit_after(RuntimeError("a checkpoint could not be written: Gloo failed")), 1, "another process ended first"),
        (RuntimeError("a bug"), 1, "RuntimeError: a bug"),
        (KeyboardInterrupt(), 1, "KeyboardInterrupt"),
    ],
)
def test_failure_of_one_process_ends_it_at_once(monkeypatch, capsys, error, status, text):
    def fail():
        raise error

    with pytest.raises(type(error)):
        end_with_others(fail)
    left = []
    monkeypatch.setattr(os, "_exit", left.append)
    monkeypatch.setattr(jax.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    monkeypatch.setattr(jax, "process_index", lambda: 1)
    end_with_others(fail)
    assert left == [status]
    said = capsys.readouterr().err
    assert text in said and ("ended first" in said) == ("ended first" in text)


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_launch_scripts_are_clean(script):
    if shutil.which("shellcheck") is None:
        pytest.skip("shellcheck is not installed")
    done = subprocess.run(["shellcheck", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
    assert os.access(script, os.X_OK)


@pytest.mark.parametrize(
    ("script", "program", "expected"),
    [
        ("slurm.sh", "srun", ["--kill-on-bad-exit=1", "py", "launch/train.py", "--config.compare.seeds=(0, 1)"]),
        (
            "tpu_pod.sh",
            "gcloud",
            [
                *("compute", "tpus", "tpu-vm", "ssh", "slice", "--zone=here", "--worker=all"),
                r"--command=cd ~/tfcam_jax && py launch/train.py --config.compare.seeds=\(0\,\ 1\) ",
            ],
        ),
    ],
)
def test_launch_scripts_hand_every_flag_on(tmp_path, script, program, expected):
    """A stand-in for the cluster's program notes what it was called with."""
    stand_in = tmp_path / program
    stand_in.write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n')
    stand_in.chmod(0o755)
    variables = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "PYTHON": "py", "TPU": "slice", "ZONE": "here"}
    command = [REPO / "launch" / script, "launch/train.py", "--config.compare.seeds=(0, 1)"]
    done = subprocess.run(command, env=variables, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == expected


def test_local_processes_end_with_the_first_bad_status(tmp_path):
    """Each process gets its number; the script's status is that of one that failed."""
    script = tmp_path / "fails.py"
    lines = [
        "import os, sys",
        r"os.write(1, f'{sys.argv[1:]}\n'.encode())",
        "sys.exit(5 * ('--process_id=1' in sys.argv))",
    ]
    script.write_text("\n".join(lines))
    command = [REPO / "launch/local_processes.sh", "3", script, "--flag=a b"]
    variables = {**os.environ, "PYTHON": sys.executable, "PORT": "4000"}
    done = subprocess.run(command, env=variables, capture_output=True, text=True, check=False)
    assert done.returncode == 5
    joined = ["--coordinator_address=127.0.0.1:4000", "--num_processes=3"]
    expected = [str(["--flag=a b", *joined, f"--process_id={number}"]) for number in range(3)]
    assert sorted(done.stdout.splitlines()) == expected
    assert subprocess.run(command[:1], capture_output=True, check=False).returncode == 2
