"""Evaluation of a finished run: from its folder alone, on its own and on other data, and what it refuses."""

import json
import shutil
import subprocess
import sys

import jax
import numpy as np
import pytest
from absl import logging
from scipy.stats import pearsonr
from sklearn.metrics import roc_auc_score
from tiny_manifest import write_manifest

from tfcam_jax.data.source import DataError
from tfcam_jax.data.unlisted import open_image_folder
from tfcam_jax.errors import OutputError
from tfcam_jax.evaluation import evaluate, evaluate_leave_one_domain_out
from tfcam_jax.experiment import open_dataset
from tfcam_jax.explanation import explain
from tfcam_jax.inference import join_outputs, restore
from tfcam_jax.metrics.scores import ScoresError, read_scores
from tfcam_jax.metrics.thresholds import SelectionError
from tfcam_jax.run.checkpoints import CheckpointError
from tfcam_jax.run.files import WorkdirError
from tfcam_jax.run.workdir import check_workdir


@pytest.fixture(scope="module")
def workdir(trained_run):
    return trained_run


@pytest.fixture(scope="module")
def evaluation(workdir, tmp_path_factory):
    out = tmp_path_factory.mktemp("evaluation")
    return out, evaluate(workdir, out=out, faithfulness_images=6)


@pytest.fixture
def lone_run(workdir, tmp_path):
    """The workdir, moved away from its data, which are not there any more."""
    moved = shutil.copytree(workdir, tmp_path / "moved")
    config = json.loads((moved / "config.json").read_text())
    config["data"]["manifest"] = "gone/manifest.csv"
    (moved / "config.json").write_text(json.dumps(config))
    return moved


@pytest.mark.slow
def test_the_runs_own_data_are_those_that_it_was_trained_on(workdir, tmp_path, caplog):
    """A label, a map and an image that changed since are named; accepted, the run's own record stays as it was."""
    data, run = shutil.copytree(workdir.parent / "data", tmp_path / "data"), shutil.copytree(workdir, tmp_path / "run")
    config = json.loads((run / "config.json").read_text())
    config["data"]["manifest"] = str(data / "manifest.csv")
    (run / "config.json").write_text(json.dumps(config))
    here = {"out": tmp_path / "evaluation", "faithfulness_images": 0}
    as_trained, kept = evaluate(run, **here), (run / "data.json").read_bytes()
    rows = (data / "manifest.csv").read_text()
    (data / "manifest.csv").write_text(rows.replace("test,dark,images/test4", "test,bright,images/test4"))
    shutil.copy(data / "maps/val0.png", data / "maps/val2.png")
    shutil.copy(data / "images/train1.png", data / "images/train3.png")
    for verb in (evaluate, explain):
        with pytest.raises(DataError) as refused:
            verb(run, out=tmp_path / "other")
        assert str(refused.value).splitlines()[1:-1] == [
            "  train: content of 1 image (images/train3.png)",
            "  val: human maps of 1 image (images/val2.png)",
            "  test: labels of 1 image (images/test4.png)",
        ]
    assert not (tmp_path / "other").exists() and not [each for each in caplog.records if each.levelno >= 30]
    found = evaluate(run, **here, accept_changed_data=True)
    assert "test: labels of 1 image (images/test4.png)" in caplog.text and (run / "data.json").read_bytes() == kept
    assert found["data_fingerprint"] != as_trained["data_fingerprint"]


