"""Small runs to be killed and damaged: their data, their config, and processes that start fast."""

from __future__ import annotations

import csv
import multiprocessing
import os
from multiprocessing import forkserver
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
from ml_collections import ConfigDict
from PIL import Image
from tiny_manifest import SIZE, draw_square

from configs import default

REPO = Path(__file__).resolve().parents[2]

CLASSES = ("dark", "bright")
# What the launch scripts import when they start to work.
SCRIPTS_IMPORT = (
    "ml_collections.config_flags",
    "tfcam_jax.evaluation",
    "tfcam_jax.explanation",
    "tfcam_jax.export",
    "tfcam_jax.data.checks.prepare",
    "tfcam_jax.sharing.publish",
    "tfcam_jax.study.compare",
)


def draw_data(folder: Path, seed: int = 0) -> Path:
    """Draws images as PNG and JPEG, maps as PNG and NPY, and their `manifest.csv`; returns its path."""
    rng = np.random.default_rng(seed)
    (folder / "images").mkdir(parents=True)
    (folder / "maps").mkdir()
    rows = []
    for split, count in (("train", 20), ("val", 6), ("test", 8)):
        for i in range(count):
            label = i % 2
            image, human = draw_square(rng, label)
            names = f"images/{split}{i}.{'jpg' if i % 4 > 1 else 'png'}", f"maps/{split}{i}.{'npy' if i % 3 else 'png'}"
            Image.fromarray(image).save(folder / names[0])
            if i % 3:
                np.save(folder / names[1], np.float32(human) / np.float32(255))
            else:
                Image.fromarray(human).save(folder / names[1])
            rows.append((split, CLASSES[label], *names, "new" if split == "test" and i > 3 else "old", f"{split}{i}"))
    path = folder / "manifest.csv"
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([("split", "label", "image", "map", "domain", "group"), *rows])
    return path


def small_config(manifest: Path, epochs: int) -> ConfigDict:
    """The default config with a tiny network on the drawn data: five steps an epoch, checkpoints within it too."""
    config = default.get_config()
    config.data.source, config.data.manifest, config.data.labels = "manifest", str(manifest), CLASSES
    config.data.image_size, config.model.name = SIZE, "small_cnn"
    config.batch_size, config.epochs, config.log_every_steps, config.checkpoint_every_steps = 4, epochs, 2, 3
    config.optimizer.learning_rate = 0.05
    config.augment.flip, config.augment.crop = 0.5, 0.2
    config.strategy = "difference"
    return config


def small_arguments(manifest: Path) -> tuple[str, ...]:
    """The same, of one epoch, as flags of a launch script."""
    values = {
        "data.manifest": manifest,
        "data.labels": CLASSES,
        "data.image_size": SIZE,
        "data.num_threads": 1,
        "model.name": "small_cnn",
        "batch_size": 4,
        "epochs": 1,
        "evaluation.batch_size": 4,
        "strategy": "difference",
        "optimizer.learning_rate": 0.05,
    }
    config = REPO / "configs/manifest.py"
    return (f"--config={config}", *(f"--config.{key}={value}" for key, value in values.items()))


def start_server(compiled: Path) -> Any:
    """A context whose processes are forked off one that has imported everything and run nothing: they start fast.

    Args:
      compiled: folder in which they keep each compiled program.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["stress.kills", "stress.inputs", "stress.commands", *SCRIPTS_IMPORT])
    environment = {
        # The server itself looks for what it imports along this path only.
        "PYTHONPATH": os.pathsep.join([str(REPO), str(REPO / "tests"), os.environ.get("PYTHONPATH", "")]),
        "JAX_PLATFORMS": "cpu",
        "JAX_COMPILATION_CACHE_DIR": str(compiled),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }
    with mock.patch.dict(os.environ, environment):
        forkserver.ensure_running()
    return context


def hush(log: Path) -> None:
    """Sends this process's output to the end of a file."""
    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for stream in (1, 2):
        os.dup2(file, stream)
