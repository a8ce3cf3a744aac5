"""`--preset=gpu`: what there is to measure on one card, within a few minutes, by one command that needs no network.

Every job runs in a process of its own and has a share of the time that is left; what it does not need goes to those
behind it. A job that is not done by then is ended, and the table says so: compilers take what they take. The file of
all figures is written anew after every job.
"""

from __future__ import annotations

import functools
import json
import os
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax

from launch.benchmark.fresh_process import start_python
from launch.benchmark.gpu_jobs import PLAIN, Row
from launch.benchmark.parts import PYTORCH, Section, missing
from launch.benchmark.reference_networks import REFERENCES
from launch.benchmark.timing import Ratio, median
from tfcam_jax.data.outputs import resolve_file
from tfcam_jax.errors import UserError, check_known
from tfcam_jax.models import MODEL_CARDS, MODELS
from tfcam_jax.run.files import write_json

MINUTES = 8.0
_KEPT = 1500  # characters of what a failed job said
_FEWEST_SECONDS = 1.0


class Sizes(NamedTuple):
    """What is measured, and how large.

    Attributes:
      models: networks, the first also from disk.
      batches: images in a batch.
      image_size: in px; None: each network's own.
      dtype: of convolutions, and of the product that the peak is measured with.
      seconds: of timing, for each row or pair of rows.
      product: rows and columns of that product.
      copied: bytes that are copied for the peak of the memory.
      images: files that are trained from.
    """

    models: Sequence[str] = ("resnet50", "mobilenet_v2", "densenet121")
    batches: Sequence[int] = (64, 128, 256)
    image_size: int | None = None
    dtype: str = "bfloat16"
    seconds: float = 3.0
    product: int = 8192
    copied: int = 2**31
    images: int = 512


# Every kind of row in seconds, for the command to be tried on a CPU; the figures say nothing.
DRY = Sizes(("small_cnn",), (2,), 32, "float32", 0.0, 64, 2**16, 8)


class Job(NamedTuple):
    """A function of `gpu_jobs.JOBS`, its arguments and its part of the time, beside the others' parts."""

    name: str
    title: str
    arguments: Mapping[str, Any]
    part: float


class Ended(NamedTuple):
    """A job's rows, and why there are no more, "" where it was done."""

    rows: list[Row]
    reason: str


class NoGpuError(UserError):
    """There is no GPU to measure."""


def plan(sizes: Sizes, with_torch: bool) -> list[Job]:
    """What is measured, what tells most first."""
    side = lambda model: sizes.image_size or MODEL_CARDS[model].image_size
    common = {"dtype": sizes.dtype, "seconds": sizes.seconds}
    jobs = [Job("peaks", "Peaks of the device", {**common, "size": sizes.product, "copied": sizes.copied}, 0.7)]
    networks = [
        {**common, "model": model, "batches": sizes.batches, "image_size": side(model)} for model in sizes.models
    ]
    jobs += [Job("jax_steps", f"{each['model']}, {each['image_size']} px", each, 2.0) for each in networks]
    first = {"batch_size": min(sizes.batches), "image_size": side(sizes.models[0]), **common}
    disk = {**first, "model": sizes.models[0], "images": sizes.images}
    jobs.append(Job("from_disk", f"{sizes.models[0]}, training from a folder of JPEGs", disk, 1.0))
    jobs.append(Job("operations", "Operations written by hand beside XLA's", first, 1.0))
    if with_torch:
        known = [each for each in networks if each["model"] in REFERENCES]
        jobs += [Job("torch_steps", f"{each['model']} in PyTorch", each, 1.0) for each in known]
    return jobs


def run(sizes: Sizes, out: str | Path, minutes: float = MINUTES, on_cpu: bool = False) -> None:
    """Runs all jobs, prints each table as soon as it is there and writes the figures so far to `out`.

    Args:
      sizes: what is measured.
      out: the file, as JSON.
      minutes: that all may take.
      on_cpu: go on where there is no GPU.

    Raises:
      NoGpuError: there is none, and `on_cpu` is not set.
      ConfigError: a network that is not known.
    """
    for name in sizes.models:
        check_known("--models", name, MODELS)
    target, deadline = resolve_file(out), time.monotonic() + 60 * minutes
    if jax.default_backend() == "cpu" and not on_cpu:
        raise NoGpuError(
            "there is no GPU (jax's backend is cpu): pip install 'jax[cuda12]' where there is one, or try the command "
            "here with --dry_run."
        )
    gone = missing(PYTORCH)
    jobs, peaks = plan(sizes, with_torch=not gone), {}
    record: dict[str, Any] = {"sizes": sizes._asdict(), "jobs": []}
    with tempfile.TemporaryDirectory() as folder:
        for number, job in enumerate(jobs):
            left = share_of_time(jobs[number:], deadline - time.monotonic())
            ended = end_in_time(_code(job, Path(folder) / f"{number}"), Path(folder) / f"{number}", left, folder)
            if job.name == "peaks":
                peaks = functools.reduce(lambda one, other: {**one, **other}, ended.rows, {})
            print(f"\n{_section(job, ended, peaks)}", flush=True)
            record["jobs"].append({**job._asdict(), "ended": ended.reason, "rows": ended.rows})
            write_json(target, record)
    if gone:
        print(f"\nPyTorch left out; not installed: {', '.join(gone)} (pip install -e '.[parity]')")
    print(f"\n{60 * minutes - deadline + time.monotonic():.0f} s in all; figures: {target}")


