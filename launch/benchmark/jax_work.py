"""This package's side: its train steps and its maps, compiled, on the batch and the weights of a case."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from launch.benchmark.cases import (
    NUM_CLASSES,
    Case,
    abstract_variables,
    build_model,
    compile_step,
    loss_of,
    lower_train_step,
    memory_account,
    preprocess,
    random_batch,
    running_step,
)
from launch.benchmark.reference_networks import build_reference, numpy_state_dict
from tfcam_jax import cams
from tfcam_jax.devices.compilation import compiler_options
from tfcam_jax.devices.memory import return_freed_memory
from tfcam_jax.models import MODEL_CARDS
from tfcam_jax.models.weights import convert, merge
from tfcam_jax.strategies import STRATEGIES

Work = Callable[[], dict[str, float] | None]


def reference_variables(case: Case) -> Any:
    """The weights that `torch_work` starts from, converted."""
    state_dict = numpy_state_dict(build_reference(case.model, seed=0, num_classes=NUM_CLASSES))
    empty = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), abstract_variables(case))
    return merge(convert(state_dict, MODEL_CARDS[case.model].torch_names), empty, keep_head=True)


class TrainStep:
    """A train step as `launch/train.py` runs it, `default_options` as it would be with XLA's own settings.

    Attributes:
      account: what it needs, by the compiler; see `cases.memory_account`.
    """

    def __init__(self, case: Case, variables: Any, strategy: str, default_options: bool = False) -> None:
        compiled = compile_step(lower_train_step(case, strategy), default_options)
        self.account = memory_account(compiled)
        return_freed_memory()  # as training does
        self._step = running_step(compiled, case, variables)

    def __call__(self) -> dict[str, float]:
        """Takes one step and returns the terms of its loss."""
        return loss_of(self._step())


def maps(case: Case, variables: Any, image_size: bool = False) -> Work:
    """T, U and D of a batch, raw at the CAM's resolution; `image_size`: each scaled to [0, 1] and resized."""
    model, prepare, batch = build_model(case), preprocess(case), random_batch(case)
    images, labels = jnp.asarray(batch["image"]), jnp.asarray(batch["label"])

    def explain(variables: Any, images: jax.Array, labels: jax.Array) -> tuple[jax.Array, ...]:
        output = model.apply(variables, prepare(images), train=False)
        parts = output.decompose_margin(labels)
        found = (parts.true_map, parts.false_map, parts.difference)
        return tuple(like_grad_cam(each, case.image_size) for each in found) if image_size else found

    variables = jax.tree.map(jnp.asarray, variables)
    compiled = jax.jit(explain, compiler_options=compiler_options()).lower(variables, images, labels).compile()

    def work() -> None:
        jax.device_get(compiled(variables, images, labels))

    return work


def like_grad_cam(maps: jax.Array, size: int) -> jax.Array:
    """The positive part of each map, resized to the image and scaled to [0, 1], as pytorch-grad-cam gives it."""
    return cams.normalize(jax.image.resize(jax.nn.relu(maps), (len(maps), size, size), "linear"))


STEPS: dict[str, Callable[[Case, Any], Work]] = {
    **{f"jax {name}": functools.partial(TrainStep, strategy=name) for name in STRATEGIES},
    "jax cross_entropy, XLA's defaults": functools.partial(TrainStep, strategy="cross_entropy", default_options=True),
}
MAPS: dict[str, Callable[[Case, Any], Work]] = {
    "jax": maps,
    "jax at image size": functools.partial(maps, image_size=True),
}


def device_peak_bytes() -> int | None:
    """Most memory in use on the accelerator so far; None on a CPU, whose memory is the process's."""
    statistics = jax.local_devices()[0].memory_stats()
    return None if jax.default_backend() == "cpu" or not statistics else statistics["peak_bytes_in_use"]
