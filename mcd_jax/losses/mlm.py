"""Masked language modelling (Devlin et al. 2018, section 3.1), with a teacher's soft targets (Li et al. 2021, equation 7)."""
from collections.abc import Iterable

import jax
import jax.numpy as jnp


def mask(key: jax.Array, tokens: jax.Array, open_: jax.Array, rate: float, mask_id: int, vocab_size: int,
         never: Iterable[int] = (0,)) -> tuple[jax.Array, jax.Array]:
    """Tokens with some replaced: of those chosen 80 % by `mask_id`, 10 % by a random id, 10 % by themselves.

    Args:
      key: one key for the whole batch, so that the draw depends neither on microbatches nor on the mesh.
      tokens: int32 (B, L); open_: bool (B, L), where a token may be chosen, each with probability `rate`.
      vocab_size: random ids are below it, and all are drawn alike but those of `never`: the padding, which would hide its position,
        and an end of the text by which a tower finds what it pools.

    Returns:
      (int32 (B, L) ids, bool (B, L) the chosen ones).
    """
    k_chosen, k_how, k_word = jax.random.split(key, 3)
    chosen = open_ & (jax.random.uniform(k_chosen, tokens.shape) < rate)
    how = jax.random.uniform(k_how, tokens.shape)
    never = sorted({i for i in never if 0 <= i < vocab_size})
    word = jax.random.randint(k_word, tokens.shape, 0, vocab_size - len(never), tokens.dtype)
    for i in never:   # from the smallest on: what is drawn moves past each
        word += word >= i
    ids = jnp.where(how < 0.8, jnp.asarray(mask_id, tokens.dtype), jnp.where(how < 0.9, word, tokens))
    return jnp.where(chosen, ids, tokens), chosen


def row_sums(logits: jax.Array, labels: jax.Array, chosen: jax.Array, teacher: jax.Array | None = None) -> dict[str, jax.Array]:
    """Sums over the chosen positions of each row, a dict of float32 (B,), nats.

    "count", "hard" (cross-entropy with the label), "right" (the label has the largest logit) and, given a teacher's logits, "soft"
    (cross-entropy with its distribution over the vocabulary, without gradient) and "kl" (from the teacher's distribution).

    Args:
      logits, teacher: (B, L, V). labels: int32 (B, L). chosen: bool (B, L).
    """
    def total(x):
        return jnp.sum(jnp.where(chosen, x, 0.0), axis=1)

    log_p = jax.nn.log_softmax(logits.astype(jnp.float32))
    out = {"count": total(1.0),
           "hard": -total(jnp.take_along_axis(log_p, labels[..., None], axis=-1)[..., 0]),
           "right": total((jnp.argmax(logits, axis=-1) == labels).astype(jnp.float32))}
    if teacher is not None:
        log_q = jax.nn.log_softmax(jax.lax.stop_gradient(teacher).astype(jnp.float32))
        q = jnp.exp(log_q)
        soft = total(-jnp.sum(q * log_p, axis=-1))
        out |= {"soft": soft, "kl": jax.lax.stop_gradient(soft) + total(jnp.sum(q * log_q, axis=-1))}
    return out


def mean(total: jax.Array, count: jax.Array, group: int) -> jax.Array:
    """Mean over the chosen positions of each group of rows, then over groups, () float32; `total` and `count` are (B,).

    A group without any counts as 0. With `group` = B it is the mean over the batch.
    """
    total, count = (jnp.sum(x.reshape(-1, group), axis=1) for x in (total, count))
    return jnp.mean(total / jnp.maximum(count, 1.0))
