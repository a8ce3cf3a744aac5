"""Made-up outcomes of a comparison study."""

import numpy as np
from scipy.special import expit
from sklearn.metrics import roc_auc_score

from tfcam_jax.study.outcomes import Outcome


def make_outcomes(strengths, seeds=3, images=40, groups=8, protocol="published", folds=("",), sets=("open",), draw=0):
    """Outcomes of arms that part the classes by `strengths`; groups and images weigh on all arms and seeds alike."""
    rng, outcomes = np.random.default_rng(draw), []
    for fold in folds:
        for name in sets:
            labels, members = rng.integers(0, 2, images), rng.integers(0, groups, images)
            labels[:2] = 0, 1
            shared = rng.normal(size=groups)[members] / 2 + rng.normal(size=images)
            for arm, strength in strengths.items():
                for seed in range(seeds):
                    margin = (labels - 0.5) * (strength + rng.normal() / 10) + shared + rng.normal(size=images) / 2
                    metrics = {
                        "auroc": float(roc_auc_score(labels, margin)),
                        "accuracy": float(((margin > 0) == labels).mean()),
                        "cross_entropy": float(rng.uniform(0.4, 0.6)),
                        "cc_true": float(rng.normal(0.3, 0.05)),
                        "cc_false": float(rng.normal(-0.1, 0.05)),
                        "cc_difference": float(rng.normal(0.4, 0.05)),
                        "fooling_gap": float(rng.uniform(0.1, 0.3)),
                        "positive_inside": float(rng.uniform(0.5, 1.0)),
                        "above_outside": float(rng.normal(1.0, 0.1)),
                        "shared_variance": float(rng.uniform(0.2, 0.8)),
                    }
                    ids = tuple(f"{name}{fold}-{number}" for number in range(images))
                    owners = tuple(f"{name}{fold}-patient{member}" for member in members)
                    alpha = None if arm == "cross_entropy" else 0.5
                    outcome = Outcome(
                        arm, alpha, protocol, fold, seed, name, ids, owners, labels, expit(margin), metrics
                    )
                    outcomes.append(outcome)
    return outcomes


def make_selection(arms, protocol="published", alphas=(0.3, 0.5, 0.9), sets=("open",), draw=0):
    """What `read_selection` gives for these arms."""
    rng = np.random.default_rng(draw)
    entry = lambda alpha: {
        "alpha": alpha,
        "runs": 3,
        "validation": float(rng.uniform(0.8, 0.9)),
        "test": {name: {"auroc": float(rng.uniform(0.7, 0.8))} for name in sets},
    }
    return {
        protocol: {
            arm: {
                "chosen": None if arm == "cross_entropy" else 0.5,
                "select_by": "auroc",
                "alphas": [entry(None)] if arm == "cross_entropy" else [entry(alpha) for alpha in alphas],
            }
            for arm in arms
        }
    }
