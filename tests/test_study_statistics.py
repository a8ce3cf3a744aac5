"""Statistics of a study against brute force over pairs, permutations and resamples, and its degenerate cases."""

import itertools
import json

import numpy as np
import pytest
from scipy.stats import rankdata
from sklearn.metrics import roc_auc_score
from tiny_study import make_outcomes

from tfcam_jax.study.statistics import StudyError, arrange, study_statistics

ARMS = {"cyborg": 1.0, "difference": 1.8, "cyborg_mean_map": 1.0}
PLACEBOS = {"cyborg": ["cyborg_mean_map"]}


def one_set(outcomes, **options):
    (entry,) = study_statistics(outcomes, resamples=options.pop("resamples", 50), **options)
    return entry


def of_arm(entry, name):
    return next(arm for arm in entry["arms"] if arm["arm"] == name)


def comparison(entry, arm="difference", other="cyborg"):
    return next(c for c in entry["comparisons"] if (c["arm"], c["other"]) == (arm, other))


def test_figures_of_each_seed_and_their_moments():
    outcomes = make_outcomes(ARMS, seeds=4)
    arm = of_arm(one_set(outcomes), "difference")
    runs = sorted((o for o in outcomes if o.arm == "difference"), key=lambda o: o.seed)
    for name in ("auroc", "accuracy", "cc_difference", "fooling_gap"):
        values = [run.metrics[name] for run in runs]
        assert arm["figures"][name]["values"] == pytest.approx(values)
        assert arm["figures"][name]["mean"] == pytest.approx(np.mean(values))
        assert arm["figures"][name]["deviation"] == pytest.approx(np.std(values, ddof=1))
    assert arm["seeds"] == [0, 1, 2, 3] and arm["alpha"] == 0.5


def test_folds_count_pairs_of_images_of_one_model():
    """k_fold: the share of right pairs among all pairs within a fold, counted one by one."""
    parts = [
        make_outcomes(ARMS, seeds=2, images=images, protocol="k_fold", folds=(fold,), draw=int(fold))
        for fold, images in (("0", 12), ("1", 40), ("2", 25))
    ]
    outcomes = [outcome for part in parts for outcome in part]
    value = of_arm(one_set(outcomes), "cyborg")["figures"]["auroc"]["values"][1]
    right = []
    for run in (o for o in outcomes if o.arm == "cyborg" and o.seed == 1):
        positive, negative = run.score[run.labels == 1], run.score[run.labels == 0]
        right += [(p > n) + (p == n) / 2 for p in positive for n in negative]
    assert value == pytest.approx(np.mean(right))


def test_domains_left_out_count_once_each():
    parts = [
        make_outcomes(ARMS, seeds=2, images=images, protocol="leave_one_domain_out", folds=(fold,), draw=draw)
        for draw, (fold, images) in enumerate((("ganA", 12), ("ganB", 60)))
    ]
    outcomes = [outcome for part in parts for outcome in part]
    entry = one_set(outcomes)
    runs = [o for o in outcomes if o.arm == "cyborg" and o.seed == 0]
    for name in ("auroc", "accuracy"):
        expected = np.mean([run.metrics[name] for run in runs])
        assert of_arm(entry, "cyborg")["figures"][name]["values"][0] == pytest.approx(expected)
    assert entry["folds"] == ["ganA", "ganB"] and entry["images"] == 72


@pytest.mark.parametrize("protocol", ["published", "k_fold", "leave_one_domain_out"])
def test_test_over_groups_agrees_with_exchanging_really(protocol):
    """Every exchange of whole groups made on the ranks, all seeds and folds together, AUROC from scikit-learn."""
    folds = ("",) if protocol == "published" else ("0", "1")
    outcomes = make_outcomes(ARMS, seeds=2, images=14, groups=3, protocol=protocol, folds=folds, draw=2)
    # A group that two folds test, as a class without domains of its own has: exchanged in both at once.
    joint = lambda group: "shared" if group.endswith("patient0") else group
    outcomes = [o._replace(groups=tuple(map(joint, o.groups))) for o in outcomes]
    found = comparison(one_set(outcomes))
    names = sorted({group for o in outcomes for group in o.groups})
    runs = {(o.arm, o.seed, o.fold): o for o in outcomes}
    pairs = {f: np.prod(np.bincount(runs["cyborg", 0, f].labels)) if protocol == "k_fold" else 1 for f in folds}

    def difference(flipped):
        total = 0.0
        for seed, fold in itertools.product((0, 1), folds):
            first, second = (runs[arm, seed, fold] for arm in ("difference", "cyborg"))
            a, b = rankdata(first.score), rankdata(second.score)
            swap = np.isin(first.groups, flipped)
            areas = [roc_auc_score(first.labels, np.where(swap, *ranks)) for ranks in ((b, a), (a, b))]
            total += (areas[0] - areas[1]) * pairs[fold] / sum(pairs.values()) / 2
        return total

    subsets = [subset for size in range(len(names) + 1) for subset in itertools.combinations(names, size)]
    changed = np.abs([difference(list(subset)) for subset in subsets])
    assert changed[0] == pytest.approx(abs(found["difference"]["mean"]))
    assert found["p_groups"] == pytest.approx((changed >= changed[0] - 1e-9).mean())


