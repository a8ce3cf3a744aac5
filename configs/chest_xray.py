"""Normal and abnormal chest X-rays with radiologists' boxes, masks or gaze: NIH, RSNA, MIMIC, VinDr, CheXpert, SIIM.

    python launch/prepare.py --config=configs/chest_xray.py --config.data.chest_xray.manual_dir=FOLDER --check \
        --out=runs/chest_check
    python launch/train.py --config=configs/chest_xray.py --config.data.chest_xray.manual_dir=FOLDER \
        --config.data.chest_xray.collections="('egd',)" --config.strategy=difference --workdir=runs/chest

FOLDER holds any of the collections as their owners lay them out; see tfcam_jax/data/builders/chest_xray.txt, which also
says how to obtain them, and chest_xray.md for their classes and splits. Annotated films are drawn by patient into
train, val and test with as many normal films beside them; EGD-CXR, REFLACX and lists keep their owners' splits. Papers:
Wang et al., CVPR 2017; Karargyris et al., Scientific Data 2021. What to expect: on NIH 880 films with boxes, 616 of
them in training; gaze maps exist for normal films too, boxes only for abnormal ones, where the placebo arms
(data.maps.placebo) are needed to tell what a gain is owed to. rsna's and siim's films are among nih's: taking both is
refused where they cross splits. This config has not been run on the real collections.

Strategy and distance are the recipe's, `cyborg` by mean squared error: on four sets, from scratch and from ImageNet
weights, nothing was significantly ahead of them. From scratch `--config.guidance.divergence=pearson` is worth a try,
on attacks or findings that training lacks after ImageNet weights it was behind (configs/README.md).
"""

from ml_collections import ConfigDict

from configs import default


def get_config() -> ConfigDict:
    config = default.get_config()
    config.data.source = "chest_xray"
    config.data.channels = 1
    config.data.maps.sigma = 150.0  # film pixels, as in the gaze data's own maps
    config.data.balance = "weights"
    config.augment.crop = 0.1
    config.augment.rotate = 5.0
    config.strategy = "cyborg"
    return config
