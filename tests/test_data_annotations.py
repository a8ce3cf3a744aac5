"""Every form of annotation against geometry done by hand, in NumPy or by another program."""

import csv
import io
import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from tfcam_jax.data.annotations import find_marks, read_picture, read_table
from tfcam_jax.data.annotations.marks import Marks, render
from tfcam_jax.data.annotations.rle import decode_rle
from tfcam_jax.data.listing import MapReader, Row, split_map_cell
from tfcam_jax.data.source import DataError

# Written by pycocotools 2.0 from two overlapping rectangles and a point.
COCO_COUNTS = "X8?f00000000000000000000000000000000000`0@0000000:F000000000000000000K\\OId0<00000000000000000P3"


def encode_rle(mask):
    """Uncompressed COCO runs, by the definition: columns first, beginning with zeros."""
    runs, value = [0], 0
    for pixel in mask.T.ravel():
        if pixel != value:
            runs.append(0)
            value = pixel
        runs[-1] += 1
    return {"size": list(mask.shape), "counts": runs}


def compress(runs):
    """COCO's characters, by its description: differences to the run before the last, 5 bits a character."""
    text = ""
    for i, run in enumerate(runs):
        number, more = run - (runs[i - 2] if i > 2 else 0), True
        while more:
            digit, number = number & 31, number >> 5
            more = number != (-1 if digit & 16 else 0)
            text += chr(48 + digit + 32 * more)
    return text


def test_boxes_cover_shares_of_pixels():
    drawn = render(Marks(boxes=((1.25, 2.0, 2.5, 1.0),)), 5, 6, 1.0)
    expected = np.zeros((5, 6))
    expected[2, 1:4] = 0.75, 1, 0.75
    np.testing.assert_allclose(drawn, expected, atol=1e-6)
    assert drawn.dtype == np.float32


@given(st.floats(0, 900), st.floats(0, 500), st.floats(1, 100), st.floats(1, 100))
def test_large_images_are_drawn_small_and_keep_area_and_centre(x, y, width, height):
    drawn = render(Marks(boxes=((x, y, width, height),)), 600, 1000, 1.0)
    assert drawn.shape == (307, 512)
    pixel = 1000 / 512 * 600 / 307
    assert drawn.sum() * pixel == pytest.approx(width * height, rel=1e-3)
    centre = (drawn.sum(0) @ (np.arange(512) + 0.5)) / drawn.sum() * 1000 / 512
    assert centre == pytest.approx(x + width / 2, abs=1)


def test_polygons():
    triangle = (2.0, 2.0, 18.0, 2.0, 2.0, 18.0)
    drawn = render(Marks(polygons=(triangle,)), 20, 24, 1.0)
    rows, columns = np.mgrid[:20, :24] + 0.5
    inside = (rows > 2) & (columns > 2) & (rows + columns < 20)
    assert np.abs(drawn - inside).mean() < 0.03
    assert drawn.sum() == pytest.approx(128, rel=0.06)
    square = (4.0, 4.0, 12.0, 4.0, 12.0, 12.0, 4.0, 12.0)
    box = render(Marks(boxes=((4.0, 4.0, 8.0, 8.0),)), 20, 24, 1.0)
    np.testing.assert_allclose(render(Marks(polygons=(square,)), 20, 24, 1.0), box, atol=0.3)


def test_rle_written_by_pycocotools():
    expected = np.zeros((37, 53), bool)
    expected[5:20, 7:30] = expected[15:36, 25:50] = expected[10, 40] = True
    np.testing.assert_array_equal(decode_rle({"size": [37, 53], "counts": COCO_COUNTS}), expected)


@given(st.integers(1, 9), st.integers(1, 40), st.integers(0, 2**32 - 1), st.floats(0, 1))
def test_rle_of_any_mask(height, width, seed, share):
    mask = np.random.default_rng(seed).random((height, width)) < share
    rle = encode_rle(mask)
    np.testing.assert_array_equal(decode_rle(rle), mask)
    np.testing.assert_array_equal(decode_rle(rle | {"counts": compress(rle["counts"])}), mask)
    np.testing.assert_array_equal(render(Marks(masks=(rle,)), height, width, 1.0), mask)


