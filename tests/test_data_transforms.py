"""The joint transform against Pillow and SciPy, and as a property: what the map marks stays marked."""

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from scipy import ndimage

from tfcam_jax.data import transforms
from tfcam_jax.data.source import Example
from tfcam_jax.data.transforms import Augment, Resize
from tfcam_jax.saliency import to_cam_resolution

AFFINE = Augment(rotate=25, translate=0.1, scale=0.2, shear=10)


def apply(example, size, augment=transforms.IDENTITY, rng=None):
    return transforms.apply(example, Resize(size), augment, rng)


def noise(height, width, channels=3, seed=0):
    rng = np.random.default_rng(seed)
    return Example.from_arrays(
        rng.integers(0, 256, (height, width, channels), np.uint8), rng.random((height, width), np.float32)
    )


def smooth(height, width):
    """Image and map that hold the same picture, without detail that resampling would lose."""
    y, x = np.mgrid[:height, :width] / max(height, width)
    picture = 0.5 + 0.25 * np.sin(5 * x + 1) + 0.25 * np.cos(4 * y)
    return Example.from_arrays(np.rint(255 * picture).astype(np.uint8)[..., None], picture.astype(np.float32))


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("size", [9, 40])
def test_plain_resize_is_pillows(channels, size):
    example = noise(30, 20, channels)
    image, saliency = apply(example, size)
    assert image.shape == (size, size, channels) and image.dtype == np.uint8
    assert saliency.shape == (size, size) and saliency.dtype == np.float32
    for channel in range(channels):
        expected = Image.fromarray(example.image[..., channel]).resize((size, size), Image.Resampling.BILINEAR)
        np.testing.assert_array_equal(image[..., channel], expected)
    expected = Image.fromarray(example.saliency).resize((size, size), Image.Resampling.BILINEAR)
    np.testing.assert_array_equal(saliency, expected)


def test_stages_are_pillows_one_after_the_other():
    example = noise(60, 50)
    image, saliency = transforms.apply(example, Resize(14, through=(40, 23)))
    for array, moved in ((example.image, image), (example.saliency, saliency)):
        expected = Image.fromarray(array)
        for side in (40, 23, 14):
            expected = expected.resize((side, side), Image.Resampling.BILINEAR)
        np.testing.assert_array_equal(moved, expected)
    assert (image != apply(example, 14)[0]).mean() > 0.5


def test_a_straight_map_is_pillows_of_its_file():
    """In 8 bits from the file to the map's places, while the image goes its own way; faint dots round away."""
    file = np.random.default_rng(1).integers(0, 256, (31, 47), np.uint8)
    stored = np.divide(file, np.float32(255), dtype=np.float32)
    image, saliency = transforms.apply(Example.from_arrays(np.zeros((62, 94, 3), np.uint8), stored), Resize(40, (), 7))
    assert image.shape == (40, 40, 3) and saliency.dtype == np.float32
    np.testing.assert_array_equal(saliency, Image.fromarray(file).resize((7, 7), Image.Resampling.BILINEAR))
    faint = np.zeros((224, 224), np.float32)
    faint[100, 100] = 1
    assert not transforms.apply(Example.from_arrays(np.zeros((8, 8, 3), np.uint8), faint), Resize(40, (), 7))[1].any()


def test_a_straight_map_moves_with_its_image():
    """Flipped and cropped like the image: the map's places hold what the image's do."""
    image, human = np.zeros((64, 64, 3), np.uint8), np.zeros((64, 64), np.float32)
    image[8:24, 40:56], human[8:24, 40:56] = 255, 1
    for seed in range(5):
        draws = lambda seed=seed: np.random.default_rng(seed)
        augment, example = Augment(flip=0.5, crop=0.3), Example.from_arrays(image, human)
        moved, straight = transforms.apply(example, Resize(64, (), 8), augment, draws())
        np.testing.assert_allclose(moved[..., 0].reshape(8, 8, 8, 8).mean((1, 3)), straight, atol=60)


def test_a_faint_dot_survives_resizing():
    saliency = np.zeros((224, 224), np.float32)
    saliency[100, 100] = 1 / 255
    _, moved = apply(Example.from_arrays(np.zeros((224, 224, 3), np.uint8), saliency), 32)
    assert moved.max() > 0
    assert np.unravel_index(moved.argmax(), moved.shape) == (14, 14)


