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

from mcd_jax.losses import contrastive, ring
from mcd_jax.losses.ssl import unit

# DSPH's threshold on cosines by K bits and n = ceil(log2 C) of C labels: the entries that we know of QinLab-WFU/DSPH,
# utils/codetable.xlsx, those of the published sets (21, 24 and 80 labels)
CODETABLE = {(16, 5): 0.0, (32, 5): 0.0, (64, 5): 0.0, (128, 5): 0.0, (16, 7): 0.25, (32, 7): 0.125, (64, 7): 0.0, (128, 7): 0.0}


def threshold(bits, classes):
    """DSPH's threshold on cosines for `classes` labels and codes of so many bits, a float.

    Raises:
      ValueError: an entry of the published table that we don't know.
    """
    place = bits, max(1, math.ceil(math.log2(classes)))
    if place not in CODETABLE:
        known = ", ".join(f"{2 ** (n - 1) + 1} to {2 ** n} labels with {k} bits" for k, n in sorted(CODETABLE))
        raise ValueError(f"DSPH's published code table is known to us for {known}; for {classes} labels with {bits} bits set "
                         "config.objective.threshold (a cosine; 0 where the bits outnumber the labels)")
    return CODETABLE[place]


def sign(u):
    """-1 or +1, float32: +1 where u is 0, so that a bit always has a value."""
    return jnp.where(u >= 0, 1.0, -1.0).astype(jnp.float32)


def quantise(u):
    """Mean squared distance of codes u (B, K) from their signs, () float32; no gradient through the signs."""
    return jnp.mean((u.astype(jnp.float32) - jax.lax.stop_gradient(sign(u))) ** 2)


def balance(u):
    """Mean over the bits of the squared mean of u (B, K) over the batch, () float32: 0 where each bit is on for half the rows."""
    return jnp.mean(jnp.mean(u.astype(jnp.float32), axis=0) ** 2)


def toward(u, target):
    """Mean squared distance of u (B, K) from `target` (B, K), which gets no gradient, () float32."""
    return jnp.mean((u.astype(jnp.float32) - jax.lax.stop_gradient(target.astype(jnp.float32))) ** 2)


def supervised(x, y, labels, temperature, form="auto"):
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
        return contrastive.softmax(x, y, scale, form)
    if contrastive.picks_ring(len(x), len(y), form):
        how = dict(target=_positives, transport=contrastive.transport(form))
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


def distances(x, y, labels, theta=0.5, form="auto"):
    """DCHMT's loss between two sets of selected codes, () float32: alike rows coincide, others are at least c apart.

        mean over all pairs of (S D)^2 + ((1 - S) (c - min(D, c)))^2,   D Euclidean distance, c = sqrt(2 K theta)

    Args:
      x, y: (B, 2 K), for each bit the probabilities that it is on and off.
      labels: (B, C).
      theta: the share of the largest squared distance at which others are far enough.

    Source: kalenforn/DCHMT, train/hash_train.py, `similarity_loss` with "euclidean" and "l2".
    """
    far = jnp.float32(math.sqrt(x.shape[1] * theta))
    return _pairs(_distance, x, y, far, labels, form) / len(x) / len(y)


def _distance(x, y, far, row_labels, key_labels, i, j):
    square = jnp.sum(x * x, -1)[:, None] + jnp.sum(y * y, -1)[None, :] - 2 * jnp.einsum("rd,kd->rk", x, y, precision="highest")
    square = jnp.maximum(square, 0.0)
    apart = square > 1e-12       # elsewhere the root has no derivative: two rows that coincide are not pushed anywhere
    root = jnp.where(apart, jnp.sqrt(jnp.where(apart, square, 1.0)), 0.0)
    return jnp.where(_alike(row_labels, key_labels), square, jnp.maximum(far - root, 0.0) ** 2)


def proxies(u, points, labels, margin):
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


def apart(x, y, labels, margin, form="auto"):
    """DSPH's regularizer: mean of relu(cosine - margin) over pairs of rows that share no label, () float32.

    Only rows with at least two labels take part, as in the code. 0 where there is no such pair.

    Args:
      x, y: (B, K) codes, of any length.
      labels: (B, C).
      margin: a cosine, see `threshold`.
    """
    x, y = unit(x), unit(y)
    total = _pairs(_apart, x, y, jnp.float32(margin), labels, form)
    count = _pairs(_counts, *jax.lax.stop_gradient((x, y)), jnp.float32(margin), labels, form)
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


def _pairs(fn, x, y, shared, labels, form):
    """Sum of fn over all pairs of rows, () float32; fn as `ring.pair_sum` takes it."""
    x, y = x.astype(jnp.float32), y.astype(jnp.float32)
    if contrastive.picks_ring(len(x), len(y), form):
        return ring.pair_sum(fn, x, y, shared, labels, labels, transport=contrastive.transport(form))
    numbers = jnp.arange(len(x))
    return jnp.sum(fn(x, y, shared, labels, labels, numbers[:, None], numbers[None, :]))
