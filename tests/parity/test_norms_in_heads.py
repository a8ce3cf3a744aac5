"""Networks with LayerNorm beside timm's and torchvision's, small ones in float64: maps, guided gradients, file names.

python -m pytest -m parity tests/parity/test_norms_in_heads.py -n 0 -s
"""

from __future__ import annotations

import importlib
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import traverse_util

from launch.benchmark.reference_networks import draw_parameters, import_torch, numpy_state_dict
from tfcam_jax import steps
from tfcam_jax.models import MODEL_CARDS, ConvNeXt, ViT, vit
from tfcam_jax.models.weights import convert, load_pretrained, merge, rename
from tfcam_jax.strategies import make_strategy

pytestmark = pytest.mark.parity
SIZE, CLASSES, BATCH = 64, 3, 4
WIDTHS = {"depths": (1, 2, 1, 1), "dims": (8, 16, 24, 32)}
TOKENS = {"img_size": SIZE, "embed_dim": 24, "depth": 2, "num_heads": 3}
OURS = {
    "convnext": partial(ConvNeXt, depths=WIDTHS["depths"], widths=WIDTHS["dims"]),
    "vit_token": partial(ViT, width=24, depth=2, heads=3),
    "vit_mean": partial(ViT, width=24, depth=2, heads=3, pool="mean"),
}
CARDS = {"convnext": "convnext_tiny", "vit_token": "vit_small_patch16", "vit_mean": "vit_small_patch16"}
over_networks = pytest.mark.parametrize("name", OURS)


def build(name: str, num_classes: int = CLASSES, **options: Any) -> Any:
    """timm's small network of that kind, with parameters all of which show."""
    torch = import_torch()
    torch.manual_seed(0)
    if name == "convnext":
        network = importlib.import_module("timm.models.convnext").ConvNeXt(num_classes=num_classes, **WIDTHS, **options)
    else:
        pool = {"vit_token": "token", "vit_mean": "avg"}[name]
        module = importlib.import_module("timm.models.vision_transformer")
        options = {**TOKENS, "global_pool": pool, **options}
        network = module.VisionTransformer(num_classes=num_classes, **options)
    draw_parameters(network, linear=True)
    return network.eval()


def converted(name: str, network: Any, dtype: Any = np.float64) -> Any:
    """Our parameters from theirs; float32 on the way loses nothing, as these are what they were drawn in."""
    images = jnp.zeros((1, SIZE, SIZE, 3))
    shapes = jax.eval_shape(lambda: OURS[name](num_classes=CLASSES).init(jax.random.key(0), images, train=False))
    empty = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), shapes)
    card = MODEL_CARDS[CARDS[name]]
    tree = merge(convert(numpy_state_dict(network), card.torch_names), empty, keep_head=True)
    return jax.tree.map(lambda leaf: np.asarray(leaf, dtype), tree)


def class_maps(torch: Any, name: str, network: Any, images: Any) -> tuple[Any, Any]:
    """Logits [B, K] and raw maps [B, h, w, K] by autograd alone, from the definitions in our docstrings."""
    if name == "vit_token":
        kept: list[Any] = []
        network.blocks[-1].attn.fused_attn = False  # which has no second derivative
        handle = network.blocks[-1].register_forward_pre_hook(lambda _module, inputs: kept.append(inputs[0]))
        network(images)
        handle.remove()
        tokens, last = kept[0], network.blocks[-1]
        normed = last.norm1(tokens)
        features = normed[:, 1:]
        entered = tokens + last.attn(torch.cat([normed[:, :1], features], dim=1))
        logits = network.head(network.norm(entered + last.mlp(last.norm2(entered)))[:, 0])
        side = SIZE // 16
        places = lambda maps: maps.reshape(len(images), side, side)
    else:
        features = network.forward_features(images)
        features = features[:, 1:] if name == "vit_mean" else features.flatten(2).transpose(1, 2)
        pooled = features.mean(1)
        norm, linear = (network.fc_norm, network.head) if name == "vit_mean" else (network.head.norm, network.head.fc)
        exact = linear(torch.nn.functional.layer_norm(pooled, pooled.shape[1:], norm.weight, norm.bias, norm.eps))
        # The same, linear in the features for a deviation that is given.
        deviation = (pooled.var(1, correction=0, keepdim=True) + norm.eps).sqrt()
        given = lambda f: linear((f.mean(1) - f.mean((1, 2))[:, None]) / deviation * norm.weight + norm.bias)
        logits = given(features)
        assert torch.allclose(logits, exact)
        side = round(features.shape[1] ** 0.5)
        places = lambda maps: maps.reshape(len(images), side, side)
        # Its gradient by the features, summed over places, written out.
        rows = [linear.weight[k] * norm.weight for k in range(CLASSES)]
        weights = [(row - row.mean())[None] / deviation for row in rows]
        return logits, torch.stack([places((features * w[:, None]).sum(-1)) for w in weights], dim=-1)
    maps = []
    for k in range(CLASSES):
        (gradient,) = torch.autograd.grad(logits[:, k].sum(), features, create_graph=True)
        maps.append(places((features * gradient.sum(1, keepdim=True)).sum(-1)))
    return logits, torch.stack(maps, dim=-1)


