"""Maps of one image each: what their values come to, and which are refused, against plain arithmetic."""

import gzip
import io
import sys
import zipfile
from dataclasses import replace

import nibabel
import numpy as np
import pytest
from matplotlib import colormaps
from PIL import Image
from scipy import io as scipy_io
from test_data_decode import encode as png

from tfcam_jax.data import array_files, map_files
from tfcam_jax.data.checks.inspection import check_row
from tfcam_jax.data.checks.outcomes import (
    FEWER_BITS,
    LABEL,
    LEFT_VOID,
    MASK,
    ONE_COLOUR,
    OPACITY,
    ROWS_FIRST,
    VOTES,
)
from tfcam_jax.data.listing import MapReader, Row, check_together, read_tables
from tfcam_jax.data.map_files import decode_map, read_map_file
from tfcam_jax.errors import ConfigError

SIZE = (24, 32)
MARKED = np.zeros(SIZE, bool)
MARKED[4:12, 6:20] = True
RAMP = np.linspace(0, 1, SIZE[0] * SIZE[1]).reshape(SIZE)
VOTED = np.where(MARKED, 3, 0) + np.roll(np.where(MARKED, 2, 0), 5, 1)


def npy(array):
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


def npz(**arrays):
    file = io.BytesIO()
    np.savez(file, **arrays)
    return file.getvalue()


def mat(**arrays):
    file = io.BytesIO()
    scipy_io.savemat(file, arrays)
    return file.getvalue()


def nii(array, affine=None, kind=nibabel.Nifti1Image):
    return kind(array, np.eye(4) if affine is None else np.diag(affine)).to_bytes()


def read(encoded, name, **options):
    return read_map_file(encoded, name, SIZE, **options)


@pytest.mark.parametrize(
    ("array", "expected", "notes"),
    [
        (np.array([[0, 255, 51]], np.uint8), [[0, 1, 0.2]], ()),
        (np.array([[0, 1, 1]], np.uint8), [[0, 1, 1]], ()),
        (np.array([[True, False]]), [[1, 0]], ()),
        (np.array([[0, 65535]], np.uint16), [[0, 1]], ()),
        (np.array([[0, 3, 5]], np.int64), [[0, 0.6, 1]], (VOTES,)),
        (np.array([[0, 2**40]], np.int64), [[0, 1]], (VOTES,)),
        (np.array([[0, 1]], np.int64), [[0, 1]], ()),
        (np.array([[0, 4, 200]], np.uint8), [[0, 0.02, 1]], (VOTES,)),
        (np.array([[0.25, 0.5]]), [[0.25, 0.5]], ()),
        (np.array([[1.0, 4.0]], np.float16), [[0.25, 1]], (VOTES,)),
        (np.array([[[0.5], [1.0]]], np.float32), [[0.5, 1]], ()),
    ],
)
def test_numbers_of_arrays(array, expected, notes):
    values, told = read(npy(array), "a.NPY")
    assert values.dtype == np.float32 and told == notes
    np.testing.assert_allclose(values, expected, rtol=1e-6)


@pytest.mark.parametrize(
    ("encoded", "name", "message"),
    [
        (b"no array", "a.npy", "not a NumPy array"),
        (npy(np.zeros(3)), "a.npy", "must be"),
        (npy(np.array([[np.nan]])), "a.npy", "finite"),
        (npy(np.array([[-1.0]])), "a.npy", "non-negative"),
        (npy(np.array([[{}]], object)), "a.npy", "not a NumPy array"),
        (npz(a=RAMP), "a.npy", "name it .npz"),
        (npz(a=RAMP, b=RAMP), "a.npz", r"holds a \[24, 32\], b \[24, 32\]: save the map alone"),
        (npz(a=np.array([[{}]], object)), "a.npz", "not an archive of NumPy arrays"),
        (npy(RAMP), "a.npz", "not an archive of NumPy arrays"),
        (mat(a=RAMP, b=RAMP), "a.mat", r"holds a \[24, 32\], b \[24, 32\]: save the map alone"),
        (mat(n=3.0), "a.mat", r"holds n \[1, 1\]"),
        (b"MATLAB 7.3 MAT-file, Platform: GLNXA64" + bytes(200), "a.mat", "version 7.3.*'-v7'"),
        (b"nothing", "a.mat", "not a MATLAB file"),
        (b"nothing", "a.nii", "not a NIfTI file"),
        (nii(np.zeros((32, 24, 3), np.uint8)), "a.nii", "3 pages.*data.maps.page, 1 to 3"),
        (nii(np.zeros((32, 24, 3, 2), np.uint8)), "a.nii", "must hold slices"),
    ],
)
def test_arrays_that_are_no_maps(encoded, name, message):
    with pytest.raises(ValueError, match=message):
        read(encoded, name)