@pytest.mark.parametrize("saliency", [None, *(np.full((29, 31), value, np.float32) for value in (0, 0.3, 0.7, 1))])
@pytest.mark.parametrize("augment", [Augment(), AFFINE])
def test_no_map_and_constant_map_give_zeros(saliency, augment):
    # A constant map, turned, would otherwise become a picture of the border.
    _, moved = apply(
        Example.from_arrays(np.zeros((8, 8, 3), np.uint8), saliency), 16, augment, np.random.default_rng(0)
    )
    assert moved.shape == (16, 16) and not moved.any()


def test_a_crop_within_a_box_leaves_no_map():
    saliency = np.zeros((100, 100), np.float32)
    saliency[1:99, 1:99] = 1
    example = Example.from_arrays(np.zeros((100, 100, 3), np.uint8), saliency)
    augment = Augment(crop=0.9, rotate=30)
    moved = [apply(example, 16, augment, np.random.default_rng(seed))[1] for seed in range(40)]
    inside = [m for m in moved if not m.any()]
    assert inside, "none of the crops lies within the box"
    assert all(len(np.unique(m)) > 1 for m in moved if m.any())


def test_identity_draws_change_nothing():
    example = noise(30, 20)
    plain, drawn = apply(example, 16), apply(example, 16, Augment(), np.random.default_rng(3))
    for before, after in zip(plain, drawn, strict=True):
        np.testing.assert_array_equal(before, after)


def test_flip_mirrors_both_with_its_probability():
    example = noise(16, 16)
    plain_image, plain_map = apply(example, 16)
    flipped = 0
    for seed in range(200):
        image, saliency = apply(example, 16, Augment(flip=0.3), np.random.default_rng(seed))
        turn = not np.array_equal(image, plain_image)
        flipped += turn
        np.testing.assert_array_equal(image, plain_image[:, ::-1] if turn else plain_image)
        np.testing.assert_array_equal(saliency, plain_map[:, ::-1] if turn else plain_map)
    assert 40 <= flipped <= 80  # 60 +- 3 standard deviations


def test_crop_is_a_window_of_the_right_size():
    # On a ramp the crop's window can be read off the values: intensity = column and row.
    columns = np.tile(np.arange(200, dtype=np.float32), (200, 1))
    spans = []
    for seed in range(100):
        rng = np.random.default_rng(seed)
        image, saliency = apply(
            Example.from_arrays(columns.astype(np.uint8)[..., None], columns), 50, Augment(crop=0.4), rng
        )
        np.testing.assert_allclose(image[..., 0], saliency, atol=0.51)
        spans.append((saliency[0, -1] - saliency[0, 0]) * 50 / 49)
    assert 0.6 * 200 <= min(spans) <= 0.65 * 200
    assert 0.95 * 200 <= max(spans) <= 200.1


@given(seed=st.integers(0, 10_000), size=st.sampled_from([17, 32]))
@settings(max_examples=40, deadline=None)
def test_affine_agrees_with_scipy(seed, size):
    example = noise(size, size, 1, seed)
    image, saliency = apply(example, size, AFFINE, np.random.default_rng(seed))
    # Recover the mapping from two ramps, whose values are coordinates, then resample independently.
    y, x = np.mgrid[:size, :size].astype(np.float32)
    inside = np.full((size, size), True)
    coordinates = []
    for ramp in (y, x):
        _, moved = apply(Example.from_arrays(example.image, ramp + 100), size, AFFINE, np.random.default_rng(seed))
        inside &= moved > 0
        coordinates.append(moved - 100)
    # Ramps are flat within half a pixel of the border, where coordinates are clamped; look further in.
    inside &= np.all([(c > 0.01) & (c < size - 1.01) for c in coordinates], axis=0)
    expected = ndimage.map_coordinates(example.saliency, coordinates, order=1, mode="nearest")
    np.testing.assert_allclose(saliency[inside], expected[inside], atol=2e-3)
    expected = ndimage.map_coordinates(example.image[..., 0].astype(np.float32), coordinates, order=1, mode="nearest")
    np.testing.assert_allclose(image[..., 0][inside], expected[inside], atol=1.5)


def test_beyond_the_border_the_image_repeats_its_edge_and_the_map_is_empty():
    example = Example.from_arrays(
        np.full((32, 32, 3), 200, np.uint8), np.pad(np.zeros((16, 16), np.float32), 8, constant_values=1)
    )
    outside = 0
    for seed in range(20):
        image, saliency = apply(example, 32, AFFINE, np.random.default_rng(seed))
        assert (image == 200).all()
        outside += (saliency[[0, 0, -1, -1], [0, -1, 0, -1]] == 0).sum()
    assert outside > 20  # of 80 corners


