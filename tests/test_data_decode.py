"""Files of every mode and depth against what Pillow's own definitions and plain arithmetic say."""

import io
import os
import random
import re
import subprocess
import threading
import time
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tfcam_jax.data import bounds
from tfcam_jax.data.bounds import TooLargeError
from tfcam_jax.data.checks.inspection import check_files
from tfcam_jax.data.decode import check_channels, decode_image, decode_picture, guessed_bits, turned_by
from tfcam_jax.data.listing import Listing, MapReader, Row, read_tables
from tfcam_jax.data.map_files import decode_map as decode_noted_map

RNG = np.random.default_rng(0)
GREY = RNG.integers(0, 256, (5, 7), np.uint8)
COLOUR = RNG.integers(0, 256, (5, 7, 3), np.uint8)
ALPHA = RNG.integers(0, 256, (5, 7), np.uint8)
DEEP = RNG.integers(0, 65536, (5, 7), np.uint16)


def encode(image, kind="PNG", **options):
    file = io.BytesIO()
    image = image if isinstance(image, Image.Image) else Image.fromarray(image)
    image.save(file, kind, **options)
    return file.getvalue()


def decode_map(encoded):
    return decode_noted_map(encoded).values


def luma(rgb):
    return rgb.astype(float) @ [0.299, 0.587, 0.114]


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "BMP"])
def test_plain_images_come_back_exactly(kind):
    np.testing.assert_array_equal(decode_image(encode(COLOUR, kind), 3), COLOUR)
    np.testing.assert_array_equal(decode_image(encode(GREY, kind), 1)[..., 0], GREY)
    np.testing.assert_array_equal(decode_image(encode(GREY, kind), 3), np.repeat(GREY[..., None], 3, 2))
    np.testing.assert_allclose(decode_image(encode(COLOUR, kind), 1)[..., 0], luma(COLOUR), atol=1)


def test_transparency_lies_over_black():
    rgba = np.dstack([COLOUR, ALPHA])
    expected = COLOUR * (ALPHA[..., None] / 255)
    np.testing.assert_allclose(decode_image(encode(rgba), 3), expected, atol=1)
    grey_alpha = encode(Image.merge("LA", [Image.fromarray(GREY), Image.fromarray(ALPHA)]))
    np.testing.assert_allclose(decode_image(grey_alpha, 1)[..., 0], GREY * (ALPHA / 255), atol=1)
    np.testing.assert_allclose(decode_map(grey_alpha), GREY / 255 * (ALPHA / 255), atol=1.5 / 255)
    np.testing.assert_allclose(decode_map(encode(rgba)), luma(expected) / 255, atol=1.5 / 255)


def test_palette_is_resolved_not_read_as_indices():
    image = Image.fromarray(GREY % 4, "L").convert("P")
    image.putpalette([0, 0, 0, 250, 0, 0, 0, 250, 0, 0, 0, 250])
    expected = np.array([[0, 0, 0], [250, 0, 0], [0, 250, 0], [0, 0, 250]], np.uint8)[GREY % 4]
    np.testing.assert_array_equal(decode_image(encode(image), 3), expected)
    with pytest.raises(ValueError, match="a label image of 3 classes, 1, 2, 3"):  # no order of values, as a map
        decode_map(encode(image))
    transparent = encode(image, transparency=2)
    expected[GREY % 4 == 2] = 0
    np.testing.assert_array_equal(decode_image(transparent, 3), expected)


def test_one_bit():
    bits = GREY > 127
    np.testing.assert_array_equal(decode_map(encode(Image.fromarray(bits))), bits.astype(np.float32))
    np.testing.assert_array_equal(decode_image(encode(Image.fromarray(bits)), 1)[..., 0], bits * 255)


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "PPM"])
def test_sixteen_bits_are_scaled_by_their_depth(kind):
    encoded = encode(DEEP, kind)
    np.testing.assert_allclose(decode_image(encoded, 1)[..., 0], DEEP / 257, atol=0.51)
    np.testing.assert_allclose(decode_map(encoded), DEEP / 65535, rtol=1e-6)


