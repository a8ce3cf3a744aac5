"""The drawn data: what it promises is measured from its pixels."""

import dataclasses

import numpy as np
import pytest
from scipy import ndimage
from sklearn.metrics import roc_auc_score
from tensorflow_datasets.core import BuilderConfig
from tensorflow_datasets.core.utils import tqdm_utils

from tfcam_jax.data.builders import demo
from tfcam_jax.data.builders import demo_images as drawing
from tfcam_jax.data.builders.demo import open_demo
from tfcam_jax.data.pipeline import eval_batches
from tfcam_jax.data.protocol import split_by_domain, split_by_protocol

SIZES = {"num_train": 180, "num_val": 60, "num_test": 120}
TINY = {"num_train": 4, "num_val": 2, "num_test": 2}
INHERITED = {field.name for field in dataclasses.fields(BuilderConfig)}
KINDS = (*drawing.TRAINED_KINDS, *drawing.NEW_KINDS)


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    return str(tmp_path_factory.mktemp("tfds"))


@pytest.fixture(scope="module")
def dataset(data_dir):
    return open_demo(data_dir=data_dir, **SIZES)


def pixels(source):
    return next(iter(eval_batches(source, batch_size=len(source), image_size=drawing.SIZE)))


def warmth(images):
    """The global shortcut as a number: mean red less mean blue."""
    means = images.astype(float).mean((1, 2))
    return means[:, 0] - means[:, 2]


def stains(seeds, count, part, normal=False):
    """The local shortcut as a number: how much lighter the stain is than what lies around it."""

    def contrast(made):
        grey = made.image.astype(float).mean(-1)
        radius = np.hypot(*drawing._offsets(made.stain))
        return grey[radius < 4].mean() - grey[(radius > 8) & (radius < 11)].mean()

    return np.array([contrast(made) for _, made in demo._draw_part(seeds, count, part, normal)])


def detail(made):
    """How much goes on at each pixel in fine structure; nothing at the stain, whose edge has some too."""
    grey = made.image.astype(float).mean(-1)
    fine = (grey - ndimage.gaussian_filter(grey, 2)) ** 2
    return ndimage.gaussian_filter(np.where(np.hypot(*drawing._offsets(made.stain)) < 10, 0, fine), 4)


def is_open(source):
    return np.isin(source.records.domains, drawing.NEW_KINDS)


def test_splits_domains_and_classes(dataset):
    assert dataset.name == "demo"
    assert dataset.class_names == ("checks", "rings")
    assert {split: len(source) for split, source in dataset.splits.items()} == {"train": 180, "val": 60, "test": 240}
    for split, source in dataset.splits.items():
        domains = np.array(source.records.domains)
        assert set(domains) == set(KINDS if split == "test" else drawing.TRAINED_KINDS)
        for domain in set(domains):
            assert source.records.labels[domains == domain].mean() == 0.5
        assert source.records.ids == tuple(f"{split}_{i:06d}" for i in range(len(source)))
        np.testing.assert_array_equal(source.records.labels, np.arange(len(source)) % 2)
        np.testing.assert_array_equal([example.saliency is not None for example in source], source.records.has_map)
        assert source[0].image.shape == (64, 64, 3) and source[0].image.dtype == np.uint8
    assert is_open(dataset.splits["test"]).sum() == 120


def test_the_open_set_is_what_the_protocol_takes_for_one(dataset):
    """Kinds are domains: those that training has not seen are the open set, each with both classes."""
    train, test = dataset.splits["train"].records, dataset.splits["test"].records
    rows = split_by_protocol(train.domains, test.domains, test.labels)
    np.testing.assert_array_equal(rows["open"], np.arange(120, 240))
    by_kind = split_by_domain(test.domains, test.labels)
    assert set(by_kind) == set(KINDS) and all(len(own) == 40 for own in by_kind.values())


def test_the_light_tells_the_class_except_in_the_open_part(dataset):
    """Each image's own colour hides some of it."""
    for split in ("train", "val"):
        batch = pixels(dataset.splits[split])
        assert roc_auc_score(batch["label"], warmth(batch["image"])) > 0.65
    batch, opened = pixels(dataset.splits["test"]), is_open(dataset.splits["test"])
    assert roc_auc_score(batch["label"][~opened], warmth(batch["image"])[~opened]) > 0.65
    assert 0.35 < roc_auc_score(batch["label"][opened], warmth(batch["image"])[opened]) < 0.65


