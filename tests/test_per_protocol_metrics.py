"""Sets, tables of scores and the merging of a leave-one-domain-out study."""

import csv
import dataclasses
import resource

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from tfcam_jax.data.protocol import split_by_domain
from tfcam_jax.metrics.attacks import decide_attack_detection
from tfcam_jax.metrics.classification import equal_error
from tfcam_jax.metrics.per_protocol import leave_one_domain_out, per_protocol_metrics, set_metrics
from tfcam_jax.metrics.protocol_tables import format_evaluation, format_screen
from tfcam_jax.metrics.scores import Scores, ScoresError, join_scores, read_scores, write_scores
from tfcam_jax.metrics.thresholds import choose_thresholds
from tfcam_jax.run.files import WorkdirError


def make_scores(split="test", n=40, seed=0, unseen=("lens",), classes=2):
    """Attacks of the types print and lens, and bona fide images of the domain live, each tile twice."""
    rng = np.random.default_rng(seed)
    labels = np.arange(n) % 2
    domains = tuple("live" if not label else ("print", "lens")[i // 2 % 2] for i, label in enumerate(labels))
    logits = rng.normal(size=(n, classes)).astype(np.float32)
    logits[np.arange(n), labels] += 1
    return Scores(
        ids=tuple(f"{split}/{i}" for i in range(n)),
        splits=(split,) * n,
        labels=labels,
        domains=domains,
        groups=tuple(f"{split}tile{i // 4}" for i in range(n)),
        seen=tuple(domain not in unseen for domain in domains),
        logits=logits,
    )


def evaluation_of(names, metrics, thresholds):
    """What `evaluation.evaluate` gives the tables, without maps."""
    return {
        "epoch": 1,
        "data": "a.csv",
        "split": "test",
        "class_names": names,
        "thresholds": thresholds,
        "thresholds_from": "val",
        "thresholds_on_tested": False,
        "attack_detection": decide_attack_detection("auto", names)._asdict(),
        **metrics,
        "map_agreement": {"all": {"maps": 0, "fooling_gap": 0.25, "shared_variance": 0.5, "map": {}}},
        "faithfulness": {},
    }


def test_each_domain_is_tested_with_the_class_that_it_lacks():
    parts = split_by_domain(["live", "print", "live", "lens", "", "print"], np.array([0, 1, 0, 1, 1, 1]))
    assert {name: rows.tolist() for name, rows in parts.items()} == {
        "lens": [0, 2, 3],
        "live": [0, 1, 2, 3, 4, 5],
        "print": [0, 1, 2, 5],
    }


def test_csv_gives_the_scores_back_bit_for_bit(tmp_path):
    scores = join_scores([make_scores("val"), make_scores("test", seed=1)])
    write_scores(tmp_path / "scores.csv", scores, ("bona fide", "attack, any"))
    read, names = read_scores(tmp_path / "scores.csv")
    assert names == ("bona fide", "attack, any")
    for field in dataclasses.fields(Scores):
        np.testing.assert_array_equal(getattr(read, field.name), getattr(scores, field.name))
    assert [path.name for path in tmp_path.iterdir()] == ["scores.csv"]


def test_csv_holds_both_scores_and_the_prediction(tmp_path):
    scores = make_scores()
    write_scores(tmp_path / "scores.csv", scores, ("live", "attack"))
    with (tmp_path / "scores.csv").open() as file:
        rows = list(csv.DictReader(file))
    for row, (z0, z1) in zip(rows, scores.logits.astype(np.float64), strict=True):
        assert float(row["margin"]) == z1 - z0
        assert float(row["p"]) == pytest.approx(1 / (1 + np.exp(z0 - z1)))
        assert float(row["sigmoid_logit_1"]) == pytest.approx(1 / (1 + np.exp(-z1)))
        assert row["prediction"] == ("attack" if z1 > z0 else "live")
    assert list(rows[0])[:6] == ["id", "split", "label", "domain", "group", "seen"]


def test_a_table_that_can_not_be_written_leaves_the_old_one(tmp_path):
    path, before = tmp_path / "scores.csv", resource.getrlimit(resource.RLIMIT_FSIZE)
    write_scores(path, make_scores(n=2), ("live", "attack"))
    old = path.read_bytes()
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))
        with pytest.raises(WorkdirError, match=r"scores\.csv can't be written"):
            write_scores(path, make_scores(), ("live", "attack"))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert path.read_bytes() == old and list(tmp_path.iterdir()) == [path]


def test_a_class_may_be_called_as_a_column_is():
    metrics = per_protocol_metrics(make_scores("val"), {})
    evaluation = evaluation_of(("images", "accuracy"), metrics, {})
    lines = format_evaluation(evaluation).splitlines()
    assert lines[3].split()[:6] == ["set", "images", "groups", "images", "accuracy", "cross-entropy"]
    assert lines[4].split()[:5] == ["all", "40", "10", "20", "20"]
    assert ["all", "0", "0.2500", "0.5000"] in [line.split() for line in lines]
    assert format_screen(evaluation).splitlines()[3].split()[:4] == ["set", "images", "images", "accuracy"]


@pytest.mark.parametrize("names", [("live", "print"), ("dark", "bright")])
def test_tables_name_attacks_where_the_classes_do(names):
    val, test = make_scores("val", seed=3), make_scores()
    thresholds = choose_thresholds(val.splits, val.labels, val.logits)
    evaluation = evaluation_of(names, per_protocol_metrics(test, thresholds), thresholds)
    for text in (format_evaluation(evaluation), format_screen(evaluation)):
        assert ("APCER" in text and "BPCER" in text) == (names[0] == "live")
    assert ("print (attack); negative: live (bona fide)" in format_evaluation(evaluation)) == (names[0] == "live")


