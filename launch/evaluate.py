"""Evaluates the best checkpoint of a run by the whole protocol, from its folder alone.

python launch/evaluate.py --workdir=runs/mine
python launch/evaluate.py --workdir=runs/mine --data=other/manifest.csv --out=evaluations/other
python launch/evaluate.py --leave_one_domain_out=runs/without_a,runs/without_b --out=evaluations/study
"""

import command_line
from absl import app, flags

WORKDIR = flags.DEFINE_string("workdir", None, "Folder of a run.")
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
STUDY = flags.DEFINE_list("leave_one_domain_out", [], "Workdirs or scores.csv of several evaluations, to merge.")


def main() -> None:
    from tfcam_jax.evaluation import evaluate, evaluate_leave_one_domain_out

    if STUDY.value:
        evaluate_leave_one_domain_out(STUDY.value, OUT.value)
    elif WORKDIR.value:
        evaluate(WORKDIR.value, DATA.value, SPLIT.value, THRESHOLDS.value, OUT.value, FAITHFULNESS.value)
    else:
        raise app.UsageError("give the --workdir of a run, or --leave_one_domain_out")


if __name__ == "__main__":
    command_line.run(main, several_processes=True)
