"""Your own images, a folder for each class: no list is needed to begin.

    python launch/prepare.py --config=configs/folders.py --config.data.folders.images=my/images --check \
        --out=runs/check
    python launch/train.py --config=configs/folders.py --config.data.folders.images=my/images \
        --config.strategy=difference --workdir=runs/mine

my/images/CLASS/1.png with its map my/images/CLASS/1_map.png, or train, val and test above the classes; maps in a folder
of their own are found by --config.data.folders.maps=my/maps. Model and training are those of configs/manifest.py. What
to expect: without train, val and test folders 70 % of each class train, 15 % validate and 15 % test; figures of the few
images that then test vary widely from one data.folders.seed to another.
"""

from ml_collections import ConfigDict

from configs import manifest


def get_config() -> ConfigDict:
    config = manifest.get_config()
    config.data.source = "folders"
    return config
