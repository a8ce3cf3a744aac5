"""Decoded images that are kept: the same bits as decoding, whatever became of files, disk or other processes."""

import multiprocessing
import os
import pickle
import resource
import shutil
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from PIL import Image
from tiny_manifest import write_manifest

from tfcam_jax.data import decoded
from tfcam_jax.data.decoded import Kept, keep_decoded
from tfcam_jax.data.manifest import open_manifest
from tfcam_jax.data.pipeline import eval_batches, train_batches
from tfcam_jax.data.transforms import IDENTITY, Augment, Resize, apply

SIZE, ROWS = 20, 32
WHOLE = Kept(None, None)


@pytest.fixture
def manifest(tmp_path):
    decoded._told.clear()
    return write_manifest(tmp_path / "data")


def opened(manifest):
    return open_manifest(str(manifest), labels=("dark", "bright"), progress=False)


def kept(manifest, kept=WHOLE, megabytes=100, **options):
    return keep_decoded(opened(manifest), kept, manifest.parent / ".tfcam_jax", megabytes, **options)


def files(manifest):
    return sorted((manifest.parent / ".tfcam_jax").glob("decoded-*"))


def examples(dataset):
    return [
        (each.image, each.saliency)
        for source in dataset.splits.values()
        for each in map(source.__getitem__, range(len(source)))
    ]


def assert_same(dataset, other):
    found, wanted = examples(dataset), examples(other)
    assert len(found) == len(wanted) == ROWS
    for (image, saliency), (wanted_image, wanted_saliency) in zip(found, wanted, strict=True):
        np.testing.assert_array_equal(image, wanted_image)
        assert (saliency is None) == (wanted_saliency is None)
        if saliency is not None:
            np.testing.assert_array_equal(saliency, wanted_saliency)
            assert saliency.dtype == wanted_saliency.dtype


@pytest.fixture
def decodes(monkeypatch):
    """Names of images that were decoded, in any thread, once it is emptied."""
    names, read = [], decoded.ListedSource.__getitem__
    seen = lambda self, index: names.append(self.rows[index].image) or read(self, index)
    monkeypatch.setattr(decoded.ListedSource, "__getitem__", seen)
    return names


def test_the_second_start_decodes_nothing_and_gives_the_same(manifest, decodes):
    first = kept(manifest)
    assert sorted(decodes) == sorted(row.image for source in opened(manifest).splits.values() for row in source.rows)
    decodes.clear()
    second = kept(manifest)
    found = examples(second)
    assert not decodes and len(found) == ROWS
    assert_same(first, opened(manifest))
    assert_same(second, opened(manifest))
    assert (manifest.parent / ".tfcam_jax/.gitignore").read_text().splitlines()[-1] == "*"


@pytest.mark.parametrize(
    ("resize", "augment", "kept_as"),
    [
        (Resize(SIZE), IDENTITY, Kept(SIZE, SIZE)),
        (Resize(SIZE, places=4), Augment(flip=0.5, rotate=20, scale=0.1, map_blur=(0.1, 2.0)), Kept(SIZE, SIZE)),
        (Resize(SIZE, (50, 24), places=4), Augment(flip=0.5, crop=0.3, brightness=0.1), Kept(50, 50)),
        (Resize(SIZE, (50,), 4, 4), Augment(crop=0.3), Kept(50, None)),
        (Resize(SIZE, places=SIZE), Augment(crop=0.3, shear=5), WHOLE),
    ],
)
def test_what_is_kept_is_what_comes_before_anything_random(manifest, resize, augment, kept_as):
    plain, found = opened(manifest).splits["train"], kept(manifest, kept_as).splits["train"]
    for seed, row in enumerate(range(len(plain))):
        wanted = apply(plain[row], resize, augment, np.random.default_rng(seed))
        for array, other in zip(apply(found[row], resize, augment, np.random.default_rng(seed)), wanted, strict=True):
            np.testing.assert_array_equal(array, other)
            assert array.dtype == other.dtype


