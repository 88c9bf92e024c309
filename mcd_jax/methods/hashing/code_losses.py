"""Losses of cross-modal hashing: real-valued codes u in (-1, 1)^K of two modalities, of which the signs are the bits.

Labels are (B, C), 0 or 1; two rows are alike when they share one. All losses are float32 and means, so that a weight means the same
for any batch, code length and number of labels. Those over all pairs of a batch have the forms of `losses.contrastive`: "gather"
holds B x B numbers, "ring" a tile of them.

  supervised                contrastive loss with all alike rows as positives: of AHLR-R, our reconstruction of "Dynamic Masking and
                            Auxiliary Hash Learning for Enhanced Cross-Modal Retrieval" (NeurIPS 2025), whose equations we have not
  distances                 DCHMT (Tu et al., "Differentiable Cross-modal Hashing via Multimodal Transformers", ACM MM 2022)
  proxies, apart            DSPH (Huo et al., "Deep Semantic-aware Proxy Hashing for Multi-label Cross-modal Retrieval")
  quantise, balance, toward of one modality's codes
"""
import math

import jax
import jax.numpy as jnp

from mcd_jax.losses import contrastive
from mcd_jax.losses.ssl import unit
from mcd_jax.sharding import ring

# The least distance d between words of the best code of K bits for n = 1, 2, ... 12; DSPH's threshold for C labels, with n the
# ceiling of log2(C), is the cosine of two such words, 1 - 2 d / K, below 0 where more bits than labels let them be further than
# orthogonal. From QinLab-WFU/DSPH, utils/codetable.xlsx, which has all K up to 255
CODETABLE = {8: (8, 5, 4, 4, 2, 2, 2, 1), 12: (12, 8, 6, 6, 4, 4, 4, 3, 2, 2, 2, 1), 16: (16, 10, 8, 8, 8, 6, 6, 5, 4, 4, 4, 2),
             24: (24, 16, 13, 12, 12, 10, 10, 8, 8, 8, 8, 8), 32: (32, 21, 18, 16, 16, 16, 14, 13, 12, 12, 12, 10),
             48: (48, 32, 27, 24, 24, 24, 22, 22, 20, 20, 18, 18), 64: (64, 42, 36, 33, 32, 32, 32, 29, 28, 28, 26, 26),
             96: (96, 64, 54, 50, 48, 48, 48, 46, 44, 44, 42, 41), 128: (128, 85, 72, 68, 64, 64, 64, 64, 60, 60, 58, 57)}


def threshold(bits: int, classes: int) -> float:
    """DSPH's threshold on cosines for `classes` labels and codes of so many bits, a float.

    Raises:
      ValueError: an entry of the published table that isn't among CODETABLE.
    """
    n, distances = max(1, math.ceil(math.log2(classes))), CODETABLE.get(bits, ())
    if n > len(distances):
        known = f"up to {2 ** len(distances)} labels" if distances else f"{', '.join(map(str, CODETABLE))} bits"
        raise ValueError(f"of DSPH's published code table we have {known}; for {classes} labels with {bits} bits set "
                         "config.objective.threshold (a cosine above -1; about 0 where the bits outnumber the labels)")
    return 1 - 2 * distances[n - 1] / bits


def sign(u: jax.Array) -> jax.Array:
    """-1 or +1, float32: +1 where u is 0, so that a bit always has a value."""
    return jnp.where(u >= 0, 1.0, -1.0).astype(jnp.float32)


def quantise(u: jax.Array) -> jax.Array:
    """Mean squared distance of codes u (B, K) from their signs, () float32; no gradient through the signs."""
    return jnp.mean((u.astype(jnp.float32) - jax.lax.stop_gradient(sign(u))) ** 2)


def balance(u: jax.Array) -> jax.Array:
    """Mean over the bits of the squared mean of u (B, K) over the batch, () float32: 0 where each bit is on for half the rows."""
    return jnp.mean(jnp.mean(u.astype(jnp.float32), axis=0) ** 2)


def toward(u: jax.Array, target: jax.Array) -> jax.Array:
    """Mean squared distance of u (B, K) from `target` (B, K), which gets no gradient, () float32."""
    return jnp.mean((u.astype(jnp.float32) - jax.lax.stop_gradient(target.astype(jnp.float32))) ** 2)


def supervised(x: jax.Array, y: jax.Array, labels: jax.Array | None, temperature: float, implementation: str = "auto") -> jax.Array:
    """Contrastive loss between two modalities in which a row's positives are all rows that share a label, () float32, nats.

        L(x -> y) = -mean over i of 1/|P_i| sum over j in P_i of log( exp t_ij / sum over k of exp t_ik ),  t = cosine / temperature

    and the mean of both directions. P_i holds i itself, whatever its labels.

    Args:
      x, y: (B, K) codes, of any length; row i of x and of y belong together.
      labels: (B, C), or None: the only positive is the row itself (InfoNCE).
      temperature: a number.
    """
    x, y, scale = unit(x), unit(y), 1.0 / temperature
    if labels is None:
        return contrastive.softmax(x, y, scale, implementation)
    if contrastive.picks_ring(len(x), len(y), implementation):
        how = dict(target=_positives, transport=contrastive.transport(implementation))
        sums = ring.lse(x, y, scale, 0.0, labels, labels, **how)
        # of logits that are all 1 the weighted sum is the number of positives
        counts = ring.lse(*jax.lax.stop_gradient((x, y)), 0.0, 1.0, labels, labels, **how)
        rows = sums.row_lse - sums.row_target / counts.row_target
        keys = sums.key_lse - sums.key_target / counts.key_target
        return 0.5 * (jnp.mean(rows) + jnp.mean(keys))
    logits_BB = scale * contrastive.similarity(x, y)
    numbers = jnp.arange(len(x))
    positive_BB, _ = _positives(labels, labels, numbers[:, None], numbers[None, :])
    count = jnp.sum(positive_BB, axis=1)   # the same for rows and columns: labels are those of both
    terms = (jax.nn.logsumexp(logits_BB, axis=a) - jnp.sum(positive_BB * logits_BB, axis=a) / count for a in (0, 1))
    return 0.5 * sum(map(jnp.mean, terms))


