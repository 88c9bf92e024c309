"""Floating-point operations of any traced function, counted from its jaxpr: every method, every tower, forward and backward."""
import math

import jax
from jax.extend import core


def count(fn, *args):
    """FLOPs of the matrix products and convolutions of `fn(*args)`, 2 per multiply-add, over the global shapes.

    A scan counts its body once per iteration (the compiler's own count takes it once). Parts whose result is not used don't
    count. Recomputation by `jax.checkpoint` does, so trace without it for the FLOPs of the model itself.

    Args:
      fn: a jax function; args: arrays or ShapeDtypeStructs.
    """
    jaxpr = jax.make_jaxpr(fn)(*args).jaxpr
    return _jaxpr(jaxpr, [True] * len(jaxpr.outvars))


def _jaxpr(jaxpr, used):
    """FLOPs of the equations that the used outputs need: one pass from the last to the first."""
    needed = {v for v, keep in zip(jaxpr.outvars, used, strict=True) if keep and not isinstance(v, core.Literal)}
    total = 0
    for eqn in reversed(jaxpr.eqns):
        keep = [v in needed for v in eqn.outvars]
        if not any(keep) and not eqn.effects:
            continue
        total += _equation(eqn, keep)
        needed |= {v for v in eqn.invars if not isinstance(v, core.Literal)}
    return total


def _equation(eqn, keep):
    name, params = eqn.primitive.name, eqn.params
    if name == "dot_general":
        (contract, _), _ = params["dimension_numbers"]
        lhs = eqn.invars[0].aval.shape
        return 2 * math.prod(eqn.outvars[0].aval.shape) * math.prod(lhs[i] for i in contract)
    if name == "conv_general_dilated":
        return _convolution(eqn)
    times = params["length"] if name == "scan" else 1
    inner = [p for p in jax.tree.leaves(list(params.values()), is_leaf=_is_jaxpr) if _is_jaxpr(p)]
    if name == "cond":
        return max(_jaxpr(_open(j), [True] * len(_open(j).outvars)) for j in inner)
    if name == "shard_map":
        times = params["mesh"].size
    same = name in ("jit", "pjit", "remat2", "checkpoint", "closed_call", "shard_map")   # its outputs are the body's
    return times * sum(_jaxpr(j, keep if same and len(j.outvars) == len(keep) else [True] * len(j.outvars))
                       for j in map(_open, inner))


def _convolution(eqn):
    """Multiply-adds of a convolution: of its dilated input only the positions that hold data count."""
    spec = eqn.params["dimension_numbers"]
    out, kernel = eqn.outvars[0].aval.shape, eqn.invars[1].aval.shape
    full = 2 * math.prod(out) * math.prod(kernel[i] for i in spec.rhs_spec[1:])
    return full / math.prod(eqn.params["lhs_dilation"]) / math.prod(eqn.params["rhs_dilation"])


def _is_jaxpr(value):
    return isinstance(value, (core.Jaxpr, core.ClosedJaxpr))


def _open(value):
    return value.jaxpr if isinstance(value, core.ClosedJaxpr) else value
