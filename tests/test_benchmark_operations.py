"""The benchmark's account of operations: what their text says, against counts by hand; times, against the clock's."""

import jax
import jax.numpy as jnp
import pytest

from launch.benchmark import parts
from launch.benchmark.cases import Case
from launch.benchmark.operations import Operation, group, read_operations, remainder, time_operations, total


def operations_of(function, *shapes):
    arguments = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
    return read_operations(jax.jit(function).lower(*arguments).compile().as_text()).values()


def convolve(x, kernel, stride=1):
    dimensions = ("NHWC", "HWIO", "NHWC")
    return jax.lax.conv_general_dilated(x, kernel, (stride, stride), "SAME", dimension_numbers=dimensions)


def test_flops_and_bytes_of_a_product():
    (product,) = (each for each in operations_of(jnp.dot, (30, 40), (40, 50)) if each.flops)
    assert product.kind == "product" and product.flops == 2 * 30 * 40 * 50
    assert product.bytes >= 4 * (30 * 40 + 40 * 50 + 30 * 50)


@pytest.mark.parametrize("stride", [1, 2])
def test_flops_of_a_convolution_and_of_both_its_gradients_are_the_same(stride):
    shapes = (2, 8, 8, 3), (3, 3, 3, 5)
    places = 2 * (8 // stride) ** 2
    sums = lambda f: sum(each.flops for each in operations_of(f, *shapes))
    forward = lambda x, kernel: convolve(x, kernel, stride)
    assert sums(forward) == 2 * places * 5 * 27
    loss = lambda x, kernel: jnp.square(forward(x, kernel)).sum()
    for argument in (0, 1):  # the gradient by one argument needs the result, and one convolution more
        assert sums(jax.grad(loss, argument)) == 2 * (2 * places * 5 * 27)


def test_kinds_and_what_is_free():
    kinds = lambda *given: {each.kind for each in operations_of(*given)}
    assert kinds(lambda x: jnp.tanh(x) + 1, (16, 16)) == {"elementwise"}
    assert kinds(lambda x: jnp.tanh(x).sum(), (16, 16)) >= {"reduction"}
    assert kinds(lambda x: x.T.reshape(4, 64), (16, 16)) == {"data movement"}
    assert not operations_of(lambda x: x.reshape(4, 64), (16, 16)) or kinds(lambda x: x.reshape(4, 64), (16, 16)) == {
        "data movement"
    }
    assert "loop" in kinds(lambda x: jax.lax.while_loop(lambda x: x.sum() > 1, lambda x: x / 2, x), (16, 16))


def test_what_is_in_a_loop_counts_as_often_as_it_runs():
    function = lambda xs, k: jax.lax.scan(lambda total, x: (total @ k, None), jnp.ones((30, 40)), xs)[0]
    found = operations_of(function, (7, 5), (40, 40))
    (product,) = (each for each in found if each.flops)
    assert (product.kind, product.times, product.flops) == ("product", 7, 2 * 30 * 40 * 40)
    assert [each.flops for each in found if each.kind == "loop"] == [0.0]
    seconds, (share,) = {"a": 3.0}, group({"a": product}, {"a": 3.0}, peak_flops=product.flops, bandwidth=1e30)
    assert (share.calls, share.seconds, share.least) == (7, seconds["a"], 7.0)


def test_what_is_lost_is_beyond_the_nearer_peak():
    found = {
        "a": Operation("product", 100.0, 4.0, "jit(f)/jvp(N)/dot"),
        "b": Operation("product", 100.0, 400.0, "jit(f)/jvp(N)/dot"),
        "c": Operation("elementwise", 0.0, 40.0, "jit(f)/transpose(jvp(N))/add"),
    }
    seconds = {"a": 3.0, "b": 50.0, "c": 5.0, "of another program": 7.0}
    first, second = shares = group(found, seconds, peak_flops=50.0, bandwidth=10.0)
    assert (first.name, first.calls, first.seconds, first.least) == ("product, forward", 2, 53.0, 2.0 + 40.0)
    assert (second.name, second.lost) == ("elementwise, backward", 1.0)
    assert remainder(shares, 60.0).seconds == 2.0
    assert total(shares, 60.0)[1:] == (3, 60.0, 46.0, 200.0, 444.0)


def test_every_timed_operation_stands_in_the_program_and_none_takes_longer_than_the_step():
    step = jax.jit(lambda x: jnp.tanh(x @ x).sum()).lower(jnp.ones((512, 512))).compile()
    seconds, whole = time_operations(lambda: step(jnp.ones((512, 512))).block_until_ready())
    names = read_operations(step.as_text())
    assert set(seconds) & set(names)
    assert all(0 < seconds[name] <= 3 * whole for name in set(seconds) & set(names))


def test_the_parts_rows_add_up():
    section = parts.operations([Case("small_cnn", 2, 32)], "cyborg", 1e11, 1e10)
    *rows, rest, whole = section.figures
    assert rest["name"] == "not seen" and whole["name"] == "all"
    assert sum(row["seconds"] for row in (*rows, rest)) == pytest.approx(whole["seconds"])
    assert {row["name"].partition(",")[0] for row in rows} >= {"convolution", "reduction", "elementwise"}
