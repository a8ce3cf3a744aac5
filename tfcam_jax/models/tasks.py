"""Other decisions than one class of several: networks of one logit, and of a logit for each of many labels.

Each wraps a `Model` and is one: steps, strategies and losses see two classes for every logit, (-z / 2, z / 2).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
from jaxtyping import Array, Float

from .. import cams
from ..errors import ConfigError
from .contract import Model, ModelOutput, MultiLabelOutput


@dataclasses.dataclass(frozen=True)
class OneLogit:
    """A network with one logit z, which speaks for class 1, as one of two classes.

    The softmax of class 1 is `sigmoid(z)` and cross-entropy its binary one. T of class 1 is half the logit's map, of
    class 0 its negative; U is -T, and D the logit's own map, signed by the true class.
    """

    model: Model

    def init(self, rngs: Array, images: Float[Array, "batch H W channels"], train: bool) -> dict[str, Any]:
        """The network's own variables."""
        return self.model.init(rngs, images, train)

    def apply(self, variables: dict[str, Any], images: Array, train: bool, **options: Any) -> Any:
        """As the network's own; ValueError if it has another number of logits."""
        return _convert(self.model.apply(variables, images, train=train, **options), _two_classes)


@dataclasses.dataclass(frozen=True)
class MultiLabel:
    """A network with a logit for each of L labels, any number of which may hold of an image.

    Labels are [batch, L]: 1 present, 0 absent, -1 unknown. Of each label T is the evidence for what is true of it, its
    presence or its absence (`cams.present_absent_maps`); every term of the loss is a mean over images and labels.
    Human maps are one for all labels of an image, [batch, H, W], or one for each, [batch, L, H, W].
    """

    model: Model

    def init(self, rngs: Array, images: Float[Array, "batch H W channels"], train: bool) -> dict[str, Any]:
        """The network's own variables."""
        return self.model.init(rngs, images, train)

    def apply(self, variables: dict[str, Any], images: Array, train: bool, **options: Any) -> Any:
        """As the network's own, with `MultiLabelOutput` in place of its output."""
        return _convert(self.model.apply(variables, images, train=train, **options), _each_label)


def one_logit(make_model: Callable[..., Model], *, num_classes: int, **options: Any) -> Model:
    """`make_model`'s network of two classes, by one logit. A network without classes, of one output, stays as it is.

    Raises ConfigError for more classes.
    """
    if num_classes > 2:
        raise ConfigError(f"config.model.one_logit=True takes data of two classes; these have {num_classes}.")
    model = make_model(num_classes=1, **options)
    return OneLogit(model) if num_classes == 2 else model


def _convert(applied: Any, convert: Callable[[ModelOutput], Any]) -> Any:
    """The output converted, beside what else `apply` gives where collections may change."""
    if isinstance(applied, tuple):
        return convert(applied[0]), *applied[1:]
    return convert(applied)


def _two_classes(output: ModelOutput) -> ModelOutput:
    if output.logits.shape[-1] != 1:
        raise ValueError(f"OneLogit takes a network of one logit; this one has {output.logits.shape[-1]}")
    logits = cams.two_columns(output.logits)
    if output.kernel is not None and output.bias is not None:
        kernel, bias = cams.two_columns(output.kernel), cams.two_columns(output.bias)
        return ModelOutput(logits, output.features, kernel, bias, output.hooked)
    head = jax.tree_util.Partial(_two_columns_of, output.head)
    return ModelOutput(logits, output.features, None, None, output.hooked, head)


def _two_columns_of(head: Any, features: Array) -> Array:
    return cams.two_columns(head(features))


def _each_label(output: ModelOutput) -> MultiLabelOutput:
    return MultiLabelOutput(output, cams.two_columns(output.logits[..., None]))
