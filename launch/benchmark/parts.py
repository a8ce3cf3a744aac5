"""The benchmark's parts. Each measures for a bounded time and returns a table."""

from __future__ import annotations

import functools
import importlib.util
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from launch.benchmark import operations as profiled
from launch.benchmark import startup
from launch.benchmark.cases import (
    Case,
    compile_step,
    lower_train_step,
    random_variables,
    running_step,
    trace_train_step,
)
from launch.benchmark.flops import account_flops
from launch.benchmark.reference_networks import REFERENCES
from launch.benchmark.timing import Ratio, clocked, median, ratio, take_turns
from launch.benchmark.worker import Worker, start_workers
from tfcam_jax.devices.compilation import available_cores
from tfcam_jax.metrics.tables import align

GOAL = 1.02  # largest time of a guided step, in plain steps
# The strategies of the paper's abstract and its baselines; the others differ from them only in arithmetic on maps.
PAPER_STRATEGIES = ("cross_entropy", "cyborg", "opposed", "difference", "contrast")
# Differentiates the network twice, whatever the implementation.
SECOND_DERIVATIVE = "input_gradient"
AGAIN = "cross_entropy, again"
PYTORCH, GRAD_CAM = ("torch", "torchvision", "timm"), ("pytorch_grad_cam",)


class Section(NamedTuple):
    """What a part found.

    Attributes:
      title: of the table.
      rows: of text, headings first.
      notes: lines below it.
      figures: the same, unrounded and JSON-able, one entry for each row.
    """

    title: str
    rows: list[tuple[str, ...]]
    notes: list[str]
    figures: list[dict[str, Any]]

    def __str__(self) -> str:
        return "\n".join([self.title, *align(self.rows), *self.notes])


def missing(libraries: Iterable[str]) -> list[str]:
    """Those that are not installed, by the name that pip knows."""
    names = {"pytorch_grad_cam": "grad-cam"}
    return [names.get(library, library) for library in libraries if importlib.util.find_spec(library) is None]


def _lacks(section: Section, cases: Sequence[Case], libraries: Iterable[str]) -> bool:
    """Whether the other side can't take part; the section then says why."""
    if gone := missing(libraries):
        section.notes.append(f"left out; not installed: {', '.join(gone)} (pip install -e '.[parity]')")
    elif not cases:
        section.notes.append(f"left out; of PyTorch's networks there are {', '.join(REFERENCES)}")
    return bool(section.notes)


def guided(cases: Mapping[Case, Sequence[str]], seconds: float, peak_flops: float) -> Section:
    """What guidance adds to a train step: every strategy against plain cross-entropy, all in this process.

    A second plain step takes part, whose ratio to the first shows the noise. Guided steps are divided by the
    mean of both in their round, as noise in what all are divided by would move all ratios together.

    Args:
      cases: strategies to time, by case.
      seconds: of timing, for each case.
      peak_flops: of the device, measured, for the achieved fraction.
    """
    heading = (
        "backbone",
        "strategy",
        "step ms",
        "ratio to plain",
        "95 % interval",
        f"goal {GOAL}",
        "FLOPs to plain",
        "of peak",
    )
    section = Section("1. A guided train step beside the plain one", [heading], [], [])
    for case, strategies in cases.items():
        flops, contestants = _compile_strategies(case, strategies)
        times = take_turns(contestants, seconds)
        plain = [(one + again) / 2 for one, again in zip(times["cross_entropy"], times[AGAIN], strict=True)]
        for name, values in times.items():
            first, is_plain = name == "cross_entropy", name in ("cross_entropy", AGAIN)
            found = ratio(values, times["cross_entropy"] if is_plain else plain)
            more = flops[name] / flops["cross_entropy"]
            share = flops[name] / median(values) / peak_flops
            cells = ("", "") if first else (f"{found.median:.3f}", f"{found.low:.3f}-{found.high:.3f}")
            verdict = "-" if is_plain or name == SECOND_DERIVATIVE else judge(found)
            milliseconds = f"{1e3 * median(values):.1f}"
            section.rows.append((case.model, name, milliseconds, *cells, verdict, f"{more:.4f}", f"{share:.0%}"))
            section.figures.append(
                {**case._asdict(), "strategy": name, "seconds": values, "ratio": found._asdict(), "flops": flops[name]}
            )
        section.notes.append(f"{case}: {len(times['cross_entropy'])} rounds")
    section.notes.append(f"{SECOND_DERIVATIVE} differentiates the network twice, which no implementation avoids.")
    return section


def judge(found: Ratio) -> str:
    """Whether a ratio keeps to the goal, as far as its interval tells."""
    if found.high <= GOAL:
        return "met"
    return "missed" if found.low > GOAL else "met, within noise" if found.median <= GOAL else "missed, within noise"


