"""The launch scripts as users call them, on real files."""

import os
import pathlib
import shlex
import subprocess
import sys

import pytest
from tiny_manifest import write_manifest

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
    assert [line.split()[0] for line in said[:5]] == ["CAM", "Human", *2 * ["epoch"], "difference:"]
    assert [line.split()[0] for line in said[5:9]] == ["set", "val", "closed", "open"]
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
        (["--config.data.manifest=absent.csv"], "absent.csv"),
        (["--config.strategy=oposed"], "Did you mean 'opposed'"),
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