@pytest.mark.parametrize(
    ("rle", "message"),
    [
        ({"size": [2, 2], "counts": [1, 2]}, "must fill its 2 x 2"),
        ({"size": [2, 2], "counts": [5, -1]}, "must fill"),
        ({"counts": [4]}, "must be"),
        ({"size": [2, 2], "counts": "P"}, "middle of a run"),
        # What C decoders answer with whatever stands in memory, or run out of it.
        ({"size": [2, 2], "counts": ""}, "must fill"),
        ({"size": [2, 2], "counts": "o" * 5000 + "0"}, "longer than any mask"),
        ({"size": [2, 2], "counts": "4\x7f"}, "stands for no digit"),
        ({"size": [2, 2], "counts": "4é"}, "stands for no digit"),
        ({"size": [0, 4], "counts": []}, "must fill"),
        ({"size": [-2, -2], "counts": [4]}, "must fill"),
        ({"size": [2**20, 2**20], "counts": [2**40]}, "too large"),
        ({"size": [2, 2], "counts": [float("inf")]}, "must be"),
        ({"size": "ab", "counts": [4]}, "must be"),
        ({"size": [2, 2, 1], "counts": [4]}, "must be"),
    ],
)
def test_broken_rle(rle, message):
    with pytest.raises(ValueError, match=message):
        decode_rle(rle)


def test_fixations_are_gaussians_weighted_by_duration():
    marks = Marks(
        fixations=((10.0, 6.0, 0.3), (30.0, 20.0, 0.6), (-1.0, 9.0, 99.0), (9.0, -1.0, 99.0), (41.0, 9.0, 99.0))
    )
    drawn = render(marks, 30, 40, 4.0)
    rows, columns = np.mgrid[:30, :40] + 0.5
    at = lambda x, y: np.exp(-((rows - y) ** 2 + (columns - x) ** 2) / (2 * 4.0**2))
    expected = 0.3 * at(10, 6) + 0.6 * at(30, 20)
    np.testing.assert_allclose(drawn, expected / expected.max(), atol=1e-5)
    assert not render(Marks(fixations=((-1.0, -1.0, 1.0),)), 30, 40, 4.0).any()


def test_a_sigma_in_degrees_is_that_many_pixels(tmp_path):
    table = {"gaze.csv": {"a": {"1": Marks(fixations=((10.0, 6.0, 1.0),))}}}
    row = Row("list", 1, "train", "x", "a.png", "gaze.csv")
    pixels = MapReader(tmp_path, sigma=6.0, tables=table).read(row, 30, 40)
    degrees = MapReader(tmp_path, sigma=1.5, pixels_per_degree=4.0, tables=table).read(row, 30, 40)
    np.testing.assert_array_equal(pixels, degrees)
    with pytest.raises(ValueError, match=r"maps\.sigma must be above 0"):
        MapReader(tmp_path, sigma=0.0)


@pytest.mark.parametrize(
    ("marks", "message"),
    [
        (Marks(boxes=((10.0, 0.0, 15.0, 5.0),)), "outside the image's 20 x 10 pixels; do they belong to another size"),
        (Marks(boxes=((1.0, 1.0, 0.0, 5.0),)), "marks nothing"),
        (Marks(polygons=((0.0, 0.0, 5.0, 5.0),)), "three corners or more"),
        (Marks(polygons=((0.0, 0.0, 5.0, 5.0, 99.0, 0.0),)), "polygon reaches outside"),
        (Marks(fixations=((1.0, 1.0, -1.0),)), "not negative"),
        (Marks(masks=({"size": [20, 20], "counts": [400]},)), "mask of 20 x 20 pixels in an image of 20 x 10"),
    ],
)
def test_marks_that_do_not_fit(marks, message):
    with pytest.raises(ValueError, match=message):
        render(marks, 10, 20, 2.0)


def save(array):
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


@pytest.mark.parametrize(
    ("array", "expected"),
    [
        (np.array([[0, 255, 51]], np.uint8), [[0, 1, 0.2]]),
        (np.array([[0, 1, 1]], np.uint8), [[0, 1, 1]]),
        (np.array([[True, False]]), [[1, 0]]),
        (np.array([[0, 65535]], np.uint16), [[0, 1]]),
        (np.array([[0.25, 0.5]]), [[0.25, 0.5]]),
        (np.array([[1.0, 4.0]], np.float16), [[0.25, 1]]),
        (np.array([[[0.5], [1.0]]], np.float32), [[0.5, 1]]),
    ],
)
def test_numpy_arrays(array, expected):
    values = read_picture(save(array), ".npy")
    assert values.dtype == np.float32
    np.testing.assert_allclose(values, expected, rtol=1e-6)


