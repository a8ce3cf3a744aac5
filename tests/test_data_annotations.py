"""Every form of annotation against geometry done by hand, in NumPy or by another program."""

import base64
import copy
import csv
import io
import json
import math
import zlib
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from tfcam_jax.data.annotations import marks as marks_module
from tfcam_jax.data.annotations import read_table
from tfcam_jax.data.annotations.marks import Marks, render
from tfcam_jax.data.annotations.matching import assign
from tfcam_jax.data.annotations.rle import decode_rle
from tfcam_jax.data.annotations.table import Table
from tfcam_jax.data.checks.declared_sizes import check_sizes
from tfcam_jax.data.checks.inspection import row_keys
from tfcam_jax.data.checks.outcomes import Outcome
from tfcam_jax.data.listing import Listing, MapReader, Row, check_annotator, read_tables
from tfcam_jax.data.source import DataError
from tfcam_jax.errors import ConfigError

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


@given(st.floats(0, 900), st.floats(0, 500), st.floats(2, 100), st.floats(2, 100))
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
    table = {"gaze.csv": {"a.png": {"1": Marks(fixations=((10.0, 6.0, 1.0),))}}}
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
        (Marks(fixations=((2.0, 1.0, -1.0),)), "not negative"),
        (Marks(masks=({"size": [20, 20], "counts": [400]},)), "mask of 20 x 20 pixels in an image of 20 x 10"),
    ],
)
def test_marks_that_do_not_fit(marks, message):
    with pytest.raises(ValueError, match=message):
        render(marks, 10, 20, 2.0)


def write_csv(path, *lines, **options):
    with path.open("w", newline="", **options) as file:
        csv.writer(file).writerows(lines)
    return path


def marks_of(table, image):
    """What a table says of the one image that names it."""
    return assign(table, [image], "t").marks.get(image, {})


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
    assert marks_of(table, "dir/one.png") == {
        "anna": Marks(boxes=((1.0, 2.0, 3.0, 4.0), (5.0, 6.0, 7.0, 8.0))),
        "ben": Marks(boxes=((1.0, 1.0, 1.0, 1.0),)),
    }
    assert marks_of(table, "none.png") == {"1": Marks()}
    assert marks_of(table, "other.png") == {}
    corners = write_csv(tmp_path / "b.csv", ("image", "x_min", "y_min", "x_max", "y_max"), ("one", 1, 2, 4, 6))
    assert marks_of(read_table(corners), "any/one.jpg") == {"1": Marks(boxes=((1.0, 2.0, 3.0, 4.0),))}
    polygon = write_csv(tmp_path / "c.csv", ("image", "polygon"), ("one.png", "0 0 1 0 1 1"))
    assert marks_of(read_table(polygon), "x/one.png") == {"1": Marks(polygons=((0.0, 0.0, 1.0, 0.0, 1.0, 1.0),))}
    gaze = write_csv(tmp_path / "d.csv", ("image", "x", "y", "duration"), ("one.png", 1, 2, 0.5), ("one.png", 3, 4, ""))
    assert marks_of(read_table(gaze), "one.png") == {"1": Marks(fixations=((1.0, 2.0, 0.5), (3.0, 4.0, 1.0)))}


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
    assert table.marks["one.png"]["anna"] == Marks(boxes=((1.0, 1.0, 2.0, 2.0),))
    assert table.marks["one.png"]["ben"] == Marks(polygons=((0.0, 0.0, 3.0, 0.0, 3.0, 3.0),))
    assert table.marks["two.png"]["1"] == Marks(masks=(rle,), fixations=((1.0, 1.0, 0.2),))
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
    assert table.marks["one.png"]["1"].polygons == ((0, 0, 3, 0, 3, 3),)
    np.testing.assert_array_equal(decode_rle(table.marks["one.png"]["1"].masks[0]), np.eye(4))
    assert table.marks["two.png"] == {"anna": Marks(boxes=((1.0, 1.0, 2.0, 2.0),))}
    assert table.marks["no.png"] == {"1": Marks()}


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
        row = Row("list", 1, "train", "x", "a.png", name)
        reader = MapReader(tmp_path, tables=read_tables(tmp_path, [row], {}, ()).marks)
        saliency = reader.read(row, 2, 2)
        np.testing.assert_array_equal(saliency, np.full((2, 2), 0.5))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "not JSON"),
        ('{"a": 1}', "of no known format. Known are COCO"),
        ('[{"boxes": [[1, 2, 3, 4]]}]', "entry 0: no image named"),
        ('[{"image": "a", "boxes": [[1, 2, 3]]}]', "entry 0: boxes"),
        ('[{"image": "a", "masks": [{"size": [2, 2], "counts": [3]}]}]', "entry 0: an RLE's runs"),
        ('{"images": [], "annotations": [{"image_id": 5}]}', "annotation 0: image_id 5"),
        ('{"images": [], "annotations": [5]}', "of no known format. Known are COCO"),
    ],
)
def test_faults_of_a_json(tmp_path, content, message):
    (tmp_path / "a.json").write_text(content)
    with pytest.raises(ValueError, match=message):
        read_table(tmp_path / "a.json")


# What tools export, for one picture of 80 x 60 pixels.
WIDTH, HEIGHT = 80, 60
BOX = (20, 12, 30, 16)
CORNERS = ((20, 12), (50, 12), (50, 28), (34, 40), (20, 28))
FLAT = [value for point in CORNERS for value in point]
IMAGE = "images/im01.png"


def box_mask(box=BOX):
    x, y, width, height = box
    mask = np.zeros((HEIGHT, WIDTH))
    mask[y : y + height, x : x + width] = 1
    return mask


def polygon_mask(parts=8):
    """Share of each pixel that lies inside: on one side of all edges, as the polygon is convex."""
    y, x = (np.mgrid[: HEIGHT * parts, : WIDTH * parts] + 0.5) / parts
    edges = zip(CORNERS, (*CORNERS[1:], CORNERS[0]), strict=True)
    inside = np.all([(bx - ax) * (y - ay) - (by - ay) * (x - ax) >= 0 for (ax, ay), (bx, by) in edges], axis=0)
    return inside.reshape(HEIGHT, parts, WIDTH, parts).mean((1, 3))


def brush_rle(mask):
    """Label Studio's bytes of a mask, by the format's description: runs of equal values but for a first one in full."""
    values = np.repeat(mask.astype(np.uint8) * 255, 4).tolist()
    bits = f"{len(values):032b}{7:05b}" + "".join(f"{size - 1:04b}" for size in (3, 4, 8, 16))
    bits += f"0{1:02b}{7:04b}" + "".join(f"{value:08b}" for value in values[:8])
    start = 8
    while start < len(values):
        stop = start
        while stop < len(values) and values[stop] == values[start] and stop - start < 2**16:
            stop += 1
        bits += f"1{3:02b}{stop - start - 1:016b}{values[start]:08b}"
        start = stop
    bits += "0" * (-len(bits) % 8)
    return [int(bits[i : i + 8], 2) for i in range(0, len(bits), 8)]


