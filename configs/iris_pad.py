"""Iris presentation attacks with human saliency, tested on attack types never trained on (LivDet-Iris 2020 style).

    python launch/prepare.py --config=configs/iris_pad.py --config.data.iris_pad.manual_dir=FOLDER --check \
        --out=runs/iris_check
    python launch/train.py --config=configs/iris_pad.py --config.data.iris_pad.manual_dir=FOLDER \
        --config.strategy=difference --workdir=runs/iris
    python launch/train.py --config=configs/iris_pad.py --config.data.iris_pad.manual_dir=FOLDER \
        --config.data.protocol.name=leave_one_domain_out --config.data.protocol.domains="('printout',)" \
        --workdir=runs/iris_without_printout

FOLDER holds lists of D-NetPAD's, LivDet-Iris 2025's or VISER's form, or folders by type, and images that their owners
give out on request; see tfcam_jax/data/builders/iris_pad.txt. The domain is the attack type. The last command leaves
one attack type out. What to expect: attacks outnumber live eyes or the reverse, hence balanced sampling; figures per
attack type. This config has not been run on the real collections. Paper of the task: Das et al., arXiv 2009.00749.

Strategy and distance are the recipe's, `cyborg` by mean squared error: on four sets, from scratch and from ImageNet
weights, nothing was significantly ahead of them. From scratch `--config.guidance.divergence=pearson` is worth a try,
on attacks or findings that training lacks after ImageNet weights it was behind (configs/README.md).
"""

from ml_collections import ConfigDict

from configs import default


def get_config() -> ConfigDict:
    config = default.get_config()
    config.data.source = "iris_pad"
    config.data.channels = 1
    config.data.balance = "sampling"
    config.strategy = "cyborg"
    return config
