"""A bank in an objective's memory: the embeddings of earlier steps, a ring whose newest rows take the place of the oldest.

It is one global bank on every topology: whole on each device, or with its rows split over those that carry the batch, by
config.sharding. Its size needn't be a multiple of the batch.
"""
import jax
import jax.numpy as jnp

from mcd_jax.losses import contrastive
from mcd_jax.losses.ssl import unit
from mcd_jax.objectives.objective import Tree


def directions(key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """Random unit rows f32 (..., D) of that shape, with which banks and queues start (He et al. 2020, MoCo's code)."""
    return unit(jax.random.normal(key, shape))


def start(key: jax.Array, size: int, dim: int) -> Tree:
    """{"rows": f32 (size, dim), "at": int32 (), where the next row goes}."""
    return {"rows": directions(key, (size, dim)), "at": jnp.int32(0)}


def push(bank: Tree, rows: jax.Array) -> Tree:
    """The bank with `rows` (B, D) from "at" on, round the end to the beginning; B is at most its size."""
    size = len(bank["rows"])
    where = (bank["at"] + jnp.arange(len(rows))) % size
    return {"rows": bank["rows"].at[where].set(rows.astype(bank["rows"].dtype)), "at": (bank["at"] + len(rows)) % size}


def nearest(bank: Tree, queries: jax.Array, implementation: str = "auto") -> jax.Array:
    """The unit row of the bank with the largest inner product with each query (B, D), f32 (B, D), without gradient.

    implementation: as the contrastive losses take it; as a ring no device holds B x size similarities.
    """
    queries, rows = jax.lax.stop_gradient((queries, bank["rows"]))
    return unit(rows[contrastive.nearest(queries, rows, implementation)])