def png64(mask, compressed=False):
    file = io.BytesIO()
    Image.fromarray(mask.astype(np.uint8) * 255).save(file, "PNG")
    return base64.b64encode(zlib.compress(file.getvalue()) if compressed else file.getvalue()).decode()


def coco(name="im01.png", identity=1, image_id=1, size=(WIDTH, HEIGHT), **marks):
    image = {"id": identity, "file_name": name} | ({"width": size[0], "height": size[1]} if size else {})
    marks = {"id": 5, "image_id": image_id, "category_id": 1, "iscrowd": 0, "area": 1.0, **marks}
    return {"info": {}, "images": [image], "annotations": [marks], "categories": [{"id": 1, "name": "lesion"}]}


PERCENT = {"x": 25.0, "y": 20.0, "width": 37.5, "height": 100 * 16 / 60, "rotation": 0}
ORIGINAL = {"original_width": WIDTH, "original_height": HEIGHT, "image_rotation": 0}


def label_studio(kind, image="/data/upload/1/8a7b11c2-im01.png", **value):
    result = {"id": "r", "type": kind, "from_name": "label", "to_name": "image", "value": value, **ORIGINAL}
    note = {"id": "c", "type": "choices", "value": {"choices": ["bad"]}}
    annotation = {"id": 9, "completed_by": 4, "was_cancelled": False, "result": [result, note]}
    return [{"id": 1, "data": {"image": image}, "annotations": [annotation], "predictions": []}]


def labelme(kind, points, **more):
    shape = {"label": "lesion", "points": points, "shape_type": kind, "group_id": None, "flags": {}, **more}
    return {"version": "5", "shapes": [shape], "imagePath": "..\\images\\im01.png", "imageData": None} | {
        "imageHeight": HEIGHT,
        "imageWidth": WIDTH,
    }


def supervisely(kind, **more):
    tagged = {"classTitle": "lesion", "geometryType": kind, "tags": [], "points": {"exterior": [], "interior": []}}
    return {"description": "", "size": {"height": HEIGHT, "width": WIDTH}, "tags": [], "objects": [tagged | more]}


def via(**shape):
    region = {"shape_attributes": shape, "region_attributes": {"type": "lesion"}}
    return {"im01.png77": {"filename": "im01.png", "size": 77, "regions": [region], "file_attributes": {}}}


def cvat(shape):
    head = "<annotations><version>1.1</version><meta><task><id>1</id></task></meta>"
    return f'{head}<image id="0" name="x/im01.png" width="{WIDTH}" height="{HEIGHT}">{shape}</image></annotations>'


