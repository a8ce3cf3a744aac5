"""The comparison study on the embedded demo: all five strategies, by both distances, and training without shortcuts.

    python launch/compare.py --config=configs/study_demo.py --workdir=runs/study_demo

45 runs of small CNNs at 64 px: five strategies; cyborg, opposed and difference by Pearson's distance too; and
`no_shortcuts`, cross-entropy on data whose shortcuts are a coin in training: what the marks alone teach. Five seeds;
`--config.compare.seeds="(0,1)"` takes fewer, `--config.compare.placebos="('other_image','mean_map')"` adds controls.
The images are drawn: tfcam_jax/data/builders/demo.md says what this can show.

About 8 minutes of processor time a seed. Five seeds' open-set AUROC: cross_entropy 0.691, cyborg 0.752, opposed 0.756,
difference 0.753, contrast 0.745; by Pearson's distance cyborg 0.810, opposed 0.848, difference 0.839; no_shortcuts
0.903. Whole table: configs/README.md.
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
