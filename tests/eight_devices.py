"""Five steps in every way that there is, for test_placement.py: a process of its own, with eight virtual devices.

XLA_FLAGS=--xla_force_host_platform_device_count=8 PYTHONPATH=. python tests/eight_devices.py OUT.npz

Writes the parameters and batch statistics after five steps of each case as an .npz, and beside it as JSON the metrics,
and the collectives of the compiled program: `[operation, [shape, ...], bytes]` each.
"""

import functools
import json
import sys
from pathlib import Path

import jax
import numpy as np
from compiled_program import find_collectives
from flax.traverse_util import flatten_dict

from tfcam_jax import steps
from tfcam_jax.devices import placement
from tfcam_jax.models import SmallCNN
from tfcam_jax.models.initialization import initialize
from tfcam_jax.optimizers import make_optimizer
from tfcam_jax.strategies import make_strategy

# 13 rows: no number of devices but one shares them evenly.
SIZE, BATCH, STEPS, WIDTHS = 16, 13, 5, (8, 16)

# The way, devices, shard_state.
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
# Compiled with all of XLA's passes, so that the collectives are those of real runs; the others fast.
OPTIMIZED = ("mesh 8", "mesh 8 sharded", "pmap 8")


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
            "draw": rng.integers(2**32, size=BATCH, dtype=np.uint32),
        }


def run_case(mode, devices, shard_state):
    where = placement.make_placement(mode, devices, shard_state)
    where = placement.Placement(where.mode, where.mesh, where.shard_state, smallest_sharded=64)
    # Clipped: the optimiser has to see the norm of the whole gradient.
    tx = make_optimizer("sgd", lambda step: 0.1, momentum=0.9, weight_decay=1e-3, clip_norm=0.5)
    preprocess = functools.partial(steps.standardize, mean=(0.4, 0.5, 0.6), std=(0.2, 0.3, 0.25))
    model = SmallCNN(num_classes=2, widths=WIDTHS, dropout=0.3, axis_name=where.axis_name)
    step = steps.make_train_step(
        model,
        tx,
        make_strategy("difference"),
        preprocess,
        axis_name=where.axis_name,
        gather=where.gather,
        scatter=where.scatter,
    )
    # Of the keys 0 to 2 the first has a place so near to changing sides that rounding moves parameters by 3e-6.
    variables = initialize(SmallCNN(num_classes=2, widths=WIDTHS), jax.random.key(1), SIZE)
    state = where.put_state(steps.create_train_state(variables, tx))
    placed = [where.put_train_batch(batch) for batch in make_batches()]
    compiled = where.compile_train_step(step, state).lower(state, placed[0]).compile()
    metrics = []
    for batch in placed:
        state, entry = compiled(state, batch)
        metrics.append(jax.device_get(entry))
    shares = [leaf.addressable_shards[0].data.size / leaf.size for leaf in jax.tree.leaves(state.params)]
    collected = {
        "terms": [[float(v) for total in entry.terms.values() for v in total] for entry in metrics],
        "correct": [[float(v) for v in entry.correct] for entry in metrics],
        "grad_norm": [float(entry.grad_norm) for entry in metrics],
        "collectives": find_collectives(compiled.as_text()),
        "smallest_share_of_a_parameter": min(shares),
    }
    trees = {"params": state.params, "batch_stats": state.batch_stats}
    arrays = {"/".join(path): np.asarray(leaf) for path, leaf in flatten_dict(trees).items()}
    arrays |= {f"opt_state/{i}": np.asarray(leaf) for i, leaf in enumerate(jax.tree.leaves(state.opt_state))}
    return arrays, collected


def main(out):
    arrays, collected = {}, {}
    for name, case in CASES.items():
        jax.config.update("jax_disable_most_optimizations", name not in OPTIMIZED)
        found, collected[name] = run_case(*case)
        arrays |= {f"{name}:{key}": value for key, value in found.items()}
    np.savez(out, **arrays)
    out.with_suffix(".json").write_text(json.dumps(collected))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
