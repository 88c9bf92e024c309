"""Cooperative games: Shapley values and the interaction of a coalition, exact for few players and sampled for many.

A game is a pure function f(masks (S, n) bool) -> (S,) float: the worth of each subset of n players, True for those that take part.
With N the players, the interaction of a coalition S is what S is worth as one player, beyond its members' worths as single ones:

    I([S]) = phi([S] | N \\ S + [S]) - sum_{i in S} phi(i | N \\ S + i)
           = E_T [ f(T + S) - sum_{i in S} f(T + i) + (|S| - 1) f(T) ]

phi is the Shapley value, T a subset of N \\ S: first its size, uniform in 0 .. n - |S|, then the subset, uniform among those of the
size. For two players this is the Shapley interaction index of Grabisch and Roubens; FOR THREE AND MORE IT IS NOT, so libraries of
that index give other numbers. A player that never changes f changes no interaction of others: padding needs no special care.

The definition is that of LOUPE (Li et al. 2022, arXiv 2208.02515) as far as it can be known, see `loupe.py`.
"""
from collections.abc import Callable, Sequence
import math

import jax
import jax.numpy as jnp
import numpy as np

MOST = 16   # players of an exact game: 65,536 subsets


def subsets(n: int) -> np.ndarray:
    """All subsets of n players, bool (2**n, n); row k holds the binary digits of k, the lowest first.

    Raises:
      ValueError: more than MOST players.
    """
    if not 1 <= n <= MOST:
        raise ValueError(f"an exact game of {n} players has 2**{n} subsets: it takes 1 to {MOST} players, else sample it")
    return (np.arange(2 ** n)[:, None] >> np.arange(n)[None]) & 1 == 1


def shapley_weights(n: int) -> np.ndarray:
    """float64 (n, 2**n): the Shapley values are these times f(subsets(n))."""
    masks = subsets(n)
    size = masks.sum(1)
    joins = np.array([math.factorial(s - 1) * math.factorial(n - s) / math.factorial(n) if s else 0.0 for s in range(n + 1)])
    stays = np.array([math.factorial(s) * math.factorial(n - s - 1) / math.factorial(n) if s < n else 0.0 for s in range(n + 1)])
    return np.where(masks, joins[size][:, None], -stays[size][:, None]).T


def interaction_weights(n: int, coalition: Sequence[int]) -> np.ndarray:
    """float64 (2**n,): the interaction of `coalition`, a sequence of players, is these times f(subsets(n)).

    Raises:
      ValueError: a coalition that is empty, repeats a player or names one that isn't there.
    """
    members = [int(i) for i in coalition]
    if not members or len(set(members)) < len(members) or not 0 <= min(members) <= max(members) < n:
        raise ValueError(f"coalition {tuple(members)} must be different players out of 0 .. {n - 1}, at least one")
    masks, whole, rest = subsets(n), sum(1 << i for i in members), n - len(members)
    outside = np.flatnonzero(~masks[:, members].any(1))   # the subsets T, as numbers
    weight = np.array([1 / ((rest + 1) * math.comb(rest, int(size))) for size in masks[outside].sum(1)])
    result = np.zeros(len(masks))
    result[outside | whole] += weight
    for i in members:
        result[outside | 1 << i] -= weight
    result[outside] += (len(members) - 1) * weight
    return result


def interaction(f: Callable, n: int, coalition: Sequence[int]) -> jax.Array:
    """The exact interaction () of a coalition, a sequence of players."""
    return jnp.asarray(interaction_weights(n, coalition), jnp.float32) @ f(jnp.asarray(subsets(n)))


def pair_weights(rows: int, columns: int) -> np.ndarray:
    """float64 (rows, columns, 2**n): of the coalitions of one row and one column player each; n = rows + columns, rows first."""
    n = rows + columns
    return np.array([[interaction_weights(n, (i, rows + j)) for j in range(columns)] for i in range(rows)])


def draw(key: jax.Array, coalition: jax.Array, samples: int, every: bool = False) -> tuple[jax.Array, jax.Array]:
    """The subsets that a sampled interaction looks at, and their weights: sum over axis 1 of weight * f is one unbiased sample.

    Every player outside joins T with the same probability t, which is uniform in [0, 1]: that makes the size of T uniform, and T
    uniform among the subsets of its size.

    Args:
      key: a typed random key.
      coalition: bool (n,), which may be traced, or batched with `jax.vmap`.
      samples: K.
      every: look at all members (n + 2 subsets per sample), else at one of them, drawn, that stands for |S| (3 subsets).

    Returns:
      masks bool (K, 3 or n + 2, n), weights f32 (3 or n + 2,).
    """
    n = coalition.shape[0]
    noise = jax.random.uniform(key, (samples, 2 * n + 1))   # one draw: several cost seconds of compilation
    share, join, order = noise[:, :1], noise[:, 1:n + 1], noise[:, n + 1:]
    outside = (join < share) & ~coalition[None]
    size = jnp.sum(coalition).astype(jnp.float32)
    if every:
        alone = jnp.broadcast_to(jnp.eye(n, dtype=bool)[None], (samples, n, n))
        weights = jnp.concatenate([jnp.ones((1,)), -coalition.astype(jnp.float32), size[None] - 1])
    else:
        member = jnp.argmax(jnp.where(coalition[None], order, -1.0), axis=1)
        alone = (jnp.arange(n)[None] == member[:, None])[:, None]
        weights = jnp.stack([jnp.float32(1), -size, size - 1])
    together = jnp.broadcast_to(coalition[None, None], (samples, 1, n))
    added = jnp.concatenate([together, alone, jnp.zeros((samples, 1, n), bool)], axis=1)
    return outside[:, None] | added, weights * (size > 0)


def sampled(f: Callable, coalition: jax.Array, key: jax.Array, samples: int, every: bool = False, chunk: int = 0) -> jax.Array:
    """An unbiased estimate () of the interaction of `coalition`, bool (n,); its error falls with 1 / sqrt(samples).

    Args:
      every: see `draw`.
      chunk: samples that f sees at once, a divisor of `samples`; 0: all. It changes nothing but memory.
    """
    masks, weights = draw(key, coalition, samples, every)
    return jnp.mean(worth(f, masks, chunk) @ weights)


def worth(f: Callable, masks: jax.Array, chunk: int = 0) -> jax.Array:
    """f of masks (K, V, n), `chunk` of the K at once: (K, V).

    Raises:
      ValueError: `chunk` doesn't divide K.
    """
    count, looks, n = masks.shape
    chunk = chunk or count
    if count % chunk:
        raise ValueError(f"chunk={chunk} must divide the {count} samples")
    def some(part):
        return f(part.reshape(-1, n)).reshape(chunk, looks)
    if chunk == count:
        return some(masks)
    return jax.lax.map(some, masks.reshape(-1, chunk, looks, n)).reshape(count, looks)
