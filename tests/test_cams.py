"""CAMs, their split into true and false, min-max normalisation: against NumPy, and what they refuse."""

import re

import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest
import references
from hypothesis import given
from hypothesis import strategies as st
from jax.test_util import check_grads
from test_public_surface import fresh

from tfcam_jax import cams

LEADING = [(), (3,), (2, 2)]
seeds = st.integers(0, 2**32 - 1)


def softmax(z):
    e = np.exp(z - z.max())
    return e / e.sum()


def split_by_hand(maps, label, logits):
    """True map and false map of one example, in float64."""
    others = [k for k in range(maps.shape[-1]) if k != label]
    weights = softmax(logits[others]) if len(others) > 1 else [1.0]
    return maps[..., label], sum(weight * maps[..., k] for weight, k in zip(weights, others, strict=True))


@given(seed=seeds, leading=st.sampled_from(LEADING), size=st.sampled_from([(1, 1), (4, 3)]), k=st.integers(2, 12))
def test_class_activation_maps_equal_loops(seed, leading, size, k):
    rng = np.random.default_rng(seed)
    features, kernel = rng.normal(size=(*leading, *size, 6)), rng.normal(size=(6, k))
    maps = jax.jit(cams.class_activation_maps)(jnp.asarray(features, jnp.float32), jnp.asarray(kernel, jnp.float32))
    expected = np.zeros((*leading, *size, k))
    for c in range(6):
        for j in range(k):
            expected[..., j] += features[..., c] * kernel[c, j]
    assert maps.dtype == jnp.float32
    np.testing.assert_allclose(maps, expected, atol=1e-5)


@given(seed=seeds, leading=st.sampled_from(LEADING), k=st.integers(2, 5), scale=st.sampled_from([0.1, 3, 100]))
def test_split_equals_loops(seed, leading, k, scale):
    """K = 2: the other class's map, to the bit. K > 2: the softmax mixture, extreme logits included."""
    rng = np.random.default_rng(seed)
    maps = rng.normal(size=(*leading, 2, 3, k)).astype(np.float32)
    labels = rng.integers(0, k, leading)
    logits = (scale * rng.normal(size=(*leading, k))).astype(np.float32)
    split = jax.jit(cams.split_true_false)(jnp.asarray(maps), jnp.asarray(labels), jnp.asarray(logits))
    for index in np.ndindex(*leading):
        expected = split_by_hand(maps[index].astype(np.float64), labels[index], logits[index].astype(np.float64))
        for got, want in zip(split, expected, strict=True):
            np.testing.assert_allclose(got[index], want, atol=0 if k == 2 else 1e-5)
    np.testing.assert_array_equal(split[0], np.take_along_axis(maps, labels[..., None, None, None], -1)[..., 0])


def test_two_classes_need_no_logits():
    maps = jnp.asarray(np.random.default_rng(0).normal(size=(2, 3, 4, 2)), jnp.float32)
    true_map, false_map = cams.split_true_false(maps, jnp.array([0, 1]))
    np.testing.assert_array_equal(true_map, jnp.stack([maps[0, ..., 0], maps[1, ..., 1]]))
    np.testing.assert_array_equal(false_map, jnp.stack([maps[0, ..., 1], maps[1, ..., 0]]))


@pytest.mark.parametrize("k", [2, 4])
def test_split_under_vmap_and_on_half_precision(k):
    rng = np.random.default_rng(1)
    maps = jnp.asarray(rng.normal(size=(5, 2, 3, k)), jnp.bfloat16)
    labels, logits = jnp.asarray(rng.integers(0, k, 5)), jnp.asarray(rng.normal(size=(5, k)), jnp.bfloat16)
    batched = cams.split_true_false(maps, labels, logits)
    upcast = cams.split_true_false(maps.astype(jnp.float32), labels, logits.astype(jnp.float32))
    mapped = jax.vmap(cams.split_true_false)(maps, labels, logits)
    for got, full, single in zip(batched, upcast, mapped, strict=True):
        assert got.dtype == jnp.float32
        np.testing.assert_array_equal(got, full)
        np.testing.assert_allclose(single, full, atol=1e-6)


