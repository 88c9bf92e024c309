"""Geodesic mixup of embeddings and the contrastive losses made of it (m2-Mix; Oh, So et al., NeurIPS 2023, arXiv 2203.03897).

The paper's equations were not available to us: a reconstruction from the released code, `changdaeoh/multimodal-mixup` at 5009bcb
(main.py, loss.py). Where the paper is remembered to differ, its form is the default and the code's a switch:

                          default (the paper, as remembered)        released code
    `m2`, two anchors     mean                                      reduce="sum"
    `vl_mix`, target      a mixture's own text mixture              target="both": its partner's too, each with weight 1

With images I, texts T, rows of length 1, s an inverse temperature, sigma(j) = B - 1 - j the partner of row j and lam in [0, 1]:

    m_lam(a, b)   the point at angle lam * theta from b on the arc from b to a; theta the angle between a and b
    m2            hard negatives: z_j = m_lam(I_j, T_j) stand for T_j in the rows of I and for I_j in the rows of T, j != i
    v_mix         v_j = m_lam(I_j, I_sigma(j)) against T; targets lam for (j, j) and 1 - lam for (j, sigma(j)), both directions
    l_mix         the same for texts
    vl_mix        v_j against w_j = m_lam(T_j, T_sigma(j)), the same lam and partner

v_mix, l_mix and vl_mix (with its default target) are CLIP's loss at lam = 0 and 1. m2 is not: at 0 the image half is CLIP's image
to text, at 1 the text half is CLIP's text to image. Gradients flow through the mixtures into both towers. `implementation` is as in
`losses.contrastive`; none stores more than the ring does.
"""
import jax
import jax.numpy as jnp

from mcd_jax.losses import contrastive
from mcd_jax.sharding import ring

REDUCE = ("mean", "sum")
TARGETS = ("own", "both")
CLOSE = 1e-6   # squared sine below which sin(lam theta) / sin(theta) is replaced by its limit


def slerp(a: jax.Array, b: jax.Array, lam: float | jax.Array) -> jax.Array:
    """The geodesic mixture m_lam(a, b): (B, D) float32 rows of length 1; m_1 = a, m_0 = b, angle(m_lam, b) = lam * angle(a, b).

    Args:
      a, b: (B, D) unit rows.
      lam: () or (B,), in [0, 1].

    Values and gradients are finite everywhere. Where a and b nearly coincide it is the normalised straight mixture, the limit.
    Between opposite vectors no arc is distinguished: the one past the coordinate axis furthest from them is taken, the same for
    (a, b) and (b, a), and which arc it is gets no gradient (the true one grows as 1 / sin(theta)).

    Source: `sph_inter` of the released code, which divides 0 by 0 at theta = 0.
    """
    a, b = a.astype(jnp.float32), b.astype(jnp.float32)
    lam = jnp.reshape(jnp.asarray(lam, jnp.float32), (-1, 1))
    cos = jnp.sum(a * b, axis=-1, keepdims=True)
    across = b - cos * a
    square = jnp.sum(across * across, axis=-1, keepdims=True)
    close = square < CLOSE
    theta = jnp.arctan2(jnp.sqrt(jnp.where(close, 1.0, square)), jnp.where(close, 0.0, cos))
    arc = (jnp.sin(lam * theta) * a + jnp.sin((1 - lam) * theta) * b) / jnp.sin(theta)
    same = close & (cos > 0)
    straight = lam * a + (1 - lam) * jnp.where(same, b, a)
    straight = straight * jax.lax.rsqrt(jnp.maximum(jnp.sum(straight * straight, axis=-1, keepdims=True), 1e-12))
    half = jnp.cos((1 - lam) * jnp.pi) * (lam * a - (1 - lam) * b) + jnp.sin((1 - lam) * jnp.pi) * _aside(a)
    return jnp.where(same, straight, jnp.where(close, half, arc))


def partner(x: jax.Array) -> jax.Array:
    """Row B - 1 - j of x (B, ...) in place of row j. The middle row of an odd batch is its own partner."""
    return jnp.flip(x, axis=0)


def m2(x: jax.Array, y: jax.Array, z: jax.Array, scale: float | jax.Array, reduce: str = "mean",
       negative_scale: float | None = None, implementation: str = "auto") -> jax.Array:
    """Contrastive loss with mixed hard negatives, () float32, nats.

        -log( e^{s x_i.y_i} / (e^{s x_i.y_i} + sum_{j != i} e^{s x_i.z_j}) ), mean over i, and the same with y_i as the anchor

    A pair's own mixture is never its negative. 0 for one pair; CLIP's loss where x = y.

    Args:
      x, y: (B, D) unit rows, matching.
      z: (B, D) mixtures, `slerp(x, y, lam)`.
      scale: () inverse temperature of positives and negatives.
      reduce: "mean" of the two anchors (the paper as remembered; the README of the released code) or their "sum" (its main.py).
      negative_scale: () of the negatives alone, where it differs. 0.01 is `m_tau` of that README, a constant of about log(B - 1).

    Source: main.py, `--mmmix`; loss.py, `clip_loss2`.
    """
    _check("reduce", reduce, REDUCE)
    halves = [jnp.mean(ell) for ell in m2_anchors(x, y, z, scale, negative_scale, implementation)]
    return sum(halves) * (0.5 if reduce == "mean" else 1.0)


