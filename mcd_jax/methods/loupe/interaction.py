"""Losses of fine-grained alignment whose labels are interactions in a game (`game.py`), after LOUPE (arXiv 2208.02515).

A reconstruction, see `loupe.py`. Labels carry no gradient: who calls these functions has stopped it. M regions and P
phrases of each image, of which `phrases` (B, P) bool are there; B images.
"""
import jax
import jax.numpy as jnp

FAR = -1e30   # a logit that takes no part in a softmax


# ---- labels ----


def bounded(values: jax.Array, valid: jax.Array, how: str = "minmax", temperature: float | jax.Array = 1.0) -> jax.Array:
    """Interactions (B, M) as soft labels in [0, 1]: "minmax" over the valid ones of an image, or "sigmoid" of value / temperature.

    valid: bool (B, M). Where an image has no two different values, min-max has nothing to say and gives 1/2.
    """
    if how == "sigmoid":
        return jax.nn.sigmoid(values / temperature)
    low = jnp.min(jnp.where(valid, values, jnp.inf), axis=1, keepdims=True)
    high = jnp.max(jnp.where(valid, values, -jnp.inf), axis=1, keepdims=True)
    spread = jnp.where(high > low, high - low, 1.0)
    return jnp.where(valid & (high > low), (values - jnp.where(valid, low, 0.0)) / spread, 0.5)


def distributed(values: jax.Array, phrases: jax.Array, how: str = "softmax", temperature: float | jax.Array = 1.0) -> jax.Array:
    """Interactions (B, M, P) as weights: "softmax" over the phrases of value / temperature, or "minmax" over each image's pairs."""
    there = jnp.broadcast_to(phrases[:, None], values.shape)
    if how == "softmax":
        return jnp.where(there, jax.nn.softmax(jnp.where(there, values / temperature, FAR), axis=2), 0.0)
    flat = bounded(values.reshape(len(values), -1), there.reshape(len(values), -1))
    return jnp.where(there, flat.reshape(values.shape), 0.0)


# ---- token level ----


def token(logits: jax.Array, labels: jax.Array, valid: jax.Array, cover: jax.Array | None = None) -> jax.Array:
    """The mean over images of the binary cross-entropy of region confidences p = sigmoid(logits) against labels, all (B, M).

    L_TSA = -1/M sum_i [ I'_i log q_i + (1 - I'_i) log(1 - q_i) ] with q = p, or q = p * cover where `cover` (B, M) in (0, 1], the
    mean of a soft cover over the region's cells, lets the geometry learn. Regions that aren't valid (no label yet) don't count.
    """
    if cover is None:
        one, zero = jax.nn.log_sigmoid(logits), jax.nn.log_sigmoid(-logits)
    else:
        one = jax.nn.log_sigmoid(logits) + jnp.log(jnp.maximum(cover, 1e-6))
        zero = jnp.log1p(-jnp.minimum(jnp.exp(one), 1 - 1e-6))
    return _mean(-(labels * one + (1 - labels) * zero), valid)


# ---- semantics level ----


def alignments(scores: jax.Array, phrases: jax.Array) -> tuple[jax.Array, jax.Array]:
    """(over phrases, over regions): log-softmaxes of scores (..., M, P) along the phrases that are there, and along the regions."""
    there = phrases[..., None, :]
    by_phrase = jax.nn.log_softmax(jnp.where(there, scores, FAR), axis=-1)
    return jnp.where(there, by_phrase, FAR), jax.nn.log_softmax(scores, axis=-2)


def alignment_worth(scores: jax.Array, phrases: jax.Array, masks: jax.Array) -> jax.Array:
    """The semantics-level game: how well the regions and phrases that take part find each other.

    f = (p1 + p2) / 2, p1 the mean over regions of the largest share that one gives a phrase, p2 the mean over phrases of the
    largest share that one gives a region. Who takes no part has its representation zeroed, so its scores are 0; it isn't dropped.

    Args:
      scores: (M, P) f32, the scaled products of unit representations.
      phrases: bool (P,).
      masks: bool (S, M + P), regions first.

    Returns:
      f32 (S,).
    """
    m = scores.shape[0]
    scores = scores[None] * masks[:, :m, None] * masks[:, None, m:]
    by_phrase, by_region = alignments(scores, phrases[None])
    first = jnp.exp(by_phrase).max(2).mean(1)
    second = jnp.where(phrases[None], jnp.exp(by_region).max(1), 0.0).sum(1) / jnp.maximum(phrases.sum(), 1)
    return jnp.where(phrases.any(), (first + second) / 2, 0.0)


def semantics(scores: jax.Array, labels: jax.Array, phrases: jax.Array, valid: jax.Array) -> jax.Array:
    """L_FSA = -1/(M P) sum_ij I'_ij log a_ij, the mean over images; a is the softmax of scores (B, M, P) over the phrases there.

    labels (B, M, P); valid: bool (B, M), regions whose labels are known.
    """
    by_phrase, _ = alignments(scores, phrases)
    there = phrases[:, None]
    each = -jnp.where(there, labels * jnp.where(there, by_phrase, 0.0), 0.0).sum(2) / jnp.maximum(phrases.sum(1), 1)[:, None]
    return _mean(each, valid & phrases.any(1, keepdims=True))


# ---- the estimator ----


def estimator(estimate: jax.Array, sigma: jax.Array, value: jax.Array, played: jax.Array, beta: float = 1.0) -> jax.Array:
    """L_UNSIL: the mean over what was played of (estimate - value)^2 / sigma + beta * sigma, all (B, K).

    For a fixed error e the best sigma is min(1, |e| / sqrt(beta)): the uncertainty calibrates itself to the error.
    """
    return _mean((estimate - value) ** 2 / sigma + beta * sigma, played)


def _mean(values, where):
    """The mean over `where`, 0 where there is nothing."""
    return jnp.where(where, values, 0.0).sum() / jnp.maximum(where.sum(), 1)
