"""The exported model runs in a process that can't import this package, and says what the checkpoint says."""

import subprocess
import sys

import jax
import numpy as np
import pytest

from tfcam_jax.errors import OutputError
from tfcam_jax.experiment import open_dataset
from tfcam_jax.explanation import explain_source
from tfcam_jax.export import PLATFORMS, export_model
from tfcam_jax.inference import restore
from tfcam_jax.run.checkpoints import CheckpointError
from tfcam_jax.run.files import WorkdirError

RUN = """
import sys
for name in ("tfcam_jax", "flax", "ml_collections", "orbax"):
    sys.modules[name] = None  # importing it now raises
import jax, numpy as np
from jax import export
model = export.deserialize(bytearray(open(sys.argv[1], "rb").read()))
images = np.load(sys.argv[2])
whole = model.call(images)
for part, one in zip(model.call(images[:1]), whole):
    np.testing.assert_allclose(part[0], one[0], atol=1e-4)
np.savez(sys.argv[3], **dict(zip(("logits", "true_map", "false_map", "difference"), whole)))
"""


@pytest.fixture(scope="module")
def workdir(trained_run):
    return trained_run


def test_exported_model_runs_without_this_package(workdir, tmp_path):
    path = export_model(workdir, tmp_path / "deep/model.stablehlo")
    trained = restore(workdir)
    batches = list(explain_source(trained, open_dataset(trained.recipe).splits["test"]))
    np.save(tmp_path / "images.npy", np.concatenate([batch.images for batch in batches]))
    command = [sys.executable, "-c", RUN, path, tmp_path / "images.npy", tmp_path / "found.npz"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=False)
    assert done.returncode == 0, done.stderr
    found = np.load(tmp_path / "found.npz")
    one = jax.tree.map(lambda *leaves: np.concatenate(leaves), *[batch.output for batch in batches])
    np.testing.assert_allclose(found["logits"], one.logits, atol=1e-4)
    np.testing.assert_array_equal(found["difference"], found["true_map"] - found["false_map"])
    # Its true class is the predicted one: where the label is another, T and U change places.
    right = one.logits.argmax(-1) == one.labels
    sign = np.where(right, 1, -1)[:, None, None]
    np.testing.assert_allclose(found["difference"], sign * one.difference, atol=1e-3)
    expected = np.where(right[:, None, None], one.true_map, one.false_map)
    np.testing.assert_allclose(found["true_map"], expected, atol=1e-3)


def test_file_is_for_all_platforms_and_any_batch(workdir, tmp_path):
    exported = jax.export.deserialize(bytearray(export_model(workdir, tmp_path / "model").read_bytes()))
    assert exported.platforms == PLATFORMS
    assert str(exported.in_avals[0].shape) == "(batch, 32, 32, 3)" and exported.in_avals[0].dtype == np.uint8
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_what_can_not_be_exported_leaves_nothing_behind(workdir, tmp_path):
    with pytest.raises(WorkdirError, match="holds no run"):
        export_model(tmp_path / "absent", tmp_path / "model")
    with pytest.raises(WorkdirError, match="is a folder"):
        export_model(workdir, tmp_path)
    with pytest.raises(ValueError, match="abacus"):
        export_model(workdir, tmp_path / "model", platforms=("abacus",))
    (tmp_path / "run").mkdir()
    (tmp_path / "run/config.json").write_bytes((workdir / "config.json").read_bytes())
    with pytest.raises(CheckpointError, match="no best checkpoint"):
        export_model(tmp_path / "run", tmp_path / "model")
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_only_an_exported_model_is_replaced(workdir, tmp_path):
    out = tmp_path / "manifest.csv"
    out.write_text("split,label,image\n")
    with pytest.raises(OutputError, match=r"manifest\.csv is there already and is no exported model"):
        export_model(workdir, out, ("cpu",))
    assert out.read_text() == "split,label,image\n"
    for _ in range(2):
        export_model(workdir, tmp_path / "model.stablehlo", ("cpu",))
