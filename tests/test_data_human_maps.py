"""Combining annotators, agreement, blur and threshold, and what a placebo may and may not know."""

from dataclasses import dataclass

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import ndimage

from tfcam_jax import saliency
from tfcam_jax.data.human_maps import agreement, combine, deal_maps, mean_maps, placebo_maps, ring_map, smooth_maps
from tfcam_jax.data.source import DataError, Example, Records

RNG = np.random.default_rng(3)
ONE, TWO, THREE = (RNG.random((5, 6), np.float32) for _ in range(3))


@dataclass(frozen=True)
class Numbered:
    """The map of row i is i + 1 at place i of a line, so that every map shows whose it is."""

    records: Records

    def __len__(self):
        return len(self.records)

    def __getitem__(self, index):
        line = np.zeros((1, len(self)), np.float32)
        line[0, index] = (index + 1) / len(self)
        return Example.from_arrays(np.full((4, 4, 3), index, np.uint8), line if self.records.has_map[index] else None)


def numbered(labels, groups=None, has_map=None):
    n = len(labels)
    names = tuple(str(i) for i in range(n))
    has_map = np.ones(n, bool) if has_map is None else np.array(has_map)
    return Numbered(Records(names, np.array(labels, np.int32), ("",) * n, tuple(groups or ("",) * n), has_map))


def test_combining():
    maps = {"anna": ONE, "ben": TWO, "carl": THREE}
    np.testing.assert_allclose(combine(maps, "mean"), (ONE + TWO + THREE) / 3, rtol=1e-6)
    votes = sum((m >= m.max() / 2).astype(int) for m in maps.values())
    np.testing.assert_array_equal(combine(maps, "majority"), votes >= 2)
    assert combine(maps, "ben") is TWO
    assert combine(maps, "dora") is None
    np.testing.assert_array_equal(combine({"anna": ONE, "empty": np.zeros_like(ONE)}, "majority"), np.zeros((5, 6)))
    larger = np.kron(TWO, np.ones((2, 2), np.float32))
    assert combine({"anna": ONE, "ben": larger}, "mean").shape == (5, 6)


def test_agreement_is_the_mean_correlation_of_pairs():
    cc = lambda a, b: np.corrcoef(a.ravel(), b.ravel())[0, 1]
    expected = (cc(ONE, TWO) + cc(ONE, THREE) + cc(TWO, THREE)) / 3
    assert agreement([ONE, TWO, THREE]) == pytest.approx(expected, abs=1e-6)
    assert agreement([ONE, 0.3 * ONE]) == pytest.approx(1, abs=1e-6)
    assert agreement([ONE]) is None
    assert agreement([ONE, np.ones_like(ONE)]) is None


def test_blur_and_threshold():
    source = numbered([0, 1, 0])
    assert smooth_maps(source, 0.0, 0.0) is source
    blurred = smooth_maps(source, 0.4, 0.0)[2].saliency
    np.testing.assert_allclose(blurred, ndimage.gaussian_filter(source[2].saliency, 1.2, mode="nearest"), rtol=1e-5)
    both = smooth_maps(source, 0.4, 0.6)[2].saliency
    np.testing.assert_array_equal(both, blurred >= 0.6 * blurred.max())
    assert smooth_maps(numbered([0, 1], has_map=[True, False]), 0.1, 0.0)[1].saliency is None
    for wrong in ((-0.1, 0.0), (0.0, 1.5)):
        with pytest.raises(ValueError, match=r"maps\.(blur|threshold) must be in"):
            smooth_maps(source, *wrong)