@pytest.mark.parametrize(("agreement", "low", "high"), [(1.0, 0.97, 1), (0.5, 0.35, 0.65), (0.0, 0, 0.03)])
def test_the_stain_tells_the_class_as_often_as_it_is_asked_to(agreement, low, high):
    lightness = stains([3, 0, 0], 200, demo._Part(drawing.NEW_KINDS, (0.5, agreement)))
    assert low <= roc_auc_score(np.arange(200) % 2, lightness) <= high


def test_the_two_shortcuts_err_independently(monkeypatch):
    asked = []
    monkeypatch.setattr(demo, "draw", lambda rng, pattern, kind, *shortcuts: asked.append(shortcuts))
    list(demo._draw_part([0, 0, 0], 2000, demo._Part(drawing.TRAINED_KINDS, (0.8, 0.8)), normal=False))
    fits = np.array(asked) == (np.arange(2000) % 2 == 1)[:, None]
    np.testing.assert_allclose(fits.mean(0), 0.8)
    assert abs(np.corrcoef(fits.T)[0, 1]) < 0.06


@pytest.mark.parametrize("agreement", [0.0, 0.5, 0.97, 1.0])
def test_the_share_of_agreeing_images_is_exact_per_class(agreement):
    agrees = demo._agreeing(np.random.default_rng(0), 200, agreement)
    for label in (0, 1):
        assert agrees[label::2].sum() == round(100 * agreement)
    if 0 < agreement < 1:
        assert (agrees != demo._agreeing(np.random.default_rng(1), 200, agreement)).any()


def test_each_agreement_is_asked_for_where_it_counts(tmp_path, monkeypatch):
    """The builder's options reach the parts that they are of: their own the closed, one for both the open."""
    parts, draw_part = [], demo._draw_part

    def note(seeds, count, part, normal):
        parts.append(part)
        return draw_part(seeds, count, part, normal)

    monkeypatch.setattr(demo, "_draw_part", note)
    agreements = {"shortcut_agreement": 0.7, "local_agreement": 0.6, "open_agreement": 0.0}
    open_demo(data_dir=str(tmp_path), **agreements, **TINY)
    closed, opened = (drawing.TRAINED_KINDS, (0.7, 0.6)), (drawing.NEW_KINDS, (0.0, 0.0))
    assert sorted(parts) == sorted([closed, closed, closed, opened])


def test_the_open_part_may_be_reversed():
    made = demo._draw_part([0, 2, 1], 100, demo._Part(drawing.NEW_KINDS, (0.0, 0.0)), False)
    images = np.stack([each.image for _, each in made])
    assert roc_auc_score(np.arange(100) % 2, warmth(images)) < 0.3


@pytest.mark.parametrize("pattern", drawing.PATTERNS)
def test_image_and_map_show_the_mark_in_its_place(pattern):
    """The mark is what has strong detail; the map is a blob on it, mostly near, sometimes sloppy, sometimes none."""
    made = lambda i: drawing.draw(np.random.default_rng([7, i]), pattern, KINDS[i % len(KINDS)], bool(i % 2), i % 4 < 2)
    distances, from_peaks = [], []
    for each in map(made, range(240)):
        found = detail(each)
        peak = np.add(np.unravel_index(found.argmax(), found.shape), 0.5)
        from_peaks.append(np.hypot(*(peak - each.centre)))
        if each.saliency is not None:
            assert each.saliency.max() > 60
            middle = np.add(ndimage.center_of_mass(each.saliency.astype(float)), 0.5)
            distances.append(np.hypot(*(middle - each.centre)))
    assert np.quantile(from_peaks, 0.95) < 8
    assert 0.1 < 1 - len(distances) / 240 < 0.3
    assert np.median(distances) < 4
    assert 0.03 < np.mean(np.array(distances) > 8) < 0.2


def test_the_stain_lies_outside_of_what_people_mark():
    made = [drawing.draw(np.random.default_rng(i), "rings", "lines", True, bool(i % 2)) for i in range(200)]
    assert min(np.hypot(*np.subtract(each.stain, each.centre)) for each in made) >= drawing.STAIN_DISTANCE
    marked = [each.saliency[tuple(np.array(each.stain, int))] / 255 for each in made if each.saliency is not None]
    assert np.mean(np.array(marked) > 0.1) < 0.03  # a sloppy map may reach it
    assert (np.ptp([each.stain for each in made], axis=0) > 0.8 * drawing.SIZE).all()


