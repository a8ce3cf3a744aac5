"""A small saliency predictor: a backbone's features and a 1x1 convolution, trained to give people's maps.

It is a network of the project's own kind with one output, whose class activation map is the prediction: the kernel of
its head is the 1x1 convolution, at the CAM's resolution.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Array, Float, Int
from tqdm import tqdm

from .. import cams
from ..data.protocol import deal_folds
from ..data.source import DataError, Dataset, Records, Source, Subset
from ..devices.distributed import is_first
from ..divergences import pearson
from ..errors import UserError
from ..experiment import Experiment, Recipe, build_experiment
from ..inference import initial_state, join_outputs, outputs_of
from ..saliency import to_cam_resolution
from ..steps import Batch, TrainState
from ..terms import Evidence, Term, Terms


class Predicted(NamedTuple):
    """Of n images, in NumPy: the prediction in [0, 1] and people's map, both at the CAM's resolution."""

    maps: Float[np.ndarray, "n h w"]
    saliency: Float[np.ndarray, "n h w"]


class PredictorError(UserError, RuntimeError):
    """A predictor that did not learn: its loss became NaN or infinite."""


def prediction_loss(evidence: Evidence) -> Terms:
    """Pearson's distance between the predicted map and people's, over the examples that have one."""
    predicted = _predict(evidence.output)
    human, usable = to_cam_resolution(evidence.human_maps, predicted.shape[-2:])
    return {"map_prediction": Term(1.0, pearson(predicted, human), evidence.mask & usable)}


def _predict(output: Any) -> Float[Array, "batch h w"]:
    return output.class_map(0)


def cross_fit(recipe: Recipe, train: Source, wanted: Int[np.ndarray, " m"], folds: int) -> tuple[np.ndarray, Predicted]:
    """Predicts maps with predictors that have not seen the image's group.

    The annotated rows of training are dealt into folds, whole groups (and equal images) together, and a predictor is
    trained for each fold on all others.

    Args:
      recipe: backbone, weights, optimiser, epochs and augmentation of the predictors.
      train: the split, whose rows with a map are learned from.
      wanted: rows to predict.
      folds: how many.

    Returns:
      Maps of the wanted rows, [m, h, w] in [0, 1]: the mean over the predictors, or that of the one which has not seen
      the row's group; and predictions of the annotated rows, each by the predictor that has not seen it.

    Raises:
      DataError: fewer groups than folds. PredictorError: a loss that is not finite.
    """
    annotated = np.flatnonzero(train.records.has_map)
    fold_of = _fold_of_rows(train.records, annotated, folds, recipe.seed)
    own, order, total, times = [], [], 0, np.zeros(len(wanted))
    experiment = None
    with tqdm(total=_steps(recipe, fold_of[annotated], folds), desc="map predictors", unit="step", **_shown()) as bar:
        for fold in range(folds):
            held = annotated[fold_of[annotated] == fold]
            learned = Subset(train, annotated[fold_of[annotated] != fold])
            experiment = _experiment(recipe, learned, experiment)
            state = _fit(experiment, bar)
            apply = lambda rows, state=state, experiment=experiment: _apply(experiment, state, Subset(train, rows))
            own.append(apply(held))
            order.append(held)
            fits = (fold_of[wanted] == fold) | (fold_of[wanted] < 0)
            predicted = np.zeros((len(wanted), *own[0].maps.shape[1:]), np.float32)
            if fits.any():
                predicted[fits] = apply(wanted[fits]).maps
            total, times = total + predicted, times + fits
    in_order = np.argsort(np.concatenate(order))
    return total / times[:, None, None], Predicted(*(leaf[in_order] for leaf in join_outputs(own)))


def _fold_of_rows(records: Records, annotated: np.ndarray, folds: int, seed: int) -> Int[np.ndarray, " n"]:
    """Fold of each row whose group, or whose pixels, an annotated row has; -1 for the others."""
    counts = np.bincount(records.labels[annotated])
    if fewest := [int(count) for count in counts if 0 < count < folds]:
        problem = f"--folds={folds} needs as many annotated training images of each class; one has {min(fewest)}."
        raise DataError([f"{problem} Give fewer folds, at least 2, or annotate more."])
    dealt = deal_folds(records[annotated], folds, seed)
    digests = records.digests or ("",) * len(records)
    keys = lambda row: [key for key in (("group", records.groups[row]), ("pixels", digests[row])) if key[1]]
    known = {key: fold for row, fold in zip(annotated, dealt, strict=True) for key in keys(row)}
    fold_of = np.array([next((known[key] for key in keys(row) if key in known), -1) for row in range(len(records))])
    fold_of[annotated] = dealt
    return fold_of


def _steps(recipe: Recipe, folds_of_annotated: np.ndarray, folds: int) -> int:
    sizes = len(folds_of_annotated) - np.bincount(folds_of_annotated, minlength=folds)
    return int(sum(-(-size // recipe.batch_size) for size in sizes)) * recipe.epochs


def _shown() -> dict[str, Any]:
    return {"disable": None if is_first() else True, "dynamic_ncols": True}


def _experiment(recipe: Recipe, learned: Source, last: Experiment | None) -> Experiment:
    """What trains a predictor; compiled functions of the last one serve again where its epochs are as long."""
    sharp = dataclasses.replace(recipe.augment, map_blur=())  # the maps are what is learned
    recipe = dataclasses.replace(recipe, strategy_name="map_prediction", balance="none", augment=sharp)
    dataset = Dataset("map predictors", ("map",), {"train": learned})
    if last is not None and last.steps_per_epoch == -(-len(learned) // recipe.batch_size):
        return build_experiment(recipe, dataset, last)
    model = recipe.make_model(num_classes=1)

    def predict(params: Any, batch_stats: Any, batch: Batch) -> Any:
        images = recipe.preprocess(batch["image"])
        maps = _predict(model.apply({"params": params, "batch_stats": batch_stats}, images, train=False))
        found: Any = cams.normalize(maps), to_cam_resolution(batch["saliency"], maps.shape[-2:])[0]
        return Predicted(*found)

    eval_step: Any = recipe.placement.compile_eval_step(predict)
    return dataclasses.replace(build_experiment(recipe, dataset, strategy=prediction_loss), eval_step=eval_step)


def _fit(experiment: Experiment, bar: tqdm) -> TrainState:
    state, metrics = initial_state(experiment).state, None
    for batch in _batches(experiment):
        state, metrics = experiment.train_step(state, experiment.put_batch(batch))
        bar.update()
    if metrics is not None and not np.isfinite(jax.device_get(metrics.grad_norm)).all():
        raise PredictorError("the map predictor's loss is not finite; lower --config.optimizer.learning_rate")
    return state


def _batches(experiment: Experiment) -> Iterator[Any]:
    for epoch in range(experiment.recipe.epochs):
        for batch in experiment.train_epoch(epoch):
            yield {name: leaf for name, leaf in batch.items() if name != "index"}


def _apply(experiment: Experiment, state: TrainState, source: Source) -> Predicted:
    eval_step: Any = experiment.eval_step
    return join_outputs(output for output, _ in outputs_of(eval_step, state, experiment.eval_epoch(source)))
