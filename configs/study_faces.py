"""The comparison study on synthetic faces, by the CYBORG recipe of the method text.

    python launch/compare.py --config=configs/study_faces.py --config.data.cyborg_faces.manual_dir=FOLDER \
        --workdir=runs/study_faces

FOLDER as for configs/cyborg_faces.py. DenseNet-121 from ImageNet weights at 224 px, batch 20, 50 epochs, ten seeds;
every guided arm tries three weights of the guidance and takes the best by validation. Training's lists name no face of
the test's generators, so the test is an open set for synthetic faces. cyborg_predicted takes the map of the predicted
class, as the CYBORG code does. 260 runs of 4,600 steps: meant for GPUs. This study has not been run.
"""

from ml_collections import ConfigDict

from configs import cyborg_faces


def get_config() -> ConfigDict:
    config = cyborg_faces.get_config()
    config.model.name = "densenet121"
    config.model.weights = "imagenet"
    config.compare.alphas = (0.25, 0.5, 0.75)
    config.compare.placebos = ("other_image", "mean_map")
    config.compare.variants.cyborg_predicted = ConfigDict(
        {"strategy": "cyborg", "guidance": {"cam_class": "predicted", "alpha": 0.5}}
    )
    config.compare.protocols = ("published",)
    config.compare.seeds = tuple(range(10))
    return config
