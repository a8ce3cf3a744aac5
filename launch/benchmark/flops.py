"""FLOPs of a program, counted before it is compiled: the compiler's account takes what is in a loop once."""

from __future__ import annotations

import math
from typing import Any

import jax
from jax.interpreters import partial_eval


def count_flops(traced: Any, loops_once: bool = False) -> float:
    """FLOPs of convolutions and matrix products, two for a product and its sum; zeros of strides left out.

    Args:
      traced: a function that was traced, `jax.jit(function).trace(...)`. What none of its results needs does not count.
      loops_once: count what is in a loop of a known length (`jax.lax.scan`) once, not as often as it runs.
    """
    program = traced.jaxpr.jaxpr
    needed, _ = partial_eval.dce_jaxpr(program, [True] * len(program.outvars))
    return _count(needed, loops_once)


def account_flops(traced: Any, lowered: Any, compiled: Any) -> float:
    """FLOPs of whatever kind by the compiler's account, and those of `count_flops` that it leaves out in loops."""
    # Before compilation the account knows no fusion; only CPUs give it then.
    account = lowered.cost_analysis() or compiled.cost_analysis()
    return account["flops"] + count_flops(traced) - count_flops(traced, loops_once=True)


def _count(program: Any, loops_once: bool) -> float:
    total = 0.0
    for equation in program.eqns:
        total += _flops_of(equation)
        is_loop = equation.primitive.name == "scan" and not loops_once
        for inner in jax.tree.leaves(tuple(equation.params.values()), is_leaf=lambda value: hasattr(value, "jaxpr")):
            inner = getattr(inner, "jaxpr", inner)
            if hasattr(inner, "eqns"):
                total += _count(inner, loops_once) * (equation.params["length"] if is_loop else 1)
    return total


def _flops_of(equation: Any) -> float:
    name, out = equation.primitive.name, math.prod(equation.outvars[0].aval.shape) if equation.outvars else 0
    if name == "dot_general":
        (contracted, _), _ = equation.params["dimension_numbers"]
        return 2.0 * out * math.prod(equation.invars[0].aval.shape[axis] for axis in contracted)
    if name == "conv_general_dilated":
        kernel, spec = equation.invars[1].aval.shape, equation.params["dimension_numbers"].rhs_spec
        taps = math.prod(kernel[axis] for axis in spec[1:])
        return 2.0 * out * taps / math.prod(equation.params["lhs_dilation"])
    return 0.0