def test_bootstrap_agrees_with_resampling_really():
    """One group and one seed less than there are, drawn with replacement, AUROC by counting pairs of repeated rows."""
    outcomes = make_outcomes(ARMS, seeds=3, images=60, groups=12, draw=4)
    entry = one_set(outcomes, resamples=4000)
    runs = {(o.arm, o.seed): o for o in outcomes}
    members = np.unique(runs["cyborg", 0].groups, return_inverse=True)[1]
    rows = [np.flatnonzero(members == group) for group in range(members.max() + 1)]
    rng, drawn = np.random.default_rng(5), []
    while len(drawn) < 1500:
        own = np.concatenate([rows[g] for g in rng.integers(0, len(rows), len(rows) - 1)])
        labels = runs["cyborg", 0].labels[own]

        def area(arm, s, own=own, labels=labels):
            score = runs[arm, s].score[own]
            return (score[labels == 1][:, None] > score[labels == 0][None, :]).mean()  # no two images tie

        drawn.append(np.mean([[area("difference", s), area("cyborg", s)] for s in rng.integers(0, 3, 2)], axis=0))
    first, second = np.transpose(drawn)
    for found, values in (
        (of_arm(entry, "difference")["figures"]["auroc"]["bootstrap"], first),
        (comparison(entry)["difference"]["bootstrap"], first - second),
    ):
        assert found == pytest.approx(np.quantile(values, [0.025, 0.975]).tolist(), abs=0.012)


def test_resampled_folds_weigh_as_the_figure_does():
    """A large fold that the arm hardly parts and a small one that it parts well: pairs decide, or folds alike."""
    for protocol in ("k_fold", "leave_one_domain_out"):
        options = {"seeds": 1, "protocol": protocol}
        large = make_outcomes({"cyborg": 0.2}, images=200, groups=60, folds=("0",), **options)
        small = make_outcomes({"cyborg": 6.0}, images=40, groups=40, folds=("1",), **options)
        area = of_arm(one_set(large + small, resamples=400), "cyborg")["figures"]["auroc"]
        assert np.mean(area["bootstrap"]) == pytest.approx(area["mean"], abs=0.03)
        assert area["bootstrap"][0] < area["mean"] < area["bootstrap"][1]
        assert (area["mean"] > 0.65) == (protocol == "leave_one_domain_out")


def test_what_is_compared_and_corrected():
    strengths = ARMS | {"opposed": 1.1, "opposed_mean_map": 1.0}
    entry = one_set(make_outcomes(strengths, seeds=4), placebos=PLACEBOS | {"opposed": ["opposed_mean_map"]})
    pairs = {(c["arm"], c["other"], c["against"]) for c in entry["comparisons"]}
    assert pairs == {
        ("difference", "cyborg", "reference"),
        ("opposed", "cyborg", "reference"),
        ("cyborg", "cyborg_mean_map", "placebo"),
        ("opposed", "opposed_mean_map", "placebo"),
    }
    ordered = sorted(entry["comparisons"], key=lambda c: c["p"])
    running = 0.0
    for rank, c in enumerate(ordered):
        assert c["p"] == max(c["p_seeds"], c["p_groups"])
        running = max(running, min(1.0, (4 - rank) * c["p"]))
        assert c["p_holm"] == pytest.approx(running)
        assert c["significant"] == (running <= 0.05)