def test_threads_and_worker_processes_read_the_same(manifest):
    plain, found = opened(manifest), kept(manifest)
    with ThreadPoolExecutor(8) as executor:
        rows = list(range(len(found.splits["train"]))) * 20
        images = executor.map(lambda row: found.splits["train"][row].image, rows)
        for row, image in zip(rows, images, strict=True):
            np.testing.assert_array_equal(image, plain.splits["train"][row].image)
    assert_same(pickle.loads(pickle.dumps(found)), plain)
    options = {"epoch": 0, "seed": 0, "batch_size": 5, "image_size": SIZE, "num_workers": 1}
    for batch, other in zip(
        train_batches(found.splits["train"], **options), train_batches(plain.splits["train"], **options), strict=True
    ):
        np.testing.assert_array_equal(batch["image"], other["image"])


def repaint(path, value):
    """Another picture of the same size in bytes, as one of one colour packs alike."""
    Image.new("RGB", (32, 32), (value, value, value)).save(path)


def test_a_file_that_changed_is_decoded_anew(manifest, decodes):
    image, other = (manifest.parent / f"images/train{i}.png" for i in (0, 1))
    repaint(image, 10)
    kept(manifest)
    size, before = image.stat().st_size, image.stat().st_mtime_ns
    repaint(image, 200)
    assert image.stat().st_size == size and image.stat().st_mtime_ns != before  # only the time tells
    os.utime(other, (1, 1))
    decodes.clear()
    found = kept(manifest)
    assert sorted(decodes) == ["images/train0.png", "images/train1.png"]
    assert found.splits["train"][0].image.max() == 200
    assert_same(found, opened(manifest))
    map_file = manifest.parent / "maps/train2.png"
    Image.fromarray(np.asarray(Image.open(map_file))[::-1]).save(map_file)
    decodes.clear()
    assert_same(kept(manifest), opened(manifest))
    assert "images/train2.png" in decodes


def test_a_file_that_changes_while_it_is_decoded_is_not_kept(manifest, monkeypatch):
    read, image = decoded.ListedSource.__getitem__, manifest.parent / "images/train0.png"

    def change(self, index):
        example = read(self, index)
        if self.rows[index].image == "images/train0.png":
            repaint(image, 77)
        return example

    with monkeypatch.context() as patched:
        patched.setattr(decoded.ListedSource, "__getitem__", change)
        kept(manifest)
    assert len(decoded.KeptFile.open(*files(manifest)).keys) == ROWS - 1
    assert (kept(manifest).splits["train"][0].image == 77).all()


def test_another_transform_list_or_code_has_a_file_of_its_own(manifest, monkeypatch):
    kept(manifest)
    kept(manifest, Kept(SIZE, SIZE))
    kept(manifest, Kept(SIZE, None))
    shutil.copy(manifest, manifest.with_name("other.csv"))
    kept(manifest.with_name("other.csv"))
    monkeypatch.setattr(decoded, "_code", lambda: ("other",))
    kept(manifest)
    assert len(files(manifest)) == 5
    grey = open_manifest(str(manifest), channels=1, progress=False)
    keep_decoded(grey, WHOLE, manifest.parent / ".tfcam_jax", 100)
    assert len(files(manifest)) == 6


def damage(path, at):
    content = bytearray(path.read_bytes())
    content[at] ^= 0xFF
    path.write_bytes(content)


