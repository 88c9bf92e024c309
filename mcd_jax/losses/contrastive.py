"""Contrastive losses between two sets of matching embeddings. Inputs of any float type; inside, float32."""
import jax
import jax.numpy as jnp

_MASKED = -1e9  # a logit that never wins; finite, so that a row with nothing else has no NaN gradient


def similarity(x, y):
    """Inner products (B, C) float32 of x (B, D) and y (C, D), at the highest matmul precision.

    An accelerator's default precision rounds to bfloat16: percents of gradient at a scale of 100.
    """
    x, y = x.astype(jnp.float32), y.astype(jnp.float32)
    return jnp.einsum("bd,cd->bc", x, y, precision=jax.lax.Precision.HIGHEST)


def row_lse(x, y, scale, exclude_diagonal=False):
    """log(sum_j exp(scale * x_i . y_j)), (B,) float32, for x (B, D) and y (C, D); without j = i if asked."""
    logits_BC = scale * similarity(x, y)
    if exclude_diagonal:
        logits_BC = jnp.where(jnp.eye(*logits_BC.shape, dtype=bool), _MASKED, logits_BC)
    return jax.nn.logsumexp(logits_BC, axis=1)


def softmax(x, y, scale):
    """Symmetric InfoNCE, mean of the cross-entropies x -> y and y -> x over the batch, () float32, nats.

    Args:
      x, y: (B, D) unit rows; row i of x matches row i of y and no other.
      scale: () inverse temperature, exp(logit_scale).

    Source: Radford et al. 2021 (CLIP), figure 3. Both sides of every pair of the global batch get gradient.
    """
    logits_BB = scale * similarity(x, y)
    positive = jnp.diagonal(logits_BB)
    rows, columns = jax.nn.logsumexp(logits_BB, axis=1), jax.nn.logsumexp(logits_BB, axis=0)
    return 0.5 * (jnp.mean(rows - positive) + jnp.mean(columns - positive))


def sigmoid(x, y, scale, bias):
    """Pairwise sigmoid loss: sum over all B * B pairs of -log sigmoid(+-logit), over B, () float32, nats.

    Args:
      x, y: (B, D) unit rows; row i of x matches row i of y and no other.
      scale: () inverse temperature, exp(logit_scale).
      bias: () added to every logit.

    Source: Zhai et al. 2023 (SigLIP), algorithm 1.
    """
    logits_BB = scale * similarity(x, y) + bias
    size = logits_BB.shape[0]
    sign_BB = 2.0 * jnp.eye(size, dtype=jnp.float32) - 1.0
    return -jnp.sum(jax.nn.log_sigmoid(sign_BB * logits_BB)) / size


def accuracy(x, y):
    """Share of rows of x (B, D) whose nearest row of y (B, D) is their own, () float32 (a tie: the first)."""
    nearest = jnp.argmax(similarity(x, y), axis=1)
    return jnp.mean((nearest == jnp.arange(x.shape[0])).astype(jnp.float32))
