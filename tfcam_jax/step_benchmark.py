"""How long a train step takes, against the same network in PyTorch, in one interleaved run.

Each contestant lives in a process of its own, so that thread pools do not share one, and waits while another is
timed. They take turns, a step each, so that whatever else the machine does falls on all of them alike; medians and
ratios are reported. Needs the extra `parity` for PyTorch's side.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

LEARNING_RATE, MOMENTUM, NUM_CLASSES = 0.005, 0.9, 2


class Case(NamedTuple):
    """What is timed: one step of SGD with momentum on the cross-entropy of random images, in float32."""

    model: str
    batch_size: int
    image_size: int


def jax_step(case: Case, options: bool = True) -> tuple[Callable[[], None], float]:
    """One step of the network here, and the seconds that its compilation took."""
    import jax
    import jax.numpy as jnp
    import optax

    from .compilation import compiler_options
    from .models import MODELS

    model = MODELS[case.model](num_classes=NUM_CLASSES)
    tx = optax.sgd(LEARNING_RATE, momentum=MOMENTUM)
    images, labels = map(jnp.asarray, _random_batch(case))

    def train_step(params, batch_stats, opt_state):
        def loss(params):
            variables = {"params": params, "batch_stats": batch_stats}
            output, updated = model.apply(variables, images, train=True, mutable=["batch_stats"])
            losses = optax.softmax_cross_entropy_with_integer_labels(output.logits, labels)
            return losses.mean(), updated["batch_stats"]

        (value, new_stats), gradients = jax.value_and_grad(loss, has_aux=True)(params)
        updates, new_opt_state = tx.update(gradients, opt_state, params)
        return (optax.apply_updates(params, updates), new_stats, new_opt_state), value

    shapes = jax.eval_shape(lambda: model.init(jax.random.key(0), images, train=False))
    variables = jax.tree.map(jnp.asarray, _random_weights(shapes))
    state = (variables["params"], variables["batch_stats"], tx.init(variables["params"]))
    start = time.perf_counter()
    jitted = jax.jit(train_step, donate_argnums=(0, 1, 2), compiler_options=compiler_options() if options else None)
    compiled = jitted.lower(*state).compile()
    seconds = time.perf_counter() - start

    def step() -> None:
        nonlocal state
        state, value = compiled(*state)
        value.block_until_ready()

    return step, seconds


def torch_step(case: Case, channels_last: bool = False) -> tuple[Callable[[], None], float]:
    """One step of the same network in PyTorch; nothing is compiled."""
    from .parity import build_reference, import_torch

    torch = import_torch()
    memory_format = torch.channels_last if channels_last else torch.contiguous_format
    network = build_reference(case.model, seed=0, num_classes=NUM_CLASSES).train().to(memory_format=memory_format)
    images, labels = map(torch.from_numpy, _random_batch(case))
    images = images.permute(0, 3, 1, 2).contiguous(memory_format=memory_format)
    optimizer = torch.optim.SGD(network.parameters(), lr=LEARNING_RATE, momentum=MOMENTUM)

    def step() -> None:
        optimizer.zero_grad()
        loss = torch.nn.functional.cross_entropy(network(images), labels)
        loss.backward()
        optimizer.step()
        loss.item()

    return step, 0.0


CONTESTANTS: dict[str, Callable[[Case], tuple[Callable[[], None], float]]] = {
    "jax": jax_step,
    "jax default": lambda case: jax_step(case, options=False),
    "torch": torch_step,
    "torch channels_last": lambda case: torch_step(case, channels_last=True),
}


def _random_batch(case: Case) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    images = rng.standard_normal((case.batch_size, case.image_size, case.image_size, 3)).astype(np.float32)
    return images, np.arange(case.batch_size) % NUM_CLASSES


def _random_weights(shapes: Any) -> Any:
    import jax

    rng = np.random.default_rng(0)

    def fill(path: tuple, leaf: Any) -> np.ndarray:
        if path[-1].key == "kernel":
            return (np.sqrt(2 / np.prod(leaf.shape[:-1])) * rng.standard_normal(leaf.shape)).astype(np.float32)
        return np.full(leaf.shape, path[-1].key in ("scale", "var"), np.float32)

    return jax.tree_util.tree_map_with_path(fill, shapes)


def serve(contestant: str, case: Case) -> None:
    """A contestant's process: compiles, says how long that took, then times a step for every line it is sent."""
    step, compile_seconds = CONTESTANTS[contestant](case)
    step()
    print(json.dumps(compile_seconds), flush=True)
    for _line in sys.stdin:
        start = time.perf_counter()
        step()
        print(json.dumps(time.perf_counter() - start), flush=True)


def _start(contestant: str, case: Case, cache_dir: str) -> subprocess.Popen[str]:
    """A process of `serve`, with JAX's persistent compilation cache in `cache_dir`."""
    code = f"from tfcam_jax.step_benchmark import Case, serve; serve({contestant!r}, {case!r})"
    environment = {
        **os.environ,
        "JAX_COMPILATION_CACHE_DIR": cache_dir,
        "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
    }
    return subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment, text=True
    )


def _answer(process: subprocess.Popen[str]) -> float:
    line = process.stdout.readline()
    if not line:
        raise RuntimeError(f"a contestant's process ended with exit status {process.wait()}; its error is above")
    return float(json.loads(line))


def _ask(process: subprocess.Popen[str]) -> float:
    process.stdin.write("step\n")
    process.stdin.flush()
    return _answer(process)


def run(models: Sequence[str], contestants: Sequence[str], batch_size: int, image_size: int, rounds: int) -> None:
    """Times all contestants on each model and prints one row per contestant."""
    row = "{:<13} {:<20} {:>10} {:>10} {:>10} {:>14} {:>14}"
    print(row.format("model", "contestant", "median s", "fastest s", "ratio", "compile cold s", "compile warm s"))
    for model in models:
        case = Case(model, batch_size, image_size)
        with tempfile.TemporaryDirectory() as cache_dir:
            times, cold, warm = _time_case(case, contestants, rounds, cache_dir)
        reference = np.median(times["jax"]) if "jax" in times else float("nan")
        for contestant in contestants:
            median = np.median(times[contestant])
            compiled = [f"{cold[contestant]:.1f}", f"{warm:.1f}"] if contestant == "jax" else ["", ""]
            values = (f"{median:.3f}", f"{min(times[contestant]):.3f}", f"{reference / median:.2f}", *compiled)
            print(row.format(model, contestant, *values), flush=True)
    print(f"batch {batch_size}, {image_size} px, float32, {os.cpu_count()} cores, {rounds} rounds; ratio: jax / theirs")


def _time_case(
    case: Case, contestants: Sequence[str], rounds: int, cache_dir: str
) -> tuple[dict[str, list[float]], dict[str, float], float]:
    """Step times and cold compile times by contestant, and JAX's compile time with a warm cache."""
    processes, cold, warm = {}, {}, float("nan")
    try:
        for contestant in contestants:
            processes[contestant] = _start(contestant, case, cache_dir)
            cold[contestant] = _answer(processes[contestant])
        if "jax" in processes:
            processes["warm"] = _start("jax", case, cache_dir)
            warm = _answer(processes["warm"])
        times = {contestant: [] for contestant in contestants}
        for _ in range(rounds):
            for contestant in contestants:
                times[contestant].append(_ask(processes[contestant]))
    finally:
        for process in processes.values():
            process.stdin.close()
            process.terminate()
            process.wait()
    return times, cold, warm
