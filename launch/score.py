"""Figures of score files that others made: CSV of truth, score in [0, 1] and type, as LivDet-Iris 2025 publishes them.

python launch/score.py --scores=task1_a.csv,task1_b.csv --out=runs/scores
"""

import command_line
from absl import flags

SCORES = flags.DEFINE_list("scores", None, "Files, or patterns such as 'part1/task1/*.csv'.")
OUT = flags.DEFINE_string("out", None, "Folder for scores.txt, what is printed, and scores.json, all figures.")
flags.mark_flags_as_required(["scores"])


def main() -> None:
    from tfcam_jax.metrics.score_files import score_files

    score_files(SCORES.value, OUT.value)


if __name__ == "__main__":
    command_line.run(main)
