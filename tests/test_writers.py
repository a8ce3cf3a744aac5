"""Metric files and JSON: nothing doubled, nothing half-written; provenance says what there is."""

import json

import jax
import pytest

from tfcam_jax import provenance, workdir
from tfcam_jax.writers import MetricWriter


def lines(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_lines_after_the_step_that_is_continued_from_are_dropped(tmp_path):
    with MetricWriter(tmp_path) as writer:
        for step in (1, 2, 3):
            writer.write(step, {"loss": 1.0 / step, "auroc": None})
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 2, "lo')  # the run died here
    with MetricWriter(tmp_path, after_step=2) as writer:
        writer.write(3, {"loss": 7.0})
    assert lines(tmp_path) == [
        {"step": 1, "loss": 1.0, "auroc": None},
        {"step": 2, "loss": 0.5, "auroc": None},
        {"step": 3, "loss": 7.0},
    ]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["metrics.jsonl", "tensorboard"]


def test_json_that_cannot_be_written_leaves_the_old_file(tmp_path):
    path = tmp_path / "results.json"
    workdir.write_json(path, {"a": 1})
    with pytest.raises(TypeError):
        workdir.write_json(path, {"a": object()})
    assert json.loads(path.read_text()) == {"a": 1}
    assert list(tmp_path.iterdir()) == [path]


def test_provenance_names_versions_devices_and_commit():
    record = json.loads(json.dumps(provenance.collect_provenance()))
    assert record["packages"]["jax"] == jax.__version__
    assert len(record["devices"]) == 2
    assert record["commit"] is None or len(record["commit"].removesuffix("-dirty")) == 40
