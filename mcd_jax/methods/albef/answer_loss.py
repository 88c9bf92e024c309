"""The words of given answers, predicted one after another: what a decoder reads, what it is asked for, and the loss."""
import jax
import jax.numpy as jnp


def shifted(rows: jax.Array, start_id: int, pad: int = 0) -> tuple[jax.Array, jax.Array]:
    """(what is read, the next word at each place), both int32 (..., T), of token rows (..., T) that end in end-of-text and padding.

    What is read begins with `start_id`, whether the rows do or their tokenizer has no start token.
    """
    after = jnp.concatenate([rows[..., 1:], jnp.full_like(rows[..., :1], pad)], axis=-1)
    words = jnp.where(rows[..., :1] == start_id, after, rows)
    return jnp.concatenate([jnp.full_like(rows[..., :1], start_id), words[..., :-1]], axis=-1), words


def weighted(total: jax.Array, weights: jax.Array) -> jax.Array:
    """Sum over answers of weight * total, mean over questions, () float32; both (B, n), an answer that isn't there has weight 0.

    Source: salesforce/ALBEF, models/model_vqa.py: an answer's total is the sum over its words, not their mean.
    """
    return jnp.sum(weights * total) / len(total)
