"""Log-ratios of distances and their regression: how far an augmentation moved an image from its text.

The equations of the MCD paper (Kim et al. 2023) were not available. The form here is the log-ratio loss of
S. Kim et al. 2019 ("Deep metric learning beyond binary supervision") with the caption as the anchor, the
augmented and the original image as its neighbours, and as labels a teacher's distances or the augmentation's
own strength.
"""
from functools import partial

import jax
import jax.numpy as jnp

from mcd_jax.losses import contrastive
from mcd_jax.sharding import ring

MEASURES = ("sqdist", "logit")
PAIRS = ("diag", "all")
KINDS = ("logratio", "smooth_l1")


def squared_distance(a: jax.Array, b: jax.Array) -> jax.Array:
    """Squared Euclidean distance (B,) float32 between rows of a and b (B, D): 2 - 2 cos for unit rows.

    Summed from the differences: never negative, also for rows rounded to bfloat16; zero gradient at a == b.
    """
    difference = a.astype(jnp.float32) - b.astype(jnp.float32)
    return jnp.sum(difference * difference, axis=-1)


def squared_distances(a: jax.Array, b: jax.Array) -> jax.Array:
    """Squared Euclidean distances (B, C) float32 between all rows of a (B, D) and of b (C, D), >= 0."""
    a, b = a.astype(jnp.float32), b.astype(jnp.float32)
    norms = jnp.sum(a * a, axis=-1)[:, None] + jnp.sum(b * b, axis=-1)[None, :]
    return jnp.maximum(norms - 2.0 * contrastive.similarity(a, b), 0.0)


def log_ratio(anchor: jax.Array, augmented: jax.Array, original: jax.Array, measure: str = "sqdist", pairs: str = "diag",
              scale: float | jax.Array = 1.0, eps: float = 1e-6, sg_org: bool = False, sg_text: bool = False) -> jax.Array:
    """How much further from the anchor the augmented view is than the original; 0: equally far, > 0: further.

    sqdist: log(D(anchor, augmented) + eps) - log(D(anchor, original) + eps), D the squared distance.
    logit:  scale * (cos(anchor, original) - cos(anchor, augmented)), the log-ratio of exp(scale * cos).

    Args:
      anchor: (B, D) unit text embeddings; (C, D) for pairs="all".
      augmented, original: (B, D) unit image embeddings.
      measure: "sqdist" or "logit".
      pairs: "diag", each image with its own text; "all", every image with every text.
      scale: () inverse temperature, read by "logit" only.
      eps: keeps the logarithm finite where an image and its text coincide.
      sg_org: stop the gradient through `original` (the denominator).
      sg_text: stop the gradient through `anchor`.

    Returns:
      (B,) float32, or (B, C) for pairs="all": row i is the image, column j the text.
    """
    if measure not in MEASURES or pairs not in PAIRS:
        raise ValueError(f"log_ratio: measure={measure!r} must be in {MEASURES}, pairs={pairs!r} in {PAIRS}")
    anchor = jax.lax.stop_gradient(anchor) if sg_text else anchor
    original = jax.lax.stop_gradient(original) if sg_org else original
    if measure == "logit":
        if pairs == "all":
            cos = contrastive.similarity
        else:
            def cos(image, text):
                return jnp.sum(image.astype(jnp.float32) * text.astype(jnp.float32), axis=-1)
        return scale * (cos(original, anchor) - cos(augmented, anchor))
    distance = squared_distance if pairs == "diag" else squared_distances
    return jnp.log(distance(augmented, anchor) + eps) - jnp.log(distance(original, anchor) + eps)