@pytest.mark.parametrize(
    ("names", "shown", "reason"),
    [
        (("Live", "Cosmetic lens"), True, "by their names"),
        (("Real", "Synthetic"), True, "by their names"),
        (("bona_fide", "anything"), True, "by their names"),
        (("normal", "spoof"), True, "by their names"),
        (("real", "cartoon"), False, "no class"),
        (("intact", "defect"), False, "no class"),
        (("fake", "real"), False, "train with --config.data.labels=\"('real','fake')\""),
        (("attack", "live"), False, "class 0, 'attack', is the attack"),
        (("print", "replay"), False, "no class"),
        (("live", "print", "lens"), False, "two classes; there are 3"),
    ],
)
def test_names_decide_whether_a_task_is_attack_detection(names, shown, reason):
    found = decide_attack_detection("auto", names)
    assert found.shown == shown and reason in found.reason
    if len(names) == 2:
        assert [decide_attack_detection(mode, names).shown for mode in ("always", "never")] == [True, False]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "id,split\n",
        "id,label\na,b\n",
        "a\n\x00",
        "id,split,label,domain,group,seen,logit_a\n1,val,b,,,yes,0\n",
    ],
)
def test_other_files_are_no_tables_of_scores(tmp_path, text):
    (tmp_path / "scores.csv").write_text(text)
    with pytest.raises(ScoresError, match=r"scores\.csv"):
        read_scores(tmp_path / "scores.csv")
    with pytest.raises(ScoresError, match="no such"):
        read_scores(tmp_path / "absent.csv")


def test_scores_with_a_column_twice_are_refused(tmp_path):
    (tmp_path / "scores.csv").write_text("id,split,label,domain,group,seen,logit_a,logit_b,logit_a\n")
    with pytest.raises(ScoresError, match=r"a column is there twice: id, .*logit_a, logit_b, logit_a"):
        read_scores(tmp_path / "scores.csv")


def test_logits_that_are_not_finite_are_named():
    scores = make_scores()
    logits = scores.logits.copy()
    logits[7, 1] = np.nan
    with pytest.raises(ScoresError, match="test/7"):
        dataclasses.replace(scores, logits=logits)


def test_figures_of_a_set():
    val, test = make_scores("val", seed=3), make_scores()
    thresholds = choose_thresholds(val.splits, val.labels, val.logits)
    found = per_protocol_metrics(test, thresholds)
    assert list(found["sets"]) == ["all", "closed", "open"] and list(found["domains"]) == ["lens", "live", "print"]
    whole, opened = found["sets"]["all"], found["sets"]["open"]
    assert (whole["images"], whole["groups"], whole["classes"]) == (40, 10, [20, 20])
    assert (opened["images"], opened["classes"]) == (30, [20, 10])  # no unseen bona fide: all of them join
    margin = test.logits[:, 1] - test.logits[:, 0]
    assert whole["scores"]["margin"]["auroc"] == pytest.approx(roc_auc_score(test.labels, margin))
    at = whole["scores"]["margin"]["at"]["eer"]
    assert at["threshold"] == equal_error(val.labels, val.logits[:, 1] - val.logits[:, 0])[1]
    missed = margin[(test.labels == 1) & (np.array(test.domains) == "lens")] < at["threshold"]
    assert at["apcer"]["lens"] == pytest.approx(missed.mean())
    low, high = whole["scores"]["margin"]["bootstrap"]["auroc"]
    assert low < whole["scores"]["margin"]["auroc"] < high
    assert list(per_protocol_metrics(val, thresholds)["sets"]) == ["all"]


def test_more_than_two_classes_and_one_class_alone_have_what_exists_for_them():
    three = set_metrics(make_scores(classes=3), {})
    assert "scores" not in three and three["accuracy"] > 0.4
    scores = make_scores()
    alone = set_metrics(
        scores[np.flatnonzero(scores.labels == 1)], choose_thresholds(("val",) * 40, scores.labels, scores.logits)
    )
    assert alone["auroc"] is None and "auroc" not in alone["scores"]["margin"]
    assert alone["scores"]["margin"]["at"]["eer"]["bpcer"] is None


def test_study_takes_each_domain_from_the_run_that_never_saw_it():
    runs = [
        join_scores([make_scores("val", seed=i + 10), make_scores("test", seed=i, unseen=(name,), n=48)])
        for i, name in enumerate(("print", "lens"))
    ]
    study = leave_one_domain_out(runs)
    assert list(study["domains"]) == ["print", "lens"]
    areas = []
    for run, name in zip(runs, study["domains"], strict=True):
        tested = (np.array(run.splits) == "test") & ((np.array(run.domains) == name) | (run.labels == 0))
        margin = run.logits[:, 1] - run.logits[:, 0]
        areas.append(roc_auc_score(run.labels[tested], margin[tested]))
        assert study["domains"][name]["scores"]["margin"]["auroc"] == pytest.approx(areas[-1])
        val = np.array(run.splits) == "val"
        threshold = equal_error(run.labels[val], margin[val])[1]
        assert study["domains"][name]["scores"]["margin"]["at"]["eer"]["threshold"] == threshold
    assert study["mean"]["auroc"] == pytest.approx(np.mean(areas))
    assert study["deviation"]["auroc"] == pytest.approx(np.std(areas, ddof=1))
    twice = leave_one_domain_out([runs[0], runs[0]])
    assert list(twice["domains"]) == ["print", "print (table 2)"]


def test_study_refuses_runs_that_left_nothing_out_or_have_no_validation():
    test = make_scores("test", unseen=())
    with pytest.raises(ScoresError, match="left none out"):
        leave_one_domain_out([join_scores([make_scores("val"), test])])
    with pytest.raises(ScoresError, match="no image of split val"):
        leave_one_domain_out([make_scores()])
