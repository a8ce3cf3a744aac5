"""Shows which places of each image carried the decision of a run's best checkpoint, as a page, PNGs and JSON.

python launch/explain.py --workdir=runs/mine --split=test --out=report
python launch/explain.py --workdir=runs/mine --images=photographs --out=report
python launch/explain.py --config=configs/manifest.py --config.data.manifest=test.csv --config.model.name=resnet18 \\
    --config.model.weights=resnet18.pth --config.model.keep_head=True --workdir=runs/imported
"""

import command_line
from absl import flags
from ml_collections import config_flags

CONFIG = config_flags.DEFINE_config_file(
    "config", None, "Of a network to explain without training it, by its model.weights; makes the run, of 0 epochs."
)
WORKDIR = flags.DEFINE_string(
    "workdir", None, "Folder of a run, or hf://owner/name; with --config new, or of the same config."
)
OUT = flags.DEFINE_string(
    "out",
    None,
    "Folder of the report, new or empty, an unfinished one is continued; report/ in the workdir by default.",
)
IMAGES = flags.DEFINE_string("images", None, "Folder of images without labels; the predicted class counts as true.")
SPLIT = flags.DEFINE_enum("split", None, ["train", "val", "test"], "Split to explain; test, or val without one.")
DATA = flags.DEFINE_string("data", None, "CSV manifest of other data with the same classes.")
ACCEPT = command_line.define_accept_changed_data()
flags.mark_flags_as_required(["workdir"])


def main() -> None:
    from tfcam_jax import explanation, training

    if CONFIG.value is not None:
        training.import_network(CONFIG.value, WORKDIR.value, ACCEPT.value)
    asked = OUT.value, IMAGES.value, SPLIT.value, DATA.value, ACCEPT.value
    print(f"Report: {explanation.explain(WORKDIR.value, *asked)}")


if __name__ == "__main__":
    command_line.run(main)
