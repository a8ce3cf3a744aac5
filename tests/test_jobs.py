"""Runs of a study as jobs: what is taken up again and how often, what the locks keep apart, submitit's local jobs."""

import contextlib
import dataclasses
import os
import signal
import sys
import threading
import time
from pathlib import Path

import pytest
from tiny_manifest import write_manifest
from tiny_run import tiny_config
from tqdm import tqdm

from tfcam_jax.data.outputs import describe_process
from tfcam_jax.errors import ConfigError
from tfcam_jax.experiment import resolve
from tfcam_jax.run.interruption import Interruption, StoppedError
from tfcam_jax.run.workdir import find_holder, locked_workdir, note_holder
from tfcam_jax.study import engines, jobs, member
from tfcam_jax.study.compare import compare
from tfcam_jax.study.engines import open_engine
from tfcam_jax.study.jobs import ClusterError, train_in_jobs
from tfcam_jax.study.member import Ending, Share, train_as_job
from tfcam_jax.study.plan import plan_arms, plan_runs
from tfcam_jax.study.worker import ExperimentCache


@pytest.fixture(scope="module")
def manifest(tmp_path_factory):
    return write_manifest(tmp_path_factory.mktemp("data"), train=12)


def make_config(manifest, **overrides):
    config = tiny_config(manifest)
    config.epochs, config.batch_size, config.grace_seconds = 1, 5, 5.0
    config.compare.strategies, config.compare.engine = ("cross_entropy", "cyborg"), "local"
    config.update_from_flattened_dict({f"compare.{key}": value for key, value in overrides.items()})
    return config


def planned(config):
    return plan_runs(config, plan_arms(config), ExperimentCache(0).source(resolve(config)))


@dataclasses.dataclass
class Paths:
    folder: Path
    result_pickle: Path
    stderr: Path


class Job:
    """Of the engine below: it has answered once its file is there."""

    def __init__(self, name, folder, ending):
        self.job_id, self.ending = name, ending
        self.paths = Paths(folder, folder / f"{name}.pkl", folder / f"{name}.err")
        if ending.state != "died":
            self.paths.result_pickle.touch()

    def result(self):
        return self.ending


class Engine:
    """Jobs that end as `endings` say for their run's folder, one after the other; the last one also every later job.

    An ending may come with a step: that of a checkpoint which the job leaves.
    """

    def __init__(self, folder, endings, most=2, refusals=()):
        self.folder, self.endings, self.refusals = folder, endings, list(refusals)
        self.most, self.accelerators, self.patience = most, 0, 0.0
        self.submitted, self.cancelled, self.stopped, self.largest = [], [], [], 0
        self._alive, self._all = set(), {}

    def submit(self, function, run, workdir, held, launcher, share, accelerators):
        if self.refusals and (refusal := self.refusals.pop(0)):
            raise refusal
        assert function is train_as_job
        left = self.endings[run.entry.folder]
        ending, step = left.pop(0) if len(left) > 1 else left[0]
        if step is not None:
            (workdir / run.entry.folder / "checkpoints" / str(step)).mkdir(parents=True, exist_ok=True)
        name = str(len(self._all))
        self.submitted.append((run.entry.folder, share.cores[0]))
        self._all[name] = ending
        return Job(name, self.folder, ending)

    def share(self, slot):
        return Share((slot,))

    def ended(self, jobs):
        self.largest = max(self.largest, len(jobs))
        return {name: "NODE_FAIL" for name in jobs if self._all[name].state == "died"}

    def stop(self, jobs):
        self.stopped += jobs

    def cancel(self, jobs):
        self.cancelled += jobs


DONE, DIED, STOPPED = Ending("done"), Ending("died"), Ending("stopped", "stopped by SIGTERM: saved", 143)
HELD, ORPHANED = Ending("held", "host far, pid 1"), Ending("orphaned")


@pytest.fixture(scope="module")
def runs(manifest):
    return planned(make_config(manifest))


