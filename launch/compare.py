"""Trains several strategies on the same data and compares them in a table and a picture.

python launch/compare.py --config=configs/demo.py --workdir=runs/demo
"""

import command_line
from absl import flags
from ml_collections import config_flags

CONFIG = config_flags.DEFINE_config_file("config", None, "Config file; override with --config.key=value.")
WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the comparison; finished runs in it are not repeated.")
ACCEPT = command_line.define_accept_changed_data()
flags.mark_flags_as_required(["config", "workdir"])


def main() -> None:
    from tfcam_jax.study.compare import compare

    compare(CONFIG.value, WORKDIR.value, accept_changed_data=ACCEPT.value)


if __name__ == "__main__":
    command_line.run(main)
