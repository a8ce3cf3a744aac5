"""What training costs, by the compiled program: bytes between devices, FLOPs, memory, the paper's whole protocol."""

from __future__ import annotations

import heapq
import math
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from launch.benchmark.cases import (
    Case,
    abstract_batch,
    abstract_state,
    abstract_variables,
    build_model,
    compile_step,
    lower_train_step,
    memory_account,
    optimizer,
    preprocess,
    random_batch,
)
from launch.benchmark.fresh_process import call_afresh
from launch.benchmark.run import check_known
from tests.compiled_program import find_collectives
from tfcam_jax import steps
from tfcam_jax.devices.placement import make_placement
from tfcam_jax.metrics.tables import align
from tfcam_jax.models import MODEL_CARDS, MODELS
from tfcam_jax.strategies import STRATEGIES, make_strategy

DEVICES = 8
# Traffic is that of parameters and statistics; it does not depend on the images' size or number.
_TRAFFIC_SIZE = 96


class Task(NamedTuple):
    """Images of one task: trained on each epoch, validated on each epoch, tested on once."""

    train: int
    validation: int
    test: int


class Protocol(NamedTuple):
    """The runs of a study: every task with every strategy and seed."""

    tasks: Mapping[str, Task]
    strategies: Sequence[str]
    seeds: int
    epochs: int


class Machine(NamedTuple):
    """What is assumed of the GPUs.

    Attributes:
      peak_flops: FLOP/s of one, of dense matrix products in the dtype that is trained in.
      achieved: share of it that training reaches.
      link_bytes: bytes per second that one sends to the others.
    """

    peak_flops: float
    achieved: float
    link_bytes: float


class Work(NamedTuple):
    """What a train step of one batch and the evaluation of one image take, in FLOPs, and a step's traffic in bytes."""

    step: Mapping[str, float]
    image: float
    batch_size: int
    sent_bytes: float


def run_flops(task: Task, strategy: str, work: Work, epochs: int) -> tuple[float, float]:
    """FLOPs of one run: of its train steps, and of validation after each epoch and one test."""
    train_steps = epochs * math.ceil(task.train / work.batch_size)
    return train_steps * work.step[strategy], (epochs * task.validation + task.test) * work.image


def makespan(durations: Sequence[float], machines: int) -> float:
    """Time until all runs are done, each on one machine, the longest first to whichever is free."""
    free = [0.0] * machines
    for duration in sorted(durations, reverse=True):
        heapq.heapreplace(free, free[0] + duration)
    return max(free)


def split_run_seconds(task: Task, strategy: str, work: Work, epochs: int, machine: Machine, devices: int) -> float:
    """Seconds of one run whose batches are spread over devices: the last one works as long as the fullest.

    A device gets `ceil(batch / devices)` images; the gradient is sent after the step, not during it.
    """
    train, evaluation = run_flops(task, strategy, work, epochs)
    largest = math.ceil(work.batch_size / devices) / work.batch_size
    train_steps = epochs * math.ceil(task.train / work.batch_size)
    sending = train_steps * work.sent_bytes / machine.link_bytes
    return (train * largest + evaluation / devices) / (machine.peak_flops * machine.achieved) + sending


def protocol_table(protocol: Protocol, work: Work, machine: Machine) -> list[str]:
    """Hours of the whole protocol on one device and on eight, by task."""
    speed = machine.peak_flops * machine.achieved
    rows = [
        ("task", "runs", "PFLOP a run", "of it evaluation", "1 GPU h", "8 GPUs, a run each h", "8 GPUs, a run on all h")
    ]
    totals: list[tuple[float, float]] = []
    for name, task in protocol.tasks.items():
        flops = [run_flops(task, strategy, work, protocol.epochs) for strategy in protocol.strategies]
        alone = [sum(pair) / speed for pair in flops] * protocol.seeds
        split = protocol.seeds * sum(
            split_run_seconds(task, strategy, work, protocol.epochs, machine, DEVICES)
            for strategy in protocol.strategies
        )
        mean = np.mean(flops, axis=0)
        totals += [(seconds, split / len(alone)) for seconds in alone]
        cells = (
            f"{mean.sum() / 1e15:.2f}",
            f"{mean[1] / mean.sum():.0%}",
            *map(_hours, (sum(alone), makespan(alone, DEVICES), split)),
        )
        rows.append((name, str(len(alone)), *cells))
    alone, split = [pair[0] for pair in totals], sum(pair[1] for pair in totals)
    rows.append(("all", str(len(alone)), "", "", *map(_hours, (sum(alone), makespan(alone, DEVICES), split))))
    return align(rows)


