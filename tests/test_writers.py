"""Metric files and JSON: nothing doubled, nothing half-written; provenance says what there is."""

import json
import platform
import resource

import jax
import pytest
from tensorboard.compat.proto.event_pb2 import Event

from tfcam_jax.run import files, provenance
from tfcam_jax.run.metrics_log import MetricsError, MetricWriter


def lines(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def events(folder):
    """TensorBoard's records: a length of 8 bytes and its checksum of 4, the record, a checksum."""
    found = []
    for path in sorted((folder / "tensorboard").iterdir(), key=lambda path: path.stat().st_mtime_ns):
        content = path.read_bytes()
        while content:
            size = int.from_bytes(content[:8], "little")
            found.append(Event.FromString(content[12 : 12 + size]))
            content = content[16 + size :]
    return found


def test_what_came_after_the_checkpoint_is_dropped(tmp_path):
    with MetricWriter(tmp_path) as writer:
        for step in (1, 2):
            writer.write(step, {"loss": 1.0 / step, "auroc": None})
        position = writer.sync()
        writer.write(3, {"loss": 1.0 / 3})
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 4, "lo')  # the run died here
    with MetricWriter(tmp_path, position, step=2) as writer:
        writer.write(3, {"loss": 7.0})
        assert writer.sync()["bytes"] == (tmp_path / "metrics.jsonl").stat().st_size
    assert lines(tmp_path) == [
        {"step": 1, "loss": 1.0, "auroc": None},
        {"step": 2, "loss": 0.5, "auroc": None},
        {"step": 3, "loss": 7.0},
    ]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["metrics.jsonl", "tensorboard"]


def test_tensorboard_forgets_what_came_after_the_checkpoint(tmp_path):
    with MetricWriter(tmp_path) as writer:
        writer.write(2, {"loss": 0.5, "auroc": None})
        position = writer.sync()
        writer.write(3, {"loss": 9.0})
    with MetricWriter(tmp_path, position, step=2) as writer:
        writer.write(3, {"loss": 7.0})
    shown = []
    for event in events(tmp_path):  # as TensorBoard reads them: a start drops what it has of that step and later
        if event.session_log.status == event.session_log.START:
            shown = [entry for entry in shown if entry[0] < event.step]
        shown += [(event.step, value.tag, value.simple_value) for value in event.summary.value]
    assert shown == [(2, "loss", 0.5), (3, "loss", 7.0)]


def test_a_run_that_died_before_its_first_checkpoint_starts_anew(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"step": 1}\n{"st')
    with MetricWriter(tmp_path) as writer:
        writer.write(1, {"loss": 2.0})
    assert lines(tmp_path) == [{"step": 1, "loss": 2.0}]


@pytest.mark.parametrize("damage", ["changed", "cut", "missing"])
def test_lines_that_a_checkpoint_counts_on_must_be_there(tmp_path, damage):
    path = tmp_path / "metrics.jsonl"
    with MetricWriter(tmp_path) as writer:
        writer.write(1, {"loss": 0.5})
        position = writer.sync()
    content = path.read_text()
    path.write_text({"changed": content.replace("0.5", "0.6"), "cut": content[:-3], "missing": ""}[damage])
    if damage == "missing":
        path.unlink()
    with pytest.raises(MetricsError, match=r"metrics\.jsonl (is missing|was cut or changed)"):
        MetricWriter(tmp_path, position, step=1)


@pytest.mark.parametrize("full", ["lines", "events"])
def test_a_full_disk_is_told_and_does_not_block(tmp_path, full):
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    writer = MetricWriter(tmp_path)
    scalars = {f"figure{i}": 0.123456789 for i in range(30 if full == "lines" else 2)}
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (900 if full == "lines" else 100, before[1]))
        with pytest.raises(MetricsError, match=r"can't be written \(File too large\)"):
            for step in range(50):
                writer.write(step, scalars)
                writer.sync()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        writer.__exit__(None)


def test_json_that_cannot_be_written_leaves_the_old_file(tmp_path):
    path = tmp_path / "results.json"
    files.write_json(path, {"a": 1})
    with pytest.raises(TypeError):
        files.write_json(path, {"a": object()})
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (100, before[1]))
        with pytest.raises(files.WorkdirError, match=r"results\.json can't be written: File too large"):
            files.write_json(path, list(range(1000)))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert json.loads(path.read_text()) == {"a": 1}
    assert list(tmp_path.iterdir()) == [path]


def test_provenance_names_versions_devices_and_commit():
    record = json.loads(json.dumps(provenance.collect_provenance("resnet18")))
    assert record["packages"]["jax"] == jax.__version__
    assert len(record["devices"]) == 2
    assert record["commit"] is None or len(record["commit"].removesuffix("-dirty")) == 40
    assert record["processor"] == provenance.processor() and record["processor"]


@pytest.mark.parametrize(
    ("text", "processor", "found"),
    [
        (
            "processor\t: 0\nmodel name\t: EPYC: 7\nflags\t\t: fpu sse2 fma avx2 avx512f avx\nvmx flags\t: avx9\n"
            "model name\t: B\n",
            "EPYC: 7",
            ["avx", "avx2", "avx512f", "fma"],
        ),
        ("processor\t: 0\nFeatures\t: fp asimd crc32 sve asimdhp\n", None, ["asimd", "asimdhp", "sve"]),
        (None, None, []),
    ],
)
def test_provenance_names_the_processor_and_what_it_sums_with(text, processor, found, tmp_path, monkeypatch):
    if text is not None:
        (tmp_path / "cpuinfo").write_text(text)
    monkeypatch.setattr(provenance, "CPU_INFO", tmp_path / "cpuinfo")
    assert provenance.processor() == (processor or platform.processor() or platform.machine())
    assert provenance.vector_instructions() == found
