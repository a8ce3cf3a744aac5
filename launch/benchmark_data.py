"""Measures how fast images are read, decoded, resized and augmented, against tf.data and PyTorch's DataLoader.

python launch/benchmark_data.py --cores=1
python launch/benchmark_data.py --stream=100000

Libraries that are not installed are left out. The second command reads that many images and tells the peak of memory.
"""

import command_line
from absl import flags

CORES = flags.DEFINE_integer("cores", 1, "Cores that each pipeline may use.", lower_bound=1)
ROUNDS = flags.DEFINE_integer("rounds", 3, "Rounds of all pipelines in turn.", lower_bound=1)
SECONDS = flags.DEFINE_float("seconds", 8.0, "Length of each measurement.", lower_bound=0.1)
STREAM = flags.DEFINE_integer("stream", 0, "Instead: read so many images once and tell the peak of memory.")


def main() -> None:
    from launch.benchmark.data import benchmark, stream  # here: --help and a misspelt flag answer at once

    print(stream(STREAM.value) if STREAM.value else benchmark(CORES.value, ROUNDS.value, SECONDS.value))


if __name__ == "__main__":
    command_line.run(main)