def test_no_gradient_flows_through_the_weights_of_the_false_classes():
    rng = np.random.default_rng(2)
    maps, logits = jnp.asarray(rng.normal(size=(3, 2, 2, 4))), jnp.asarray(rng.normal(size=(3, 4)))
    labels = jnp.array([0, 3, 1])

    def false_square(maps, logits):
        return jnp.square(cams.split_true_false(maps, labels, logits)[1]).sum()

    by_maps, by_logits = jax.grad(false_square, (0, 1))(maps, logits)
    np.testing.assert_array_equal(by_logits, 0)
    assert (np.abs(by_maps).max((1, 2)) > 0).sum() == 9  # all but the true class's map
    np.testing.assert_array_equal(
        np.take_along_axis(np.asarray(by_maps), np.array([0, 3, 1])[:, None, None, None], -1), 0
    )


def test_split_refuses_one_class_and_missing_logits():
    labels = jnp.zeros(2, int)
    with pytest.raises(ValueError, match=r"at least 2 classes.*\(2, 3, 4, 1\)"):
        cams.split_true_false(jnp.zeros((2, 3, 4, 1)), labels)
    with pytest.raises(ValueError, match=r"needs logits.*2 false classes.*\(2, 3, 4, 3\)"):
        cams.split_true_false(jnp.zeros((2, 3, 4, 3)), labels)


def test_a_label_out_of_range_is_refused_where_it_can_be_seen_and_gives_a_true_map_of_zeros_under_jit():
    for label in (2, -1):
        with pytest.raises(ValueError, match=rf"labels lie in 0\.\.1; got {label}"):
            cams.split_true_false(jnp.ones((1, 2, 2, 2)), jnp.array([label]))
    with pytest.raises(ValueError, match="got 2"):
        cams.present_absent_maps(jnp.ones((1, 2, 2, 3)), jnp.array([[-1, 2, 0]]))
    true_map, _ = jax.jit(cams.split_true_false)(jnp.ones((1, 2, 2, 2)), jnp.array([2]))
    np.testing.assert_array_equal(true_map, 0)


@pytest.mark.parametrize("odd", [np.nan, np.inf])
def test_a_map_that_is_not_finite_is_normalised_to_nan_and_sends_none_into_the_gradient(odd):
    maps = jnp.asarray(np.random.default_rng(0).normal(size=(3, 4, 4)), jnp.float32)
    mask = jnp.array([True, False, True])[:, None, None]
    masked = jax.jit(jax.grad(lambda m: jnp.where(mask, jnp.square(cams.normalize(m)), 0).sum()))
    spoilt = maps.at[1, 0, 2].set(odd)
    assert np.isnan(cams.normalize(spoilt)[1]).all()
    np.testing.assert_array_equal(masked(spoilt), masked(maps))


def test_the_largest_floats_are_normalised_too():
    maps = jnp.array([[-3e38, 3e38], [0, 1.5e38]])
    np.testing.assert_allclose(cams.normalize(maps), [[0, 1], [0.5, 0.75]])


@pytest.mark.parametrize(
    ("shape", "told"), [((2, 7, 7, 1), r"no axis of channels: take maps\[..., 0\]"), ((7,), r"\[\*batch, h, w\]")]
)
def test_what_is_no_map_is_refused(shape, told):
    with pytest.raises(ValueError, match=told):
        cams.check_maps(jnp.zeros(shape))


def raw_maps(rng, shape):
    """Over twenty magnitudes and far off zero; half of the examples are constant but for rounding."""
    leading = (*shape[:-2], 1, 1)
    offset, spread = rng.uniform(-3, 3, leading), 10 ** rng.uniform(-3, 3, leading)
    spread = np.where(rng.random(leading) < 0.5, 0, spread)
    noise = 1 + 1e-6 * (rng.random(shape) - 0.5)  # eight units in the last place of a float32
    return (10 ** rng.uniform(-10, 10, leading) * (offset * noise + spread * rng.random(shape))).astype(np.float32)


@given(seed=seeds, leading=st.sampled_from(LEADING), size=st.sampled_from([(1, 1), (1, 6), (5, 4)]))
def test_normalize_and_is_constant_equal_loops(seed, leading, size):
    maps = raw_maps(np.random.default_rng(seed), (*leading, *size))
    normal, constant = jax.jit(lambda m: (cams.normalize(m), cams.is_constant(m)))(jnp.asarray(maps))
    assert normal.dtype == jnp.float32
    for index in np.ndindex(*leading):
        m = maps[index].astype(np.float64)
        assert constant[index] == references.constant(m)
        np.testing.assert_allclose(normal[index], references.minmax(m), rtol=1e-6, atol=1e-6)


