"""Whole studies in jobs that are killed and cancelled: submitit's local executor, and a real Slurm."""

import functools
import json
import os
import re
import signal
import subprocess
import threading
import time
from pathlib import Path

import pytest
from local_slurm import local_slurm, why_absent
from tiny_manifest import write_manifest
from tiny_run import tiny_config
from tqdm import tqdm

from tfcam_jax.experiment import resolve
from tfcam_jax.run.interruption import StoppedError
from tfcam_jax.run.workdir import find_holder
from tfcam_jax.study import compare as compare_module
from tfcam_jax.study import engines, jobs
from tfcam_jax.study import page as study_report
from tfcam_jax.study.compare import compare
from tfcam_jax.study.outcomes import read_outcomes
from tfcam_jax.study.plan import plan_arms, plan_runs
from tfcam_jax.study.worker import ExperimentCache, train_here

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
KILLED, CANCELLED = "cross_entropy-published-seed0", "cyborg-alpha0.5-published-seed0"
EPOCHS = 20
SECONDS = 600.0  # for anything that is waited for


@pytest.fixture(scope="module")
def manifest(tmp_path_factory):
    return write_manifest(tmp_path_factory.mktemp("data"), train=12)


def make_config(manifest, engine, epochs):
    config = tiny_config(manifest)
    config.epochs, config.batch_size, config.grace_seconds = epochs, 5, 20.0
    config.compare.strategies, config.compare.engine = ("cross_entropy", "cyborg"), engine
    config.compare.cluster.update(minutes=10, cpus=1, gpus=0, jobs=2)
    return config


@pytest.fixture(scope="module")
def undisturbed(manifest, tmp_path_factory):
    """The same runs in this process: their results by folder."""
    config, workdir = make_config(manifest, "processes", EPOCHS), tmp_path_factory.mktemp("undisturbed")
    cache = ExperimentCache(64)
    runs = plan_runs(config, plan_arms(config), cache.source(resolve(config)))
    with tqdm(disable=True) as bar:
        assert not train_here(cache, runs, workdir, bar)
    return workdir


@pytest.fixture(params=["local", "slurm"])
def engine(request, tmp_path, monkeypatch):
    """The engine's name, where it is to be had, asked more often than clusters like."""
    monkeypatch.setattr(compare_module, "draw_comparison", lambda *_: None)
    monkeypatch.setattr(study_report, "draw_study", lambda *_: [])
    monkeypatch.setattr(jobs, "_SECONDS_BETWEEN_LOOKS", 0.2)
    monkeypatch.setattr(engines, "SECONDS_BETWEEN_QUERIES", 0.5)
    monkeypatch.setattr(engines._Slurm, "patience", 2.0)
    if request.param == "local":
        yield "local"
        return
    if missing := why_absent():
        pytest.skip(missing)
    with local_slurm(tmp_path / "slurm") as environment:
        monkeypatch.setenv("SLURM_CONF", environment["SLURM_CONF"])
        yield "slurm"
        wait_for(lambda: not in_the_queue())


def in_the_queue():
    done = subprocess.run(["squeue", "--noheader", "--format=%i"], capture_output=True, text=True, check=True)
    return done.stdout.split()


def wait_for(what):
    end = time.monotonic() + SECONDS
    while not (found := what()):
        assert time.monotonic() < end, "nothing came"
        time.sleep(0.05)
    return found


def process_at(folder):
    """The process that trains in a run's folder; None before it has saved something."""
    saved = [path for path in (folder / "checkpoints").glob("[0-9]*/state") if path.parent.name.isdigit()]
    holder = find_holder(folder) if saved else None
    return int(holder.rsplit(" ", 1)[1]) if holder else None


def kill(folder, happened):
    process = wait_for(lambda: process_at(folder))
    os.kill(process, signal.SIGKILL)
    happened.append("killed")


def cancel(engine, folder, happened):
    """As somebody who needs the host."""
    process = wait_for(lambda: process_at(folder))
    if engine == "slurm":
        subprocess.run(["scancel", job_of(process)], check=True)
    else:
        os.kill(process, signal.SIGTERM)
    happened.append("cancelled")


def job_of(process):
    variables = Path(f"/proc/{process}/environ").read_bytes().split(b"\0")
    return dict(line.split(b"=", 1) for line in variables if b"=" in line)[b"SLURM_JOB_ID"].decode()


def test_jobs_that_die_are_taken_up_again_and_come_to_the_same(engine, manifest, tmp_path, undisturbed, caplog):
    workdir, happened = tmp_path / "a study", []
    for disturb, *arguments in ((kill, workdir / KILLED), (cancel, engine, workdir / CANCELLED)):
        threading.Thread(target=disturb, args=(*arguments, happened), daemon=True).start()
    found = compare(make_config(manifest, engine, EPOCHS), workdir)
    assert sorted(happened) == ["cancelled", "killed"]
    for folder in (KILLED, CANCELLED):
        for name in ("results.json", "scores.csv", "metrics.jsonl"):
            assert (workdir / folder / name).read_bytes() == (undisturbed / folder / name).read_bytes()
        run = json.loads((workdir / folder / "run.json").read_text())
        assert len(run["continued"]) == 1
    for folder in (KILLED, CANCELLED):
        assert re.search(rf"{folder}: its job .*; it is handed in once more, and goes on from step \d+", caplog.text)
    assert len(read_outcomes(workdir)) == 2 * 3 and (workdir / "table.txt").exists()
    assert found["provenance"]["config"]["compare"]["engine"] == engine
    assert not (workdir / "jobs").exists() and not (workdir / "failures.txt").exists()


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_has_every_job_save_and_leaves_none(engine, manifest, tmp_path, number, code):
    workdir, folders = tmp_path / "study", (KILLED, CANCELLED)
    found = []

    def send():
        found.extend(wait_for(functools.partial(process_at, workdir / folder)) for folder in folders)
        os.kill(os.getpid(), number)

    threading.Thread(target=send, daemon=True).start()
    with pytest.raises(StoppedError, match="the same command goes on") as stopped:
        compare(make_config(manifest, engine, 10_000), workdir)
    assert stopped.value.exit_code == code and len(found) == 2
    logs = "\n".join(path.read_text() for path in workdir.glob("jobs/*/*.out"))
    assert logs.count("Job completed successfully") == 2  # which is to say that each saved, and answered
    for folder in folders:
        assert find_holder(workdir / folder) is None
    end = time.monotonic() + 10.0
    while any(os.path.exists(f"/proc/{pid}") for pid in found) and time.monotonic() < end:
        time.sleep(0.05)
    assert not [pid for pid in found if os.path.exists(f"/proc/{pid}")]
