"""What a strategy sees of one batch, and what it answers: weighted, masked terms.

This is the seam between `steps` and `strategies`; neither imports the other.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Real


@runtime_checkable
class Output(Protocol):
    """What is used of a model's output; `tfcam_jax.models.ModelOutput` is one."""

    @property
    def logits(self) -> Float[Array, "*batch classes"]: ...

    @property
    def features(self) -> Float[Array, "images h w channels"]: ...

    @property
    def hooked(self) -> Float[Array, "images h w channels"] | None: ...

    def true_false_maps(
        self, labels: Int[Array, "*batch"], features: Float[Array, "images h w channels"] | None = None
    ) -> tuple[Float[Array, "*batch h w"], Float[Array, "*batch h w"]]:
        """T and U, raw; of other features than the model's own where they are given."""
        ...


class Evidence(NamedTuple):
    """One batch as a model sees it.

    Leading dimensions are [batch], or [batch, labels] where each image has many (`models.tasks.MultiLabel`).

    Attributes:
      output: logits, pooled features and head of the model.
      labels: true classes, 0..K-1; of many labels 0 or 1 each.
      mask: True for a decision that counts, False for padding and where the label is unknown (below 0).
      weight: of each example's cross-entropy; 1 where classes are not weighed.
      human_maps: human saliency, any non-negative range, also of integers, and any size (in training here the CAM's,
        the image's for `strategies.ON_IMAGES`); all zero where nobody annotated.
      input_gradient: computes the gradient of `sum_k log p_k` by the normalised image, `[batch, H, W, channels]`.
        A second pass through the model, so only strategies that need it call it.
      mirrored: gives the model's output for the images' mirror images, left and right exchanged, in training as
        `output` is. A second pass through the model too.
      progress: gives the share of training's steps that are done, in [0, 1).
    """

    output: Output
    labels: Int[Array, "*batch"]
    mask: Bool[Array, "*batch"]
    weight: Float[Array, "*batch"]
    human_maps: Real[Array, "*batch H W"]
    input_gradient: Callable[[], Array]
    mirrored: Callable[[], Output]
    progress: Callable[[], Float[Array, ""]]


class Term(NamedTuple):
    """One term of the loss: `weight * mean`, its mean being `sum(mask * per_example) / sum(mask)` over all devices.

    A `weight` of None is found in each step: the term's mean over the sum of the means of all terms that have None, see
    `reduce_terms`. Such terms must not be negative. An array is a weight that changes with the step.
    """

    weight: float | Float[Array, ""] | None
    per_example: Float[Array, "*batch"]
    mask: Bool[Array, "*batch"]


Terms = dict[str, Term]
Strategy = Callable[[Evidence], Terms]


class Total(NamedTuple):
    """A sum over examples and how many entered it: adds up over devices and steps, then divides."""

    sum: Float[Array, ""]
    count: Float[Array, ""]


def reduce_terms(
    terms: Terms, axis_name: str | None = None, whole: dict[str, Total] | None = None
) -> tuple[Float[Array, ""], dict[str, Total]]:
    """Reduces terms to this part's share of the loss and to each term's total over all devices.

    The shares of all devices and parts sum to the loss, so gradients are to be *summed* over them. A term without any
    example that counts contributes 0, with gradient 0. `axis_name` is of pmap; None where the arrays span all devices.
    `whole` are the totals of the whole batch (`total_terms`), where it has other parts than these arrays over all
    devices.

    The loss is `sum_k weight_k mean_k`. Terms without a weight have `weight_k = mean_k / sum_j mean_j`, the sum over
    all of them, and the gradient goes through that weight too: together `sum_k mean_k^2 / sum_k mean_k`. Value and
    gradient are 0 where all of these means are.
    """
    shares, totals = share_terms(terms, axis_name, whole)
    return sum(shares.values(), jnp.zeros(())), totals


def share_terms(
    terms: Terms, axis_name: str | None = None, whole: dict[str, Total] | None = None
) -> tuple[dict[str, Float[Array, ""]], dict[str, Total]]:
    """As `reduce_terms`, with this part's share of the loss left apart by term."""
    totals = total_terms(terms, axis_name)
    whole = whole or totals
    slopes = _slopes(terms, whole)
    share = lambda name, term: slopes[name] * _sum(term) / jnp.maximum(whole[name].count, 1)
    return {name: share(name, term) for name, term in terms.items()}, totals


def total_terms(terms: Terms, axis_name: str | None = None) -> dict[str, Total]:
    """Each term's sum over the examples that enter it, as a constant, and their number, over all devices."""
    count = lambda term: term.mask.sum().astype(jnp.float32)
    totals = {name: Total(jax.lax.stop_gradient(_sum(term)), count(term)) for name, term in terms.items()}
    return totals if axis_name is None else jax.lax.psum(totals, axis_name)


def _sum(term: Term) -> Float[Array, ""]:
    # `where`, not a product: 0 * nan is nan, and what is masked may be anything.
    return jnp.where(term.mask, term.per_example, 0).sum()


def _slopes(terms: Terms, whole: dict[str, Total]) -> dict[str, float | Float[Array, ""]]:
    """Derivative of the loss by each term's mean, a constant of the step.

    With `s_k` the share of mean k in the sum, that of `sum_k mean_k^2 / sum_k mean_k` is `2 s_k - sum_j s_j^2`. As this
    loss grows with its terms' common factor, `sum_k slope_k mean_k` is the loss itself: what is linear in the terms has
    both its value and its gradient, and can be added up over devices and parts.
    """
    unweighted = [name for name, term in terms.items() if term.weight is None]
    means = {name: whole[name].sum / jnp.maximum(whole[name].count, 1) for name in unweighted}
    total = sum(means.values())
    shares = {name: mean / jnp.where(total == 0, 1, total) for name, mean in means.items()}
    squares = sum(jnp.square(share) for share in shares.values())
    found = {name: 2 * share - squares for name, share in shares.items()}
    return {name: found[name] if term.weight is None else term.weight for name, term in terms.items()}
