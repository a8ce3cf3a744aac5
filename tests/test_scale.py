"""The cost of a protocol is the sum of its runs'; traffic, FLOPs and memory come from programs that were compiled."""

import itertools
import json
import math
import pathlib
import subprocess
import sys

import numpy as np
import pytest

from launch.benchmark.cases import Case
from tests import scale
from tests.scale import Machine, Protocol, Task, Work

REPO = pathlib.Path(__file__).parent.parent
WORK = Work({"cross_entropy": 6e9, "opposed": 6.1e9}, image=1e8, batch_size=20, sent_bytes=5e7)
MACHINE = Machine(peak_flops=1e12, achieved=0.5, link_bytes=1e10)
TASK = Task(train=101, validation=30, test=70)


def test_flops_of_a_run_equal_a_loop_over_its_epochs():
    train = evaluation = 0.0
    for _ in range(4):
        for _ in range(0, TASK.train, WORK.batch_size):
            train += WORK.step["opposed"]
        for _ in range(TASK.validation):
            evaluation += WORK.image
    evaluation += TASK.test * WORK.image
    np.testing.assert_allclose(scale.run_flops(TASK, "opposed", WORK, epochs=4), (train, evaluation))


@pytest.mark.parametrize("durations", [[3.0, 3.0, 2.0, 2.0], [5.0, 1.0, 1.0, 1.0], [1.0], [4.0, 4.0, 4.0]])
def test_makespan_is_the_best_of_all_assignments(durations):
    """The longest-first rule is optimal for these; for equal runs always."""
    assignments = itertools.product(range(2), repeat=len(durations))
    load = lambda chosen, m: sum(d for d, on in zip(durations, chosen, strict=True) if on == m)
    best = min(max(load(chosen, 0), load(chosen, 1)) for chosen in assignments)
    assert scale.makespan(durations, 2) == best
    assert scale.makespan(durations, 1) == sum(durations)


def test_a_split_run_waits_for_the_fullest_device_and_for_the_gradient():
    steps, fullest = 4 * 6, max(len(part) for part in np.array_split(range(20), 8))
    compute = steps * 6.1e9 * fullest / 20 + (4 * 30 + 70) * 1e8 / 8
    expected = compute / (1e12 * 0.5) + steps * 5e7 / 1e10
    np.testing.assert_allclose(scale.split_run_seconds(TASK, "opposed", WORK, 4, MACHINE, 8), expected)
    alone = scale.split_run_seconds(TASK, "opposed", WORK._replace(sent_bytes=0), 4, MACHINE, 1)
    np.testing.assert_allclose(alone, sum(scale.run_flops(TASK, "opposed", WORK, 4)) / (1e12 * 0.5))


def test_the_protocols_hours_add_up():
    big = Task(train=200_000, validation=0, test=0)
    protocol = Protocol({"one": big, "two": big}, ("cross_entropy", "opposed"), seeds=4, epochs=9)
    lines = scale.protocol_table(protocol, WORK, MACHINE)
    hours = {line.split()[0]: line.split() for line in lines[1:]}
    of_strategy = lambda flops: 9 * 10_000 * flops / 5e11 / 3600
    alone = 4 * (of_strategy(6e9) + of_strategy(6.1e9))
    assert hours["one"][1] == "8" and hours["all"][1] == "16"
    assert hours["one"][4] == f"{alone:.1f}" and hours["all"][2] == f"{2 * alone:.1f}"
    assert hours["one"][5] == f"{of_strategy(6.1e9):.1f}", "eight runs on eight GPUs take as long as the longest"
    assert hours["all"][3] == f"{of_strategy(6e9) + of_strategy(6.1e9):.1f}"
    assert hours["one"][3] == "0%"


def test_flops_of_evaluation_are_those_of_the_convolutions():
    size, channels, flops = 32, 3, 0
    for i, width in enumerate((16, 32, 64, 128)):
        stride = 2 if i < 3 else 1
        taps = sum(0 <= start + tap < size for start in range(-1, size - 1, stride) for tap in range(3))
        flops += 2 * channels * width * taps**2
        size, channels = size // stride, width
    work = scale.measure_work(Case("small_cnn", 4, 32), ("cross_entropy", "opposed"), 0)
    assert 1 < work.image / flops < 1.1
    assert 2.5 < work.step["cross_entropy"] / 4 / work.image < 3.1, "the backward pass is two forward passes"
    assert 1 < work.step["opposed"] / work.step["cross_entropy"] < 1.03


def test_a_step_sends_the_gradient_and_little_else():
    found = scale.measure_traffic("small_cnn", "opposed")
    channels = (3, 16, 32, 64, 128)
    parameters = sum(9 * a * b + 2 * b for a, b in itertools.pairwise(channels)) + 128 * 2 + 2
    assert found.gradient_bytes == 4 * parameters
    assert set(found.counts) == {"all-reduce"}
    # Besides it each BatchNorm's sums, forward and back, and the sums behind the metrics.
    assert 0 < found.payload_bytes - found.gradient_bytes <= 4 * (4 * sum(channels[1:]) + 16)
    assert math.isclose(found.sent_bytes, 2 * 7 / 8 * found.payload_bytes)


def test_memory_grows_with_the_batch():
    lines = scale.memory_table(("small_cnn",), (8, 64), 32, "float32")
    small, large = (list(map(int, line.split()[1:])) for line in lines[1:])
    assert small[:2] == [32, 8] and large[:2] == [32, 64]
    assert large[3] > small[3] and large[4] == pytest.approx(large[2] + large[3], abs=1)


def launch(*arguments):
    command = [sys.executable, REPO / "launch/scale.py", *arguments]
    return subprocess.run(command, capture_output=True, text=True, cwd=REPO.parent, timeout=240)


@pytest.mark.end_to_end
def test_the_script_prints_its_tables_and_their_assumptions(tmp_path):
    out = tmp_path / "scale.json"
    done = launch(
        "--models=small_cnn",
        "--strategies=cross_entropy,difference",
        "--batch_sizes=2",
        "--image_size=32",
        "--protocol_model=small_cnn",
        "--tasks=mine=100,20,30",
        f"--out={out}",
    )
    assert done.returncode == 0, done.stderr
    for words in ("Bytes per step", "FLOPs of", "Memory of", "Hours of", "mine 100 / 20 / 30", "989 TFLOP/s peak"):
        assert words in done.stdout
    figures = json.loads(out.read_text())
    assert [entry["strategy"] for entry in figures["traffic"]] == ["cross_entropy", "difference"]


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("--tasks=faces=12", "NAME=TRAIN,VALIDATION,TEST"),
        ("--models=resnet19", "unknown backbone 'resnet19'"),
    ],
)
def test_mistakes_are_told_in_one_message(argument, message):
    done = launch(argument)
    assert done.returncode == 1 and message in done.stderr and "Traceback" not in done.stderr
