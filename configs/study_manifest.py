"""The comparison study on your own images: a CSV as configs/manifest.py takes it.

    python launch/compare.py --config=configs/study_manifest.py --config.data.manifest=my/manifest.csv \
        --workdir=runs/study
    python launch/compare.py --config=configs/study_manifest.py --config.data.manifest=my/manifest.csv \
        --config.compare.protocols="('k_fold',)" --workdir=runs/study_folds

Small CNN from scratch at 64 px without augmentation, 40 epochs, so that hundreds of runs take minutes on a CPU; another
network is --config.model.name=resnet18 --config.data.image_size=128. Every guided arm tries three weights of the
guidance and takes the one with the best validation AUROC. The first command tests as the CSV splits (closed and open
set by domain), the second on each of five folds of whole groups; protocols go together in one study too. Where a split
lacks what a protocol needs, that is said before the first run.

On magnetic tiles with defects (20 epochs, two weights) the open-set AUROC is 0.580 ± 0.034 for cross_entropy, 0.620 ±
0.028 for cyborg and 0.643 ± 0.024 for difference, no difference to cyborg being significant. Tables of three data sets
and their commands: configs/README.md.
"""

from ml_collections import ConfigDict

from configs import default


def get_config() -> ConfigDict:
    config = default.get_config()
    config.model.name = "small_cnn"
    config.data.image_size = 64
    config.data.balance = "weights"
    config.batch_size = 32
    config.epochs = 40
    config.optimizer.learning_rate = 0.05
    config.optimizer.schedule = "cosine"
    config.evaluation.batch_size = 128
    config.evaluation.select_by = "auroc"
    config.compare.alphas = (0.25, 0.5, 0.75)
    config.compare.placebos = ("other_image", "mean_map")
    config.compare.seeds = tuple(range(10))
    return config
