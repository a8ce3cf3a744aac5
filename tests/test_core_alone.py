"""The core copied into somebody else's project: four files that need jax and nothing else."""

import pathlib
import shutil
import subprocess
import sys

import pytest

import tfcam_jax

FILES = ("cams.py", "divergences.py", "saliency.py", "losses.py")

FOREIGN_STEP = '''
import sys


class Refuse:
    """Stands first in line for every import, and lets none of the project's other dependencies through."""

    NAMES = {
        "absl", "beartype", "einops", "flax", "grain", "jaxtyping", "matplotlib", "ml_collections", "optax",
        "orbax", "PIL", "sklearn", "tensorboardX", "tensorflow_datasets", "tfcam_jax", "tqdm",
    }

    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in self.NAMES:
            raise ImportError(f"{name} is not there")


sys.meta_path.insert(0, Refuse())
import jax
import jax.numpy as jnp
from foreign.guidance.cams import class_activation_maps, difference_salience, split_true_false
from foreign.guidance.divergences import DIVERGENCES
from foreign.guidance import losses
from foreign.guidance.saliency import to_cam_resolution

keys = jax.random.split(jax.random.key(0), 4)
features, kernel = jax.random.uniform(keys[0], (4, 5, 6, 3)), jax.random.normal(keys[1], (3, 2))
labels = jnp.array([0, 1, 1, 0])
saliency, usable = to_cam_resolution(jax.random.uniform(keys[2], (4, 20, 24)), (5, 6))
assert usable.all()
LOSSES = {
    "cyborg": lambda t, u, s: losses.cyborg_loss(t, s),
    "difference": losses.difference_loss,
    "sham": lambda t, u, s: losses.sham_loss(t),
    "contrast": losses.contrast_loss,
    "energy": lambda t, u, s: losses.energy_loss(difference_salience(t, u), s),
    "outside": lambda t, u, s: losses.outside_loss(difference_salience(t, u), s),
    "entropy": lambda t, u, s: losses.entropy_loss(t),
    "hard_negative": lambda t, u, s: losses.hard_negative_loss(u),
    "input_gradient": lambda t, u, s: losses.input_gradient_loss(t[..., None], s),
}
for name, d in DIVERGENCES.items():
    LOSSES[f"opposed {name}"] = lambda t, u, s, d=d: losses.opposed_loss(t, u, s, d)


@jax.jit
def gradients(kernel):
    maps = lambda kernel: split_true_false(class_activation_maps(features, kernel), labels)
    return {
        name: jax.value_and_grad(lambda kernel, loss=loss: loss(*maps(kernel), saliency).mean())(kernel)
        for name, loss in LOSSES.items()
    }


@jax.jit
def values(kernels):
    return {
        name: loss(*split_true_false(class_activation_maps(features, kernels[name]), labels), saliency).mean()
        for name, loss in LOSSES.items()
    }


before = gradients(kernel)
after = values({name: kernel - 1e-3 / jnp.abs(gradient).max() * gradient for name, (_, gradient) in before.items()})
for name in LOSSES:
    assert after[name] < before[name][0], name
loaded = {module.split(".")[0] for module in sys.modules}
assert not loaded & Refuse.NAMES, loaded & Refuse.NAMES
print(len(LOSSES), "losses fell")
'''


@pytest.mark.slow
def test_each_loss_makes_a_step_in_a_foreign_package_with_jax_alone(tmp_path):
    package = tmp_path / "foreign" / "guidance"
    package.mkdir(parents=True)
    (tmp_path / "foreign" / "__init__.py").touch()
    (package / "__init__.py").touch()
    for name in FILES:
        shutil.copy(pathlib.Path(tfcam_jax.__file__).parent / name, package / name)
    (tmp_path / "step.py").write_text(FOREIGN_STEP)
    done = subprocess.run([sys.executable, "step.py"], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "14 losses fell\n"