@pytest.fixture
def queue(runs, tmp_path, monkeypatch):
    """Trains two runs with an engine whose jobs end as told; returns the engine, the failures and the counted runs."""
    monkeypatch.setattr(jobs, "_SECONDS_BETWEEN_LOOKS", 0.001)
    monkeypatch.setattr(jobs, "SECONDS_BETWEEN_QUERIES", 0.001)

    def train(first, second=((DONE, None),), restarts=2, **options):
        engine = Engine(tmp_path, dict(zip([r.entry.folder for r in runs], map(list, (first, second)), strict=True)))
        vars(engine).update(options)
        with tqdm(total=len(runs), disable=True) as bar:
            failures = train_in_jobs(engine, runs, tmp_path, restarts, 0, bar)
        return engine, failures, bar.n

    train.folders = [run.entry.folder for run in runs]
    return train


@pytest.mark.parametrize("ending", [DIED, STOPPED, HELD])
def test_a_run_whose_job_dies_is_taken_up_again(queue, ending, caplog):
    engine, failures, counted = queue([(ending, None), (ending, 7), (DONE, None)])
    first, second = queue.folders
    assert sorted(run for run, _ in engine.submitted) == sorted([first] * 3 + [second])
    assert not failures and counted == 2
    assert f"{first}: its job 0 " in caplog.text and "goes on from its beginning" in caplog.text
    assert "goes on from step 7" in caplog.text
    told = {DIED: "ended without an answer (node_fail)", STOPPED: "was stopped by SIGTERM", HELD: "(host far, pid 1)"}
    assert told[ending] in caplog.text
    assert set(engine.cancelled) >= {"0"}  # should it live on after all


def test_how_often_is_bounded_by_jobs_in_a_row_that_bring_nothing(queue):
    engine, failures, counted = queue([(DIED, None)])
    first, _ = queue.folders
    assert [run for run, _ in engine.submitted].count(first) == 3 and counted == 2
    assert failures.keys() == {first}
    assert (
        "ended without an answer (node_fail), and so did 3 in a row without a new checkpoint. Its log"
        in failures[first]
    )


def test_whoever_gets_on_is_never_given_up(queue):
    gets_on = [(DIED, None if step % 2 else step) for step in range(20)]
    engine, failures, _ = queue([*gets_on, (DONE, None)])
    assert not failures and len(engine.submitted) == 20 + 2


def test_a_run_that_fails_by_itself_is_not_repeated(queue):
    engine, failures, counted = queue([(Ending("failed", "DataError: no such file\ntrace"), None)])
    assert failures == {queue.folders[0]: "DataError: no such file\ntrace"}
    assert len(engine.submitted) == 2 and counted == 2


def test_no_more_jobs_at_once_than_may_be_each_with_a_slot_of_its_own(queue):
    engine, *_ = queue([(DIED, 1), (DIED, 2), (DONE, None)])
    assert engine.largest == 2 and {slot for _, slot in engine.submitted} == {0, 1}
    engine, *_ = queue([(DIED, 1), (DIED, 2), (DONE, None)], most=1)
    assert engine.largest == 1 and {slot for _, slot in engine.submitted} == {0}


def test_a_host_that_does_not_see_the_lock_ends_the_study(queue):
    with pytest.raises(ClusterError, match="does not see the lock that this process holds"):
        queue([(ORPHANED, None)], [(DIED, None)], patience=60.0)


def test_jobs_that_are_refused(queue, caplog):
    from submitit.core.utils import FailedJobError

    no = FailedJobError("sbatch: error: invalid partition\nsbatch: error: Batch job submission failed")
    with pytest.raises(ClusterError, match=r"refuses the study's jobs: sbatch: error: invalid partition; sbatch: err"):
        queue([(DONE, None)], refusals=[no])
    assert not caplog.text
    engine, failures, counted = queue([(DONE, None)], refusals=[None, no, no])  # over a limit, as while others wait
    assert (len(engine.submitted), failures, counted) == (2, {}, 2)
    assert caplog.text.count("refuses a job for now") == 1