@pytest.mark.parametrize("shortcut", ["light", "stain"])
def test_a_shortcut_changes_nothing_but_itself(shortcut):
    draw = lambda which: drawing.draw(
        np.random.default_rng(3), "checks", "waves", which if shortcut == "light" else True,
        which if shortcut == "stain" else True,
    )  # fmt: skip
    without, with_it = draw(False), draw(True)
    shift = with_it.image.astype(int) - without.image
    inside = np.all((with_it.image % 255 > 0) & (without.image % 255 > 0), axis=-1)
    assert inside.mean() > 0.9
    np.testing.assert_array_equal(with_it.saliency, without.saliency)
    assert with_it.centre == without.centre and with_it.stain == without.stain
    if shortcut == "light":  # everywhere alike
        assert np.ptp(shift[inside], axis=0).max() <= 1
        assert shift[inside].mean(0)[0] > 5 and shift[inside].mean(0)[2] < -5
        return
    radius = np.hypot(*drawing._offsets(with_it.stain))
    assert (shift[inside & (radius < 2)] > 40).all()
    assert np.abs(shift[inside & (radius > 18)]).max() <= 1
    assert np.ptp(shift, axis=-1)[inside].max() <= 1  # no colour of its own


def mark(pattern, kind, seed=1):
    return drawing._mark(np.random.default_rng(seed), pattern, kind, (32.0, 32.0))


@pytest.mark.parametrize("kind", ["waves", "blocks"])
def test_rings_look_the_same_from_all_sides_and_checks_do_not(kind):
    """By the average over phases, turns and periods."""
    turned = lambda drawn: ndimage.rotate(drawn, 45, reshape=False, order=1)
    alike = lambda drawn: np.corrcoef(drawn.ravel(), turned(drawn).ravel())[0, 1]
    likeness = lambda pattern: np.mean([alike(mark(pattern, kind, seed)) for seed in range(10)])
    assert likeness("rings") > 0.8
    assert likeness("checks") < 0.5


def test_each_kind_looks_otherwise_and_keeps_to_its_patterns_places():
    """With the same random numbers, kinds differ in looks; what is drawn follows the lines of the same pattern."""
    for pattern in drawing.PATTERNS:
        phases = drawing._phases(np.random.default_rng(2), pattern, (32.0, 32.0))
        drawn = {kind: drawing._KINDS[kind](np.random.default_rng(2), pattern, phases) for kind in KINDS}
        lines = drawn["lines"]
        assert ((drawn["dashes"] == 0) | (drawn["dashes"] <= lines + 1e-12)).all()
        assert 0.2 < (drawn["dashes"] > 0.5).sum() / (lines > 0.5).sum() < 0.9
        assert (drawn["dots"] <= np.sqrt(lines) + 1e-12).all()
        shown = drawn["speckled"] != 0
        np.testing.assert_array_equal(drawn["speckled"][shown], drawn["waves"][shown])
        assert 0.4 < shown.mean() < 0.6
        np.testing.assert_array_equal(np.sign(drawn["blocks"]), np.sign(drawn["waves"]))
        assert all(np.abs(one).max() <= 1 and one.std() > 0.05 for one in drawn.values())


def test_dots_on_rings_are_whole_ones():
    """Going round once, a ring ends where it began: no seam where the angle jumps from -pi to pi."""
    for seed in range(20):
        second = drawing._phases(np.random.default_rng(seed), "rings", (32.0, 32.0)).second
        columns = np.arange(32)  # left of the centre, a pixel above and one below it at the same distance
        angle = 2 * np.arctan2(0.5, 31.5 - columns)
        repetitions = (second[32, columns] - second[31, columns]) / (2 * np.pi - angle)
        np.testing.assert_allclose(repetitions, np.rint(repetitions), atol=1e-9)
        assert repetitions.min() > 0.99 and repetitions.max() > 15


def test_marks_lie_anywhere_and_inside():
    made = lambda i: drawing.draw(np.random.default_rng(i), drawing.PATTERNS[i % 2], "waves", True, True)
    centres = np.array([made(i).centre for i in range(200)])
    reach = drawing.MARK_SIDE / 2
    assert centres.min() >= reach and centres.max() <= drawing.SIZE - reach
    assert (np.ptp(centres, axis=0) > 0.9 * (drawing.SIZE - 2 * reach)).all()
    assert abs(np.corrcoef(centres.T)[0, 1]) < 0.25


