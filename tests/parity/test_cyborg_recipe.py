"""An epoch of `configs/cyborg_recipe.py` in float64 against PyTorch's, written from the recipe's description.

Also with the weight of VISER's recipe, which each step finds (`guidance.weighting=loss_share`), not detached.

The reference hooks its features, for DenseNet runs the network twice, loops over the images and ends the epoch with a
smaller batch, as the CYBORG code is described to do. From image files' sizes on both go their own way.

python -m pytest -m parity tests/parity/test_cyborg_recipe.py -n 0 -s
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import traverse_util
from PIL import Image

from configs import cyborg_recipe
from launch.benchmark.reference_networks import build_reference, import_torch, numpy_state_dict
from launch.benchmark.torch_work import DESCRIBED_LAYERS
from tfcam_jax.data.pipeline import train_batches
from tfcam_jax.data.source import Example, Records
from tfcam_jax.experiment import resolve
from tfcam_jax.models import MODEL_CARDS
from tfcam_jax.models.head import dropout_factors
from tfcam_jax.models.weights import rename
from tfcam_jax.optimizers import make_optimizer
from tfcam_jax.steps import create_train_state, make_train_step

pytestmark = pytest.mark.parity
# Images of the smallest size that leaves a CAM with a few places.
SIZES = {"resnet18": 96, "densenet121": 96, "inception_v3": 139, "xception": 96}
BATCH_SIZE, COUNT = 3, 5  # the second and last batch has two examples
# Of the first step, and of the second, which starts from weights that differ by rounding already and has batch
# statistics of two examples, which magnify it.
TOLERANCES = (1e-10, 1e-9)


class Noise:
    """Images and maps of other sizes than the networks'; a map is an 8-bit file."""

    records = Records(
        *[("",) * COUNT], np.arange(COUNT, dtype=np.int32) % 2, *[("",) * COUNT] * 2, np.ones(COUNT, bool)
    )

    def __len__(self) -> int:
        return COUNT

    def files(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        rng = np.random.default_rng([index, 7])
        return rng.integers(0, 256, (151, 160, 3), np.uint8), rng.integers(0, 200, (75, 80), np.uint8)

    def __getitem__(self, index: int) -> Example:
        image, human = self.files(index)
        return Example.from_arrays(image, np.divide(human, np.float32(255), dtype=np.float32))


class Step(NamedTuple):
    """The gradient before weight decay, and parameters and statistics after the step, by our names and layout."""

    gradient: dict[str, np.ndarray]
    after: dict[str, np.ndarray]


def test_the_tensors_hooked_are_those_described():
    assert {name for name in SIZES if name not in DESCRIBED_LAYERS} == {"densenet121"}


@pytest.mark.timeout(1800)  # Inception takes twelve minutes on two busy cores, most of it to compile
@pytest.mark.parametrize(("name", "weighting"), [*((name, "fixed") for name in SIZES), ("resnet18", "loss_share")])
def test_every_step_has_pytorchs_gradient(name, weighting):
    config = cyborg_recipe.get_config(name)
    config.strategy, config.data.image_size, config.data.manifest = "cyborg", SIZES[name], "any.csv"
    config.batch_size, config.guidance.weighting = BATCH_SIZE, weighting
    recipe = resolve(config)
    network = build_reference(name, seed=0, num_classes=2)
    start = by_our_names(numpy_state_dict(network), name)
    options = {key: getattr(recipe, key) for key in ("seed", "batch_size", "image_size", "resize_through", "map_size")}
    batches = list(train_batches(Noise(), epoch=0, **options))
    ours = run_ours(recipe, start, batches, MODEL_CARDS[name])
    theirs = run_reference(name, network, batches, recipe)
    errors = [
        max(max(relative_errors(mine, reference).values()) for mine, reference in zip(one, other, strict=True))
        for one, other in zip(ours, theirs, strict=True)
    ]
    title = f"{name}, loss_share" if recipe.loss_share else name
    print(f"\n{title:<21}", *(f"{error:.1e}" for error in errors), end=" ", flush=True)
    assert all(error <= tolerance for error, tolerance in zip(errors, TOLERANCES, strict=True)), errors


def relative_errors(ours: dict[str, np.ndarray], theirs: dict[str, np.ndarray]) -> dict[str, float]:
    """Of each array the norm of the difference over that of `theirs`."""
    assert ours.keys() == theirs.keys() and all(np.isfinite(array).all() for array in ours.values())
    return {key: float(np.linalg.norm(ours[key] - array) / np.linalg.norm(array)) for key, array in theirs.items()}


def run_ours(recipe: Any, start: dict[str, np.ndarray], batches: list[dict[str, np.ndarray]], card: Any) -> list[Step]:
    flat = lambda tree: {key: np.asarray(leaf) for key, leaf in traverse_util.flatten_dict(tree, sep=".").items()}
    keep = optax.GradientTransformation(lambda params: params, lambda gradient, _, params=None: (gradient, gradient))
    preprocess = lambda images: (images / np.float64(255) - np.array(card.mean)) / np.array(card.std)
    steps = []
    with jax.enable_x64(True), jax.numpy_rank_promotion("allow"):
        model = recipe.make_model(num_classes=2).clone(dtype=jnp.float64)
        # The rate of the first twelve epochs, which Optax's own step schedule would round to float32.
        tx = optax.chain(keep, make_optimizer("sgd", optax.constant_schedule(0.005), weight_decay=1e-6))
        variables = {kind: {} for kind in ("params", "batch_stats")}
        for key, array in start.items():
            kind = "batch_stats" if key.rpartition(".")[2] in ("mean", "var") else "params"
            variables[kind][key] = jnp.asarray(array, jnp.float64)
        variables = {kind: traverse_util.unflatten_dict(tree, sep=".") for kind, tree in variables.items()}
        state, step = (
            create_train_state(variables, tx),
            jax.jit(make_train_step(model, tx, recipe.strategy_for(()), preprocess)),
        )
        for batch in batches:
            batch = {key: array for key, array in batch.items() if key != "index"}
            state, _ = step(state, batch | {"saliency": batch["saliency"].astype(np.float64)})
            steps.append(Step(flat(state.opt_state[0]), flat(state.params) | flat(state.batch_stats)))
    return steps


def run_reference(name: str, network: Any, batches: list[dict[str, np.ndarray]], recipe: Any) -> list[Step]:
    torch = import_torch()
    network = network.double().train()
    parameters = dict(network.named_parameters())
    optimizer = torch.optim.SGD(network.parameters(), lr=0.005, momentum=0.9, weight_decay=1e-6)
    hooked, layer = [], DESCRIBED_LAYERS.get(name)
    if layer:
        keep = lambda _module, _inputs, output: hooked.append(output.clone())
        network.get_submodule(layer).register_forward_hook(keep)
    steps = []
    for batch in batches:
        rows = batch["index"][batch["mask"] > 0]
        images, human = loaded(rows, recipe.image_size, recipe.map_size, MODEL_CARDS[name])
        if name == "inception_v3":  # with the mask that our step draws
            draw = jnp.asarray(batch["draw"][: len(rows)])
            factors = torch.from_numpy(np.array(dropout_factors(draw, 0.5, 2048), np.float64))
            drop = lambda _module, _inputs, output, factors=factors: output * factors[:, :, None, None]
            handle = network.dropout.register_forward_hook(drop)
        optimizer.zero_grad()
        logits = network(images)
        features = hooked.pop() if layer else network.features(images)
        labels = torch.from_numpy(np.arange(COUNT) % 2)[rows]
        cross_entropy, guidance = losses(torch, logits, features, labels, human, network)
        alpha = cross_entropy / (cross_entropy + guidance) if recipe.loss_share else 0.5
        (alpha * cross_entropy + (1 - alpha) * guidance).backward()
        gradient = {key: parameter.grad.numpy().copy() for key, parameter in parameters.items()}
        optimizer.step()
        steps.append(Step(by_our_names(gradient, name), by_our_names(numpy_state_dict(network), name)))
        if name == "inception_v3":
            handle.remove()
    return steps


def losses(torch: Any, logits: Any, features: Any, labels: Any, human: Any, network: Any) -> tuple[Any, Any]:
    """The cross-entropy, and the mean squared error of the predicted class's map."""
    head = [module for module in network.modules() if isinstance(module, torch.nn.Linear)][-1].weight
    guidance = torch.zeros((), dtype=torch.float64)
    for channels, predicted, wanted in zip(features, logits.argmax(1).tolist(), human, strict=True):
        cam = torch.einsum("c,chw->hw", head[predicted], channels)
        cam = (cam - cam.min()) / (cam.max() - cam.min())
        guidance = guidance + torch.nn.functional.mse_loss(cam, wanted)
    return torch.nn.functional.cross_entropy(logits, labels), guidance / len(human)


def loaded(rows: np.ndarray, image_size: int, map_size: int, card: Any) -> tuple[Any, Any]:
    """Images and human maps of these rows as from a data loader: [B, 3, S, S] and [B, s, s], float64."""
    torch = import_torch()
    resize = lambda array, side: np.asarray(
        Image.fromarray(array).resize((side, side), Image.Resampling.BILINEAR), np.float64
    )
    images, human = [], []
    for row in rows:
        image, annotation = Noise().files(row)
        images.append((resize(image, image_size) / 255 - card.mean) / card.std)
        places = resize(annotation, map_size)
        human.append((places - places.min()) / (places.max() - places.min()))
    return torch.from_numpy(np.stack(images).transpose(0, 3, 1, 2).copy()), torch.from_numpy(np.stack(human))


def by_our_names(arrays: dict[str, np.ndarray], name: str) -> dict[str, np.ndarray]:
    """PyTorch's parameters, gradients or statistics by our names and in our layout, in their own precision."""
    leaves = {"running_mean": "mean", "running_var": "var", "bias": "bias"}
    axes = {4: (2, 3, 1, 0), 2: (1, 0), 1: (0,)}
    found = {}
    for key, array in arrays.items():
        module, _, leaf = rename(key, MODEL_CARDS[name].torch_names).rpartition(".")
        if leaf != "num_batches_tracked":
            leaf = leaves.get(leaf) or ("kernel" if array.ndim > 1 else "scale")
            found[f"{module}.{leaf}"] = array.transpose(axes[array.ndim])
    return found