@given(
    st.lists(st.tuples(st.integers(0, 2), st.integers(0, 8), st.booleans()), min_size=1, max_size=40), st.integers(0, 9)
)
def test_dealt_maps_are_of_another_image_and_group_of_the_same_class_each_once(rows, seed):
    labels, groups, has_map = zip(*rows, strict=True)
    source = numbered(labels, [str(group) if group else "" for group in groups], has_map)
    records = source.records
    try:
        donors = deal_maps(records, seed)
    except DataError as error:
        assert "placebo other_image" in str(error)
        for_class = lambda k: [r for r, (label, _, given) in enumerate(rows) if label == k and given]
        # Refused only if some class can't be dealt: one map, or a group with more than half.
        assert any(
            len(own) == 1 or max(sum(records.groups[r] == g != "" for r in own) for g in records.groups) * 2 > len(own)
            for own in map(for_class, range(3))
            if own
        )
        return
    mapped = np.flatnonzero(records.has_map)
    np.testing.assert_array_equal(np.sort(donors[mapped]), mapped)
    assert (donors[~records.has_map] == -1).all()
    assert (donors[mapped] != mapped).all()
    np.testing.assert_array_equal(records.labels[donors[mapped]], records.labels[mapped])
    assert all(not records.groups[r] or records.groups[donors[r]] != records.groups[r] for r in mapped)
    np.testing.assert_array_equal(donors, deal_maps(records, seed))


def test_other_image():
    source = numbered([0, 1] * 10, has_map=[True] * 18 + [False] * 2)
    placebo = placebo_maps(source, "other_image", 0)
    donors = deal_maps(source.records, 0)
    assert (donors != deal_maps(source.records, 1)).any()
    for i in range(18):
        np.testing.assert_array_equal(placebo[i].saliency, source[int(donors[i])].saliency)
        np.testing.assert_array_equal(placebo[i].image, source[i].image)
    assert placebo[19].saliency is None
    assert placebo.records == source.records


def test_mean_map_is_that_of_the_class():
    source = numbered([0, 1, 0, 0], has_map=[True, True, True, False])
    means = mean_maps(source)
    assert means[0].shape == (112, 112)
    np.testing.assert_allclose(means[0][:, [14, 42, 70, 98]].mean(0), [0.5, 0, 0.5, 0], atol=0.02)
    placebo = placebo_maps(source, "mean_map", 0)
    np.testing.assert_array_equal(placebo[0].saliency, placebo[2].saliency)
    np.testing.assert_array_equal(placebo[1].saliency, means[1])
    assert placebo[3].saliency is None


def test_border_ring_is_that_of_the_sham_strategy():
    places = ring_map().reshape(7, 16, 7, 16).mean((1, 3))
    np.testing.assert_array_equal(places, saliency.border_ring((7, 7)))
    assert places.sum() == 28
    np.testing.assert_array_equal(placebo_maps(numbered([0, 1]), "border_ring", 0)[1].saliency, ring_map())


def test_inverted_maps_mark_what_the_others_leave_out():
    """1 - S once both are brought to [0, 1], at any resolution; no map stays no map."""
    source = numbered([0, 1, 0], has_map=[True, True, False])
    placebo = placebo_maps(source, "inverted", 0)
    for i in range(2):
        maps = (jnp.asarray(each[i].saliency) for each in (source, placebo))
        own, inverted = (saliency.to_cam_resolution(each, (1, 3))[0] for each in maps)
        np.testing.assert_allclose(inverted, 1 - own, atol=1e-6)
        np.testing.assert_array_equal(placebo[i].image, source[i].image)
    assert placebo[2].saliency is None and placebo.records == source.records


def test_placebos_by_name():
    source = numbered([0, 1, 0, 1])
    assert placebo_maps(source, "none", 0) is source
    with pytest.raises(ValueError, match=r"maps\.placebo is 'random'.*Known: none, other_image"):
        placebo_maps(source, "random", 0)
    with pytest.raises(DataError, match="class 1, there is one"):
        placebo_maps(numbered([0, 0, 1]), "other_image", 0)
    with pytest.raises(DataError, match="group 'a' holds 3"):
        placebo_maps(numbered([0] * 5, ["a", "a", "a", "b", "c"]), "other_image", 0)
