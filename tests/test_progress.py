"""What a run says while it trains: lines where there is no terminal, a bar where there is one, then what to type."""

import io
import json
import os
import re
import shlex
import sys

import pytest
from test_resume import Cut, cut
from test_train import make_config
from tiny_manifest import write_manifest

from tfcam_jax import training
from tfcam_jax.run import progress
from tfcam_jax.run.progress import Progress

SCALARS = {
    "train/cross_entropy": 0.5,
    "train/cross_entropy_examples": 4.0,
    "train/cyborg": 0.25,
    "train/cyborg_examples": 2.0,
    "train/grad_norm": 9.0,
}
VALIDATION = {"auroc": 0.8125, "accuracy": 0.75, "cross_entropy": 0.625}


def expected_lines(workdir, alpha):
    """The lines of epochs, from what `metrics.jsonl` holds of them: number, step, losses and validation."""
    told, sums = [], {}
    best = -1.0
    for line in map(json.loads, (workdir / "metrics.jsonl").read_text().splitlines()):
        if "epoch" not in line:
            for name in ("cross_entropy", "opposed"):
                count = line[f"train/{name}_examples"]
                total, examples = sums.get(name, (0, 0))
                sums[name] = total + (line[f"train/{name}"] or 0) * count, examples + count
            continue
        cross_entropy, guidance = (total / count for total, count in sums.values())
        total = alpha * cross_entropy + (1 - alpha) * guidance
        losses = [f"{value:.4f}" for value in (total, cross_entropy, guidance)]
        figures = [f"{line['val/auroc']:.3f}", f"{line['val/accuracy']:.3f}"]
        told.append([str(line["epoch"]), str(line["step"]), *losses, *figures, line["val/accuracy"] >= best])
        best, sums = max(best, line["val/accuracy"]), {}
    return told


LINE = re.compile(
    r"epoch (\d)/3  step (\d)  loss (\S+) \(cross-entropy (\S+), opposed (\S+)\)  val AUROC (\S+), accuracy (\S+)"
    r"  \d+\.\d s(  best accuracy so far)?"
)


def told_epochs(text):
    found = map(LINE.fullmatch, text.splitlines())
    return [[*each.groups()[:-1], bool(each.groups()[-1])] for each in found if each]


@pytest.mark.slow
def test_a_run_without_a_terminal_tells_each_epoch_and_what_to_do_next(tmp_path, capsys, monkeypatch):
    """Also of one that was cut off in an epoch's middle, and of one that has ended."""
    manifest, workdir = write_manifest(tmp_path / "data"), tmp_path / "a run"
    config = make_config(manifest, **{"guidance.alpha": 0.75, "checkpoint_every_steps": 2, "log_every_steps": 5})
    with monkeypatch.context() as patched:
        cut(patched, training.MetricWindow, "add", 9)
        with pytest.raises(Cut):
            training.train(config, workdir)
    first = capsys.readouterr().out
    monkeypatch.setattr(sys, "argv", ["launch/train.py"])
    training.train(config, workdir)
    second = capsys.readouterr().out
    expected = expected_lines(workdir, 0.75)
    cam = "CAM 4x4, 16 places, each 8 px of the 32 px image. Finer: --config.data.image_size=64 (8x8)"
    assert first.splitlines()[0] == second.splitlines()[0] == cam
    assert told_epochs(first) == expected[:2]
    assert "Going on from step 8 of 9, in epoch 3 of 3." in second.splitlines()
    assert told_epochs(second) == expected[2:]
    table = second.index("opposed: best checkpoint, epoch ")
    assert f"\nRun: {workdir} (" in second[table:]
    commands = [shlex.split(line) for line in second.splitlines()[-2:]]
    flag = f"--workdir={workdir}"
    assert [words[1:] for words in commands] == [["launch/evaluate.py", flag], ["launch/explain.py", flag]]
    assert {os.path.abspath(words[0]) for words in commands} == {sys.executable}
    training.train(config, workdir)
    assert "All 3 epochs have been trained before." in capsys.readouterr().out


