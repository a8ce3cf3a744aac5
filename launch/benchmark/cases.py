"""What is timed: a network, a batch of random images with human maps, and the project's own steps on them."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from tfcam_jax import steps
from tfcam_jax.devices.compilation import compiler_options
from tfcam_jax.models import MODEL_CARDS, MODELS
from tfcam_jax.models.initialization import Initialization
from tfcam_jax.optimizers import make_optimizer
from tfcam_jax.strategies import make_strategy

NUM_CLASSES = 2
# So small that the weights stay what they are: every round then does the same arithmetic.
LEARNING_RATE = 1e-7


class Case(NamedTuple):
    """A backbone (key of `MODELS`), images in a batch, side of the images in px, the dtype of its convolutions.

    The pool is None for the model's own, or where there is no choice.
    """

    model: str
    batch_size: int
    image_size: int
    dtype: str = "float32"
    pool: str | None = None

    def __str__(self) -> str:
        pool = f", pool {self.pool}" if self.pool else ""
        return f"{self.model}, batch {self.batch_size}, {self.image_size} px, {self.dtype}{pool}"


def random_batch(case: Case) -> dict[str, np.ndarray]:
    """A batch as the train step takes it: noise images, a blob as the human map of each, alternating labels."""
    rng = np.random.default_rng(0)
    shape = (case.batch_size, case.image_size, case.image_size)
    places = np.linspace(0, 1, case.image_size)
    centre = rng.uniform(0.2, 0.8, (2, case.batch_size, 1, 1))
    distance = np.square(places[:, None] - centre[0]) + np.square(places[None, :] - centre[1])
    return {
        "image": rng.integers(0, 256, (*shape, 3), np.uint8),
        "saliency": np.exp(-20 * distance).astype(np.float32),
        "label": (np.arange(case.batch_size) % NUM_CLASSES).astype(np.int32),
        "mask": np.ones(case.batch_size, np.float32),
        "weight": np.ones(case.batch_size, np.float32),
        "draw": np.zeros(case.batch_size, np.uint32),
    }


def build_model(case: Case) -> Any:
    pool = {"pool": case.pool} if case.pool else {}
    return MODELS[case.model](num_classes=NUM_CLASSES, dtype=jnp.dtype(case.dtype), **pool)


def preprocess(case: Case) -> Callable[[jax.Array], jax.Array]:
    card = MODEL_CARDS[case.model]
    return functools.partial(steps.standardize, mean=card.mean, std=card.std)


def optimizer() -> optax.GradientTransformation:
    """SGD with momentum and weight decay, as in the CYBORG recipe but for the learning rate."""
    return make_optimizer("sgd", optax.constant_schedule(LEARNING_RATE))


def abstract_variables(case: Case) -> Any:
    """Shapes and dtypes of the model's variables; computes nothing."""
    return Initialization(build_model(case), case.image_size).abstract


def abstract_state(case: Case) -> Any:
    """Shapes and dtypes of the state of step 0."""
    return jax.eval_shape(lambda v: steps.create_train_state(v, optimizer()), abstract_variables(case))


def device_batch(case: Case) -> Any:
    """`random_batch` on the device."""
    return jax.tree.map(jnp.asarray, random_batch(case))


def abstract_batch(case: Case) -> Any:
    """Shapes and dtypes of `device_batch`."""
    return jax.eval_shape(lambda: device_batch(case))


def random_variables(case: Case) -> Any:
    """Variables of a case without compiling its initialisation: He-normal kernels, norms as at first, layer scale 1."""
    rng = np.random.default_rng(0)

    def fill(path: tuple, leaf: Any) -> np.ndarray:
        if path[-1].key == "kernel":
            return (np.sqrt(2 / np.prod(leaf.shape[:-1])) * rng.standard_normal(leaf.shape)).astype(np.float32)
        return np.full(leaf.shape, path[-1].key in ("scale", "var", "gamma"), np.float32)

    return jax.tree_util.tree_map_with_path(fill, abstract_variables(case))


def train_step(case: Case, strategy: str, **options: Any) -> Any:
    """The train step of a strategy, not yet traced."""
    return steps.make_train_step(build_model(case), optimizer(), make_strategy(strategy, **options), preprocess(case))


def trace_train_step(case: Case, strategy: str, **options: Any) -> Any:
    """The train step of a strategy, traced for a case; its state argument is donated."""
    step = train_step(case, strategy, **options)
    return jax.jit(step, donate_argnums=0).trace(abstract_state(case), abstract_batch(case))


def lower_train_step(case: Case, strategy: str, **options: Any) -> Any:
    """The same as the compiler takes it."""
    return trace_train_step(case, strategy, **options).lower()


def compile_step(lowered: Any, default_options: bool = False) -> Any:
    """Compiles with the options that pay for convolutions, or with XLA's defaults."""
    return lowered.compile(compiler_options={} if default_options else compiler_options())


def memory_account(compiled: Any) -> dict[str, float]:
    """MB that a compiled step needs for its arguments and results, `state`, and for what lies between, `temporary`."""
    analysis = compiled.memory_analysis()
    kept = analysis.argument_size_in_bytes + analysis.output_size_in_bytes - analysis.alias_size_in_bytes
    return {"state": kept / 2**20, "temporary": analysis.temp_size_in_bytes / 2**20}


def running_step(compiled: Any, case: Case, variables: Any) -> Callable[[], steps.StepMetrics]:
    """A function that takes one step on the same batch, waits for it and returns its metrics."""
    batch = device_batch(case)
    # Copies, since the state is donated and the variables are the caller's.
    state = steps.create_train_state(jax.tree.map(lambda leaf: jnp.array(leaf, copy=True), variables), optimizer())

    def step() -> steps.StepMetrics:
        nonlocal state
        state, metrics = compiled(state, batch)
        jax.block_until_ready((state, metrics))
        return metrics

    return step


def loss_of(metrics: steps.StepMetrics) -> dict[str, float]:
    """Mean of each term of the loss."""
    return {name: float(total.sum / total.count) for name, total in metrics.terms.items()}
