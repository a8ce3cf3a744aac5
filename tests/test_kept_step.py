"""A train step whose trace is kept: a later start does not trace, and takes the same steps; what is another step is."""

import jax
import numpy as np
import pytest
from test_frozen import put
from tiny_manifest import write_manifest
from tiny_run import tiny_config

from tfcam_jax import steps
from tfcam_jax.experiment import build_experiment, resolve
from tfcam_jax.run import kept_step
from tfcam_jax.strategies import make_strategy


@pytest.fixture(scope="module")
def manifest(tmp_path_factory):
    return write_manifest(tmp_path_factory.mktemp("data"))


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv(kept_step.FOLDER, str(tmp_path / "deep" / "steps"))
    return tmp_path / "deep" / "steps"


def build(manifest, own=None, **overrides):
    config = tiny_config(manifest)
    config.strategy, config.epochs, config.parallel.mode, config.parallel.devices = "cyborg", 1, "jit", 1
    with config.unlocked():
        config.update_from_flattened_dict(overrides)
    return build_experiment(resolve(config), strategy=own)


def two_steps(manifest, own=None, **overrides):
    """State and metrics after two steps of an experiment that is built anew."""
    experiment = build(manifest, own, **overrides)
    state = experiment.random_state()
    for batch, _ in zip(experiment.train_epoch(0), range(2), strict=False):
        state, metrics = experiment.train_step(state, put(experiment, batch))
    return jax.device_get((state, metrics))


def refuse(*args, **kwargs):
    raise AssertionError("traced")


def names(folder):
    return sorted(path.name for path in folder.glob("*"))


def same(one, other):
    assert jax.tree.structure(one) == jax.tree.structure(other)
    jax.tree.map(np.testing.assert_array_equal, one, other)


@pytest.mark.parametrize("overrides", [{}, {"log_gradient_norms": True, "accumulate_steps": 2}])
def test_a_later_start_does_not_trace_and_takes_the_same_steps(manifest, folder, monkeypatch, overrides):
    first = two_steps(manifest, **overrides)
    assert len(names(folder)) == 1
    with monkeypatch.context() as patch:
        patch.setattr(steps, "_forward", refuse)
        later = two_steps(manifest, **overrides)
        with pytest.raises(AssertionError, match="traced"):  # the patch is in the way of whoever traces
            two_steps(manifest, batch_size=7, **overrides)
    same(later, first)
    monkeypatch.delenv(kept_step.FOLDER)
    plain = two_steps(manifest, **overrides)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), plain, first)


def test_the_arrays_of_the_state_are_donated(manifest, folder):
    experiment = build(manifest)
    state, batch = experiment.random_state(), next(iter(experiment.train_epoch(0)))
    experiment.train_step(state, put(experiment, batch))
    assert jax.tree.leaves(state.params)[0].is_deleted()
    assert names(folder)


