"""How XLA is asked to compile a train step, where this version of it knows the options; and the CPU cores at hand."""

from __future__ import annotations

import functools
import os

import jax
import jax.numpy as jnp

# XLA's library for CPUs runs a convolution on one thread; without it Eigen's convolutions use all. Matrix products and
# reductions stay with the library.
_CPU_OPTIONS = {"xla_cpu_experimental_ynn_fusion_type": "LIBRARY_FUSION_TYPE_INDIVIDUAL_DOT,LIBRARY_FUSION_TYPE_REDUCE"}


@functools.cache
def compiler_options() -> dict[str, str]:
    """`compiler_options` for `jax.jit` of functions full of convolutions, on the default backend.

    Empty on accelerators, and where XLA does not know the options: `jax.jit` says so in an error, whereas an unknown
    flag in the environment's `XLA_FLAGS` ends the process.
    """
    if jax.default_backend() != "cpu":
        return {}
    try:
        jax.jit(lambda x: x + 1, compiler_options=_CPU_OPTIONS).lower(jnp.zeros(())).compile()
    except jax.errors.JaxRuntimeError:
        return {}
    return dict(_CPU_OPTIONS)


def available_cores() -> list[int]:
    """Numbers of the CPU cores that this process may use."""
    affinity = getattr(os, "sched_getaffinity", None)  # not on every system
    return sorted(affinity(0)) if affinity else list(range(os.cpu_count() or 1))