VIA_POLYGON = {"name": "polygon", "all_points_x": [x for x, _ in CORNERS], "all_points_y": [y for _, y in CORNERS]}
CREATEML = {"label": "lesion", "coordinates": {"x": 35.0, "y": 20.0, "width": 30, "height": 16}}
MIN = [{"image": "im01.png", "id": 0, "label": [PERCENT | ORIGINAL | {"rectanglelabels": ["l"]}], "annotator": 1}]
VOC = (
    "<annotation><folder>x</folder><filename>im01.png</filename><size><width>80</width><height>60</height></size>"
    "<object><name>lesion</name><bndbox><xmin>21</xmin><ymin>13</ymin><xmax>50</xmax><ymax>28</ymax></bndbox></object>"
    "</annotation>"
)
CVAT_RUNS = "0,480"  # a filled part of 30 x 16
HOLE = [[28, 16], [36, 16], [36, 24], [28, 24]]
EXPORTS = {
    "CSV, w and h": ("t.csv", "image,x,y,w,h\nim01.png,20,12,30,16\n", "box"),
    "CSV, semicolons": ("t.csv", "image;x;y;width;height\nim01.png;20,0;12,0;30,0;16,0\n", "box"),
    "CSV, tabs": ("t.tsv", "image\tx\ty\twidth\theight\nim01.png\t20\t12\t30\t16\n", "box"),
    "CSV, TensorFlow": (
        "t.csv",
        "filename,width,height,class,xmin,ymin,xmax,ymax\nim01.png,80,60,a,20,12,50,28\n",
        "box",
    ),
    "CSV, its own extent beside": (
        "t.csv",
        "image,x_min,y_min,x_max,y_max,width,height\nim01.png,20,12,50,28,30,16\n",
        "box",
    ),
    "CSV, centre": ("t.csv", "image,x_center,y_center,width,height\nim01.png,35,20,30,16\n", "box"),
    "CSV, box in a cell": ("t.csv", 'image_id,bbox\nim01,"[20, 12, 30, 16]"\n', "box"),
    "CSV, polygon": ("t.csv", f'image,polygon\nim01.png,"{" ".join(map(str, FLAT))}"\n', "poly"),
    "CSV, WKT": (
        "t.csv",
        f'image,polygon\nim01.png,"POLYGON (({", ".join(f"{x} {y}" for x, y in (*CORNERS, CORNERS[0]))}))"\n',
        "poly",
    ),
    "CSV, shares": ("t.csv", "image,x,y,width,height,unit\nim01.png,.25,.2,.375,.2666667,shares\n", "box"),
    "CSV, percent": ("t.csv", "image,x,y,width,height,unit\nim01.png,25,20,37.5,26.66667,percent\n", "box"),
    "CSV, other size": ("t.csv", "image,x,y,w,h,image_width,image_height\nim01.png,40,24,60,32,160,120\n", "box"),
    "CSV, no image named": ("t.csv", "x,y,width,height\n20,12,30,16\n", "box"),
    "name, space": ("t.csv", 'image,x,y,w,h\n"im01.png ",20,12,30,16\n', "box"),
    "name, separators": ("t.csv", "image,x,y,w,h\nC:\\data\\im01.png,20,12,30,16\n", "box"),
    "name, address": ("t.csv", "image,x,y,w,h\nhttps://h/b/im01.png?token=1,20,12,30,16\n", "box"),
    "name, letter case": ("t.csv", "image,x,y,w,h\nIM01.PNG,20,12,30,16\n", "box"),
    "name, suffix": ("t.csv", "image,x,y,w,h\nim01.jpg,20,12,30,16\n", "box"),
    "Open Images": ("t.csv", "ImageID,LabelName,XMin,XMax,YMin,YMax\nim01,/m/1,.25,.625,.2,.4666667\n", "box"),
    "NIH": ("t.csv", "Image Index,Finding Label,Bbox [x,y,w,h],,,\nim01.png,Mass,20,12,30,16,,,\n", "box"),
    "RSNA": ("t.csv", "patientId,x,y,width,height,Target\nim01,20,12,30,16,1\n", "box"),
    "VinDr": ("t.csv", "image_id,class_name,class_id,rad_id,x_min,y_min,x_max,y_max\nim01,M,1,R8,20,12,50,28\n", "box"),
    "MakeSense": ("t.csv", "lesion,20,12,30,16,im01.png,80,60\n", "box"),
    "RetinaNet": ("t.csv", "images/im01.png,20,12,50,28,lesion\nimages/im02.png,,,,,\n", "box"),
    "VIA, CSV": (
        "t.csv",
        [
            ("filename", "file_size", "region_count", "region_id", "region_shape_attributes", "region_attributes"),
            ("im01.png", 1, 1, 0, json.dumps(VIA_POLYGON), '{"type": "a"}'),
        ],
        "poly",
    ),
    "Label Studio, CSV": (
        "t.csv",
        [
            ("image", "id", "label", "annotator", "annotation_id", "lead_time"),
            ("im01.png", 1, json.dumps(MIN[0]["label"]), 1, 1, 2.5),
        ],
        "box",
    ),
    "JSON, bbox": ("t.json", [{"image": "im01.png", "bbox": list(BOX)}], "box"),
    "JSON, box of names": (
        "t.json",
        [{"image": "im01.png", "boxes": [{"x": 20, "y": 12, "width": 30, "height": 16}]}],
        "box",
    ),
    "JSON, polygon": ("t.json", [{"image": "im01.png", "polygon": FLAT}], "poly"),
    "JSON, points": ("t.json", [{"image": "im01.png", "polygon": [list(point) for point in CORNERS]}], "poly"),
    "JSON, by name": ("t.json", {"im01.png": {"boxes": [list(BOX)]}}, "box"),
    "JSON, mask and box of another size": (
        "t.json",
        [
            {
                "image": "im01.png",
                "boxes": [[40, 24, 60, 32]],
                "masks": [encode_rle(box_mask())],
                "image_width": 160,
                "image_height": 120,
            }
        ],
        "box",
    ),
    "JSON lines": ("t.jsonl", '{"image":"im01.png","boxes":[[20,12,30,16]]}\n', "box"),
    "Hugging Face": (
        "t.jsonl",
        '{"file_name":"im01.png","objects":{"bbox":[[20,12,30,16]],"categories":[0]}}\n',
        "box",
    ),
    "COCO, folder": ("t.json", coco("train/im01.png", segmentation=[FLAT], bbox=[0, 0, 9, 9]), "poly"),
    "COCO, upload": ("t.json", coco("/data/upload/1/im01.png", bbox=BOX), "box"),
    "COCO, dot": ("t.json", coco("./images/im01.png", segmentation=[], bbox=BOX), "box"),
    "COCO, Roboflow": ("t.json", coco("im01_png.rf.0a1b2c3d.jpg", bbox=BOX), "box"),
    "COCO, turned by CVAT": (
        "t.json",
        coco(segmentation=[], bbox=[27, 5, 16, 30], attributes={"rotation": 90.0}),
        "box",
    ),
    "COCO, turned": ("t.json", coco(bbox=[27, 5, 16, 30], rotation=-90), "box"),
    "COCO, empty outline": ("t.json", coco(segmentation=[[]], bbox=BOX), "box"),
    "COCO, RLEs": (
        "t.json",
        coco(segmentation=[encode_rle(box_mask((20, 12, 20, 16))), encode_rle(box_mask((35, 12, 15, 16)))]),
        "box",
    ),
    "COCO, text and number": ("t.json", coco(image_id="1", bbox=BOX, size=None), "box"),
    "COCO, VIA's flat list": ("t.json", coco(identity="1", segmentation=FLAT, bbox=[0, 0, 9, 9]), "poly"),
    "COCO, one point": ("t.json", coco(segmentation=[FLAT, [3.0, 4.0]], bbox=BOX), "poly"),
    "COCO, other size": ("t.json", coco(size=(160, 120), bbox=[40, 24, 60, 32]), "box"),
    "COCO, RLE": ("t.json", coco(segmentation=encode_rle(box_mask()), bbox=[0, 0, 1, 1], iscrowd=1), "box"),
    "COCO, compressed RLE": (
        "t.json",
        coco(segmentation={"size": [HEIGHT, WIDTH], "counts": compress(encode_rle(box_mask())["counts"])}),
        "box",
    ),
    "CheXlocalize": (
        "t.json",
        {"images_im01": {"Edema": encode_rle(box_mask()), "Mass": encode_rle(box_mask())}},
        "box",
    ),
    "CheXlocalize, contours": (
        "t.json",
        {"im01": {"img_size": [HEIGHT, WIDTH], "Edema": [[list(point) for point in CORNERS]]}},
        "poly",
    ),
    "LabelMe": ("t.json", labelme("polygon", CORNERS), "poly"),
    "LabelMe, rectangle": ("t.json", labelme("rectangle", [(50, 28), (20, 12)]), "box"),
    "LabelMe, turned": ("t.json", labelme("oriented_rectangle", [(20, 12), (50, 12), (50, 28), (20, 28)]), "box"),
    "LabelMe, mask": (
        "t.json",
        labelme("mask", [(20, 12), (50, 28)], mask=png64(np.ones((16, 30)))),
        "box",
    ),
    "Supervisely": (
        "t.json",
        supervisely("rectangle", points={"exterior": [[50, 12], [20, 28]], "interior": []}),
        "box",
    ),
    "Supervisely, bitmap": (
        "t.json",
        supervisely("bitmap", bitmap={"data": png64(np.ones((16, 30)), True), "origin": [20, 12]}),
        "box",
    ),
    "Supervisely, hole": (
        "t.json",
        supervisely("polygon", points={"exterior": [list(point) for point in CORNERS], "interior": [HOLE]}),
        "hole",
    ),
    "VIA": ("t.json", via(**VIA_POLYGON), "poly"),
    "VIA, project": (
        "t.json",
        {"_via_settings": {}, "_via_img_metadata": via(name="rect", x=20, y=12, width=30, height=16)},
        "box",
    ),
    "CreateML": ("t.json", [{"image": "im01.png", "annotations": [CREATEML]}], "box"),
    "Label Studio": ("t.json", label_studio("rectanglelabels", rectanglelabels=["l"], **PERCENT), "box"),
    "Label Studio, files": (
        "t.json",
        label_studio("rectanglelabels", "/data/local-files/?d=set%201/im01.png", rectanglelabels=["l"], **PERCENT),
        "box",
    ),
    "Label Studio, polygon": (
        "t.json",
        label_studio(
            "polygonlabels", points=[[x / 0.8, y / 0.6] for x, y in CORNERS], closed=True, polygonlabels=["l"]
        ),
        "poly",
    ),
    "Label Studio, turned": (
        "t.json",
        label_studio("rectangle", x=62.5, y=20.0, width=20.0, height=50.0, rotation=90),
        "box",
    ),
    "Label Studio, brush": (
        "t.json",
        label_studio("brushlabels", format="rle", rle=brush_rle(box_mask()), brushlabels=["l"]),
        "box",
    ),
    "Label Studio, JSON_MIN": ("t.json", MIN, "box"),
    "CVAT": ("t.xml", cvat(f'<polygon label="a" points="{";".join(f"{x},{y}" for x, y in CORNERS)}"/>'), "poly"),
    "CVAT, box": ("t.xml", cvat('<box label="a" xtl="20" ytl="12" xbr="50" ybr="28"/>'), "box"),
    "CVAT, turned": ("t.xml", cvat('<box label="a" xtl="27" ytl="5" xbr="43" ybr="35" rotation="90"/>'), "box"),
    "CVAT, mask": (
        "t.xml",
        cvat(f'<mask label="a" rle="{CVAT_RUNS}" left="20" top="12" width="30" height="16"/>'),
        "box",
    ),
    "Pascal VOC": ("t.xml", VOC, "box"),
    "YOLO": ("im01.txt", "0 0.4375 0.3333333 0.375 0.2666667\n", "box"),
    "YOLO, outline": ("im01.txt", "0 " + " ".join(f"{x / WIDTH} {y / HEIGHT}" for x, y in CORNERS) + "\n", "poly"),
}


