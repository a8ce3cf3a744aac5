"""Protocols as properties: who may stand where, whatever the data."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tfcam_jax.data.protocol import apply_protocol, assign_splits, draw_splits, enumerate_folds, split_by_protocol
from tfcam_jax.data.source import DataError, Dataset, Example, Records


def make_records(labels, domains=None, groups=None, digests=None):
    n = len(labels)
    return Records(
        tuple(f"{i}.png" for i in range(n)),
        np.array(labels, np.int32),
        tuple(domains or ("",) * n),
        tuple(groups or ("",) * n),
        np.zeros(n, bool),
        None if digests is None else tuple(digests),
    )


class Stored:
    def __init__(self, records):
        self.records = records

    def __len__(self):
        return len(self.records)

    def __getitem__(self, index):
        return Example.from_arrays(np.full((2, 2, 1), int(self.records.ids[index].split(".")[0]), np.uint8), None)


# Live irises and three attack types, one of them in the test only.
DOMAINS = ("live", "print", "lens") * 6 + ("live", "print", "lens") * 2 + ("live", "lens", "glass", "glass")
LABELS = [int(domain != "live") for domain in DOMAINS]
PUBLISHED = ["train"] * 18 + ["val"] * 6 + ["test"] * 4
IRISES = make_records(LABELS, DOMAINS)


def test_published_and_closed():
    rows = assign_splits(IRISES, PUBLISHED)
    assert {split: own.tolist() for split, own in rows.items()} == {
        "train": list(range(18)),
        "val": list(range(18, 24)),
        "test": list(range(24, 28)),
    }
    closed = assign_splits(IRISES, PUBLISHED, name="closed")
    assert closed["test"].tolist() == [24, 25] and closed["train"].tolist() == list(range(18))


@pytest.mark.parametrize("domains", [("lens",), ("print", "glass")])
def test_open_set_never_trains_or_selects_on_the_named_domains(domains):
    rows = assign_splits(IRISES, PUBLISHED, name="open", domains=domains)
    at = np.array(DOMAINS)
    assert not np.isin(at[rows["train"]], domains).any() and not np.isin(at[rows["val"]], domains).any()
    assert set(np.flatnonzero(np.isin(at, domains))) <= set(rows["test"])
    assert sorted(np.concatenate(list(rows.values()))) == list(range(28))


def test_leave_one_domain_out_over_all():
    dataset = Dataset(
        "irises",
        ("live", "attack"),
        {split: Stored(IRISES[np.flatnonzero(np.array(PUBLISHED) == split)]) for split in ("train", "val", "test")},
    )
    folds = enumerate_folds(dataset, "leave_one_domain_out")
    # Live is all that its class has; glass was never trained on.
    assert folds == [{"name": "leave_one_domain_out", "domains": (d,)} for d in ("lens", "print")]
    for fold in folds:
        left_out = apply_protocol(dataset, **fold)
        train, test = left_out.splits["train"].records, left_out.splits["test"].records
        parts = split_by_protocol(train.domains, test.domains, test.labels)
        opened = {test.domains[row] for row in parts["open"]}
        assert opened == {fold["domains"][0], "live"}
        assert left_out.splits["test"][0].image[0, 0, 0] == int(test.ids[0].split(".")[0])
    assert enumerate_folds(dataset, "published") == [{"name": "published"}]
    single = Dataset("x", ("a", "b"), {"train": Stored(make_records([0, 1], ("a", "b")))})
    with pytest.raises(DataError, match="no domain can be left out"):
        enumerate_folds(single, "leave_one_domain_out")


@given(
    st.lists(st.tuples(st.integers(0, 1), st.integers(0, 12), st.integers(0, 30)), min_size=30, max_size=80),
    st.integers(0, 5),
)
def test_k_fold_tests_each_image_once_and_never_tears_groups_or_equal_images(rows, seed):
    labels, groups, digests = zip(*rows, strict=True)
    records = make_records(labels, groups=[f"g{g}" if g else "" for g in groups], digests=[f"d{d}" for d in digests])
    tested = []
    for fold in range(3):
        options = {"name": "k_fold", "num_folds": 3, "fold": fold, "seed": seed}
        try:
            split = assign_splits(records, ["train"] * len(rows), **options)
        except DataError as error:  # Few and large units: parts without a class.
            assert "of classes" in str(error) or "groups; use fewer folds" in str(error)
            return
        tested += split["test"].tolist()
        whole = np.full(len(rows), "-----")
        for name, own in split.items():
            whole[own] = name
        for column in (records.groups, records.digests):
            for value in set(column) - {""}:
                assert len({whole[i] for i, other in enumerate(column) if other == value}) == 1
    assert sorted(tested) == list(range(len(rows)))


def test_folds_validate_on_what_the_next_one_tests_and_depend_on_the_seed():
    records = make_records([0, 1] * 20)
    split = lambda fold, seed=0: assign_splits(
        records, ["train"] * 40, name="k_fold", num_folds=4, fold=fold, seed=seed
    )
    np.testing.assert_array_equal(split(0)["val"], split(1)["test"])
    np.testing.assert_array_equal(split(3)["val"], split(0)["test"])
    assert all(records.labels[split(i)["test"]].sum() == 5 for i in range(4))
    assert (split(0)["test"] != split(0, seed=1)["test"]).any()
    dataset = Dataset("x", ("a", "b"), {"train": Stored(records)})
    assert [fold["fold"] for fold in enumerate_folds(dataset, "k_fold", 4)] == [0, 1, 2, 3]


@pytest.mark.parametrize("kind", ["groups", "digests"])
def test_leakage_is_refused_with_the_rows_named_or_dropped(kind):
    column = [f"x{i}" for i in range(28)]
    column[0] = column[23] = column[1] = "same"  # A live and a print iris in training, a lens in validation.
    records = make_records(LABELS, DOMAINS, **{kind: column})
    options = {"name": "open", "domains": ("print",)}
    with pytest.raises(DataError) as caught:
        assign_splits(records, PUBLISHED, **options)
    what = "group same" if kind == "groups" else "equal pixels"
    assert len(caught.value.problems) == 2
    assert f"0.png (train) and 1.png (test): {what} in two splits" in caught.value.problems[0]
    assert "23.png (val) and 1.png (test)" in caught.value.problems[1]
    rows = assign_splits(records, PUBLISHED, **options, leakage="drop")
    assert 0 not in rows["train"] and 23 not in rows["val"] and 1 in rows["test"]
    assert sum(map(len, rows.values())) == 26


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"name": "opened"}, "is 'opened'. Did you mean 'open'. Known: published, closed"),
        ({"name": "open"}, "takes one or more config.data.protocol.domains; got none"),
        ({"name": "leave_one_domain_out", "domains": ("a", "b")}, "takes one config.data.protocol.domains; got a, b"),
        ({"name": "k_fold", "domains": ("lens",)}, "takes no config.data.protocol.domains"),
        ({"name": "k_fold", "num_folds": 2}, "num_folds >= 3"),
        ({"name": "k_fold", "fold": 5}, "fold < num_folds"),
        ({"leakage": "ignore"}, "protocol.leakage is 'ignore'. Known: refuse, drop"),
    ],
)
def test_options_that_do_not_fit(options, message):
    with pytest.raises(ValueError, match=message):
        assign_splits(IRISES, PUBLISHED, **options)


def test_domains_that_can_not_be_had():
    with pytest.raises(DataError, match="no image has domain 'lense'; there are glass, lens, live, print"):
        assign_splits(IRISES, PUBLISHED, name="open", domains=("lense",))
    with pytest.raises(DataError, match="split train has 12 images, of classes 1 only; there are 0, 1"):
        assign_splits(IRISES, PUBLISHED, name="open", domains=("live",))
    splits = {split: Stored(IRISES[np.flatnonzero(np.array(PUBLISHED) == split)]) for split in ("train", "val")}
    dataset = Dataset("irises", ("live", "attack"), splits)
    with pytest.raises(DataError, match="split val has 4 images, of classes attack only; there are live, attack"):
        apply_protocol(dataset, name="open", domains=("live",))
    with pytest.raises(DataError, match="split train has no images; there are live, attack"):
        apply_protocol(dataset, name="open", domains=("live", "print", "lens"))


def test_a_class_without_an_unseen_domain_joins_the_open_test():
    parts = split_by_protocol(["live", "print"], ["live", "print", "lens"], np.array([0, 1, 1]))
    assert parts["closed"].tolist() == [0, 1] and parts["open"].tolist() == [0, 2]
    assert "open" not in split_by_protocol(["a"], ["a", "a"], np.array([0, 1]))


rows_of_groups = st.lists(st.tuples(st.sampled_from("abc"), st.integers(0, 9), st.integers(0, 40)), max_size=60)


@given(
    rows_of_groups, st.integers(0, 3), st.sampled_from([{"train": 0.7, "val": 0.15, "test": 0.15}, {"x": 3, "y": 1}])
)
def test_a_draw_keeps_groups_and_equal_images_together_and_gives_each_split_its_classes(rows, seed, shares):
    labels, groups, digests = ([*column] for column in zip(*rows, strict=True)) if rows else ([], [], [])
    groups, digests = [f"g{g}" if g else "" for g in groups], [f"d{d}" if d > 9 else "" for d in digests]
    drawn = draw_splits(labels, groups, digests, shares, seed)
    assert len(drawn) == len(rows) and drawn == draw_splits(labels, groups, digests, shares, seed)
    for column in (groups, digests):
        for value in set(column) - {""}:
            assert len({split for split, other in zip(drawn, column, strict=True) if other == value}) == 1
    if len(set(groups)) <= 1 and not any(digests):  # alone or all together
        for label in set(labels):
            own = [split for split, other in zip(drawn, labels, strict=True) if other == label]
            assert len(set(own)) == (min(len(own), len(shares)) if not any(groups) else 1)


@pytest.mark.parametrize(
    ("number", "expected"), [(3, (1, 1, 1)), (4, (2, 1, 1)), (20, (14, 3, 3)), (200, (140, 30, 30))]
)
def test_single_images_are_drawn_by_the_shares(number, expected):
    shares = {"train": 0.7, "val": 0.15, "test": 0.15}
    labels, empty = ["rare"] * number + ["common"] * 1000, [""] * (number + 1000)
    drawn = draw_splits(labels, empty, empty, shares, 0)
    assert tuple(drawn[:number].count(split) for split in shares) == expected
    assert [drawn[number:].count(split) for split in shares] == [700, 150, 150]
    assert drawn != draw_splits(labels, empty, empty, shares, 1)


def test_a_large_group_does_not_fill_a_small_split():
    groups = ["large"] * 50 + [f"{i // 2}" for i in range(50)]
    drawn = draw_splits(["a"] * 100, groups, [""] * 100, {"train": 0.7, "val": 0.15, "test": 0.15}, 0)
    assert set(drawn[:50]) == {"train"} and sorted(drawn[50:].count(s) for s in ("train", "val", "test")) == [
        14,
        16,
        20,
    ]
