"""What few human maps are worth, with and without predicted ones in place of the missing: on your own images.

    for share in 0.1 0.3; do
        python launch/predict_maps.py --config=configs/study_manifest.py --config.data.manifest=my/manifest.csv \
            --config.data.maps.share=$share --folds=3 --write_manifest=my/predicted_$share.csv
    done
    python launch/compare.py --config=configs/study_few_maps.py:my/manifest.csv --workdir=runs/few_maps

Arms: cross_entropy; cyborg, by Pearson's distance, with all maps, with a tenth and three tenths of each class's
(`data.maps.share`), with predicted maps for the rest of these classes, and with such predictions dealt to other images
as a control. The predicted maps come from the first commands. Otherwise as configs/study_pearson.py, with one weight of
the guidance. Results and their commands: configs/README.md.
"""

from pathlib import Path

from ml_collections import ConfigDict

from configs import study_pearson

SHARES = (0.1, 0.3)


def get_config(manifest: str = "") -> ConfigDict:
    """`manifest` is what stands behind the colon: the CSV, beside which the predicted ones lie."""
    config = study_pearson.get_config()
    config.data.manifest = manifest
    config.strategy = "cyborg"
    config.compare.strategies = ("cross_entropy", "cyborg")
    config.compare.alphas = ()
    config.compare.placebos = ()
    variants = {}
    for share in SHARES:
        predicted = {"manifest": str(Path(manifest).parent / f"predicted_{share}.csv")}
        variants |= {
            f"cyborg_{100 * share:.0f}": {"data": {"maps": {"share": share}}},
            f"cyborg_{100 * share:.0f}_predicted": {"data": predicted},
            f"cyborg_{100 * share:.0f}_predicted_control": {"data": predicted | {"maps": {"predicted": "other_image"}}},
        }
    config.compare.variants = ConfigDict(variants)
    return config
