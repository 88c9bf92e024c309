"""How evaluations compare an image with a text: the inner product of two embeddings, or token by token.

`similarity` of an instance is "pooled", "token_wise" (FILIP, arXiv 2111.07783: see `losses.token_wise`), or "auto": token_wise
where the run's objective has that head and trains no pooled embeddings. Token-wise a query asks with its own tokens: an image that
looks for its text scores other numbers than the text that looks for its image.

The tokens of a whole set are held, and of the similarities of tokens one block at a time.
"""
from collections.abc import Callable
import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np

from mcd_jax.config.keys import Key

CHOICES = ("auto", "pooled", "token_wise")
KEY = Key("str", "auto", "pooled | token_wise | auto: token_wise where the objective trains no pooled embeddings")
HEAD = "token_wise"
BLOCK_FLOATS = 2 ** 22   # similarities of tokens that are held at a time, at most, while a block has several queries
_STEP = 4                # blocks of shorter texts have fewer tokens, a multiple of this


@dataclasses.dataclass(frozen=True)
class Tokens:
    """The tokens of n images or texts; some rows of it are taken as of an array."""
    tokens: np.ndarray   # (n, N, E) float32, unit
    weight: np.ndarray   # (n, N) float32, of each in the mean over a query's
    found: np.ndarray    # (n, N) bool, which of a candidate's may be found

    def __len__(self):
        return len(self.tokens)

    def __getitem__(self, keep):
        return Tokens(self.tokens[keep], self.weight[keep], self.found[keep])


def check(similarity: str, instance: str) -> None:
    """Raises ValueError unless `similarity` is one of CHOICES."""
    if similarity not in CHOICES:
        raise ValueError(f"config.evals.{instance}.similarity={similarity!r} must be one of {', '.join(CHOICES)}")


def using(embed: Callable, similarity: str, instance: str) -> Callable:
    """The function that embeds for this similarity: `embed` itself, or that of the objective's head.

    Args:
      embed: `embedder.make_embed`'s, or any function, which is taken for pooled. similarity: one of CHOICES.

    Raises:
      ValueError: tokens of an objective that compares none.
    """
    if similarity == "pooled" or (similarity == "auto" and getattr(embed, "pooled", True)):
        return embed
    heads = sorted(getattr(embed, "heads", ()))
    if HEAD not in heads:
        raise ValueError(f"config.evals.{instance}.similarity={similarity!r} needs an objective with the head {HEAD!r}: this one "
                         f"has {', '.join(heads) or 'none'}")
    return embed.head(HEAD)


def rows_of(found: dict, kind: str) -> np.ndarray | Tokens:
    """What is compared of "image" or "text" rows, as `rows.encode` gives them by the function of `using`: (n, D), or `Tokens`."""
    if f"{kind}_tokens" not in found:
        return found[kind]
    tokens = found[f"{kind}_tokens"]
    shape = tokens.shape[:2]
    weight = found.get(f"{kind}_weight", np.full(shape, 1 / shape[1], np.float32))
    seen = found[f"{kind}_found"] > 0.5 if f"{kind}_found" in found else np.ones(shape, bool)
    used = np.flatnonzero((seen | (weight > 0)).any(0))   # padding that all rows have is left out
    most = used[-1] + 1 if len(used) else 1
    return Tokens(tokens[:, :most], weight[:, :most], seen[:, :most])


def scores(queries: np.ndarray | Tokens, candidates: np.ndarray | Tokens) -> np.ndarray:
    """Similarities (Q, C) float32 of queries with candidates: inner products, or the mean of the best match of a query's tokens."""
    if not isinstance(queries, Tokens):
        return queries @ candidates.T
    out = np.zeros((len(queries), len(candidates)), np.float32)
    lengths = np.max(np.where(candidates.found, np.arange(1, candidates.found.shape[1] + 1)[None], 1), axis=1)
    order = np.argsort(lengths, kind="stable")
    side = max(1, int((BLOCK_FLOATS / (queries.tokens.shape[1] * candidates.tokens.shape[1])) ** 0.5))
    for at in range(0, len(order), side):
        some = order[at:at + side]
        other, most = _padded(candidates[some], min(side, len(order))), -(-lengths[some[-1]] // _STEP) * _STEP
        for start in range(0, len(out), side):
            own = _padded(queries[start:start + side], min(side, len(out)))
            block = _block()(own.tokens, own.weight, other.tokens[:, :most], other.found[:, :most])
            out[start:start + side, some] = np.asarray(block)[:len(out) - start, :len(some)]
    return out


def grouped(queries: np.ndarray | Tokens, candidates: np.ndarray | Tokens, owner: np.ndarray, chunk: int = 1024) -> np.ndarray:
    """Mean similarities (Q, G) of queries with the candidates of each group; owner: (C,) the group of each, of 0 ... G - 1 all."""
    order = np.argsort(owner, kind="stable")
    _, first, sizes = np.unique(owner[order], return_index=True, return_counts=True)
    parts = [np.add.reduceat(scores(queries[start:start + chunk], candidates)[:, order], first, axis=1) / sizes[None]
             for start in range(0, len(queries), chunk)]
    return np.concatenate(parts) if parts else np.zeros((0, len(first)))


def distances(texts: Tokens, images: Tokens) -> np.ndarray:
    """2 - (image to text + text to image) of each text with its images, (n, V) float64: as |a - b|^2 of unit vectors.

    images: of n * V rows, those of a text together.
    """
    looks, found = len(images) // len(texts), []
    for i in range(len(texts)):
        one, own = texts[i:i + 1], images[i * looks:(i + 1) * looks]
        found.append(2 - scores(one, own)[0].astype(np.float64) - scores(own, one)[:, 0])
    return np.stack(found)


def _padded(some, size):
    """Rows of zeros behind, so that all blocks have one shape."""
    return Tokens(*(np.pad(part, [(0, size - len(part))] + [(0, 0)] * (part.ndim - 1)) for part in (
        some.tokens, some.weight, some.found)))


@functools.cache
def _block():
    def block(own, weight, other, found):
        product = jnp.einsum("qnd,kmd->qnkm", own, other, precision=jax.lax.Precision.HIGHEST)
        return jnp.einsum("qnk,qn->qk", jnp.max(jnp.where(found[None, None], product, -1e30), axis=3), weight,
                          precision=jax.lax.Precision.HIGHEST)
    return jax.jit(block)