class Screen(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture
def told(monkeypatch):
    """Tells of an epoch on streams that are a terminal or not, in a process that is the first or not."""

    def tell(out=None, err=None, first=True, alpha=0.75, scalars=SCALARS, select_by="auroc", best=True, quiet=False):
        out, err = out or io.StringIO(), err or io.StringIO()
        monkeypatch.setattr(sys, "stdout", out)
        monkeypatch.setattr(sys, "stderr", err)
        monkeypatch.setattr(progress, "is_first", lambda: first)
        with Progress("cyborg", 20, alpha, select_by, quiet) as run:
            run.start(0, 5)
            run.advance(3, 1, scalars)
            run.advance(5, 1, scalars)
            run.end_epoch(1, 5, VALIDATION, best)
            run.say("end")
        return out.getvalue(), err.getvalue()

    return tell


def test_a_terminal_has_a_bar_with_validation_and_no_lines(told):
    out, err = told(Screen(), Screen())
    assert out.strip() == "end"
    last = err.split("\r")[-1]
    assert "5/100" in last and "epoch=1/20, loss=0.438, val AUROC=0.812, val accuracy=0.750, best=1" in last


def test_a_log_beside_a_terminal_has_the_lines(told):
    out, err = told(err=Screen())
    assert "loss 0.4375 (cross-entropy 0.5000, cyborg 0.2500)" in out and "val AUROC=0.812" in err
    out, err = told(out=Screen())
    assert "epoch  1/20  step   5  loss 0.4375" in out and err == ""


def test_where_a_run_goes_on(monkeypatch):
    screen = Screen()
    monkeypatch.setattr(sys, "stdout", io.StringIO())
    monkeypatch.setattr(sys, "stderr", screen)
    with Progress("cyborg", 20, 0.5, "auroc") as run:
        run.start(8, 5, epoch=1, batch=3, pending=1)
        run.advance(9, 2, SCALARS)  # of steps 8 and 9
    said = "Going on from step 8 of 100, in epoch 2 of 20, whose losses below leave out the first 2 of 5 steps.\n"
    assert sys.stdout.getvalue() == said
    assert "9/100" in screen.getvalue().split("\r")[-1]


def test_a_run_that_was_stopped_before_a_validation(monkeypatch):
    monkeypatch.setattr(sys, "stdout", io.StringIO())
    with Progress("cyborg", 2, 0.5, "auroc") as run:
        run.start(10, 5, epoch=1, batch=5)
        run.end_epoch(2, 10, VALIDATION, best=False)
    going_on, line = sys.stdout.getvalue().splitlines()
    assert going_on.endswith("in epoch 2 of 2, whose losses below leave out the first 5 of 5 steps.")
    assert line.startswith("epoch 2/2  step 10  loss -  val AUROC 0.812, accuracy 0.750  ")


def test_what_steps_found_is_averaged_over_steps(monkeypatch):
    """Lines of three steps and of one; of a run that goes on, the steps whose line was not written count too."""
    monkeypatch.setattr(sys, "stdout", io.StringIO())
    found = lambda alpha, loss: SCALARS | {"train/alpha": alpha, "train/loss": loss}
    with Progress("cyborg", 2, None, "auroc") as run:
        run.start(2, 4, epoch=0, batch=2, pending=2)
        run.advance(3, 1, found(0.2, 1.0))
        run.advance(4, 1, found(0.6, 3.0))
        run.end_epoch(1, 4, VALIDATION, best=False)
    assert "loss 1.5000 (cross-entropy 0.5000, cyborg 0.2500, alpha 0.300)" in sys.stdout.getvalue()


def test_nothing_is_said_quietly_or_by_another_process(told):
    assert told(quiet=True) == told(first=False) == told(Screen(), Screen(), quiet=True) == ("", "")


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"alpha": None, "scalars": dict(list(SCALARS.items())[:2])}, "loss 0.5000 (cross-entropy 0.5000)  val"),
        (
            {"scalars": SCALARS | {"train/cyborg": None, "train/cyborg_examples": 0.0}},
            "loss 0.3750 (cross-entropy 0.5000, cyborg -)",  # as the loss was: a term without examples adds nothing
        ),
        ({"scalars": SCALARS | {"train/third": 1.0, "train/third_examples": 1.0}}, "loss - (cross-entropy 0.5000, cyb"),
        (
            {"alpha": None, "scalars": SCALARS | {"train/alpha": 0.7, "train/loss": 0.42}},
            "loss 0.4200 (cross-entropy 0.5000, cyborg 0.2500, alpha 0.700)",
        ),
        (
            {"scalars": {"train/aligned": 0.25, "train/aligned_examples": 2.0, **dict(list(SCALARS.items())[:2])}},
            "loss 0.4375 (cross-entropy 0.5000, aligned 0.2500)",  # as steps report them, sorted by name
        ),
        ({"select_by": "cross_entropy"}, "accuracy 0.750, cross-entropy 0.625  0.0 s  best cross-entropy so far\n"),
        ({"best": False}, "accuracy 0.750  0.0 s\n"),
    ],
)
def test_the_line_of_an_epoch(told, options, text):
    assert text in told(**options)[0]


def test_lines_reach_a_file_at_once(tmp_path, monkeypatch):
    with (tmp_path / "log").open("w") as log:
        monkeypatch.setattr(sys, "stdout", log)
        Progress("cyborg", 20, 0.5, "auroc").say("now")
        assert (tmp_path / "log").read_text() == "now\n"