augments = st.builds(
    Augment,
    flip=st.floats(0, 1),
    crop=st.floats(0, 0.3),
    rotate=st.floats(0, 30),
    translate=st.floats(0, 0.1),
    scale=st.floats(0, 0.2),
    shear=st.floats(0, 10),
)


@given(augment=augments, seed=st.integers(0, 10_000), x=st.floats(0.35, 0.65), y=st.floats(0.35, 0.65))
@settings(max_examples=150, deadline=None)
def test_a_marked_spot_stays_marked(augment, seed, x, y):
    """A disc in the image and its map at half the resolution go to the same place."""
    shares = lambda n: (np.arange(n) + 0.5) / n
    disc = lambda height, width: np.hypot(shares(height)[:, None] - y, shares(width)[None, :] - x) < 0.1
    image = np.zeros((120, 160, 3), np.uint8)
    image[disc(120, 160), 1] = 255
    moved, saliency = apply(
        Example.from_arrays(image, disc(60, 80).astype(np.float32)), 64, augment, np.random.default_rng(seed)
    )
    green = moved[..., 1] / 255
    assert green.sum() > 20
    assert not moved[..., [0, 2]].any()
    place = ndimage.center_of_mass
    np.testing.assert_allclose(place(saliency), place(green), atol=0.6)
    np.testing.assert_allclose(saliency.sum(), green.sum(), rtol=0.1)


@pytest.mark.parametrize("augment", [AFFINE, Augment(flip=0.5, crop=0.3)])
def test_image_and_map_move_alike_everywhere(augment):
    example = smooth(48, 48)
    for seed in range(20):
        image, saliency = apply(example, 48, augment, np.random.default_rng(seed))
        inside = saliency > 0
        # The image is rounded when stored, when resized and when moved.
        np.testing.assert_allclose(image[..., 0][inside] / 255, saliency[inside], atol=2.1 / 255)


def forward_map(augment, seed, size=64):
    """[2, 3]: where an input point (x, y, 1) goes, about the centre and in shares of the side, by least squares."""
    y, x = (np.mgrid[:size, :size] + 0.5) / size - 0.5
    blank = np.zeros((size, size, 1), np.uint8)
    come_from = [
        apply(Example.from_arrays(blank, (1 + ramp).astype(np.float32)), size, augment, np.random.default_rng(seed))[1]
        - 1
        for ramp in (x, y)
    ]
    inside = np.all([np.abs(c) < 0.45 for c in come_from], axis=0)
    points = np.column_stack([*(c[inside] for c in come_from), np.ones(inside.sum())])
    return np.linalg.lstsq(points, np.column_stack([x[inside], y[inside]]), rcond=None)[0].T


READINGS = {
    "rotate": (20, lambda m: np.degrees(np.arctan2(m[1, 0], m[0, 0]))),
    "scale": (0.2, lambda m: np.sqrt(np.linalg.det(m[:, :2])) - 1),
    "shear": (15, lambda m: np.degrees(np.arctan(m[0, 1]))),
    "translate": (0.1, lambda m: m[0, 2]),
}


@pytest.mark.parametrize("part", READINGS)
def test_each_part_moves_as_much_as_it_says(part):
    limit, read = READINGS[part]
    maps = [forward_map(Augment(**{part: limit}), seed) for seed in range(40)]
    values = np.array([read(m) for m in maps])
    assert np.abs(values).max() <= limit * 1.01
    assert values.min() < -0.7 * limit and values.max() > 0.7 * limit
    for name, (other_limit, other) in READINGS.items():
        if name != part and {name, part} != {"rotate", "shear"}:
            assert max(abs(other(m)) for m in maps) < 0.02 * other_limit, name


def test_the_same_draws_give_the_same_pixels():
    example = noise(30, 20)
    augment = Augment(flip=0.5, crop=0.2, rotate=10, translate=0.1, scale=0.1, shear=5)
    draw = lambda seed: apply(example, 16, augment, np.random.default_rng(seed))
    for first, again, other in zip(draw(1), draw(1), draw(2), strict=True):
        np.testing.assert_array_equal(first, again)
        assert not np.array_equal(first, other)


