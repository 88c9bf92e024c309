"""Log-sum-exps over all pairs of a batch whose logits are any function of a row and a key; memory does not grow with the pairs.

A row may be more than a vector, such as the tokens of an image, and the logits that rows compare may differ from those that keys
compare. A function of a tile, (rows, keys, shared, row_aux, key_aux) -> (row logits (R, K), key logits (R, K)) float32, gives both
from one visit: trees with leaves (R, ...) and (K, ...) go in, `shared` is read by all pairs, and the aux trees have no gradient.

`lse` visits tiles as `ring` does: keys travel from device to device, one tile of logits is held at a time, and a second pass
computes it again and pulls the gradient back through the function. `matrices` makes both matrices whole, tile by tile; plain
autodiff goes through it. Define the function at module level: a new one is a new trace.
"""
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from mcd_jax.sharding import tiling
from mcd_jax.sharding.tiling import NEVER


def lse(fn: Callable, rows: Any, keys: Any, shared: Any = (), row_aux: Any = (), key_aux: Any = (), *, tile: int,
        transport: Any = None) -> tuple[jax.Array, jax.Array]:
    """log(sum_j exp(row logit_ij)) of each row and log(sum_i exp(key logit_ij)) of each key, (B,) and (C,) float32.

    Args:
      fn: the function of a tile, differentiable in rows, keys and shared.
      rows, keys: trees of (B, ...) and (C, ...) float arrays; the function gets them in float32.
      shared: tree of float arrays. row_aux, key_aux: trees of (B, ...) and (C, ...) arrays of any type; no gradient.
      tile: rows and keys of a tile, at most. transport: dtype in which keys travel; None: their own.

    Raises:
      ValueError: rows or keys that the devices of the ambient mesh can't share evenly.
    """
    return _lse(fn, tile, transport, rows, keys, shared, *jax.lax.stop_gradient((row_aux, key_aux)))


def matrices(fn: Callable, rows: Any, keys: Any, shared: Any = (), row_aux: Any = (), key_aux: Any = (), *,
             tile: int) -> tuple[jax.Array, jax.Array]:
    """The row logits and the key logits of all pairs, (B, C) float32 each, of which a device keeps its rows.

    Keys are gathered on every device. A tile is computed again for its gradient, so that nothing but the two matrices grows with
    the number of pairs. Arguments and errors as in `lse`.
    """
    def local(axes, rows, keys, row_aux, key_aux, shared):
        if axes:
            keys, key_aux = jax.tree.map(lambda a: jax.lax.all_gather(a, axes, tiled=True), (keys, key_aux))
        shared, size, count = tiling.vary(axes, shared), _length(rows), _length(keys)

        @jax.checkpoint
        def visit(row, key):
            return fn(*tiling.float32((row["x"], key["y"])), shared, row["aux"], key["aux"])
        row_tiles, key_tiles = tiling.tiles((), tile, x=rows, aux=row_aux), tiling.tiles((), tile, y=keys, aux=key_aux)
        both = jax.lax.map(lambda row: jax.lax.map(lambda key: visit(row, key), key_tiles), row_tiles)   # (tiles, tiles, R, K)
        return tuple(tiling.untile(a.swapaxes(1, 2).reshape(*a.shape[::2], -1), size)[:, :count] for a in both)
    return tiling.on_mesh(local, (rows, keys, *jax.lax.stop_gradient((row_aux, key_aux))), (shared,), ("split", "split"))


@partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2))
def _lse(fn, tile, transport, rows, keys, shared, row_aux, key_aux):
    def local(axes, rows, keys, row_aux, key_aux, shared):
        def visit(row, key, own, kept, total):
            of_rows, of_keys = _logits(fn, row, key, *tiling.float32((row["x"], key["y"])), shared)
            return tiling.add_exps(own, of_rows, 1), tiling.add_exps(kept, of_keys, 0), total

        tiles = (tiling.tiles(axes, tile, x=rows, aux=row_aux),
                 tiling.tiles(axes, tile, y=tiling.travelling(transport, keys), aux=key_aux))
        own, kept, _ = tiling.fold(axes, visit, *tiles, tiling.no_exps, tiling.no_exps, (), tiling.merge_exps)
        return tuple(tiling.untile(tiling.log_of_exps(exps), _length(of)) for exps, of in ((own, rows), (kept, keys)))
    return tiling.on_mesh(local, (rows, keys, row_aux, key_aux), (shared,), ("split", "split"))


def _lse_forward(fn, tile, transport, rows, keys, shared, row_aux, key_aux):
    sums = _lse(fn, tile, transport, rows, keys, shared, row_aux, key_aux)
    return sums, (rows, keys, shared, row_aux, key_aux, *sums)


def _lse_backward(fn, tile, transport, residuals, cotangents):
    rows, keys, shared, row_aux, key_aux, row_lse, key_lse = residuals

    def local(axes, rows, keys, row_aux, key_aux, row_lse, key_lse, d_rows, d_keys, shared):
        here = tiling.vary(axes, shared)   # so that its gradient is summed over devices once, at the end

        def visit(row, key, own, kept, total):
            (of_rows, of_keys), pull = jax.vjp(partial(_logits, fn, row, key), *tiling.float32((row["x"], key["y"])), here)
            d_row, d_key, d_shared = pull((row["d"][:, None] * jnp.exp(of_rows - row["lse"][:, None]),
                                           key["d"][None, :] * jnp.exp(of_keys - key["lse"][None, :])))
            return tiling.add(own, d_row), tiling.add(kept, d_key), tiling.add(total, d_shared)

        def start(name):
            return lambda tile: jax.tree.map(lambda a: jnp.zeros(a.shape, jnp.float32), tile[name])

        tiles = (tiling.tiles(axes, tile, x=rows, aux=row_aux, lse=row_lse, d=d_rows),
                 tiling.tiles(axes, tile, y=tiling.travelling(transport, keys), aux=key_aux, lse=key_lse, d=d_keys))
        nought = jax.tree.map(lambda a: jnp.zeros(a.shape, a.dtype), shared)
        own, kept, d_shared = tiling.fold(axes, visit, *tiles, start("x"), start("y"), nought, tiling.add)
        back = lambda d, like: jax.tree.map(lambda g, a: tiling.untile(g, len(a)).astype(a.dtype), d, like)
        return back(own, rows), back(kept, keys), tiling.total(axes, d_shared)
    split = (rows, keys, row_aux, key_aux, row_lse, key_lse, *cotangents)
    return *tiling.on_mesh(local, split, (shared,), ("split", "split", "whole")), None, None


_lse.defvjp(_lse_forward, _lse_backward)


def _logits(fn, row, key, x, y, shared):
    """Both logits of a tile; those of padding are NEVER, without gradient."""
    real = tiling.real(row, key)
    return tuple(tiling.where(real, logits, NEVER) for logits in fn(x, y, shared, row["aux"], key["aux"]))


def _length(tree):
    return len(jax.tree.leaves(tree)[0])
