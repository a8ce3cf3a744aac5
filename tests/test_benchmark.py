"""Turns, ratios and their intervals; the parts run small, with their notices where PyTorch is not installed."""

import importlib.util
import json
import pathlib
import subprocess
import sys

import jax
import numpy as np
import pytest
from scipy import stats

from launch.benchmark import PARTS, cases, data, jax_work, parts, timing, torch_work, worker
from launch.benchmark.cases import Case, abstract_variables, loss_of, random_batch, random_variables
from launch.benchmark.run import Settings, choose_case
from launch.benchmark.timing import Ratio
from tfcam_jax import steps
from tfcam_jax.strategies import STRATEGIES

REPO = pathlib.Path(__file__).parent.parent
TINY = Case("small_cnn", 2, 32)


def scripted(log, name, values):
    values = iter(values)

    def work():
        log.append(name)
        return next(values)

    return work


def test_every_round_asks_everyone_once_in_changing_order():
    log = []
    contestants = {name: scripted(log, name, range(10 * i, 10 * i + 8)) for i, name in enumerate("abc")}
    times = timing.take_turns(contestants, seconds=0, fewest=8)
    assert times == {"a": list(range(8)), "b": list(range(10, 18)), "c": list(range(20, 28))}
    rounds = [tuple(log[i : i + 3]) for i in range(0, 24, 3)]
    assert all(sorted(each) == ["a", "b", "c"] for each in rounds) and len(set(rounds)) > 1


def test_rounds_go_on_while_there_is_time_and_end():
    log = []
    times = timing.take_turns({"a": scripted(log, "a", iter(int, 1))}, seconds=60, fewest=3)
    assert len(times["a"]) == timing.MOST_ROUNDS


