"""Losses that keep a router of experts in balance: pure functions of gate probabilities and logits. Inside, float32; nats.

A router gives each token i a distribution p_i over E experts. Statistics are sums over tokens, so that they can be added up over
microbatches and devices before a loss is made of them; a loss of one group is that of the group's own sums.

Sources: entropies and z-loss, Mustafa et al. 2022 (LIMoE, section 3; formulas as quoted by others, signs checked against their
limits, since no code was released) and Zoph et al. 2022 (ST-MoE, section 3.2); importance and load, Riquelme et al. 2021 (V-MoE,
appendix A) and its released code.
"""
import jax
import jax.numpy as jnp


def entropy(p: jax.Array, axis: int = -1) -> jax.Array:
    """-sum p log p over `axis`; 0 log 0 is 0, and so is its gradient. p: (..., E) -> (...)."""
    p = p.astype(jnp.float32)
    positive = p > 0
    return -jnp.sum(jnp.where(positive, p * jnp.log(jnp.where(positive, p, 1.0)), 0.0), axis=axis)


def spread(total: jax.Array) -> jax.Array:
    """Entropy of the average token, H(mean_i p_i), of sums of probabilities `total` (..., E) -> (...), in [0, log E].

    LIMoE's global entropy loss is its negative; with local entropy it makes minus the mutual information of token and expert.
    """
    total = total.astype(jnp.float32)
    return entropy(total / jnp.maximum(jnp.sum(total, axis=-1, keepdims=True), 1e-30))


def hinge(total: jax.Array, least: float) -> jax.Array:
    """max(0, log(least) - H(mean p)): 0, without a gradient, once about `least` experts share the tokens. (..., E) -> (...)."""
    return jnp.maximum(0.0, jnp.log(jnp.float32(least)) - spread(total))


def variation(total: jax.Array) -> jax.Array:
    """(standard deviation / mean)^2 over experts of non-negative sums (..., E) -> (...); 0 in balance, E - 1 when one has all.

    Of sums of probabilities it is V-MoE's importance loss, of sums of `win` its load loss.
    """
    total = total.astype(jnp.float32)
    mean = jnp.mean(total, axis=-1)
    return jnp.var(total, axis=-1) / jnp.maximum(mean, 1e-30) ** 2


def win(logits: jax.Array, noisy: jax.Array, noise: float, k: int = 1) -> jax.Array:
    """P(expert e would be among the k best if its noise were drawn again), (..., E), for noise of standard deviation `noise` > 0.

    Args:
      logits, noisy: (..., E) before and after noise.
    """
    threshold = jnp.sort(noisy.astype(jnp.float32), axis=-1)[..., -k, None]   # the k-th best of this draw
    return 1.0 - jax.scipy.stats.norm.cdf((threshold - logits.astype(jnp.float32)) / noise)


def squared_lse(logits: jax.Array) -> jax.Array:
    """(logsumexp_e logit)^2 of each token, (..., E) -> (...): the mean of it is the z-loss."""
    return jax.nn.logsumexp(logits.astype(jnp.float32), axis=-1) ** 2
