"""Score files of others: what is read, and figures against counts made by hand and by loops."""

import json
import pathlib
import subprocess
import sys

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from tfcam_jax.metrics.published_protocol import published_protocol
from tfcam_jax.metrics.score_files import ScoreFileError, read_score_file, score_files

SCRIPT = pathlib.Path(__file__).parents[1] / "launch/score.py"
ROWS = "1,0.9,print\n1,0.4,print\n1,0.5,lens\n0,0.1,live\n0,-1.0,live\n0,0.3,live\n"


def write(folder, text, name="a.csv"):
    path = folder / name
    path.write_text(text)
    return path


def test_a_file_without_a_header_has_truth_score_and_type(tmp_path):
    file = read_score_file(write(tmp_path, ROWS))
    assert file.labels.tolist() == [1, 1, 1, 0, 0, 0] and file.types[:3] == ("print", "print", "lens")
    assert file.score.tolist() == [0.9, 0.4, 0.5, 0.1, 1.0, 0.3]  # no answer counts as called an attack
    assert file.answered.tolist() == [True] * 4 + [False, True] and set(file.groups) == {""}


def test_a_header_may_stand_in_any_order_and_truth_may_be_named(tmp_path):
    text = "video,Prediction,truth\nv1,0.2,live\nv1,0.4,Live\nv2,0.8,spoof\n"
    file = read_score_file(write(tmp_path, text))
    assert file.labels.tolist() == [0, 0, 1] and file.groups == ("v1", "v1", "v2") and file.types == ("",) * 3


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "no row"),
        ("1,0.5,a\n2,0.5,a\n", "row 2: truth '2'"),
        ("1,0.5,a\nmaybe,0.5,a\n", "row 2: truth 'maybe'"),
        ("1,1.5,a\n", "row 1: score 1.5"),
        ("1,nan,a\n", "row 1: score nan"),
        ("1,x,a\n", "row 1: could not convert"),
        ("1\n", "row 1: 1 cells"),
        ("truth,sccore\n1,0.5\n", "no column is its score"),
        ("truth,label,score\n1,1,0.5\n", "2 columns are its truth"),
    ],
)
def test_other_files_are_refused_by_row(tmp_path, text, message):
    with pytest.raises(ScoreFileError) as error:
        read_score_file(write(tmp_path, text))
    assert message in str(error.value) and "a.csv" in str(error.value)
    with pytest.raises(ScoreFileError, match="no such file"):
        read_score_file(tmp_path / "nowhere.csv")


def test_figures_by_hand(tmp_path, capsys):
    measured = score_files([str(write(tmp_path, ROWS))])
    text = capsys.readouterr().out
    images = measured["a"]["levels"]["images"]
    assert list(measured["a"]["levels"]) == ["images"]  # nothing says which images belong together
    fixed = images["fixed"]
    assert (fixed["bpcer"], fixed["apcer_pooled"], fixed["apcer"]) == (1 / 3, 1 / 3, {"lens": 0.0, "print": 0.5})
    assert measured["a"]["unanswered"] == pytest.approx(1 / 6)
    # 1, 5 and 10 % of three bona fides are none: the threshold lies above the largest, here that without an answer.
    assert {at["apcer_pooled"] for at in images["at_bpcer"].values()} == {1.0}
    assert "lens" in text and "33.3" in text


def draw(count=400, seed=0):
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 2, count)
    score = np.clip(rng.normal(0.35 + 0.25 * labels, 0.2), 0, 1)
    types = np.where(labels == 1, rng.choice(["print", "lens"], count), "live").tolist()
    return labels, score, types, [f"v{i // 5}" for i in range(count)]


def test_thresholds_are_those_of_the_tested_bona_fides():
    labels, score, types, groups = draw()
    found = published_protocol(labels, score, types, groups)["images"]
    assert found["auroc"] == pytest.approx(roc_auc_score(labels, score))
    negatives = sorted(score[labels == 0])
    for rate, at in found["at_bpcer"].items():
        candidates = [t for t in [*np.unique(score), 2.0] if np.mean([s >= t for s in negatives]) <= float(rate)]
        expected = np.mean([s < min(candidates) for s in score[labels == 1]])
        assert at["apcer_pooled"] == pytest.approx(expected) and at["bpcer"] <= float(rate)
        assert at["apcer_max"] == max(at["apcer"].values()) and set(at["apcer"]) == {"print", "lens"}


def test_a_group_has_the_mean_and_the_largest_score_of_its_images():
    labels, score, types, groups = draw()
    levels = published_protocol(labels, score, types, groups)
    members = {}
    for row, key in enumerate(zip(groups, labels, types, strict=True)):
        members.setdefault(key, []).append(score[row])
    truth = [key[1] for key in members]
    for name, pool in (("mean", np.mean), ("max", max)):
        level = levels[f"group {name}"]
        assert level["number"] == len(members)
        assert level["auroc"] == pytest.approx(roc_auc_score(truth, [pool(values) for values in members.values()]))


def test_one_class_alone_has_its_own_error_and_no_other():
    labels, score, _, _ = draw()
    count = int(labels.sum())
    attacks = published_protocol(labels[labels == 1], score[labels == 1], ["print"] * count, [""] * count)
    assert attacks["images"]["at_bpcer"] == {} and "auroc" not in attacks["images"]
    assert attacks["images"]["fixed"]["bpcer"] is None and attacks["images"]["fixed"]["apcer_pooled"] > 0


@pytest.mark.slow
@pytest.mark.end_to_end
def test_the_script_prints_and_writes_both(tmp_path):
    for name in ("b.csv", "c.csv"):
        write(tmp_path, ROWS, name)
    command = [sys.executable, SCRIPT, f"--scores={tmp_path}/*.csv", f"--out={tmp_path / 'out'}"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout == (tmp_path / "out/scores.txt").read_text()
    assert list(json.loads((tmp_path / "out/scores.json").read_text())) == ["b", "c"]
    done = subprocess.run([*command[:2], "--scores=gone.csv"], capture_output=True, text=True, check=False)
    assert done.returncode == 1 and done.stderr.startswith("error: gone.csv: no such file of scores")
