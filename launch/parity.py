"""Compares all backbones with torchvision's and timm's, layer by layer, on random weights.

    pip install -e '.[parity]'
    python launch/parity.py
    python launch/parity.py --models densenet121,resnet50 --image_size 128

Exits with 1 if any parameter count, layer, logit or running statistic differs by more than `--tolerance`.
"""

import sys

import command_line
from absl import app, flags

from tests.parity import parity

FLAGS = flags.FLAGS
flags.DEFINE_list("models", list(parity.REFERENCES), "Backbones to compare.")
flags.DEFINE_integer("image_size", None, "Side of the images in px; default: each backbone's own.", lower_bound=32)
flags.DEFINE_integer("batch_size", 2, "Number of images.", lower_bound=2)
flags.DEFINE_integer("seed", 0, "Seed of weights and images.")
flags.DEFINE_float("tolerance", 1e-4, "Largest relative error that passes.", lower_bound=0.0)


def main() -> None:
    if unknown := set(FLAGS.models) - set(parity.REFERENCES):
        raise app.UsageError(f"no reference for {sorted(unknown)}; there are {', '.join(parity.REFERENCES)}")
    passed = parity.run(FLAGS.models, FLAGS.image_size, FLAGS.batch_size, FLAGS.seed, FLAGS.tolerance)
    sys.exit(0 if passed else 1)


if __name__ == "__main__":
    command_line.run(main)
