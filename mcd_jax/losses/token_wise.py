"""Token-wise similarity and its contrastive loss: a patch looks for its best word, and a word for its best patch.

FILIP (Yao et al. 2021, arXiv 2111.07783, section 3.1), with unit tokens v_p of P patches and w_q of the valid ones of Q words:

    image to text  s_ij = mean over p of max over valid q of v_p . w_q
    text to image  t_ji = mean over valid q of max over p of v_p . w_q        not the transposed s
    loss = 1/2 [CE(scale * s) + CE(scale * t)]

What padding does differs between the paper and two released codes (`PADS`), and so do the losses. B x B x P x Q similarities are
never held: tiles of at most `TILE_FLOATS` of them are made one after another and leave two numbers for each pair, or on the ring
nothing but log-sum-exps. Gradients go through each token's best match alone; where several tie they share it.
"""
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from mcd_jax.losses import contrastive
from mcd_jax.sharding import ring_logits

PADS = ("masked", "zero", "counted")
TILE_FLOATS = 2 ** 22   # token similarities of a tile of several rows, at most: 16 MiB; a gradient holds a few such arrays
_NEVER = -1e30          # the similarity of a word that is not looked at; finite, so that nothing turns into NaN


class Words(NamedTuple):
    """The tokens of texts as a loss or an evaluation reads them."""
    tokens: Any   # (B, Q, D) unit rows; zeros where padding has similarity 0
    weight: Any   # f32 (B, Q), of each word in the mean over its text: they sum to 1
    found: Any    # bool (B, Q), which words a patch may find


def words(tokens: jax.Array, valid: jax.Array, pads: str = "masked") -> Words:
    """The `Words` of texts. A text without any valid token has its first one.

    masked:  padding is left out of both directions (the paper, as digests give it; x-clip)
    zero:    padding has similarity 0 with everything, so that a patch which fits no word finds it; words alone are averaged
             (MindFormers)
    counted: padding is words like others (DeCLIP's repository)

    Args:
      tokens: (B, Q, D) unit rows, any float type. valid: bool (B, Q). pads: one of PADS.

    Raises:
      ValueError: another `pads`.
    """
    if pads not in PADS:
        raise ValueError(f"pads={pads!r} must be one of {', '.join(PADS)}")
    valid = jnp.ones_like(valid) if pads == "counted" else valid.at[:, 0].set(valid[:, 0] | ~valid.any(1))
    weight = valid / jnp.sum(valid, axis=1, keepdims=True, dtype=jnp.float32)
    if pads == "zero":
        return Words(jnp.where(valid[:, :, None], tokens, 0), weight, jnp.ones_like(valid))
    return Words(tokens, weight, valid)


def similarities(patches: jax.Array, words: Words) -> tuple[jax.Array, jax.Array]:
    """(s, t) of every image and text, (R, K) float32 each: s[i, j] image i to text j, t[i, j] text j to image i.

    R * K * P * Q floats are held: give it a tile.

    Args:
      patches: (R, P, D) unit rows; words: of K texts.
    """
    product = _products(patches, words.tokens)
    return _to_text(product, words.found), _to_image(product, words.weight)


