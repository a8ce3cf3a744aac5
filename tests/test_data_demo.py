"""The drawn data: what it promises is measured from its pixels."""

import numpy as np
import pytest
from scipy import ndimage
from sklearn.metrics import roc_auc_score
from tensorflow_datasets.core.utils import tqdm_utils

from tfcam_jax.data.builders import demo
from tfcam_jax.data.builders import demo_images as drawing
from tfcam_jax.data.builders.demo import open_demo
from tfcam_jax.data.pipeline import eval_batches

SIZES = {"num_train": 300, "num_val": 40, "num_test": 100}


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    return str(tmp_path_factory.mktemp("tfds"))


@pytest.fixture(scope="module")
def dataset(data_dir):
    return open_demo(data_dir=data_dir, **SIZES)


def pixels(source):
    return next(iter(eval_batches(source, batch_size=len(source), image_size=drawing.SIZE)))


def warmth(images):
    """The shortcut as a number: mean red less mean blue."""
    means = images.astype(float).mean((1, 2))
    return means[:, 0] - means[:, 2]


def test_splits_domains_and_classes(dataset):
    assert dataset.name == "demo"
    assert dataset.class_names == ("checks", "rings")
    assert {split: len(source) for split, source in dataset.splits.items()} == {"train": 300, "val": 40, "test": 200}
    for split, source in dataset.splits.items():
        domains = np.array(source.records.domains)
        assert set(domains) == ({"shortcut_agrees", "shortcut_random"} if split == "test" else {"shortcut_agrees"})
        for domain in set(domains):
            assert source.records.labels[domains == domain].mean() == 0.5
        assert source.records.ids == tuple(f"{split}_{i:06d}" for i in range(len(source)))
        np.testing.assert_array_equal(source.records.labels, np.arange(len(source)) % 2)
        np.testing.assert_array_equal([example.saliency is not None for example in source], source.records.has_map)
        assert source[0].image.shape == (64, 64, 3) and source[0].image.dtype == np.uint8
    assert sum(np.array(dataset.splits["test"].records.domains) == "shortcut_random") == 100


def test_the_light_tells_the_class_except_in_the_open_part(dataset):
    for split in ("train", "val"):
        batch = pixels(dataset.splits[split])
        assert roc_auc_score(batch["label"], warmth(batch["image"])) > 0.92
    batch = pixels(dataset.splits["test"])
    closed = np.array(dataset.splits["test"].records.domains) == "shortcut_agrees"
    assert roc_auc_score(batch["label"][closed], warmth(batch["image"])[closed]) > 0.92
    assert 0.4 < roc_auc_score(batch["label"][~closed], warmth(batch["image"])[~closed]) < 0.6


@pytest.mark.parametrize("agreement", [0.0, 0.5, 0.97, 1.0])
def test_the_share_of_agreeing_images_is_exact_per_class(agreement):
    agrees = demo._agreeing(np.random.default_rng(0), 200, agreement)
    for label in (0, 1):
        assert agrees[label::2].sum() == round(100 * agreement)
    if 0 < agreement < 1:
        assert (agrees != demo._agreeing(np.random.default_rng(1), 200, agreement)).any()


@pytest.mark.slow
def test_agreement_is_an_option(data_dir):
    source = open_demo(data_dir=data_dir, shortcut_agreement=0.0, **SIZES).splits["train"]
    batch = pixels(source)
    assert roc_auc_score(batch["label"], warmth(batch["image"])) < 0.05


@pytest.mark.parametrize("label", [0, 1])
def test_image_and_map_show_the_mark_in_its_place(label):
    """The mark is what has strong detail; the map is a blob on it, mostly near, sometimes sloppy, sometimes none."""
    drawings = [drawing.draw(np.random.default_rng([7, i]), label, bool(i % 2)) for i in range(200)]
    distances = []
    for made in drawings:
        grey = made.image.astype(float).mean(-1)
        detail = ndimage.gaussian_filter((grey - ndimage.gaussian_filter(grey, 2)) ** 2, 4)
        peak = np.add(np.unravel_index(detail.argmax(), detail.shape), 0.5)
        assert np.hypot(*(peak - made.centre)) < 6
        if made.saliency is not None:
            assert made.saliency.max() > 60
            middle = np.add(ndimage.center_of_mass(made.saliency.astype(float)), 0.5)
            distances.append(np.hypot(*(middle - made.centre)))
    missing = 1 - len(distances) / len(drawings)
    assert 0.1 < missing < 0.3
    assert np.median(distances) < 4
    assert 0.03 < np.mean(np.array(distances) > 8) < 0.2


def test_marks_differ_by_class_and_light_changes_nothing_else():
    rng = lambda: np.random.default_rng(3)
    cool, warm = drawing.draw(rng(), 0, False), drawing.draw(rng(), 0, True)
    shift = warm.image.astype(int) - cool.image
    inside = np.all((warm.image % 255 > 0) & (cool.image % 255 > 0), axis=-1)
    assert inside.mean() > 0.9
    assert np.ptp(shift[inside], axis=0).max() <= 1
    assert shift[inside].mean(0)[0] > 10 and shift[inside].mean(0)[2] < -10
    np.testing.assert_array_equal(warm.saliency, cool.saliency)
    assert warm.centre == cool.centre


