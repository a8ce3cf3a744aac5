"""README's own networks as modules, as a user would write them to a file, and the libraries' own way to call them."""

import functools
import importlib
import pathlib
import re
import sys

import equinox as eqx
import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import nnx

README = pathlib.Path(__file__).parent.parent / "tfcam_jax/models/README.md"
KINDS = ("linen", "nnx", "equinox")


def write_networks(folder: pathlib.Path) -> None:
    """Writes `my_linen.py`, `my_nnx.py` and `my_equinox.py`, which hold README's examples."""
    for block in re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL):
        for kind, mark in zip(KINDS, ("(nn.Module)", "(nnx.Module)", "(eqx.Module)"), strict=True):
            if mark in block:
                (folder / f"my_{kind}.py").write_text(block)


@functools.partial(jax.jit, static_argnames=("kind", "train"))
def own_forward(kind, variables, images, train):
    """Logits and running means of a README network without dropout, by its library alone: no adapter."""
    module = importlib.import_module(f"my_{kind}")
    params, rest = variables["params"], variables["batch_stats"]
    if kind == "linen":
        collections = {"params": params, **rest}
        net = module.Cnn(2)
        if not train:
            return net.apply(collections, images, train=False)[0], None
        output, changed = net.apply(
            collections, images, train=True, mutable=["batch_stats"], rngs={"dropout": jax.random.key(0)}
        )
        return output[0], changed["batch_stats"]["BatchNorm_1"]["mean"]
    if kind == "nnx":
        net = module.Cnn(2, 0.0, nnx.Rngs(0))
        for layer, values in params.items():
            for name, value in values.items():
                getattr(getattr(net, layer), name)[...] = value
        (net.train if train else net.eval)()
        return net(images)[0], net.norm2.mean[...]
    net, state = eqx.nn.make_with_state(module.Cnn)(2, 0.0, "batch", jax.random.key(0))
    names = [(layer, name) for layer, values in params.items() for name in values]
    where = lambda net: [getattr(getattr(net, layer), name) for layer, name in names]
    net = eqx.tree_at(where, net, [params[layer][name] for layer, name in names])
    net = eqx.nn.inference_mode(net, value=not train)
    call = jax.vmap(lambda x: net(x, state, jax.random.key(0)), axis_name="batch", out_axes=((0, 0, None), None))
    (logits, *_), state = call(jnp.moveaxis(images, -1, 1))
    return logits, state.get(net.norm2.batch_state_index)[0]


def running_mean(kind, batch_stats):
    if kind == "linen":
        return batch_stats["batch_stats"]["BatchNorm_1"]["mean"]
    return batch_stats["norm2"]["mean"] if kind == "nnx" else batch_stats["state"]["3"]["0"]


class Across(nn.Module):
    """A Linen network whose BatchNorm names a pmap axis; its flag is called as in Flax's BatchNorm."""

    axis_name: str | None = None

    @nn.compact
    def __call__(self, x, use_running_average):
        x = nn.Conv(4, (3, 3), strides=4)(x)
        x = nn.relu(nn.BatchNorm(use_running_average=use_running_average, axis_name=self.axis_name)(x))
        head = nn.Dense(2)
        return head(x.mean((1, 2))), x, head.variables["params"]["kernel"]


class AcrossNnx(nnx.Module):
    """The same in NNX."""

    def __init__(self, num_classes, axis_name=None, *, rngs):
        self.conv = nnx.Conv(3, 4, (3, 3), strides=4, rngs=rngs)
        self.norm = nnx.BatchNorm(4, axis_name=axis_name, rngs=rngs)
        self.head = nnx.Linear(4, num_classes, rngs=rngs)

    def __call__(self, x):
        x = nnx.relu(self.norm(self.conv(x)))
        return self.head(x.mean((1, 2))), x, self.head.kernel[...]


def across(num_classes, axis_name):
    return Across(axis_name)


def forget(names):
    for name in names:
        sys.modules.pop(name, None)
