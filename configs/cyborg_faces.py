"""Synthetic faces: the CYBORG recipe of Boyd et al., WACV 2023 (arXiv 2112.00686) on its own data.

    python launch/prepare.py --config=configs/cyborg_faces.py --config.data.cyborg_faces.manual_dir=FOLDER --check \
        --out=runs/faces_check
    python launch/train.py --config=configs/cyborg_faces.py --config.data.cyborg_faces.manual_dir=FOLDER \
        --config.strategy=difference --workdir=runs/faces

FOLDER holds the collection "UND WACV 2023 CYBORG" with its owner's lists (csvs/original.csv: train and validation;
csvs/gan_test_sets/*.csv: test); see tfcam_jax/data/builders/cyborg_faces.txt. Its owner gives it out on request. What
to expect: training on 1,821 faces with human maps, 50 epochs of 92 steps; validation on 20,000; the open set are the
generators that training has not seen. This config has not been run on the real collection; the method's own figures are
in the paper.

Strategy and distance are the recipe's, `cyborg` by mean squared error: on four sets, from scratch and from ImageNet
weights, nothing was significantly ahead of them. From scratch `--config.guidance.divergence=pearson` is worth a try,
on generators that training lacks after ImageNet weights it was behind (configs/README.md).
"""

from ml_collections import ConfigDict

from configs import default


def get_config() -> ConfigDict:
    config = default.get_config()
    config.data.source = "cyborg_faces"
    config.strategy = "cyborg"
    return config