def test_rings_look_the_same_from_all_sides_and_checks_do_not():
    mark = lambda label: drawing._mark(np.random.default_rng(label), label, (32.0, 32.0))
    turned = lambda label: ndimage.rotate(mark(label), 45, reshape=False, order=3)
    likeness = lambda label: np.corrcoef(mark(label).ravel(), turned(label).ravel())[0, 1]
    assert likeness(1) > 0.95
    assert likeness(0) < 0.5


def test_marks_lie_anywhere_and_inside():
    centres = np.array([drawing.draw(np.random.default_rng(i), i % 2, True).centre for i in range(200)])
    reach = drawing.MARK_SIDE / 2
    assert centres.min() >= reach and centres.max() <= drawing.SIZE - reach
    assert (np.ptp(centres, axis=0) > 0.9 * (drawing.SIZE - 2 * reach)).all()
    assert abs(np.corrcoef(centres.T)[0, 1]) < 0.25


def test_the_mark_alone_tells_the_class():
    """A linear reading of the spectrum of grey images: the true cue is there without the light."""
    draw = lambda i: drawing.draw(np.random.default_rng([9, i]), i % 2, bool(i // 2 % 2))
    energies = []
    for i in range(200):
        grey = draw(i).image.astype(float).mean(-1)
        spectrum = np.abs(np.fft.rfft2(grey - grey.mean())) ** 2
        radius = 64 * np.hypot(np.fft.fftfreq(64)[:, None], np.fft.rfftfreq(64)[None, :])
        band = lambda low, high, s=spectrum, r=radius: s[(r > low) & (r < high)].sum()
        energies.append(band(8, 11.5) / band(17, 24))
    assert roc_auc_score(np.arange(200) % 2, energies) > 0.95


def test_seed_decides_every_pixel(data_dir, tmp_path):
    small = {"num_train": 6, "num_val": 2, "num_test": 2}
    read = lambda seed, folder: pixels(open_demo(data_dir=folder, seed=seed, **small).splits["train"])
    first, again, other = read(1, data_dir), read(1, str(tmp_path)), read(2, data_dir)
    for name in first:
        np.testing.assert_array_equal(first[name], again[name])
    assert all((first["image"][i] != other["image"][j]).any() for i in range(6) for j in range(6))


def test_no_image_occurs_twice(dataset):
    images = [image.tobytes() for source in dataset.splits.values() for image in pixels(source)["image"]]
    assert len(set(images)) == len(images) == 540


def test_grey_has_no_light(dataset, data_dir):
    source = open_demo(data_dir=data_dir, channels=1, **SIZES).splits["train"]
    assert source[0].image.shape == (64, 64, 1)
    grey = pixels(source)["image"].astype(float).mean((1, 2, 3))
    assert 0.35 < roc_auc_score(source.records.labels, grey) < 0.65


@pytest.mark.parametrize(
    "options",
    [{"num_train": 1}, {"num_val": 0}, {"num_test": 1}, {"seed": -1}, {"shortcut_agreement": 1.1}, {"channels": 2}],
)
def test_impossible_settings_are_refused(options, tmp_path):
    with pytest.raises(ValueError, match=r"demo needs|shortcut_agreement must|channels must"):
        open_demo(data_dir=str(tmp_path), **options)
    assert not list(tmp_path.iterdir())


TINY = {"num_train": 4, "num_val": 2, "num_test": 2}


def test_tfds_is_quiet_and_the_count_is_ours(tmp_path, capfd):
    open_demo(data_dir=str(tmp_path), **TINY)
    out, err = capfd.readouterr()
    assert out == "" and err == "preparing demo: 10 images\n"
    assert tqdm_utils._active  # other sets of the same process have TFDS's bars again
    open_demo(data_dir=str(tmp_path), **TINY)
    assert capfd.readouterr() == ("", "")


def test_a_set_cut_short_is_not_read(tmp_path, monkeypatch):
    def stop(drawn, *_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(demo, "pack", stop)
        with pytest.raises(KeyboardInterrupt):
            open_demo(data_dir=str(tmp_path), **TINY)
    # What a killed process leaves, as nothing tidies up behind it.
    left = next((tmp_path / "demo").glob("seed*")) / "incomplete.ABCDEF_1.0.0"
    left.mkdir()
    (left / "demo-train.array_record-00000-of-00001").write_bytes(b"half")
    assert len(open_demo(data_dir=str(tmp_path), **TINY).splits["train"]) == 4


def test_two_processes_may_draw_at_once(tmp_path, monkeypatch):
    """Another process finishes the same set while this one is still drawing."""
    original = demo.Demo._split_generators

    def late(self, dl_manager):
        monkeypatch.setattr(demo.Demo, "_split_generators", original)
        open_demo(data_dir=str(tmp_path), **TINY)
        return original(self, dl_manager)

    monkeypatch.setattr(demo.Demo, "_split_generators", late)
    dataset = open_demo(data_dir=str(tmp_path), **TINY)
    assert len(dataset.splits["train"]) == 4
    assert not [path for path in tmp_path.rglob("*incomplete*")]


def test_a_disk_fault_is_not_mistaken_for_another_process(tmp_path, monkeypatch):
    def fail(*_, **__):
        raise OSError("No space left on device")

    monkeypatch.setattr(demo, "pack", fail)
    with pytest.raises(OSError, match="No space left"):
        open_demo(data_dir=str(tmp_path), **TINY)
