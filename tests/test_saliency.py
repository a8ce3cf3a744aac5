"""Human maps at CAM resolution against Pillow, which maps count as none, and the border ring."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import references
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from tfcam_jax.losses import entropy_loss
from tfcam_jax.saliency import border_ring, to_cam_resolution


def assert_equals_pillow(saliency, human_map, size):
    """To 1e-6 of the resized map's peak; normalising divides that by its range."""
    image = Image.fromarray(human_map.astype(np.float32)).resize(size[::-1], Image.Resampling.BILINEAR)
    resized = np.asarray(image, np.float64)
    np.testing.assert_allclose(saliency, references.minmax(resized), atol=1e-6 * resized.max() / np.ptp(resized))


def blob(rng, shape):
    y, x = np.indices(shape)
    centre, width = rng.uniform(0, 1, 2) * shape, rng.uniform(0.05, 0.4) * max(shape) + 0.5
    return np.exp(-((y - centre[0]) ** 2 + (x - centre[1]) ** 2) / (2 * width**2))


SIZES = [
    ((224, 224), (7, 7)),
    ((61, 45), (8, 5)),
    ((5, 4), (9, 11)),
    ((7, 7), (7, 7)),
    ((30, 3), (4, 10)),
    ((9, 1), (3, 1)),
]


@pytest.mark.parametrize(("full", "size"), SIZES)
@given(seed=st.integers(0, 2**32 - 1), peak=st.sampled_from([1, 255, 16 / 255, 1e-6]))
def test_equals_pillow_on_floats(full, size, seed, peak):
    rng = np.random.default_rng(seed)
    maps = np.stack([blob(rng, full), rng.random(full)]) * peak
    saliency, usable = jax.jit(to_cam_resolution, static_argnums=1)(jnp.asarray(maps, jnp.float32), size)
    assert saliency.dtype == jnp.float32
    assert usable.all()
    for got, human_map in zip(saliency, maps, strict=True):
        assert_equals_pillow(got, human_map, size)


def test_a_tiny_dot_survives():
    """One pixel of 224 x 224 at 1/255: Pillow on uint8 would round it away."""
    human_map = np.zeros((224, 224), np.float32)
    human_map[100, 30] = 1 / 255
    saliency, usable = to_cam_resolution(jnp.asarray(human_map), (7, 7))
    assert usable
    assert np.unravel_index(saliency.argmax(), (7, 7)) == (3, 0)
    assert saliency.max() == 1
    assert_equals_pillow(saliency, human_map, (7, 7))
    dot = Image.fromarray(np.round(255 * human_map).astype(np.uint8)).resize((7, 7), Image.Resampling.BILINEAR)
    assert np.asarray(dot).max() == 0


def test_empty_and_constant_maps_are_unusable():
    human_maps = np.stack([np.zeros((12, 9)), np.ones((12, 9)), np.full((12, 9), 0.1), np.eye(12, 9)])
    saliency, usable = to_cam_resolution(jnp.asarray(human_maps, jnp.float32), (3, 4))
    assert usable.tolist() == [False, False, False, True]
    np.testing.assert_array_equal(saliency[:3], 0)
    assert saliency[3].max() == 1


@pytest.mark.parametrize("size", [(3, 4), (12, 9), (12, 4), (24, 18)])
@pytest.mark.parametrize("odd", [np.nan, np.inf, -np.inf])
def test_a_map_with_nan_is_unusable_and_zero(odd, size):
    human_maps = np.random.default_rng(0).random((3, 12, 9))
    expected, _ = to_cam_resolution(jnp.asarray(human_maps, jnp.float32), size)
    human_maps[1, 7, 2] = odd
    saliency, usable = to_cam_resolution(jnp.asarray(human_maps, jnp.float32), size)
    assert usable.tolist() == [True, False, True]
    np.testing.assert_array_equal(saliency, expected.at[1].set(0))


def test_an_axis_of_channels_is_refused():
    with pytest.raises(ValueError, match="no axis of channels"):
        to_cam_resolution(jnp.zeros((2, 12, 9, 1)), (3, 4))


def test_a_map_that_resizing_flattens_is_unusable():
    saliency, usable = to_cam_resolution(jnp.asarray(np.eye(4), jnp.float32), (1, 1))
    assert not usable
    np.testing.assert_array_equal(saliency, 0)


def test_leading_dimensions_and_integer_maps():
    human_maps = np.random.default_rng(1).integers(0, 256, (2, 3, 16, 16)).astype(np.uint8)
    as_float = jnp.asarray(human_maps, jnp.float32)
    saliency, usable = to_cam_resolution(as_float, (4, 4))
    assert saliency.shape == (2, 3, 4, 4)
    assert usable.shape == (2, 3)
    for i, j in np.ndindex(2, 3):
        assert_equals_pillow(saliency[i, j], human_maps[i, j], (4, 4))
    mapped = jax.vmap(lambda m: to_cam_resolution(m, (4, 4))[0])(as_float)
    np.testing.assert_allclose(mapped, saliency, atol=1e-6)


@pytest.mark.parametrize(("full", "size"), SIZES)
def test_either_dtype_is_kept(full, size):
    """In float64 it is the weights that are compared, without the rounding of sums."""
    human_map = np.random.default_rng(5).random(full)
    with jax.enable_x64(True):
        saliency, _ = to_cam_resolution(jnp.asarray(human_map), size)
        assert to_cam_resolution(jnp.asarray(human_map, jnp.float32), size)[0].dtype == jnp.float32
        reference = jax.image.resize(jnp.asarray(human_map), size, "linear", antialias=True)
    assert saliency.dtype == jnp.float64
    np.testing.assert_allclose(saliency, references.minmax(np.asarray(reference)), atol=1e-12)


def test_a_step_resizes_without_working_out_weights_or_copying_maps():
    """Of the compiled program, on a CPU: no iota, from which weights would be made, no second copy of the maps."""
    maps = jax.ShapeDtypeStruct((20, 64, 64), jnp.float32)
    compiled = jax.jit(lambda m: to_cam_resolution(m, (8, 8))).lower(maps).compile()
    assert "iota" not in compiled.as_text()
    assert compiled.memory_analysis().temp_size_in_bytes < 20 * 64 * 64 * 4


def test_border_ring_at_seven_places_is_the_published_control():
    ring = border_ring((7, 7))
    assert ring.dtype == jnp.float32
    assert ring.sum() == 28
    assert entropy_loss(ring) == pytest.approx(np.log(28), abs=1e-5)
    assert np.log(28) == pytest.approx(3.332, abs=5e-4)


@pytest.mark.parametrize("size", [(1, 1), (1, 6), (3, 3), (4, 4), (7, 7), (8, 8), (10, 10), (5, 9)])
def test_border_ring_surrounds_the_middle(size):
    ring = np.asarray(border_ring(size))
    np.testing.assert_array_equal(ring, references.ring(*size))
    np.testing.assert_array_equal(ring, ring[::-1, ::-1])
    if min(size) > 2:
        assert ring[0].all() and ring[:, 0].all()
        assert not ring[size[0] // 2, size[1] // 2]
