"""What `--preset=gpu` measures, each job in a process of its own that may be ended at any time.

A job yields rows, JSON-able, as soon as it has them; `main` appends each to a file, so that what was measured before
the end stays. Nothing here knows of the time that there is.
"""

from __future__ import annotations

import contextlib
import json
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from launch.benchmark import data, jax_work
from launch.benchmark.cases import (
    Case,
    compile_step,
    device_batch,
    memory_account,
    optimizer,
    random_variables,
    running_step,
    trace_train_step,
)
from launch.benchmark.flops import count_flops
from launch.benchmark.operations import measure_bandwidth
from launch.benchmark.parts import measure_peak_flops
from launch.benchmark.timing import clocked, median, ratio, take_turns
from tfcam_jax import steps
from tfcam_jax.data.pipeline import prefetch_to_device, train_batches
from tfcam_jax.data.source import Subset
from tfcam_jax.devices.compilation import available_cores
from tfcam_jax.models import cpu_ops
from tfcam_jax.run.provenance import collect_provenance

PLAIN, GUIDED, PLAIN_BY_XLA = "cross_entropy", "difference", "cross_entropy, XLA's operations"
TORCH_STEPS = (
    "torch cross_entropy, channels_last",
    "torch cyborg tidy, channels_last",
    "torch cross_entropy, compiled",
)
TORCH_MAPS = "torch tidy, channels_last"
Row = dict[str, Any]
_MOST_STEPS = 2000  # of training from disk


def main(job: str, arguments: dict[str, Any], path: str) -> None:
    """Runs a job of `JOBS` and appends its rows to the file, a line each."""
    with Path(path).open("a", encoding="utf-8") as file:
        for row in JOBS[job](**arguments):
            file.write(json.dumps(row) + "\n")
            file.flush()


def peaks(dtype: str, size: int, copied: int, seconds: float) -> Iterator[Row]:
    """The device, FLOP/s of a product of matrices of `size` a side, and bytes/s of reading and writing `copied` bytes.

    What the process is (`collect_provenance`) comes last.
    """
    device = jax.devices()[0]
    yield {"device": device.device_kind, "backend": device.platform, "jax": jax.__version__, "dtype": dtype}
    yield {"flops": measure_peak_flops(dtype, seconds, size)}
    yield {"bytes": measure_bandwidth(seconds, copied)}
    yield {"provenance": collect_provenance()}


def _xla_max_pool(x: jax.Array, padding: int) -> jax.Array:
    return nn.max_pool(x, (3, 3), strides=(2, 2), padding=((padding, padding),) * 2)


def _xla_avg_pool(x: jax.Array) -> jax.Array:
    return nn.avg_pool(x, (2, 2), strides=(2, 2))


@contextlib.contextmanager
def xla_operations() -> Iterator[None]:
    """While networks are traced in it, XLA's own convolutions and poolings take the place of `models.cpu_ops`."""
    models = "tfcam_jax.models"
    with contextlib.ExitStack() as stack:
        for name, instead in {
            f"{models}.backbone.conv_general_dilated": lax.conv_general_dilated,
            f"{models}.dense_block.conv_general_dilated": lax.conv_general_dilated,
            f"{models}.resnet.max_pool_3x3": _xla_max_pool,
            f"{models}.densenet.max_pool_3x3": _xla_max_pool,
            f"{models}.densenet.avg_pool_2x2": _xla_avg_pool,
        }.items():
            stack.enter_context(mock.patch(name, instead))
        yield