def test_parts_do_not_disturb_each_other():
    """Which images are flipped is the same whether they are cropped or not."""
    ramp = np.tile(np.arange(32, dtype=np.float32), (32, 1))
    example = Example.from_arrays(np.zeros((32, 32, 3), np.uint8), ramp)
    flipped = lambda **parts: [
        saliency[0, 0] > saliency[0, -1]
        for saliency in (apply(example, 32, Augment(flip=0.5, **parts), np.random.default_rng(s))[1] for s in range(30))
    ]
    assert flipped() == flipped(crop=0.2)
    assert 5 < sum(flipped()) < 25


@pytest.mark.parametrize(
    "options", [{"flip": 1.5}, {"crop": 1.0}, {"rotate": -1}, {"scale": 1.0}, {"shear": 90}, {"translate": 2}]
)
def test_impossible_augmentation_is_refused(options):
    with pytest.raises(ValueError, match=f"augment.{next(iter(options))} must be in"):
        Augment(**options)


@given(st.integers(0, 2**31))
def test_colour_changes_the_image_alone_and_leaves_the_geometry(seed):
    rng = np.random.default_rng(seed)
    example = Example.from_arrays(rng.integers(60, 190, (16, 16, 3), np.uint8), rng.random((16, 16), np.float32))
    geometry = {"flip": 0.5, "crop": 0.3, "rotate": 20.0}
    plain, plain_map = apply(example, 12, Augment(**geometry), np.random.default_rng(seed))
    coloured, own_map = apply(
        example, 12, Augment(**geometry, brightness=0.1, contrast=0.2, saturation=0.5), np.random.default_rng(seed)
    )
    np.testing.assert_array_equal(own_map, plain_map)
    assert (coloured != plain).any()
    # Each of the three draws, by the definition: the draws follow the ten of the geometry.
    again = np.random.default_rng(seed)
    again.random(10)
    brightness, contrast, saturation = 2 * again.random(3) - 1
    mean = plain.mean()
    values = (plain - mean) * (1 + 0.2 * contrast) + mean + 25.5 * brightness
    grey = values @ [0.299, 0.587, 0.114]
    expected = grey[..., None] + (1 + 0.5 * saturation) * (values - grey[..., None])
    np.testing.assert_allclose(coloured, np.clip(expected, 0, 255), atol=2.5)


def test_grey_images_have_no_saturation():
    example = Example.from_arrays(np.full((4, 4, 1), 90, np.uint8), None)
    image, _ = apply(example, 4, Augment(saturation=1.0), np.random.default_rng(0))
    np.testing.assert_array_equal(image, example.image)


def blurred(values, augment, seed):
    """The map [h, w] after augmentation, at its own size; the draws leave an image as it is."""
    example = Example.from_arrays(np.zeros((4, 4, 3), np.uint8), values)
    return apply(example, len(values), augment, np.random.default_rng(seed))[1]


def test_a_blurred_map_is_convolved_with_nine_values_of_a_gaussian():
    """Against SciPy, whose "mirror" does not repeat the border; the deviation is read off a dot, and is uniform."""
    dot, found = np.zeros((7, 7), np.float32), []
    dot[3, 3] = 1
    human = np.random.default_rng(0).random((9, 9), np.float32)
    for seed in range(60):
        spread = blurred(dot, Augment(map_blur=(0.4, 2.0)), seed)
        found.append(np.sqrt(-0.5 / np.log(spread[3, 4] / spread[3, 3])))
        side = np.exp(-0.5 * (np.array([-1, 0, 1]) / found[-1]) ** 2)
        kernel = np.outer(side, side) / side.sum() ** 2
        expected = ndimage.correlate(human.astype(float), kernel, mode="mirror")
        np.testing.assert_allclose(blurred(human, Augment(map_blur=(0.4, 2.0)), seed), expected, atol=1e-5)
    assert 0.4 <= min(found) < 0.55 and 1.85 < max(found) <= 2.0 and abs(np.mean(found) - 1.2) < 0.2


