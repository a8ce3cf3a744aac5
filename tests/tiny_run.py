"""A run on the tiny data set, trained in this process for what comes after training."""

from pathlib import Path

from ml_collections import ConfigDict
from tiny_manifest import write_manifest

from configs import default
from tfcam_jax.training import train


def tiny_config(manifest: Path) -> ConfigDict:
    config = default.get_config()
    config.data.manifest = str(manifest)
    config.data.labels = ("dark", "bright")
    config.data.image_size = 32
    config.model.name = "small_cnn"
    config.batch_size, config.epochs = 6, 6
    config.optimizer.learning_rate = 0.05
    config.strategy = "difference"
    config.evaluation.batch_size = 5
    return config


def train_tiny(folder: Path) -> Path:
    """Trains below `folder`; returns the workdir. The data are in `folder / "data"`."""
    manifest = write_manifest(folder / "data", train=24)
    train(tiny_config(manifest), folder / "run")
    return folder / "run"
