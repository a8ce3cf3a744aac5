"""Measures what guidance costs, and this package beside PyTorch, as ratios of one run.

    pip install -e '.[parity]'
    python launch/benchmark.py --out=benchmark.json
    python launch/benchmark.py --parts=reference --models=densenet121,resnet50 --batch_size=8 --image_size=224

Parts: `guided` (every strategy's step beside the plain one), `reference` (train steps beside PyTorch's), `maps` (maps
after training beside pytorch-grad-cam's), `start` (from a command to the first step, with and without the compilation
cache), `memory`, `operations` (where a step's time goes, beside the device's measured peaks). Without the extra, what
needs PyTorch is left out. It takes 10 to 15 minutes on two CPU cores; name parts and models for less. On a GPU the same
command takes bfloat16, batch 128 and each backbone's own image size; `--batch_size=256` for more.
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
SECONDS = flags.DEFINE_float("seconds", 15.0, "Of timing, for each backbone of a part.", lower_bound=0.0)
OUT = flags.DEFINE_string("out", None, "File for all figures, with machine and versions, as JSON.")


def main() -> None:
    from launch.benchmark.run import Settings, check_settings, run  # here: --help and a misspelt flag answer at once

    settings = Settings(
        models=MODELS.value,
        strategies=STRATEGIES.value,
        steps=CONTESTANTS.value,
        batch_size=BATCH_SIZE.value,
        image_size=IMAGE_SIZE.value,
        dtype=DTYPE.value,
        pool=POOL.value,
        seconds=SECONDS.value,
    )
    try:
        check_settings(CHOSEN.value, settings)
    except ValueError as error:
        sys.exit(f"error: {error}")
    run(CHOSEN.value, settings, OUT.value)


if __name__ == "__main__":
    command_line.run(main)
