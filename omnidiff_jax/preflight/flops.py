"""Floating-point operations of matrix products in a traced program, loops counted as often as they run.

XLA's own analysis counts a loop's body once and sees nothing in a kernel; the traced program knows every scan's
length and every kernel's grid. What is recomputed by rematerialisation is in it; elementwise work is not counted.
"""

import math
from collections.abc import Sequence
from typing import Any

from jax.extend.core import ClosedJaxpr, Jaxpr, Literal


def matmul_flops(program: Any, trips: Sequence[float]) -> float:
    """Operations (a multiply-add is two) of all devices together.

    Args:
        program: a (closed) jaxpr.
        trips: rounds of the loops whose number is known only at run time, the outermost first; the last number stands
            for all loops further in.
    """
    jaxpr = program.jaxpr if isinstance(program, ClosedJaxpr) else program
    return sum(_equation(eqn, trips) for eqn in jaxpr.eqns)


def _equation(eqn: Any, trips: Sequence[float]) -> float:
    name, params = eqn.primitive.name, eqn.params
    if name == "dot_general":
        (contracted, _), _ = params["dimension_numbers"]
        shape = eqn.invars[0].aval.shape
        return 2.0 * math.prod(eqn.outvars[0].aval.shape) * math.prod(shape[axis] for axis in contracted)
    if name == "conv_general_dilated":
        kernel, numbers = eqn.invars[1].aval.shape, params["dimension_numbers"]
        taps = math.prod(kernel[axis] for axis in numbers.rhs_spec[2:]) * kernel[numbers.rhs_spec[1]]
        return 2.0 * math.prod(eqn.outvars[0].aval.shape) * taps
    if name == "cond":
        return max((matmul_flops(branch, trips) for branch in params["branches"]), default=0.0)
    if name == "while":
        known = _rounds(eqn)
        if known is None:
            return trips[0] * matmul_flops(params["body_jaxpr"], trips[1:] or trips)
        return known * matmul_flops(params["body_jaxpr"], trips)
    inner = sum(matmul_flops(value, trips) for value in _programs(params))
    if name == "scan":
        return params["length"] * inner
    if name == "pallas_call":
        return math.prod(params["grid_mapping"].grid) * inner
    if name == "shard_map":
        mesh = params["mesh"]
        manual = params.get("manual_axes") or mesh.axis_names
        return math.prod(dict(mesh.shape)[axis] for axis in manual) * inner
    return inner


def _rounds(eqn: Any) -> float | None:
    """Rounds of a while loop that counts from one literal to another; of another one None."""
    count = eqn.params["cond_nconsts"] + eqn.params["body_nconsts"]
    bounds = [v.val for v in eqn.invars[count:] if isinstance(v, Literal) and getattr(v.aval, "shape", None) == ()]
    integers = [int(b) for b in bounds if str(getattr(b, "dtype", type(b).__name__)).startswith("int")]
    return float(integers[1] - integers[0]) if len(integers) == 2 and integers[1] > integers[0] else None


def _programs(params: dict[str, Any]) -> list[Any]:
    values = [v for value in params.values() for v in (value if isinstance(value, (tuple, list)) else (value,))]
    return [v for v in values if isinstance(v, (Jaxpr, ClosedJaxpr))]
