"""A smaller output stride: the same weights, the strided network's values where it has a place, and places between."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from slow_params import slow_but
from test_backbones import random_images, random_variables
from tiny_manifest import write_manifest
from tiny_run import tiny_config

from tfcam_jax import models
from tfcam_jax.errors import ConfigError
from tfcam_jax.experiment import open_dataset, resolve
from tfcam_jax.export import export_model
from tfcam_jax.inference import restore
from tfcam_jax.models import EfficientNetLite, MobileNetV2, ResNet, cam_size, check_contract
from tfcam_jax.models.dilation import steps_of_stages
from tfcam_jax.models.frozen import TrainedPart, apply_frozen, find_frozen
from tfcam_jax.models.mobilenet import Stage
from tfcam_jax.sharing.publish import publish
from tfcam_jax.training import train

# Small networks that halve the image five times, as the whole ones do.
STAGES = (
    Stage(1, 4, 3, 1, expansion=1),
    Stage(1, 6, 3, 2, expansion=2),
    Stage(1, 8, 5, 2, expansion=2),
    Stage(2, 10, 3, 2, expansion=2),
    Stage(1, 12, 5, 1, expansion=2),
    Stage(2, 14, 5, 2, expansion=2),
    Stage(1, 16, 3, 1, expansion=2),
)
DEEP = {
    "mobilenet": partial(MobileNetV2, stages=STAGES, last_features=24),
    "efficientnet": partial(EfficientNetLite, stages=STAGES, last_features=24),
    "basic": partial(ResNet, depths=(1, 1, 2, 2)),
    "bottleneck": partial(ResNet, depths=(1, 1, 1, 2), bottleneck=True),
}
HAVING = ("efficientnet_lite0", "mobilenet_v2", "resnet18", "resnet34", "resnet50")
EVERY = [(name, size, stride) for name in DEEP for size in (64, 65, 96) for stride in (16, 8)]
QUICK = ("mobilenet", 65, 16), ("efficientnet", 64, 8), ("basic", 64, 16)


def evaluate(name, variables, images, **fields):
    return jax.jit(partial(DEEP[name](num_classes=2, **fields).apply, train=False))(variables, images)


@pytest.mark.parametrize(("name", "size", "stride"), slow_but(EVERY, *QUICK))
def test_where_the_strided_network_has_a_place_the_values_are_its(name, size, stride):
    """At all places, the border's too. TensorFlow's padding of an even size sets out from the second place, not the
    first: of 64 and 96 px every stage's size is even, of 65 px every one's is odd."""
    variables, images = random_variables(DEEP[name](num_classes=2), size), random_images(2, size)
    strided = evaluate(name, variables, images).features
    dilated = evaluate(name, variables, images, output_stride=stride).features
    assert strided.shape[1:3] == (-(-size // 32),) * 2 and dilated.shape[1:3] == (-(-size // stride),) * 2
    step = 32 // stride
    first = step - 1 if name == "efficientnet" and size % 2 == 0 else 0
    found = dilated[:, first::step, first::step]
    np.testing.assert_allclose(found, strided, rtol=0, atol=1e-4 * np.abs(strided).max())
    between = dilated[:, 1 - min(first, 1) :: step, first::step]
    assert np.abs(between[:, : strided.shape[1]] - strided[:, : between.shape[1]]).max() > 1e-2 * np.abs(strided).max()


@pytest.mark.parametrize("name", DEEP)
def test_the_weights_are_the_same_ones(name):
    shapes = [
        jax.eval_shape(
            lambda stride=stride: DEEP[name](num_classes=2, output_stride=stride).init(
                jax.random.key(0), jnp.zeros((1, 64, 64, 3)), train=False
            )
        )
        for stride in (32, 8)
    ]
    assert jax.tree.structure(shapes[0]) == jax.tree.structure(shapes[1])
    assert jax.tree.leaves(shapes[0]) == jax.tree.leaves(shapes[1])


def test_stages_are_dilated_as_torchvision_and_timm_do():
    """By hand: dilations of resnet50 with replace_stride_with_dilation=[False, True, True], and of MobileNetV2."""
    assert steps_of_stages((1, 2, 2, 2), 4, 8) == [(1, 1, 1), (2, 1, 1), (1, 1, 2), (1, 2, 4)]
    plan = [stage.stride for stage in models.mobilenet.STAGES]
    assert [each[1:] for each in steps_of_stages(plan, 2, 16)[4:]] == [(1, 1), (1, 2), (2, 2)]
    assert all(each[1:] == (1, 1) for each in steps_of_stages(plan, 2, 32))
    with pytest.raises(ValueError, match=r"output_stride is 4; it is one of 32, 16, 8"):
        steps_of_stages(plan, 2, 4)


def stride_config(manifest="any.csv", **model):
    config = tiny_config(manifest)
    config.model.update(model)
    config.data.image_size = 64
    return config


@pytest.mark.parametrize("name", [name for name in models.MODELS if name not in HAVING])
def test_others_refuse_it_and_name_those_that_have_it(name):
    with pytest.raises(ConfigError, match=rf"output_stride is 16.*for {name}:.*{', '.join(HAVING)}.*leave it at 32"):
        resolve(stride_config(name=name, output_stride=16))


def test_it_is_a_key_of_the_config(monkeypatch):
    monkeypatch.setitem(models.MODELS, "mobilenet_v2", DEEP["mobilenet"])
    with pytest.raises(ConfigError, match=r"output_stride is 12; it must be one of 32, 16, 8"):
        resolve(stride_config(name="mobilenet_v2", output_stride=12))
    recipes = {stride: resolve(stride_config(name="mobilenet_v2", output_stride=stride)) for stride in (32, 16, 8)}
    assert {stride: recipe.cam_side for stride, recipe in recipes.items()} == {32: 2, 16: 4, 8: 8}
    assert {recipe.make_model(num_classes=2).output_stride for recipe in recipes.values()} == set(recipes)
    # A study's runs share what the frozen part gives: not across strides.
    assert len({str(recipe.of_features) for recipe in recipes.values()}) == 3


@pytest.mark.slow
@pytest.mark.parametrize("name", DEEP)
def test_it_keeps_the_contract_and_can_be_cut(name):
    model = DEEP[name](num_classes=2, output_stride=16)
    report = check_contract(model, image_size=64)
    assert report.cam_side == 4 and report.linear
    cut_model = model.clone(train_from="layer4_1" if "layer4_1" in model.cut_points else "block6_0")
    variables, images = jax.tree.map(jnp.asarray, random_variables(model, 64)), random_images(2, 64)
    at_cut = apply_frozen(cut_model, variables, images)
    assert at_cut.shape[1:3] == (4, 4) and at_cut.nbytes == 2 * find_frozen(cut_model, name, 64).bytes_of_image
    behind = TrainedPart(cut_model).apply(variables, at_cut, train=False)
    whole = model.apply(variables, images, train=False)
    np.testing.assert_allclose(behind.logits, whole.logits, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_a_run_with_it_starts_from_one_without_and_serves_as_any_other(tmp_path, monkeypatch):
    monkeypatch.setitem(models.MODELS, "mobilenet_v2", DEEP["mobilenet"])
    manifest = write_manifest(tmp_path / "data")
    first = stride_config(str(manifest), name="mobilenet_v2")
    first.epochs = 1
    train(first, tmp_path / "first")
    then = stride_config(
        str(manifest), name="mobilenet_v2", output_stride=16, weights=str(tmp_path / "first"), train_from="block5_1"
    )
    then.epochs = 1
    train(then, tmp_path / "then")
    trained = restore(tmp_path / "then")
    images = np.random.default_rng(0).integers(0, 255, (2, 64, 64, 3)).astype(np.uint8)
    found = trained.predict(images)
    assert found.difference.shape == (2, 4, 4)
    folder = publish(tmp_path / "then", "me/then", tmp_path / "published")
    np.testing.assert_array_equal(restore(folder).predict(images).difference, found.difference)
    exported = jax.export.deserialize(bytearray(export_model(tmp_path / "then", tmp_path / "model").read_bytes()))
    assert exported.out_avals[1].shape[1:] == (4, 4)
    assert len(open_dataset(trained.recipe).splits["test"]) == 12
    assert cam_size(trained.recipe.make_model(num_classes=2), 64) == (4, 4)
