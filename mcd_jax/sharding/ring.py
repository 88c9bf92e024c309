"""Sums over all pairs of a batch whose memory does not grow with the batch: tiled logits, keys that travel round a ring of devices.

    logit_ij = scale * x_i . y_j + bias        x: B rows, y: C keys, both split over the devices

Nothing of size B x C is ever stored: a device holds one tile of logits at a time, and every pass computes them anew. Under an
ambient mesh (`jax.set_mesh`) each device keeps its rows, and its block of keys visits every other device, one hop at a time, with
what the keys have to collect (the sums of their columns, their gradient). A block is sent on while it is being used, and its sums
follow one hop later, so that transfers overlap with matmuls. Without a mesh, or on one device, there is one hop and no transfer.

`lse` gives log-sum-exps of rows and of keys from one pass over the logits, with pairs left out (`allow`) and with sums of logits
under soft targets (`target`). `pair_sum` sums any function of a row and a key. `nearest` finds the best key of every row.
Contrastive losses of several views, queues, label masks, pairwise losses and distillation are made of these.

The functions that they take are given a tile: `rows` and `keys` are trees with leaves (R, ...) and (K, ...), i (R, 1) and j (1, K)
the row numbers in the global batch. Define them at module level: a new function is a new trace.
"""
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from mcd_jax.sharding import tiling
from mcd_jax.sharding.tiling import NEVER

TILE = 1024      # 4 MiB of logits: fits the vector memory of a TPU core with its operands


class Spec(NamedTuple):
    """What stays fixed while tracing."""
    allow: Callable | None = None      # (rows, keys, i, j) -> bool (R, K): pairs that enter the log-sum-exps
    target: Callable | None = None     # (rows, keys, i, j) -> two f32 (R, K): weights in a row's and in a key's sum of logits
    factor: Callable | None = None     # (rows, keys, i, j) -> f32 (R, K): by what the inner products are multiplied; no gradient
    columns: bool = True               # False: leave out the sums of the keys, which saves their exponentials
    tile: int = 0                      # rows and keys of a tile, at most; 0: TILE
    transport: Any = None              # dtype of travelling keys; None: their own
    own: str = ""                      # under this name of `keys`, a dict, the functions find y itself: it travels once
    precision: Any = jax.lax.Precision.HIGHEST


class Sums(NamedTuple):
    """Per row (B,) and per key (C,), float32: log-sum-exp of the allowed logits, and sum of weight * logit (0 without a target)."""
    row_lse: Any
    key_lse: Any
    row_target: Any
    key_target: Any


def off_diagonal(rows, keys, i, j):
    """All keys but a row's own."""
    return i != j


def lse(x, y, scale, bias=0.0, row_aux=(), key_aux=(), **spec):
    """The `Sums` of all pairs, from one pass over the logits; a second pass gives the gradient.

    Args:
      x, y: (B, D), (C, D), any float type; computed in float32 at the highest matmul precision.
      scale, bias: ().
      row_aux, key_aux: trees of (B, ...) and (C, ...) arrays for the functions of `spec`; no gradient.
      **spec: fields of `Spec`: allow, target, factor, columns, tile, transport, own, precision.

    A row without any allowed pair gets about `NEVER`, and no gradient.
    """
    return _lse(Spec(**spec), x, y, jnp.float32(scale), jnp.float32(bias), *jax.lax.stop_gradient((row_aux, key_aux)))


def pair_sum(fn, rows, keys, shared=(), row_aux=(), key_aux=(), **spec):
    """Sum over all pairs of `fn`, () float32. When it is differentiated, value and gradient come from one pass over the pairs.

    Args:
      fn: (row, key, shared, row_aux, key_aux, i, j) -> (R, K), differentiable in the first three.
      rows, keys: trees of (B, ...) and (C, ...) float arrays.
      shared: tree of arrays that all pairs read, such as scale and bias.
      row_aux, key_aux: trees of (B, ...) and (C, ...) arrays of any type; no gradient.
      **spec: tile, transport.
    """
    return _pair_sum(Spec(**spec), fn, rows, keys, shared, *jax.lax.stop_gradient((row_aux, key_aux)))


def nearest(x, y, **spec):
    """For each row of x (B, D) the number of the key of y (C, D) with the largest inner product, int32 (B,); a tie: the first."""
    spec, last = Spec(**spec), jnp.iinfo(jnp.int32).max

    def local(axes, x, y):
        def visit(row, key, own, kept, total):
            top, number = own
            score = tiling.where(tiling.real(row, key), _similarity(spec, row, key), -jnp.inf)
            here = jnp.max(score, axis=1)
            first = jnp.min(jnp.where(score == here[:, None], key["number"][None, :], last), axis=1)
            better = (here > top) | ((here == top) & (first < number))
            return (jnp.where(better, here, top), jnp.where(better, first, number)), kept, total

        rows, keys = _tiles(axes, spec, x=x), _tiles(axes, spec, y=_travelling(spec, y))
        start = lambda tile: (jnp.full(tile["number"].shape, -jnp.inf), jnp.full(tile["number"].shape, last))
        own, _, _ = tiling.fold(axes, visit, rows, keys, start, tiling.nothing, (), tiling.nothing)
        return tiling.untile(own[1], len(x))
    return tiling.on_mesh(local, jax.lax.stop_gradient((x, y)), (), "split")


