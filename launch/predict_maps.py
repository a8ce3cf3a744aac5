"""Predicts human maps of training images that nobody annotated, and writes a manifest that names them.

python launch/predict_maps.py --config=configs/manifest.py --config.data.manifest=my/manifest.csv \\
    --write_manifest=my/predicted.csv
"""

import command_line
from absl import flags
from ml_collections import config_flags

CONFIG = config_flags.DEFINE_config_file("config", None, "Config file; override with --config.key=value.")
WRITE = flags.DEFINE_string("write_manifest", None, "CSV to write; must not exist. Maps lie beside it, in NAME_maps.")
FOLDS = flags.DEFINE_integer("folds", 5, "Predictors, each without one part of the annotated images.")
STEPS = flags.DEFINE_integer("steps", 300, "Steps of each predictor, at least; whole epochs.")
flags.mark_flags_as_required(["config", "write_manifest"])


def main() -> None:
    from tfcam_jax.predicted_maps.predict import predict_maps

    predict_maps(CONFIG.value, WRITE.value, FOLDS.value, STEPS.value)


if __name__ == "__main__":
    command_line.run(main)
