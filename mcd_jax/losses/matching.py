"""Image-text matching: whether an image and a text belong together, with hard negatives out of the group."""
import jax
import jax.numpy as jnp


def hard_negatives(key, logits):
    """For each row another one of its group, drawn by the softmax of its logits without its own, int32 (G, g).

    Args:
      logits: (G, g, g); of row i of a group with the others, its own on the diagonal. No gradient. g is at least 2.

    The diagonal is masked before the softmax, so a row always has a negative, however sure the model is of its own (a softmax
    whose diagonal is zeroed afterwards may be zero everywhere in float32).

    Source: Li et al. 2021 (ALBEF), section 3.2, in-batch hard negatives.
    """
    own = jnp.eye(logits.shape[-1], dtype=bool)[None]
    return jax.random.categorical(key, jnp.where(own, -jnp.inf, jax.lax.stop_gradient(logits)), axis=-1)


def take(x, chosen):
    """Rows of x (B, ...), those that `chosen` (G, g) names inside each group of g consecutive rows: (B, ...)."""
    grouped = x.reshape(*chosen.shape, *x.shape[1:])
    return jax.vmap(lambda rows, numbers: rows[numbers])(grouped, chosen).reshape(x.shape)


def loss(logits):
    """Mean cross-entropy, () float32, nats, of logits (B, 1 + n, 2): a row's first pair matches (class 1), the others don't.

    Source: Li et al. 2021 (ALBEF), equation 4.
    """
    log_p = jax.nn.log_softmax(logits.astype(jnp.float32))
    return -jnp.mean(jnp.concatenate([log_p[:, :1, 1], log_p[:, 1:, 0]], axis=1))


def accuracy(logits):
    """Share of the pairs of `loss` whose larger logit is right, () float32."""
    says = logits[..., 1] > logits[..., 0]
    return jnp.mean(jnp.concatenate([says[:, :1], ~says[:, 1:]], axis=1).astype(jnp.float32))