# ============================================================================================================================
# Log-sum-exp: one pass for the values, one for the gradient
# ============================================================================================================================

@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _lse(spec, x, y, scale, bias, row_aux, key_aux):
    def local(axes, x, y, row_aux, key_aux, scale, bias):
        def visit(row, key, own, kept, total):
            raw = scale * _scaled(spec, row, key, _similarity(spec, row, key)) + bias
            logits = tiling.where(_allowed(spec, row, key), raw, NEVER)
            row_weights, key_weights = _targets(spec, row, key)
            own = _gather(own, logits, raw, row_weights, 1)
            return own, _gather(kept, logits, raw, key_weights, 0) if spec.columns else kept, total

        def start(tile):
            return *tiling.no_exps(tile), jnp.zeros(tile["number"].shape, jnp.float32)

        def finish(sums, n):
            *exps, target = (tiling.untile(a, n) for a in sums)
            return tiling.log_of_exps(exps), target

        rows = _tiles(axes, spec, x=x, aux=row_aux)
        keys = _tiles(axes, spec, y=_travelling(spec, y), aux=key_aux)
        own, kept, _ = tiling.fold(axes, visit, rows, keys, start, start, (), _merge)
        (row_lse, row_target), (key_lse, key_target) = finish(own, len(x)), finish(kept, len(y))
        return Sums(row_lse, key_lse, row_target, key_target)
    return tiling.on_mesh(local, (x, y, row_aux, key_aux), (scale, bias), Sums(*["split"] * 4))


def _lse_forward(spec, x, y, scale, bias, row_aux, key_aux):
    out = _lse(spec, x, y, scale, bias, row_aux, key_aux)
    return out, (x, y, scale, bias, row_aux, key_aux, out.row_lse, out.key_lse)


def _lse_backward(spec, residuals, cotangents):
    x, y, scale, bias, row_aux, key_aux, row_lse, key_lse = residuals

    def local(axes, x, y, row_aux, key_aux, row_lse, key_lse, d, scale, bias):
        def visit(row, key, own, kept, total):
            allowed = _allowed(spec, row, key)
            logits = tiling.where(allowed, scale * _scaled(spec, row, key, _similarity(spec, row, key)) + bias, NEVER)
            d = row["d"][:, None] * jnp.exp(logits - row["lse"][:, None])
            if spec.columns:
                d = d + key["d"][None, :] * jnp.exp(logits - key["lse"][None, :])
            d = tiling.where(allowed, d, 0.0)
            if spec.target is not None:
                row_weights, key_weights = _targets(spec, row, key)
                d = d + row["d_target"][:, None] * row_weights + key["d_target"][None, :] * key_weights
            of_product = _scaled(spec, row, key, d)
            own = own + jnp.einsum("rk,kd->rd", of_product, tiling.float32(key["y"]), precision=spec.precision)
            kept = kept + jnp.einsum("rk,rd->kd", of_product, tiling.float32(row["x"]), precision=spec.precision)
            return own, kept, total + jnp.sum(d)

        def start(tile):
            return jnp.zeros((*tile["number"].shape, x.shape[-1]), jnp.float32)

        rows = _tiles(axes, spec, x=x, aux=row_aux, lse=row_lse, d=d.row_lse, d_target=d.row_target)
        keys = _tiles(axes, spec, y=_travelling(spec, y), aux=key_aux, lse=key_lse, d=d.key_lse, d_target=d.key_target)
        own, kept, d_bias = tiling.fold(axes, visit, rows, keys, start, start, jnp.float32(0), jnp.add)
        own, kept = tiling.untile(own, len(x)), tiling.untile(kept, len(y))
        d_scale, d_bias = tiling.total(axes, (jnp.sum(tiling.float32(x) * own), d_bias))
        return (scale * own).astype(x.dtype), (scale * kept).astype(y.dtype), d_scale, d_bias

    split = (x, y, row_aux, key_aux, row_lse, key_lse, cotangents)
    return *tiling.on_mesh(local, split, (scale, bias), ("split", "split", "whole", "whole")), None, None


_lse.defvjp(_lse_forward, _lse_backward)