def share_of_time(jobs: Sequence[Job], seconds: float) -> float:
    """What the first of the jobs gets of the seconds that are left for all."""
    return max(seconds * jobs[0].part / sum(job.part for job in jobs), _FEWEST_SECONDS)


def _code(job: Job, path: Path) -> str:
    return f"from launch.benchmark.gpu_jobs import main; main({job.name!r}, {dict(job.arguments)!r}, {str(path)!r})"


def end_in_time(code: str, path: Path, seconds: float, cache: str | Path) -> Ended:
    """Runs a program that appends rows to `path`, for so many seconds at most.

    Args:
      code: the program.
      path: of the rows, a JSON text in each line.
      seconds: after which it is ended, with all processes that it started.
      cache: folder of the compiled programs that jobs share.
    """
    shared = {"XLA_PYTHON_CLIENT_PREALLOCATE": "false", "JAX_COMPILATION_CACHE_DIR": f"{cache}/programs"}
    reason = ""
    with tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as said:
        process = start_python(code, shared, stdout=said, stderr=subprocess.STDOUT, start_new_session=True)
        try:
            if process.wait(seconds):
                said.seek(0)
                reason = f"ended with exit status {process.returncode}: {said.read()[-_KEPT:].strip()}"
        except subprocess.TimeoutExpired:
            reason = f"not done within its {seconds:.0f} s; the rest is left out"
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True) if path.exists() else []
    return Ended([json.loads(line) for line in lines if line.endswith("\n")], reason)


def _section(job: Job, ended: Ended, peaks: Mapping[str, Any]) -> Section:
    heading, cells = _TABLES[job.name]
    rows = [heading, *(cells(row, peaks) for row in ended.rows if "provenance" not in row)]
    notes = [ended.reason] if ended.reason else []
    return Section(job.title, rows, notes, ended.rows)


def _of_peaks(row: Row, _: Mapping[str, Any]) -> tuple[str, ...]:
    if "device" in row:
        return row["device"], f"jax {row['jax']}, {row['backend']}"
    if "flops" in row:
        return "product of matrices", f"{row['flops'] / 1e12:,.2f} TFLOP/s"
    return "reading and writing memory", f"{row['bytes'] / 1e9:,.0f} GB/s"


def _of_steps(row: Row, peaks: Mapping[str, Any]) -> tuple[str, ...]:
    seconds, rate = median(row["seconds"]), f"{row['batch_size'] / median(row['seconds']):,.0f}"
    if "maps" in row:
        return f"maps ({row['maps']})", str(row["batch_size"]), _ms(seconds), rate, *"-----", ""
    share = lambda key: f"{row[key] / seconds / peaks[key]:.0%}" if row.get(key) and peaks.get(key) else "-"
    found = Ratio(**row["ratio"]) if "ratio" in row and row["step"] != PLAIN else None
    ratio = "" if found is None else f"{found.median:.3f} ({found.low:.2f}-{found.high:.2f})"
    sizes = (_whole(row.get(key)) for key in ("program_mb", "device_mb", "compile_seconds"))
    return row["step"], str(row["batch_size"]), _ms(seconds), rate, share("flops"), share("bytes"), *sizes, ratio


def _of_operations(row: Row, _: Mapping[str, Any]) -> tuple[str, ...]:
    found = Ratio(**row["ratio"])
    times = (f"{1e3 * median(row['seconds'][name]):.3f}" for name in ("ours", "xla"))
    return row["operation"], *times, f"{found.median:.2f} ({found.low:.2f}-{found.high:.2f})"


def _of_disk(row: Row, _: Mapping[str, Any]) -> tuple[str, ...]:
    wall, alone = row["wall_seconds"], median(row["device_seconds"])
    rate = f"{row['batch_size'] / wall:,.0f}"
    return (
        row["model"],
        str(row["batch_size"]),
        _ms(alone),
        _ms(wall),
        rate,
        str(row["threads"]),
        f"{row['idle_share']:.0%}",
    )


def _ms(seconds: float) -> str:
    return f"{1e3 * seconds:.1f}"


def _whole(value: float | None) -> str:
    return "-" if value is None else f"{value:,.0f}"


_STEPS = ("step", "batch", "ms", "images/s", "of FLOPs", "of memory", "program MB", "device MB", "ready s", "to plain")
_TABLES: dict[str, tuple[tuple[str, ...], Callable[[Row, Mapping[str, Any]], tuple[str, ...]]]] = {
    "peaks": (("measured", ""), _of_peaks),
    "jax_steps": (_STEPS, _of_steps),
    "torch_steps": (_STEPS, _of_steps),
    "operations": (("operation", "ours ms", "XLA's ms", "ours / XLA's"), _of_operations),
    "from_disk": (("network", "batch", "step ms", "from disk ms", "images/s", "threads", "device idle"), _of_disk),
}
