"""Kills short runs at random moments and damages inputs, and counts what comes of it; takes about 20 minutes.

python launch/faults.py --out=runs/faults
"""

import os
import sys
from pathlib import Path

os.environ["JAX_PLATFORMS"] = "cpu"
# The processes that it starts look for the package where this script finds it.
os.environ["PYTHONPATH"] = os.pathsep.join([str(Path(__file__).resolve().parents[1]), os.environ.get("PYTHONPATH", "")])

from absl import flags

OUT = flags.DEFINE_string("out", None, "Folder for faults.txt and faults.json.")
KILLS = flags.DEFINE_integer("kills", 200, "Kills.", lower_bound=0)
INPUTS = flags.DEFINE_integer("inputs", 500, "Damaged inputs.", lower_bound=0)
SEED = flags.DEFINE_integer("seed", 0, "Of moments and damages.")
MINUTES = flags.DEFINE_float("minutes", 30, "What is not done after so long is left out.", lower_bound=0.0)
flags.mark_flags_as_required(["out"])


def main() -> None:
    from configs import default
    from tests.stress.faults import study_faults

    _, sound = study_faults(default.get_config(), OUT.value, KILLS.value, INPUTS.value, SEED.value, MINUTES.value)
    if not sound:
        sys.exit("error: not all is as it should be; see the lines marked with !")


if __name__ == "__main__":
    # Imported here and in `main`: each process that is started runs this file again, and is to start fast.
    import command_line

    command_line.run(main)
