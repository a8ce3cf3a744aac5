"""Writes the best checkpoint of a run as one file that jax and flatbuffers can run: images to logits, T, U and T - U.

python launch/export.py --workdir=runs/mine --out=model.stablehlo
"""

import command_line
from absl import flags

WORKDIR = flags.DEFINE_string("workdir", None, "Folder of a run, or hf://owner/name.")
OUT = flags.DEFINE_string("out", None, "The file to write.")
ON = flags.DEFINE_multi_enum(
    "platform", ["cpu", "cuda", "tpu"], ["cpu", "cuda", "tpu", "rocm"], "Where it is to run; may be repeated."
)
flags.mark_flags_as_required(["workdir", "out"])


def main() -> None:
    from tfcam_jax.export import export_model

    print(f"Model: {export_model(WORKDIR.value, OUT.value, tuple(ON.value))}")


if __name__ == "__main__":
    command_line.run(main)
