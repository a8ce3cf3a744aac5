"""Batches: each example once, padded and masked, and the same whatever threads or processes made them."""

from dataclasses import dataclass

import numpy as np
import pytest

from tfcam_jax.data.pipeline import eval_batches, prefetch_to_device, train_batches
from tfcam_jax.data.source import DataError, Example, Records
from tfcam_jax.data.transforms import Augment, Resize, apply
from tfcam_jax.errors import ConfigError

SIZE = 8
AUGMENT = Augment(flip=0.5, crop=0.3, rotate=20, translate=0.1, map_blur=(0.1, 2.0))


@dataclass(frozen=True)
class Numbered:
    """Image and map number i hold noise from seed i; every third has no map."""

    count: int

    @property
    def records(self):
        names = tuple(f"n{i}" for i in range(self.count))
        numbers = np.arange(self.count)
        return Records(names, (numbers % 2).astype(np.int32), names, names, numbers % 3 > 0)

    def __len__(self):
        return self.count

    def __getitem__(self, index):
        rng = np.random.default_rng(int(index))
        image, saliency = rng.integers(0, 256, (SIZE, SIZE, 3), np.uint8), rng.random((4, 4), np.float32)
        return Example.from_arrays(image, saliency if self.records.has_map[index] else None)


@dataclass(frozen=True)
class Broken(Numbered):
    def __getitem__(self, index):
        raise DataError([f"image {index} is gone"])


def train(source, epoch=0, seed=0, batch_size=4, augment=AUGMENT, **options):
    return list(
        train_batches(
            source, epoch=epoch, seed=seed, batch_size=batch_size, image_size=SIZE, augment=augment, **options
        )
    )


def joined(batches, name):
    return np.concatenate([batch[name] for batch in batches])


def assert_equal(batches, others):
    assert len(batches) == len(others)
    for batch, other in zip(batches, others, strict=True):
        assert batch.keys() == other.keys()
        for name in batch:
            np.testing.assert_array_equal(batch[name], other[name], err_msg=name)


