"""Five steps on eight virtual devices in every way that there is, for test_placement.py: a process of its own.

python tests/eight_devices.py OUT.npz

Writes the parameters and batch statistics after five steps of each case as an .npz, and beside it as JSON the metrics,
and the collectives of the compiled program: `[operation, [shape, ...]]` each.
"""

import functools
import json
import os
import re
import sys
from pathlib import Path

os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=8"
os.environ["JAX_PLATFORMS"] = "cpu"
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import jax
import numpy as np
from flax.traverse_util import flatten_dict

from tfcam_jax import placement, steps
from tfcam_jax.models import SmallCNN
from tfcam_jax.optimizers import make_optimizer
from tfcam_jax.strategies import make_strategy

# 13 rows: no number of devices but one shares them evenly.
SIZE, BATCH, STEPS, WIDTHS = 16, 13, 5, (8, 16)

# mode, devices, shard_state
CASES = {
    "jit 1": ("jit", 1, False),
    "mesh 1": ("mesh", 1, False),
    "mesh 2": ("mesh", 2, False),
    "mesh 4": ("mesh", 4, False),
    "mesh 8": ("mesh", 8, False),
    "mesh 8 sharded": ("mesh", 8, True),
    "pmap 1": ("pmap", 1, False),
    "pmap 2": ("pmap", 2, False),
    "pmap 4": ("pmap", 4, False),
    "pmap 8": ("pmap", 8, False),
}
COLLECTIVE = re.compile(
    r"= (?P<shapes>.*?) (?P<op>all-reduce|all-gather|reduce-scatter|all-to-all|collective-permute"
    r"|collective-broadcast|ragged-all-to-all)(-start)?\("
)


def make_batches():
    """Every third example without a map, the first four never with one; the last batch ends an epoch after 5 rows."""
    rng = np.random.default_rng(0)
    for number in range(STEPS):
        human = rng.uniform(size=(BATCH, SIZE, SIZE)).astype(np.float32)
        human[:4], human[::3] = 0, 0
        mask = np.ones(BATCH, np.float32)
        mask[5 if number == STEPS - 1 else BATCH :] = 0
        yield {
            "image": rng.integers(0, 256, (BATCH, SIZE, SIZE, 3), dtype=np.uint8),
            "saliency": human,
            "label": rng.integers(0, 2, BATCH, dtype=np.int32),
            "mask": mask,
            "weight": rng.uniform(0.5, 1.5, BATCH).astype(np.float32) * mask,
        }


def collectives(text):
    """The collective operations of a compiled program, with the shapes that they yield."""
    return [
        [match["op"], [list(map(int, filter(None, s.split(",")))) for s in re.findall(r"\w\[([\d,]*)\]", match["shapes"])]]
        for match in COLLECTIVE.finditer(text)
    ]


def run_case(mode, devices, shard_state):
    where = placement.make_placement(mode, devices, shard_state)
    where = placement.Placement(where.mode, where.mesh, where.shard_state, smallest_sharded=64)
    # Clipped: the optimiser has to see the norm of the whole gradient.
    tx = make_optimizer("sgd", lambda step: 0.1, momentum=0.9, weight_decay=1e-3, clip_norm=0.5)
    preprocess = functools.partial(steps.standardize, mean=(0.4, 0.5, 0.6), std=(0.2, 0.3, 0.25))
    model = SmallCNN(num_classes=2, widths=WIDTHS, axis_name=where.axis_name)
    step = steps.make_train_step(
        model,
        tx,
        make_strategy("difference"),
        preprocess,
        axis_name=where.axis_name,
        gather=where.gather,
        scatter=where.scatter,
    )
    variables = steps.initialize(SmallCNN(num_classes=2, widths=WIDTHS), jax.random.key(0), SIZE)
    state = where.put_state(steps.create_train_state(variables, tx))
    compiled = where.compile_train_step(step, state)
    metrics = []
    for i, batch in enumerate(make_batches()):
        placed = where.put_train_batch(batch)
        if i == 0:
            text = compiled.lower(state, placed).compile().as_text()
        state, entry = compiled(state, placed)
        metrics.append(jax.device_get(entry))
    kept = max(leaf.addressable_shards[0].data.size / leaf.size for leaf in jax.tree.leaves(state.params) if leaf.size > 64)
    collected = {
        "terms": [[float(v) for total in entry.terms.values() for v in total] for entry in metrics],
        "correct": [[float(v) for v in entry.correct] for entry in metrics],
        "grad_norm": [float(entry.grad_norm) for entry in metrics],
        "collectives": collectives(text),
        "largest_share_of_a_parameter": kept,
    }
    trees = {"params": state.params, "batch_stats": state.batch_stats, "opt_state": jax.tree.leaves(state.opt_state)}
    arrays = {"/".join(k): np.asarray(v) for k, v in flatten_dict({n: trees[n] for n in ("params", "batch_stats")}).items()}
    arrays |= {f"opt_state/{i}": np.asarray(leaf) for i, leaf in enumerate(trees["opt_state"])}
    return arrays, collected


def main(out):
    arrays, collected = {}, {}
    for name, case in CASES.items():
        found, collected[name] = run_case(*case)
        arrays |= {f"{name}:{key}": value for key, value in found.items()}
    np.savez(out, **arrays)
    out.with_suffix(".json").write_text(json.dumps(collected))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
