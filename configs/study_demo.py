"""The comparison study on the embedded demo: all five strategies and their placebo controls, ten seeds.

    python launch/compare.py --config=configs/study_demo.py --workdir=runs/study_demo

100 runs of small CNNs at 64 px: five strategies, other_image and mean_map controls of cyborg and difference, and
cyborg with the map of the predicted class, as the CYBORG code takes it. With --config.compare.seeds="(0,1)" a fifth of
it. The images are drawn, so this shows mechanisms and ranks nothing.

9 minutes on two CPU cores with AVX-512, 30 beside other work on two without. Open-set AUROC on the latter, mean and
deviation over seeds: cross_entropy 0.501 ± 0.010, cyborg 0.880 ± 0.129, opposed 0.914 ± 0.141, difference 0.934 ±
0.113, contrast 0.823 ± 0.074; no reconstruction differs from cyborg significantly, cyborg and difference are above
their placebos. With AVX-512 contrast is significantly below cyborg. Whole table: configs/README.md.
"""

from ml_collections import ConfigDict

from configs import demo


def get_config() -> ConfigDict:
    config = demo.get_config()
    config.compare.placebos = ("other_image", "mean_map")
    config.compare.variants.cyborg_predicted = ConfigDict(
        {"strategy": "cyborg", "guidance": {"cam_class": "predicted"}}
    )
    config.compare.seeds = tuple(range(10))
    return config
