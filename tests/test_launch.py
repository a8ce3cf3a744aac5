"""The launch scripts as users call them, on real files."""

import errno
import importlib
import os
import pathlib
import shlex
import signal
import subprocess
import sys

import pytest
from tiny_manifest import write_manifest

from tfcam_jax.errors import ConfigError
from tfcam_jax.run.interruption import StoppedError

REPO = pathlib.Path(__file__).parent.parent


def launch(script, *arguments, path=""):
    """Runs a script from another folder than the repository's, as a user may; `path`: put before all other modules."""
    command = [sys.executable, "-W", "error::DeprecationWarning:tfcam_jax", REPO / "launch" / script, *arguments]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, [str(path), os.environ.get("PYTHONPATH")]))}
    return subprocess.run(command, capture_output=True, text=True, cwd=REPO.parent, timeout=240, env=environment)


@pytest.fixture
def other_frameworks(tmp_path):
    """A folder with a `tensorflow` and a `torch` that leave a note when they are imported."""
    for name in ("tensorflow", "torch"):
        (tmp_path / "frameworks" / name).mkdir(parents=True)
        note = f"open({str(tmp_path / name)!r}, 'w').close()\n"
        (tmp_path / "frameworks" / name / "__init__.py").write_text(note)
    return tmp_path / "frameworks"


@pytest.mark.slow
@pytest.mark.end_to_end
def test_train_evaluate_explain(tmp_path, other_frameworks):
    """Also: TensorFlow and PyTorch are imported nowhere, though they are installed."""
    manifest, workdir = write_manifest(tmp_path / "data"), tmp_path / "run"
    trained = launch(
        "train.py",
        f"--config={REPO / 'configs/manifest.py'}",
        f"--config.data.manifest={manifest}",
        "--config.data.labels=('dark', 'bright')",
        "--config.data.image_size=32",
        "--config.model.name=small_cnn",
        "--config.strategy=difference",
        "--config.epochs=2",
        "--config.evaluation.batch_size=4",
        f"--workdir={workdir}",
        path=other_frameworks,
    )
    assert trained.returncode == 0, trained.stderr
    said = trained.stdout.splitlines()
    assert [line.split()[0] for line in said[:5]] == ["CAM", "Human", *2 * ["epoch"], "Of"]
    assert "waiting" in said[4] or "waited" in said[4], said[4]
    assert [line.split()[0] for line in said[5:10]] == ["difference:", "set", "val", "closed", "open"]
    scripts = [str(REPO / "launch" / name) for name in ("evaluate.py", "explain.py")]
    commands = [shlex.split(line) for line in said[-2:]]
    assert [words[1:] for words in commands] == [[each, f"--workdir={workdir}"] for each in scripts]
    assert {str(REPO.parent / words[0]) for words in commands} == {sys.executable}
    evaluated = launch(
        "evaluate.py",
        f"--workdir={workdir}",
        "--faithfulness_images=4",
        f"--out={tmp_path / 'figures'}",
        path=other_frameworks,
    )
    assert evaluated.returncode == 0, evaluated.stderr
    assert "AUROC" in evaluated.stdout and "Faithfulness, 4 images of test" in evaluated.stdout
    assert sorted(path.name for path in (tmp_path / "figures").iterdir()) == [
        "evaluation.json",
        "scores.csv",
        "tables.txt",
    ]
    explained = launch(
        "explain.py", f"--workdir={workdir}", "--split=test", f"--out={tmp_path / 'report'}", path=other_frameworks
    )
    assert explained.returncode == 0, explained.stderr
    assert not (tmp_path / "tensorflow").exists() and not (tmp_path / "torch").exists()
    assert str(tmp_path / "report/index.html") in explained.stdout
    again = launch(
        "explain.py", f"--workdir={workdir}", f"--images={tmp_path / 'data'}", f"--out={tmp_path / 'report'}"
    )
    assert again.returncode == 1 and again.stderr.startswith("error: ")
    assert f"holds a report already: give another folder, as --out={tmp_path / 'report2'}" in again.stderr


@pytest.mark.end_to_end
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--config.stratgy=opposed"], 'Did you mean "strategy"'),
        (["--config.epochs=many"], "--config.epochs=many"),
        pytest.param(["--config.data.manifest=absent.csv"], "absent.csv", marks=pytest.mark.slow),
        pytest.param(["--config.strategy=oposed"], "Did you mean 'opposed'", marks=pytest.mark.slow),
        (["extra"], "unexpected argument 'extra'"),
    ],
)
def test_mistakes_are_told_in_one_message(tmp_path, arguments, message):
    config = f"--config={REPO / 'configs/manifest.py'}"
    result = launch("train.py", config, f"--workdir={tmp_path / 'run'}", "--config.data.manifest=none.csv", *arguments)
    assert result.returncode != 0
    assert message in result.stderr + result.stdout
    assert "Traceback" not in result.stderr
    assert not (tmp_path / "run").exists()