def write_table(folder, name, content):
    """A file of that name: text as it is, rows as CSV, anything else as JSON."""
    if isinstance(content, list) and isinstance(content[0], tuple):
        write_csv(folder / name, *content)
    else:
        (folder / name).write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return name


def assigned(folder, name, content, images=(IMAGE,), columns=None, categories=()):
    """Rows that name a table, and what was read of it."""
    write_table(folder, name, content)
    rows = [Row("list", i, "train", "x", image, name) for i, image in enumerate(images, 2)]
    return rows, read_tables(folder, rows, columns or {}, categories)


@pytest.mark.parametrize("export", EXPORTS)
def test_what_tools_export(tmp_path, export):
    name, content, shape = EXPORTS[export]
    (row,), tables = assigned(tmp_path, name, content)
    assert not tables.problems
    drawn = MapReader(tmp_path, tables=tables.marks).read(row, HEIGHT, WIDTH)
    wanted = box_mask() if shape == "box" else polygon_mask()
    if shape == "hole":
        wanted[16:24, 28:36] = 0
    overlap = np.minimum(drawn, wanted).sum() / np.maximum(drawn, wanted).sum()
    assert overlap >= (0.99 if shape == "box" else 0.97)


def test_fixations_and_ellipses_of_radiologists(tmp_path):
    """In film pixels; Gaussians of one degree, where the table says how many pixels that is."""
    head = "timestamp_start_fixation,timestamp_end_fixation,average_x_position,average_y_position"
    degrees = "angular_resolution_x_pixels_per_degree,angular_resolution_y_pixels_per_degree"
    (row,), tables = assigned(tmp_path, "fixations.csv", f"{head},{degrees}\n1.0,1.5,30,20,6,4\n2,2.25,60,40,12,8\n")
    drawn = MapReader(tmp_path, sigma=1.5, pixels_per_degree=1.0, tables=tables.marks).read(row, HEIGHT, WIDTH)
    y, x = np.mgrid[:HEIGHT, :WIDTH] + 0.5
    at = lambda cx, cy, sx, sy: np.exp(-(((x - cx) / sx) ** 2 + ((y - cy) / sy) ** 2) / 2)
    wanted = 0.5 * at(30, 20, 9, 6) + 0.25 * at(60, 40, 18, 12)
    np.testing.assert_allclose(drawn, wanted / wanted.max(), atol=1e-5)
    flat = MapReader(tmp_path, sigma=5.0, tables=tables.marks).read(row, HEIGHT, WIDTH)
    wanted = 0.5 * at(30, 20, 5, 5) + 0.25 * at(60, 40, 5, 5)
    np.testing.assert_allclose(flat, wanted / wanted.max(), atol=1e-5)

    text = "xmin,ymin,xmax,ymax,certainty,Mass,Edema\n20,10,60,50,3,True,False\n0,0,4,4,3,False,True\n"
    (row,), tables = assigned(tmp_path, "ellipses.csv", text, categories=("Mass",))
    drawn = MapReader(tmp_path, tables=tables.marks).read(row, HEIGHT, WIDTH)
    wanted = ((x - 40) / 20) ** 2 + ((y - 30) / 20) ** 2 <= 1
    assert np.minimum(drawn, wanted).sum() / np.maximum(drawn, wanted).sum() >= 0.95
    assert drawn.sum() == pytest.approx(np.pi * 20**2, rel=0.01)

    egd = "DICOM_ID,FPOGX,FPOGD,X_ORIGINAL,Y_ORIGINAL\nim01,0.5,0.4,30,20\n"
    (row,), tables = assigned(tmp_path, "egd.csv", egd)
    assert tables.marks["egd.csv"] == {IMAGE: {"1": Marks(fixations=((30.0, 20.0, 0.4),))}}


def test_invalid_fixations_of_egd_are_left_out(tmp_path):
    text = "DICOM_ID,FPOGV,FPOGD,X_ORIGINAL,Y_ORIGINAL\nim01,1,0.4,30,20\nim01,0,9,60,50\n"
    _, tables = assigned(tmp_path, "egd.csv", text)
    assert tables.marks["egd.csv"] == {IMAGE: {"1": Marks(fixations=((30.0, 20.0, 0.4),))}}
    assert "1 of 2 fixations are left out: their FPOGV is 0, invalid" in tables.remarks[0]


@pytest.mark.parametrize(
    ("corners", "box"),
    [
        ((11, 11, 30, 20), (10, 10, 20, 10)),
        ((1, 1, 80, 60), (0, 0, 80, 60)),
        ((7, 7, 7, 7), (6, 6, 1, 1)),
        ((0, 0, 81, 61), (0, 0, 80, 60)),
    ],
)
def test_pascal_voc_counts_pixels_from_one_to_the_last(tmp_path, corners, box):
    content = VOC
    for name, old, new in zip(("xmin", "ymin", "xmax", "ymax"), (21, 13, 50, 28), corners, strict=True):
        content = content.replace(f"<{name}>{old}<", f"<{name}>{new}<")
    _, tables = assigned(tmp_path, "t.xml", content)
    assert tables.marks["t.xml"][IMAGE]["1"].boxes == (box,)


def test_via_csv_with_two_images_of_one_name(tmp_path):
    head, row = EXPORTS["VIA, CSV"][1]
    _, tables = assigned(tmp_path, "t.csv", [head, row, ("im01.png", 2, *row[2:])])
    assert "1 file names are those of several images, as 'im01.png'" in tables.problems[0]


