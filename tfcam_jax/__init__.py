"""True/false class activation guidance: losses on both class activation maps, training with them, and what they show.

The public names are imported when they are first asked for. Those of `cams`, `saliency` and `losses` need jax alone;
`train`, `evaluate`, `explain` and `restore` need the extra `[train]`.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # for type checkers; tests/test_public_surface.py holds it equal to _HOMES
    from .cams import class_activation_maps as class_activation_maps
    from .cams import decompose_margin as decompose_margin
    from .cams import difference_salience as difference_salience
    from .cams import grad_cam_difference as grad_cam_difference
    from .cams import is_constant as is_constant
    from .cams import normalize as normalize
    from .cams import split_true_false as split_true_false
    from .cams import true_false_maps as true_false_maps
    from .evaluation import evaluate as evaluate
    from .explanation import explain as explain
    from .inference import Trained as Trained
    from .inference import restore as restore
    from .losses import contrast_loss as contrast_loss
    from .losses import cyborg_loss as cyborg_loss
    from .losses import difference_loss as difference_loss
    from .losses import energy_loss as energy_loss
    from .losses import entropy_loss as entropy_loss
    from .losses import hard_negative_loss as hard_negative_loss
    from .losses import input_gradient_loss as input_gradient_loss
    from .losses import opposed_loss as opposed_loss
    from .losses import outside_loss as outside_loss
    from .losses import sham_loss as sham_loss
    from .saliency import border_ring as border_ring
    from .saliency import to_cam_resolution as to_cam_resolution
    from .training import train as train

_HOMES = {
    "cams": "class_activation_maps decompose_margin difference_salience grad_cam_difference is_constant normalize "
    "split_true_false true_false_maps",
    "losses": "contrast_loss cyborg_loss difference_loss energy_loss entropy_loss hard_negative_loss "
    "input_gradient_loss opposed_loss outside_loss sham_loss",
    "saliency": "border_ring to_cam_resolution",
    "training": "train",
    "evaluation": "evaluate",
    "explanation": "explain",
    "inference": "Trained restore",
}
_HOME_OF = {name: module for module, names in _HOMES.items() for name in names.split()}


def __getattr__(name: str) -> Any:
    if name not in _HOME_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}; it has {', '.join(sorted(_HOME_OF))}")
    try:
        value = getattr(importlib.import_module(f".{_HOME_OF[name]}", __name__), name)
    except ModuleNotFoundError as error:
        if (error.name or "").split(".")[0] == __name__:
            raise
        remedy = "it comes with the extra [train]: pip install 'tfcam_jax[train]'"
        raise ModuleNotFoundError(f"tfcam_jax.{name} needs {error.name}; {remedy}", name=error.name) from error
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOME_OF})
