"""Which reconstruction, which distance between maps, which weight, normalised or raw: variants on the embedded demo.

    python launch/compare.py --config=configs/study_variants.py --workdir=runs/study_variants

Fifteen arms of five seeds each, the same small CNN and images as configs/study_demo.py. `energy_difference` guides the
raw map instead of the normalised one; `cyborg` is `opposed` without the false map's own term. `outside` on the raw
difference is left out: on the demo's first version its sum, which has no bound, ended every run in NaN within a few
steps at this learning rate.

Run on the first version alone, which had one shortcut and the same marks in both sets: there the distance between maps
decided more than the loss. All fifteen: configs/README.md.
"""

from ml_collections import ConfigDict

from configs import demo


def get_config() -> ConfigDict:
    config = demo.get_config()
    config.compare.strategies = ("cyborg", "opposed", "difference", "contrast")
    variants = {
        f"{strategy}_{divergence}": {"strategy": strategy, "guidance": {"divergence": divergence}}
        for strategy in ("cyborg", "opposed", "difference")
        for divergence in ("kl", "pearson")
    }
    variants |= {
        f"{strategy}_alpha{alpha}".replace(".", ""): {"strategy": strategy, "guidance": {"alpha": alpha}}
        for strategy in ("cyborg", "difference")
        for alpha in (0.1, 0.9)
    }
    variants["energy_difference"] = {"strategy": "energy", "guidance": {"attribution": "difference"}}
    config.compare.variants = ConfigDict(variants)
    config.compare.seeds = tuple(range(5))
    return config