def test_a_signal_has_jobs_save_and_leaves_none(queue):
    """Those that have answered by then need no more; the others are cancelled."""
    threading.Timer(0.2, os.kill, [os.getpid(), signal.SIGTERM]).start()
    engine = []

    with pytest.raises(StoppedError, match="what was trained is saved; the same command goes on") as stopped:
        queue([(DIED, None)], [(DIED, None)], patience=60.0, stop=engine.append, cancel=engine.append)
    assert stopped.value.exit_code == 143
    (asked, cancelled) = engine
    assert asked.keys() == {"0", "1"} and not cancelled  # they ended by themselves within their time


@pytest.fixture
def in_this_process(monkeypatch):
    """Lets a job's function run here without its hold on the process."""
    monkeypatch.setattr(member, "_end_with_creator", lambda: None)
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGUSR2)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def test_a_job_that_nobody_waits_for_does_nothing(runs, tmp_path, in_this_process, monkeypatch):
    run = runs[0]
    arguments = (run, tmp_path, 0, describe_process(), Share(), 0)
    assert train_as_job(*arguments) == Ending("orphaned")
    monkeypatch.setattr(member, "_SECONDS_FOR_A_NAME", 0.0)
    with locked_workdir(tmp_path):
        note_holder(tmp_path)
        assert train_as_job(run, tmp_path, 0, "host gone, pid 7", Share(), 0) == Ending("orphaned")
        assert sorted(path.name for path in tmp_path.iterdir()) == [".lock", ".lock.holder"]


def test_two_jobs_never_train_the_same_run(runs, tmp_path, in_this_process, monkeypatch):
    """The second waits for the first one's lock, for as long as a file server may keep that of a lost host."""
    run = runs[0]
    folder = tmp_path / run.entry.folder
    folder.mkdir()
    arguments = (run, tmp_path, 0, describe_process(), Share(), 0)
    monkeypatch.setattr(ExperimentCache, "train", lambda *_: pytest.fail("trained"))
    monkeypatch.setattr(member, "_SECONDS_FOR_A_LOCK", 0.0)
    with locked_workdir(tmp_path), contextlib.ExitStack() as other:
        note_holder(tmp_path)
        other.enter_context(locked_workdir(folder))
        note_holder(folder)
        assert train_as_job(*arguments) == Ending("held", describe_process())
        monkeypatch.setattr(member, "_SECONDS_FOR_A_LOCK", 60.0)
        threading.Timer(0.1, lambda: ((folder / "results.json").touch(), other.close())).start()
        assert train_as_job(*arguments) == Ending("done")  # what the first one had finished by then


def test_the_notice_that_a_jobs_time_is_up_saves_its_run(runs, tmp_path, in_this_process, monkeypatch):
    """SIGUSR2, by which submitit has it told, as SIGTERM; where nothing is to be saved yet both end the process."""

    def train(*_):
        assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
        with Interruption(60.0) as stop:
            os.kill(os.getpid(), signal.SIGUSR2)
            while not stop.requested(0):
                time.sleep(0.001)
            raise stop.stopped("saved after step 3.")

    monkeypatch.setattr(ExperimentCache, "train", train)
    with locked_workdir(tmp_path):
        note_holder(tmp_path)
        ending = train_as_job(runs[0], tmp_path, 0, describe_process(), Share(), 0)
    assert ending == Ending("stopped", "stopped by SIGTERM: saved after step 3.", 143)


def test_a_job_with_gpus_that_jax_does_not_see_fails(runs, tmp_path, in_this_process):
    with locked_workdir(tmp_path):
        note_holder(tmp_path)
        ending = train_as_job(runs[0], tmp_path, 0, describe_process(), Share(), 2)
    assert ending.state == "failed" and "though its job asked for 2" in ending.text


def test_who_holds_a_folder(tmp_path):
    assert find_holder(tmp_path) is None and not list(tmp_path.iterdir())
    with locked_workdir(tmp_path):
        assert find_holder(tmp_path) == "it is just starting"
        note_holder(tmp_path)
        assert find_holder(tmp_path) == describe_process()
    assert find_holder(tmp_path) is None


