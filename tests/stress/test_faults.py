"""The fault command: real kills and damaged files, few of each in every run of the suite; what has which name."""

import json
import os
import pathlib
import random
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image
from stress import faults, inputs, kills
from stress.inputs import Case

SCRIPT = pathlib.Path(__file__).with_name("faults.py")
SOUND = {"train": {"auroc": 0.5}, "continue": {"auroc": 0.6}, "evaluate": {"auroc": 0.7}}


@pytest.mark.end_to_end
@pytest.mark.parametrize(
    ("number", "damaged", "minutes"),
    [
        pytest.param(2, 5, 3, marks=pytest.mark.slow),
        pytest.param(20, 50, 8, marks=[pytest.mark.stress, pytest.mark.timeout(600)]),
    ],
)
def test_kills_and_damages_of_real_processes(tmp_path, number, damaged, minutes):
    """As a user calls it: from another folder, with nothing on the path."""
    asked = [f"--kills={number}", f"--inputs={damaged}", "--seed=3", f"--minutes={minutes}", f"--out={tmp_path}"]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    environment["XLA_FLAGS"] += " --xla_force_host_platform_device_count=1"
    command = [sys.executable, SCRIPT, *asked]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=environment, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout == (tmp_path / "faults.txt").read_text()
    study = json.loads((tmp_path / "faults.json").read_text())
    assert study["kills"]["kills"] == study["kills"]["exact"] >= 1 and not study["kills"]["notes"]
    counts = study["inputs"]["outcomes"]
    assert [sum(counts[kind].values()) for kind in inputs.KINDS] == [damaged / 5] * 5 and not study["inputs"]["notes"]


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


@pytest.mark.parametrize(
    ("kind", "file", "action", "answer", "outcome"),
    [
        ("image", "data/images/a.png", "train", None, "hang"),
        ("image", "data/images/a.png", "train", {"error": "DataError: a.png", "traceback": ""}, "named"),
        ("image", "data/images/a.png", "train", {"error": "DataError: b.png", "traceback": ""}, "unnamed"),
        ("image", "data/images/a.png", "train", {"error": "KeyError: a.png", "traceback": "Trace"}, "unnamed"),
        ("image", "data/images/a.png", "train", RESULT, "same"),
        ("image", "data/images/a.png", "train", OTHER, "wrong"),
        ("image", "data/images/a.jpg", "train", OTHER, "pixels"),
        ("manifest", "data/manifest.csv", "train", OTHER, "rows"),
        ("config", "run/config.json", "evaluate", OTHER, "wrong"),
        ("checkpoint", "run/checkpoints/9/x", "continue", {"error": "at checkpoints/9", "traceback": ""}, "named"),
        ("checkpoint", "run/checkpoints/9/x", "train", RESULT | {"warnings": WARNED}, "recovered"),
        ("checkpoint", "run/checkpoints/9/x", "continue", OTHER | {"warnings": WARNED}, "replaced"),
        ("checkpoint", "run/checkpoints/9/x", "continue", OTHER, "wrong"),
        ("checkpoint", "run/checkpoints/9/x", "evaluate", OTHER | {"warnings": WARNED}, "wrong"),
    ],
)
def test_outcomes_have_their_names(folder, kind, file, action, answer, outcome):
    assert inputs._judge(folder, Case(kind, file, "damaged", action), SOUND, answer)[0] == outcome


@pytest.mark.parametrize("kind", ["image", "manifest"])
def test_a_damage_is_of_one_file_and_of_the_copy(folder, kind):
    content = lambda name: {p.relative_to(folder / name): p.read_bytes() for p in (folder / name).rglob("*.*")}
    sound = content("sound")
    for seed in range(20):
        case = inputs._damage(folder, kind, random.Random(seed))
        damaged = content("case")
        differing = [str(path) for path in sound if damaged.get(path) != sound[path]]
        assert differing == [case.file] and content("sound") == sound


def test_the_tables_show_every_figure_and_failure():
    found = kills.Kills(kills=7, runs=3, exact=6, notes=["parameters differ after SIGKILL at step"])
    counts = {kind: dict.fromkeys(inputs.OUTCOMES, 0) for kind in inputs.KINDS}
    counts["map"]["wrong"] = 4
    study = {
        "asked": {"kills": 9, "inputs": 5},
        "seconds": 61.2,
        "inputs": {"outcomes": counts, "notes": ["wrong: train on x.png"]},
    }
    text = faults.format_faults(study, found)
    assert text.startswith("7 of 9 kills, 4 of 5 damaged inputs, 61 s")
    assert ["wrong", "0", "4", "0", "0", "0", "4"] in [line.split() for line in text.splitlines()]
    assert "  ! parameters differ after SIGKILL at step" in text and "  ! wrong: train on x.png" in text
    json.dumps(study)
