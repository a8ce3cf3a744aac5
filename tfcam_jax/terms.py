"""What a strategy sees of one batch, and what it answers: weighted, masked terms.

This is the seam between `steps` and `strategies`; neither imports the other.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int


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
      human_maps: human saliency at the image's resolution, any non-negative range; all zero where nobody annotated.
      input_gradient: computes the gradient of `sum_k log p_k` by the normalised image, `[batch, H, W, channels]`.
        A second pass through the model, so only strategies that need it call it.
    """

    output: Output
    labels: Int[Array, "*batch"]
    mask: Bool[Array, "*batch"]
    weight: Float[Array, "*batch"]
    human_maps: Float[Array, "*batch H W"]
    input_gradient: Callable[[], Array]


class Term(NamedTuple):
    """One term of the loss: `weight * sum(mask * per_example) / sum(mask)` over all devices."""

    weight: float
    per_example: Float[Array, "*batch"]
    mask: Bool[Array, "*batch"]


Terms = dict[str, Term]
Strategy = Callable[[Evidence], Terms]


class Total(NamedTuple):
    """A sum over examples and how many entered it: adds up over devices and steps, then divides."""

    sum: Float[Array, ""]
    count: Float[Array, ""]


def reduce_terms(
    terms: Terms, axis_name: str | None = None, counts: dict[str, Array] | None = None
) -> tuple[Float[Array, ""], dict[str, Total]]:
    """Reduces terms to this part's share of the loss and to each term's total over all devices.

    The shares of all devices and parts sum to the loss, so gradients are to be *summed* over them. A term without any
    example that counts contributes 0, with gradient 0. `axis_name` is of pmap; None where the arrays span all devices.
    `counts` are those of the whole batch (`count_terms`), where it has other parts than these arrays over all devices.
    """
    share = jnp.zeros(())
    totals = {}
    here = count_terms(terms, axis_name)
    for name, term in terms.items():
        # `where`, not a product: 0 * nan is nan, and what is masked may be anything.
        local = jnp.where(term.mask, term.per_example, 0).sum()
        share = share + term.weight * local / jnp.maximum((counts or here)[name], 1)
        everywhere = local if axis_name is None else jax.lax.psum(jax.lax.stop_gradient(local), axis_name)
        totals[name] = Total(everywhere, here[name])
    return share, totals


def count_terms(terms: Terms, axis_name: str | None = None) -> dict[str, Float[Array, ""]]:
    """The number of examples that enter each term, over all devices."""
    counts = {name: term.mask.sum().astype(jnp.float32) for name, term in terms.items()}
    return counts if axis_name is None else jax.lax.psum(counts, axis_name)
