"""The comparison study on the embedded demo: all five strategies, by both distances, and training without shortcuts.

    python launch/compare.py --config=configs/study_demo.py --workdir=runs/study_demo

45 runs of small CNNs at 64 px: five strategies; cyborg, opposed and difference by Pearson's distance too; and
`no_shortcuts`, cross-entropy on data whose shortcuts are a coin in training: what the marks alone teach. Five seeds;
`--config.compare.seeds="(0,1)"` takes fewer, `--config.compare.placebos="('other_image','mean_map')"` adds controls.
The images are drawn: tfcam_jax/data/builders/demo.md says what this can show.

About 8 minutes of processor time a seed. Run for seed 0 alone so far; open-set AUROC: cross_entropy 0.682, cyborg
0.750, opposed 0.771, difference 0.774, contrast 0.742; by Pearson's distance cyborg 0.824, opposed 0.864, difference
0.848; no_shortcuts 0.867. One seed ranks nothing. Whole table: configs/README.md.
"""

from ml_collections import ConfigDict

from configs import demo


def get_config() -> ConfigDict:
    config = demo.get_config()
    pearson = {
        f"{strategy}_pearson": {"strategy": strategy, "guidance": {"divergence": "pearson"}}
        for strategy in ("cyborg", "opposed", "difference")
    }
    without = {"shortcut_agreement": 0.5, "local_agreement": 0.5}
    config.compare.variants = ConfigDict(
        {**pearson, "no_shortcuts": {"strategy": "cross_entropy", "data": {"demo": without}}}
    )
    config.compare.seeds = tuple(range(5))
    return config
