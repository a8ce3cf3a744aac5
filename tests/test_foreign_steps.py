"""README's step as others would run it, on four devices: jit, pmap and shard_map make the update of one device."""

import os
import pathlib
import subprocess
import sys

import pytest
from test_readme import blocks

REPO = pathlib.Path(__file__).parent.parent

SCRIPT = """
import sys
import jax, jax.numpy as jnp, numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec as P
from tfcam_jax.losses import masked_mean

assert len(jax.devices()) == 4
namespace = {}
exec(open(sys.argv[1]).read(), namespace)
loss, step, pmap_step = (namespace[name] for name in ("loss", "step", "pmap_step"))
rng = np.random.default_rng(0)
draw = lambda *shape: jnp.asarray(rng.normal(size=shape), jnp.float32)
params = {"conv": draw(3, 8), "kernel": draw(8, 2), "bias": jnp.zeros(2)}
images, labels = draw(12, 5, 4, 3), jnp.asarray(rng.integers(0, 2, 12))
everywhere = rng.uniform(size=(12, 20, 12)).astype(np.float32)
alone, none = everywhere.copy(), np.zeros_like(everywhere)
alone[2:] = 0  # on the first device only, and there not for each of the three
mesh = Mesh(jax.devices(), ("devices",))
parts = (P(), P("devices"), P("devices"), P("devices"))
split = lambda tree: jax.tree.map(lambda x: x.reshape(4, 3, *x.shape[1:]), tree)
first = lambda tree: jax.tree.map(lambda x: x[0], tree)


def pmean_of_gradients(params, *batch):
    return jax.lax.pmean(jax.value_and_grad(loss)(params, *batch, "devices"), "devices")


def pmean_of_the_loss(params, *batch):
    return jax.value_and_grad(lambda params: jax.lax.pmean(loss(params, *batch, "devices"), "devices"))(params)


def pmean_by_varying(params, *batch):
    return pmean_of_gradients(jax.lax.pcast(params, "devices", to="varying"), *batch)


def check(what, got, expected):
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-6, err_msg=what)
    print(what)


for name, human in (("maps on one device", alone), ("no map", none), ("maps everywhere", everywhere)):
    batch = (images, labels, jnp.asarray(human))
    expected, updated = jax.value_and_grad(loss)(params, *batch), step(params, *batch)
    sharded = [jax.device_put(x, NamedSharding(mesh, P("devices"))) for x in batch]
    check(f"{name}: jit over a mesh", step(params, *sharded), updated)
    replicated = jax.tree.map(lambda x: jnp.stack([x] * 4), params)
    check(f"{name}: pmap step", first(pmap_step(replicated, *split(batch))), updated)
    check(f"{name}: pmap", first(jax.pmap(pmean_of_gradients, "devices")(replicated, *split(batch))), expected)
    for function, check_vma in ((pmean_of_gradients, False), (pmean_of_the_loss, True), (pmean_by_varying, True)):
        spread = jax.shard_map(function, mesh=mesh, in_specs=parts, out_specs=P(), check_vma=check_vma)
        check(f"{name}: shard_map, {function.__name__}", jax.jit(spread)(params, *batch), expected)

# The value is the same on every device, and is the mean over all.
values, mask = draw(12), jnp.arange(12) < 2
each = jax.pmap(lambda v, m: masked_mean(v, m, "d"), "d")(*split((values, mask)))
check("value", each, jnp.full(4, values[:2].mean()))
"""


@pytest.mark.slow
def test_readmes_step_on_four_devices_is_that_of_one(tmp_path):
    code = next(block for block in blocks("python") if "difference_loss" in block)
    (tmp_path / "step.py").write_text(code)
    flags = "--xla_force_host_platform_device_count=4"
    environment = {**os.environ, "XLA_FLAGS": flags, "PYTHONPATH": str(REPO), "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, "-c", SCRIPT, str(tmp_path / "step.py")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) == 3 * 6 + 1