def _hours(seconds: float) -> str:
    return f"{seconds / 3600:.1f}"


def measure_work(case: Case, strategies: Sequence[str], sent_bytes: float) -> Work:
    """FLOPs of the train step of each strategy and of evaluation, as the compiler counts them before it optimises."""
    variables, batch = abstract_variables(case), abstract_batch(case)
    evaluate = jax.jit(steps.make_eval_step(build_model(case), preprocess(case)))
    evaluation = evaluate.lower(variables["params"], variables["batch_stats"], batch).cost_analysis()["flops"]
    return Work(
        {name: lower_train_step(case, name).cost_analysis()["flops"] for name in strategies},
        evaluation / case.batch_size,
        case.batch_size,
        sent_bytes,
    )


def flops_table(cases: Sequence[Case], strategies: Sequence[str]) -> list[str]:
    """FLOPs of each strategy's step by those of the plain one."""
    rows = [("backbone", "plain GFLOP an image", *(name for name in strategies if name != "cross_entropy"))]
    for case in cases:
        work = measure_work(case, ("cross_entropy", *strategies), 0)
        plain = work.step["cross_entropy"]
        more = (f"{work.step[name] / plain:.4f}" for name in strategies if name != "cross_entropy")
        rows.append((case.model, f"{plain / case.batch_size / 1e9:.2f}", *more))
    return align(rows)


def memory_table(models: Sequence[str], batch_sizes: Sequence[int], image_size: int | None, dtype: str) -> list[str]:
    """Memory of a guided step by backbone and batch, by the compiler's account for this device."""
    rows = [("backbone", "px", "batch", "state MB", "temporary MB", "in all MB")]
    for model in models:
        for batch_size in batch_sizes:
            case = Case(model, batch_size, image_size or MODEL_CARDS[model].image_size, dtype)
            account = memory_account(compile_step(lower_train_step(case, "opposed")))
            cells = (f"{value:.0f}" for value in (*account.values(), sum(account.values())))
            rows.append((model, str(case.image_size), str(batch_size), *cells))
    return align(rows)


class Traffic(NamedTuple):
    """What a step sends between devices.

    Attributes:
      gradient_bytes: size of the gradient.
      counts: collectives by operation.
      payload_bytes: size of their results, all together.
      sent_bytes: what each device sends, see `Collective.sent_bytes`.
    """

    gradient_bytes: int
    counts: dict[str, int]
    payload_bytes: int
    sent_bytes: float


def measure_traffic(model: str, strategy: str) -> Traffic:
    """Compiles the step for 8 virtual CPU devices, in a process of its own, and reads its collectives."""
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={DEVICES}"
    call = f"compile_over_mesh({model!r}, {strategy!r})"
    return Traffic(*call_afresh(__name__, call, {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags}))


def compile_over_mesh(model: str, strategy: str) -> Traffic:
    """The step that `parallel.mode=mesh` compiles: batch spread over all devices, state whole on each."""
    case = Case(model, 2 * jax.device_count(), _TRAFFIC_SIZE)
    placement = make_placement("mesh")
    state = placement.abstract_state(abstract_state(case))
    step = steps.make_train_step(build_model(case), optimizer(), make_strategy(strategy), preprocess(case))
    compiled = placement.compile_train_step(step, state).lower(state, placement.put_batch(random_batch(case))).compile()
    found = find_collectives(compiled.as_text())
    return Traffic(
        sum(4 * leaf.size for leaf in jax.tree.leaves(state.params)),
        dict(Counter(each.operation for each in found)),
        sum(each.result_bytes for each in found),
        sum(each.sent_bytes(jax.device_count()) for each in found),
    )


def traffic_table(traffic: Mapping[tuple[str, str], Traffic]) -> list[str]:
    """Bytes per step and device in the data-parallel step, by (backbone, strategy)."""
    rows = [
        ("backbone", "strategy", "gradient MB", "collectives", "payload MB", "by gradient", "sent MB", "by gradient")
    ]
    for (model, strategy), found in traffic.items():
        counts = ", ".join(f"{count} {name}" for name, count in sorted(found.counts.items()))
        sizes = (found.payload_bytes, found.sent_bytes)
        cells = [cell for size in sizes for cell in (f"{size / 1e6:.2f}", f"{size / found.gradient_bytes:.4f}")]
        rows.append((model, strategy, f"{found.gradient_bytes / 1e6:.2f}", counts, *cells))
    return align(rows)