@pytest.mark.parametrize(
    ("encoded", "message"),
    [
        (b"no array", "not a NumPy array"),
        (save(np.zeros(3)), "must be"),
        (save(np.array([[np.nan]])), "finite"),
        (save(np.array([[-1.0]])), "non-negative"),
        (save(np.array([[{}]], object)), "not a NumPy array"),
    ],
)
def test_arrays_that_are_no_maps(encoded, message):
    with pytest.raises(ValueError, match=message):
        read_picture(encoded, ".npy")


def write_csv(path, *lines, **options):
    with path.open("w", newline="", **options) as file:
        csv.writer(file).writerows(lines)
    return path


def test_csv_of_every_kind(tmp_path):
    boxes = write_csv(
        tmp_path / "a.csv",
        ("image", "x", "y", "width", "height", "annotator"),
        ("dir/one.png", 1, 2, 3, 4, "anna"),
        ("dir/one.png", 5, 6, 7, 8, "anna"),
        ("dir/one.png", 1, 1, 1, 1, "ben"),
        ("none.png", "", "", "", "", ""),
        encoding="utf-8-sig",
    )
    table = read_table(boxes)
    assert find_marks(table, "dir/one.png") == {
        "anna": Marks(boxes=((1.0, 2.0, 3.0, 4.0), (5.0, 6.0, 7.0, 8.0))),
        "ben": Marks(boxes=((1.0, 1.0, 1.0, 1.0),)),
    }
    assert find_marks(table, "none.png") == {"1": Marks()}
    assert find_marks(table, "other.png") == {}
    corners = write_csv(tmp_path / "b.csv", ("image", "x_min", "y_min", "x_max", "y_max"), ("one", 1, 2, 4, 6))
    assert find_marks(read_table(corners), "any/one.jpg") == {"1": Marks(boxes=((1.0, 2.0, 3.0, 4.0),))}
    polygon = write_csv(tmp_path / "c.csv", ("image", "polygon"), ("one.png", "0 0 1 0 1 1"))
    assert find_marks(read_table(polygon), "x/one.png") == {"1": Marks(polygons=((0.0, 0.0, 1.0, 0.0, 1.0, 1.0),))}
    gaze = write_csv(tmp_path / "d.csv", ("image", "x", "y", "duration"), ("one.png", 1, 2, 0.5), ("one.png", 3, 4, ""))
    assert find_marks(read_table(gaze), "one.png") == {"1": Marks(fixations=((1.0, 2.0, 0.5), (3.0, 4.0, 1.0)))}


def test_faults_of_a_csv_are_collected_with_their_rows(tmp_path):
    path = write_csv(
        tmp_path / "a.csv",
        ("image", "x", "y", "width", "height"),
        ("", 1, 2, 3, 4),
        ("a", 1, 2, "", 4),
        ("a", 1, "two", 3, 4),
        ("a", 1, 2, 3, 4),
    )
    with pytest.raises(DataError) as caught:
        read_table(path)
    lines = caught.value.problems
    assert len(lines) == 3
    assert "row 2: no image named" in lines[0]
    assert "row 3: incomplete: only x, y, height given" in lines[1]
    assert "row 4: y is 'two', not a number" in lines[2]