@pytest.mark.parametrize("given", ["a.csv", "anna=1.npy|ben=2.npy"])
def test_an_annotator_that_no_map_has_is_refused(tmp_path, given):
    text = "image,x,y,w,h,annotator\na.png,1,1,9,9,anna\nz.png,1,1,9,9,carl\na.png,,,,,ben\n"
    row = Row("list", 1, "train", "x", "a.png", write_table(tmp_path, "a.csv", text) if ".csv" in given else given)
    marks = read_tables(tmp_path, [row], {}, ()).marks
    problems = lambda who: check_annotator(MapReader(tmp_path, combine=who, tables=marks), [row])
    (told,) = problems("Anna")
    assert told.startswith("data.maps.combine: no map is by 'Anna'; known are anna, ben, beside mean and majority")
    assert "Did you mean 'anna'" in told
    assert not any(map(problems, ("anna", "ben", "mean", "majority")))
    assert not check_annotator(MapReader(tmp_path, combine="Anna"), [replace(row, map="")])


def test_salicon_has_rows_before_columns_and_counts_from_one(tmp_path):
    content = coco(fixations=[[21, 31], [40, 60]], worker_id=7)
    _, tables = assigned(tmp_path, "t.json", content)
    expected = Marks(fixations=((30.5, 20.5, 1.0), (59.5, 39.5, 1.0)), size=(WIDTH, HEIGHT))
    assert tables.marks["t.json"] == {IMAGE: {"7": expected}}


def test_siim_skips_and_marks_down_the_columns(tmp_path):
    _, tables = assigned(tmp_path, "t.csv", "ImageId, EncodedPixels\nim01,10240 3 1021 2\nim02,-1\n", ("a/im01.dcm",))
    mask = decode_rle(tables.marks["t.csv"]["a/im01.dcm"]["1"].masks[0])
    assert mask.shape == (1024, 1024) and np.argwhere(mask).tolist() == [[0, 10], [0, 11], [1, 10], [1, 11], [2, 10]]


UPLOADS = "a1b2c3d4-im01.png"


@pytest.mark.parametrize(
    ("names", "images", "expected"),
    [
        (("fu\u0308r.png",), ("x/f\u00fcr.png",), {"x/f\u00fcr.png": 0}),
        (("a/0.png", "b/0.png"), ("x/a/0.png", "x/b/0.png"), {"x/a/0.png": 0, "x/b/0.png": 1}),
        (("b/0.png",), ("x/a/0.png", "x/b/0.png"), {"x/b/0.png": 0}),
        (("0.png",), ("x/a/0.png", "x/b/0.png"), "x/a/0.png, x/b/0.png"),
        (("0",), ("x/0.png", "x/0.jpg"), "x/0.png, x/0.jpg"),
        (("a/0.png", "b/0.png"), ("x/0.png",), "a/0.png, b/0.png"),
        (("0.png", "0.png "), ("x/0.png",), {"x/0.png": 0}),
        (("x/0.png", "0.png"), ("x/0.png",), {"x/0.png": 0}),
        ((UPLOADS,), ("x/im01.png",), {"x/im01.png": 0}),
        ((UPLOADS, "im01.png"), ("x/im01.png", f"x/{UPLOADS}"), {"x/im01.png": 1, f"x/{UPLOADS}": 0}),
        (("patient1_study2_view1_frontal",), ("v/patient1/study2/view1_frontal.jpg",), {0: 0}),
        (("IM01.PNG", "im02.png"), ("im01.png", "im02.png"), {"im01.png": 0, "im02.png": 1}),
        (("im01.jpg",), ("im01.png", "IM01.tif"), {}),
        (("im01.jpg", "IM01.gif", "b.png"), ("im01.png", "b.png"), {"b.png": 2}),
        # Folders that agree for one entry part the others.
        (("cats/1.png", "dogs/2.png"), ("x/dogs/1.png", "x/dogs/2.png"), {"x/dogs/2.png": 1}),
        (("cats/1.JPG", "Dogs/2"), ("dogs/1.png", "dogs/2.png"), {"dogs/2.png": 1}),
        (("cats/1.png", "2.png"), ("dogs/1.png", "dogs/2.png"), {"dogs/1.png": 0, "dogs/2.png": 1}),
    ],
)
def test_which_entry_belongs_to_which_image(names, images, expected):
    table = Table({name: {"1": Marks(boxes=((float(i), 0.0, 2.0, 2.0),))} for i, name in enumerate(names)})
    found = assign(table, images, "t.csv")
    if isinstance(expected, str):
        assert not found.marks and "t.csv: " in found.problems[0]
        assert all(path in found.problems[0] for path in expected.split(", "))
    else:
        expected = {images[key] if isinstance(key, int) else key: value for key, value in expected.items()}
        assert {image: marks["1"].boxes[0][0] for image, marks in found.marks.items()} == expected
        assert not found.problems or not expected


def test_what_has_no_partner_is_counted_and_named(tmp_path):
    text = "image,x,y,w,h\nA.png,1,1,9,9\nz.png,1,1,9,9\n"
    _, tables = assigned(tmp_path, "t.csv", text, ("a.png", "b.png", "c.png"))
    assert not tables.problems
    assert tables.remarks == (
        "t.csv: 1 entries found by a name that is nearly the image's: A.png for a.png",
        "t.csv: 2 of 3 images that name it have no entry: b.png, c.png",
        "t.csv: 1 of 2 entries belong to no image: z.png",
    )
    _, tables = assigned(tmp_path, "t.csv", text, ("b.png",))
    assert tables.problems[0].startswith("t.csv: none of its 2 entries ('A.png', 'z.png') is of the 1 images")
    _, tables = assigned(tmp_path, "im.txt", "0 .5 .5 .1 .1\n", ("a.png", "b.png"))
    assert "about one image and doesn't say which, but 2 rows name it: a.png, b.png" in tables.problems[0]


def test_folders_of_another_machine_are_told(tmp_path):
    text = "image,x,y,w,h\n/data/upload/1/a.png,1,1,9,9\n/data/upload/1/b.png,1,1,9,9\n"
    _, tables = assigned(tmp_path, "t.csv", text, ("x/a.png", "y/b.png"))
    what = "2 entries found by the file's name alone, as no entry's folder is its image's"
    assert tables.remarks == (f"t.csv: {what}: /data/upload/1/a.png for x/a.png, /data/upload/1/b.png for y/b.png",)


