"""Draws true-class, false-class and difference maps of a run's best checkpoint.

python launch/explain.py --workdir=runs/mine --split=test
"""

import command_line
from absl import flags

from tfcam_jax.explain import explain

WORKDIR = flags.DEFINE_string("workdir", None, "Folder of a finished run.")
SPLIT = flags.DEFINE_string("split", "val", "Split whose images are shown: train, val or test.")
IMAGES = flags.DEFINE_integer("images", 8, "How many images are shown.", lower_bound=1)
OUT = flags.DEFINE_string("out", None, "The PNG to write; explain_SPLIT.png in the workdir by default.")
flags.mark_flags_as_required(["workdir"])


def main() -> None:
    print(f"Maps: {explain(WORKDIR.value, SPLIT.value, IMAGES.value, OUT.value)}")


if __name__ == "__main__":
    command_line.run(main)
