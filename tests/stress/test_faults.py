"""The fault command: a short form with real processes, and what counts as right, refused and wrong."""

import json
import os
import pathlib
import random
import shutil
import subprocess
import sys

import numpy as np
import pytest
from ml_collections import ConfigDict
from PIL import Image
from stress import commands, faults, hostile, inputs, kills, tally
from stress.runs import draw_data
from stress.scripts import Ended
from stress.worker import Case, restore

from configs import default

SCRIPT = pathlib.Path(__file__).with_name("faults.py")
SOUND = {"train": {"auroc": 0.5}, "continue": {"auroc": 0.6}, "evaluate": {"auroc": 0.7}}


@pytest.mark.end_to_end
@pytest.mark.parametrize(
    ("number", "odd", "races", "minutes"),
    [
        pytest.param(2, 10, 0, 6, marks=[pytest.mark.slow, pytest.mark.timeout(900)]),
        pytest.param(20, 50, 4, 25, marks=[pytest.mark.stress, pytest.mark.timeout(1800)]),
    ],
)
def test_all_is_right_or_refused(tmp_path, number, odd, races, minutes):
    """As a user calls it: from another folder, with nothing on the path."""
    asked = [f"--kills={number}", f"--inputs={odd}", f"--races={races}", "--seed=3", f"--minutes={minutes}"]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    environment["XLA_FLAGS"] += " --xla_force_host_platform_device_count=1"
    command = [sys.executable, SCRIPT, *asked, f"--out={tmp_path}"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=environment, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout == (tmp_path / "faults.txt").read_text()
    study = json.loads((tmp_path / "faults.json").read_text())
    assert study["counts"] and not study["notes"]
    for by_outcome in study["counts"].values():
        assert not any(by_outcome[failure] for failure in tally.FAILURES)


def test_a_wrong_number_is_told_before_anything_runs(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", [str(SCRIPT), "--out=nowhere", "--kills=-1"])
    with pytest.raises(SystemExit):
        faults.main()
    assert "--kills: '-1' is not a number of 0 or more" in capsys.readouterr().err


@pytest.fixture
def folder(tmp_path):
    """A sound folder and a case of it, every file of the case another one."""
    for name in ("sound", "case"):
        (tmp_path / name / "data/images").mkdir(parents=True)
        for suffix in ("png", "jpg"):
            pixels = np.full((8, 8, 3), 50 if name == "sound" else 90, np.uint8)
            Image.fromarray(pixels).save(tmp_path / name / f"data/images/a.{suffix}")
        (tmp_path / name / "data/manifest.csv").write_text(f"split,label\ntrain,{name}\n")
    return tmp_path


RESULT, OTHER = {"result": {"auroc": 0.5}, "warnings": []}, {"result": {"auroc": 0.4}, "warnings": []}
WARNED = ["/run/checkpoints/9/state is damaged: ..."]
refused = lambda message: {"error": message, "traceback": ""}


@pytest.mark.parametrize(
    ("kind", "file", "action", "answer", "outcome"),
    [
        ("damaged images", "data/images/a.png", "train", None, tally.HUNG),
        ("damaged images", "data/images/a.png", "train", refused("DataError: a.png"), tally.REFUSED),
        ("damaged images", "data/images/a.png", "train", refused("DataError: b.png"), tally.UNCLEAR),
        ("damaged images", "data/images/a.png", "train", {"error": "a.png", "traceback": "Trace"}, tally.UNCLEAR),
        ("damaged images", "data/images/a.png", "train", RESULT, tally.RIGHT),
        ("damaged images", "data/images/a.png", "train", OTHER, tally.WRONG),
        ("damaged images", "data/images/a.jpg", "train", OTHER, tally.RIGHT),
        ("damaged images", "data/images/a.jpg", "continue", OTHER, tally.WRONG),
        ("hostile images", "data/images/a.jpg", "train", OTHER, tally.WRONG),
        ("damaged manifests", "data/manifest.csv", "train", OTHER, tally.RIGHT),
        ("damaged manifests", "data/manifest.csv", "continue", OTHER, tally.WRONG),
        ("damaged configs", "run/config.json", "evaluate", OTHER, tally.WRONG),
        ("damaged checkpoints", "run/checkpoints/9/x", "continue", refused("at checkpoints/9"), tally.REFUSED),
        ("damaged checkpoints", "run/checkpoints/9/x", "train", RESULT | {"warnings": WARNED}, tally.RIGHT),
        ("damaged checkpoints", "run/checkpoints/9/x", "continue", OTHER | {"warnings": WARNED}, tally.RIGHT),
        ("damaged checkpoints", "run/checkpoints/9/x", "continue", OTHER, tally.WRONG),
        ("damaged checkpoints", "run/checkpoints/9/x", "evaluate", OTHER | {"warnings": WARNED}, tally.WRONG),
        ("changed data", "images/a.png", "continue", refused("labels of a.png"), tally.REFUSED),
        ("changed data", "images/a.png", "continue", {"result": SOUND["continue"], "warnings": []}, tally.WRONG),
        ("changed data", inputs._TOUCHED, "continue", {"result": SOUND["continue"], "warnings": []}, tally.RIGHT),
        ("changed data", inputs._TOUCHED, "continue", refused(inputs._TOUCHED), tally.UNCLEAR),
    ],
)
def test_outcomes_have_their_names(folder, kind, file, action, answer, outcome):
    assert inputs.judge(folder, Case(kind, file, "damaged", action), SOUND, answer)[0] == outcome


@pytest.mark.parametrize(
    ("answer", "outcome"),
    [
        (refused("ConfigError: config.batch_size is -1"), tally.REFUSED),
        (refused("ConfigError: a value is odd"), tally.UNCLEAR),
        (RESULT, tally.RIGHT),
        ({"result": {"val": {"auroc": float("nan")}}, "warnings": []}, tally.WRONG),
    ],
)
def test_a_value_is_refused_by_its_key_or_gives_figures(folder, answer, outcome):
    assert inputs.judge(folder, Case("config values", "batch_size", "-1", "train", -1), SOUND, answer)[0] == outcome


@pytest.mark.parametrize("kind", ["image", "manifest"])
def test_a_damage_is_of_one_file_and_of_the_copy(folder, monkeypatch, kind):
    monkeypatch.setattr(inputs, "DAMAGED", {kind: inputs.DAMAGED[kind]})
    content = lambda name: {p.relative_to(folder / name): p.read_bytes() for p in (folder / name).rglob("*.*")}
    sound = content("sound")
    for seed in range(20):
        restore(folder)
        case = inputs.damage(ConfigDict(), folder / "case", random.Random(seed), seed)
        damaged = content("case")
        differing = [str(path) for path in sound if damaged.get(path) != sound[path]]
        assert differing == [case.file] and content("sound") == sound


@pytest.mark.parametrize("kind", hostile.FILES)
def test_every_hostile_file_lies_where_a_sound_one_was(tmp_path, monkeypatch, kind):
    draw_data(tmp_path / "sound/data")
    for how, maker in hostile.FILES[kind].items():
        shutil.rmtree(tmp_path / "case", ignore_errors=True)
        shutil.copytree(tmp_path / "sound", tmp_path / "case")
        monkeypatch.setitem(hostile.FILES, kind, {how: maker})
        file, told = hostile.put(tmp_path / "case", kind, random.Random(0))
        assert told == how and os.path.lexists(tmp_path / "case" / file)


def test_values_are_odd_for_keys_that_a_run_has():
    config, seen = default.get_config(), set()
    for seed in range(300):
        key, value = hostile.value_of(config, random.Random(seed))
        seen.add(key)
        assert value in hostile._VALUES[dict(hostile._types(config))[key]] or value != value
    assert len(seen) > 80 and not any(key.startswith("compare.") for key in seen)


@pytest.mark.parametrize(
    ("status", "text", "outcome"),
    [
        (None, "", tally.HUNG),
        (1, "error: /runs/out holds a report already", tally.REFUSED),
        (1, "error: something holds a report already", tally.UNCLEAR),
        (1, "Traceback (most recent call last):\n error: out", tally.UNCLEAR),
        (2, "error: out", tally.UNCLEAR),
    ],
)
def test_a_command_that_wrote_nothing_has_to_name_the_place(status, text, outcome):
    assert commands.outcome_of(Ended(status, text, 0.0), pathlib.Path("runs/out")) == outcome


@pytest.mark.parametrize(
    ("statuses", "left", "outcome"),
    [
        ((0, 1), b"a", tally.REFUSED),
        ((0, 0), b"b", tally.RIGHT),
        ((0, 1), b"b", tally.WRONG),  # the other one's, which was refused
        ((0, 0), b"ab", tally.WRONG),
        ((1, 1), None, tally.WRONG),  # neither of them did it
        ((0, None), b"a", tally.HUNG),
    ],
)
def test_a_race_has_to_leave_what_one_of_them_makes(tmp_path, statuses, left, outcome):
    out = tmp_path / "out"
    if left is not None:
        out.mkdir()
        (out / "file").write_bytes(left)
    ended = [Ended(status, "" if status == 0 else f"error: {out} is taken", 0.0) for status in statuses]
    wanted = [{"file": each} for each, end in zip((b"a", b"b"), ended, strict=True) if end.status == 0]
    assert commands._of_race(ended, out, wanted, "a race")[0] == outcome


def test_the_table_shows_every_figure_and_failure():
    found = tally.Tally()
    for outcome in (tally.RIGHT, tally.RIGHT, tally.REFUSED):
        found.add("damaged maps", outcome, "train on x.png", peak=700.4)
    found.add("races", tally.WRONG, "explain and explain", "0: done", 3000.0)
    found.add("races", tally.RIGHT, "export and export", peak=2500.0)
    found.join(faults.tally_of(kills.Kills(kills=7, runs=3, exact=6, notes=["parameters differ after SIGKILL"])))
    study = {"asked": {"kills": 9, "inputs": 5, "races": 2}, "seconds": 61.2}
    text = faults.format_faults(study, found, kills.Kills())
    lines = [line.split() for line in text.splitlines()]
    assert text.startswith("12 trials of 9 kills, 5 inputs and 2 races asked for, 61 s")
    assert ["damaged", "maps", "3", "1", "2", "0", "0", "0", "700"] in lines
    assert ["kills", "of", "training", "7", "0", "6", "1", "0", "0", "-"] in lines
    assert ["all", "12", "1", "9", "2", "0", "0", "3000"] in lines
    assert "  ! races, wrong: explain and explain: 0: done" in text
    assert "  ! races, 2500 MiB: export and export" in text and "parameters differ after SIGKILL" in text