def test_blur_comes_last_and_disturbs_nothing():
    """After the resize straight to the CAM's places; image, geometry and colours as without; no draws, no blur."""
    rng = np.random.default_rng(1)
    example = Example.from_arrays(rng.integers(0, 256, (30, 30, 3), np.uint8), rng.random((28, 28), np.float32))
    parts, draws = {"flip": 0.5, "crop": 0.2, "rotate": 10.0, "contrast": 0.3}, lambda: np.random.default_rng(5)
    resize, sigma = Resize(16, (), 7), np.random.default_rng(5).random(14)[-1] * 1.9 + 0.1
    image, plain = transforms.apply(example, resize, Augment(**parts), draws())
    same, moved = transforms.apply(example, resize, Augment(**parts, map_blur=(0.1, 2.0)), draws())
    np.testing.assert_array_equal(same, image)
    side = np.exp(-0.5 * (np.array([-1, 0, 1]) / sigma) ** 2)
    kernel = np.outer(side, side) / side.sum() ** 2
    np.testing.assert_allclose(moved, ndimage.correlate(plain.astype(float), kernel, mode="mirror"), rtol=1e-4)
    evaluated = transforms.apply(example, resize, Augment(map_blur=(2.0, 2.0)))[1]
    np.testing.assert_array_equal(evaluated, transforms.apply(example, resize)[1])


@pytest.mark.parametrize("human", [None, np.zeros((5, 5), np.float32), np.full((5, 5), 0.4, np.float32)])
def test_what_is_no_map_is_none_after_the_blur(human):
    example = Example.from_arrays(np.zeros((4, 4, 3), np.uint8), human)
    assert not apply(example, 5, Augment(map_blur=(1.0, 1.0)), np.random.default_rng(0))[1].any()


@pytest.mark.parametrize("sigmas", [(1.0,), (0.0, 1.0), (2.0, 1.0), (0.1, 1.0, 2.0), ("a", "b")])
def test_blur_takes_two_deviations(sigmas):
    with pytest.raises(ValueError, match=r"augment.map_blur must be empty or two numbers.*\(0.1, 2.0\)"):
        Augment(map_blur=sigmas)


def spread(kind, seed):
    """A map of 40 x 40 pixels: noise, a faint blob, a mask that leaves out or marks one pixel, or nothing."""
    values = np.random.default_rng(seed).random((40, 40), np.float32)
    near = lambda change: np.where(np.arange(1600).reshape(40, 40) == 57 * seed % 1600, 1 - change, change)
    kinds = {"noise": values, "faint": 0.5 + 1e-3 * values, "nothing": 0 * values, "constant": 0 * values + 0.3}
    kinds |= {"one pixel": near(0), "all but one": near(1), "dark": 1e-6 * values}
    return kinds[kind].astype(np.float32)


@pytest.mark.parametrize("kind", ["noise", "faint", "one pixel", "all but one", "dark", "nothing", "constant"])
@pytest.mark.parametrize("places", [1, 4, 7, 24])
def test_maps_travel_as_the_device_would_make_them(kind, places):
    """Half of float16's last bit from what becomes of a map that travels at the image's size, and no other is none."""
    for seed in range(3):
        example = Example.from_arrays(np.zeros((40, 40, 3), np.uint8), spread(kind, seed))
        augment, draws = Augment(flip=0.5, crop=0.3, rotate=20, map_blur=(0.1, 2.0)), np.random.default_rng
        _, whole = transforms.apply(example, Resize(24), augment, draws(seed))
        _, found = transforms.apply(example, Resize(24, places=places), augment, draws(seed))
        assert whole.dtype == np.float32 and found.dtype == np.float16 and found.shape == (places, places)
        wanted, usable = to_cam_resolution(jnp.asarray(whole)[None], (places, places))
        again, still_usable = to_cam_resolution(jnp.asarray(found)[None], (places, places))
        assert usable[0] == still_usable[0] == found.any()
        # The range of a faint map is small beside float32's rounding of its values.
        np.testing.assert_allclose(again[0], wanted[0], rtol=2**-11, atol=2e-3 if kind == "faint" else 2e-5)


def test_maps_of_the_cyborg_codes_way_travel_unchanged():
    example = noise(30, 20)
    _, plain = transforms.apply(example, Resize(24, (), 7))
    _, found = transforms.apply(example, Resize(24, (), 7, 7))
    assert found.dtype == np.uint8 and plain.dtype == np.float32
    np.testing.assert_array_equal(found, plain)
    blurred = Augment(map_blur=(0.1, 2.0))
    _, plain = transforms.apply(example, Resize(24, (), 7), blurred, np.random.default_rng(0))
    _, found = transforms.apply(example, Resize(24, (), 7, 7), blurred, np.random.default_rng(0))
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, plain)
