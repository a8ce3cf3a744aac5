"""Which places of an image carried a classifier's decision: pure functions of arrays.

`report` applies them to a run's checkpoint and shows the results.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int
from scipy import ndimage

from .. import cams, saliency
from ..metrics import agreement

# A region is where |D| is at least this share of its largest value in the image.
REGION_THRESHOLD = 0.5
# A true-class map looks right from this correlation with the human map on; the difference does not below half of it.
LOOKS_RIGHT = 0.5


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


def grad_cam_difference(
    head: Callable[[Array], Array],
    features: Float[Array, "batch h w channels"],
    labels: Int[Array, " batch"],
) -> Float[Array, "batch h w"]:
    """Grad-CAM of the logit difference, for models whose head is more than pooling and one linear layer.

    The gradient of the true logit less the false one with respect to the features is summed over places, which gives
    a weight per channel; the map is the weighted sum of channels, signed (Grad-CAM, Selvaraju et al., ICCV 2017, takes
    one logit, the mean over places, and a ReLU). With these choices it equals D exactly for a pooled linear head.
    Otherwise its mean is a linear approximation of the margin, no decomposition of it.

    Args:
      head: from features to logits [batch, classes]; each image's logits must depend on its own features only.
      features: of the layer to look at.
      labels: class that counts as true.

    Returns:
      The map, float32. For more than two classes the false logit is the mean of the others weighted by their softmax
      among themselves, the weights held constant, as in the false-class map.
    """

    def difference(features: Array) -> Array:
        logits = head(features)
        true, false = cams.split_true_false(logits[:, None, None, :], labels, logits)
        return (true - false)[:, 0, 0]

    margin, pull_back = jax.vjp(difference, cams.at_least_float32(features))
    (gradient,) = pull_back(jnp.ones_like(margin))
    weights = gradient.sum((1, 2))
    return jnp.einsum("bhwc,bc->bhw", features, weights, precision=jax.lax.Precision.HIGHEST)


class Region(NamedTuple):
    """Connected places of one sign that carry much of a margin.

    Attributes:
      contribution: what the region adds to the margin; negative where it speaks for the false class.
      places: how many.
      box: first row, first column, one past the last row, one past the last column, in places.
    """

    contribution: float
    places: int
    box: tuple[int, int, int, int]


def margin_regions(
    difference: Float[np.ndarray, "h w"], threshold: float = REGION_THRESHOLD
) -> tuple[list[Region], float]:
    """Splits the mean of D into the regions that carry it and the rest.

    Args:
      difference: D of one image.
      threshold: share of the largest |D| from which on a place belongs to a region, in (0, 1].

    Returns:
      `(regions, rest)`. Regions are the 4-connected components of equal sign, the largest contribution (in magnitude)
      first. `sum(contributions) + rest == mean(D)`, and for the margin of `decompose` the bias difference comes on
      top. A D that is zero everywhere has no region.
    """
    values = np.asarray(difference, np.float64)
    strong = np.abs(values) >= threshold * np.abs(values).max()
    strong &= values != 0
    regions = []
    for sign in (values > 0, values < 0):
        components = ndimage.label(strong & sign)[0]
        for number, (rows, columns) in enumerate(ndimage.find_objects(components), start=1):
            member = components == number
            box = (rows.start, columns.start, rows.stop, columns.stop)
            regions.append(Region(float(values[member].sum() / values.size), int(member.sum()), box))
    regions.sort(key=lambda region: -abs(region.contribution))
    return regions, float(values[~strong].sum() / values.size)


class Explanation(NamedTuple):
    """What `make_explain_step` says of each image, float32.

    Attributes:
      logits: of every class.
      labels: class that counts as true: the image's label, or the predicted class where it has none (-1).
      decomposition: see `decompose`.
      saliency: human map at the maps' resolution; zero where there is none.
      usable: True where there is one.
      true_agreement: correlation of T with the human map, in [-1, 1]; 0 where there is none.
      difference_agreement: the same of D.
      fooling_gap: see `agreement.fooling_gap`.
    """

    logits: Float[Array, "batch classes"]
    labels: Int[Array, " batch"]
    decomposition: Decomposition
    saliency: Float[Array, "batch h w"]
    usable: Bool[Array, " batch"]
    true_agreement: Float[Array, " batch"]
    difference_agreement: Float[Array, " batch"]
    fooling_gap: Float[Array, " batch"]


def make_explain_step(
    model: Any, preprocess: Callable[[Array], Array]
) -> Callable[[Any, Any, dict[str, Array]], Explanation]:
    """Builds `step(params, batch_stats, batch) -> Explanation`, pure; each image stands for itself.

    Args:
      model: Flax module that returns `ModelOutput`.
      preprocess: from uint8 images to the model's float32 input.
    """

    def step(params: Any, batch_stats: Any, batch: dict[str, Array]) -> Explanation:
        variables = {"params": params, "batch_stats": batch_stats}
        output = model.apply(variables, preprocess(batch["image"]), train=False)
        labels = jnp.where(batch["label"] < 0, output.logits.argmax(-1), batch["label"])
        parts = decompose(output.features, output.kernel, output.bias, labels)
        magnitude = cams.largest_magnitude(parts.true_map, parts.false_map)
        human, usable = saliency.to_cam_resolution(batch["saliency"], parts.true_map.shape[-2:])
        return Explanation(
            output.logits,
            labels,
            parts,
            human,
            usable,
            agreement.correlation(parts.true_map, human),
            agreement.correlation(cams.normalize(parts.difference, magnitude), human),
            agreement.fooling_gap(parts.true_map, parts.false_map),
        )

    return step


def is_cosmetic(
    true_agreement: Float[np.ndarray, " n"], difference_agreement: Float[np.ndarray, " n"]
) -> Bool[np.ndarray, " n"]:
    """True where the true-class map looks right while the difference, which alone decides, does not.

    Args:
      true_agreement: correlation of T with the human map; at least 0.5 looks right.
      difference_agreement: of D; less than 0.25 does not.
    """
    return (true_agreement >= LOOKS_RIGHT) & (difference_agreement < LOOKS_RIGHT / 2)
