"""Checkpoints: which are kept, what is sound, what happens to those that are not."""

import json
import resource
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tfcam_jax.run import checkpoints
from tfcam_jax.run.checkpoints import CheckpointError, Checkpoints, CheckpointVersionError
from tfcam_jax.run.fingerprints import checksum_json

# Orbax leaves coroutines behind when a file can't be read or written.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")

LIKE = {"kernel": jnp.zeros((40, 50)), "step": jnp.zeros((), jnp.int32)}


def state(step):
    """Random numbers, which no compression makes smaller than they are."""
    rng = np.random.default_rng(step)
    return {"kernel": jnp.asarray(rng.normal(size=(40, 50)), jnp.float32), "step": jnp.int32(step)}


def write(workdir, scores):
    """A checkpoint per step, with its score."""
    with Checkpoints(workdir) as kept:
        for step, score in scores.items():
            kept.save(step, state(step), {"epoch": step}, score)


@pytest.fixture(scope="module")
def pristine(tmp_path_factory):
    """Checkpoints of steps 2 (the best), 3 and 4."""
    workdir = tmp_path_factory.mktemp("pristine")
    write(workdir, {1: 0.1, 2: 0.9, 3: 0.5, 4: 0.2})
    return workdir


@pytest.fixture
def workdir(pristine, tmp_path):
    return shutil.copytree(pristine, tmp_path / "run")


def test_saving_tells_whether_it_is_the_best_so_far(tmp_path):
    """The later of two equal ones is; also after a start from what was kept."""
    for scores, best in (
        ({1: 0.5, 2: 0.9, 3: 0.4, 4: 0.9}, [True, True, False, True]),
        ({5: 0.8, 6: 1.0}, [False, True]),
    ):
        with Checkpoints(tmp_path) as kept:
            kept.restore_latest(LIKE)
            assert [kept.save(step, state(step), {"epoch": step}, score) for step, score in scores.items()] == best


def latest(workdir):
    with Checkpoints(workdir) as kept:
        return kept.restore_latest(LIKE)


def best(workdir):
    with Checkpoints(workdir, read_only=True) as kept:
        return kept.restore_best(lambda record: LIKE)


def assert_is(restored, step):
    actual, record = restored
    jax.tree.map(np.testing.assert_array_equal, actual, state(step))
    assert record["step"] == record["epoch"] == step


@pytest.mark.parametrize(
    ("scores", "kept"),
    [
        ({1: 0.9, 2: 0.8, 3: 0.7, 4: 0.6, 5: 0.5}, [1, 2, 4, 5]),
        ({1: 0.1, 2: 0.2, 3: 0.3}, [2, 3]),
        ({1: 0.5, 2: 0.5, 3: 0.5, 4: 0.1, 5: 0.1}, [2, 3, 4, 5]),
        ({1: 0.5, 2: None, 3: None, 4: None}, [1, 3, 4]),
    ],
)
def test_latest_two_and_best_two_are_kept(tmp_path, scores, kept):
    write(tmp_path, scores)
    assert sorted(int(path.name) for path in (tmp_path / "checkpoints").iterdir()) == kept
    assert_is(latest(tmp_path), max(scores))
    assert_is(best(tmp_path), max((s for s in scores if scores[s]), key=lambda step: (scores[step], step)))


def test_an_old_one_leaves_the_others_whole_before_it_is_removed(tmp_path, monkeypatch):
    """Else a kill in the middle of the removal would leave half a checkpoint among the others."""
    removed = []

    def remove(path):
        removed.append((path.parent.name, path.name))
        return rmtree(path)

    rmtree = shutil.rmtree
    monkeypatch.setattr(checkpoints.shutil, "rmtree", remove)
    write(tmp_path, {1: 0.1, 2: 0.9, 3: 0.5, 4: 0.2, 5: 0.3})
    assert removed == [(".deleted", "1")]
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == ["2", "3", "4", "5"]


def test_scores_outlive_the_process(tmp_path):
    write(tmp_path, {1: 0.9, 2: 0.8})
    with Checkpoints(tmp_path) as kept:
        kept.restore_latest(LIKE)
        for step in (3, 4):
            kept.save(step, state(step), {"epoch": step}, 0.1)
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == ["1", "2", "3", "4"]


def test_nothing_was_saved(tmp_path):
    assert latest(tmp_path) is None and best(tmp_path) is None


def test_a_step_is_saved_once(workdir):
    with Checkpoints(workdir) as kept, pytest.raises(CheckpointError, match="step 4 or later already"):
        kept.save(4, state(4), {"epoch": 4})


def flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 4
    path.write_bytes(content)


def overwrite(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2 : len(content) // 2 + 4] = b"\0\1\2\3"
    path.write_bytes(content)


DAMAGES = {
    "flipped": flip,
    "overwritten": overwrite,
    "truncated": lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]),
    "emptied": lambda path: path.write_bytes(b""),
    "gone": lambda path: path.unlink(),
}


def largest(folder):
    return max((path for path in folder.rglob("*") if path.is_file()), key=lambda path: path.stat().st_size)