def files(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_files_hold_what_is_returned(evaluation):
    out, found = evaluation
    assert sorted(path.name for path in out.iterdir()) == ["evaluation.json", "scores.csv", "tables.txt"]
    assert json.loads((out / "evaluation.json").read_text()) == found
    text = (out / "tables.txt").read_text()
    for words in ("closed", "open", "val EER", "Newcombe", "Positive: bright;", "sigmoid(z_1)", "ROAD least"):
        assert words in text
    # The classes are no attacks: JSON has the figures all the same.
    assert "APCER" not in text and "Attack detection is left out: no class is named as an attack" in text
    assert 0 <= found["sets"]["all"]["scores"]["margin"]["at"]["eer"]["apcer_pooled"] <= 1


def test_the_screen_is_short_and_each_part_tells_its_seconds(workdir, tmp_path, capsys):
    evaluate(workdir, out=tmp_path, faithfulness_images=0)
    told = capsys.readouterr()
    lines = told.out.splitlines()
    assert len(lines) <= 40 and max(len(line) for line in lines if "/" not in line) <= 120  # but for paths
    assert "epoch" in lines[0] and str(tmp_path / "tables.txt") in told.out
    row = next(line.split() for line in lines if line.startswith("closed *"))
    low, high = map(float, row[6].split(".."))
    assert low <= float(row[5]) <= high and high - low > 0.1  # six images: also where they are parted completely
    for part in ("opened", "scores and maps of 12 test images", "scores of 8 val images", "agreement"):
        assert any(part in line and line.endswith(" s") for line in told.err.splitlines()), part


def test_figures_are_those_of_training_and_of_the_scores(workdir, evaluation):
    out, found = evaluation
    results = json.loads((workdir / "results.json").read_text())
    for name in ("closed", "open"):
        for key in ("images", "accuracy", "auroc"):
            assert found["sets"][name][key] == pytest.approx(results["sets"][name][key])
        for kind, key in (("T", "true"), ("U", "false"), ("D", "difference")):
            cc = results["sets"][name]["map_agreement"][key]
            assert found["map_agreement"][name]["map"][kind]["cc"] == pytest.approx(cc, abs=1e-5)
        for key in ("positive_inside", "above_outside", "fooling_gap", "shared_variance"):
            assert found["map_agreement"][name][key] == pytest.approx(results["sets"][name][key], abs=1e-4), key
    assert found["thresholds"]["margin"] == pytest.approx(results["thresholds"]["margin"], abs=1e-4)
    scores, names = read_scores(out / "scores.csv")
    assert names == ("dark", "bright") and scores.splits == ("val",) * 8 + ("test",) * 12
    test = scores[np.flatnonzero(np.array(scores.splits) == "test")]
    assert test.seen == (True,) * 6 + (False,) * 6
    area = roc_auc_score(test.labels, test.logits[:, 1] - test.logits[:, 0])
    assert found["sets"]["all"]["scores"]["margin"]["auroc"] == pytest.approx(area)
    assert list(found["domains"]) == ["new", "old"]


def test_agreement_at_map_resolution_by_hand(workdir, evaluation):
    trained = restore(workdir)
    test = open_dataset(trained.recipe).splits["test"]
    predictions = join_outputs(output for output, _ in trained.outputs(test))
    pairs = [
        (t - u, s)
        for t, u, s, v in zip(
            predictions.true_map, predictions.false_map, predictions.saliency, predictions.usable, strict=True
        )
        if v
    ]
    expected = np.mean([pearsonr(d.ravel(), s.ravel()).statistic for d, s in pairs])
    entry = evaluation[1]["map_agreement"]["all"]
    assert entry["maps"] == len(pairs) == 9
    assert entry["map"]["D"]["cc"] == pytest.approx(expected, abs=1e-5)
    assert entry["image"]["D"]["cc"] != pytest.approx(expected, abs=1e-3)


def test_faithful_maps_beat_the_random_order(evaluation):
    """The squares are found by a model that has learned them: taking D's first places away hurts the most."""
    maps = evaluation[1]["faithfulness"]["maps"]
    assert evaluation[1]["faithfulness"]["images"] == 6
    assert set(maps) == {"T", "|U|", "D", "random"}
    for entry in maps.values():
        curves = entry["curves"]
        assert len(curves["deletion"]) == 11 and len(curves["road_most"]) == 4
        # At the ends nothing or everything was replaced, whatever the order.
        assert curves["deletion"][0] == pytest.approx(maps["D"]["curves"]["deletion"][0])
        assert curves["insertion"][-1] == pytest.approx(curves["deletion"][0], abs=1e-5)
        assert curves["deletion"][-1] == pytest.approx(maps["D"]["curves"]["deletion"][-1])
    assert maps["D"]["road_gap"] > maps["random"]["road_gap"]
    assert all(abs(maps["D"][key]) <= 1 for key in ("random_head", "random_weights"))


def test_other_data_need_neither_the_old_ones_nor_a_training_split(lone_run, evaluation, tmp_path):
    manifest = write_manifest(tmp_path / "other", seed=5)
    lines = manifest.read_text().splitlines(keepends=True)
    manifest.write_text("".join([lines[0], *[line for line in lines if line.startswith("test")]]))
    found = evaluate(lone_run, data=manifest, faithfulness_images=0)
    assert found["data"] == str(manifest)
    results = json.loads((lone_run / "results.json").read_text())
    assert found["thresholds"] == results["thresholds"] and found["faithfulness"] == {}
    assert found["sets"]["all"]["images"] == 12 and found["sets"]["open"]["images"] == 6
    assert (lone_run / "evaluation_other/scores.csv").exists() and not (lone_run / "evaluation").exists()
    again = write_manifest(tmp_path / "elsewhere/other", seed=6)
    with pytest.raises(WorkdirError, match=r"evaluation_other holds the evaluation of .*give --out"):
        evaluate(lone_run, data=again, faithfulness_images=0)
    with pytest.raises(DataError, match="no row has split 'val'"):
        evaluate(lone_run, data=manifest, thresholds="data", out=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_thresholds_can_come_from_the_new_datas_validation(lone_run, tmp_path):
    manifest = write_manifest(tmp_path / "other", seed=5, val=20)
    found = evaluate(lone_run, data=manifest, thresholds="data", faithfulness_images=0)
    scores, _ = read_scores(lone_run / "evaluation_other/scores.csv")
    assert scores.splits.count("val") == 20
    assert found["thresholds"] != json.loads((lone_run / "results.json").read_text())["thresholds"]
    assert "val of the new data EER" in (lone_run / "evaluation_other/tables.txt").read_text()
    with pytest.raises(SelectionError, match="the ones evaluated"):
        evaluate(lone_run, data=manifest, split="val", thresholds="data")
    with pytest.raises(SelectionError, match="no --data is given"):
        evaluate(lone_run, thresholds="data")


def test_a_config_of_before_the_key_is_read_and_the_key_may_be_set_later(lone_run, tmp_path):
    manifest = write_manifest(tmp_path / "other", seed=5)
    config = json.loads((lone_run / "config.json").read_text())
    del config["evaluation"]["attack_detection"]
    (lone_run / "config.json").write_text(json.dumps(config))
    assert check_workdir(lone_run, config | {"evaluation": config["evaluation"] | {"attack_detection": "never"}})
    evaluate(lone_run, data=manifest, faithfulness_images=0, out=tmp_path / "auto")
    config["evaluation"]["attack_detection"] = "always"
    (lone_run / "config.json").write_text(json.dumps(config))
    evaluate(lone_run, data=manifest, faithfulness_images=0, out=tmp_path / "always")
    texts = [(tmp_path / name / "tables.txt").read_text() for name in ("auto", "always")]
    assert ["APCER max" in text for text in texts] == [False, True]
    assert "Positive: bright (attack); negative: dark (bona fide)." in texts[1]


def test_thresholds_from_test_data_are_refused(workdir, tmp_path):
    with pytest.raises(SelectionError, match="'test'"):
        evaluate(workdir, thresholds="test", out=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_validation_alone(workdir, tmp_path):
    found = evaluate(workdir, split="val", out=tmp_path, faithfulness_images=0)
    assert (found["split"], list(found["sets"]), found["sets"]["all"]["images"]) == ("val", ["all"], 8)
    assert found["thresholds_on_tested"] and "chosen on these very images" in (tmp_path / "tables.txt").read_text()


def test_classes_that_do_not_match_are_named(workdir, tmp_path):
    manifest = write_manifest(tmp_path / "other")
    manifest.write_text(manifest.read_text().replace("bright", "brilliant"))
    with pytest.raises(DataError, match=r"row \d+: label 'brilliant', but the model knows 'dark', 'bright'"):
        evaluate(workdir, data=manifest, out=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_run_needs_a_sound_finished_checkpoint(workdir, tmp_path):
    with pytest.raises(WorkdirError, match="holds no run"):
        evaluate(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(WorkdirError, match="damaged"):
        evaluate(tmp_path)
    (tmp_path / "config.json").write_bytes((workdir / "config.json").read_bytes())
    with pytest.raises(CheckpointError, match="no best checkpoint"):
        evaluate(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["config.json"]


def test_damaged_checkpoint_is_named(lone_run):
    for path in (lone_run / "checkpoints").rglob("*"):
        if path.is_file():
            path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(
        CheckpointError, match=r"checkpoints/\d+/record is damaged.*No other validated checkpoint is sound"
    ):
        evaluate(lone_run)


def test_unfinished_training_has_no_thresholds(lone_run, tmp_path):
    (lone_run / "results.json").unlink()
    manifest = write_manifest(tmp_path / "other")
    with pytest.raises(WorkdirError, match="the training has not ended"):
        evaluate(lone_run, data=manifest)
    assert not (lone_run / "evaluation").exists()


@pytest.mark.slow
def test_scores_do_not_depend_on_the_number_of_devices(workdir):
    """These tests run on two virtual devices; another process has three."""
    code = f"""
import os, sys
os.environ["XLA_FLAGS"] += " --xla_force_host_platform_device_count=3"
import jax
from tfcam_jax.evaluation import score_source
from tfcam_jax.experiment import open_dataset
from tfcam_jax.inference import restore
assert jax.device_count() == 3
trained = restore({str(workdir)!r})
print(score_source(trained, open_dataset(trained.recipe).splits["test"], "test")[0].logits.tolist())
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    trained = restore(workdir)
    assert jax.device_count() == 2
    here = join_outputs(output for output, _ in trained.outputs(open_dataset(trained.recipe).splits["test"]))
    np.testing.assert_allclose(json.loads(done.stdout), here.logits, atol=1e-5)


def test_study_of_several_evaluations(evaluation, tmp_path, capsys):
    out, _ = evaluation
    study = evaluate_leave_one_domain_out([out, out / "scores.csv"], tmp_path / "study")
    assert list(study["domains"]) == ["new", "new (table 2)"] and study["deviation"]["auroc"] == 0
    assert json.loads((tmp_path / "study/leave_one_domain_out.json").read_text()) == study
    assert "left out" in capsys.readouterr().out
    (tmp_path / "other.csv").write_text((out / "scores.csv").read_text().replace("bright", "bold"))
    with pytest.raises(ScoresError, match="dark, bold"):
        evaluate_leave_one_domain_out([out, tmp_path / "other.csv"])


def test_folder_of_images_names_every_bad_file(tmp_path, caplog):
    with pytest.raises(DataError, match="no such folder"):
        open_image_folder(tmp_path / "absent", 3)
    (tmp_path / "notes.txt").write_text("x")
    with pytest.raises(DataError, match="no image in it"):
        open_image_folder(tmp_path, 3)
    write_manifest(tmp_path / "data", train=2, val=2, test=2)
    source = open_image_folder(tmp_path / "data/images", 3)
    assert source.records.ids == tuple(sorted(f"{split}{i}.png" for split in ("train", "val", "test") for i in (0, 1)))
    assert set(source.records.labels) == {-1} and source[0].image.shape == (32, 32, 3)
    shutil.copytree(tmp_path / "data/images", tmp_path / "mixed")
    for name in ("test0_map.png", "test1-mask.PNG", "lost_map.png"):
        shutil.copy(tmp_path / "data/maps/test0.png", tmp_path / "mixed" / name)
    shutil.copy(tmp_path / "data/manifest.csv", tmp_path / "mixed/mine.csv")
    (tmp_path / "mixed/other.csv").write_text("file,score")
    logging.get_absl_logger().propagate = True
    assert {*open_image_folder(tmp_path / "mixed", 3).records.ids} == {*source.records.ids, "lost_map.png"}
    assert [record.getMessage() for record in caplog.records] == [
        f"{tmp_path / 'mixed'}: 1 file is no image and was left out: other.csv; 2 are maps of other images by name and "
        "left out (rename what is none): test0_map.png, test1-mask.PNG"
    ]
    (tmp_path / "data/images/val0.png").write_bytes(b"no")
    (tmp_path / "data/images/deep").mkdir()
    (tmp_path / "data/images/deep/cut.JPG").write_bytes(b"\xff\xd8\xff")
    with pytest.raises(DataError) as caught:
        open_image_folder(tmp_path / "data/images", 3)
    assert len(caught.value.problems) == 2 and "deep/cut.JPG" in str(caught.value) and "val0.png" in str(caught.value)


@pytest.mark.parametrize("names", [["notes.txt"], ["evaluation.json", "notes.txt"], ["scores.csv"]])
def test_an_evaluation_replaces_no_files_of_others(workdir, tmp_path, names):
    for name in names:
        (tmp_path / name).write_text("of somebody")
    with pytest.raises(OutputError, match=f"holds {names[-1]}, which is not of an evaluation"):
        evaluate(workdir, out=tmp_path, faithfulness_images=0)
    assert sorted(path.name for path in tmp_path.iterdir()) == names
    with pytest.raises(OutputError, match="which is not of an evaluation"):
        evaluate(workdir, out=workdir)


def test_what_is_no_run_stays_as_it_is(tmp_path):
    with pytest.raises(WorkdirError, match="holds no run"):
        evaluate(tmp_path / "absent")
    assert not list(tmp_path.iterdir())
