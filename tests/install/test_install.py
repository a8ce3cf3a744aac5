"""The package as somebody else's project installs it: a wheel, jax, and nothing more. Needs a package registry."""

import pathlib
import subprocess
import sys
import zipfile

import pytest

REPO = pathlib.Path(__file__).parents[2]
pytestmark = pytest.mark.install
# jax, jaxlib, ml_dtypes, numpy, opt_einsum, scipy and this package, and what pip and setuptools may bring.
MOST_PACKAGES = 11

STEP = """
import importlib.util, jax, jax.numpy as jnp, tfcam_jax
assert importlib.util.find_spec("flax") is None and importlib.util.find_spec("tensorflow_datasets") is None
features = jax.random.normal(jax.random.key(0), (4, 5, 5, 8))
kernel, human = jax.random.normal(jax.random.key(1), (8, 2)), jnp.zeros((4, 40, 40)).at[:, 5:20, 5:20].set(1)
def loss(kernel):
    true_map, false_map = tfcam_jax.true_false_maps(features, kernel, jnp.array([0, 1, 0, 1]))
    saliency, usable = tfcam_jax.to_cam_resolution(human, features.shape[1:3])
    return jnp.where(usable, tfcam_jax.difference_loss(true_map, false_map, saliency), 0).mean()
gradient = jax.jit(jax.grad(loss))(kernel)
assert jnp.isfinite(gradient).all() and (gradient != 0).any()
try:
    tfcam_jax.train
except ModuleNotFoundError as error:
    print(error)
"""


def run(*command):
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wheel")
    run(sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "-w", folder, REPO)
    return next(folder.glob("*.whl"))


def test_a_wheel_carries_what_the_package_reads(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    tracked = run("git", "-C", REPO, "ls-files", "tfcam_jax").split()
    expected = {name for name in tracked if not name.endswith("README.md")}
    assert expected <= set(names), sorted(expected - set(names))
    assert not [name for name in names if name.startswith(("tests", "launch", "configs"))]


def test_the_losses_alone_are_light(wheel, tmp_path):
    run(sys.executable, "-m", "venv", tmp_path / "venv")
    python = tmp_path / "venv/bin/python"
    run(python, "-m", "pip", "install", "-q", wheel)
    listed = run(python, "-m", "pip", "list", "--format=freeze").split()
    assert len(listed) <= MOST_PACKAGES, listed
    assert "tfcam_jax.train needs" in run(python, "-c", STEP)
