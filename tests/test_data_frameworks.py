"""Neither TensorFlow nor torch is imported by anything that reads data, whatever is installed; nor is all that TFDS,
Grain and scikit-learn bring where they are not used."""

import os
import subprocess
import sys
from pathlib import Path

import fake_layouts
import pytest
from tiny_manifest import write_manifest

REPO = Path(__file__).resolve().parents[1]
FOREIGN = ("tensorflow", "torch", "torchvision", "keras")

PROGRAM = """
import sys
from pathlib import Path
from tfcam_jax.data.checks.prepare import prepare
from tfcam_jax.data.pipeline import eval_batches, train_batches
from tfcam_jax.data.recipe import DataRecipe

folder = Path(sys.argv[1])
reading = {"combine": "mean", "sigma": 5.0, "pixels_per_degree": 0.0, "skip_unreadable": False}
recipes = [
    DataRecipe("demo", {"data_dir": str(folder / "demo"), "num_train": 8, "num_val": 4, "num_test": 4}),
    DataRecipe("manifest", {"manifest": str(folder / "data/manifest.csv")} | reading),
    DataRecipe("iris_pad", {"manual_dir": str(folder / "owner"), "data_dir": str(folder / "packed")} | reading),
]
for recipe in recipes:
    assert prepare(recipe, check=recipe.source != "demo", out=folder / "report" / recipe.source)
    splits = recipe.arrange(recipe.open()).splits
    for workers in (0, 1):
        assert len(list(train_batches(splits["train"], epoch=0, seed=0, batch_size=4, image_size=16,
                                      num_workers=workers))) > 1
    list(eval_batches(splits["val"], batch_size=4, image_size=16))
assert not {"tensorflow", "torch"} & set(sys.modules)
"""


def run(code, folder, packages=()):
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(REPO), *map(str, packages)])}
    command = [sys.executable, "-c", code, str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment, timeout=250)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
@pytest.mark.parametrize("broken", [True, False])
def test_no_other_framework_is_imported_whatever_is_installed(tmp_path, broken):
    """A package of each name that tells of its import, and then fails, as one of a wrong version does, or works."""
    write_manifest(tmp_path / "data")
    fake_layouts.write_iris_lists(tmp_path / "owner")
    told = tmp_path / "told.txt"
    for name in FOREIGN:
        (tmp_path / "packages" / name).mkdir(parents=True)
        code = f"with open({str(told)!r}, 'a') as file:\n    file.write({name!r})\n"
        code += "raise ImportError('of another version')\n" if broken else "__version__ = '9.9.9'\n"
        (tmp_path / "packages" / name / "__init__.py").write_text(code)
    run(PROGRAM.replace("\n    for workers in (0, 1):", "\n    for workers in (0,):") if broken else PROGRAM,
        tmp_path, [tmp_path / "packages"])  # fmt: skip
    assert not told.exists(), told.read_text()
    # They would have been found.
    assert run(f"import importlib.util; print(importlib.util.find_spec({FOREIGN[0]!r}).origin)", tmp_path,
               [tmp_path / "packages"]).startswith(str(tmp_path))  # fmt: skip


def test_a_manifest_needs_neither_tfds_nor_grain_nor_scikit_learn(tmp_path):
    manifest = write_manifest(tmp_path / "data")
    code = (
        "import sys\n"
        "from tfcam_jax.data import LISTINGS, SOURCES\n"
        "from tfcam_jax.data.recipe import DataRecipe\n"
        f"recipe = DataRecipe('manifest', {{'manifest': {str(manifest)!r}}}, blur=0.1)\n"
        "print(len(recipe.arrange(recipe.open()).splits['train']))\n"
        "print(sorted({'jax', 'grain', 'sklearn', 'tensorflow_datasets', 'ml_collections', 'matplotlib'}"
        " & set(sys.modules)))\n"
    )
    assert run(code, tmp_path) == "12\n[]\n"


def test_training_starts_without_what_it_needs_after_the_first_epoch(tmp_path):
    """Seconds of every start."""
    late = "{'sklearn', 'scipy.special', 'scipy.stats', 'scipy.io', 'matplotlib', 'tensorflow_datasets', 'pandas'}"
    code = f"import sys, tfcam_jax.training, tfcam_jax.experiment\nprint(sorted({late} & set(sys.modules)))"
    assert run(code, tmp_path) == "[]\n"
