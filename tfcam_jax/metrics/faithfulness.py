"""Faithfulness of a trained model's maps over some images: perturbation curves, and maps of random weights."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from .. import cams
from ..data.source import Source, Subset, choose_rows
from ..devices.distributed import is_first
from ..devices.placement import fetch
from ..inference import TrainedModel
from ..models import ModelOutput
from ..steps import initialize
from . import perturbation as faithfulness

# Shares of the pixels that are replaced. ROAD needs some to impute from.
SHARES = tuple(np.linspace(0, 1, 11).tolist())
ROAD_SHARES = tuple(np.linspace(0.1, 0.9, 9).tolist())


def study_faithfulness(trained: TrainedModel, source: Source, split: str, images: int, seed: int = 0) -> dict[str, Any]:
    """Perturbation curves and sanity checks of T, |U|, D and a random order.

    Args:
      trained: the model.
      source: labelled images.
      split: its name, for the record.
      images: how many of them, spread over the classes, those with a human map first; 0 gives `{}`.
      seed: of the random order, the imputation's noise and the random weights.

    Returns:
      `images`, `split`, `shares`, `road_shares` and `maps`: for each map the mean probability of the true class at
      each share (`curves`), the areas under it (`deletion`, `insertion`, `road_most`, `road_least`, the mean over
      shares) and `road_gap`, least less most relevant first; but for the random order also `random_head` and
      `random_weights`, the mean rank correlation with the map after drawing those weights anew.
    """
    if not images:
        return {}
    subset = Subset(source, choose_rows(source.records, images))
    study = _compile(trained, jax.random.key(seed))
    collected: list[dict[str, dict[str, np.ndarray]]] = []
    with tqdm(total=len(subset), desc="faithfulness", unit="image", disable=None if is_first() else True) as bar:
        for batch in trained.eval_epoch(subset):
            batch = fetch(batch)
            real = batch["mask"] > 0
            collected.append(jax.tree.map(lambda leaf, real=real: np.asarray(leaf)[real], study(batch)))
            bar.update(int(real.sum()))
    merged = jax.tree.map(lambda *leaves: np.concatenate(leaves).mean(0), *collected)
    return {
        "images": len(subset),
        "split": split,
        "shares": list(SHARES),
        "road_shares": list(ROAD_SHARES),
        "maps": {name: _areas(values) for name, values in merged.items()},
    }


def _areas(values: dict[str, np.ndarray]) -> dict[str, Any]:
    curves = {name: curve for name, curve in values.items() if curve.ndim}
    areas = {name: float(np.trapezoid(curves[name], SHARES)) for name in ("deletion", "insertion")}
    areas |= {name: float(curves[name].mean()) for name in ("road_most", "road_least")}
    areas["road_gap"] = areas["road_least"] - areas["road_most"]
    checks = {name: float(value) for name, value in values.items() if not value.ndim}
    return areas | checks | {"curves": {name: curve.tolist() for name, curve in curves.items()}}


def _compile(trained: TrainedModel, key: jax.Array) -> Callable[[Any], dict[str, dict[str, jax.Array]]]:
    """Builds `study(batch)`: the model is compiled once, and each way of perturbing once."""
    # On one device: the solver behind the imputation stops when the whole batch has converged, and devices that wait
    # for one another can starve on few cores. Every process does the same.
    state = trained.state
    variables = jax.device_put(jax.device_get({"params": state.params, "batch_stats": state.batch_stats}))
    size = trained.image_size
    weights_key, order_key, noise_key = jax.random.split(key, 3)
    redrawn = initialize(trained.model, weights_key, size)
    apply = jax.jit(lambda variables, images: trained.model.apply(variables, images, train=False))
    probability = jax.jit(
        lambda images, labels: jnp.take_along_axis(
            jax.nn.softmax(apply(variables, images).logits), labels[:, None], axis=-1
        )[:, 0]
    )
    delete, insert, impute = (
        jax.jit(lambda images, ranks, share, change=change: change(images, faithfulness.first_ranked(ranks, share)))
        for change in (
            faithfulness.delete,
            faithfulness.insert,
            lambda images, removed: faithfulness.noisy_linear_imputation(images, removed, noise_key),
        )
    )
    preprocess = jax.jit(trained.preprocess)
    ranks_of = jax.jit(faithfulness.pixel_ranks, static_argnums=1)

    def study(batch: Any) -> dict[str, dict[str, jax.Array]]:
        raw, labels = jax.device_put((batch["image"], batch["label"]))
        images = preprocess(raw)
        output, other = apply(variables, images), apply(redrawn, images)
        maps = _maps(output.features, output, labels)
        results: dict[str, dict[str, jax.Array]] = {}
        random_order = jax.random.uniform(order_key, maps["T"].shape)
        curve = lambda change, ranks, shares: jnp.stack(
            [probability(change(images, ranks, share), labels) for share in shares], axis=1
        )
        for name, salience in {**maps, "random": random_order}.items():
            ranks, reverse = ranks_of(salience, (size, size)), ranks_of(-salience, (size, size))
            results[name] = {
                "deletion": curve(delete, ranks, SHARES),
                "insertion": curve(insert, ranks, SHARES),
                "road_most": curve(impute, ranks, ROAD_SHARES),
                "road_least": curve(impute, reverse, ROAD_SHARES),
            }
        for check, features in (("random_head", output.features), ("random_weights", other.features)):
            for name, salience in _maps(features, other, labels).items():
                results[name][check] = faithfulness.rank_correlation(maps[name], salience)
        return results

    return study


def _maps(features: jax.Array, head: ModelOutput, labels: jax.Array) -> dict[str, jax.Array]:
    """T, |U| and D of features under a head."""
    maps = cams.class_activation_maps(features, head.kernel)
    true_map, false_map = cams.split_true_false(maps, labels, maps.mean((1, 2)) + head.bias[None])
    return {"T": true_map, "|U|": jnp.abs(false_map), "D": true_map - false_map}
