"""Where a run's arrays lie and how its steps are compiled: on one device, over a mesh of devices, or by pmap.

The same seed and batch give the same update in all of them. The state is whole in every one, so a checkpoint does not
know which of them wrote it.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable
from typing import Any

import einops
import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec, Sharding, SingleDeviceSharding

from ..errors import ConfigError, check_known
from ..steps import Batch, StepMetrics, TrainState
from .compilation import compiler_options

TrainStep = Callable[[TrainState, Batch], tuple[TrainState, StepMetrics]]
EvalStep = Callable[[Any, Any, Batch], Any]  # of rows: `EvalOutput`, or features

MODES = ("auto", "jit", "mesh", "pmap")
AXIS = "data"

# Parameters smaller than this are kept whole on every device: to send one costs a message, whatever its size.
SMALLEST_SHARDED = 2**14


@dataclasses.dataclass(frozen=True)
class Placement:
    """The devices of a run and how it uses them; see `make_placement`.

    Attributes:
      mode: `jit`, `mesh` or `pmap`.
      mesh: the devices, over all processes, with one axis; a process's devices stand side by side.
      shard_state: parameters and optimiser state are spread over the devices.
      smallest_sharded: number of elements below which an array is kept whole all the same.
    """

    mode: str
    mesh: Mesh
    shard_state: bool = False
    smallest_sharded: int = SMALLEST_SHARDED

    @property
    def axis_name(self) -> str | None:
        """The axis that a step has to sum over itself; None where it sees the whole batch."""
        return AXIS if self.mode == "pmap" else None

    @property
    def num_devices(self) -> int:
        """Devices over all processes."""
        return self.mesh.size

    def put_batch(self, batch: dict[str, np.ndarray], accumulate_steps: int = 1) -> Batch:
        """Starts a batch's way to the devices, spread by its rows.

        `batch` has this process's rows, equally many in every process; `mask` is 1 for an example. What is returned
        has those of all, and where the devices, each with `accumulate_steps` parts, can't share them evenly, masked
        rows of zeros (-1 in `index`) at the end of each process's.
        """
        batch = _pad(batch, len(self.mesh.local_devices) * accumulate_steps)
        if self.mode == "jit":
            return jax.device_put(batch, self._whole)
        return jax.make_array_from_process_local_data(self._by_rows, batch)

    def put_train_batch(self, batch: dict[str, np.ndarray], accumulate_steps: int = 1) -> Batch:
        """As `put_batch`, as the compiled train step takes it: for pmap with a leading axis of devices."""
        if self.mode != "pmap":
            return self.put_batch(batch, accumulate_steps)
        batch = _pad(batch, self.num_devices * accumulate_steps)
        spread = "(device row) ... -> device row ..."
        split = {name: einops.rearrange(x, spread, device=self.num_devices) for name, x in batch.items()}
        return jax.device_put(split, self._by_rows)

    def put_state(self, state: TrainState) -> TrainState:
        """Copies a state to the devices; the same values in every process. The source is left alone, also later."""

        def place(leaf: Any, sharding: Sharding) -> jax.Array:
            host = np.asarray(leaf)
            # A copy for each device: arrays that share memory with others must not be donated.
            return jax.make_array_from_callback(host.shape, sharding, lambda index: np.array(host[index]))

        return jax.tree.map(place, state, self.state_shardings(state))

    def abstract_state(self, state: TrainState) -> TrainState:
        """Shapes, dtypes and places of a state, to restore a checkpoint like it."""
        abstract = lambda leaf, place: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place)
        return jax.tree.map(abstract, state, self.state_shardings(state))

    def state_shardings(self, state: TrainState) -> TrainState:
        """The sharding of each of a state's arrays, which may be abstract."""
        whole = jax.tree.map(lambda _: self._whole, state.batch_stats)
        return self._shardings(state)._replace(batch_stats=whole)

    def gather(self, params: Any) -> Any:
        """Inside a compiled step: parameters as the model computes with them, whole on every device."""
        return jax.lax.with_sharding_constraint(params, self._whole) if self.shard_state else params

    def scatter(self, gradient: Any) -> Any:
        """Inside a compiled step: a gradient spread as the parameters are kept."""
        return jax.lax.with_sharding_constraint(gradient, self._shardings(gradient)) if self.shard_state else gradient

    def compile_train_step(self, step: TrainStep, state: TrainState) -> TrainStep:
        """Compiles `steps.make_train_step`'s step when it is first called; its state argument is donated.

        The step is made with this placement's `axis_name`, `gather` and `scatter`; `state`, abstract or not, is one
        like those that it will get.
        """
        if self.mode == "pmap":
            axes = {"in_axes": (None, 0), "out_axes": (None, None)}
            return jax.pmap(step, AXIS, **axes, donate_argnums=0, devices=list(self.mesh.devices.flat))
        outputs = (self.state_shardings(state), self._whole)
        return jax.jit(step, donate_argnums=0, out_shardings=outputs, compiler_options=compiler_options())

    def compile_eval_step(self, step: EvalStep) -> EvalStep:
        """Compiles `steps.make_eval_step`'s step when it is first called; outputs stay spread like the batch."""
        spread = self._whole if self.mode == "jit" else self._by_rows
        gathered = lambda params, batch_stats, batch: step(self.gather(params), batch_stats, batch)
        return jax.jit(gathered, out_shardings=spread, compiler_options=compiler_options())

    @property
    def _whole(self) -> Sharding:
        if self.mode == "jit":
            return SingleDeviceSharding(self.mesh.devices.flat[0])
        return NamedSharding(self.mesh, PartitionSpec())

    @property
    def _by_rows(self) -> Sharding:
        return NamedSharding(self.mesh, PartitionSpec(AXIS))

    def _shardings(self, tree: Any) -> Any:
        """Each array over the longest axis that the devices can share evenly; whole if there is none or it is small."""

        def sharding(leaf: Any) -> Sharding:
            fitting = [axis for axis, size in enumerate(leaf.shape) if size % self.num_devices == 0]
            if not self.shard_state or not fitting or np.prod(leaf.shape) < self.smallest_sharded:
                return self._whole
            longest = max(fitting, key=lambda axis: leaf.shape[axis])
            axes = [AXIS if axis == longest else None for axis in range(len(leaf.shape))]
            return NamedSharding(self.mesh, PartitionSpec(*axes))

        return jax.tree.map(sharding, tree)


