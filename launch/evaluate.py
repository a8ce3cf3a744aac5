"""Evaluates the best checkpoint of a run, from its folder alone.

python launch/evaluate.py --workdir=runs/mine
"""

import command_line
from absl import flags

from tfcam_jax.evaluate import evaluate

WORKDIR = flags.DEFINE_string("workdir", None, "Folder of a finished run.")
flags.mark_flags_as_required(["workdir"])

if __name__ == "__main__":
    command_line.run(lambda: evaluate(WORKDIR.value))