def distances(x: jax.Array, y: jax.Array, labels: jax.Array, theta: float = 0.5, implementation: str = "auto") -> jax.Array:
    """DCHMT's loss between two sets of selected codes, () float32: alike rows coincide, others are at least c apart.

        mean over all pairs of (S D)^2 + ((1 - S) (c - min(D, c)))^2,   D Euclidean distance, c = sqrt(2 K theta)

    Args:
      x, y: (B, 2 K), for each bit the probabilities that it is on and off.
      labels: (B, C).
      theta: the share of the largest squared distance at which others are far enough.

    Source: kalenforn/DCHMT, train/hash_train.py, `similarity_loss` with "euclidean" and "l2".
    """
    far = jnp.float32(math.sqrt(x.shape[1] * theta))
    return _pairs(_distance, x, y, far, labels, implementation) / len(x) / len(y)


def _distance(x, y, far, row_labels, key_labels, i, j):
    square = jnp.sum(x * x, -1)[:, None] + jnp.sum(y * y, -1)[None, :] - 2 * jnp.einsum("rd,kd->rk", x, y, precision="highest")
    square = jnp.maximum(square, 0.0)
    apart = square > 1e-12       # elsewhere the root has no derivative: two rows that coincide are not pushed anywhere
    root = jnp.where(apart, jnp.sqrt(jnp.where(apart, square, 1.0)), 0.0)
    return jnp.where(_alike(row_labels, key_labels), square, jnp.maximum(far - root, 0.0) ** 2)


def proxies(u: jax.Array, points: jax.Array, labels: jax.Array, margin: float) -> jax.Array:
    """DSPH's proxy loss of one modality, () float32.

        mean over (row, its label) of 1 - cos  +  mean over (row, another label) of relu(cos - margin)

    Args:
      u: (B, K) codes; points: (C, K) one proxy for each label; both of any length.
      labels: (B, C).
      margin: a cosine, see `threshold`.

    A batch without any label, or with all of them everywhere, has no such mean and counts 0 for it.

    Source: QinLab-WFU/DSPH, utils/utils.py, `HyP`.
    """
    cosine = jnp.einsum("bk,ck->bc", unit(u), unit(points), precision="highest")
    own = labels > 0
    return _mean(1 - cosine, own) + _mean(jax.nn.relu(cosine - margin), ~own)


def apart(x: jax.Array, y: jax.Array, labels: jax.Array, margin: float, implementation: str = "auto") -> jax.Array:
    """DSPH's regularizer: mean of relu(cosine - margin) over pairs of rows that share no label, () float32.

    Only rows with at least two labels take part, as in the code. 0 where there is no such pair.

    Args:
      x, y: (B, K) codes, of any length.
      labels: (B, C).
      margin: a cosine, see `threshold`.
    """
    x, y = unit(x), unit(y)
    total = _pairs(_apart, x, y, jnp.float32(margin), labels, implementation)
    count = _pairs(_counts, *jax.lax.stop_gradient((x, y)), jnp.float32(margin), labels, implementation)
    return total / jnp.maximum(count, 1.0)


def _apart(x, y, margin, row_labels, key_labels, i, j):
    cosine = jnp.einsum("rk,sk->rs", x, y, precision="highest")
    return jnp.where(_unlike(row_labels, key_labels), jax.nn.relu(cosine - margin), 0.0)


def _counts(x, y, margin, row_labels, key_labels, i, j):
    return _unlike(row_labels, key_labels).astype(jnp.float32)


def _unlike(row_labels, key_labels):
    several = (jnp.sum(row_labels > 0, -1) > 1)[:, None] & (jnp.sum(key_labels > 0, -1) > 1)[None, :]
    return several & ~_alike(row_labels, key_labels)


def _alike(row_labels, key_labels):
    rows, keys = ((labels > 0).astype(jnp.float32) for labels in (row_labels, key_labels))
    return jnp.einsum("rc,kc->rk", rows, keys) > 0.5


def _positives(row_labels, key_labels, i, j):
    positive = (_alike(row_labels, key_labels) | (i == j)).astype(jnp.float32)
    return positive, positive


def _mean(values, where):
    return jnp.sum(jnp.where(where, values, 0.0)) / jnp.maximum(jnp.sum(where), 1)


def _pairs(fn, x, y, shared, labels, implementation):
    """Sum of fn over all pairs of rows, () float32; fn as `ring.pair_sum` takes it."""
    x, y = x.astype(jnp.float32), y.astype(jnp.float32)
    if contrastive.picks_ring(len(x), len(y), implementation):
        return ring.pair_sum(fn, x, y, shared, labels, labels, transport=contrastive.transport(implementation))
    numbers = jnp.arange(len(x))
    return jnp.sum(fn(x, y, shared, labels, labels, numbers[:, None], numbers[None, :]))
