"""Times a train step (forward, backward, update) against the same network in PyTorch, in one interleaved run.

pip install -e '.[parity]'
python launch/benchmark_step.py --models densenet121,resnet50
"""

from __future__ import annotations

from absl import app, flags

from tfcam_jax import step_benchmark

FLAGS = flags.FLAGS
flags.DEFINE_list("models", ["densenet121", "resnet50"], "Backbones to time.")
flags.DEFINE_list("contestants", list(step_benchmark.CONTESTANTS), "Who takes part.")
flags.DEFINE_integer("batch_size", 8, "Images per step.", lower_bound=1)
flags.DEFINE_integer("image_size", 224, "Side of the images in px.", lower_bound=32)
flags.DEFINE_integer("rounds", 9, "Timed steps of each contestant.", lower_bound=1)


def main(_argv: list[str]) -> None:
    if unknown := set(FLAGS.contestants) - set(step_benchmark.CONTESTANTS):
        raise app.UsageError(f"no contestant {sorted(unknown)}; there are {', '.join(step_benchmark.CONTESTANTS)}")
    step_benchmark.run(FLAGS.models, FLAGS.contestants, FLAGS.batch_size, FLAGS.image_size, FLAGS.rounds)


if __name__ == "__main__":
    app.run(main)
