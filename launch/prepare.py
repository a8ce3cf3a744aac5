"""Builds a data set so that training finds it ready; with --check, validates it first and prints a report.

python launch/prepare.py --config=configs/manifest.py --config.data.manifest=my/manifest.csv --check --out=runs/data
"""

import sys

import command_line
from absl import flags
from ml_collections import config_flags

CONFIG = config_flags.DEFINE_config_file("config", None, "Config file; override with --config.key=value.")
CHECK = flags.DEFINE_bool("check", False, "Open every file first and report what is there and what is wrong.")
OUT = flags.DEFINE_string("out", None, "Folder for the report and a contact sheet of images with their maps.")
WRITE = flags.DEFINE_string("write_manifest", None, "CSV to write of these data and their splits; must not exist.")
flags.mark_flags_as_required(["config"])


def main() -> None:
    from tfcam_jax.data.checks.prepare import prepare
    from tfcam_jax.experiment import resolve

    recipe = resolve(CONFIG.value)
    if not prepare(recipe.data, CHECK.value, OUT.value, WRITE.value, [recipe.describe_cam()]):
        sys.exit("error: the data can't be trained on; solve the problems listed above")


if __name__ == "__main__":
    command_line.run(main)