def normalize(maps: Any) -> Any:
    low, high = maps.amin((1, 2), keepdim=True), maps.amax((1, 2), keepdim=True)
    return (maps - low) / (high - low)


@over_networks
def test_maps_and_the_gradient_of_a_guided_step_are_pytorchs(name):
    """`difference` at alpha = 0.5, with a class in U that is the others' mean by their softmax."""
    torch = import_torch()
    network = build(name).double()
    random = np.random.default_rng(0)
    images, human = random.normal(size=(BATCH, SIZE, SIZE, 3)), random.uniform(size=(BATCH, SIZE, SIZE))
    labels = np.array([0, 1, 2, 1])
    variables = converted(name, network)

    with jax.enable_x64(True), jax.numpy_rank_promotion("allow"):
        model = OURS[name](num_classes=CLASSES).clone(dtype=jnp.float64)
        output = model.apply(jax.tree.map(jnp.asarray, variables), jnp.asarray(images), train=False)
        our_maps = np.stack([np.asarray(output.class_map(k)) for k in range(CLASSES)], -1)
        target = jax.image.resize(jnp.asarray(human), our_maps.shape[:3], "linear")
        keep = optax.GradientTransformation(lambda _: (), lambda gradient, _, params=None: (gradient, gradient))
        step = steps.make_train_step(model, keep, make_strategy("difference"), lambda images: images)
        state = steps.create_train_state(variables, keep)
        batch = {"image": images, "saliency": human, "label": labels, "mask": np.ones(BATCH), "weight": np.ones(BATCH)}
        batch["draw"] = np.zeros(BATCH, np.uint32)
        after, metrics = jax.jit(step)(state, jax.tree.map(jnp.asarray, batch))
        ours = {key: np.asarray(leaf) for key, leaf in traverse_util.flatten_dict(after.opt_state, sep=".").items()}

    logits, maps = class_maps(torch, name, network, torch.from_numpy(images.transpose(0, 3, 1, 2).copy()))
    # jax.nn.dot_product_attention takes its softmax in float32 whatever comes in.
    tolerance = 1e-9 if name == "convnext" else 1e-5
    np.testing.assert_allclose(output.logits, logits.detach(), atol=tolerance)
    np.testing.assert_allclose(our_maps, maps.detach(), atol=tolerance)
    one_hot = torch.nn.functional.one_hot(torch.from_numpy(labels), CLASSES).bool()
    others = torch.softmax(logits.detach().masked_fill(one_hot, -torch.inf), dim=1)
    difference = torch.einsum("bhwk,bk->bhw", maps, one_hot.double() - others)
    wanted = normalize(torch.from_numpy(np.array(target)))
    guidance = (normalize(difference) - wanted).square().mean()
    entropy = torch.nn.functional.cross_entropy(logits, torch.from_numpy(labels))
    (0.5 * entropy + 0.5 * guidance).backward()
    assert float(metrics.terms["difference"].sum) / BATCH == pytest.approx(guidance.item(), rel=1e-5)
    theirs = {}
    for key, parameter in network.named_parameters():
        module, _, leaf = rename(key, MODEL_CARDS[CARDS[name]].torch_names).rpartition(".")
        leaf = {"weight": "scale" if parameter.ndim == 1 else "kernel"}.get(leaf, leaf)
        axes = {4: (2, 3, 1, 0), 2: (1, 0), 3: (0, 1, 2), 1: (0,)}[parameter.ndim]
        theirs[f"{module}.{leaf}"] = parameter.grad.numpy().transpose(axes)
    assert ours.keys() == theirs.keys()
    largest = max(np.abs(array).max() for array in theirs.values())
    errors = {key: np.abs(ours[key] - array).max() / largest for key, array in theirs.items()}
    print(f"\n{name:<10} largest error of the gradient, as a share of its largest entry: {max(errors.values()):.1e}")
    assert max(errors.values()) < tolerance, errors


