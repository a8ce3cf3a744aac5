"""The preset for one GPU, tried on a CPU: jobs that end in time, what they count, and the tables."""

import json
import os
import pathlib
import re
import subprocess
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_backbones import SMALL_MODELS, random_variables

from launch.benchmark import gpu, gpu_jobs
from launch.benchmark.flops import account_flops, count_flops
from launch.benchmark.fresh_process import start_python
from launch.benchmark.gpu import Ended, Job, Sizes

SCRIPT = pathlib.Path(__file__).parent.parent / "launch/benchmark.py"


def test_time_that_a_job_leaves_goes_to_those_behind_it():
    jobs = gpu.plan(Sizes(), with_torch=True)
    left = 480.0
    for number in range(len(jobs)):  # each takes all that it has: nothing is left, and nothing is taken twice
        left -= gpu.share_of_time(jobs[number:], left)
    assert left == pytest.approx(0)
    assert gpu.share_of_time(jobs[-1:], 100) == 100
    assert gpu.share_of_time(jobs, -5) > 0  # every job says at least that it is left out


def test_the_plan_has_what_there_is():
    names = lambda jobs: [job.name for job in jobs]
    both, without = (gpu.plan(Sizes(), with_torch=flag) for flag in (True, False))
    assert names(both)[: len(without)] == names(without) and names(both)[len(without) :] == ["torch_steps"] * 3
    assert not any(job.name == "torch_steps" for job in gpu.plan(gpu.DRY, with_torch=True))  # PyTorch has no small_cnn
    assert {job.name for job in both} == gpu_jobs.JOBS.keys() == gpu._TABLES.keys()


CHILD = """
import pathlib, subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
with open({path!r}, "a") as file:
    file.write('{{"child": %d}}\\n{{"half": ' % child.pid)
time.sleep(600)
"""


def test_a_job_that_takes_too_long_ends_with_all_that_it_started_and_its_rows_stay(tmp_path, monkeypatch):
    path = tmp_path / "rows"

    def start(*arguments, **pipes):
        process = start_python(*arguments, **pipes)
        wait = process.wait

        def until_it_has_written(timeout=None):  # in place of a time that may be too short on a busy machine
            while timeout is not None:
                if path.exists() and "half" in path.read_text():
                    raise subprocess.TimeoutExpired("job", timeout)
                time.sleep(0.05)
            return wait()

        process.wait = until_it_has_written
        return process

    monkeypatch.setattr(gpu, "start_python", start)
    ended = gpu.end_in_time(CHILD.format(path=str(path)), path, 5, tmp_path)
    assert "not done within its 5 s" in ended.reason
    (row,) = ended.rows
    for _ in range(100):  # the kernel may take a moment
        if not pathlib.Path(f"/proc/{row['child']}").exists() or _is_zombie(row["child"]):
            return
        time.sleep(0.1)
    pytest.fail("the job's child is still there")


def _is_zombie(process: int) -> bool:
    try:
        return pathlib.Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError:
        return True


def test_a_job_that_fails_is_told_and_one_that_is_done_says_nothing(tmp_path):
    failed = gpu.end_in_time("raise ValueError('no card')", tmp_path / "rows", 60, tmp_path)
    assert failed.rows == [] and failed.reason.startswith("ended with exit status 1: ") and "no card" in failed.reason
    code = f"open({str(tmp_path / 'rows')!r}, 'a').write('{{}}\\n')"
    assert gpu.end_in_time(code, tmp_path / "rows", 60, tmp_path) == Ended([{}], "")


