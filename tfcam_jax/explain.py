"""The post-hoc tool: which places of an image carried the decision of a trained model.

`decompose` is a pure function of arrays; `explain` applies it to a run's checkpoint and draws panels.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from . import cams
from .checkpoints import CheckpointError, Checkpoints
from .data.evaluation_sets import choose_rows
from .data.source import Source, Subset
from .evaluate import evaluate_source
from .experiment import Experiment, build_experiment
from .panels import Panel, Row, draw_panels
from .steps import TrainState
from .workdir import load_config


class Decomposition(NamedTuple):
    """T, U and D = T - U, raw; for two classes `difference.mean((-2, -1)) + bias_difference == margin`."""

    true_map: Float[Array, "batch h w"]
    false_map: Float[Array, "batch h w"]
    difference: Float[Array, "batch h w"]
    margin: Float[Array, " batch"]
    bias_difference: Float[Array, " batch"]


def decompose(
    features: Float[Array, "batch h w channels"],
    kernel: Float[Array, "channels classes"],
    bias: Float[Array, " classes"],
    labels: Int[Array, " batch"],
) -> Decomposition:
    """Splits the decision margin over the places of the feature map (method text, fact 1).

    Args:
      features: exactly as they are pooled.
      kernel: weights of the linear head.
      bias: of the linear head.
      labels: class that counts as true; the predicted one to explain a decision without a label.

    Returns:
      Maps and margin, float32. The margin is the true logit less the false one; for more than two classes less
      the mean of the others weighted by their softmax among themselves, as in the false map.
    """
    maps = cams.class_activation_maps(features, kernel)
    logits = maps.mean((-3, -2)) + bias[None]
    true_map, false_map = cams.split_true_false(maps, labels, logits)
    # The same weights on maps of one place turn logits and biases into true and false ones.
    per_class = lambda values: cams.split_true_false(values[:, None, None, :], labels, logits)
    (true_logit, false_logit), (true_bias, false_bias) = (
        per_class(values) for values in (logits, jnp.broadcast_to(bias[None], logits.shape))
    )
    flat = lambda values: values[:, 0, 0]
    return Decomposition(
        true_map,
        false_map,
        cams.difference_salience(true_map, false_map),
        flat(true_logit - false_logit),
        flat(true_bias - false_bias),
    )


def explain(workdir: str | Path, split: str = "val", num_images: int = 8, out: str | Path | None = None) -> Path:
    """Draws input, human map, T, U and D of some images of a split, from a run's best checkpoint.

    Args:
      workdir: a run.
      split: `train`, `val` or `test`.
      num_images: rows of the picture, spread over the split, images with a human map first.
      out: the PNG; `explain_SPLIT.png` in the workdir where none is given.

    Returns:
      The path of the PNG.

    Raises:
      WorkdirError, CheckpointError: no finished run there.
      ValueError: the data have no such split, or no image was asked for.
    """
    workdir = Path(workdir)
    config = load_config(workdir)
    if num_images < 1:
        raise ValueError(f"num_images is {num_images}; it must be at least 1")
    experiment = build_experiment(config)
    if split not in experiment.dataset.splits:
        raise ValueError(f"no split {split!r} in these data; there are {', '.join(experiment.dataset.splits)}")
    with Checkpoints(workdir) as checkpoints:
        restored = checkpoints.restore("best", experiment.initial_state())
    if restored is None:
        raise CheckpointError(f"{workdir} has no best checkpoint: the run ended before its first validation")
    source = experiment.dataset.splits[split]
    source = Subset(source, choose_rows(source.records, num_images))
    rows = explained_rows(experiment, restored[0], source)
    path = Path(out) if out else workdir / f"explain_{split}.png"
    draw_panels(rows, path, title=f"{config.strategy}, {split}: each panel on its own scale, red highest, blue lowest")
    return path


def explained_rows(experiment: Experiment, state: TrainState, source: Source) -> list[Row]:
    """One row of panels per image of a source: input, human map, T, U, D."""
    predictions = evaluate_source(experiment, state, source)
    images = (image for batch in experiment.eval_epoch(source) for image in batch["image"][batch["mask"] > 0])
    names = experiment.dataset.class_names
    rows = []
    for i, image in enumerate(images):
        true, false = predictions.true_map[i], predictions.false_map[i]
        label, predicted = names[predictions.labels[i]], names[predictions.logits[i].argmax()]
        panels = [
            Panel("input", image),
            Panel("human map", predictions.saliency[i] if predictions.usable[i] else None),
            Panel("true-class map T", true),
            Panel("false-class map U", false),
            Panel("difference T - U", true - false),
        ]
        rows.append(Row(f"{source.records.ids[i]}\n{label}, called {predicted}", panels))
    return rows
