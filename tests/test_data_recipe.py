"""A recipe says all of a run's data: the same maps wherever they are read, the same refusals before anything is."""

import numpy as np
import pytest
from fake_layouts import write_csv
from scipy import ndimage
from tiny_manifest import SIZE, write_manifest

from tfcam_jax.data.annotations.marks import Marks, render
from tfcam_jax.data.checks.outcomes import Outcome
from tfcam_jax.data.recipe import DataRecipe
from tfcam_jax.data.source import DataError
from tfcam_jax.errors import ConfigError

CLASSES = ("bright", "dark")


@pytest.fixture
def manifest(tmp_path):
    """The tiny manifest with fixations for the first image of each split."""
    path = write_manifest(tmp_path / "data")
    firsts = [f"images/{split}0.png" for split in ("train", "val", "test")]
    write_csv(path.parent / "gaze.csv", [["image", "x", "y"], *([name, 8, 20] for name in firsts)])
    for split in ("train", "val", "test"):
        path.write_text(path.read_text().replace(f"maps/{split}0.png", "gaze.csv"))
    return path


def make(manifest, **fields):
    options = {"manifest": str(manifest), "sigma": 2.0, "pixels_per_degree": 1.5, "combine": "mean"}
    return DataRecipe("manifest", options | {"skip_unreadable": False}, **fields)


def without(manifest, *splits):
    lines = manifest.read_text().splitlines(keepends=True)
    other = manifest.with_name("other.csv")
    other.write_text("".join(line for line in lines if line.split(",")[0] not in splits))
    return other


def test_a_split_of_another_manifest_has_its_maps_read_as_the_runs_own(manifest):
    recipe = make(manifest, blur=0.05, threshold=0.4, placebo="border_ring")
    own = recipe.arrange(recipe.open())
    opened = recipe.open_split(manifest, "test", CLASSES)
    assert opened.split == "test" and opened.source.records.ids == own.splits["test"].records.ids
    for i in range(len(opened.source)):
        if opened.source.records.has_map[i]:
            np.testing.assert_array_equal(opened.source[i].saliency, own.splits["test"][i].saliency)
    # Each key matters to the first map: 1.5 pixels to a degree, sigma in degrees, then blur and threshold.
    drawn = render(Marks(fixations=((8.0, 20.0, 1.0),)), SIZE, SIZE, 3.0)
    blurred = ndimage.gaussian_filter(drawn, 0.05 * SIZE, mode="nearest")
    np.testing.assert_array_equal(opened.source[0].saliency, blurred >= 0.4 * blurred.max())
    # Placebos are for training: no split of another manifest gets one, whatever its name.
    np.testing.assert_array_equal(
        recipe.open_split(manifest, "train", CLASSES).source[0].saliency, opened.source[0].saliency
    )
    assert own.splits["train"][0].saliency.shape == (112, 112)


def test_a_split_that_nobody_names_is_test_or_else_validation(manifest):
    recipe = make(manifest)
    assert recipe.open_split(manifest, None, CLASSES).split == "test"
    opened = recipe.open_split(without(manifest, "test"), None, CLASSES)
    assert opened.split == "val" and set(opened.source.records.ids) == {f"images/val{i}.png" for i in range(8)}
    with pytest.raises(DataError, match="no row has split 'val'; name a split that the manifest has with --split"):
        recipe.open_split(without(manifest, "test", "val"), None, CLASSES)
    with pytest.raises(DataError, match="row 22: label 'dark', but the model knows 'light', 'bright'"):
        recipe.open_split(manifest, "test", ("light", "bright"))


def test_a_split_checked_once_is_known(manifest, monkeypatch):
    recipe = make(manifest)
    opened = recipe.open_split(manifest, "val", CLASSES)
    monkeypatch.setattr("tfcam_jax.data.checks.inspection.decode_image", lambda *_: pytest.fail("decoded again"))
    again = recipe.open_split(manifest, "val", CLASSES, known=opened.checked)
    assert again.source.records.digests == opened.source.records.digests


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"source": "manifests"}, "data.source is 'manifests'. Did you mean 'manifest'"),
        ({"channels": 2}, "channels must be 1"),
        ({"blur": 0.6}, r"maps.blur must be in \[0, 0.5\]"),
        ({"placebo": "mean"}, "Did you mean 'mean_map'"),
        ({"protocol": {"name": "k_fold", "num_folds": 2}}, "k_fold needs"),
    ],
)
def test_what_can_not_be_is_refused_before_anything_is_read(fields, message):
    with pytest.raises(ConfigError, match=message):
        DataRecipe(**{"source": "manifest", "options": {"manifest": "absent.csv"}} | fields)


def test_a_recipe_opens_every_source(tmp_path):
    demo = DataRecipe("demo", {"data_dir": str(tmp_path), "num_train": 4, "num_val": 2, "num_test": 2}, channels=1)
    assert demo.open({"key": Outcome()}).splits["train"][0].image.shape == (64, 64, 1)
    with pytest.raises(ConfigError, match="drawn and has no files to check"):
        demo.listing()
    for name in ("iris_pad", "cyborg_faces", "chest_xray"):
        recipe = DataRecipe(name, {"manual_dir": str(tmp_path / "absent"), "data_dir": "", "sigma": 1.0})
        for opening in (recipe.listing, recipe.open):
            with pytest.raises(DataError, match="how to obtain"):
                opening()


def test_arranging_is_protocol_and_then_maps(manifest):
    recipe = make(manifest, protocol={"name": "k_fold", "num_folds": 3}, placebo="other_image", seed=3)
    dataset = recipe.open()
    arranged = recipe.arrange(dataset)
    assert arranged.checked == dataset.checked
    assert {name.split("/")[1][:3] for name in arranged.splits["val"].records.ids} == {"tra", "val", "tes"}
    maps = lambda source: [source[i].saliency.tobytes() for i in range(len(source)) if source.records.has_map[i]]
    plain = make(manifest, protocol=recipe.protocol).arrange(dataset)
    assert maps(arranged.splits["val"]) == maps(plain.splits["val"])
    assert maps(arranged.splits["train"]) != maps(plain.splits["train"])
    assert sorted(maps(arranged.splits["train"])) == sorted(maps(plain.splits["train"]))
