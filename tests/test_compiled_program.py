"""Collectives are found in a compiled program, with the shapes and the size of what they yield."""

import jax
import jax.numpy as jnp
import numpy as np
from compiled_program import Collective, find_collectives
from jax.sharding import Mesh, NamedSharding, PartitionSpec

HLO = """
  %all-reduce.1 = f32[64,2]{1,0} all-reduce(f32[64,2]{1,0} %x), channel_id=1, replica_groups={{0,1}}, to_apply=%add
  %all-reduce.2 = (f32[8]{0}, bf16[3,3]{1,0}, pred[]) all-reduce(%a, %b, %c), replica_groups=[1,8]<=[8], to_apply=%add
  %gte = f32[8]{0} get-tuple-element(%all-reduce.2), index=0
  %all-gather-start = (f32[4]{0}, f32[32]{0}) all-gather-start(f32[4]{0} %y), dimensions={0}
  %all-gather-done = f32[32]{0} all-gather-done(%all-gather-start)
  %all-reduce-start.1 = f32[16]{0} all-reduce-start(f32[16]{0} %z), to_apply=%add
  ROOT %reduce-scatter.3 = s32[5]{0} reduce-scatter(s32[40]{0} %w), dimensions={0}, to_apply=%add
"""


def test_collectives_of_a_text():
    assert find_collectives(HLO) == [
        Collective("all-reduce", [[64, 2]], 64 * 2 * 4),
        Collective("all-reduce", [[8], [3, 3], []], 8 * 4 + 9 * 2 + 1),
        Collective("all-gather", [[32]], 32 * 4),
        Collective("all-reduce", [[16]], 16 * 4),
        Collective("reduce-scatter", [[5]], 5 * 4),
    ]


def compiled(function, size, spread):
    mesh = Mesh(np.asarray(jax.devices()[:2]), ("data",))
    where = lambda axes: NamedSharding(mesh, PartitionSpec(*axes))
    argument = jax.ShapeDtypeStruct(size, jnp.float32, sharding=where(spread))
    return jax.jit(function, out_shardings=where(())).lower(argument).compile().as_text()


def test_a_sum_over_devices_is_one_reduction_of_its_result():
    found = find_collectives(compiled(lambda x: x.sum(0), (6, 30), ("data",)))
    assert found == [Collective("all-reduce", [[30]], 30 * 4)]


def test_gathering_yields_the_whole():
    found = find_collectives(compiled(lambda x: 2 * x, (6, 30), ("data",)))
    assert found == [Collective("all-gather", [[6, 30]], 6 * 30 * 4)]


def test_one_device_sends_nothing():
    assert find_collectives(jax.jit(jnp.sum).lower(jnp.ones((4, 4))).compile().as_text()) == []
