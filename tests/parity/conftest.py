"""What both comparisons share: they need PyTorch's side, and run our side as users do."""

import jax
import pytest

from launch.benchmark.parts import PYTORCH, missing


@pytest.fixture(scope="module", autouse=True)
def originals():
    """Skips where the libraries are not installed; elsewhere lets XLA optimise, as the suite does not."""
    if gone := missing(PYTORCH):
        pytest.skip(f"not installed: {', '.join(gone)}; pip install -e '.[parity]'")
    jax.config.update("jax_disable_most_optimizations", False)
    yield
    jax.config.update("jax_disable_most_optimizations", True)