@given(seed=seeds)
def test_normalize_ignores_offset_and_positive_scale(seed):
    rng = np.random.default_rng(seed)
    maps = jnp.asarray(rng.normal(size=(4, 3, 4)), jnp.float32)
    scale, offset = float(rng.uniform(0.5, 5)), float(rng.uniform(-5, 5))
    np.testing.assert_allclose(cams.normalize(scale * maps + offset), cams.normalize(maps), atol=1e-5)
    np.testing.assert_allclose(cams.normalize(-maps), 1 - cams.normalize(maps), atol=1e-6)


def test_gradient_of_normalize_flows_through_minimum_and_maximum():
    with jax.enable_x64(True):
        maps = jnp.asarray(np.random.default_rng(3).permutation(12).reshape(1, 3, 4) ** 1.5)
        check_grads(jax.jit(cams.normalize), (maps,), order=1, modes=["fwd", "rev"], atol=1e-6, rtol=1e-6)
        total = lambda m: jnp.square(cams.normalize(m)).sum()
        gradient = jax.jit(jax.grad(total))(maps)
        assert gradient.ravel()[maps.argmin()] < 0
        assert abs(gradient.sum()) < 1e-9  # an offset changes nothing


def test_nan_is_not_taken_for_constant():
    maps = jnp.ones((1, 2, 2)).at[0, 0, 0].set(jnp.nan)
    assert not cams.is_constant(maps)[0]
    assert np.isnan(cams.normalize(maps)).any()


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_half_precision_is_computed_in_float32(dtype):
    rng = np.random.default_rng(4)
    half = lambda *shape: jnp.asarray(rng.normal(size=shape), dtype)
    features, kernel, maps, other = half(2, 3, 4, 8), half(8, 3), half(2, 3, 4), half(2, 3, 4)
    for function, arguments in (
        (cams.class_activation_maps, (features, kernel)),
        (cams.difference_salience, (maps, other)),
        (cams.normalize, (maps,)),
    ):
        value = function(*arguments)
        assert value.dtype == jnp.float32
        np.testing.assert_array_equal(value, function(*(a.astype(jnp.float32) for a in arguments)))


def test_wrong_shapes_and_dtypes_are_refused():
    with pytest.raises(jaxtyping.TypeCheckError):
        cams.class_activation_maps(jnp.zeros((2, 3, 4, 8)), jnp.zeros((7, 2)))
    with pytest.raises(jaxtyping.TypeCheckError):
        cams.split_true_false(jnp.zeros((2, 3, 4, 2)), jnp.zeros(3, int))
    with pytest.raises(jaxtyping.TypeCheckError):
        cams.split_true_false(jnp.zeros((2, 3, 4, 2)), jnp.zeros(2))
    with pytest.raises(jaxtyping.TypeCheckError):
        cams.difference_salience(jnp.zeros((2, 3, 4)), jnp.zeros((2, 4, 3)))
    with pytest.raises(jaxtyping.TypeCheckError):
        cams.normalize(jnp.zeros(4))


def pooled_head(rng, k=3):
    """Features, kernel, bias and the logits of a mean over places and a linear layer, in float64."""
    features = rng.normal(size=(5, 4, 3, 6)) + 1
    kernel, bias = rng.normal(size=(6, k)), rng.normal(size=k)
    return features, kernel, bias, features.mean((1, 2)) @ kernel + bias


def as_float32(*arrays):
    return tuple(jnp.asarray(array, jnp.float32) for array in arrays)