def test_a_damaged_file_is_told_once_and_never_wrong(manifest, caplog):
    kept(manifest)
    (path,) = files(manifest)
    whole, size = path.read_bytes(), path.stat().st_size
    for at in np.linspace(0, size - 1, 12).astype(int):
        path.write_bytes(whole)
        damage(path, at)
        assert_same(kept(manifest), opened(manifest))
    assert "is damaged" in caplog.text
    path.write_bytes(whole)
    caplog.clear()
    found = kept(manifest)  # opened while it was sound
    middle = bytearray(whole)
    middle[size // 4 : size // 2] = bytes(size // 2 - size // 4)
    with path.open("r+b") as file:
        file.write(middle)
    assert_same(found, opened(manifest))
    assert caplog.text.count("is damaged") == 1 and not files(manifest)
    assert_same(kept(manifest), opened(manifest))
    assert files(manifest) == [path]


@pytest.mark.parametrize("share", [0, 0.3, 0.999])
def test_a_truncated_file_is_made_anew(manifest, share, caplog, decodes):
    kept(manifest)
    (path,) = files(manifest)
    os.truncate(path, int(share * path.stat().st_size))
    found = kept(manifest)
    assert caplog.text.count("is damaged") == 1
    decodes.clear()
    assert_same(found, opened(manifest))
    assert_same(kept(manifest), opened(manifest))
    assert len(decodes) == 2 * ROWS  # of what was compared with alone


def keep_in_process(manifest, start):
    start.wait()
    assert_same(kept(manifest), opened(manifest))


def test_processes_that_write_at_once(manifest):
    context = multiprocessing.get_context("spawn")  # a fork would lose array_record's threads
    start = context.Barrier(2)
    processes = [context.Process(target=keep_in_process, args=(manifest, start)) for _ in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
        assert process.exitcode == 0
    assert len(files(manifest)) == 1
    assert sorted(each.name for each in (manifest.parent / ".tfcam_jax").iterdir()) == [
        ".gitignore",
        files(manifest)[0].name,
    ]
    assert_same(kept(manifest), opened(manifest))


def test_what_has_no_room_is_told_and_decoded(manifest, decodes, caplog, monkeypatch):
    monkeypatch.setattr(decoded.shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10**9, 0, 100_000))
    found = kept(manifest)
    assert "had no room" in caplog.text
    (path,) = files(manifest)
    assert len(decoded.KeptFile.open(path).keys) * 32 * 32 * 3 < 50_000
    decodes.clear()
    assert_same(found, opened(manifest))
    assert ROWS < len(decodes) < 2 * ROWS
    decodes.clear()
    kept(manifest)  # does not try again what had no room
    assert not decodes
    monkeypatch.undo()
    kept(manifest, megabytes=200)
    assert_same(kept(manifest, megabytes=200), opened(manifest))
    assert len(decoded.KeptFile.open(path).keys) == ROWS


def test_files_that_were_not_used_longest_go_first(manifest, monkeypatch):
    for i, each in enumerate((WHOLE, Kept(SIZE, SIZE))):
        before = set(files(manifest))
        kept(manifest, each)
        (new,) = set(files(manifest)) - before
        os.utime(new, (i + 1, i + 1))
    kept(manifest, WHOLE)  # used again
    (unused,) = [each for each in files(manifest) if each.stat().st_mtime == 2]
    (used,) = [each for each in files(manifest) if each != unused]
    limit = used.stat().st_size + 32 * 32 * 32 * 7  # the new one fits, if one goes
    monkeypatch.setattr(decoded, "_Room", lambda folder, path, _: Room(folder, path, limit))
    kept(manifest, Kept(None, SIZE))
    assert unused not in files(manifest) and used in files(manifest) and len(files(manifest)) == 2


Room = decoded._Room


def test_an_unwritable_folder_is_told_once(manifest, caplog):
    (manifest.parent / ".tfcam_jax").write_text("a file in the folder's place")
    for _ in range(2):
        assert_same(kept(manifest), opened(manifest))
    assert caplog.text.count("can't be kept") == 1


def test_a_full_disk_is_told_and_leaves_nothing(manifest, caplog):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (30_000, hard))
    try:
        assert_same(kept(manifest), opened(manifest))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert "can't be kept" in caplog.text
    assert [each.name for each in (manifest.parent / ".tfcam_jax").iterdir()] == [".gitignore"]


def test_what_a_killed_process_left_is_cleared_later(manifest):
    folder = manifest.parent / ".tfcam_jax"
    folder.mkdir()
    old, new = (folder / f".decoded-{name}.array_record.12" for name in ("old", "new"))
    for each in (old, new):
        each.write_bytes(b"half")
    os.utime(old, (1, 1))
    assert_same(kept(manifest), opened(manifest))
    assert new.exists() and not old.exists()


def test_nothing_is_written_where_others_write(manifest):
    assert_same(kept(manifest, write=False), opened(manifest))
    assert not (manifest.parent / ".tfcam_jax").exists()
    kept(manifest)
    found = kept(manifest, write=False)
    assert isinstance(found.splits["val"], decoded.Decoded)
    assert len(list(eval_batches(found.splits["val"], batch_size=4, image_size=SIZE))) == 2
