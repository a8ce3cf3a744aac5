"""PyTorch's side of the benchmark does the same work."""

import jax.numpy as jnp
import numpy as np
import pytest

from launch.benchmark import jax_work, torch_work
from launch.benchmark.cases import NUM_CLASSES, Case, random_batch
from launch.benchmark.reference_networks import import_torch
from tfcam_jax import cams

pytestmark = pytest.mark.parity
CASE = Case("resnet18", 4, 64)


@pytest.fixture(scope="module")
def variables():
    return jax_work.reference_variables(CASE)


def test_the_tidy_step_has_this_packages_loss(variables):
    ours = jax_work.TrainStep(CASE, variables, "cyborg")()
    for channels_last in (False, True):
        assert torch_work.tidy_step(CASE, channels_last)() == pytest.approx(ours, rel=1e-3)


def test_the_plain_step_has_this_packages_loss(variables):
    ours = jax_work.TrainStep(CASE, variables, "cross_entropy")()
    assert torch_work.cross_entropy_step(CASE)() == pytest.approx(ours, rel=1e-3)


@pytest.mark.parametrize("model", ["resnet18", "densenet121"])
def test_the_described_step_differs_in_its_map_alone(model):
    case = CASE._replace(model=model)
    described, tidy = torch_work.described_step(case)(), torch_work.tidy_step(case)()
    assert described["cross_entropy"] == pytest.approx(tidy["cross_entropy"], rel=1e-3)
    assert 0 < described["cyborg"] < 1 and described["cyborg"] != pytest.approx(tidy["cyborg"], rel=1e-3)


def test_densenet_is_run_twice_as_described():
    counts, watched = {}, import_torch().nn.modules.module
    for name, make in {"described": torch_work.described_step, "tidy": torch_work.tidy_step}.items():
        step, seen = make(CASE._replace(model="densenet121")), []
        watch = lambda module, *_, seen=seen: seen.append(getattr(module, "in_channels", None) == 3)
        handle = watched.register_module_forward_hook(watch)
        step()
        handle.remove()
        counts[name] = sum(seen)
    assert counts == {"described": 2, "tidy": 1}


def test_grad_cam_finds_the_positive_part_of_the_same_maps(variables):
    library = pytest.importorskip("pytorch_grad_cam")
    setting = torch_work.prepare(CASE)
    layer = setting.network.get_submodule("layer4")
    cam = library.GradCAM(model=setting.network, target_layers=[layer])
    labels = random_batch(CASE)["label"]
    targets = [lambda output, k=k: output[k] - output[NUM_CLASSES - 1 - k] for k in labels]
    theirs = cam(input_tensor=setting.images, targets=targets)
    images = jax_work.preprocess(CASE)(jnp.asarray(random_batch(CASE)["image"]))
    output = jax_work.build_model(CASE).apply(variables, images, train=False)
    parts = cams.decompose_margin(output.features, output.kernel, output.bias, jnp.asarray(labels))
    ours = jax_work.like_grad_cam(parts.difference, CASE.image_size)
    assert theirs.max() > 0.9
    np.testing.assert_allclose(theirs, ours, atol=1e-3)