@pytest.mark.parametrize(("count", "batch_size"), [(10, 4), (8, 4), (3, 4), (1, 1)])
@pytest.mark.parametrize("kind", ["train", "eval"])
def test_every_example_once_then_masked_padding(count, batch_size, kind):
    source = Numbered(count)
    if kind == "train":
        batches = train(source, batch_size=batch_size)
    else:
        batches = list(eval_batches(source, batch_size=batch_size, image_size=SIZE))
    assert len(batches) == -(-count // batch_size)
    for batch in batches:
        assert {name: (x.shape, x.dtype.name) for name, x in batch.items()} == {
            "image": ((batch_size, SIZE, SIZE, 3), "uint8"),
            "saliency": ((batch_size, SIZE, SIZE), "float32"),
            "label": ((batch_size,), "int32"),
            "mask": ((batch_size,), "float32"),
            "weight": ((batch_size,), "float32"),
            "draw": ((batch_size,), "uint32"),
            "index": ((batch_size,), "int32"),
        }
    real = joined(batches, "mask") == 1
    assert real.sum() == count and real[:count].all()
    index = joined(batches, "index")
    np.testing.assert_array_equal(np.sort(index[real]), np.arange(count))
    np.testing.assert_array_equal(joined(batches, "label")[real], index[real] % 2)
    assert (index[~real] == -1).all()
    assert (joined(batches, "weight")[real] == 1).all()
    for name in ("image", "saliency", "label", "mask", "weight", "draw"):
        assert not joined(batches, name)[~real].any()


def test_draws_belong_to_the_place_in_the_epoch():
    """The same for any hosts and whatever was left out; other epochs and seeds draw anew, and augmentation apart."""
    source, draws = Numbered(10), lambda **options: joined(train(Numbered(10), **options), "draw")
    first = draws(epoch=2, seed=5)
    assert np.unique(first[:10]).size == 10
    np.testing.assert_array_equal(draws(epoch=2, seed=5, first_batch=1), first[4:])
    hosts = [train(source, epoch=2, seed=5, shard_index=i, shard_count=2) for i in range(2)]
    np.testing.assert_array_equal(np.concatenate([joined(pair, "draw") for pair in zip(*hosts, strict=True)]), first)
    for options in ({"epoch": 3, "seed": 5}, {"epoch": 2, "seed": 6}):
        assert not np.isin(draws(**options)[:10], first).any()
    assert not joined(list(eval_batches(source, batch_size=4, image_size=SIZE)), "draw").any()


def test_maps_of_a_size_of_their_own():
    batches = train(Numbered(5), augment=Augment(), map_size=3, resize_through=(7,))
    assert {batch["saliency"].shape for batch in batches} == {(4, 3, 3)}
    expected = apply(Numbered(5)[int(batches[0]["index"][0])], Resize(SIZE, (7,), 3))
    for name, array in zip(("image", "saliency"), expected, strict=True):
        np.testing.assert_array_equal(batches[0][name][0], array)
    (evaluated,) = eval_batches(Numbered(4), batch_size=4, image_size=SIZE, resize_through=(7,))
    image, saliency = apply(Numbered(4)[1], Resize(SIZE, (7,)))
    np.testing.assert_array_equal(evaluated["image"][1], image)
    np.testing.assert_array_equal(evaluated["saliency"][1], saliency)


def test_evaluation_is_in_order_and_as_stored():
    source = Numbered(10)
    batches = list(eval_batches(source, batch_size=4, image_size=SIZE))
    np.testing.assert_array_equal(joined(batches, "index")[:10], np.arange(10))
    np.testing.assert_array_equal(joined(batches, "image")[:10], [source[i].image for i in range(10)])
    np.testing.assert_array_equal(joined(batches, "saliency")[:10].any((1, 2)), source.records.has_map)


def test_seed_and_epoch_decide_order_and_pixels():
    source = Numbered(40)
    first = train(source, epoch=1, seed=5)
    assert_equal(first, train(source, epoch=1, seed=5))
    order = joined(first, "index")
    for epoch, seed in ((2, 5), (1, 6), (5, 1)):
        other = train(source, epoch=epoch, seed=seed)
        assert (joined(other, "index") != order).any()
        # The same image is augmented otherwise.
        by_index = lambda batches: joined(batches, "image")[np.argsort(joined(batches, "index"))]
        changed = (by_index(first) != by_index(other)).any((1, 2, 3))
        assert changed.mean() > 0.9


def test_examples_are_augmented_independently():
    batches = train(Numbered(40), augment=Augment(flip=0.5))
    flipped = [
        not np.array_equal(image, Numbered(40)[i].image)
        for image, i in zip(joined(batches, "image"), joined(batches, "index"), strict=True)
    ]
    assert 8 <= sum(flipped) <= 32


@pytest.mark.parametrize("options", [{"num_threads": 0}, {"num_threads": 1}, {"num_threads": 7}])
def test_threads_change_nothing(options):
    assert_equal(train(Numbered(30)), train(Numbered(30), **options))


@pytest.mark.slow
def test_worker_processes_change_nothing():
    source = Numbered(22)
    assert_equal(train(source), train(source, num_workers=2, num_threads=1))


def test_an_epoch_resumes_in_its_middle():
    options = {"epoch": 3, "seed": 1, "batch_size": 4, "image_size": SIZE, "augment": AUGMENT}
    iterator = train_batches(Numbered(30), **options)
    for _ in range(3):
        next(iterator)
    state = iterator.get_state()
    rest = list(iterator)
    again = train_batches(Numbered(30), **options)
    again.set_state(state)
    assert_equal(rest, list(again))
    assert len(rest) == 5


@pytest.mark.parametrize("count", [30, 26, 2])
def test_hosts_share_each_batch_and_change_nothing(count):
    whole = train(Numbered(count), batch_size=8)
    for hosts in (2, 4):
        parts = [train(Numbered(count), batch_size=8, shard_index=i, shard_count=hosts) for i in range(hosts)]
        together = [
            {name: np.concatenate([part[name] for part in batch]) for name in batch[0]}
            for batch in zip(*parts, strict=True)
        ]
        assert_equal(together, whole)
    shards = [
        eval_batches(Numbered(count), batch_size=8, image_size=SIZE, shard_index=i, shard_count=2) for i in (0, 1)
    ]
    scored = np.concatenate([batch["index"][batch["mask"] > 0] for shard in shards for batch in shard])
    assert sorted(scored) == list(range(count))


@pytest.mark.parametrize(("size", "hosts"), [(8, 3), (5, 4), (2, 3)])
def test_hosts_that_share_unevenly_pad(size, hosts):
    """Each host's part is equally long, and the real rows of all, put together, are the batch."""
    whole = train(Numbered(13), batch_size=size)
    parts = [train(Numbered(13), batch_size=size, shard_index=i, shard_count=hosts) for i in range(hosts)]
    for batch, *shares in zip(whole, *parts, strict=True):
        assert {len(share["mask"]) for share in shares} == {-(-size // hosts)}
        for name, value in batch.items():
            together = np.concatenate([share[name][share["mask"] > 0] for share in shares])
            np.testing.assert_array_equal(together, value[batch["mask"] > 0])


@pytest.mark.parametrize(("index", "count"), [(2, 2), (-1, 2)])
def test_host_beyond_their_number(index, count):
    with pytest.raises(ValueError, match="must lie below the number of hosts, 2"):
        train(Numbered(9), batch_size=8, shard_index=index, shard_count=count)


def test_an_epoch_goes_on_from_any_batch_with_any_number_of_workers():
    whole = train(Numbered(30))
    assert_equal(train(Numbered(30), first_batch=3), whole[3:])
    assert_equal(train(Numbered(30), first_batch=6, num_workers=1, num_threads=0), whole[6:])
    assert train(Numbered(30), first_batch=8) == []


@dataclass(frozen=True)
class Unequal(Numbered):
    """Five examples in six are of class 0, one of class 1."""

    @property
    def records(self):
        records = super().records
        return Records(
            records.ids, (np.arange(self.count) % 6 == 5).astype(np.int32), *list(vars(records).values())[2:5]
        )


def test_weights_make_the_classes_count_alike():
    batches = train(Unequal(36), balance="weights")
    label, weight = joined(batches, "label"), joined(batches, "weight")
    assert sorted(joined(batches, "index")) == list(range(36))
    assert weight[label == 0].sum() == pytest.approx(18) and weight[label == 1].sum() == pytest.approx(18)
    assert len(set(weight[label == 1])) == 1


def test_sampling_draws_the_classes_equally_often():
    batches = train(Unequal(37), balance="sampling")
    real = joined(batches, "mask") > 0
    label, index = joined(batches, "label")[real], joined(batches, "index")[real]
    assert len(index) == 37 and abs(np.bincount(label)[0] - np.bincount(label)[1]) == 1
    counts = np.bincount(index, minlength=37)
    for k in (0, 1):
        own = counts[Unequal(37).records.labels == k]
        assert own.max() - own.min() <= 1
    assert (joined(batches, "weight")[real] == 1).all()
    other = train(Unequal(37), balance="sampling", epoch=1)
    assert set(joined(other, "index")) != set(index)
    with pytest.raises(ConfigError, match=r"'weight'\. Did you mean 'weights'\? Known: none, weights, sampling"):
        train(Unequal(6), balance="weight")


def test_prefetching_keeps_two_batches_ahead_and_the_order():
    sent, seen = [], []

    def put(batch):
        sent.append(batch)
        return -batch

    for batch in prefetch_to_device(range(6), put):
        seen.append(batch)
        assert len(sent) == min(len(seen) + 2, 6)
    assert seen == [0, -1, -2, -3, -4, -5]
    assert list(prefetch_to_device([7], put, ahead=3)) == [-7]
    with pytest.raises(ValueError, match="at least 1"):
        next(prefetch_to_device([1], put, ahead=0))


def test_errors_of_the_source_reach_the_caller():
    with pytest.raises(DataError, match="is gone"):
        train(Broken(4))


def test_a_data_error_survives_the_way_between_processes():
    import pickle

    error = DataError([f"fault {i}" for i in range(30)])
    copy = pickle.loads(pickle.dumps(error))
    assert copy.problems == error.problems and str(copy) == str(error)


def test_records_must_be_equally_long():
    with pytest.raises(ValueError, match="equally long"):
        Records(("a",), np.zeros(2, np.int32), ("", ""), ("", ""), np.zeros(2, bool))
