"""Image-text matching: whether an image and a text belong together, with hard negatives out of the group."""
import jax
import jax.numpy as jnp


def hard_negatives(key: jax.Array, logits: jax.Array, ids: jax.Array | None = None) -> jax.Array:
    """For each row another one of its group, drawn by the softmax of its logits without its own, int32 (G, g).

    Args:
      logits: (G, g, g); of row i of a group with the others, its own on the diagonal. No gradient. g is at least 2.
      ids: None, or int (G, g): rows with the same id match too and are not drawn. In a group that has one id alone they are: see
        `alone`.

    The diagonal is masked before the softmax, so a row always has a negative, however sure the model is of its own (a softmax
    whose diagonal is zeroed afterwards may be zero everywhere in float32).

    Source: Li et al. 2021 (ALBEF), section 3.2, in-batch hard negatives.
    """
    own = jnp.eye(logits.shape[-1], dtype=bool)[None]
    if ids is not None:
        own = jnp.where(alone(ids)[:, None, None], own, ids[:, :, None] == ids[:, None, :])
    return jax.random.categorical(key, jnp.where(own, -jnp.inf, jax.lax.stop_gradient(logits)), axis=-1)


def alone(ids: jax.Array) -> jax.Array:
    """Whether a group, of ids (G, g), has one id alone and so no negatives, bool (G,)."""
    return (ids == ids[:, :1]).all(axis=1)


def take(x: jax.Array, chosen: jax.Array) -> jax.Array:
    """Rows of x (B, ...), those that `chosen` (G, g) names inside each group of g consecutive rows: (B, ...)."""
    grouped = x.reshape(*chosen.shape, *x.shape[1:])
    return jax.vmap(lambda rows, numbers: rows[numbers])(grouped, chosen).reshape(x.shape)


def loss(logits: jax.Array, counted: jax.Array | None = None) -> jax.Array:
    """Mean cross-entropy, () float32, nats, of logits (B, 1 + n, 2): a row's first pair matches (class 1), the others don't.

    `counted`, bool (B,): whether the row's negatives are such; None: all are.

    Source: Li et al. 2021 (ALBEF), equation 4.
    """
    log_p = jax.nn.log_softmax(logits.astype(jnp.float32))
    return -_mean(jnp.concatenate([log_p[:, :1, 1], log_p[:, 1:, 0]], axis=1), counted)


def accuracy(logits: jax.Array, counted: jax.Array | None = None) -> jax.Array:
    """Share of the pairs of `loss` whose larger logit is right, () float32."""
    says = logits[..., 1] > logits[..., 0]
    return _mean(jnp.concatenate([says[:, :1], ~says[:, 1:]], axis=1).astype(jnp.float32), counted)


def _mean(x, counted):
    """Mean over the pairs (B, 1 + n) that count: the first of each row does."""
    if counted is None:
        return jnp.mean(x)
    use = (jnp.arange(x.shape[1]) == 0)[None] | counted[:, None]
    return jnp.sum(jnp.where(use, x, 0.0)) / jnp.sum(use)


def assignments(key: jax.Array, logits: jax.Array, own: float = 2 / 3) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Two images for each text of a group and which of them is its own: (first, second, label), each int32 (G, g).

    With probability `own` the two are its own and one other, in random order (label 0: the first is its own, 1: the second), else
    two different others (label 2). Others are drawn by the softmax of `logits` (G, g, g) without the diagonal. g is at least 3.

    Source: Li et al. 2021 (ALBEF), text assignment for NLVR2.
    """
    k_others, k_own, k_order = jax.random.split(key, 3)
    size = logits.shape[-1]
    noisy = jax.lax.stop_gradient(logits) + jax.random.gumbel(k_others, logits.shape)   # the best k: k draws without replacement
    _, others = jax.lax.top_k(jnp.where(jnp.eye(size, dtype=bool)[None], -jnp.inf, noisy), 2)
    mine = jnp.broadcast_to(jnp.arange(size)[None], logits.shape[:2])
    matched = jax.random.uniform(k_own, mine.shape) < own
    swapped = jax.random.uniform(k_order, mine.shape) < 0.5
    first = jnp.where(matched, jnp.where(swapped, others[..., 0], mine), others[..., 0])
    second = jnp.where(matched, jnp.where(swapped, mine, others[..., 0]), others[..., 1])
    return first, second, jnp.where(matched, swapped.astype(jnp.int32), 2)