def test_a_normal_image_has_neither_mark_nor_map(tmp_path):
    """It shares the kinds of the other class, so that each kind has a test of its own."""
    dataset = open_demo(data_dir=str(tmp_path), normal=True, num_train=80, num_val=2, num_test=2)
    records = dataset.splits["train"].records
    assert dataset.class_names == ("normal", "marked")
    assert not records.has_map[records.labels == 0].any()
    assert 0.6 < records.has_map[records.labels == 1].mean() < 0.95
    assert len(set(zip(records.domains, records.labels.tolist(), strict=True))) == 2 * len(drawing.TRAINED_KINDS)
    made = demo._draw_part([0, 0, 0], 120, demo._Part(KINDS, (0.5, 0.5)), normal=True)
    assert roc_auc_score(np.arange(120) % 2, [detail(each).max() for _, each in made]) > 0.9


def test_the_two_patterns_are_alike_often_where_one_class_is_normal(monkeypatch):
    asked = []
    monkeypatch.setattr(demo, "draw", lambda rng, pattern, *rest: asked.append(pattern))
    list(demo._draw_part([0, 0, 0], 400, demo._Part(drawing.TRAINED_KINDS, (0.5, 0.5)), normal=True))
    assert asked[::2] == [None] * 200
    assert 70 < asked[1::2].count("rings") < 130 and set(asked[1::2]) == set(drawing.PATTERNS)


def test_seed_decides_every_pixel(data_dir, tmp_path):
    small = {"num_train": 6, "num_val": 2, "num_test": 2}
    read = lambda seed, folder: pixels(open_demo(data_dir=folder, seed=seed, **small).splits["train"])
    first, again, other = read(1, data_dir), read(1, str(tmp_path)), read(2, data_dir)
    for name in first:
        np.testing.assert_array_equal(first[name], again[name])
    assert all((first["image"][i] != other["image"][j]).any() for i in range(6) for j in range(6))


def test_no_image_occurs_twice(dataset):
    images = [image.tobytes() for source in dataset.splits.values() for image in pixels(source)["image"]]
    assert len(set(images)) == len(images) == 480


def test_grey_has_no_light(dataset, data_dir):
    source = open_demo(data_dir=data_dir, channels=1, **SIZES).splits["train"]
    assert source[0].image.shape == (64, 64, 1)
    grey = pixels(source)["image"].astype(float).mean((1, 2, 3))
    assert 0.35 < roc_auc_score(source.records.labels, grey) < 0.65


@pytest.mark.parametrize(
    "options",
    [
        {"num_train": 1},
        {"num_val": 0},
        {"num_test": 1},
        {"seed": -1},
        {"shortcut_agreement": 1.1},
        {"local_agreement": -0.1},
        {"open_agreement": 2.0},
        {"channels": 2},
    ],
)
def test_impossible_settings_are_refused(options, tmp_path):
    with pytest.raises(ValueError, match=r"demo needs|_agreement must|channels must"):
        open_demo(data_dir=str(tmp_path), **options)
    assert not list(tmp_path.iterdir())


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
    left = next((tmp_path / "demo").glob("seed*")) / "incomplete.ABCDEF_2.0.0"
    left.mkdir()
    (left / "demo-train.array_record-00000-of-00001").write_bytes(b"half")
    assert len(open_demo(data_dir=str(tmp_path), **TINY).splits["train"]) == 4


def test_a_set_that_an_older_version_drew_is_not_taken(tmp_path, capfd):
    first = open_demo(data_dir=str(tmp_path), **TINY)
    (folder,) = (tmp_path / "demo").glob("seed*/*")
    folder.rename(folder.with_name("1.0.0"))
    capfd.readouterr()
    again = open_demo(data_dir=str(tmp_path), **TINY)
    assert capfd.readouterr().err == "preparing demo: 10 images\n"
    assert {path.name for path in folder.parent.iterdir()} == {"1.0.0", str(demo.Demo.VERSION)}
    np.testing.assert_array_equal(first.splits["train"][0].image, again.splits["train"][0].image)


def test_settings_lie_side_by_side():
    """Each of them is in the name, so that no set is taken for one of other settings."""
    changed = {"seed": 1, "num_train": 4, "num_val": 4, "num_test": 4, "normal": True}
    changed |= dict.fromkeys(("shortcut_agreement", "local_agreement", "open_agreement"), 0.25)
    assert changed.keys() == {field.name for field in dataclasses.fields(demo.DemoConfig)} - INHERITED
    names = {demo.DemoConfig(**{key: value}).name for key, value in changed.items()}
    assert len(names | {demo.DemoConfig().name}) == len(changed) + 1


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