def test_coco_turns_boxes_as_cvat_does(tmp_path):
    shape = cvat('<box label="a" xtl="12" ytl="20" xbr="52" ybr="28" rotation="30"/>')
    _, xml = assigned(tmp_path, "t.xml", shape)
    _, own = assigned(tmp_path, "t.json", coco(bbox=[12, 20, 40, 8], attributes={"rotation": 30.0}))
    assert xml.marks["t.xml"] == own.marks["t.json"]


@pytest.mark.parametrize(
    ("name", "content", "known"),
    [("t.json", coco(bbox=BOX, category_id=7), "lesion"), ("t.txt", "0 .4 .4 .2 .2\n7 .4 .4 .2 .2\n", "dog")],
)
def test_classes_that_the_list_of_names_lacks(tmp_path, name, content, known):
    (tmp_path / "classes.txt").write_text("dog\n\n\ncat\n")
    _, tables = assigned(tmp_path, name, content)
    assert any(f"{name}: 1 marks are of a class without a name in its list: 7" in each for each in tables.remarks)
    _, tables = assigned(tmp_path, name, content, categories=(known,))
    assert "class '7' has no name in its list, so that data.maps.categories can't tell it" in tables.problems[0]
    _, tables = assigned(tmp_path, name, content, categories=("7",))
    assert not tables.problems and tables.marks[name][IMAGE]["1"]
    _, tables = assigned(tmp_path, "t.txt", "3 .4 .4 .2 .2\n", categories=("cat",))
    assert not tables.problems and tables.marks["t.txt"][IMAGE]["1"]


KEYPOINTS = (0.2, 0.2, 0.6, 0.7, 0.3, 0.5, 0.5, 0.2, 0.3, 0.3)
POSE = "0 0.4 0.5 0.5 0.8"


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (f"{POSE} 0.93\n", "1 of 1 lines have 1 number behind the box (a confidence, or a track's id)"),
        (f"{POSE} 17\n", "1 number behind the box"),
        (f"{POSE} 0.93 17\n", "2 numbers behind the box (a confidence and a track's id)"),
        (f"{POSE} {' '.join(map(str, KEYPOINTS))}\n", "10 numbers of keypoints behind the box"),
        (f"{POSE} .2 .2 2 .6 .7 2 .3 .5 1 0 0 0\n", "12 numbers of keypoints behind the box"),
        (f"{POSE} .2 .2 .9 .6 .7 .8 .3 .5 .4\n", "9 numbers of keypoints behind the box"),
    ],
)
def test_numbers_behind_a_yolo_box_are_no_outline(tmp_path, text, told):
    _, tables = assigned(tmp_path, "t.txt", text)
    marks = tables.marks["t.txt"][IMAGE]["1"]
    assert not marks.polygons and marks.boxes[0] == pytest.approx((0.15, 0.1, 0.5, 0.8))
    assert told in tables.remarks[0]


@pytest.mark.parametrize(
    "text",
    [
        "0 .4 .4 .6 .5 .5 .7\n",  # a triangle
        "0 .45 .45 .55 .45 .55 .55 .45 .55\n",  # within the box that its first four numbers would be
        "0 .5 .4 .6 .5 .5 .6 .4 .5\n",
        "0 .5 .4 .57 .43 .6 .5 .57 .57 .5 .6 .43 .57 .4 .5 .43 .43\n",
        "0 0 .5 .5 1 1 1\n0 .5 .4 .6 .5 .5 .6 .4 .5\n",  # a triangle beside a longer outline
    ],
)
def test_yolo_outlines_stay_outlines(tmp_path, text):
    _, tables = assigned(tmp_path, "t.txt", text)
    marks = tables.marks["t.txt"][IMAGE]["1"]
    assert not marks.boxes and len(marks.polygons) == text.count("\n") and not tables.remarks


def test_no_finding_is_no_category(tmp_path):
    text = "image_id,class_name,x_min,y_min,x_max,y_max\nim01,Mass,20,12,50,28\nim02,No finding,,,,\n"
    _, tables = assigned(tmp_path, "t.csv", text, (IMAGE, "im02.png"))
    assert not tables.remarks and tables.marks["t.csv"]["im02.png"] == {"1": Marks()}


def test_a_column_twice_is_refused(tmp_path):
    text = "image,x,y,width,height,x\nim01.png,20,12,30,16,0\n"
    _, tables = assigned(tmp_path, "t.csv", text)
    assert "more than one column x; rename or remove the others" in tables.problems[0]


def test_columns_and_categories_by_the_config(tmp_path):
    text = "file,left_edge,y,w,h,what\nim01.png,20,12,30,16,a\nim01.png,0,0,80,60,b\n"
    columns = {"image": "file", "x": "left_edge", "category": "what"}
    for chosen, box in ((("a",), BOX), (("b",), (0, 0, 80, 60))):
        _, tables = assigned(tmp_path, "t.csv", text, columns=columns, categories=chosen)
        assert tables.marks["t.csv"][IMAGE]["1"].boxes == (box,) and not tables.remarks
    _, tables = assigned(tmp_path, "t.csv", text, columns=columns)
    assert "marks of 2 categories count alike (a, b)" in tables.remarks[0]
    _, tables = assigned(tmp_path, "t.csv", text, columns=columns, categories=("c",))
    assert "no table has 'c'; known are a, b" in tables.problems[0]
    _, tables = assigned(tmp_path, "t.csv", text, columns=columns | {"y": "top"})
    assert "no column 'top' (data.maps.columns.y); found file, left_edge" in tables.problems[0]
    _, tables = assigned(tmp_path, "t.json", [{"pic": "im01.png", "bbox": list(BOX)}], columns={"image": "pic"})
    assert tables.marks["t.json"][IMAGE]["1"].boxes == (BOX,)
    own = [{"image": "im01.png", "boxes": [[0, 0, 80, 60], list(BOX)], "labels": ["b", "a"]}]
    objects = {"file_name": "im01.png", "objects": {"bbox": [[0, 0, 80, 60], list(BOX)], "categories": [3, 7]}}
    for name, content, chosen in (("t.json", own, "a"), ("t.jsonl", json.dumps(objects), "7")):
        _, tables = assigned(tmp_path, name, content, categories=(chosen,))
        assert tables.marks[name][IMAGE]["1"].boxes == (BOX,)
    _, tables = assigned(tmp_path, "t.json", coco(bbox=BOX), columns={"image": "pic"}, categories=("lesion",))
    assert not tables.problems and "data.maps.columns makes no difference" in tables.remarks[0]
    with pytest.raises(ConfigError, match="no such column"):
        read_tables(tmp_path, [], {"picture": "a"}, ())


