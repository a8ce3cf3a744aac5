"""The fault script: real kills and damaged files, few of each; what it calls by which name."""

import json
import pathlib
import random
import time

import numpy as np
import pytest
from PIL import Image

from configs import default
from tests.stress import faults
from tests.stress import inputs as fault_inputs
from tests.stress import kills as fault_kills
from tests.stress import runs as fault_runs
from tests.stress.inputs import Case

REPO = pathlib.Path(__file__).parent.parent
SOUND = {"train": {"auroc": 0.5}, "continue": {"auroc": 0.6}, "evaluate": {"auroc": 0.7}}


@pytest.mark.end_to_end
def test_kills_and_damages_of_real_processes(tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(REPO))
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", str(tmp_path / "compiled"))
    monkeypatch.setenv("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
    config = fault_runs.small_config(default.get_config(), fault_runs.draw_data(tmp_path / "data"), epochs=2)
    context, until = fault_runs.start_server(), time.monotonic() + 200
    found = fault_kills.kill_runs(config, tmp_path, context, 2, random.Random(3), until)
    assert found.kills == found.exact >= 1 and not found.notes
    counts, notes = fault_inputs.damage_inputs(config, tmp_path, context, 5, random.Random(0), until)
    assert [sum(counts[kind].values()) for kind in fault_inputs.KINDS] == [1] * 5 and not notes


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
    assert fault_inputs._judge(folder, Case(kind, file, "damaged", action), SOUND, answer)[0] == outcome


@pytest.mark.parametrize("kind", ["image", "manifest"])
def test_a_damage_is_of_one_file_and_of_the_copy(folder, kind):
    content = lambda name: {p.relative_to(folder / name): p.read_bytes() for p in (folder / name).rglob("*.*")}
    sound = content("sound")
    for seed in range(20):
        case = fault_inputs._damage(folder, kind, random.Random(seed))
        damaged = content("case")
        differing = [str(path) for path in sound if damaged.get(path) != sound[path]]
        assert differing == [case.file] and content("sound") == sound


def test_the_tables_show_every_figure_and_failure():
    kills = fault_kills.Kills(kills=7, runs=3, exact=6, notes=["parameters differ after SIGKILL at step"])
    counts = {kind: dict.fromkeys(fault_inputs.OUTCOMES, 0) for kind in fault_inputs.KINDS}
    counts["map"]["wrong"] = 4
    study = {
        "asked": {"kills": 9, "inputs": 5},
        "seconds": 61.2,
        "inputs": {"outcomes": counts, "notes": ["wrong: train on x.png"]},
    }
    text = faults.format_faults(study, kills)
    assert text.startswith("7 of 9 kills, 4 of 5 damaged inputs, 61 s")
    assert ["wrong", "0", "4", "0", "0", "0", "4"] in [line.split() for line in text.splitlines()]
    assert "  ! parameters differ after SIGKILL at step" in text and "  ! wrong: train on x.png" in text
    json.dumps(study)