def test_arrays_of_every_format_are_one_map():
    names = {
        "a.npz": npz(saliency=RAMP, height=np.array(24), names=np.array(["x"])),
        "a.mat": mat(fixLocs=RAMP, rate=60.0, subject="x"),
        "a.nii": nii(RAMP),
        "a.b.NII.GZ": gzip.compress(nii(RAMP.T[..., None])),
        "c.nii": nii(RAMP, kind=nibabel.Nifti2Image),
    }
    for name, encoded in names.items():
        np.testing.assert_allclose(read(encoded, name).values, RAMP, rtol=1e-6, err_msg=name)


def test_a_nifti_slice_lies_as_its_image_does():
    marked = MARKED.astype(np.uint8)
    for affine, stored in (
        ((-1, -1, 1, 1), marked.T),  # as ITK writes a picture: left and back
        ((-0.5, 0.5, 2, 1), marked.T[:, ::-1]),  # as dcm2niix does: rows from the feet's end
        ((2, 2, 2, 1), marked),  # no more than the size of pixels: the array's own axes
        ((1, 1, 1, 1), marked.T),
    ):
        np.testing.assert_array_equal(read(nii(stored, affine), "a.nii").values, MARKED)
    square = RAMP[:, :24]
    values, notes = read_map_file(nii(square), "a.nii", (24, 24))
    np.testing.assert_allclose(values, square, rtol=1e-6)
    assert notes == (ROWS_FIRST,)
    stack = np.stack([np.zeros_like(marked.T), marked.T], -1)
    np.testing.assert_array_equal(read(nii(stack), "a.nii", page=2).values, MARKED)


def test_nifti_without_its_reader_names_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "nibabel", None)
    with pytest.raises(ValueError, match="pip install nibabel"):
        read(nii(RAMP), "a.nii")


def grey(values):
    return png(np.asarray(values).astype(np.uint8))


def deep(values, **options):
    return png(np.asarray(values).astype(np.uint16), **options)


def rgba(colour, alpha):
    return png(np.dstack([np.broadcast_to(np.uint8(colour), (*SIZE, 3)), np.asarray(alpha, np.uint8)]))


def painted(colour, ground, **options):
    return png(np.where(MARKED[..., None], colour, ground).astype(np.uint8), **options)


def palette(numbers, colours, **options):
    image = Image.fromarray(np.asarray(numbers, np.uint8))
    image.putpalette(np.asarray(colours, np.uint8).ravel().tolist())
    return png(image, **options)


def voc(numbers):
    """Pascal VOC's colours as they are listed with the set, for the classes used here."""
    colours = np.zeros((256, 3), np.uint8)
    colours[[1, 2, 15, 255]] = [128, 0, 0], [0, 128, 0], [192, 128, 128], [224, 224, 192]
    return palette(numbers, colours)


BORDER = np.zeros(SIZE, bool)
BORDER[3, 5:21] = BORDER[12, 5:21] = True