@pytest.mark.parametrize("rounds", [6, 11, 40])
def test_the_interval_of_a_ratio_is_that_of_its_order_statistics(rounds):
    rng = np.random.default_rng(rounds)
    reference = rng.uniform(1, 2, rounds)
    quotients = rng.uniform(0.9, 1.2, rounds)
    found = timing.ratio(list(reference * quotients), list(reference))
    ordered = np.sort(quotients)
    assert found.median == pytest.approx(np.median(quotients))
    # The widest pair of order statistics, equally far from both ends, that covers the median 95 times in 100.
    cut = max(k for k in range(rounds // 2) if 2 * stats.binom.cdf(k, rounds, 0.5) <= 0.05)
    assert (found.low, found.high) == pytest.approx((ordered[cut], ordered[rounds - 1 - cut]))


def test_too_few_rounds_have_no_interval():
    found = timing.ratio([2.0] * 4, [1.0] * 4)
    assert found.median == 2 and np.isnan([found.low, found.high]).all()


@pytest.mark.parametrize(
    ("low", "middle", "high", "verdict"),
    [
        (0.99, 1.0, 1.01, "met"),
        (0.9, 1.0, 1.2, "met, within noise"),
        (0.9, 1.1, 1.2, "missed, within noise"),
        (1.03, 1.1, 1.2, "missed"),
        (float("nan"), 1.0, float("nan"), "met, within noise"),
    ],
)
def test_a_verdict_says_what_the_interval_allows(low, middle, high, verdict):
    assert parts.judge(Ratio(middle, low, high)) == verdict


@pytest.mark.parametrize("name", [*jax_work.STEPS, *torch_work.STEPS])
def test_a_guided_step_is_compared_with_a_plain_one_that_takes_part(name):
    plain = parts.plain_of(name)
    assert plain in (*jax_work.STEPS, *torch_work.STEPS) and "cross_entropy" in plain
    assert plain.endswith("channels_last") == name.endswith("channels_last") and plain[:3] == name[:3]


def test_sizes_follow_the_device_unless_they_are_set():
    assert choose_case("resnet50", Settings(), on_cpu=True) == Case("resnet50", 8, 128, "float32")
    assert choose_case("xception", Settings(), on_cpu=False) == Case("xception", 128, 299, "bfloat16")
    chosen = Settings(batch_size=3, image_size=50, dtype="float32")
    assert choose_case("xception", chosen, on_cpu=False) == Case("xception", 3, 50, "float32")


def test_random_variables_have_the_models_shapes_and_sane_scales():
    variables = random_variables(TINY)
    same = jax.tree.map(lambda a, b: a.shape == b.shape and a.dtype == b.dtype, variables, abstract_variables(TINY))
    assert jax.tree.all(same)
    kernel = variables["params"]["Conv_3"]["kernel"]
    assert np.std(kernel) == pytest.approx(np.sqrt(2 / (9 * 64)), rel=0.05)


def test_every_human_map_of_the_batch_says_something():
    batch = random_batch(TINY)
    assert (np.ptp(batch["saliency"], axis=(1, 2)) > 0.5).all()
    assert set(batch["label"]) == {0, 1}


@pytest.mark.slow
def test_guided_steps_are_timed_beside_the_plain_one_twice():
    section = parts.guided({TINY: ("cross_entropy", "difference")}, seconds=0, peak_flops=1e12)
    names = ["cross_entropy", parts.AGAIN, "difference"]
    assert [row[1] for row in section.rows[1:]] == names == [entry["strategy"] for entry in section.figures]
    plain, again, difference = section.figures
    assert len(plain["seconds"]) == len(difference["seconds"]) == timing.FEWEST_ROUNDS
    assert plain["flops"] == again["flops"] < difference["flops"] < 1.05 * plain["flops"]
    both = np.mean([plain["seconds"], again["seconds"]], axis=0)
    assert difference["ratio"]["median"] == pytest.approx(np.median(difference["seconds"] / both))
    assert again["ratio"]["median"] == pytest.approx(np.median(np.divide(again["seconds"], plain["seconds"])))


@pytest.mark.slow
def test_flops_of_evaluation_are_those_of_the_convolutions_and_guidance_adds_little():
    case, size, channels, flops = Case("small_cnn", 4, 32), 32, 3, 0
    for i, width in enumerate((16, 32, 64, 128)):
        stride = 2 if i < 3 else 1
        taps = sum(0 <= start + tap < size for start in range(-1, size - 1, stride) for tap in range(3))
        flops += case.batch_size * 2 * channels * width * taps**2
        size, channels = size // stride, width
    evaluate = jax.jit(steps.make_eval_step(cases.build_model(case), cases.preprocess(case)))
    state = cases.abstract_state(case)
    lowered = evaluate.lower(state.params, state.batch_stats, cases.abstract_batch(case))
    evaluation = lowered.cost_analysis()["flops"]
    step = {name: cases.lower_train_step(case, name).cost_analysis()["flops"] for name in parts.PAPER_STRATEGIES}
    plain = step.pop("cross_entropy")
    assert 1 < evaluation / flops < 1.1
    assert 2.5 < plain / evaluation < 3.1, "the backward pass is two forward passes"
    assert all(1 < guided / plain < 1.03 for guided in step.values())


@pytest.mark.slow
def test_images_are_read_by_each_library_in_a_process_of_its_own():
    lines = data.benchmark(rounds=1, seconds=0.05, kinds=("png",)).splitlines()
    wall, processor = lines[2:4]
    assert wall.split()[:3] == processor.split()[:3] == ["256", "px", "png"] and int(wall.split()[5]) > 0
    absent = [name for name, (_, library) in data.PIPELINES.items() if importlib.util.find_spec(library) is None]
    assert [line.split(":")[0] for line in lines[4:]] == absent


@pytest.mark.slow
def test_a_worker_steps_on_the_given_weights_and_tells_its_memory():
    from launch.benchmark.cases import compile_step, lower_train_step, running_step

    step = running_step(compile_step(lower_train_step(TINY, "opposed")), TINY, random_variables(TINY))
    with worker.start_workers(["jax opposed"], TINY, at_once=1, weights="random") as workers:
        process = workers["jax opposed"]
        assert process.loss == pytest.approx(loss_of(step()), rel=1e-4)
        assert 0 < process.work() < 60
        found = process.memory()
    assert 0 < found["before"] < found["peak"] and found["device"] is None
    values = sum(leaf.size for leaf in jax.tree.leaves(random_variables(TINY)["params"]))
    # Parameters and momentum, statistics and batch.
    assert 8 * values / 2**20 < found["compiler"]["state"] < 16 * values / 2**20


@pytest.mark.slow
def test_a_worker_that_fails_says_who_it_was():
    with pytest.raises(RuntimeError, match="'jax nothing' ended with exit status 1"):
        worker.Worker("jax nothing", TINY, weights="random")


@pytest.mark.slow
def test_of_several_workers_none_is_left_when_one_fails(monkeypatch):
    ended = []
    close = worker.Worker.close
    monkeypatch.setattr(worker.Worker, "close", lambda self: (close(self), ended.append(self._process.returncode)))
    names = ["jax nothing", "jax cross_entropy"]
    with (
        pytest.raises(RuntimeError, match="'jax nothing' ended with exit status 1"),
        worker.start_workers(names, TINY, at_once=2, weights="random"),
    ):
        pytest.fail("no work without all workers")
    assert len(ended) == 2 and None not in ended


@pytest.mark.slow
@pytest.mark.end_to_end
def test_the_script_runs_every_part(tmp_path):
    out = tmp_path / "benchmark.json"
    command = [
        sys.executable,
        REPO / "launch/benchmark.py",
        "--models=small_cnn",
        "--strategies=opposed",
        "--contestant=jax cross_entropy",
        "--batch_size=2",
        "--image_size=32",
        "--seconds=0",
        f"--out={out}",
    ]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, timeout=240)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("left out") >= 2, "small_cnn has no counterpart, even where torch is installed"
    found = json.loads(out.read_text())
    assert [section["part"] for section in found["sections"]] == list(PARTS)
    figures = {section["part"]: section["figures"] for section in found["sections"]}
    assert [entry["strategy"] for entry in figures["guided"]] == ["cross_entropy", parts.AGAIN, "opposed"]
    assert [entry["cache"] for entry in figures["start"]] == ["cold", "warm"]
    assert all(value >= 0 for entry in figures["start"] for value in entry["seconds"].values())
    assert figures["memory"][0]["compiler"]["temporary"] > 0
    assert found["peak_flops"] > 0 and found["provenance"]["packages"]["jax"] == jax.__version__


@pytest.mark.slow
def test_an_unknown_name_is_told_with_the_known_ones():
    command = [sys.executable, REPO / "launch/benchmark.py", "--strategies=oposed"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert all(name in done.stderr for name in ("'oposed'", *STRATEGIES))
