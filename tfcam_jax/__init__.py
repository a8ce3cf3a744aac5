"""True/false class activation guidance: losses on both class activation maps, training with them, and what they show.

The public names are imported when they are first asked for; `__init__.pyi` tells type checkers the same ones. Those of
`cams`, `saliency` and `losses` need jax alone; `train`, `evaluate`, `explain` and `restore` need the extra `[train]`.
"""

from __future__ import annotations

import importlib
from typing import Any

_HOMES = {
    "cams": "class_activation_maps decompose_margin difference_salience grad_cam_difference "
    "gradient_class_activation_maps gradient_true_false_maps is_constant normalize split_true_false true_false_maps",
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
        remedy = "it comes with the extra [train]: pip install -e '.[train]' in a clone"
        raise ModuleNotFoundError(f"tfcam_jax.{name} needs {error.name}; {remedy}", name=error.name) from error
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOME_OF})