TWICE = [{"id": identity, "file_name": "im01.png"} for identity in (1, 2)]
ENTITIES = '<!DOCTYPE a [<!ENTITY b "bb"><!ENTITY c "&b;&b;">]><annotations>&c;</annotations>'


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("t.csv", "image,x,y,foo\na,1,2,3\n", "row 1: unknown 'foo' beside 'image', 'x', 'y'"),
        ("t.csv", "image,path,x,y,w,h\na,b,1,2,3,4\n", "'image' and 'path' are both image"),
        ("t.csv", "image,colour\na,red\n", "of no known format. Known are"),
        ("t.csv", "image,x,y,w,h,unit\na,1,2,3,4,inch\n", "unit is 'inch'; use pixels"),
        ("t.csv", "image,x_min,y_min,x_max,y_max\na,5,2,3,4\n", "must not be below"),
        ("t.csv", "image,x_min,y_min,x_max,y_max,width,height\na,5,2,30,40,20,20\n", "neither the box's nor"),
        ("t.csv", "image,polygon\na,1 2 3 4\n", "polygon of 2 points"),
        ("t.csv", 'image,polygon\na,"POLYGON((1 2,9 2,9 9),(3 3,4 3,4 4))"\n', "a WKT polygon with holes"),
        ("t.csv", 'image,polygon\na,"MULTIPOLYGON(((1 2,9 2,9 9)))"\n', "polygon: WKT's MULTIPOLYGON is not read"),
        ("t.csv", "lesion,1,2,a.png,80,60\n", "points enclose nothing"),
        ("t.csv", "patientId,x,y,width,height,Target\na,,,,,1\n", "Target is '1' for a row without a box"),
        ("t.csv", "image,x,y,w,h,image_width,image_height\na,1,1,9,9,80,60\na,1,1,9,9,90,60\n", "80 x 60 and 90 x 60"),
        ("t.json", [{"image": "a", "boxs": [[1, 2, 3, 4]]}], "Did you mean 'boxes'"),
        ("t.json", coco(keypoints=[1, 2, 2]), "annotation 5: marks nothing"),
        ("t.json", coco(bbox=BOX) | {"images": TWICE}, "1 images share their file_name with another, as 'im01.png'"),
        ("t.json", via(**VIA_POLYGON) | {"im01.png9": {"filename": "im01.png", "regions": []}}, "of several images"),
        ("t.json", coco(segmentation=[[1.0, 2.0]]), "annotation 5 (a polygon of 1 points): encloses nothing"),
        ("t.json", labelme("linestrip", CORNERS), "shape 0 (lesion) (a linestrip): encloses nothing"),
        ("t.json", labelme("cube", CORNERS), "'cube' is none that LabelMe has"),
        ("t.json", label_studio("keypointlabels", x=1, y=2, width=0.5), "(a keypointlabels): encloses nothing"),
        ("t.json", label_studio("brushlabels", rle=[0, 0, 0, 4, 56]), "ends in the middle"),
        ("t.json", "[" * 100_000, "nested too deeply"),
        ("t.json", '{"image": "a", "boxes": []}\n{"image": "b", "boxes": []}', "JSON lines? Name it .jsonl"),
        ("t.xml", ENTITIES, "declares a document type or entities"),
        ("t.xml", "<annotations><track/></annotations>", "tracks of a video"),
        ("t.xml", "<svg/>", "of no known format. Known are CVAT"),
        ("t.xml", "<svg>", "not XML"),
        ("t.xml", cvat('<mask rle="0,9" left="0" top="0" width="9999" height="9999"/>'), "must fill"),
        ("t.txt", "0 12 10 30 20\n", "shares of the image, 0 to 1; got 10 to 30"),
        ("t.txt", "0 12 10 30 20 15 30\n", "shares of the image, 0 to 1; got 10 to 30"),
        ("t.txt", "0 .1 .1 .2 .2 .3 .3 .4\n", "8 numbers; a box has 5"),
        ("t.txt", "0 .4 .5 .5 .6 .9 1\n", "a triangle, or a box with a confidence and a track's id"),
    ],
)  # fmt: skip
def test_tables_that_cannot_be_used(tmp_path, name, content, message):
    _, tables = assigned(tmp_path, name, content)
    assert tables.marks[name] == {} and message in tables.problems[0]


@pytest.mark.parametrize(
    ("marks", "message"),
    [
        (Marks(boxes=((0.2, 0.2, 0.3, 0.4),)), "smaller than a pixel; shares"),
        (Marks(boxes=((0.0, 0.0, 1.0, 1.0),)), "smaller than a pixel; shares"),
        (Marks(polygons=((0.1, 0.1, 0.9, 0.1, 0.9, 0.9),)), "within the first pixel"),
        (Marks(fixations=((0.4, 0.3, 1.0), (0.5, 0.9, 1.0))), "within the first pixel"),
        (Marks(boxes=((1.0, 1.0, 9.0, 9.0),), size=(160.0, 100.0)), "160 x 100, but it is 80 x 60"),
    ],
)
def test_units_and_sizes_that_do_not_fit(marks, message):
    with pytest.raises(ValueError, match=message):
        render(marks, 60, 80, 5.0)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("t.csv", "image,x,y\na,.4,.3\na,1.02,.9\na,-.1,.9\nb,-1,-1\n"),
        ("t.csv", "image,x_min,y_min,x_max,y_max\na,.2,.2,1.0004,.5\nb,0,0,1,1\n"),
        ("t.csv", "image,polygon\na,.1 .1 1.2 .1 .9 .9\n"),
        ("t.csv", "image,x,y\n" + "a,.4,.3\n" * 30 + "a,7,.3\n"),
        ("t.json", coco("a.png", bbox=[0.2, 0.2, 0.805, 0.4])),
    ],
)
def test_tables_in_shares_that_do_not_say_so(tmp_path, name, content):
    _, tables = assigned(tmp_path, name, content, ("a.png", "b.png"))
    assert "shares of the image? Then say so by a column or key `unit` with shares (data.maps.columns.unit" in str(
        tables.problems
    )


def test_a_mark_in_the_corner_of_a_table_in_pixels_is_one(tmp_path):
    text = "image,x,y,w,h,unit\na,.2,.3,1.5,1.4,\nb,20,12,30,16,px\nc,.2,.2,.8,1.02,shares\n"
    _, tables = assigned(tmp_path, "t.csv", text, ("a.png", "b.png", "c.png"))
    assert not tables.problems and len(tables.marks["t.csv"]) == 3


