"""The benchmark: which parts run on which networks and sizes, the printed tables and the JSON beside them."""

from __future__ import annotations

import importlib.metadata
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax

from launch.benchmark import PARTS, jax_work, parts, torch_work
from launch.benchmark.cases import Case
from launch.benchmark.operations import measure_bandwidth
from launch.benchmark.reference_networks import REFERENCES
from tfcam_jax.data.outputs import resolve_file
from tfcam_jax.devices.compilation import available_cores
from tfcam_jax.models import MODEL_CARDS, MODELS, POOLS, settings_of
from tfcam_jax.run.files import write_json
from tfcam_jax.run.provenance import collect_provenance, processor
from tfcam_jax.strategies import STRATEGIES

# Of these all strategies are timed, of the others the paper's, which saves minutes of compilation.
FULLY_TIMED = ("small_cnn", "resnet18")
# Of the same kind as another: timed where they are asked for.
ALIKE = ("convnext_base", "convnext_small", "deit_small_patch16", "vit_base_patch16")
COMPARED = ("resnet50", "densenet121", "mobilenet_v2", "efficientnet_lite0")
STARTED = ("small_cnn", "densenet121")
# Batch size and image size in px on a CPU; what is not here has the last.
CPU_SIZES = {"small_cnn": (20, 64), "resnet18": (8, 96), "mobilenet_v2": (20, 160), "efficientnet_lite0": (20, 160)}
CPU_SIZE, ACCELERATOR_BATCH = (8, 128), 128
STEPS = ("jax cross_entropy", "jax cyborg", *torch_work.STEPS)
MAPS = (*jax_work.MAPS, *torch_work.MAPS)
LIBRARIES = ("torch", "torchvision", "timm", "grad-cam")


class Settings(NamedTuple):
    """What a user may choose; None is the part's own default.

    Attributes:
      models: backbones.
      strategies: of part `guided`.
      steps: contestants of parts `reference` and `memory`.
      batch_size: images in a batch.
      image_size: in px.
      dtype: of the convolutions; None: float32 on a CPU, bfloat16 elsewhere. Part `maps` is always float32.
      pool: of networks that have a choice: a key of `models.POOLS`.
      seconds: of timing in each part and case.
    """

    models: Sequence[str] | None = None
    strategies: Sequence[str] | None = None
    steps: Sequence[str] | None = None
    batch_size: int | None = None
    image_size: int | None = None
    dtype: str | None = None
    pool: str | None = None
    seconds: float = 15.0


def check_settings(names: Sequence[str], settings: Settings) -> None:
    """Refuses a name that means nothing.

    Raises:
      ValueError: an unknown part, backbone, strategy or contestant; names it and what is known.
    """
    for kind, values, known in (
        ("part", names, PARTS),
        ("backbone", settings.models, MODELS),
        ("strategy", settings.strategies, STRATEGIES),
        ("pool", settings.pool and [settings.pool], POOLS),
        ("contestant", settings.steps, (*jax_work.STEPS, *torch_work.STEPS)),
    ):
        for value in values or ():
            if value not in known:
                raise ValueError(f"unknown {kind} {value!r}; known: {'; '.join(known)}")


def choose_case(model: str, settings: Settings, on_cpu: bool) -> Case:
    """Sizes that suit the device, where the settings leave them open."""
    card_size = MODEL_CARDS[model].image_size
    batch_size, image_size = CPU_SIZES.get(model, CPU_SIZE) if on_cpu else (ACCELERATOR_BATCH, card_size)
    return Case(
        model,
        settings.batch_size or batch_size,
        settings.image_size or image_size,
        settings.dtype or ("float32" if on_cpu else "bfloat16"),
        settings.pool if "pool" in settings_of(model) else None,
    )


def run(names: Sequence[str], settings: Settings, out: str | Path | None = None) -> None:
    """Runs the parts, prints each table as soon as it is there and the whole as JSON to `out`.

    Args:
      names: of the parts, in their order.
      settings: that `check_settings` has let pass.
      out: the file.
    """
    target = None if out is None else resolve_file(out)
    start, on_cpu = time.perf_counter(), jax.default_backend() == "cpu"
    dtype = choose_case("resnet18", settings, on_cpu).dtype
    peak = parts.measure_peak_flops(dtype)
    machine = describe_machine()
    print(f"{machine['device']}, {machine['cores']} cores, {machine['memory_gb']:.0f} GB")
    print(f"jax {jax.__version__}; measured peak of {dtype} matrix products: {peak / 1e9:,.0f} GFLOP/s", flush=True)
    record = {"provenance": collect_provenance(), "machine": machine, "libraries": _versions(), "peak_flops": peak}
    record |= {"settings": settings._asdict(), "sections": []}
    for name in names:
        section = _section(name, settings, on_cpu, peak)
        print(f"\n{section}", flush=True)
        record["sections"].append({"part": name, "title": section.title, "figures": section.figures})
    print(f"\n{time.perf_counter() - start:.0f} s in all")
    if target is not None:
        write_json(target, record)


def _section(name: str, settings: Settings, on_cpu: bool, peak: float) -> parts.Section:
    cases = lambda models: [choose_case(model, settings, on_cpu) for model in settings.models or models]
    steps = settings.steps or [step for step in STEPS if not (on_cpu and "compiled" in step)]
    if name == "guided":
        default = lambda model: tuple(STRATEGIES) if model in FULLY_TIMED else parts.PAPER_STRATEGIES
        models = [model for model in MODELS if model not in ALIKE]
        chosen = {case: settings.strategies or default(case.model) for case in cases(models)}
        return parts.guided(chosen, settings.seconds, peak)
    if name == "start":
        return parts.start(cases(STARTED))
    if name == "operations":
        strategy = (settings.strategies or ["cross_entropy"])[0]
        return parts.operations(cases(COMPARED), strategy, peak, measure_bandwidth())
    if name == "memory":
        return parts.memory(cases(COMPARED), settings.steps or [step for step in steps if "," not in step])
    both = [case for case in cases(COMPARED) if case.model in REFERENCES]
    if name == "reference":
        both = [case for case in both if REFERENCES[case.model].pools_by_mean]
        return parts.reference(both, steps, settings.seconds)
    both = [case for case in both if REFERENCES[case.model].has_relu]
    # pytorch-grad-cam goes through NumPy, which has no bfloat16.
    return parts.posthoc([case._replace(dtype="float32") for case in both], MAPS, settings.seconds)


def describe_machine() -> dict[str, Any]:
    """The device's name, and the host's cores and memory."""
    device = jax.devices()[0]
    pages = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    name = processor() if device.platform == "cpu" else device.device_kind
    return {"device": name, "cores": len(available_cores()), "memory_gb": pages / 1e9}


def _versions() -> dict[str, str]:
    installed = {each.name.lower() for each in importlib.metadata.distributions()}
    return {name: importlib.metadata.version(name) for name in LIBRARIES if name in installed}
