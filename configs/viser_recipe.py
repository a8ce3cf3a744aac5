"""VISER's recipe (Dowling et al., IJCB 2026, arXiv 2603.17859): CYBORG's on DenseNet-121 with two things changed.

    python launch/train.py --config=configs/viser_recipe.py --config.data.manifest=my/manifest.csv --workdir=runs/viser
    python launch/train.py --config=configs/viser_recipe.py:cross_entropy ...  # its baseline; or any other strategy
    python launch/train.py --config=configs/viser_recipe.py --config.data.source=iris_pad \\
        --config.data.iris_pad.manual_dir=FOLDER --config.data.protocol.name=leave_one_domain_out \\
        --config.data.protocol.domains="('printout',)" --workdir=runs/viser_without_printout

Read off its public code: the weight of cross-entropy is cross-entropy / (cross-entropy + guidance) in each step and the
gradient goes through it; human maps, once resized to 7 x 7, get a 3 x 3 Gaussian blur of sigma 0.1 to 2. It trains 12
times without each of seven attack types. What differs: configs/README.md, "VISER's recipe". Not run on its collection,
which its owners give out on request; meant for a GPU.
"""

from ml_collections import ConfigDict

from configs import cyborg_recipe


def get_config(strategy: str = "cyborg") -> ConfigDict:
    """`strategy` is what stands behind the colon."""
    config = cyborg_recipe.get_config(f"densenet121,{strategy}")
    if strategy != "cross_entropy":  # there is nothing to weigh, and no map to blur
        config.guidance.weighting = "loss_share"
        config.augment.map_blur = (0.1, 2.0)
    return config