def test_two_columns_make_the_same_decision_loss_and_map_as_one_logit():
    rng = np.random.default_rng(5)
    features, kernel, bias, logits = pooled_head(rng, k=1)
    labels = np.array([0, 1, 1, 0, 1])
    two = cams.two_columns(jnp.asarray(logits, jnp.float32))
    softmax = np.exp(two) / np.exp(two).sum(1, keepdims=True)
    np.testing.assert_allclose(softmax[:, 1], 1 / (1 + np.exp(-logits[:, 0])), rtol=1e-6)
    parts = cams.decompose_margin(
        *as_float32(features), *map(cams.two_columns, as_float32(kernel, bias)), jnp.asarray(labels), two
    )
    own = (features @ kernel)[..., 0] * np.where(labels == 1, 1, -1)[:, None, None]
    np.testing.assert_allclose(parts.difference, own, atol=1e-5)
    np.testing.assert_array_equal(parts.false_map, -parts.true_map)
    np.testing.assert_allclose(parts.margin, logits[:, 0] * np.where(labels == 1, 1, -1), atol=1e-5)
    np.testing.assert_allclose(parts.difference.mean((1, 2)) + parts.bias_difference, parts.margin, atol=1e-5)


@pytest.mark.parametrize("k", [2, 4])
def test_the_check_of_the_decomposition_accepts_what_is_pooled(k):
    features, kernel, bias, logits = pooled_head(np.random.default_rng(k), k)
    assert 0 < cams.check_decomposition(*as_float32(features, kernel, bias, logits)) < 1e-5
    half = (jnp.asarray(features, jnp.bfloat16), *as_float32(kernel, bias), jnp.asarray(logits, jnp.bfloat16))
    assert 1e-4 < cams.check_decomposition(*half) < 0.1
    small = [1e-4 * array for array in (features, bias, logits)]
    assert cams.check_decomposition(*as_float32(small[0], kernel, *small[1:])) < 1e-8


def test_the_check_of_the_decomposition_names_error_place_and_remedy():
    features, kernel, bias, logits = pooled_head(np.random.default_rng(6))
    largest = features.max((1, 2)) @ kernel + bias
    error = np.abs(largest - logits)
    place = "example {}, class {}".format(*np.unravel_index(error.argmax(), error.shape))
    with pytest.raises(ValueError, match=rf"up to {error.max():.3g} \({place}.*global max pool"):
        cams.check_decomposition(*as_float32(features, kernel, bias, largest))
    with pytest.raises(ValueError, match=rf"up to {np.abs(bias).max():.3g} .*hand over the head's bias"):
        cams.check_decomposition(*as_float32(features, kernel, 0 * bias, logits))
    other = np.maximum(features, 0)  # one layer further on than what was handed over
    with pytest.raises(ValueError, match=r"the tensor that is pooled.*grad_cam_difference"):
        cams.check_decomposition(*as_float32(features, kernel, bias, other.mean((1, 2)) @ kernel + bias))
    small = [1e-4 * array for array in (features, bias, largest)]
    with pytest.raises(ValueError, match="max pool"):
        cams.check_decomposition(*as_float32(small[0], kernel, *small[1:]))
    with pytest.raises(ValueError, match="up to nan"):
        cams.check_decomposition(*as_float32(features, kernel, bias, logits * np.nan))


UNCHECKED_CALLS = """
import jax, jax.numpy as jnp
from tfcam_jax import cams, losses
f, w, y, z = jnp.ones((4, 7, 6, 8)), jnp.ones((8, 2)), jnp.zeros(4, int), jnp.zeros((4, 2))
m = jnp.ones((4, 7, 6))
calls = [
    lambda: cams.true_false_maps(f, w, y[:, None], z),
    lambda: cams.true_false_maps(f, w, y[:3], z),
    lambda: cams.true_false_maps(f, w, y.astype(float), z),
    lambda: cams.true_false_maps(f, jnp.ones((8, 3)), y, z),
    lambda: cams.true_false_maps(f, w[:, :1], y, z[:, :1]),
    lambda: cams.true_false_maps(f, w.T, y, z),
    lambda: cams.true_false_maps(f, w[:, 0], y, z),
    lambda: cams.two_columns(w),
    lambda: cams.check_decomposition(f, w, jnp.zeros(2), z),
    lambda: losses.cyborg_loss(m, jnp.ones((4, 14, 12))),
    lambda: losses.cyborg_loss(m, jnp.ones((7, 6))),
    lambda: losses.opposed_loss(m, m, jnp.ones((4, 7, 6, 1))),
    lambda: losses.difference_loss(m, m[:, :, :1], m),
    lambda: losses.contrast_loss(m, m, (255 * m).astype("uint8")),
    lambda: losses.energy_loss(m, m[:, :1]),
    lambda: losses.outside_loss(m, m.astype(int)),
    lambda: losses.input_gradient_loss(m[..., None], m[:, :, :3]),
    lambda: losses.masked_mean(m[:, 0, 0], jnp.ones(4)),
    lambda: losses.masked_mean(m[:, 0, 0], jnp.ones((4, 1), bool)),
]
for call in calls:
    try:
        jax.jit(call)()
        print("accepted")
    except ValueError as error:
        print(error)
losses.contrast_loss(m, m, m > 0)
b = jnp.zeros(2)
for arguments in [(f.swapaxes(1, 3), w, b, z), (f, w.T, b, z), (f, w, b[:1], z), (f, 0 * w, b, z)]:
    try:
        cams.check_decomposition(*arguments)
        print("accepted")
    except ValueError as error:
        print(error)
"""


