"""What all tests share: two virtual CPU devices, shapes enforced, no silent broadcasting, reproducible examples."""

import gc
import importlib
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile
import typing

# jax reads these when it is imported and when it starts its backend; processes that tests start inherit them. Tests
# compile much and compute little, so programs are compiled without what makes them fast: a fifth of the time, and two
# thirds less again by the flags of code generation.
FAST_COMPILATION = ("--xla_cpu_use_fusion_emitters=false", "--xla_cpu_parallel_codegen_split_count=1")


def _known(flag: str) -> bool:
    """Whether this XLA knows a flag; asked in a process of its own, which it ends over one that it does not."""
    code = "import jaxlib.xla_client as client; client.make_cpu_client()"
    environment = {**os.environ, "XLA_FLAGS": flag}
    return (
        subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, check=False).returncode == 0
    )


if "PYTEST_XDIST_WORKER" not in os.environ:  # workers inherit what their parent found
    flags = [os.environ.get("XLA_FLAGS", ""), "--xla_force_host_platform_device_count=2"]
    os.environ["XLA_FLAGS"] = " ".join([*flags, *filter(_known, FAST_COMPILATION)])
os.environ["JAX_DISABLE_MOST_OPTIMIZATIONS"] = "1"
os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.05"

import hypothesis
import jax
import jaxtyping
import matplotlib
import pytest
from filelock import FileLock

REPO = pathlib.Path(__file__).parent.parent
CORE = ("tfcam_jax.cams", "tfcam_jax.divergences", "tfcam_jax.saliency", "tfcam_jax.losses")
# A pytree's class is also rebuilt around leaves that are no arrays or carry a device axis (by jax.tree.map, by pmap);
# its fields' shapes cannot be enforced.
UNCHECKED = ("tfcam_jax.models.contract",)
# What these markers mark takes minutes or libraries that the rest does without; it runs where `-m` names the marker.
ONLY_BY_NAME = ("install", "parity", "slow", "stress")


def _modules() -> list[str]:
    """Every module of the package by its dotted name; packages' own files would stand for all that they hold."""
    paths = [path.relative_to(REPO).with_suffix("") for path in (REPO / "tfcam_jax").rglob("*.py")]
    return sorted(".".join(path.parts) for path in paths if path.name != "__init__")


def _enforce_signatures() -> None:
    """Checks shapes and dtypes of every annotated function of the package from its import on: in tests only.

    The core names its array types under TYPE_CHECKING, since it must run without jaxtyping. The flag is on just
    while those modules are imported, and beartype comes first, so that no library sees it on.
    """
    importlib.import_module("typechecker")
    jaxtyping.install_import_hook([name for name in _modules() if name not in UNCHECKED], "typechecker.check")
    typing.TYPE_CHECKING = True
    for name in CORE:
        importlib.import_module(name)
    typing.TYPE_CHECKING = False


def pytest_configure(config):
    """Each program is compiled once for all workers and for the processes that tests start.

    A folder for it that the environment names is used, and kept.
    """
    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        os.environ["JAX_COMPILATION_CACHE_DIR"] = compiled = tempfile.mkdtemp(prefix="compiled-")
        config.add_cleanup(lambda: shutil.rmtree(compiled))
        jax.config.update("jax_compilation_cache_dir", compiled)


def pytest_collection_modifyitems(config, items):
    unasked = {name for name in ONLY_BY_NAME if name not in config.getoption("markexpr")}
    left_out = [item for item in items if any(mark.name in unasked for mark in item.iter_markers())]
    if left_out:
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if item not in left_out]


@pytest.fixture(scope="session")
def trained_run(tmp_path_factory, worker_id) -> pathlib.Path:
    """The finished run of tests/tiny_run.py, its data beside it in `data`: trained once for all workers.

    Nobody writes into it; copies may be changed.
    """
    from tiny_run import train_tiny

    root = tmp_path_factory.getbasetemp()
    if worker_id != "master":
        root = root.parent  # of all workers' folders
    workdir = root / "tiny" / "run"
    with FileLock(root / "tiny.lock"):
        if not (workdir / "results.json").exists():
            train_tiny(workdir.parent)
    return workdir


@pytest.fixture(scope="module", autouse=True)
def free_memory():
    """Compiled programs and what they hold would pile up to gigabytes over the modules."""
    yield
    jax.clear_caches()
    gc.collect()


matplotlib.use("Agg")
jax.config.update("jax_numpy_rank_promotion", "raise")
hypothesis.settings.register_profile("tfcam", deadline=None, max_examples=30, derandomize=True, database=None)
hypothesis.settings.load_profile("tfcam")
_enforce_signatures()
