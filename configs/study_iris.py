"""The comparison study on iris presentation attacks, by the CYBORG recipe of the method text.

    python launch/compare.py --config=configs/study_iris.py --config.data.iris_pad.manual_dir=FOLDER \
        --workdir=runs/study_iris

FOLDER as for configs/iris_pad.py. DenseNet-121 from ImageNet weights at 224 px, batch 20, 50 epochs, ten seeds. Two
protocols: the lists' splits (attack types that training lacks are the open set), and each attack type left out of
training in turn. Classes are sampled evenly; every guided arm tries three weights of the guidance and takes the best by
validation. Meant for GPUs. This study has not been run on the real collections.
"""

from ml_collections import ConfigDict

from configs import iris_pad


def get_config() -> ConfigDict:
    config = iris_pad.get_config()
    config.model.name = "densenet121"
    config.model.weights = "imagenet"
    config.compare.alphas = (0.25, 0.5, 0.75)
    config.compare.placebos = ("other_image", "mean_map")
    config.compare.protocols = ("published", "leave_one_domain_out")
    config.compare.seeds = tuple(range(10))
    return config