def _compile_strategies(
    case: Case, strategies: Sequence[str]
) -> tuple[dict[str, float], dict[str, Callable[[], float]]]:
    """FLOPs of each strategy's step and the step itself; plain cross-entropy twice."""
    variables, flops, contestants = random_variables(case), {}, {}
    names = list(dict.fromkeys(("cross_entropy", *strategies)))

    def compile_one(name: str) -> tuple[float, Any]:
        traced = trace_train_step(case, name)
        lowered = traced.lower()
        compiled = compile_step(lowered)
        return account_flops(traced, lowered, compiled), compiled

    with ThreadPoolExecutor(at_once()) as pool:
        compiled = dict(zip(names, pool.map(compile_one, names), strict=True))
    for name, (count, program) in compiled.items():
        for label in (name, AGAIN) if name == "cross_entropy" else (name,):
            step = running_step(program, case, variables)
            step()
            flops[label], contestants[label] = count, clocked(step)
    return flops, contestants


def reference(cases: Sequence[Case], contestants: Sequence[str], seconds: float) -> Section:
    """Train steps of the same network, weights and images here and in PyTorch, each in a process of its own."""
    heading = ("backbone", "contestant", "step ms", "ratio to plain", "jax / this", "95 % interval", "first loss")
    section = Section("2. Train steps beside PyTorch's", [heading], [], [])
    if _lacks(section, cases, PYTORCH):
        return section
    for case in cases:
        # CYBORG's code knows no network with a norm in its head.
        has_relu = REFERENCES[case.model].has_relu
        present = [name for name in contestants if has_relu or "described" not in name]
        with start_workers(present, case, at_once()) as workers:
            times = take_turns({name: worker.work for name, worker in workers.items()}, seconds)
            losses = {name: worker.loss for name, worker in workers.items()}
        for name, values in times.items():
            is_guided = "cross_entropy" not in name
            found = _by(times, "jax cyborg" if is_guided else "jax cross_entropy", name)
            plain = _by(times, name, plain_of(name))
            loss = " + ".join(f"{value:.4f}" for value in losses[name].values())
            cells = (
                f"{1e3 * median(values):.0f}",
                _two(plain) if is_guided else "",
                _two(found),
                _interval(found),
                loss,
            )
            section.rows.append((case.model, name, *cells))
            section.figures.append({**case._asdict(), "contestant": name, "seconds": values, "loss": losses[name]})
        section.notes.append(f"{case}: {len(next(iter(times.values())))} rounds")
    section.notes.append("jax / this: jax cyborg, or for a plain step jax cross_entropy; below 1 jax is faster.")
    section.notes.append("as described: guides the predicted class's map, so its second term is another one.")
    return section


def plain_of(name: str) -> str:
    """The plain step of a contestant's library and memory layout."""
    library, layout = name.split()[0], ", channels_last" if name.endswith(", channels_last") else ""
    return f"{library} cross_entropy{layout}"


def posthoc(cases: Sequence[Case], contestants: Sequence[str], seconds: float) -> Section:
    """T, U and D of a batch of images, here, in plain PyTorch and by pytorch-grad-cam."""
    heading = ("backbone", "contestant", "images/s", "jax / this", "95 % interval")
    section = Section("3. True-class, false-class and difference maps after training", [heading], [], [])
    if _lacks(section, cases, (*PYTORCH, *GRAD_CAM)):
        return section
    for case in cases:
        with start_workers([f"{name} maps" for name in contestants], case, at_once()) as workers:
            times = take_turns({name.removesuffix(" maps"): each.work for name, each in workers.items()}, seconds)
        for name, values in times.items():
            found = _by(times, "jax at image size" if name == "pytorch-grad-cam" else "jax", name)
            rate = f"{case.batch_size / median(values):.1f}"
            section.rows.append((case.model, name, rate, _two(found), _interval(found)))
            section.figures.append({**case._asdict(), "contestant": name, "seconds": values})
        section.notes.append(f"{case}: {len(next(iter(times.values())))} rounds")
    section.notes.append(
        "jax / this: time, below 1 jax is faster; for pytorch-grad-cam jax resizes to the image too. Its maps are "
        "positive parts, so that the sign of D is lost."
    )
    return section


def start(cases: Sequence[Case]) -> Section:
    """From a command to the first train step done, with an empty and with a filled compilation cache."""
    heading = ("backbone", "library", "cache", *startup.STAGES, "total s")
    section = Section("4. Seconds from the command to the first step", [heading], [], [])
    for case in cases:
        with tempfile.TemporaryDirectory() as cache:
            runs = [
                ("jax", "cold", startup.measure_jax(case, cache)),
                ("jax", "warm", startup.measure_jax(case, cache)),
            ]
        if case.model in REFERENCES and not missing(PYTORCH):
            runs.append(("torch", "", startup.measure_torch(case)))
        for library, state, seconds in runs:
            cells = (f"{seconds[stage]:.1f}" if stage in seconds else "" for stage in startup.STAGES)
            section.rows.append((case.model, library, state, *cells, f"{sum(seconds.values()):.1f}"))
            section.figures.append({**case._asdict(), "library": library, "cache": state, "seconds": seconds})
    if gone := missing(PYTORCH):
        section.notes.append(f"PyTorch left out; not installed: {', '.join(gone)}")
    section.notes.append("import: what launch/train.py imports; torch: torch, torchvision and timm.")
    return section