def test_a_clear_difference_is_found_and_its_direction_kept():
    outcomes = make_outcomes({"cyborg": 1.0, "difference": 5.0, "opposed": 0.1}, seeds=8, images=120, groups=40)
    entry = one_set(outcomes)
    better, worse = comparison(entry), comparison(entry, "opposed")
    assert better["significant"] and better["difference"]["mean"] > 0.05 and better["seeds_won"] == 1
    assert worse["significant"] and worse["difference"]["mean"] < -0.05 and worse["seeds_won"] == 0
    assert better["effect_size"] > 1 > -1 > worse["effect_size"]


def test_order_of_runs_and_images_is_of_no_account():
    outcomes = make_outcomes(ARMS, seeds=3, protocol="k_fold", folds=("0", "1"))
    rng = np.random.default_rng(0)

    def shuffled(o):
        order = rng.permutation(len(o.ids))
        pick = lambda names: tuple(names[i] for i in order)
        return o._replace(ids=pick(o.ids), groups=pick(o.groups), labels=o.labels[order], score=o.score[order])

    kept, moved = one_set(outcomes), one_set([outcomes[0], *(shuffled(o) for o in outcomes[1:])])
    assert json.dumps(kept) == json.dumps(moved)


def test_arms_that_are_the_same_do_not_differ():
    outcomes = [o for o in make_outcomes(ARMS) if o.arm == "cyborg"]
    found = comparison(one_set([*outcomes, *(o._replace(arm="difference") for o in outcomes)]))
    assert found["p_seeds"] == found["p_groups"] == found["p_holm"] == 1 and not found["significant"]
    assert found["difference"]["mean"] == 0 and found["effect_size"] is None and found["seeds_won"] == 0.5
    assert found["difference"]["bootstrap"] == [0, 0]


def test_one_seed_has_an_interval_over_images_and_proves_nothing():
    entry = one_set(make_outcomes({"cyborg": 0.5, "difference": 5.0}, seeds=1, images=200, groups=60))
    found, figures = comparison(entry), of_arm(entry, "difference")["figures"]["auroc"]
    assert figures["deviation"] is None and figures["interval"] is None and len(figures["bootstrap"]) == 2
    assert found["p_seeds"] == found["p"] == 1 and found["p_groups"] < 0.05 and not found["significant"]


def test_one_group_proves_nothing():
    entry = one_set(make_outcomes({"cyborg": 0.5, "difference": 5.0}, seeds=8, groups=1))
    found = comparison(entry)
    assert entry["groups"] == 1 and found["p_groups"] == 1 and found["p_seeds"] < 0.05 and not found["significant"]
    assert found["difference"]["bootstrap"] is None and found["difference"]["interval"]


def test_images_without_a_group_stand_for_themselves():
    outcomes = [o._replace(groups=("",) * len(o.ids)) for o in make_outcomes(ARMS, images=30)]
    assert one_set(outcomes)["groups"] == 30


def test_only_common_seeds_are_paired():
    outcomes = make_outcomes(ARMS, seeds=4)
    entry = one_set([o for o in outcomes if (o.arm, o.seed) not in {("cyborg", 0), ("difference", 3)}])
    found = comparison(entry)
    assert found["seeds"] == [1, 2] and found["unpaired"] == [0, 3]
    area = {(o.arm, o.seed): o.metrics["auroc"] for o in outcomes}
    expected = [area["difference", s] - area["cyborg", s] for s in (1, 2)]
    assert found["difference"]["values"] == pytest.approx(expected)
    assert of_arm(entry, "cyborg")["seeds"] == [1, 2, 3]


def test_a_seed_that_lacks_a_fold_counts_nowhere():
    outcomes = make_outcomes(ARMS, seeds=3, protocol="k_fold", folds=("0", "1"))
    entry = one_set([o for o in outcomes if (o.arm, o.seed, o.fold) != ("cyborg", 1, "1")])
    assert of_arm(entry, "cyborg")["seeds"] == [0, 2] and of_arm(entry, "cyborg")["incomplete"] == [1]
    assert comparison(entry)["seeds"] == [0, 2]


def test_what_cannot_be_compared_is_said():
    outcomes = make_outcomes({"difference": 1.0, "contrast": 1.0})
    entry = one_set(outcomes, placebos={"difference": ["difference_mean_map"]})
    assert not entry["comparisons"]
    assert len(entry["missing"]) == 3 and all("no finished seed in common" in text for text in entry["missing"])