def test_what_only_broadcasts_by_chance_is_refused_under_jit_with_the_remedy():
    """In a process of its own: here jaxtyping would refuse it first."""
    done = fresh(UNCHECKED_CALLS)
    assert done.returncode == 0, done.stderr
    expected = [
        r"maps of shape \(4, 7, 6, 2\) need labels of shape \(4,\).*got int32 \(4, 1\)",
        r"need labels of shape \(4,\).*got int32 \(3,\)",
        r"need labels of shape \(4,\), an integer.*got float32 \(4,\)",
        r"need logits of shape \(4, 3\); got \(4, 2\)",
        r"\(4, 7, 6, 1\).*two_columns",
        r"kernel \[8, classes\]; got one of shape \(2, 8\): take kernel.T",
        r"got one of shape \(8,\): take two_columns\(kernel\[:, None\]\)",
        r"got shape \(8, 2\)",
        r"check_decomposition looks at values.*outside jit",
        r"got \(4, 7, 6\) and saliency \(4, 14, 12\).*to_cam_resolution",
        r"saliency \(7, 6\)",
        r"saliency \(4, 7, 6, 1\)",
        r"got \(4, 7, 6\), \(4, 7, 1\) and saliency",
        r"saliency is uint8.*to_cam_resolution",
        r"saliency \(4, 1, 6\)",
        r"saliency is int32",
        r"saliency \(4, 7, 3\)",
        r"boolean mask.*float32 \(4,\)",
        r"boolean mask.*bool \(4, 1\)",
        r"features of shape \(4, 8, 6, 7\) need a kernel \[7, classes\]; got one of shape \(8, 2\)",
        r"take kernel.T",
        r"need bias of shape \(2,\) .*got \(1,\)",
        r"the kernel is zero.*after some steps",
    ]
    lines = done.stdout.splitlines()
    assert len(lines) == len(expected)
    for line, pattern in zip(lines, expected, strict=True):
        assert re.search(pattern, line), line


def test_mean_activation_is_the_mean_magnitude_over_channels():
    features = jnp.asarray(np.random.default_rng(0).normal(size=(3, 4, 5, 6)), jnp.float32).at[0].set(0)
    np.testing.assert_allclose(cams.mean_activation(features), np.abs(features).mean(-1), rtol=1e-6)
    gradient = jax.grad(lambda f: cams.mean_activation(f).sum())(features)
    np.testing.assert_allclose(gradient, np.sign(features) / 6, rtol=1e-6)  # 0 where the features are 0
    # An example that is not finite is NaN, and sends none into the gradient of a caller who masks it.
    broken = features.at[1, 2, 3, 4].set(jnp.nan)
    assert np.isnan(cams.mean_activation(broken)[1]).all() and np.isfinite(cams.mean_activation(broken)[2]).all()
    gradient = jax.grad(lambda f: jnp.where(jnp.array([1, 0, 1])[:, None, None], cams.mean_activation(f), 0).sum())(
        broken
    )
    assert np.isfinite(gradient).all()


def test_a_difference_of_rounding_is_told_from_a_flat_one():
    maps = jnp.asarray(np.random.default_rng(1).normal(size=(2, 4, 5)), jnp.float32)
    difference = jnp.stack([1e-7 * maps[0], jnp.full((4, 5), 0.5)])
    assert cams.is_rounding(difference, cams.largest_magnitude(maps)).tolist() == [True, False]
