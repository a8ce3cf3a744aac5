"""What all tests share: two virtual CPU devices, shapes enforced, no silent broadcasting, reproducible examples."""

import importlib
import os
import pathlib
import typing

# jax reads both when it starts its backend, so they stand before anything that imports jax.
os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=2"
os.environ["JAX_PLATFORMS"] = "cpu"

import hypothesis
import jax
import jaxtyping
import matplotlib

REPO = pathlib.Path(__file__).parent.parent
CORE = ("tfcam_jax.cams", "tfcam_jax.divergences", "tfcam_jax.saliency", "tfcam_jax.losses")
# A pytree's class is also rebuilt around leaves that are no arrays or carry a device axis (by jax.tree.map, by pmap);
# its fields' shapes cannot be enforced.
UNCHECKED = ("tfcam_jax.models.head",)
# What these markers mark takes minutes or libraries that the rest does without; it runs where `-m` names the marker.
ONLY_BY_NAME = ("install", "parity", "stress")


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


def pytest_collection_modifyitems(config, items):
    unasked = {name for name in ONLY_BY_NAME if name not in config.getoption("markexpr")}
    left_out = [item for item in items if any(mark.name in unasked for mark in item.iter_markers())]
    if left_out:
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if item not in left_out]


matplotlib.use("Agg")
jax.config.update("jax_numpy_rank_promotion", "raise")
# Tests compile much and compute little: a fifth of the time, by a measurement on two cores.
jax.config.update("jax_disable_most_optimizations", True)
hypothesis.settings.register_profile("tfcam", deadline=None, max_examples=30, derandomize=True, database=None)
hypothesis.settings.load_profile("tfcam")
_enforce_signatures()