@pytest.mark.parametrize("side", [14, 10, 7, 24])
def test_positions_are_resampled_as_timm_does(side):
    torch = import_torch()
    positions = np.random.default_rng(0).normal(size=(1, 197, 8)).astype(np.float32)
    resample = importlib.import_module("timm.layers").resample_abs_pos_embed
    expected = resample(torch.from_numpy(positions), [side, side]).numpy()
    np.testing.assert_allclose(vit.resample_positions(jnp.asarray(positions), side), expected, atol=1e-5)


@pytest.mark.parametrize("name", ["vit_token", "vit_mean"])
def test_weights_of_another_size_give_what_they_give_in_timm(name, tmp_path, monkeypatch):
    """A file for 64 px in a network for 96 px, as timm's own loading resamples it."""
    torch = import_torch()
    small, large = build(name), build(name, img_size=96)
    torch.save(small.state_dict(), tmp_path / "small.pth")
    adapt = importlib.import_module("timm.models.vision_transformer").checkpoint_filter_fn
    large.load_state_dict(adapt(small.state_dict(), large))
    images = np.random.default_rng(0).normal(size=(2, 96, 96, 3)).astype(np.float32)
    model = OURS[name](num_classes=CLASSES)
    empty = jax.jit(partial(model.init, train=False))(jax.random.key(0), images)
    monkeypatch.setitem(MODEL_CARDS, "tiny", MODEL_CARDS["vit_small_patch16"])
    variables = load_pretrained("tiny", tmp_path / "small.pth", empty, keep_head=True)
    with torch.no_grad():
        expected = large(torch.from_numpy(images.transpose(0, 3, 1, 2).copy())).numpy()
    np.testing.assert_allclose(model.apply(variables, jnp.asarray(images), train=False).logits, expected, atol=1e-4)


def test_torchvisions_convnext_is_the_same_network(tmp_path, monkeypatch):
    torch = import_torch()
    module = importlib.import_module("torchvision.models.convnext")
    widths, depths = WIDTHS["dims"], WIDTHS["depths"]
    blocks = zip(widths, (*widths[1:], None), depths, strict=True)
    network = module.ConvNeXt([module.CNBlockConfig(*block) for block in blocks], num_classes=CLASSES).eval()
    draw_parameters(network, linear=True)
    torch.save(network.state_dict(), tmp_path / "convnext.pth")
    images = np.random.default_rng(0).normal(size=(2, SIZE, SIZE, 3)).astype(np.float32)
    model = OURS["convnext"](num_classes=CLASSES)
    empty = jax.jit(partial(model.init, train=False))(jax.random.key(0), images)
    monkeypatch.setitem(MODEL_CARDS, "tiny", MODEL_CARDS["convnext_tiny"])
    variables = load_pretrained("tiny", tmp_path / "convnext.pth", empty, keep_head=True)
    with torch.no_grad():
        expected = network(torch.from_numpy(images.transpose(0, 3, 1, 2).copy())).numpy()
    np.testing.assert_allclose(model.apply(variables, jnp.asarray(images), train=False).logits, expected, atol=1e-4)