def loss(patches: jax.Array, words: Words, scale: float | jax.Array, select: int = 0, implementation: str = "auto") -> jax.Array:
    """The contrastive loss of matching images and texts, float32 (), nats.

    Args:
      patches: (B, P, D) unit rows; words: of B texts; row i of both matches and no other.
      scale: () inverse temperature.
      select: 0, or how many tokens of each image and text others see, `select_tokens`; each looks for them with all of its own.
      implementation: "gather" (both matrices of similarities whole) | "ring" | "ring_bf16" | "auto", as the contrastive losses
        take it: 4 * B * B / devices bytes of a matrix decide.
    """
    size, transport = len(patches), contrastive.transport(implementation)
    rows, keys, key_aux = {"all": patches}, {"all": words.tokens}, {"all": words}
    if select:
        rows["some"], some = select_tokens(patches, words, select)
        keys["some"], key_aux["some"] = some.tokens, some
    key_aux = {name: {"weight": own.weight, "found": own.found} for name, own in key_aux.items()}
    tile = tile_of(patches.shape[1], words.tokens.shape[1])
    fn, shared = _selected if select else _whole, jnp.float32(scale)
    if contrastive.picks_ring(size, size, implementation):
        of_rows, of_keys = ring_logits.lse(fn, rows, keys, shared, key_aux=key_aux, tile=tile, transport=transport)
    else:
        to_text, to_image = ring_logits.matrices(fn, rows, keys, shared, key_aux=key_aux, tile=tile)
        of_rows, of_keys = jax.nn.logsumexp(to_text, axis=1), jax.nn.logsumexp(to_image, axis=0)
    keys = jax.tree.map(lambda y: contrastive.seen(y, implementation), keys)
    own = jax.vmap(lambda row, key, aux: fn(*jax.tree.map(lambda a: a[None], (row, key)), shared, (),
                                            jax.tree.map(lambda a: a[None], aux)))(rows, keys, key_aux)
    return 0.5 * (jnp.mean(of_rows - own[0][:, 0, 0]) + jnp.mean(of_keys - own[1][:, 0, 0]))


def select_tokens(patches: jax.Array, words: Words, count: int) -> tuple[jax.Array, Words]:
    """The `count` tokens of each image and text that fit the other one of its pair best, by the sum of their similarities.

    As DeCLIP's repository selects them (16): the largest sum first, of equals the first; no gradient through the choice. Words that
    nothing may find neither add to a patch's sum nor are chosen before others.

    Args:
      patches: (B, P, D); words: of B texts. count: no more than there are.

    Returns:
      (B, min(count, P), D) and the `Words` of min(count, Q).
    """
    product = jax.vmap(lambda x, y: _products(x[None], y[None])[0, :, 0])(*jax.lax.stop_gradient((patches, words.tokens)))
    of_patches = jnp.sum(jnp.where(words.found[:, None], product, 0), axis=2)
    of_words = jnp.where(words.found, jnp.sum(product, axis=1), _NEVER)

    def best(score, *arrays):
        at = jnp.argsort(-score, axis=1, stable=True)[:, :count]
        return [jnp.take_along_axis(a, at.reshape(*at.shape, *[1] * (a.ndim - 2)), axis=1) for a in arrays]
    return best(of_patches, patches)[0], Words(*best(of_words, *words))


def tile_of(patches: int, words: int) -> int:
    """Rows and keys of a tile, so that its token similarities are TILE_FLOATS at most, or it has one of each."""
    return max(1, int((TILE_FLOATS / (patches * words)) ** 0.5))


def _whole(rows, keys, scale, row_aux, key_aux):
    to_text, to_image = similarities(rows["all"], Words(keys["all"], **key_aux["all"]))
    return scale * to_text, scale * to_image


def _selected(rows, keys, scale, row_aux, key_aux):
    to_text = _to_text(_products(rows["all"], keys["some"]), key_aux["some"]["found"])
    to_image = _to_image(_products(rows["some"], keys["all"]), key_aux["all"]["weight"])
    return scale * to_text, scale * to_image


def _products(patches, tokens):
    """f32 (R, P, K, Q) at the highest matmul precision."""
    patches, tokens = patches.astype(jnp.float32), tokens.astype(jnp.float32)
    return jnp.einsum("rpd,kqd->rpkq", patches, tokens, precision=jax.lax.Precision.HIGHEST)


def _to_text(product, found):
    return jnp.mean(jnp.max(jnp.where(found[None, None], product, _NEVER), axis=3), axis=1)


def _to_image(product, weight):
    return jnp.sum(jnp.max(product, axis=1) * weight[None], axis=2)
