"""Evaluates the best checkpoint of a run by the whole protocol, from its folder alone.

python launch/evaluate.py --workdir=runs/mine
python launch/evaluate.py --config=configs/manifest.py --config.data.manifest=test.csv --config.model.name=resnet18 \\
    --config.model.weights=resnet18.pth --config.model.keep_head=True --workdir=runs/imported
python launch/evaluate.py --workdir=hf://owner/name --data=my/manifest.csv --out=evaluations/theirs
python launch/evaluate.py --workdir=runs/mine --data=other/manifest.csv --out=evaluations/other
python launch/evaluate.py --leave_one_domain_out=runs/without_a,runs/without_b --out=evaluations/study
"""

import command_line
from absl import app, flags
from ml_collections import config_flags

CONFIG = config_flags.DEFINE_config_file(
    "config", None, "Of a network to evaluate without training it, by its model.weights; makes the run, of 0 epochs."
)
WORKDIR = flags.DEFINE_string(
    "workdir", None, "Folder of a run, or hf://owner/name; with --config new, or of the same config."
)
DATA = flags.DEFINE_string("data", None, "CSV manifest of other data with the same classes.")
SPLIT = flags.DEFINE_enum("split", None, ["train", "val", "test"], "Split to evaluate; test, or val without one.")
THRESHOLDS = flags.DEFINE_string(
    "thresholds", "run", "Validation images that thresholds are chosen on: run (those of the run), data (of --data)."
)
OUT = flags.DEFINE_string(
    "out", None, "Folder for the files; WORKDIR/evaluation, or WORKDIR/evaluation_NAME of --data."
)
FAITHFULNESS = flags.DEFINE_integer(
    "faithfulness_images", 64, "Images for insertion, deletion, ROAD and the sanity check; 0: none.", lower_bound=0
)
ACCEPT = command_line.define_accept_changed_data()
STUDY = flags.DEFINE_list("leave_one_domain_out", [], "Workdirs or scores.csv of several evaluations, to merge.")


def main() -> None:
    from tfcam_jax import evaluation, training

    if STUDY.value:
        evaluation.evaluate_leave_one_domain_out(STUDY.value, OUT.value)
    elif WORKDIR.value:
        if CONFIG.value is not None:
            training.import_network(CONFIG.value, WORKDIR.value, ACCEPT.value)
        asked = DATA.value, SPLIT.value, THRESHOLDS.value, OUT.value, FAITHFULNESS.value, ACCEPT.value
        evaluation.evaluate(WORKDIR.value, *asked)
    else:
        raise app.UsageError("give the --workdir of a run, or --leave_one_domain_out")


if __name__ == "__main__":
    command_line.run(main, several_processes=True)
