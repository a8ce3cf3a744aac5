"""A restored model applied to what a caller hands over: arrays and files."""

import numpy as np
import pytest
from PIL import Image

import tfcam_jax
from tfcam_jax.data.source import DataError
from tfcam_jax.experiment import open_dataset
from tfcam_jax.inference import join_outputs


@pytest.fixture(scope="module")
def workdir(trained_run):
    return trained_run


@pytest.fixture(scope="module")
def trained(workdir):
    return tfcam_jax.restore(workdir)


@pytest.fixture(scope="module")
def test_split(trained):
    return open_dataset(trained.recipe).splits["test"]


def read(workdir, test_split):
    return np.stack([np.asarray(Image.open(workdir.parent / "data" / name)) for name in test_split.records.ids])


def test_predictions_are_those_of_evaluation(workdir, trained, test_split):
    expected = join_outputs(output for output, _ in trained.outputs(test_split))
    paths = [workdir.parent / "data" / name for name in test_split.records.ids]
    labels = test_split.records.labels
    for images in (read(workdir, test_split), paths, [str(path) for path in paths]):
        found = trained.predict(images, labels=labels)
        for name in ("logits", "true_map", "false_map", "difference"):
            np.testing.assert_allclose(getattr(found, name), getattr(expected, name), atol=1e-5)
    odds = np.exp(found.logits - found.logits.max(1, keepdims=True))
    np.testing.assert_allclose(found.probabilities, odds / odds.sum(1, keepdims=True), atol=1e-6)


def test_without_labels_the_predicted_class_counts_as_true(workdir, trained, test_split):
    images = read(workdir, test_split)
    found = trained.predict(images)
    again = trained.predict(images, labels=found.logits.argmax(1))
    np.testing.assert_array_equal(found.difference, again.difference)
    other = trained.predict(images, labels=1 - found.logits.argmax(1))
    np.testing.assert_allclose(other.difference, -found.difference, atol=1e-5)


def test_the_difference_adds_up_to_the_margin(workdir, trained, test_split):
    found = trained.predict(read(workdir, test_split))
    bias = np.asarray(trained.state.params["head"]["bias"])
    order = found.logits.argmax(1)[:, None]
    margin = np.take_along_axis(found.logits, order, 1) - np.take_along_axis(found.logits, 1 - order, 1)
    of_bias = bias[order] - bias[1 - order]
    np.testing.assert_allclose(found.difference.mean((1, 2)), (margin - of_bias)[:, 0], atol=1e-4)


def test_grey_and_colour_images_of_any_size_are_taken(trained):
    grey = np.random.default_rng(0).integers(0, 256, (3, 20, 50, 1), np.uint8)
    colour = np.repeat(grey, 3, axis=-1)
    one, other = trained.predict(grey), trained.predict(colour)
    np.testing.assert_array_equal(one.logits, other.logits)
    assert one.true_map.shape == (3, 4, 4)


@pytest.mark.parametrize(
    ("images", "labels", "message"),
    [
        (np.zeros((2, 8, 8, 3), np.float32), None, r"must be uint8 .* got float32 of shape \(2, 8, 8, 3\)"),
        (np.zeros((8, 8, 3), np.uint8), None, r"got uint8 of shape \(8, 8, 3\)"),
        (np.zeros((0, 8, 8, 3), np.uint8), None, "no images"),
        (np.zeros((1, 0, 0, 3), np.uint8), None, r"got uint8 of shape \(1, 0, 0, 3\)"),
        (["absent.png"], None, "absent.png: no such file"),
        (".", None, ": a folder"),
        (np.zeros((2, 8, 8, 3), np.uint8), [0], "labels must be 2 class indices"),
        (np.zeros((2, 8, 8, 3), np.uint8), [0, 2], r"labels must lie in 0\.\.1"),
        (np.zeros((2, 8, 8, 3), np.uint8), [0.0, 1.0], "class indices"),
    ],
)
def test_what_can_not_be_an_image_is_refused_with_the_remedy(trained, images, labels, message):
    with pytest.raises(DataError, match=message):
        trained.predict(images, labels=labels)


def test_a_file_that_is_no_image_is_named(trained, tmp_path):
    (tmp_path / "notes.png").write_text("no picture")
    with pytest.raises(DataError, match=r"notes\.png"):
        trained.predict(tmp_path / "notes.png")