def test_json_and_coco(tmp_path):
    rle = encode_rle(np.eye(4, dtype=bool))
    own = [
        {"image": "one.png", "boxes": [[1, 1, 2, 2]], "annotator": "anna"},
        {"image": "one.png", "polygons": [[0, 0, 3, 0, 3, 3]], "annotator": "ben"},
        {"image": "two.png", "masks": [rle], "fixations": [[1, 1, 0.2]]},
    ]
    (tmp_path / "own.json").write_text(json.dumps(own))
    table = read_table(tmp_path / "own.json")
    assert table["one.png"]["anna"] == Marks(boxes=((1.0, 1.0, 2.0, 2.0),))
    assert table["one.png"]["ben"] == Marks(polygons=((0.0, 0.0, 3.0, 0.0, 3.0, 3.0),))
    assert table["two.png"]["1"] == Marks(masks=(rle,), fixations=((1.0, 1.0, 0.2),))
    coco = {
        "images": [
            {"id": 7, "file_name": "one.png"},
            {"id": 8, "file_name": "two.png"},
            {"id": 9, "file_name": "no.png"},
        ],
        "annotations": [
            {"image_id": 7, "bbox": [1, 1, 2, 2], "segmentation": [[0, 0, 3, 0, 3, 3]]},
            {"image_id": 7, "bbox": [0, 0, 4, 4], "segmentation": rle | {"counts": compress(rle["counts"])}},
            {"image_id": 8, "bbox": [1, 1, 2, 2], "annotator": "anna"},
        ],
    }
    (tmp_path / "coco.json").write_text(json.dumps(coco))
    table = read_table(tmp_path / "coco.json")
    assert table["one.png"]["1"].polygons == ((0, 0, 3, 0, 3, 3),)
    np.testing.assert_array_equal(decode_rle(table["one.png"]["1"].masks[0]), np.eye(4))
    assert table["two.png"] == {"anna": Marks(boxes=((1.0, 1.0, 2.0, 2.0),))}
    assert table["no.png"] == {"1": Marks()}


def test_who_looked_and_marked_nothing_counts_in_every_table(tmp_path):
    """Half of two annotators, whichever the format."""
    write_csv(
        tmp_path / "a.csv",
        ("image", "x", "y", "width", "height", "annotator"),
        ("a.png", 0, 0, 2, 2, "anna"),
        ("a.png", "", "", "", "", "ben"),
    )
    own = [{"image": "a.png", "boxes": [[0, 0, 2, 2]], "annotator": "anna"}, {"image": "a.png", "annotator": "ben"}]
    (tmp_path / "a.json").write_text(json.dumps(own))
    for name in ("a.csv", "a.json"):
        reader = MapReader(tmp_path, tables={name: read_table(tmp_path / name)})
        saliency = reader.read(Row("list", 1, "train", "x", "a.png", name), 2, 2)
        np.testing.assert_array_equal(saliency, np.full((2, 2), 0.5))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "not JSON"),
        ('{"a": 1}', "must be COCO or a list"),
        ('[{"boxes": [[1, 2, 3, 4]]}]', "entry 0: no image named"),
        ('[{"image": "a", "boxes": [[1, 2, 3]]}]', "entry 0: boxes"),
        ('[{"image": "a", "masks": [{"size": [2, 2], "counts": [3]}]}]', "entry 0: an RLE's runs"),
        ('{"images": [], "annotations": [{"image_id": 5}]}', "annotation 0: image_id 5"),
        ('{"images": [], "annotations": [5]}', "must be COCO or a list"),
    ],
)
def test_faults_of_a_json(tmp_path, content, message):
    (tmp_path / "a.json").write_text(content)
    with pytest.raises(ValueError, match=message):
        read_table(tmp_path / "a.json")


def test_map_cells_with_several_annotators(tmp_path):
    assert split_map_cell("") == []
    assert split_map_cell("a.png") == [("", "a.png")]
    assert split_map_cell("anna=x/a.png | ben=b.npy") == [("anna", "x/a.png"), ("ben", "b.npy")]
    Image.new("L", (4, 3), 51).save(tmp_path / "a.png")
    np.save(tmp_path / "b.npy", np.full((3, 4), 0.6))
    row = lambda cell: Row("list", 1, "train", "x", "a.png", cell)
    maps = MapReader(tmp_path).annotators(row("a.png|ben=b.npy"), 3, 4)
    assert list(maps) == ["1", "ben"]
    np.testing.assert_allclose(MapReader(tmp_path).read(row("a.png|b.npy"), 3, 4), np.full((3, 4), 0.4), rtol=1e-6)
    assert MapReader(tmp_path, "carl").read(row("a.png|ben=b.npy"), 3, 4) is None
    with pytest.raises(ValueError, match="annotator anna has two maps"):
        MapReader(tmp_path).read(row("anna=a.png|anna=b.npy"), 3, 4)