def softmax_log_ratio(anchor: jax.Array, augmented: jax.Array, original: jax.Array, scale: float | jax.Array,
                      implementation: str = "auto", sg_org: bool = False, sg_text: bool = False) -> jax.Array:
    """log p(own anchor | original) - log p(own anchor | augmented), (B,) float32; p: softmax of scale * cos over all anchors.

    The logit form of `log_ratio` between softmax-normalised alignment matrices: what moves an image's similarity to every text
    alike is no misalignment.

    Args:
      anchor, augmented, original: (B, D) unit rows; scale, sg_org, sg_text: as for `log_ratio`.
      implementation: of the sums over all pairs, see `losses.contrastive`.
    """
    anchor = jax.lax.stop_gradient(anchor) if sg_text else anchor
    original = jax.lax.stop_gradient(original) if sg_org else original
    texts = contrastive.seen(anchor, implementation)
    gap = log_ratio(texts, augmented, original, "logit", scale=scale)
    of_original, of_augmented = (contrastive.lse(images, anchor, scale, columns=False, implementation=implementation)[0]
                                 for images in (original, augmented))
    return gap - (of_original - of_augmented)


def label_log_ratio(y_augmented: jax.Array, y_original: jax.Array, eps: float = 1e-6) -> jax.Array:
    """log(y_augmented / y_original) (B,) float32 of two positive misalignment targets (B,); 1: untouched."""
    y_augmented, y_original = y_augmented.astype(jnp.float32), y_original.astype(jnp.float32)
    return jnp.log(y_augmented + eps) - jnp.log(y_original + eps)


def loss(student: jax.Array, target: jax.Array, kind: str = "logratio", beta: float = 1.0) -> jax.Array:
    """Mean regression loss of the student's log-ratios to the target's, () float32; no gradient to the target.

    Args:
      student, target: float arrays of one and the same shape, from `log_ratio` or `label_log_ratio`.
      kind: "logratio", the square of the difference d; "smooth_l1", d^2 / 2 beta up to beta, then |d| - beta / 2.
      beta: where smooth_l1 turns from quadratic to linear.

    Raises:
      ValueError: the kind is unknown or the shapes differ (nothing is broadcast).
    """
    if kind not in KINDS:
        raise ValueError(f"log_ratio.loss: kind={kind!r} must be one of {KINDS}")
    if student.shape != target.shape:
        raise ValueError(f"log_ratio.loss: student {student.shape} and target {target.shape} must agree; "
                         "the augmentation's own labels exist for pairs='diag' only")
    return jnp.mean(_penalty(student.astype(jnp.float32) - jax.lax.stop_gradient(target.astype(jnp.float32)), kind, beta))


def _penalty(difference, kind, beta=1.0):
    if kind == "logratio":
        return difference * difference
    size = jnp.abs(difference)
    return jnp.where(size < beta, 0.5 * difference * difference / beta, size - 0.5 * beta)


def ring_loss(student: tuple[jax.Array, jax.Array, jax.Array], teacher: tuple[jax.Array, jax.Array, jax.Array],
              kind: str = "logratio", measure: str = "sqdist", scales: tuple[jax.Array, jax.Array] = (1.0, 1.0), eps: float = 1e-6,
              sg_org: bool = False, sg_text: bool = False) -> jax.Array:
    """`loss` of the log-ratios of all pairs to a teacher's, () float32, without the matrix of pairs (`sharding.ring`).

    Args:
      student, teacher: (anchor, augmented, original), each (B, D) unit rows, as `log_ratio` takes them; no gradient to the teacher.
      scales: inverse temperatures of the two, read by measure="logit" only.
    """
    (w, a, u), (teacher_w, teacher_a, teacher_u) = student, jax.lax.stop_gradient(teacher)
    w, u = jax.lax.stop_gradient(w) if sg_text else w, jax.lax.stop_gradient(u) if sg_org else u
    pairs = partial(_tile, kind, measure, eps)
    scales = jnp.float32(scales[0]), jax.lax.stop_gradient(jnp.float32(scales[1]))
    return ring.pair_sum(pairs, (a, u), w, scales, (teacher_a, teacher_u), teacher_w) / (len(a) * len(w))


def _tile(kind, measure, eps, images, text, scales, teacher_images, teacher_text, i, j):
    ours = log_ratio(text, *images, measure, "all", scales[0], eps)
    theirs = log_ratio(teacher_text, *teacher_images, measure, "all", scales[1], eps)
    return _penalty(ours - jax.lax.stop_gradient(theirs), kind)
