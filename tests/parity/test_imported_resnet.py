"""A network that PyTorch saved, evaluated here as it comes: the same logits on the same files."""

import csv

import numpy as np
import pytest
from PIL import Image

from configs import manifest
from launch.benchmark.reference_networks import build_reference, import_torch
from tfcam_jax.evaluation import evaluate
from tfcam_jax.metrics.scores import read_scores
from tfcam_jax.models import IMAGENET_MEAN, IMAGENET_STD
from tfcam_jax.training import import_network

pytestmark = pytest.mark.parity
TOLERANCE = 1e-5  # largest absolute difference over the largest absolute logit
SIZE = 96


@pytest.mark.parametrize("classes", [("cat", "dog"), ("dog", "cat", "axolotl")])
def test_an_imported_resnet_has_pytorchs_logits(tmp_path, classes):
    torch = import_torch()
    network = build_reference("resnet18", seed=0, num_classes=len(classes))
    torch.save(network.state_dict(), tmp_path / "net.pth")
    rng, names = np.random.default_rng(0), [f"{i}.png" for i in range(2 * len(classes))]
    for name in names:  # of differing sizes, blocks of colour under noise
        blocks = rng.integers(0, 200, (6, 5, 3)).repeat(int(rng.integers(20, 40)), 0).repeat(30, 1)
        Image.fromarray((blocks + rng.integers(0, 56, blocks.shape)).astype(np.uint8)).save(tmp_path / name)
    with (tmp_path / "test.csv").open("w", newline="") as file:
        rows = [("test", classes[i % len(classes)], name) for i, name in enumerate(names)]
        csv.writer(file).writerows([("split", "label", "image"), *rows])
    config = manifest.get_config()
    config.data.manifest, config.data.labels, config.data.image_size = str(tmp_path / "test.csv"), classes, SIZE
    config.model.name, config.model.weights, config.model.keep_head = "resnet18", str(tmp_path / "net.pth"), True
    import_network(config, tmp_path / "run")
    evaluate(tmp_path / "run", faithfulness_images=0)
    scores, columns = read_scores(tmp_path / "run/evaluation/scores.csv")
    assert columns == classes
    with torch.no_grad():
        for name, ours in zip(scores.ids, scores.logits, strict=True):
            resized = Image.open(tmp_path / name).resize((SIZE, SIZE), Image.Resampling.BILINEAR)
            standardized = (np.asarray(resized, np.float32) / 255 - IMAGENET_MEAN) / IMAGENET_STD
            theirs = network(torch.from_numpy(standardized.transpose(2, 0, 1)[None].astype(np.float32))).numpy()[0]
            error = np.abs(ours - theirs).max() / np.abs(theirs).max()
            print(f"{name}: {error:.1e}")
            assert error <= TOLERANCE
