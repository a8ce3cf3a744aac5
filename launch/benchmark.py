"""Measures what guidance costs, and this package beside PyTorch, as ratios of one run.

    pip install -e '.[parity]'
    python launch/benchmark.py --out=benchmark.json
    python launch/benchmark.py --parts=reference --models=densenet121,resnet50 --batch_size=8 --image_size=224

Parts: `guided` (every strategy's step beside the plain one), `reference` (train steps beside PyTorch's), `maps` (maps
after training beside pytorch-grad-cam's), `start` (from a command to the first step, with and without the compilation
cache), `memory`, `operations` (where a step's time goes, beside the device's measured peaks). Without the extra, what
needs PyTorch is left out. It takes 10 to 15 minutes on two CPU cores; name parts and models for less. On a GPU the same
command takes bfloat16, batch 128 and each backbone's own image size; `--batch_size=256` for more.

    python launch/benchmark.py --preset=gpu

does on one GPU what fits into 8 minutes (`launch/benchmark/README.md`); `--dry_run` tries it anywhere with tiny sizes.
"""

import os
import sys

os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # contestants in other processes share the card

import command_line
from absl import flags

from launch.benchmark import PARTS

CHOSEN = flags.DEFINE_list("parts", list(PARTS), "Parts to run.")
MODELS = flags.DEFINE_list("models", None, "Backbones; default: each part's own.")
STRATEGIES = flags.DEFINE_list("strategies", None, "Strategies of part guided; default: all, or the paper's.")
CONTESTANTS = flags.DEFINE_multi_string("contestant", None, "Of parts reference and memory; may be repeated.")
BATCH_SIZE = flags.DEFINE_integer("batch_size", None, "Images in a batch; default: by device.", lower_bound=2)
IMAGE_SIZE = flags.DEFINE_integer("image_size", None, "Side of the images in px; default: by device.", lower_bound=32)
DTYPE = flags.DEFINE_enum("dtype", None, ["float32", "bfloat16"], "Of convolutions; default: by device.")
POOL = flags.DEFINE_string("pool", None, "Of networks that have a choice: token or mean; default: their own.")
SECONDS = flags.DEFINE_float(
    "seconds", None, "Of timing, for each backbone of a part; default: 15, of a preset 3.", lower_bound=0.0
)
OUT = flags.DEFINE_string(
    "out",
    None,
    "File for all figures, with machine and versions, as JSON; default of a preset: runs/benchmark_gpu.json.",
)
PRESET = flags.DEFINE_enum("preset", None, ["gpu"], "In place of parts: what is worth a measurement on one GPU.")
MINUTES = flags.DEFINE_float("minutes", 8.0, "That a preset may take.", lower_bound=0.1)
DRY_RUN = flags.DEFINE_bool("dry_run", False, "Of a preset: tiny sizes, on whatever there is; the figures say nothing.")
# What a preset has no use for.
_OF_PARTS = ("parts", "strategies", "contestant", "pool")


def main() -> None:
    if PRESET.value:
        run_preset()
        return
    if given := [name for name in ("minutes", "dry_run") if flags.FLAGS[name].present]:
        sys.exit(f"error: --{given[0]} is for --preset=gpu alone")
    from launch.benchmark.run import Settings, check_settings, run  # here: --help and a misspelt flag answer at once

    settings = Settings(
        models=MODELS.value,
        strategies=STRATEGIES.value,
        steps=CONTESTANTS.value,
        batch_size=BATCH_SIZE.value,
        image_size=IMAGE_SIZE.value,
        dtype=DTYPE.value,
        pool=POOL.value,
        seconds=15.0 if SECONDS.value is None else SECONDS.value,
    )
    try:
        check_settings(CHOSEN.value, settings)
    except ValueError as error:
        sys.exit(f"error: {error}")
    run(CHOSEN.value, settings, OUT.value)


def run_preset() -> None:
    """What `--preset` stands for, with what was given beside it."""
    if given := [name for name in _OF_PARTS if flags.FLAGS[name].present]:
        sys.exit(f"error: --{given[0]} is for parts, not for --preset={PRESET.value}")
    from launch.benchmark import gpu

    chosen = {
        "models": MODELS.value,
        "batches": BATCH_SIZE.value and (BATCH_SIZE.value,),
        "image_size": IMAGE_SIZE.value,
        "dtype": DTYPE.value,
        "seconds": SECONDS.value,
    }
    sizes = gpu.DRY if DRY_RUN.value else gpu.Sizes()
    sizes = sizes._replace(**{name: value for name, value in chosen.items() if value is not None})
    gpu.run(sizes, OUT.value or "runs/benchmark_gpu.json", MINUTES.value, on_cpu=DRY_RUN.value)


if __name__ == "__main__":
    command_line.run(main)
