"""Faithfulness of a trained model's maps over some images: perturbation curves, and maps of random weights."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from .. import cams
from ..data.pipeline import Batch
from ..devices.distributed import is_first
from ..models import ModelOutput
from ..steps import initialize
from . import perturbation

# Shares of the pixels that are replaced. ROAD needs some to impute from.
SHARES = tuple(np.linspace(0, 1, 11).tolist())
ROAD_SHARES = tuple(np.linspace(0.1, 0.9, 9).tolist())


def measure_faithfulness(
    model: Any,
    variables: Any,
    preprocess: Callable[[jax.Array], jax.Array],
    image_size: int,
    batches: Iterable[Batch],
    images: int,
    seed: int = 0,
) -> dict[str, Any]:
    """Perturbation curves and sanity checks of T, |U|, D and a random order.

    Args:
      model: Flax module that returns `ModelOutput`.
      variables: of the model, on one device.
      preprocess: from uint8 images to the model's float32 input.
      image_size: pixels a side.
      batches: of labelled images, on the host.
      images: how many they hold, for the progress bar.
      seed: of the random order, the imputation's noise and the random weights.

    Returns:
      `images`, `shares`, `road_shares` and `maps`: for each map the mean probability of the true class at each share
      (`curves`), the areas under it (`deletion`, `insertion`, `road_most`, `road_least`, the mean over shares) and
      `road_gap`, least less most relevant first; but for the random order also `random_head` and `random_weights`, the
      mean rank correlation with the map after drawing those weights anew.
    """
    measure = _compile(model, variables, preprocess, image_size, jax.random.key(seed))
    collected: list[dict[str, dict[str, np.ndarray]]] = []
    with tqdm(total=images, desc="faithfulness", unit="image", disable=None if is_first() else True) as bar:
        for batch in batches:
            real = batch["mask"] > 0
            collected.append(jax.tree.map(lambda leaf, real=real: np.asarray(leaf)[real], measure(batch)))
            bar.update(int(real.sum()))
    merged = jax.tree.map(lambda *leaves: np.concatenate(leaves).mean(0), *collected)
    maps = {name: _areas(values) for name, values in merged.items()}
    return {"images": images, "shares": list(SHARES), "road_shares": list(ROAD_SHARES), "maps": maps}


def _areas(values: dict[str, np.ndarray]) -> dict[str, Any]:
    curves = {name: curve for name, curve in values.items() if curve.ndim}
    areas = {name: float(np.trapezoid(curves[name], SHARES)) for name in ("deletion", "insertion")}
    areas |= {name: float(curves[name].mean()) for name in ("road_most", "road_least")}
    areas["road_gap"] = areas["road_least"] - areas["road_most"]
    checks = {name: float(value) for name, value in values.items() if not value.ndim}
    return areas | checks | {"curves": {name: curve.tolist() for name, curve in curves.items()}}


def _compile(
    model: Any, variables: Any, preprocess: Callable[[jax.Array], jax.Array], size: int, key: jax.Array
) -> Callable[[Batch], dict[str, dict[str, jax.Array]]]:
    """Builds `measure(batch)`: the model is compiled once, and each way of perturbing once."""
    weights_key, order_key, noise_key = jax.random.split(key, 3)
    redrawn = initialize(model, weights_key, size)
    apply = jax.jit(lambda variables, images: model.apply(variables, images, train=False))
    probability = jax.jit(
        lambda images, labels: jnp.take_along_axis(
            jax.nn.softmax(apply(variables, images).logits), labels[:, None], axis=-1
        )[:, 0]
    )
    delete, insert, impute = (
        jax.jit(lambda images, ranks, share, change=change: change(images, perturbation.first_ranked(ranks, share)))
        for change in (
            perturbation.delete,
            perturbation.insert,
            lambda images, removed: perturbation.noisy_linear_imputation(images, removed, noise_key),
        )
    )
    prepare = jax.jit(preprocess)
    ranks_of = jax.jit(perturbation.pixel_ranks, static_argnums=1)

    def measure(batch: Batch) -> dict[str, dict[str, jax.Array]]:
        raw, labels = jax.device_put((batch["image"], batch["label"]))
        images = prepare(raw)
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
                results[name][check] = perturbation.rank_correlation(maps[name], salience)
        return results

    return measure


def _maps(features: jax.Array, head: ModelOutput, labels: jax.Array) -> dict[str, jax.Array]:
    """T, |U| and D of features under a head."""
    logits = features.mean((1, 2)) @ head.kernel + head.bias[None]
    true_map, false_map = cams.true_false_maps(features, head.kernel, labels, logits)
    return {"T": true_map, "|U|": jnp.abs(false_map), "D": true_map - false_map}