def test_a_faint_sixteen_bit_map_keeps_its_shape():
    faint = (DEEP // 1000).astype(np.uint16)
    saliency = decode_map(encode(faint))
    assert saliency.dtype == np.float32
    assert len(np.unique(saliency)) == len(np.unique(faint))


def test_float_maps_are_taken_as_they_are_or_divided_by_their_peak():
    values = RNG.random((5, 7), np.float32)
    np.testing.assert_array_equal(decode_map(encode(values, "TIFF")), values)
    np.testing.assert_allclose(decode_map(encode(values * 300, "TIFF")), values / values.max(), rtol=1e-6)
    for wrong in (values - 0.5, values * np.nan):
        with pytest.raises(ValueError, match="finite and non-negative"):
            decode_map(encode(wrong.astype(np.float32), "TIFF"))
    for wrong in (values - 0.5, values * 300, values * np.nan):
        with pytest.raises(ValueError, match="values outside 0 to 1 "):
            decode_image(encode(wrong.astype(np.float32), "TIFF"), 1)
    with pytest.raises(ValueError, match="values outside 0 to 65535"):
        decode_image(encode(np.array([[70000]], np.int32), "TIFF"), 3)


FILM = np.arange(4096).reshape(64, 64)


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
@pytest.mark.parametrize(
    ("film", "bits", "divisor", "guess"),
    [
        (FILM, None, 4095, 12),  # 4096 levels over the whole range of brightness
        (FILM // 2, None, 4095, 12),  # a darker film of that scanner
        (FILM // 16, None, 255, 8),
        (FILM * 16, None, 65535, 16),
        (FILM * 4, None, 65535, 16),
        (FILM, 0, 4095, 12),
        (FILM, 16, 65535, 12),
        (FILM * 4, 14, 16383, 16),
        (FILM * 0, None, 255, 0),
    ],
)
def test_bits_in_use_of_sixteen(kind, film, bits, divisor, guess):
    encoded = encode(film.astype(np.uint16), kind)
    np.testing.assert_allclose(decode_image(encoded, 1, bits)[..., 0], 255 * film / divisor, atol=0.51)
    assert guessed_bits(encoded) == guess
    if film.max() > 1023:
        with pytest.raises(ValueError, match=r"values outside 0 to 1023 .*data\.bits is too small"):
            decode_image(encoded, 1, 10)


def test_a_tiff_may_say_how_large_its_values_can_be():
    encoded = encode(FILM.astype(np.uint16), "TIFF", tiffinfo={281: 65535})
    assert guessed_bits(encoded) == 16 and guessed_bits(encode(GREY)) == 0
    np.testing.assert_allclose(decode_image(encoded, 1)[..., 0], FILM / 257, atol=0.51)


def test_an_image_of_several_pages_is_refused_but_not_a_photograph_with_its_by_products():
    pages = [Image.fromarray(page) for page in (COLOUR, COLOUR[::-1].copy())]
    for kind in ("TIFF", "GIF", "PNG", "WEBP"):
        with pytest.raises(ValueError, match="2 pages, slices or frames in one file; keep the one that is meant"):
            decode_picture(encode(pages[0], kind, save_all=True, append_images=pages[1:]), 3)
    assert decode_picture(encode(pages[0], "MPO", save_all=True, append_images=pages[1:]), 3).size == (7, 5)


def test_cmyk():
    ink = np.zeros((2, 2, 4), np.uint8)
    ink[0, 0] = 255, 0, 0, 0
    decoded = decode_image(encode(Image.fromarray(ink, "CMYK"), "TIFF"), 3)
    np.testing.assert_array_equal(decoded[0], [[0, 255, 255], [255, 255, 255]])


def test_exif_orientation_turns_image_and_map():
    exif = Image.Exif()
    exif[0x0112] = 6  # The viewer turns it a quarter clockwise.
    np.testing.assert_array_equal(decode_image(encode(COLOUR, exif=exif), 3), np.rot90(COLOUR, -1))
    np.testing.assert_allclose(decode_map(encode(GREY, exif=exif)), np.rot90(GREY, -1) / 255, rtol=1e-6)
    assert (turned_by(encode(COLOUR, exif=exif)), turned_by(encode(COLOUR))) == (6, 1)


@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_truncated_and_foreign_files_are_refused(kind):
    noise = RNG.integers(0, 256, (64, 64, 3), np.uint8)
    encoded = encode(noise, kind)
    for decode in (lambda data: decode_image(data, 3), decode_map):
        with pytest.raises(ValueError, match="broken image"):
            decode(encoded[: len(encoded) // 2])
        for foreign in (b"", b"not an image"):
            with pytest.raises(ValueError, match="not an image"):
                decode(foreign)


def test_channels():
    for channels in (0, 2, 4):
        with pytest.raises(ValueError, match="channels must be 1"):
            check_channels(channels)


def claiming(kind, side):
    """A file whose header says that it has side x side pixels, and that holds none or few."""
    encoded = bytearray(encode(Image.new("L", (8, 8)), kind))
    place = {"PNG": 16, "JPEG": encoded.find(b"\xff\xc0") + 5}[kind]
    width = 4 if kind == "PNG" else 2
    encoded[place : place + 2 * width] = 2 * side.to_bytes(width, "big")
    if kind == "PNG":
        encoded[29:33] = zlib.crc32(encoded[12:29]).to_bytes(4, "big")
    return bytes(encoded)


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize(("kind", "side"), [("PNG", 8193), ("PNG", 12000), ("PNG", 30000), ("JPEG", 65500)])
def test_pictures_that_claim_too_many_pixels_are_refused_before_they_are_decoded(kind, side):
    for read in (lambda encoded: decode_image(encoded, 3), decode_map, guessed_bits, turned_by):
        with pytest.raises(TooLargeError, match=r"to open safely.*scale it down"):
            read(claiming(kind, side))


@pytest.mark.parametrize("kind", ["EPS", "PCX", "SGI", "ICO", "DDS", "MSP", "TGA"])
def test_pillow_opens_the_formats_that_are_read_alone(kind, monkeypatch):
    """EPS would start another program."""
    monkeypatch.setattr(subprocess, "Popen", lambda *_, **__: pytest.fail("a program was started"))
    with pytest.raises(ValueError, match=r"not an image of a format that is read \(PNG, JPEG, .*convert it to PNG"):
        decode_image(encode(Image.new("1" if kind == "MSP" else "RGB", (32, 32)), kind), 3)


def test_no_other_call_opens_pictures():
    """Each would try all formats of Pillow."""
    calls = re.compile(r"Image\.open\((?!.*formats=)")
    sources = [*Path("tfcam_jax").rglob("*.py"), *Path("launch").rglob("*.py")]
    assert sources and [str(path) for path in sources if calls.search(path.read_text(encoding="utf-8"))] == []


def test_threads_decode_no_more_than_the_limit_together():
    """Each holds an image and then needs its map: none waits forever, and all but one keep within the limit."""
    room, held, most, lock = bounds._Room(100), 0, 0, threading.Lock()

    def work(seed):
        nonlocal held, most
        rng = random.Random(seed)
        for _ in range(20):
            own = 0
            with room.scope():
                for count in (rng.randint(1, 60), rng.randint(1, 60)):
                    room.take(count)
                    own += count
                    with lock:
                        held += count
                        most = max(most, held)
                    time.sleep(rng.random() / 5000)
                with lock:
                    held -= own

    threads = [threading.Thread(target=work, args=(seed,), daemon=True) for seed in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert not any(thread.is_alive() for thread in threads) and 60 < most <= 160 and held == 0


def test_a_deflated_dicom_is_refused_before_it_is_unpacked():
    film = bytes(128) + b"DICM" + b"1.2.840.10008.1.2.1.99" + zlib.compress(bytes(10**6))
    with pytest.raises(ValueError, match="deflated"):
        decode_image(film, 3)


def test_what_is_no_file_is_not_opened(tmp_path):
    os.mkfifo(tmp_path / "pipe.png")
    for path in (tmp_path / "pipe.png", "/dev/zero"):
        with pytest.raises(ValueError, match="a pipe or a device"):
            bounds.refuse_no_file(path)
    (outcome,) = check_files(Listing("x", (Row("x", 2, "train", "a", "pipe.png"),), ("a",), MapReader(tmp_path)))[0]
    assert "pipe.png: a pipe or a device, not a file" in outcome.problems[0]
    os.mkfifo(tmp_path / "marks.csv")
    tables = read_tables(tmp_path, [Row("x", 2, "train", "a", "a.png", "marks.csv")], {}, ())
    assert "a pipe or a device" in tables.problems[0]
