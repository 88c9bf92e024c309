"""Tiles of the pairs of a batch, rows x keys, visited on a ring of devices: what sums over all pairs are made of.

A device holds its rows and its keys as tiles (`tiles`, `untile`) and visits every pair of tiles once (`fold`): its own keys first,
then those of every other device, which travel one hop at a time with what they have to collect. `on_mesh` runs all that under the
ambient mesh; without one `axes` is empty, and there is one hop and no transfer.

A visit is given a row tile and a key tile, dicts of arrays with leaves (R, ...) and (K, ...); each also has "number", int32, the
places of its rows in the global batch, and "real", False for padding, where there is some.
"""
from collections.abc import Callable
from functools import partial, reduce
import math
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from mcd_jax.sharding import mesh as mesh_lib

NEVER = -1e30   # the logit of a pair that is left out; finite, so that nothing turns into NaN


# ---- tiles -----------------------------------------------------------------------------------------------------------------------

def tiles(axes: tuple[str, ...], tile: int, **arrays: Any) -> dict:
    """This device's rows, trees of (b, ...), as (tiles, rows of a tile, ...) of at most `tile` rows, with "number" and "real"."""
    size = len(jax.tree.leaves(arrays)[0])
    count = -(-size // tile)
    tile = -(-size // count)
    first = jax.lax.axis_index(axes) * size if axes else 0
    arrays = {**arrays, "number": first + jnp.arange(size, dtype=jnp.int32)}
    if count * tile != size:
        arrays["real"] = arrays["number"] >= 0   # padded with False

    def cut(a):
        return jnp.pad(a, [(0, count * tile - size)] + [(0, 0)] * (a.ndim - 1)).reshape(count, tile, *a.shape[1:])
    return jax.tree.map(cut, arrays)


def untile(a: jax.Array, size: int) -> jax.Array:
    """(tiles, rows of a tile, ...) -> (size, ...), without the padding."""
    return a.reshape(-1, *a.shape[2:])[:size]


def real(row: dict, key: dict) -> jax.Array | None:
    """Which pairs of a tile are not padding, bool that broadcasts to (R, K); None: all."""
    flags = [row["real"][:, None]] if "real" in row else []
    flags += [key["real"][None, :]] if "real" in key else []
    return reduce(jnp.logical_and, flags) if flags else None


def where(condition: jax.Array | None, value: jax.Array, other: float) -> jax.Array:
    """jnp.where, of which a condition None takes `value`."""
    return value if condition is None else jnp.where(condition, value, other)


def float32(tree: Any) -> Any:
    """The arrays of a tree in float32."""
    return jax.tree.map(lambda a: a.astype(jnp.float32), tree)


def add(a: Any, b: Any) -> Any:
    """The sums of the arrays of two trees."""
    return jax.tree.map(jnp.add, a, b)


def nothing(*_: Any) -> tuple:
    """What a tile collects that collects nothing."""
    return ()


# ---- sums of exponentials --------------------------------------------------------------------------------------------------------

def no_exps(tile: dict) -> tuple[jax.Array, jax.Array]:
    """(largest logit, sum of exp(logit - largest)) of no logits, each like the tile's "number"."""
    zero = jnp.zeros(tile["number"].shape, jnp.float32)
    return zero + NEVER, zero


def add_exps(exps: tuple, logits: jax.Array, axis: int) -> tuple[jax.Array, jax.Array]:
    """`exps` with the logits (R, K) of a tile, summed along an axis."""
    top, total = exps
    new = jnp.maximum(top, jnp.max(logits, axis))
    return new, total * jnp.exp(top - new) + jnp.sum(jnp.exp(logits - jnp.expand_dims(new, axis)), axis)


def merge_exps(a: tuple, b: tuple) -> tuple[jax.Array, jax.Array]:
    """What two devices summed, together."""
    top = jnp.maximum(a[0], b[0])
    return top, a[1] * jnp.exp(a[0] - top) + b[1] * jnp.exp(b[0] - top)


def log_of_exps(exps: tuple) -> jax.Array:
    """The log-sum-exp."""
    top, total = exps
    return top + jnp.log(jnp.maximum(total, 1e-30))


# ---- all tiles: rows x keys on one device, and the ring of devices ---------------------------------------------------------------

def fold(axes: tuple[str, ...], visit: Callable, rows: dict, keys: dict, start_row: Callable, start_key: Callable, total: Any,
         merge: Callable) -> tuple[Any, Any, Any]:
    """Visits all pairs of tiles of the global batch.

    Args:
      axes: mesh axes that carry the batch; () on one device.
      visit: (row tile, key tile, own, kept, total) -> (own, kept, total): what a row tile, a key tile and the whole collect.
      rows, keys: tiles of this device, trees of (tiles, tile, ...).
      start_row, start_key: tiles -> what they begin with, leaves (..., tile, ...) like their "number".
      total: scalars.
      merge: adds up what a key tile collected on two devices.

    Returns:
      (own, kept, total) of this device's rows, this device's keys (collected everywhere), and this device's pairs.
    """
    def over_rows(key, carry, number):
        own, kept, total = carry
        row, mine = jax.tree.map(lambda a: a[number], (rows, own))
        mine, kept, total = visit(row, key, mine, kept, total)
        return (jax.tree.map(lambda a, b: a.at[number].set(b), own, mine), kept, total), None

    def over_keys(carry, key):
        own, total = carry
        numbers = jnp.arange(len(rows["number"]))
        (own, kept, total), _ = jax.lax.scan(partial(over_rows, key), (own, vary(axes, start_key(key)), total), numbers)
        return (own, total), kept

    own, total = vary(axes, (start_row(rows), total))
    if not axes:
        (own, total), kept = jax.lax.scan(over_keys, (own, total), keys)
        return own, kept, total

    devices = math.prod(jax.lax.axis_size(axis) for axis in axes)
    send = partial(jax.tree.map, lambda a: jax.lax.ppermute(a, axes, [(i, (i + 1) % devices) for i in range(devices)]))

    def hop(carry, _):
        own, keys, kept, total = carry
        after, arrived = send(keys), send(kept)   # on their way while this block is visited
        (own, total), new = jax.lax.scan(over_keys, (own, total), keys)
        return (own, after, merge(arrived, new), total), None
    carry = own, keys, vary(axes, start_key(keys)), total
    (own, _, kept, total), _ = jax.lax.scan(hop, carry, length=devices)
    return own, send(kept), total


def travelling(transport: Any, keys: Any) -> Any:
    """Keys in the dtype in which they travel; None: their own."""
    return keys if transport is None else jax.tree.map(lambda a: a.astype(transport), keys)


def vary(axes: tuple[str, ...], constants: Any) -> Any:
    """Constants as the carry of a loop whose values differ between devices."""
    return jax.tree.map(lambda a: jax.lax.pcast(a, axes, to="varying"), constants) if axes else constants


def total(axes: tuple[str, ...], tree: Any) -> Any:
    """The sums over all devices."""
    return jax.lax.psum(tree, axes) if axes else tree


def on_mesh(local: Callable, split: tuple, whole: tuple, out: Any) -> Any:
    """local(axes, *split, *whole) on each device's part of `split`; `out` is a tree of "split" and "whole".

    Raises:
      ValueError: rows that the devices can't share evenly.
    """
    axes, devices = mesh_lib.ambient_batch_axes()
    if not axes:
        return local((), *split, *whole)
    for a in jax.tree.leaves(split):
        if len(a) % devices:
            raise ValueError(f"{len(a)} rows do not divide into {devices} devices ({', '.join(axes)})")
    place = {"split": PartitionSpec(axes), "whole": PartitionSpec()}
    in_specs = (*[place["split"]] * len(split), *[place["whole"]] * len(whole))
    return jax.shard_map(partial(local, axes), in_specs=in_specs, out_specs=jax.tree.map(place.get, out),
                         axis_names=set(axes))(*split, *whole)
