"""What `tfcam_jax` itself offers: names that are there, imports that cost nothing until they are needed."""

import ast
import importlib
import pathlib
import subprocess
import sys

import pytest

import tfcam_jax

REPO = pathlib.Path(__file__).parent.parent
HEAVY = ("jax", "numpy", "flax", "orbax", "tensorflow_datasets", "sklearn", "matplotlib")


def fresh(code, *arguments):
    """What a new process prints; `refuse` there makes imports of the named libraries fail."""
    refuse = (
        "import sys\n"
        "class Refuse:\n"
        "    def __init__(self, names): self.names = names\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name.split('.')[0] in self.names: raise ModuleNotFoundError(f'no {name}', name=name)\n"
        "def refuse(*names): sys.meta_path.insert(0, Refuse(names))\n"
    )
    command = [sys.executable, "-c", refuse + code, *arguments]
    return subprocess.run(command, capture_output=True, text=True, cwd=REPO, timeout=120, check=False)


@pytest.mark.parametrize("name", sorted(tfcam_jax._HOME_OF))
def test_every_public_name_is_that_of_its_module(name):
    module = importlib.import_module(f"tfcam_jax.{tfcam_jax._HOME_OF[name]}")
    assert getattr(tfcam_jax, name) is getattr(module, name)
    assert name in dir(tfcam_jax) and getattr(tfcam_jax, name).__doc__


def test_type_checkers_are_told_the_same_names():
    tree = ast.parse((REPO / "tfcam_jax/__init__.pyi").read_text())
    told = {alias.asname: (node.module, alias.name) for node in tree.body for alias in node.names}
    assert told == {name: (module, name) for name, module in tfcam_jax._HOME_OF.items()}


def test_no_module_takes_the_place_of_a_public_name():
    modules = {path.stem for path in (REPO / "tfcam_jax").glob("*.py")} | {
        path.name for path in (REPO / "tfcam_jax").iterdir() if path.is_dir()
    }
    assert not modules & tfcam_jax._HOME_OF.keys()


def test_an_unknown_name_says_which_there_are():
    with pytest.raises(AttributeError, match=r"has no attribute 'trian'; it has .*restore.*train"):
        tfcam_jax.trian  # noqa: B018


def test_importing_the_package_imports_no_library():
    done = fresh(f"import tfcam_jax; print([name for name in {HEAVY} if name in sys.modules])")
    assert done.stdout == "[]\n", done.stderr


def test_the_core_works_where_only_jax_is_installed():
    code = (
        "refuse('flax', 'absl', 'ml_collections', 'optax', 'jaxtyping', 'scipy', 'PIL', 'tqdm', 'einops')\n"
        "import tfcam_jax, jax.numpy as jnp\n"
        "maps = jnp.arange(8.0).reshape(2, 2, 2)\n"
        "print(tfcam_jax.difference_loss(maps, maps[::-1] ** 2, tfcam_jax.normalize(maps)).shape)\n"
        "tfcam_jax.restore\n"
    )
    done = fresh(code)
    assert done.stdout == "(2,)\n"
    assert "tfcam_jax.restore needs" in done.stderr and "pip install -e '.[train]'" in done.stderr


@pytest.mark.parametrize("script", sorted(path.name for path in (REPO / "launch").glob("*.py")))
def test_help_imports_neither_jax_nor_another_large_library(script):
    if script == "command_line.py":
        pytest.skip("no script")
    code = (
        f"sys.argv = ['{script}', '--help']; sys.path.insert(0, 'launch')\n"
        "import runpy, atexit\n"
        f"atexit.register(lambda: print('imported', [n for n in {HEAVY} if n in sys.modules]))\n"
        f"runpy.run_path('launch/{script}', run_name='__main__')\n"
    )
    done = fresh(code)
    assert "flags:" in done.stdout and done.stdout.splitlines()[-1] == "imported []", done.stdout + done.stderr


def test_what_is_neither_an_array_nor_a_path_is_refused():
    """In a process where nothing enforces signatures, as at a user's."""
    code = (
        "import numpy as np\nfrom tfcam_jax.data.unlisted import DataError, open_images\n"
        "for images in ([np.zeros((8, 8, 3), np.uint8)], None):\n"
        "    try:\n        open_images(images, 3, None, 2)\n"
        "    except DataError as error:\n        print(str(error).split('got ')[1].split(';')[0])\n"
    )
    done = fresh(code)
    assert done.stdout.splitlines() == ["list", "NoneType"], done.stdout + done.stderr


def test_a_misspelt_key_is_told_without_jax():
    code = (
        "sys.argv = ['train.py', '--config=configs/demo.py', '--workdir=none', '--config.optimizer.learning_rat=1']\n"
        "sys.path.insert(0, 'launch')\n"
        "import runpy, atexit\n"
        f"atexit.register(lambda: print('imported', [n for n in {HEAVY} if n in sys.modules]))\n"
        "runpy.run_path('launch/train.py', run_name='__main__')\n"
    )
    done = fresh(code)
    assert done.returncode == 1 and "error: no config key 'learning_rat'\nDid you mean \"learning_rate\"" in done.stderr
    assert done.stdout.splitlines()[-1] == "imported []"
