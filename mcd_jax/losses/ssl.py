"""Self-supervision between two augmented views of the same images."""
import jax
import jax.numpy as jnp

from mcd_jax.losses import contrastive
from mcd_jax.sharding import ring


def unit(x: jax.Array, eps: float = 1e-6) -> jax.Array:
    """Rows of x (..., D) divided by their length, float32; zeros stay zeros, with a finite gradient."""
    x = x.astype(jnp.float32)
    return x / jnp.sqrt(jnp.maximum(jnp.sum(x * x, axis=-1, keepdims=True), eps * eps))


def nt_xent(a: jax.Array, b: jax.Array, temperature: float | jax.Array = 0.1, implementation: str = "auto") -> jax.Array:
    """SimCLR's NT-Xent as SLIP uses it, mean over the 2B rows, () float32, nats.

    Row i of `a` has row i of `b` as its positive; its negatives are all other rows of both, itself left out.

    Args:
      a, b: (B, P) projections of two views, of any length (normalised here).
      temperature: the logits are cosines divided by it.

    Source: Chen et al. 2020 (SimCLR), equation 1; Mu et al. 2021 (SLIP), section 3.
    """
    a, b = unit(a), unit(b)
    scale = 1.0 / temperature
    a_to_b, b_to_a = contrastive.lse(a, b, scale, implementation=implementation)
    a_to_a, b_to_b = (contrastive.lse(x, x, scale, ring.off_diagonal, columns=False, implementation=implementation)[0] for x in (a,
                                                                                                                                 b))
    positive = scale * contrastive.matching(a, contrastive.seen(b, implementation))
    return 0.5 * (jnp.mean(jnp.logaddexp(a_to_b, a_to_a) - positive) + jnp.mean(jnp.logaddexp(b_to_a, b_to_b) - positive))