def _operations(side: int) -> dict[str, tuple[Callable[..., jax.Array], Callable[..., jax.Array], list[int], Any]]:
    """What `models.cpu_ops` has written by hand, and XLA's: function, function, sizes of x but for the batch, kernel's.

    Sizes are those in MobileNetV2 and ResNet-50 at images of `side` px.
    """
    conv = lambda function, groups, stride, pad: (
        lambda x, k: function(
            x,
            k,
            (stride, stride),
            ((pad, pad), (pad, pad)),
            feature_group_count=groups,
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )
    )
    both = lambda *how: (conv(cpu_ops.conv_general_dilated, *how), conv(lax.conv_general_dilated, *how))
    eighth, quarter, half = (max(side // part, 4) for part in (8, 4, 2))
    return {
        "depthwise 3x3": (*both(192, 1, 1), [eighth, eighth, 192], (3, 3, 1, 192)),
        "depthwise 3x3, stride 2": (*both(144, 2, 1), [quarter, quarter, 144], (3, 3, 1, 144)),
        "pointwise": (*both(1, 1, 0), [eighth, eighth, 192], (1, 1, 192, 32)),
        "pointwise, stride 2": (*both(1, 2, 0), [quarter, quarter, 256], (1, 1, 256, 512)),
        "max pool 3x3": (lambda x: cpu_ops.max_pool_3x3(x, 1), lambda x: _xla_max_pool(x, 1), [half, half, 64], None),
        "average pool 2x2": (cpu_ops.avg_pool_2x2, _xla_avg_pool, [quarter, quarter, 128], None),
    }


def operations(batch_size: int, image_size: int, dtype: str, seconds: float) -> Iterator[Row]:
    """Each of the hand-written operations and XLA's in turn, forwards and backwards."""
    random = np.random.default_rng(0).standard_normal
    make = lambda *shape: jnp.asarray(random(shape), jnp.dtype(dtype))
    for name, (ours, xlas, size, kernel) in _operations(image_size).items():
        arguments = [make(batch_size, *size), *([] if kernel is None else [make(*kernel)])]
        contestants = {"ours": _both_ways(ours, arguments), "xla": _both_ways(xlas, arguments)}
        times = take_turns({key: clocked(work) for key, work in contestants.items()}, seconds)
        yield {"operation": name, "seconds": times, "ratio": ratio(times["ours"], times["xla"])._asdict()}


def _both_ways(function: Callable[..., jax.Array], arguments: list[jax.Array]) -> Callable[[], None]:
    """A function that computes the value and all gradients once and waits for them; compiled before it returns."""

    def value_and_gradients(*arguments: jax.Array) -> Any:
        value, pullback = jax.vjp(function, *arguments)
        return value, pullback(value)

    compiled = jax.jit(value_and_gradients).lower(*arguments).compile()
    work = lambda: jax.block_until_ready(compiled(*arguments))
    work()
    return work


def jax_steps(model: str, batches: Sequence[int], image_size: int, dtype: str, seconds: float) -> Iterator[Row]:
    """Plain and guided step of each batch size, and at the first one maps, and the plain step by XLA's operations.

    Each is timed as soon as it is compiled. Batches grow, so that the peak of the device's memory, which is that of the
    process so far, is about that of the row.
    """
    for batch_size in sorted(batches):
        case = Case(model, batch_size, image_size, dtype)
        variables = random_variables(case)
        plain = _program(case, PLAIN)
        yield from _timed_steps(case, variables, {PLAIN: plain}, seconds)
        yield from _timed_steps(case, variables, {PLAIN: plain, GUIDED: _program(case, GUIDED)}, seconds)
        if batch_size == min(batches):
            yield _timed_maps(case, variables, seconds)
            with xla_operations():
                by_xla = _program(case, PLAIN)
            yield from _timed_steps(case, variables, {PLAIN: plain, PLAIN_BY_XLA: by_xla}, seconds)


def _program(case: Case, strategy: str) -> tuple[Any, float, float]:
    """A compiled step, its FLOPs and the seconds that tracing and compiling took."""
    start = time.perf_counter()
    traced = trace_train_step(case, strategy)
    compiled = compile_step(traced.lower())
    return compiled, count_flops(traced), time.perf_counter() - start


def _timed_steps(
    case: Case, variables: Any, programs: dict[str, tuple[Any, float, float]], seconds: float
) -> Iterator[Row]:
    """A row for the plain step alone, or for another beside it, which takes its turns but has its row already."""
    contestants = {}
    for name, (compiled, _, _) in programs.items():
        step = running_step(compiled, case, variables)
        step()
        contestants[name] = clocked(step)
    times = take_turns(contestants, seconds)
    for name, (compiled, flops, spent) in programs.items():
        if name == PLAIN and len(programs) > 1:
            continue
        yield {
            **case._asdict(),
            "step": name,
            "seconds": times[name],
            "ratio": ratio(times[name], times[PLAIN])._asdict(),
            "flops": flops,
            "bytes": _bytes_accessed(compiled),
            "program_mb": sum(memory_account(compiled).values()),
            "device_mb": _megabytes(jax_work.device_peak_bytes()),
            "compile_seconds": spent,
        }


def _bytes_accessed(compiled: Any) -> float | None:
    """Bytes that the program's operations read and write by the compiler's account; None where it has none."""
    return (compiled.cost_analysis() or {}).get("bytes accessed")


def _megabytes(count: int | None) -> float | None:
    return None if count is None else count / 2**20


def _timed_maps(case: Case, variables: Any, seconds: float) -> Row:
    work = jax_work.maps(case, variables)
    work()
    return {**case._asdict(), "maps": "jax", "seconds": take_turns({"maps": clocked(work)}, seconds)["maps"]}


def torch_steps(model: str, batches: Sequence[int], image_size: int, dtype: str, seconds: float) -> Iterator[Row]:
    """PyTorch's steps, channels last and in mixed precision where the dtype says so, and its maps."""
    from launch.benchmark import torch_work

    torch = torch_work.import_torch()
    torch.backends.cudnn.benchmark = True  # tries algorithms, as XLA does
    first = Case(model, min(batches), image_size, dtype)
    cases = [(TORCH_STEPS[0], first._replace(batch_size=size)) for size in sorted(batches)]
    for name, case in [*cases, *((name, first) for name in TORCH_STEPS[1:])]:
        torch_work.device_peak_bytes()  # begins anew
        times, spent = _timed_torch(torch_work.STEPS[name], case, torch_work.synchronize, seconds)
        peak = _megabytes(torch_work.device_peak_bytes())
        yield {**case._asdict(), "step": name, "seconds": times, "device_mb": peak, "compile_seconds": spent}
    times, _ = _timed_torch(torch_work.MAPS[TORCH_MAPS], first, torch_work.synchronize, seconds)
    yield {**first._asdict(), "maps": TORCH_MAPS, "seconds": times}


def _timed_torch(
    build: Callable[[Case], Any], case: Case, synchronize: Callable[[], None], seconds: float
) -> tuple[list[float], float]:
    """Seconds by round, and those until it was ready: built, and called twice."""
    start = time.perf_counter()
    work = build(case)
    work(), work()
    synchronize()
    spent = time.perf_counter() - start

    def one() -> None:
        work()
        synchronize()

    return take_turns({"torch": clocked(one)}, seconds)["torch"], spent


def from_disk(model: str, batch_size: int, image_size: int, dtype: str, images: int, seconds: float) -> Iterator[Row]:
    """Training from a folder of JPEGs and maps that is written for it, beside the same step on a batch at hand."""
    case = Case(model, batch_size, image_size, dtype)
    variables = random_variables(case)
    compiled, _, _ = _program(case, GUIDED)
    step = running_step(compiled, case, variables)
    step()
    alone = take_turns({"step": clocked(step)}, seconds)["step"]
    with tempfile.TemporaryDirectory() as folder:
        data.write_images(Path(folder), "jpeg", images)
        wall, threads = _train_from(Path(folder), case, compiled, variables, seconds)
    share = idle_share(median(alone), wall)
    yield {**case._asdict(), "device_seconds": alone, "wall_seconds": wall, "idle_share": share, "threads": threads}


def idle_share(device: float, wall: float) -> float:
    """Share of the time of a step in which the device waits; at least 0, as steps in a row overlap."""
    return max(0.0, 1 - device / wall)


def _train_from(folder: Path, case: Case, compiled: Any, variables: Any, seconds: float) -> tuple[float, int]:
    """Seconds of wall clock for a step while batches are read, and the threads that read them.

    The files are read over and over within one epoch, so that no beginning of an epoch is in it; the first steps, for
    which batches were ready, are not counted.
    """
    batch_size, threads, warm = case.batch_size, len(available_cores()), 4
    source = data.open_images(folder)
    source = Subset(source, np.arange(_MOST_STEPS * batch_size) % len(source))
    options = {"batch_size": batch_size, "image_size": case.image_size, "num_threads": threads}
    keys = device_batch(case).keys()
    put = lambda batch: jax.device_put({key: batch[key] for key in keys})
    batches = prefetch_to_device(train_batches(source, epoch=0, seed=0, **options), put)
    state, done, start = steps.create_train_state(jax.tree.map(jnp.array, variables), optimizer()), 0, 0.0
    for done, batch in enumerate(batches):
        if done == warm:
            jax.block_until_ready(state)
            start = time.perf_counter()
        elif done > warm + 1 and time.perf_counter() - start > seconds:
            break
        state, _ = compiled(state, batch)
    jax.block_until_ready(state)
    return (time.perf_counter() - start) / (done - warm), threads


JOBS: dict[str, Callable[..., Iterator[Row]]] = {
    "peaks": peaks,
    "operations": operations,
    "jax_steps": jax_steps,
    "torch_steps": torch_steps,
    "from_disk": from_disk,
}
