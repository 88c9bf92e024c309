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


def simsiam(predicted: tuple[jax.Array, jax.Array], projected: tuple[jax.Array, jax.Array]) -> jax.Array:
    """SimSiam's loss: -1/2 of the mean cosines of each view's prediction with the other view's projection, () float32 in [-1, 1].

    Args:
      predicted: (B, P) of two views, what the predictor makes of their projections; of any length.
      projected: (B, P) of the same views; they get no gradient here.

    Source: Chen and He 2021 (SimSiam, arXiv 2011.10566), equations 1 to 4.
    """
    crossed = zip(predicted, jax.lax.stop_gradient(projected[::-1]), strict=True)
    return -0.5 * sum(jnp.mean(contrastive.matching(unit(p), unit(z))) for p, z in crossed)


def spread(x: jax.Array) -> jax.Array:
    """Standard deviation of the unit rows of x (B, P) over the batch, root of the sum over P, () float32.

    1 where they point everywhere, 0 where they have collapsed into one direction (Chen and He 2021, section 4.1, times sqrt(P)).
    """
    return jnp.sqrt(jnp.sum(jnp.var(unit(x), axis=0)))