@pytest.mark.parametrize("part", ["state", "record"])
@pytest.mark.parametrize("damage", DAMAGES)
def test_of_a_damaged_checkpoint_the_one_before_is_used_with_a_warning(workdir, part, damage, caplog):
    DAMAGES[damage](largest(workdir / "checkpoints/4" / part))
    assert_is(latest(workdir), 3)
    [told] = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert str(workdir / "checkpoints/4") in told and "continues from the checkpoint of step 3" in told
    assert (workdir / "checkpoints.damaged/4.0").is_dir()
    write(workdir, {4: 0.2})
    assert_is(latest(workdir), 4)


def test_a_record_that_was_edited_is_damaged(workdir):
    path = workdir / "checkpoints/4/record/metadata"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"epoch": 5}))
    with (
        Checkpoints(workdir) as kept,
        pytest.raises(CheckpointError, match="4/record is damaged: its checksum is wrong"),
    ):
        kept.record(4)


def test_every_file_of_a_checkpoint_may_be_damaged(workdir):
    """Whatever file it is: the state is that of step 4, or, told so, that of step 3."""
    names = [path.relative_to(workdir) for path in (workdir / "checkpoints/4").rglob("*") if path.is_file()]
    assert len(names) > 5
    sound = shutil.copytree(workdir, workdir.with_name("sound"))
    for name in names:
        shutil.rmtree(workdir)
        shutil.copytree(sound, workdir)
        flip(workdir / name)
        with Checkpoints(workdir) as kept:
            restored = kept.restore_latest(LIKE)
        assert_is(restored, 3 if (workdir / "checkpoints.damaged").exists() else 4)


def test_a_damaged_best_one_is_an_error_that_says_what_is_left(workdir):
    flip(largest(workdir / "checkpoints/2/state"))
    with pytest.raises(
        CheckpointError, match=r"checkpoints/2/state is damaged.*best sound one is of step 3 \(epoch 3\)"
    ):
        best(workdir)
    assert_is(latest(workdir), 4)
    assert_is(best(workdir), 3)


def test_one_that_a_training_removes_meanwhile_is_not_missed(workdir):
    with Checkpoints(workdir, read_only=True) as kept:
        assert kept.best() == 2
        shutil.rmtree(workdir / "checkpoints/2")
        assert_is(kept.restore_best(lambda record: LIKE), 3)


def test_all_are_damaged(workdir, caplog):
    for step in (2, 3, 4):
        flip(largest(workdir / f"checkpoints/{step}/state"))
    with pytest.raises(CheckpointError, match="No other validated checkpoint is sound"):
        best(workdir)
    assert latest(workdir) is None
    assert "training starts from its beginning" in caplog.text


def test_a_half_written_one_does_not_count(workdir):
    """As a kill leaves it: the folder has another name until all is written."""
    names = {path.name for path in workdir.iterdir()}
    shutil.move(workdir / "checkpoints/4", workdir / "checkpoints/4.orbax-checkpoint-tmp-17")
    largest(workdir / "checkpoints/4.orbax-checkpoint-tmp-17").unlink()
    assert_is(latest(workdir), 3)
    assert sorted(path.name for path in (workdir / "checkpoints").iterdir()) == ["2", "3"]
    assert {path.name for path in workdir.iterdir()} == names


@pytest.mark.parametrize(("number", "age"), [(checkpoints.FORMAT + 1, "a newer"), (1, "an older")])
def test_another_version_of_the_project_is_told(workdir, number, age):
    for step in (2, 3, 4):
        path = workdir / f"checkpoints/{step}/record/metadata"
        record = json.loads(path.read_text()) | {"format": number}
        del record["crc32"]
        path.write_text(json.dumps(record | {"crc32": checksum_json(record)}))
    for restore in (latest, best):
        with pytest.raises(CheckpointVersionError, match=f"written by {age} version of this project"):
            restore(workdir)
    assert not (workdir / "checkpoints.damaged").exists()


def test_the_layout_of_old_is_told(tmp_path):
    (tmp_path / "checkpoints/latest").mkdir(parents=True)
    with pytest.raises(CheckpointVersionError, match="format 1; this one reads 2"):
        Checkpoints(tmp_path)


def test_another_model_is_no_damage(workdir):
    with Checkpoints(workdir) as kept, pytest.raises(CheckpointVersionError, match=r"kernel is .*40, 50.* there"):
        kept.restore_latest(LIKE | {"kernel": jnp.zeros((40, 51))})
    assert not (workdir / "checkpoints.damaged").exists()


def test_a_full_disk_is_told_and_earlier_ones_stay(workdir):
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    with pytest.raises(CheckpointError, match="could not be written"), Checkpoints(workdir) as kept:
        kept.restore_latest(LIKE)
        try:
            resource.setrlimit(resource.RLIMIT_FSIZE, (2000, before[1]))
            kept.save(5, state(5), {"epoch": 5}, 0.1)
            kept.wait()
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert_is(latest(workdir), 4)
    write(workdir, {5: 0.1})
    assert_is(latest(workdir), 5)


def test_a_restart_on_other_devices_gets_the_same_numbers(workdir):
    mesh = jax.sharding.Mesh(np.asarray(jax.devices()), "data")
    place = lambda *axes: jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(*axes))
    like = jax.device_put(LIKE, {"kernel": place("data"), "step": place()})
    with Checkpoints(workdir) as kept:
        restored = kept.restore_latest(like)
    assert_is(restored, 4)
    assert restored[0]["kernel"].sharding == place("data")
