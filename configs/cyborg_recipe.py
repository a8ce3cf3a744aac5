"""The CYBORG recipe (Boyd et al., WACV 2023, arXiv 2112.00686), ImageNet-initialised: its training step to the letter.

    python launch/train.py --config=configs/cyborg_recipe.py --config.data.manifest=my/manifest.csv \
        --workdir=runs/cyborg
    python launch/train.py --config=configs/cyborg_recipe.py:inception_v3 ...           # another backbone
    python launch/train.py --config=configs/cyborg_recipe.py:densenet121,difference ... # another strategy

Batch 20, 50 epochs, SGD 0.005 with momentum 0.9, weight decay 1e-6 on all parameters, times 0.1 every 12 epochs, alpha
0.5, no augmentation, the checkpoint of the best validation accuracy. The backbones are densenet121, resnet50,
inception_v3 and xception, each at its own image size and normalisation; choose them behind the colon, as some keys
below depend on them, which `--config.model.name=` does not change. The weights come from the Hugging Face Hub; without
a connection the error says which file to place where. On two CPU cores a step takes seconds: meant for a GPU.

In float64 the gradient of a step equals that of PyTorch code written from the description to 1e-10
(tests/parity/test_cyborg_recipe.py). What is left to differ is listed in configs/README.md, "CYBORG's recipe".
"""

from ml_collections import ConfigDict

from configs import default


def get_config(chosen: str = "densenet121") -> ConfigDict:
    """`chosen` is what stands behind the colon: a backbone or `backbone,strategy`."""
    backbone, _, strategy = chosen.partition(",")
    config = default.get_config()
    config.strategy = strategy or "cyborg"
    config.model.name = backbone
    config.model.weights = "imagenet"
    config.model.head_init = "pytorch"
    config.data.maps.resize = "straight"
    if config.strategy == "cyborg":
        config.guidance.cam_class = "predicted"
        config.guidance.cam_features = "hooked"
        if backbone == "densenet121":
            config.model.batch_norm_momentum = 0.81  # 0.9 twice: its map comes from a second forward pass
    if backbone == "inception_v3":
        config.model.dropout = 0.5
    return config
