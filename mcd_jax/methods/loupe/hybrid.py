"""Labels that come from an estimator where it is sure of itself, and else from playing the game, which the estimator learns from.

LOUPE's hybrid rule: with e uniform in [0, 1), a coalition whose uncertainty sigma is below e gets the estimate as its label; any
other is played by sampling, is labelled with what was found, and trains the estimator. In the first steps everything is to be
played. How many coalitions are played is fixed: the `quota` most uncertain of each group of rows, by sigma - e; who would be played
and isn't keeps the estimate, or in the first steps goes without a label. Groups, not devices, have quotas, so that the labels
depend neither on the mesh nor on the number of microbatches.
"""
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from mcd_jax.methods.loupe import game
from mcd_jax.objectives.objective import Tree
from mcd_jax.sharding.microbatch import microbatched


class Rule(NamedTuple):
    samples: int         # K of each coalition that is played
    every: bool          # see `game.draw`
    chunk: int           # samples at once; 0: all
    quota: int           # coalitions played in each group; 0: all
    group: int           # rows of a group
    microbatches: int


class Labels(NamedTuple):
    """Arrays (B, I) over the I coalitions of each row, in standard units: less the mean, over the spread that `labels` is given."""
    label: jax.Array     # the estimate, or what was played where it was: bit for bit
    known: jax.Array     # bool: whether there is a label
    value: jax.Array     # what was played, 0 elsewhere
    played: jax.Array    # bool


def wanted(sigma: jax.Array, noise: jax.Array) -> jax.Array:
    """Which coalitions are to be played, bool: all but those with noise above sigma."""
    return ~(noise > sigma)


def labels(rule: Rule, worth: Callable, params: Tree, rows: Tree, coalition: jax.Array, there: jax.Array,
           estimate: jax.Array | None, sigma: jax.Array | None, key: jax.Array, warm: bool | jax.Array = False,
           mean: float | jax.Array = 0.0, spread: float | jax.Array = 1.0) -> Labels:
    """The labels of B * I coalitions. Nothing here is differentiated.

    Args:
      worth: (params, rows, masks bool (R, S, n)) -> f32 (R, S): the games of R rows.
      params, rows: what `worth` needs; rows is a dict of (B, ...) arrays.
      coalition: bool (B, I, n). there: bool (B, I), False where there is no such coalition.
      estimate, sigma: (B, I), the estimate in standard units; or None, then all is to be played.
      warm: bool (), whether these are the first steps, in which whole rows are played, as far as the quota goes.
    """
    params, rows, estimate, sigma = jax.lax.stop_gradient((params, rows, estimate, sigma))
    size, items, _ = coalition.shape
    noise = jax.random.uniform(key, (size, items + 1))
    noise, by_row = noise[:, :-1], noise[:, -1:]
    if sigma is None:
        need, urgency = there, jnp.broadcast_to(by_row, there.shape)
    else:
        need = there & (wanted(sigma, noise) | warm)
        urgency = jnp.where(warm, by_row, sigma - noise)
    given = {"rows": rows, "coalition": coalition, "need": need, "urgency": urgency}

    def part(params, _, given, keys):
        return {"rows": _play(rule, worth, params, given, keys)}

    def play():
        return microbatched(part, rule.microbatches, rule.group)(params, {}, given, jax.random.fold_in(key, 1))["rows"]

    def skip():
        return {"value": jnp.zeros((size, items)), "played": jnp.zeros((size, items), bool)}

    found = jax.lax.cond(jnp.any(need), play, skip)   # one predicate for all devices, or those that play would wait for ever
    played = found["played"]
    value = jnp.where(played, (found["value"] - mean) / spread, 0.0)
    if sigma is None:
        return Labels(value, played, value, played)
    return Labels(jnp.where(played, value, estimate), there & (played | ~jnp.asarray(warm)), value, played)


def _play(rule, worth, params, given, keys):
    """{"value", "played"} (b, I) of b rows in whole groups, with a key for each."""
    size, items, n = given["coalition"].shape
    groups = len(keys)
    own = size // groups * items
    quota = min(rule.quota or own, own)
    need = given["need"].reshape(groups, own)
    _, place = jax.lax.top_k(jnp.where(need, given["urgency"].reshape(groups, own), -jnp.inf), quota)
    take = jax.vmap(lambda x, at: x[at])
    played = take(need, place)
    coalition = take(given["coalition"].reshape(groups, own, n), place)
    chosen = jax.tree.map(lambda x: take(x.reshape(groups, size // groups, *x.shape[1:]), place // items), given["rows"])
    chosen = jax.tree.map(lambda x: x.reshape(groups * quota, *x.shape[2:]), chosen)
    each = jax.vmap(lambda key: jax.random.split(key, quota))(keys)
    draw = jax.vmap(jax.vmap(lambda key, mask: game.draw(key, mask, rule.samples, rule.every)))
    masks, weights = draw(each, coalition)
    masks = masks.reshape(groups * quota, *masks.shape[2:])
    found = jnp.einsum("rkv,rv->r", _worths(rule, worth, params, chosen, masks), weights.reshape(groups * quota, -1)) / rule.samples
    put = jax.vmap(lambda at, x: jnp.zeros(own, x.dtype).at[at].set(x))
    value = put(place, jnp.where(played, found.reshape(groups, quota), 0.0))
    return {"value": value.reshape(size, items), "played": put(place, played).reshape(size, items)}


def _worths(rule, worth, params, rows, masks):
    """f32 (R, K, V) of masks (R, K, V, n), `chunk` of the K at once."""
    count, samples, looks, n = masks.shape
    chunk = rule.chunk or samples

    def some(part):
        return worth(params, rows, part.reshape(count, chunk * looks, n)).reshape(count, chunk, looks)
    if chunk == samples:
        return some(masks)
    parts = jnp.moveaxis(masks.reshape(count, samples // chunk, chunk, looks, n), 1, 0)
    return jnp.moveaxis(jax.lax.map(some, parts), 0, 1).reshape(count, samples, looks)