def test_gaze_beside_images_and_other_sizes_are_told(tmp_path):
    gaze = ("30,20,95", "99,20,2.5", "-1,20,2.5", "-1,-1,500")  # the last one says itself that it was elsewhere
    rows = [f"{name},{fixation}" for name in "ab" for fixation in gaze]
    rows, tables = assigned(tmp_path, "t.csv", "image,x,y,duration\n" + "\n".join(rows), ("a.png", "b.png"))
    seen = [Outcome(digest="d", size=(HEIGHT, WIDTH))] * 2
    listing = lambda tables: Listing("l", tuple(rows), ("x",), MapReader(tmp_path, tables=tables.marks))
    assert check_sizes(listing(tables), seen).remarks[0].startswith("t.csv: 5.0% of the gaze lies outside")
    _, far = assigned(tmp_path, "t.csv", "image,x,y,duration\na,30,20,88\na,99,20,12\n", ("a.png", "b.png"))
    assert check_sizes(listing(far), seen).problems[0].startswith("t.csv: 12% of the gaze lies outside")
    text = "image,x,y,duration\na,30,20,980\nb,99,20,12\nb,30,20,8\n"
    _, one = assigned(tmp_path, "t.csv", text, ("a.png", "b.png"))
    assert "list, row 3: map t.csv: 60% of the gaze on b.png lies" in check_sizes(listing(one), seen).problems[0]
    _, larger = assigned(tmp_path, "t.csv", EXPORTS["CSV, other size"][1].replace("im01", "a"), ("a.png", "b.png"))
    told = "t.csv: 1 of 1 images are declared in another size, such as 160 x 120 for 80 x 60: their marks were scaled"
    assert check_sizes(listing(larger), seen).remarks == (told,)


def test_a_kept_outcome_depends_on_what_the_table_says_of_its_row(tmp_path):
    for name in ("a.png", "b.png"):
        Image.new("L", (WIDTH, HEIGHT)).save(tmp_path / name)
    text = "image,x,y,w,h,label\na,1,1,9,9,p\nb,1,1,9,9,p\nb,1,1,8,8,q\n"

    def keys(text, **options):
        rows, tables = assigned(tmp_path, "t.csv", text, ("a.png", "b.png"), **options)
        return row_keys(Listing("l", tuple(rows), ("x",), MapReader(tmp_path, tables=tables.marks)))

    first = keys(text)
    same = lambda other: [one == two for one, two in zip(first, other, strict=True)]
    assert same(keys(text.replace("8,8", "7,8"))) == [True, False]
    assert same(keys(text, categories=("p",))) == [True, False]
    assert same(keys(text.replace("x,y", "y,x").replace("a,1,1,9", "a,2,1,9"))) == [False, True]


WRONG = st.sampled_from(
    [
        *(None, True, 0, -1, 10**400, math.nan, math.inf, -1e308, "", "x", "\ud800", "1" * 1000),
        *([], {}, [None], [[]], {"a": 1}, [1, 2], ["x"] * 3),
        *({"size": [2**40, 2**40], "counts": [1]}, {"size": [2, 2], "counts": "PPPP"}),
    ]
)
DOCUMENTS = [
    *(coco(segmentation=[FLAT], bbox=[*BOX]), coco(fixations=[[3, 4]], worker_id=2), labelme("polygon", CORNERS)),
    supervisely("rectangle", points={"exterior": [*CORNERS[:2]]}),
    *(via(**VIA_POLYGON), label_studio("rectanglelabels", **PERCENT), MIN),
    [{"image": "im01.png", "annotations": [CREATEML]}],
    [{"image": "im01.png", "annotator": "b", "boxes": [[*BOX]], "polygons": [FLAT], "fixations": [[3, 4, 1]]}],
    {"im01": {"img_size": [HEIGHT, WIDTH], "Edema": [[[*p] for p in CORNERS]]}},
]


def places(value, path=()):
    """Every place of a document."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        yield (*path, key)
        yield from places(inner, (*path, key))


@given(st.data())
@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
def test_whatever_stands_in_a_table_it_is_read_or_refused_by_name(tmp_path, data):
    document = json.loads(json.dumps(data.draw(st.sampled_from(DOCUMENTS))))
    for _ in range(data.draw(st.integers(1, 2))):
        *above, last = data.draw(st.sampled_from([*places(document)]))
        holder = document
        for key in above:
            holder = holder[key]
        holder[last] = copy.deepcopy(data.draw(WRONG))
    (tmp_path / "a.json").write_text(json.dumps(document), encoding="utf-8")
    tables = read_tables(tmp_path, [Row("l", 2, "train", "x", IMAGE, "a.json")], {}, ())
    assert all(len(problem) < 2500 for problem in tables.problems)
    for marks in tables.marks["a.json"].get(IMAGE, {}).values():
        try:
            drawn = render(marks, HEIGHT, WIDTH, 5.0)
        except ValueError:
            continue
        assert 0 <= drawn.min() <= drawn.max() <= 1 + 1e-6


def test_many_marks_of_one_image_are_not_joined_pair_by_pair(tmp_path, monkeypatch):
    """Which would copy each as often as others follow."""
    monkeypatch.setattr(Marks, "__add__", lambda *_: pytest.fail("joined"))
    boxes = [(1 + i % 7, 1 + i % 5, 2, 2) for i in range(300)]
    lines = [f"{'a' if i % 2 else './a'}.png,{x},{y},{w},{h}" for i, (x, y, w, h) in enumerate(boxes)]
    (tmp_path / "a.csv").write_text("\n".join(["image,x,y,width,height", *lines]))
    (tmp_path / "a.json").write_text(json.dumps([{"image": "a.png", "boxes": boxes}]))
    for name in ("a.csv", "a.json"):
        tables = read_tables(tmp_path, [Row("l", 2, "train", "x", "a.png", name)], {}, ())
        (marks,) = tables.marks[name]["a.png"].values()
        assert sorted(marks.boxes) == sorted(boxes)


def test_boxes_are_drawn_where_they_lie_as_on_the_whole_map():
    boxes = [(-0.5, 2.25, 3.75, 1.5), (5.5, 0.0, 2.5, 6.0), (6.5, 4.5, 1.25, 1.25), (2.0, 2.0, 3.0, 3.0)]
    ends = lambda start, stop, at: np.minimum(stop, at + 1) - np.maximum(start, at)
    share = lambda start, stop, count: np.clip(ends(start, stop, np.arange(count)), 0, 1)
    expected = np.max([np.outer(share(y, y + h, 6), share(x, x + w, 8)) for x, y, w, h in boxes], 0)
    np.testing.assert_allclose(render(Marks(boxes=tuple(boxes)), 6, 8, 1.0), expected, atol=1e-6)


def test_fixations_are_added_up_in_parts_as_in_one(monkeypatch):
    rng = np.random.default_rng(0)
    marks = Marks(fixations=tuple(map(tuple, rng.uniform(1, 30, (100, 3)))))
    whole = render(marks, 32, 32, 3.0)
    monkeypatch.setattr(marks_module, "_AT_A_TIME", 7)
    np.testing.assert_allclose(render(marks, 32, 32, 3.0), whole, rtol=1e-5)


def test_polygons_that_take_long_to_draw_are_refused():
    with pytest.raises(ValueError, match="50,001 corners; at most 50,000 are drawn"):
        render(Marks(polygons=((1.0, 2.0) * 50_001,)), 32, 32, 1.0)
