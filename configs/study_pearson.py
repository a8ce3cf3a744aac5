"""The comparison study on your own images with one minus Pearson's correlation as the distance between maps.

    python launch/compare.py --config=configs/study_pearson.py --config.data.manifest=my/manifest.csv \
        --workdir=runs/study_pearson

As configs/study_manifest.py, but for 20 epochs and two weights of the guidance; `cyborg_mse` and `difference_mse` are
the strategies with the default distance.

15 minutes for magnetic tiles on two CPU cores beside other work. Open-set AUROC there: cross_entropy 0.580 ± 0.034,
cyborg 0.663 ± 0.016, opposed 0.661 ± 0.013, difference 0.665 ± 0.021; guidance is significantly above cross_entropy,
and no reconstruction above cyborg. Tables of three data sets and their commands: configs/README.md.
"""

from ml_collections import ConfigDict

from configs import study_manifest


def get_config() -> ConfigDict:
    config = study_manifest.get_config()
    config.epochs = 20
    config.strategy = "difference"  # for a run alone; a study sets it for each arm
    config.guidance.divergence = "pearson"
    config.compare.strategies = ("cross_entropy", "cyborg", "opposed", "difference")
    config.compare.alphas = (0.5, 0.75)
    config.compare.placebos = ("mean_map",)
    config.compare.variants = ConfigDict(
        {
            f"{strategy}_mse": {"strategy": strategy, "guidance": {"divergence": "mse"}}
            for strategy in ("cyborg", "difference")
        }
    )
    return config