def memory(cases: Sequence[Case], contestants: Sequence[str]) -> Section:
    """What a train step needs: the compiler's own account, and the peak of a process that takes steps."""
    heading = ("backbone", "contestant", "state MB", "temporary MB", "process MB", "added MB", "device MB")
    section = Section("5. Memory of a train step", [heading], [], [])
    gone = missing(PYTORCH)
    if gone:
        section.notes.append(f"PyTorch left out; not installed: {', '.join(gone)}")
    for case in cases:
        has_counterpart = case.model in REFERENCES and not gone
        present = [name for name in contestants if has_counterpart or name.startswith("jax")]
        with ThreadPoolExecutor(at_once()) as pool:
            measured = list(pool.map(functools.partial(_memory_of, case), present))
        for name, found in zip(present, measured, strict=True):
            added, compiler = found["peak"] - found["before"], found["compiler"]
            cells = [compiler.get("state"), compiler.get("temporary"), found["peak"], added, found["device"]]
            cells = ("-" if cell is None else f"{cell:.0f}" for cell in cells)
            section.rows.append((case.model, name, *cells))
            section.figures.append({**case._asdict(), "contestant": name, **found})
        section.notes.append(f"{case}")
    section.notes.append(
        "state: parameters, optimiser and batch; temporary: activations, gradients and scratch, both by the compiler. "
        "process: peak while it takes steps; added: less what it held once its libraries were imported."
    )
    return section


def operations(cases: Sequence[Case], strategy: str, peak_flops: float, bandwidth: float) -> Section:
    """A train step by kind of operation: the time it takes beside what it would at the device's measured peaks."""
    heading = ("backbone", "operations", "calls", "ms", "GFLOP", "GB", "ms at peaks", "lost ms")
    section = Section("6. A train step by operation", [heading], [], [])
    for case in cases:
        compiled = compile_step(lower_train_step(case, strategy))
        step = running_step(compiled, case, random_variables(case))
        step()
        seconds, whole = profiled.time_operations(step)
        shares = profiled.group(profiled.read_operations(compiled.as_text()), seconds, peak_flops, bandwidth)
        for share in (*shares, profiled.remainder(shares, whole), profiled.total(shares, whole)):
            cells = (1e3 * share.seconds, share.flops / 1e9, share.bytes / 1e9, 1e3 * share.least, 1e3 * share.lost)
            texts = (f"{cell:.{digits}f}" for cell, digits in zip(cells, (1, 2, 3, 1, 1), strict=True))
            section.rows.append((case.model, share.name, str(share.calls), *texts))
            section.figures.append({**case._asdict(), **share._asdict()})
        section.notes.append(f"{case}, {strategy}")
    section.notes.append(
        f"peaks: {peak_flops / 1e9:.0f} GFLOP/s in a matrix product, {bandwidth / 1e9:.1f} GB/s in reading and "
        "writing a large array. GB: operands and results, as if no cache held any. not seen: what runs on threads of "
        "its own."
    )
    return section


def _memory_of(case: Case, name: str) -> dict[str, Any]:
    """What a contestant's process answers after a step; it ends before others need the device's memory."""
    with Worker(name, case, weights="random") as worker:
        worker.work()
        return worker.memory()


def at_once() -> int:
    """How many contestants get ready at the same time: on an accelerator one, whose compiler times what it chooses."""
    return len(available_cores()) if jax.default_backend() == "cpu" else 1


def measure_peak_flops(dtype: str, seconds: float = 2.0, size: int | None = None) -> float:
    """FLOP/s of this device on a large square matrix product (`size` rows), the median over some seconds."""
    size = size or (2048 if jax.default_backend() == "cpu" else 8192)
    matrix = jax.random.normal(jax.random.key(0), (size, size), jnp.dtype(dtype))
    product = jax.jit(jnp.matmul)
    work = lambda: product(matrix, matrix).block_until_ready()
    work()
    times = take_turns({"product": clocked(work)}, seconds)["product"]
    return 2 * size**3 / median(times)


def _by(times: dict[str, list[float]], name: str, other: str) -> Ratio | None:
    """The ratio of two contestants, if both took part and are not the same."""
    if name == other or not {name, other} <= times.keys():
        return None
    return ratio(times[name], times[other])


def _two(found: Ratio | None) -> str:
    return "" if found is None else f"{found.median:.2f}"


def _interval(found: Ratio | None) -> str:
    return "" if found is None else f"{found.low:.2f}-{found.high:.2f}"