def test_a_set_of_one_class_has_no_auroc_and_no_comparison():
    alone = lambda o: o._replace(labels=np.ones_like(o.labels), metrics=o.metrics | {"auroc": None})
    entry = one_set([alone(o) for o in make_outcomes(ARMS)])
    assert of_arm(entry, "cyborg")["figures"]["auroc"] == {
        "values": [None] * 3,
        "mean": None,
        "deviation": None,
        "interval": None,
        "bootstrap": None,
    }
    assert of_arm(entry, "cyborg")["figures"]["accuracy"]["mean"] is not None
    assert not entry["comparisons"] and "lacks a class" in entry["missing"][0]


def test_three_classes_are_compared_over_seeds_alone():
    """The score of class 1 ranks nothing then; the run's own figure is taken."""
    outcomes = [o._replace(labels=np.arange(len(o.labels)) % 3) for o in make_outcomes(ARMS, seeds=4)]
    entry = one_set(outcomes)
    found = comparison(entry)
    assert found["p_groups"] is None and found["p"] == found["p_seeds"] and found["difference"]["bootstrap"] is None
    own = [o.metrics["auroc"] for o in outcomes if o.arm == "cyborg"]
    assert of_arm(entry, "cyborg")["figures"]["auroc"]["values"] == own


def test_validation_is_described_and_never_tested():
    entries = study_statistics(make_outcomes(ARMS, sets=("val", "open")), resamples=20)
    by_set = {entry["set"]: entry for entry in entries}
    assert not by_set["val"]["comparisons"] and by_set["open"]["comparisons"]
    assert of_arm(by_set["val"], "cyborg")["figures"]["auroc"]["mean"] > 0


def test_correlation_of_map_agreement_and_auroc():
    outcomes = make_outcomes({"cyborg": 0.3, "difference": 3.0}, seeds=6)
    level = {"cyborg": 0.9, "difference": 0.1}
    linear = lambda o: o.metrics | {"cc_true": level[o.arm] + 0.1 * o.metrics["auroc"]}
    found = one_set([o._replace(metrics=linear(o)) for o in outcomes])["correlations"]["cc_true"]
    one = pytest.approx(1)
    assert found.pop("over_all") < 0.5, "the arms' levels go the other way"
    assert found == {"runs": 12, "by_arm": dict.fromkeys(level, one), "within_arms": one, "across_arms": None}


def test_contradictions_are_refused():
    outcomes = make_outcomes(ARMS)
    last = outcomes[-1]
    other_ids = last._replace(ids=(*last.ids[:-1], "stranger"))
    for wrong, message in (
        ([], "no outcomes"),
        ([*outcomes, last], "there twice"),
        ([*outcomes[:-1], last._replace(alpha=0.9)], "alpha 0.5 and of 0.9"),
        ([*outcomes[:-1], other_ids], "same images"),
        ([*outcomes[:-1], last._replace(labels=1 - last.labels)], "labels or groups differ"),
        ([*outcomes[:-1], last._replace(ids=(last.ids[0],) * len(last.ids))], "image is there twice"),
        ([*outcomes[:-1], last._replace(score=last.score * np.nan)], "not finite"),
    ):
        with pytest.raises(StudyError, match=message):
            study_statistics(wrong)


def test_controls_follow_their_arm():
    arms = ["a", "a_ring", "b", "alone", "a_mean", "b_mean"]
    ordered = arrange(arms, {"a": ["a_mean", "a_ring", "a_absent"], "b": ["b_mean"]})
    assert ordered == ["a", "a_mean", "a_ring", "b", "b_mean", "alone"]


def test_what_an_arm_is_called():
    """By the strategy given, else by the beginning of the name, in whole words."""
    names = ("cyborg", "difference", "difference_kl", "differences", "mine", "opposed_ring", "energy_t", "order_t")
    entry = one_set(
        make_outcomes(dict.fromkeys(names, 1.0), seeds=2),
        placebos={"opposed": ["opposed_ring"]},
        strategies={"mine": "contrast", "difference_kl": "cyborg"},
    )
    assert {arm["arm"]: (arm["strategy"], arm["kind"]) for arm in entry["arms"]} == {
        "cyborg": ("cyborg", ""),
        "difference": ("difference", "reconstruction"),
        "difference_kl": ("cyborg", ""),
        "differences": ("differences", ""),
        "mine": ("contrast", "reconstruction"),
        "opposed_ring": ("opposed", "placebo"),
        "energy_t": ("energy", ""),
        "order_t": ("order", "own"),
    }
    found = comparison(entry, "mine")
    assert (found["kind"], found["other_kind"]) == ("reconstruction", "")
