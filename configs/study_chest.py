"""The comparison study on chest X-rays, by the CYBORG recipe of the method text.

    python launch/compare.py --config=configs/study_chest.py --config.data.chest_xray.manual_dir=FOLDER \
        --workdir=runs/study_chest

FOLDER as for configs/chest_xray.py. DenseNet-121 from ImageNet weights at 224 px, batch 20, 50 epochs, ten seeds, the
recipe's lack of augmentation. Two protocols: annotated films by patient or the owners' splits, and each collection left
out of training in turn (hospitals never seen; it needs two collections or more, so with one of them give
--config.compare.protocols="('published',)"). Boxes exist for abnormal films only, so that a map tells the class: the
placebo arms decide what a gain is owed to. Every guided arm tries three weights of the guidance and takes the best by
validation. Meant for GPUs. This study has not been run on the real collections.
"""

from ml_collections import ConfigDict

from configs import chest_xray


def get_config() -> ConfigDict:
    config = chest_xray.get_config()
    config.augment.crop = 0.0
    config.augment.rotate = 0.0
    config.model.name = "densenet121"
    config.model.weights = "imagenet"
    config.compare.alphas = (0.25, 0.5, 0.75)
    config.compare.placebos = ("other_image", "mean_map", "border_ring")
    config.compare.protocols = ("published", "leave_one_domain_out")
    config.compare.seeds = tuple(range(10))
    return config
