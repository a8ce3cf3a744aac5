"""What training costs, read off the compiled programs: bytes between devices, FLOPs, memory, the paper's protocol.

    python launch/scale.py
    python launch/scale.py --tasks=faces=1821,20000,700000 --peak_tflops=989 --achieved=0.1 --out=scale.json

Nothing is trained. Bytes are those of the data-parallel step on 8 virtual devices. The protocol's hours follow from
FLOPs and from what the flags assume of GPU and data, which is printed below the table. About five minutes on two CPU
cores.
"""

import sys
from pathlib import Path

import command_line
from absl import flags

from tests import scale
from tests.scale import Machine, Protocol, Task
from tfcam_jax.run.files import write_json

PAPER_BACKBONES = ["densenet121", "resnet50", "inception_v3", "xception"]
MODELS = flags.DEFINE_list("models", PAPER_BACKBONES, "Backbones of the first three tables.")
STRATEGIES = flags.DEFINE_list(
    "strategies", ["cross_entropy", "cyborg", "opposed", "difference", "contrast"], "Of the FLOPs and of the protocol."
)
BATCH_SIZES = flags.DEFINE_list("batch_sizes", ["20", "64"], "Of the memory table.")
IMAGE_SIZE = flags.DEFINE_integer("image_size", None, "In px; default: each backbone's own.", lower_bound=32)
DTYPE = flags.DEFINE_enum("dtype", "float32", ["float32", "bfloat16"], "Of the convolutions.")
TASKS = flags.DEFINE_multi_string(
    "tasks",
    ["faces=1821,20000,700000", "iris=1000,1000,12432", "chest=1000,1000,10000"],
    "NAME=TRAIN,VALIDATION,TEST images; may be repeated. All but the faces' first two are assumptions.",
)
PROTOCOL_MODEL = flags.DEFINE_string("protocol_model", "densenet121", "Backbone of the protocol.")
PROTOCOL_BATCH = flags.DEFINE_integer("protocol_batch", 20, "Batch size of the protocol.", lower_bound=1)
SEEDS = flags.DEFINE_integer("seeds", 10, "Runs of each task and strategy.", lower_bound=1)
EPOCHS = flags.DEFINE_integer("epochs", 50, "Of each run.", lower_bound=1)
PEAK = flags.DEFINE_float(
    "peak_tflops", 989.0, "Assumed peak of a GPU; default: H100, dense bfloat16.", lower_bound=1e-3
)
ACHIEVED = flags.DEFINE_float(
    "achieved", 0.1, "Assumed share of the peak in training.", lower_bound=1e-6, upper_bound=1
)
LINK = flags.DEFINE_float("link_gbs", 450.0, "Assumed GB/s that a GPU sends; default: H100's NVLink.", lower_bound=1e-6)
OUT = flags.DEFINE_string("out", None, "File for all figures, as JSON.")


def parse_task(text: str) -> tuple[str, Task]:
    """`NAME=TRAIN,VALIDATION,TEST`."""
    name, _, numbers = text.partition("=")
    sizes = numbers.split(",")
    if not name or len(sizes) != 3 or not all(size.isdigit() for size in sizes):
        sys.exit(f"error: --tasks={text} is not NAME=TRAIN,VALIDATION,TEST with three numbers of images")
    return name, Task(*map(int, sizes))


def main() -> None:
    if wrong := [size for size in BATCH_SIZES.value if not size.isdigit() or not int(size)]:
        sys.exit(f"error: --batch_sizes: {wrong[0]!r} is no batch size")
    try:
        found = scale.run(
            MODELS.value,
            STRATEGIES.value,
            [int(size) for size in BATCH_SIZES.value],
            IMAGE_SIZE.value,
            Protocol(dict(map(parse_task, TASKS.value)), STRATEGIES.value, SEEDS.value, EPOCHS.value),
            Machine(1e12 * PEAK.value, ACHIEVED.value, 1e9 * LINK.value),
            PROTOCOL_MODEL.value,
            PROTOCOL_BATCH.value,
            DTYPE.value,
        )
    except ValueError as error:
        sys.exit(f"error: {error}")
    if OUT.value is not None:
        write_json(Path(OUT.value), found)


if __name__ == "__main__":
    command_line.run(main)