def assumptions(protocol: Protocol, work: Work, machine: Machine, case: Case) -> str:
    """What the protocol's table rests on, in words."""
    sizes = "; ".join(
        f"{name} {task.train:,} / {task.validation:,} / {task.test:,}" for name, task in protocol.tasks.items()
    )
    image = max(work.step.values()) / case.batch_size
    rate = machine.peak_flops * machine.achieved / image
    return "\n".join(
        [
            f"{case}; {len(protocol.strategies)} strategies, {protocol.seeds} seeds, {protocol.epochs} epochs.",
            f"FLOPs: the compiler's count of the train step ({image / 1e9:.1f} GFLOP an image) and of the eval step "
            f"({work.image / 1e9:.1f}).",
            f"Assumed, images to train / validate each epoch / test once: {sizes}. Only the 1,821 training and 20,000 "
            "validation faces are known from the recipe's description; set the others by --tasks.",
            f"Assumed: {machine.peak_flops / 1e12:.0f} TFLOP/s peak, {machine.achieved:.0%} of it achieved, that is "
            f"{rate:,.0f} images/s in training, and {machine.link_bytes / 1e9:.0f} GB/s between GPUs; "
            "launch/benchmark.py measures the first two.",
            f"Reading images is not counted; batches of {case.batch_size} on {DEVICES} GPUs leave "
            f"{math.ceil(case.batch_size / DEVICES)} images on each, where the same achieved share is out of reach.",
        ]
    )


def run(
    models: Sequence[str],
    strategies: Sequence[str],
    batch_sizes: Sequence[int],
    image_size: int | None,
    protocol: Protocol,
    machine: Machine,
    protocol_model: str,
    protocol_batch: int,
    dtype: str = "float32",
) -> dict[str, Any]:
    """Prints the four tables, one after the other, and returns what a JSON file should hold of them.

    Args:
      models: backbones of all tables but the protocol's.
      strategies: of the FLOPs; the first two also of the bytes.
      batch_sizes: of the memory.
      image_size: in px; None: each backbone's own.
      protocol: the runs of the study.
      machine: what runs them.
      protocol_model: their backbone.
      protocol_batch: their batch size.
      dtype: of the convolutions.

    Raises:
      ValueError: an unknown backbone or strategy.
    """
    check_known("backbone", (*models, protocol_model), MODELS)
    check_known("strategy", (*strategies, *protocol.strategies), STRATEGIES)
    size = lambda model: image_size or MODEL_CARDS[model].image_size
    pairs = [(model, strategy) for model in dict.fromkeys((*models, protocol_model)) for strategy in strategies[:2]]
    traffic = {pair: measure_traffic(*pair) for pair in pairs}
    _show(f"Bytes per step and device, data-parallel on {DEVICES} devices", traffic_table(traffic))
    print("sent: by ring reductions, the fewest bytes; independent of batch and image size", flush=True)
    flops = flops_table([Case(model, 2, size(model), dtype) for model in models], strategies)
    _show("FLOPs of a guided step by the plain one", flops)
    memory = memory_table(models, batch_sizes, image_size, dtype)
    _show(f"Memory of a guided step, {dtype}, by the compiler for {jax.devices()[0].device_kind}", memory)
    case = Case(protocol_model, protocol_batch, size(protocol_model), dtype)
    sent = max(found.sent_bytes for (model, _), found in traffic.items() if model == protocol_model)
    work = measure_work(case, protocol.strategies, sent)
    _show("Hours of the paper's protocol", protocol_table(protocol, work, machine))
    print(assumptions(protocol, work, machine, case), flush=True)
    return {
        "traffic": [{"model": m, "strategy": s, **found._asdict()} for (m, s), found in traffic.items()],
        "work": work._asdict(),
        "tables": {"flops": flops, "memory": memory, "protocol": protocol_table(protocol, work, machine)},
        "assumptions": assumptions(protocol, work, machine, case),
    }


def _show(title: str, lines: Sequence[str]) -> None:
    print("\n".join(["", title, *lines]), flush=True)