def test_flops_of_a_strided_convolution_and_its_gradients_are_three_times_its_own():
    x, kernel = jnp.zeros((2, 129, 129, 3)), jnp.zeros((3, 3, 3, 5))
    dense = jnp.zeros((5, 7))

    def value(x, kernel, dense):
        y = jax.lax.conv_general_dilated(x, kernel, (2, 2), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC"))
        return jnp.sin(jax.jit(jnp.dot)(y.mean((1, 2)), dense)).sum()

    own = 2 * (2 * 64 * 64 * 5) * (3 * 3 * 3) + 2 * 2 * 5 * 7
    trace = lambda function, *arguments: jax.jit(function).trace(*arguments)
    assert count_flops(trace(value, x, kernel, dense)) == own
    gradients = jax.value_and_grad(value, argnums=(0, 1, 2))
    assert count_flops(trace(gradients, x, kernel, dense)) == pytest.approx(3 * own, rel=0.02)
    unused = lambda *arguments: (value(*arguments), value(*arguments))[0]
    assert count_flops(trace(unused, x, kernel, dense)) == own

    def seven_times(x, kernel, dense):
        return jax.lax.scan(lambda total, _: (total + value(x + total, kernel, dense), None), 0.0, length=7)[0]

    traced = trace(seven_times, x, kernel, dense)
    assert count_flops(traced) == 7 * own and count_flops(traced, loops_once=True) == own
    account = traced.lower().cost_analysis()["flops"]
    assert account_flops(traced, traced.lower(), None) == account + 6 * own


@pytest.mark.parametrize("name", ["resnet_basic", "densenet", "mobilenet"])
def test_with_xlas_operations_none_of_those_written_by_hand_is_left(name):
    model = SMALL_MODELS[name](num_classes=2)
    variables, images = random_variables(model, 48), jnp.zeros((1, 48, 48, 3))
    program = lambda: str(jax.make_jaxpr(lambda v: model.apply(v, images, train=False))(variables))
    before = program()
    with gpu_jobs.xla_operations():
        inside = program()
    assert "custom_vjp" in before and "custom_vjp" not in inside
    assert ("reduce_window" in inside) == (name != "mobilenet")
    kernels = sum(leaf.ndim == 4 for leaf in jax.tree.leaves(variables["params"]))
    assert inside.count("= conv_general_dilated[") == kernels > before.count("= conv_general_dilated[")
    assert program() == before


def test_the_device_waits_for_what_a_step_takes_longer_from_disk():
    assert gpu_jobs.idle_share(1.0, 4.0) == 0.75
    assert gpu_jobs.idle_share(1.0, 0.9) == 0  # steps in a row overlap


STEP = {"model": "resnet50", "batch_size": 64, "step": "difference", "seconds": [0.02, 0.01, 0.04], "flops": 2e12}
STEP |= {"bytes": None, "program_mb": 1234.4, "device_mb": None, "compile_seconds": 30.2}
STEP |= {"ratio": {"median": 1.01, "low": 0.99, "high": 1.04}}


def test_a_step_is_told_as_a_share_of_the_measured_peaks():
    job = Job("jax_steps", "resnet50, 224 px", {}, 1.0)
    told = gpu._section(job, Ended([STEP, {**STEP, "bytes": 2e10}], "not done"), {"flops": 4e14, "bytes": 2e12})
    first, second = (dict(zip(told.rows[0], row, strict=True)) for row in told.rows[1:])
    assert (first["ms"], first["images/s"], first["of FLOPs"], first["of memory"]) == ("20.0", "3,200", "25%", "-")
    assert (first["program MB"], first["device MB"], first["to plain"]) == ("1,234", "-", "1.010 (0.99-1.04)")
    assert second["of memory"] == "50%" and told.notes == ["not done"]
    without = gpu._section(job, Ended([STEP], ""), {})  # the peaks were not done in time
    assert without.rows[1][4:6] == ("-", "-") and without.notes == []


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--preset=gpu", "--parts=guided"], "--parts is for parts, not for --preset=gpu"),
        (["--dry_run"], "--dry_run is for --preset=gpu alone"),
        (["--preset=gpu"], "no GPU.*--dry_run"),
    ],
)
@pytest.mark.slow
def test_what_would_say_nothing_is_refused(flags, message):
    environment = {**os.environ, "JAX_PLATFORMS": "cpu"}
    done = subprocess.run(
        [sys.executable, SCRIPT, *flags], capture_output=True, text=True, env=environment, timeout=240
    )
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert re.search(message, done.stderr), done.stderr


@pytest.mark.slow
@pytest.mark.end_to_end
def test_the_command_runs_on_a_cpu_with_tiny_sizes(tmp_path):
    out = tmp_path / "new/gpu.json"
    command = [sys.executable, SCRIPT, "--preset=gpu", "--dry_run", "--minutes=60", f"--out={out}"]
    environment = {**os.environ, "JAX_PLATFORMS": "cpu"}
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=environment, timeout=290)
    assert done.returncode == 0, done.stderr
    jobs = {job["name"]: job for job in json.loads(out.read_text())["jobs"]}
    assert all(job["ended"] == "" for job in jobs.values()), jobs
    assert [row.get("step", "maps") for row in jobs["jax_steps"]["rows"]] == [
        gpu_jobs.PLAIN,
        gpu_jobs.GUIDED,
        "maps",
        gpu_jobs.PLAIN_BY_XLA,
    ]
    rows = {key: value for row in jobs["peaks"]["rows"] for key, value in row.items()}
    assert rows["backend"] == "cpu" and rows["flops"] > 0 and rows["bytes"] > 0
    assert len(jobs["operations"]["rows"]) == 6
    (disk,) = jobs["from_disk"]["rows"]
    assert disk["idle_share"] == gpu_jobs.idle_share(np.median(disk["device_seconds"]), disk["wall_seconds"])
    assert all(job["title"] in done.stdout for job in jobs.values())