@pytest.mark.parametrize(
    ("encoded", "expected", "notes"),
    [
        (grey(MARKED * 1), MARKED, (MASK,)),
        (grey(MARKED * 128), MARKED, (MASK,)),
        (grey(MARKED * 255), MARKED, ()),
        (grey(VOTED), VOTED / 5, (VOTES,)),
        (grey(RAMP * 200), np.floor(RAMP * 200) / 255, ()),
        (grey(MARKED * 1 + BORDER * 255), MARKED, (LABEL, LEFT_VOID)),
        (deep(MARKED * 4095), MARKED, (MASK,)),
        (deep(VOTED), VOTED / 5, (VOTES,)),
        (deep(RAMP * 4095), np.floor(RAMP * 4095) / 4095, (FEWER_BITS,)),
        (deep(RAMP * 65535), np.floor(RAMP * 65535) / 65535, ()),
        (png((RAMP * 300).astype(np.float32), "TIFF"), RAMP, (VOTES,)),
        (rgba((0, 0, 0), MARKED * 255), MARKED, (OPACITY,)),
        (rgba((20, 0, 10), RAMP * 255), np.floor(RAMP * 255) / 255, (OPACITY,)),
        (rgba((255, 255, 255), MARKED * 255), MARKED, ()),
        (painted((255, 0, 0), (0, 0, 0)), MARKED, (ONE_COLOUR,)),
        (painted((0, 90, 200), (255, 255, 255)), MARKED, (ONE_COLOUR,)),
        (png(np.outer(RAMP * 255, (0, 1, 0)).reshape(*SIZE, 3).astype(np.uint8)), RAMP, (ONE_COLOUR,)),
        (painted((0, 255, 0), (0, 0, 0), kind="JPEG", quality=95, subsampling=0), MARKED, (ONE_COLOUR,)),
        (rgba((255, 0, 0), MARKED * 255), MARKED, (ONE_COLOUR,)),
        (voc(MARKED * 15), MARKED, (LABEL,)),
        (voc(MARKED * 15 + BORDER * 255), MARKED, (LABEL, LEFT_VOID)),
        (palette(MARKED * 1, [(0, 0, 0), (255, 255, 255)]), MARKED, ()),
        (palette(RAMP * 255, [(i, i, i) for i in range(256)]), np.floor(RAMP * 255) / 255, ()),
        (palette(MARKED * 1 + BORDER * 2, [(0, 0, 0), (9, 200, 9), (9, 200, 9)]), MARKED | BORDER, (ONE_COLOUR,)),
    ],
)
def test_values_of_pictures(encoded, expected, notes):
    values, told = decode_map(encoded)
    assert values.dtype == np.float32 and told == notes
    np.testing.assert_allclose(values, expected, atol=0.06 if told == (ONE_COLOUR,) else 2e-6)


COLOURED = "several colours.*colour-mapped.*export the grey values"


@pytest.mark.parametrize("name", ["jet", "viridis", "hot", "turbo", "inferno", "rainbow", "coolwarm"])
@pytest.mark.parametrize("alone", [True, False])
def test_colour_mapped_pictures_are_refused(name, alone):
    rows, columns = np.mgrid[:60, :80] / 20
    heat = np.exp(-((rows - 1.2) ** 2) - (columns - 2.5) ** 2)
    picture = colormaps[name](heat)[..., :3] * 255
    if not alone:  # laid over the image
        picture = 0.5 * picture + 0.5 * 90
    with pytest.raises(ValueError, match=COLOURED):
        decode_map(png(picture.astype(np.uint8)))
    with pytest.raises(ValueError, match=COLOURED):
        decode_map(png(picture.astype(np.uint8), "JPEG"))
    with pytest.raises(ValueError, match=COLOURED):
        decode_map(png(Image.fromarray(picture.astype(np.uint8)).quantize(200)))


@pytest.mark.parametrize(
    ("encoded", "message"),
    [
        (voc(MARKED * 15 + BORDER * 1), "label image of 2 classes, 1, 15;.*a mask of those alone"),
        (grey(MARKED * 1 + BORDER * 2 + ~(MARKED | BORDER) * 255), "label image of 2 classes, 1, 2"),
        (png(np.where(MARKED, 3, 70000).astype(np.int32), "TIFF"), "values outside 0 to 65535"),
        (png(np.full(SIZE, np.nan, np.float32), "TIFF"), "finite"),
        (palette(MARKED * 1 + BORDER * 2, [(0, 0, 0), (250, 9, 9), (9, 200, 9)]), "label image of 2 classes, 1, 2"),
    ],
)
def test_pictures_whose_values_can_not_be_known(encoded, message):
    with pytest.raises(ValueError, match=message):
        decode_map(encoded)


def test_noise_of_colour_around_grey_is_no_colour():
    noise = np.random.default_rng(0).integers(0, 90, (*SIZE, 3))
    values = decode_map(png((noise + 120 * MARKED[..., None]).astype(np.uint8))).values
    np.testing.assert_array_equal(values > 0.4, MARKED)


def outlined(width, height, colour=(255, 0, 0)):
    """A radiograph-like picture with a thin coloured rectangle on it."""
    y, x = np.mgrid[:height, :width]
    photo = 128 + 100 * np.sin(x / 40) * np.cos(y / 30) + np.random.default_rng(0).normal(0, 8, (height, width))
    picture = np.repeat(np.clip(photo, 0, 255)[..., None], 3, -1).astype(np.uint8)
    picture[40:80, 60:62] = picture[40:80, 88:90] = picture[40:42, 60:90] = picture[78:80, 60:90] = colour
    return picture