def _gather(sums, logits, raw, weights, axis):
    """Adds a tile to (largest logit, sum of exp(logit - largest), sum of weight * logit) along an axis."""
    *exps, target = sums
    return *tiling.add_exps(exps, logits, axis), target if weights is None else target + jnp.sum(weights * raw, axis)


def _merge(a, b):
    return *tiling.merge_exps(a[:2], b[:2]), a[2] + b[2]


# ============================================================================================================================
# Sum of a function of pairs: value and gradient from one pass
# ============================================================================================================================

@partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _pair_sum(spec, fn, rows, keys, shared, row_aux, key_aux):
    def local(axes, rows, keys, row_aux, key_aux, shared):
        def visit(row, key, own, kept, total):
            return own, kept, total + _tile_sum(fn, row, key, row["x"], key["y"], shared)
        tiles = _tiles(axes, spec, x=rows, aux=row_aux), _tiles(axes, spec, y=_travelling(spec, keys), aux=key_aux)
        _, _, total = tiling.fold(axes, visit, *tiles, tiling.nothing, tiling.nothing, jnp.float32(0), tiling.nothing)
        return tiling.total(axes, total)
    return tiling.on_mesh(local, (rows, keys, row_aux, key_aux), (shared,), "whole")


def _pair_sum_forward(spec, fn, rows, keys, shared, row_aux, key_aux):
    def local(axes, rows, keys, row_aux, key_aux, shared):
        here = tiling.vary(axes, shared)   # so that its gradient is summed over devices once, at the end

        def visit(row, key, own, kept, total):
            value, pull = jax.vjp(partial(_tile_sum, fn, row, key), tiling.float32(row["x"]), tiling.float32(key["y"]), here)
            d_row, d_key, d_shared = pull(jnp.ones_like(value))
            return tiling.add(own, d_row), tiling.add(kept, d_key), tiling.add(total, (value, d_shared))

        def start(name):
            return lambda tile: jax.tree.map(lambda a: jnp.zeros(a.shape, jnp.float32), tile[name])
        tiles = _tiles(axes, spec, x=rows, aux=row_aux), _tiles(axes, spec, y=_travelling(spec, keys), aux=key_aux)
        nought = jnp.float32(0), jax.tree.map(lambda a: jnp.zeros(a.shape, a.dtype), shared)
        own, kept, total = tiling.fold(axes, visit, *tiles, start("x"), start("y"), nought, tiling.add)
        back = lambda d, like: jax.tree.map(lambda g, a: tiling.untile(g, len(a)).astype(a.dtype), d, like)
        value, d_shared = tiling.total(axes, total)
        return value, (back(own, rows), back(kept, keys), d_shared)
    out = ("whole", ("split", "split", "whole"))
    return tiling.on_mesh(local, (rows, keys, row_aux, key_aux), (shared,), out)


def _pair_sum_backward(spec, fn, gradients, cotangent):
    return *jax.tree.map(lambda g: (cotangent * g.astype(jnp.float32)).astype(g.dtype), gradients), None, None


_pair_sum.defvjp(_pair_sum_forward, _pair_sum_backward)


def _tile_sum(fn, row, key, x, y, shared):
    losses = fn(x, y, shared, row["aux"], key["aux"], row["number"][:, None], key["number"][None, :])
    return jnp.sum(tiling.where(tiling.real(row, key), losses, 0.0))


# ============================================================================================================================
# A tile of pairs
# ============================================================================================================================

def _similarity(spec, row, key):
    return jnp.einsum("rd,kd->rk", tiling.float32(row["x"]), tiling.float32(key["y"]), precision=spec.precision)


def _allowed(spec, row, key):
    """Which pairs of a tile enter the log-sum-exps; None: all."""
    real = tiling.real(row, key)
    if spec.allow is None:
        return real
    allowed = spec.allow(*_aux(spec, row, key))
    return allowed if real is None else allowed & real


def _targets(spec, row, key):
    """Weights of the logits of a tile in the sums of its rows and of its keys, or (None, None)."""
    if spec.target is None:
        return None, None
    weights = spec.target(*_aux(spec, row, key))
    return tuple(tiling.where(tiling.real(row, key), w, 0.0) for w in weights)


def _scaled(spec, row, key, values):
    """Values of a tile times the factors of its inner products."""
    if spec.factor is None:
        return values
    return values * spec.factor(*_aux(spec, row, key))


def _aux(spec, row, key):
    """What the functions of `spec` are given for a tile."""
    keys = {**key["aux"], spec.own: key["y"]} if spec.own else key["aux"]
    return row["aux"], keys, row["number"][:, None], key["number"][None, :]


def _tiles(axes, spec, **arrays):
    return tiling.tiles(axes, spec.tile or TILE, **arrays)


def _travelling(spec, y):
    return tiling.travelling(spec.transport, y)