@pytest.mark.parametrize(
    ("overrides", "told"),
    [
        ({"cluster.minutes": 2}, r"minutes is 2, and 65 s before .* give 3 or more"),
        ({"engine": "slurm", "processes": 2}, r"processes is of this host alone"),
        ({"engine": "slurm", "cluster.options": ("account",)}, None),
        ({"engine": "slurm", "cluster.options": ("--account=mine", "exclusive")}, None),
        ({"engine": "slurm", "cluster.options": ("time=3",)}, r"'time=3', which the study sets itself"),
        ({"engine": "slurm", "cluster.options": ("signal=TERM@9",)}, r"'signal=TERM@9', which the study sets itself"),
        ({"engine": "slurm", "cluster.options": ("qos=a", "qos=b")}, r"'qos=b', .* or it is given twice"),
        ({"engine": "slurm", "cluster.options": ("--qos a",)}, r"has '--qos a'; each is a long option of sbatch"),
        ({"engine": "slurm", "cluster.options": ("qos=",)}, r"has 'qos='; each is a long option"),
        ({"engine": "condor"}, r"compare\.engine"),
        ({"cluster.minutes": 0}, r"compare\.cluster\.minutes"),
    ],
)
def test_settings_are_refused_before_anything_is_read(manifest, tmp_path, monkeypatch, overrides, told):
    """Slurm's commands are stand-ins, of which `sbatch` takes everything."""
    slurm = tmp_path / "bin"
    slurm.mkdir()
    for name in engines._COMMANDS:
        (slurm / name).write_text("#!/bin/sh\n")
        (slurm / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{slurm}:{os.environ['PATH']}")
    config = make_config(manifest)
    with config.unlocked():
        config.update_from_flattened_dict({f"compare.{key}": value for key, value in overrides.items()})
    if told is None:
        open_engine(config, tmp_path)
        return
    config.data.manifest = "absent.csv"
    with pytest.raises(ConfigError, match=told):
        compare(config, tmp_path / "study")
    assert not (tmp_path / "study").exists()


def test_without_slurm_or_submitit_it_is_told_what_is_missing(manifest, tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ConfigError, match="sbatch, srun, squeue, scancel not found"):
        open_engine(make_config(manifest, engine="slurm"), tmp_path)
    with pytest.raises(ConfigError, match="Choose a name without it"):
        open_engine(make_config(manifest), tmp_path / "50%")
    monkeypatch.setitem(sys.modules, "submitit", None)
    with pytest.raises(ConfigError, match=r"needs the extra cluster: pip install"):
        open_engine(make_config(manifest), tmp_path)


def test_what_slurm_would_refuse_is_told_with_what_it_was_asked(manifest, tmp_path, monkeypatch):
    for name in engines._COMMANDS:
        (tmp_path / name).write_text(
            '#!/bin/sh\necho "$@" > $0.asked\necho allocation failure: Invalid account >&2\nexit 1\n'
        )
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setenv("SLURM_JOB_ID", "5")  # this process may be part of a job itself
    monkeypatch.setenv("SLURM_CPUS_PER_TASK", "64")
    settings = {"partition": "gpu", "gpus": 2, "memory_gb": 8, "options": ("account=mine",)}
    config = make_config(manifest, engine="slurm", **{f"cluster.{key}": value for key, value in settings.items()})
    asked = "--partition=gpu --gpus-per-node=2 --mem=8G --time=240 --cpus-per-task=4 --no-requeue --account=mine"
    with pytest.raises(ConfigError, match=f"allocation failure: Invalid account. Look at .* asks for {asked}"):
        open_engine(config, tmp_path)
    assert (tmp_path / "sbatch.asked").read_text() == f"--test-only {asked} --wrap=true\n"
    assert os.environ["SLURM_CPUS_PER_TASK"] == "64"