def make_placement(mode: str = "auto", devices: int | None = None, shard_state: bool = False) -> Placement:
    """Chooses devices and how they are used.

    Args:
      mode: `jit` runs on one device; `mesh` spreads one program over all, in any number of processes; `pmap` compiles
        one for each, with sums between them, in one process; `auto` is jit where there is one device, else mesh.
      devices: how many, over all processes; None for all that there are (`jit`: the first).
      shard_state: for `mesh` only: spread parameters and optimiser state over the devices, for models that do not fit
        on one. A step then gathers the parameters, and each device updates its part.

    Raises:
      ConfigError: an unknown mode, devices that are not there, or a combination that does not exist.
    """
    check_known("config.parallel.mode", mode, MODES)
    processes = jax.process_count()
    mesh = _make_mesh(1 if mode == "jit" and devices is None and processes == 1 else devices)
    if mode == "auto":
        mode = "jit" if mesh.size == 1 and not shard_state else "mesh"
    if mode == "jit" and mesh.size > 1:
        raise ConfigError(f"config.parallel.mode=jit runs on one device, not {mesh.size}; choose mesh, pmap or auto.")
    if mode == "pmap" and processes > 1:
        raise ConfigError(f"config.parallel.mode=pmap runs in one process, not {processes}; choose mesh or auto.")
    if shard_state and mode != "mesh":
        raise ConfigError(f"config.parallel.shard_state needs parallel.mode=mesh, not {mode}.")
    return Placement(mode, mesh, shard_state, SMALLEST_SHARDED)


def _make_mesh(number: int | None) -> Mesh:
    """A mesh of so many devices, equally many of each process; None for all."""
    every = sorted(jax.devices(), key=lambda device: (device.process_index, device.id))
    processes = jax.process_count()
    if number is not None and not 1 <= number <= len(every):
        names = ", ".join(map(str, every[:8])) + (", ..." if len(every) > 8 else "")
        raise ConfigError(f"config.parallel.devices is {number}; there are {len(every)} devices: {names}.")
    if number is not None and number % processes:
        raise ConfigError(f"config.parallel.devices is {number}; it must be a multiple of the {processes} processes.")
    of_each = None if number is None else number // processes
    by_process = itertools.groupby(every, lambda device: device.process_index)
    chosen = [device for _, own in by_process for device in itertools.islice(own, of_each)]
    return Mesh(np.asarray(chosen), (AXIS,))


def fetch(tree: Any) -> Any:
    """Arrays from all devices, whole, as NumPy arrays in every process; all processes have to ask."""
    if jax.process_count() == 1:
        return jax.device_get(tree)
    return multihost_utils.process_allgather(tree, tiled=True)


def _pad(batch: dict[str, np.ndarray], unit: int) -> dict[str, np.ndarray]:
    """Adds masked rows up to a multiple of `unit`."""
    missing = -len(batch["mask"]) % unit
    if not missing:
        return batch
    fill = lambda name, x: np.full((missing, *x.shape[1:]), -1 if name == "index" else 0, x.dtype)
    return {name: np.concatenate([x, fill(name, x)]) for name, x in batch.items()}
