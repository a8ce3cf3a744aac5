"""Compiler options are only asked for where this XLA knows them."""

import jax
import jax.numpy as jnp

from tfcam_jax.devices import compilation

fresh_options = compilation.compiler_options.__wrapped__  # without the cache


def test_a_function_compiles_with_the_options():
    doubled = jax.jit(lambda x: 2 * x, compiler_options=compilation.compiler_options())(jnp.ones(3))
    assert doubled.tolist() == [2.0, 2.0, 2.0]


def test_an_option_that_xla_does_not_know_is_left_out(monkeypatch):
    monkeypatch.setattr(compilation, "_CPU_OPTIONS", {"xla_cpu_that_never_was": "1"})
    assert fresh_options() == {}


def test_an_accelerator_is_asked_for_nothing(monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert fresh_options() == {}