@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
@pytest.mark.parametrize("colour", [(255, 0, 0), (0, 255, 0), (255, 255, 0)])
def test_a_thin_outline_of_colour_on_a_grey_picture_is_an_overlay(kind, colour):
    with pytest.raises(ValueError, match=COLOURED):
        decode_map(png(outlined(1024, 900, colour), kind))


@pytest.mark.parametrize("ground", [0, 255])
def test_a_thin_outline_on_black_or_white_is_a_map(ground):
    picture = np.full((900, 1024, 3), ground, np.uint8)
    picture[40:80, 60:62] = (255, 0, 0)
    values, notes = decode_map(png(picture))
    assert notes == (ONE_COLOUR,)
    np.testing.assert_allclose(values, picture[..., 1] != ground if ground else picture[..., 0] > 0, atol=0.01)


def frames(kind, **options):
    pages = [Image.fromarray(np.zeros(SIZE, np.uint8)), Image.fromarray((MARKED * 255).astype(np.uint8))]
    return png(pages[0], kind, save_all=True, append_images=pages[1:], **options)


@pytest.mark.parametrize("kind", ["TIFF", "GIF", "PNG"])
def test_of_several_pages_one_must_be_chosen(kind):
    with pytest.raises(ValueError, match=r"2 pages, slices or frames in one file.*data\.maps\.page, 1 to 2"):
        decode_map(frames(kind))
    np.testing.assert_array_equal(decode_map(frames(kind), page=2).values, MARKED)
    assert not decode_map(frames(kind), page=1).values.any()
    for encoded, page in ((frames(kind), 3), (grey(MARKED), 2), (frames(kind), 0)):
        with pytest.raises(ValueError, match=f"no page {page} "):
            decode_map(encoded, page)
    with pytest.raises(ValueError, match="no page 2 "):
        read(npy(RAMP), "a.npy", page=2)


def test_a_smaller_copy_in_a_tiff_is_no_page():
    copies = Image.fromarray((MARKED * 255).astype(np.uint8)), Image.fromarray(np.zeros((12, 16), np.uint8))
    copies[1].encoderinfo = {"tiffinfo": {254: 1}}
    encoded = png(copies[0], "TIFF", save_all=True, append_images=copies[1:])
    np.testing.assert_array_equal(decode_map(encoded).values, MARKED)


def row(cell):
    return Row("list", 1, "train", "x", "a.png", cell)


def test_map_cells_with_several_annotators(tmp_path):
    Image.new("L", (4, 3), 51).save(tmp_path / "a.png")
    np.save(tmp_path / "b.npy", np.full((3, 4), 0.6))
    maps = MapReader(tmp_path).annotators(row("a.png|ben=b.npy"), 3, 4)
    assert list(maps) == ["1", "ben"]
    np.testing.assert_allclose(MapReader(tmp_path).read(row("a.png|b.npy"), 3, 4), np.full((3, 4), 0.4), rtol=1e-6)
    assert MapReader(tmp_path, "carl").read(row("a.png|ben=b.npy"), 3, 4) is None
    with pytest.raises(ValueError, match="annotator anna has two maps"):
        MapReader(tmp_path).read(row("anna=a.png|anna=b.npy"), 3, 4)


def test_annotators_weigh_the_same_and_maps_are_turned_around_before(tmp_path):
    (tmp_path / "a.png").write_bytes(grey(MARKED * 1))
    (tmp_path / "b.png").write_bytes(grey(np.roll(MARKED, 8, 1) * 255))
    (tmp_path / "c.npy").write_bytes(npy(np.roll(MARKED, 8, 1) * 7))
    both = (MARKED + np.roll(MARKED, 8, 1).astype(float)) / 2
    for cell in ("a.png|b.png", "a.png|c.npy"):
        np.testing.assert_array_equal(MapReader(tmp_path).read(row(cell), *SIZE), both)
        np.testing.assert_array_equal(MapReader(tmp_path, invert=True).read(row(cell), *SIZE), 1 - both)
    own = replace(row("a.png"), predicted="yes")  # A network's map: none of people's files, nor any annotator's.
    np.testing.assert_array_equal(MapReader(tmp_path, "anna", invert=True, page=2).read(own, *SIZE), MARKED)
    for wrong in ({"page": 0}, {"bits": 17}, {"bits": -1}):
        with pytest.raises(ConfigError, match=r"(maps\.page|data\.bits)"):
            MapReader(tmp_path, **wrong)


