"""The CYBORG recipe whole (Boyd et al., WACV 2023, arXiv 2112.00686): ImageNet-initialised DenseNet-121 at 224 px.

    python launch/train.py --config=configs/cyborg_recipe.py --config.data.manifest=my/manifest.csv \\
        --config.strategy=cyborg --workdir=runs/cyborg

Batch 20, 50 epochs, SGD 0.005 with momentum 0.9, weight decay 1e-6, times 0.1 every 12 epochs, alpha 0.5, no
augmentation, the checkpoint of the best validation accuracy. `--config.model.name=` resnet50, inception_v3 or xception
gives the other three backbones, each at its own image size and normalisation. The weights come from the Hugging Face
Hub; without a connection the error says which file to place where. `--config.guidance.cam_class=predicted` repeats the
CYBORG code's choice of map. On two CPU cores a step takes seconds: meant for a GPU.
"""

from ml_collections import ConfigDict

from configs import default


def get_config() -> ConfigDict:
    config = default.get_config()
    config.model.name = "densenet121"
    config.model.weights = "imagenet"
    return config