def m2_anchors(x: jax.Array, y: jax.Array, z: jax.Array, scale: float | jax.Array, negative_scale: float | None = None,
               implementation: str = "auto") -> jax.Array:
    """The losses of `m2` before the mean: (B,) with the rows of x as anchors, (B,) with those of y."""
    positive = scale * contrastive.matching(x, y)
    negative = scale if negative_scale is None else negative_scale

    def anchored(rows):
        others, _ = contrastive.lse(rows, z, negative, allow=ring.off_diagonal, columns=False, implementation=implementation)
        return jnp.logaddexp(others, positive) - positive
    return anchored(x), anchored(y)


def hard_share(x: jax.Array, y: jax.Array, z: jax.Array, implementation: str = "auto") -> jax.Array:
    """Share of the mixtures z_j, j != i, that are closer to an anchor than its own match is, mean over both anchors: () float32.

    x, y, z: (B, D) as in `m2`. No gradient. 0 for one pair.
    """
    x, y, z = jax.lax.stop_gradient((x, y, z))
    positive, size = contrastive.matching(x, y), len(x)

    def anchored(rows):
        if contrastive.picks_ring(size, size, implementation):
            return ring.pair_sum(_harder, rows, z, (), positive, transport=contrastive.transport(implementation))
        numbers = jnp.arange(size)
        return jnp.sum(_harder(rows, z, (), positive, (), numbers[:, None], numbers[None, :]))
    return (anchored(x) + anchored(y)) / max(2 * size * (size - 1), 1)


def v_mix(image: jax.Array, text: jax.Array, lam: float | jax.Array, scale: float | jax.Array, unmixed_negatives: bool = False,
          implementation: str = "auto") -> jax.Array:
    """V-Mix: mixed images against texts, () float32, nats. image, text: (B, D) unit rows; lam, scale: ().

    unmixed_negatives: only (j, j) and (j, partner of j) are mixed, all other pairs are the plain ones (`--original_neg`).

    Source: main.py, `--vmix`; loss.py, `calc_mix_loss`.
    """
    mixed = slerp(image, partner(image), lam)
    return _soft(mixed, text, (lam, 1 - lam), scale, (image, text) if unmixed_negatives else None, implementation)


def l_mix(image: jax.Array, text: jax.Array, lam: float | jax.Array, scale: float | jax.Array, unmixed_negatives: bool = False,
          implementation: str = "auto") -> jax.Array:
    """L-Mix: images against mixed texts, as `v_mix`. Source: main.py, `--lmix`."""
    mixed = slerp(text, partner(text), lam)
    return _soft(image, mixed, (lam, 1 - lam), scale, (image, text) if unmixed_negatives else None, implementation)


def vl_mix(image: jax.Array, text: jax.Array, lam: float | jax.Array, scale: float | jax.Array, target: str = "own",
           unmixed_negatives: bool = False, implementation: str = "auto") -> jax.Array:
    """VL-Mix: mixed images against texts mixed with the same lam and partner, as `v_mix`.

    target: "own", a mixture's positive is the text mixture of its own row (the paper as remembered; an earlier script), or
      "both", that and its partner's, each with weight 1 (released code): the gradient doubles, and the floor is 2 log 2.

    Source: main.py, `--vlmix`.
    """
    _check("target", target, TARGETS)
    weights = (1.0, 0.0) if target == "own" else (1.0, 1.0)
    mixed = slerp(image, partner(image), lam), slerp(text, partner(text), lam)
    return _soft(*mixed, weights, scale, (image, text) if unmixed_negatives else None, implementation)


def _soft(x, y, weights, scale, plain, implementation):
    """Cross-entropy of logits scale * x_i . y_j with targets weights[0] at (i, i), weights[1] at (i, partner).

    Mean of both directions; the targets are symmetric, so rows and columns meet the same logits. `plain`: (rows, keys) whose
    products are all other logits.
    """
    seen = contrastive.seen(y, implementation)
    own, other = scale * contrastive.matching(x, seen), scale * contrastive.matching(x, partner(seen))
    if plain is None:
        rows, columns = contrastive.lse(x, y, scale, implementation=implementation)
    else:
        numbers = jnp.arange(len(x))
        rows, columns = contrastive.lse(*plain, scale, _neither, len(x) - 1 - numbers, implementation=implementation)
        apart = numbers != len(x) - 1 - numbers   # the middle of an odd batch is its own partner: one pair, not two
        rows = jnp.logaddexp(jnp.logaddexp(rows, own), jnp.where(apart, other, ring.NEVER))
        columns = jnp.logaddexp(jnp.logaddexp(columns, own), jnp.where(apart, partner(other), ring.NEVER))
    return sum(weights) * 0.5 * (jnp.mean(rows) + jnp.mean(columns)) - jnp.mean(weights[0] * own + weights[1] * other)


def _neither(rows, keys, i, j):
    """All keys but a row's own and that of its partner, whose number is `rows`."""
    return (i != j) & (rows[:, None] != j)


def _harder(x, key, shared, positive, key_aux, i, j):
    return ((contrastive.similarity(x, key) > positive[:, None]) & (i != j)).astype(jnp.float32)


def _aside(a):
    """A unit vector across each row of a (B, D), the same for -a: the coordinate axis where |a| is smallest, made orthogonal."""
    a = jax.lax.stop_gradient(a)
    axis = jax.nn.one_hot(jnp.argmin(jnp.abs(a), axis=-1), a.shape[-1], dtype=jnp.float32)
    across = axis - jnp.sum(axis * a, axis=-1, keepdims=True) * a
    square = jnp.sum(across * across, axis=-1, keepdims=True)
    return across * jax.lax.rsqrt(jnp.maximum(square, 1e-12))


def _check(name, value, choices):
    if value not in choices:
        raise ValueError(f"mixup: {name}={value!r} must be one of {', '.join(choices)}")