def test_modules_beside_the_caller_are_found_and_hide_nothing(tmp_path):
    """A network of one's own is named as module:function, and lies where the user stands."""
    (tmp_path / "my_nets.py").write_text("")
    (tmp_path / "json.py").write_text("broken")
    code = f"import sys; sys.path[0] = {str(REPO / 'launch')!r}\n"
    code += "import command_line, json, my_nets\nprint(my_nets.__file__)"
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.stdout.strip() == str(tmp_path / "my_nets.py"), done.stderr


@pytest.mark.parametrize(
    ("error", "code", "told"),
    [
        (OSError(errno.ENOSPC, "No space left on device", "x.png"), 1, "error: No space left on device: x.png"),
        (BrokenPipeError(errno.EPIPE, "Broken pipe"), 1, "error: whoever read the output has left"),
        (ConfigError("--out is empty"), 1, "error: --out is empty"),
        (StoppedError("stopped by SIGTERM: saved", 143), 143, "stopped by SIGTERM: saved"),
    ],
)
def test_what_is_no_fault_of_ours_is_a_line(monkeypatch, capsys, command_line, error, code, told):
    monkeypatch.setattr(command_line, "_leave_stdout", lambda: None)
    with pytest.raises(SystemExit) as exit, command_line._told():
        raise error
    said = capsys.readouterr().err if isinstance(exit.value.code, int) else exit.value.code  # Python prints a text
    assert (exit.value.code if isinstance(exit.value.code, int) else 1) == code
    assert said.startswith(told) and len(said.splitlines()) == 1
    with pytest.raises(ZeroDivisionError), command_line._told():
        raise ZeroDivisionError  # a fault of ours keeps its traceback


@pytest.fixture
def command_line(monkeypatch):
    monkeypatch.syspath_prepend(str(REPO / "launch"))
    return importlib.import_module("command_line")


@pytest.mark.parametrize(
    ("number", "swallowed"),
    [
        (signal.SIGTERM, 0),
        (signal.SIGINT, 2),
        *(
            pytest.param(number, swallowed, marks=pytest.mark.slow)
            for number, swallowed in ((signal.SIGTERM, 1), (signal.SIGTERM, 2), (signal.SIGINT, 0), (signal.SIGINT, 1))
        ),
    ],
)
def test_a_signal_ends_with_a_line_and_its_status_and_takes_away_what_is_half_written(tmp_path, number, swallowed):
    """Also where it comes in garbage collection, which swallows what is raised in it, and once more in its handling."""
    code = f"""
import sys; sys.path.insert(0, {str(REPO / "launch")!r})
import command_line, gc, time
later, delays = command_line._later, [0, 0.3]  # the second call is the hook's
if {swallowed} == 2:
    command_line._later = lambda *what: (later(*what), time.sleep(delays.pop(0) if delays else 0))
from tfcam_jax.data.outputs import write_folder
def main():
    if {swallowed}:
        gc.callbacks.append(lambda phase, _: (print("begun", flush=True), time.sleep(1)) if phase == "start" else None)
    with write_folder({str(tmp_path / "out")!r}) as partial:
        (partial / "half").touch()
        gc.collect() if {swallowed} else print("begun", flush=True)
        time.sleep(60)
command_line.run(main)
"""
    process = subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=REPO
    )
    assert process.stdout.readline() == "begun\n"
    process.send_signal(number)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 128 + number
    assert said.startswith(f"stopped by {number.name}: ") and len(said.splitlines()) == 1
    assert not list(tmp_path.iterdir())


def test_without_a_home_folder_caches_go_elsewhere_and_it_is_told(monkeypatch, capsys, command_line):
    def home():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(pathlib.Path, "home", home)
    monkeypatch.delenv("HOME")
    command_line._ensure_home()
    assert pathlib.Path(os.environ["HOME"]).is_dir()
    assert f"caches go to {os.environ['HOME']}" in capsys.readouterr().err
    os.rmdir(os.environ["HOME"])


def test_a_closed_output_is_no_traceback(tmp_path):
    code = f"import sys; sys.path.insert(0, {str(REPO / 'launch')!r}); import command_line\n"
    code += f"command_line.run(lambda: (print('x'), open({str(tmp_path / 'done')!r}, 'w').close()))"
    command = f"{shlex.quote(sys.executable)} -c {shlex.quote(code)} >&-"
    done = subprocess.run(command, shell=True, stderr=subprocess.PIPE, text=True, cwd=REPO, check=False)
    assert (done.returncode, done.stderr) == (0, "") and (tmp_path / "done").exists()