def test_an_archive_of_several_arrays_tells_their_names_and_marks_outside_their_entry(tmp_path):
    Image.new("L", (40, 30)).save(tmp_path / "a.png")
    np.savez(tmp_path / "a.npz", heat=np.ones((30, 40)), mask=np.ones((30, 40)))
    (tmp_path / "a.csv").write_text("image,x,y,w,h\na.png,10,10,90,9\n")
    told = {}
    for name in ("a.npz", "a.csv"):
        row = Row("list", 2, "train", "x", "a.png", name)
        tables = read_tables(tmp_path, [row], {}, ()).marks
        (told[name],) = check_row(MapReader(tmp_path, tables=tables), row, False).problems
    assert "holds heat [30, 40], mask [30, 40]: save the map alone" in told["a.npz"]
    assert told["a.csv"].endswith("another size of it?; correct or delete the entry")


def claimed_npy(shape, dtype="'<f4'"):
    header = f"{{'descr': {dtype}, 'fortran_order': False, 'shape': {shape}, }}".encode().ljust(117) + b"\n"
    return b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header


def bomb(name, content):
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(name, content)
    return file.getvalue()


@pytest.mark.parametrize(
    ("encoded", "name", "message"),
    [
        (claimed_npy((10**6, 10**6)), "a.npy", "too many to open"),
        (claimed_npy((2**27, 1)), "a.npy", "too many to open"),
        (claimed_npy((-1, -1)), "a.npy", "too many to open"),
        (claimed_npy((2, 2), "'|O'"), "a.npy", "not a NumPy array.*objects"),
        (claimed_npy((2, 2), "__import__('os').abort()"), "a.npy", "not a NumPy array"),
        (bomb("a.npy", claimed_npy((2**14, 2**14))), "a.npz", "too many to open"),
        (bomb("a.npy", claimed_npy((2, 2), "'|O'")), "a.npz", "objects"),
        (gzip.compress(bytes(2**20 + 2)), "a.nii.gz", "more than 1 MiB when unpacked"),
    ],
    ids=["npy", "npy_column", "npy_negative", "npy_objects", "npy_code", "npz", "npz_objects", "nifti"],
)
def test_arrays_that_claim_too_much_are_refused_before_they_are_unpacked(encoded, name, message, monkeypatch):
    monkeypatch.setattr(array_files, "_LARGEST_UNPACKED", 2**20)
    with pytest.raises(ValueError, match=message):
        read(encoded, name)


def test_colours_are_judged_in_parts_as_in_one(monkeypatch):
    whole = [map_files._amount_of_colour(picture) for picture in ONE_COLOUR_PICTURES]
    monkeypatch.setattr(map_files, "_PART", 37)
    for picture, expected in zip(ONE_COLOUR_PICTURES, whole, strict=True):
        assert expected is not None
        np.testing.assert_allclose(map_files._amount_of_colour(picture), expected, atol=1e-6)
        red = picture.astype(float)[..., 0]
        ground = 0 if red.mean() < 128 else 255
        amount = np.abs(picture[..., 1].astype(float) - ground)  # the colour is the median of the strongest tenth
        np.testing.assert_allclose(expected, np.minimum(amount / np.median(amount[amount >= 180]), 1), atol=1e-3)


ONE_COLOUR_PICTURES = [
    np.rint(ground + (np.array([0, 200 if ground == 0 else -200, 0])) * RAMP[..., None]).astype(np.uint8)
    for ground in (0, 255)
]


def test_maps_of_one_image_are_bounded_together(tmp_path):
    (tmp_path / "a.png").write_bytes(png(np.zeros((3, 4), np.uint8)))
    cell = "|".join(f"{i}=a.png" for i in range(201))
    with pytest.raises(ValueError, match="more than 200 maps"):
        MapReader(tmp_path).annotators(row(cell), 3, 4)
    large = {str(i): map_files.MapFile(np.broadcast_to(np.float32(0), (8000, 8000))) for i in range(3)}
    with pytest.raises(ValueError, match="3 maps of one image, of up to 64,000,000 pixels; scale"):
        check_together(large)


@pytest.mark.parametrize("suffix", [".npy", ".npz"])
def test_nobody_waits_for_room_while_others_can_not_parse(monkeypatch, suffix):
    """Whoever holds the room could need the lock: both would wait for ever."""
    held = []
    monkeypatch.setattr(array_files, "take_pixels", lambda *sides: held.append(array_files._PARSING.locked()))
    file = io.BytesIO()
    (np.save if suffix == ".npy" else np.savez)(file, np.eye(8))
    np.testing.assert_array_equal(array_files.read_array(file.getvalue(), suffix, (8, 8), None)[0], np.eye(8))
    assert held and not any(held)