def test_what_decides_the_step_decides_the_file(manifest, folder, monkeypatch):
    found = set()
    two_steps(manifest)
    found.update(names(folder))
    two_steps(manifest, seed=5)
    assert set(names(folder)) == found, "a seed decides values alone"
    for change in (
        {"strategy": "difference"},
        {"guidance.alpha": 0.25},
        {"optimizer.learning_rate": 0.5},
        {"epochs": 2},
        {"guidance.divergence": "pearson"},
    ):
        two_steps(manifest, **change)
        assert len(set(names(folder)) - found) == 1, change
        found.update(names(folder))
    decided = lambda: kept_step.step_file(folder, config=1)
    before = decided()
    assert before == decided() != kept_step.step_file(folder, config=2)
    others = []
    for owner, name, value in (
        (kept_step, "_code", lambda: "another"),
        (kept_step.metadata, "version", lambda name: "2"),
        (kept_step.platform, "python_version", lambda: "3.99"),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(owner, name, value)
            others.append(decided())
    with jax.default_matmul_precision("highest"):
        others.append(decided())
    monkeypatch.setenv("XLA_FLAGS", "--xla_cpu_enable_fast_math=true")
    others.append(decided())
    assert len({before, *others}) == 6


def test_the_hash_of_the_code_sees_every_file(tmp_path, monkeypatch):
    package = tmp_path / "package"
    (package / "deep").mkdir(parents=True)
    (package / "a.py").write_text("x = 1\n")
    (package / "deep" / "b.py").write_text("y = 1\n")
    monkeypatch.setattr(kept_step, "_PACKAGE", package)
    code = kept_step._code.__wrapped__
    seen = [code()]
    (package / "deep" / "b.py").write_text("y = 2\n")
    seen.append(code())
    (package / "deep" / "b.py").rename(package / "b.py")
    seen.append(code())
    assert len(set(seen)) == 3


def test_a_strategy_from_outside_is_not_kept(manifest, folder):
    two_steps(manifest, own=make_strategy("cyborg"))
    assert not names(folder)


def cut(content):
    return content[: len(content) // 2]


def zeroed(content):
    middle = len(content) // 2
    return content[:middle] + bytes(64) + content[middle + 64 :]


def flipped(content):
    """One bit of what the compiler reads: JAX takes some such files for another program."""
    middle = len(content) // 2
    return content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]


@pytest.mark.parametrize("damage", [lambda _: b"", lambda _: b"nonsense", cut, zeroed, flipped])
def test_a_damaged_file_is_told_and_traced_anew(manifest, folder, caplog, damage):
    first = two_steps(manifest)
    (file,) = folder.glob("*")
    whole = file.read_bytes()
    file.write_bytes(damage(whole))
    same(two_steps(manifest), first)
    assert [record.getMessage() for record in caplog.records if f"{file} is damaged" in record.getMessage()]
    caplog.clear()
    same(two_steps(manifest), first)
    assert not caplog.records, "a sound file took its place"


def test_a_folder_that_is_read_alone_serves(manifest, folder, monkeypatch, caplog):
    first = two_steps(manifest)

    def refused(*args, **kwargs):
        raise PermissionError(13, "Read-only file system")

    monkeypatch.setattr(kept_step.os, "utime", refused)
    monkeypatch.setattr(steps, "_forward", refuse)
    same(two_steps(manifest), first)
    assert not caplog.records


def test_a_full_disk_leaves_nothing_half_written(manifest, folder, monkeypatch, caplog):
    def full(descriptor):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("tfcam_jax.run.files.os.fsync", full)
        two_steps(manifest)
    assert not names(folder)
    assert any("can't be kept" in record.getMessage() for record in caplog.records)


def test_other_shapes_are_another_step(manifest, folder):
    experiment = build(manifest)
    batch = put(experiment, next(iter(experiment.train_epoch(0))))
    experiment.train_step(experiment.random_state(), batch)
    fewer = {name: x[:2] for name, x in batch.items()}
    other = build(manifest)
    _, metrics = other.train_step(other.random_state(), fewer)
    assert metrics.correct.count <= 2 and len(names(folder)) == 2


def test_a_folder_that_cannot_be_made_is_told(manifest, folder, caplog):
    folder.parent.write_text("a file in its place")
    two_steps(manifest)
    assert any("can't be kept" in record.getMessage() for record in caplog.records)


def test_the_files_that_were_not_used_for_longest_go(folder, monkeypatch):
    monkeypatch.setattr(kept_step, "_MOST_FILES", 2)
    folder.mkdir(parents=True)
    (folder / ".0.step.123").write_bytes(b"half")
    kept_step.os.utime(folder / ".0.step.123", (0, 0))
    for i in range(4):
        file = folder / f"{i}.step"
        kept_step._write(file, b"x")
        kept_step.os.utime(file, (i + 1, i + 1))
    assert names(folder) == ["2.step", "3.step"]
