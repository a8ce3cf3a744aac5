"""Trains one classifier.

python launch/train.py --config=configs/demo.py --workdir=runs/mine --config.strategy=difference
"""

import command_line
from absl import flags
from ml_collections import config_flags

CONFIG = config_flags.DEFINE_config_file("config", None, "Config file; override with --config.key=value.")
WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the run: made new, or continued with the same config.")
ACCEPT = command_line.define_accept_changed_data()
flags.mark_flags_as_required(["config", "workdir"])


def main() -> None:
    from tfcam_jax.training import train

    train(CONFIG.value, WORKDIR.value, ACCEPT.value)


if __name__ == "__main__":
    command_line.run(main, several_processes=True)
