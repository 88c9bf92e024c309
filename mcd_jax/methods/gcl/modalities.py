"""Contrastive losses over several embeddings of each pair: the generalized contrastive loss, and separation inside one modality.

Generalized contrastive loss (GCL, arXiv 2509.25638, equation 2), for modalities M, pairs k of the batch and terms (a, b), a != b:

    L_ab = mean over j of -log  exp(s e_a^j . e_b^j) / sum over m in M and k of exp(s e_a^j . e_m^k)

The anchor itself (m = a, k = j) is left out of the sum, as the paper's figure and text say; `mask_self=False` keeps it, as its
equation is printed. The other positives stay in the sum, so no configuration gets below log(len(M) - 1). The mean over all terms
is SupCon's L_out (Khosla et al. 2020, arXiv 2004.11362, equation 2) with the pair as label; with two modalities it is NT-Xent.

An anchor has one denominator whatever terms are added up: `denominators` is computed once, and a `term` costs a row sum. Where an
ablation leaves a term out, its modality stays in the denominators.
"""
from collections.abc import Mapping
from itertools import permutations

import jax
import jax.numpy as jnp

from mcd_jax.losses import contrastive
from mcd_jax.losses.ssl import unit
from mcd_jax.sharding import ring


def denominators(embeddings: Mapping[str, jax.Array], scale: float | jax.Array, mask_self: bool = True,
                 implementation: str = "auto") -> dict[str, jax.Array]:
    """Log of every anchor's denominator: modality -> (B,) float32.

    Args:
      embeddings: modality -> (B, D) unit rows; row j of each belongs to pair j.
      scale: () inverse temperature.
      mask_self: whether the anchor itself is left out.

    One `contrastive.lse` over M * B rows, ordered pair by pair: the rows of a pair stay on the device that holds the pair.
    """
    stacked = jnp.stack([z.astype(jnp.float32) for z in embeddings.values()], axis=1)
    batch, count, dim = stacked.shape
    rows = stacked.reshape(batch * count, dim)
    found, _ = contrastive.lse(rows, rows, scale, ring.off_diagonal if mask_self else None, columns=False,
                               implementation=implementation)
    return dict(zip(embeddings, jnp.unstack(found.reshape(batch, count), axis=1), strict=True))


def term(anchor: jax.Array, target: jax.Array, denominator: jax.Array, scale: float | jax.Array,
         implementation: str = "auto") -> jax.Array:
    """L_ab, () float32, nats: anchor (B, D) of modality a, target (B, D) of modality b, the denominator (B,) of a."""
    return jnp.mean(denominator - scale * contrastive.matching(anchor, contrastive.seen(target, implementation)))


def generalized(embeddings: Mapping[str, jax.Array], scale: float | jax.Array,
                weights: Mapping[tuple[str, str], float] | None = None, mask_self: bool = True,
                implementation: str = "auto") -> jax.Array:
    """The generalized contrastive loss, () float32, nats.

    Args:
      embeddings, scale, mask_self: as `denominators`.
      weights: (a, b) -> factor of L_ab; None: 1 / (number of terms) for every ordered pair of modalities, the paper's loss.

    Raises:
      ValueError: a weight of a term that there isn't.
    """
    every = list(permutations(embeddings, 2))
    weights = dict.fromkeys(every, 1 / len(every)) if weights is None else weights
    for pair in weights:
        if pair not in every:
            raise ValueError(f"weights has {pair}, and the modalities are {', '.join(embeddings)}")
    below = denominators(embeddings, scale, mask_self, implementation)
    return sum((w * term(embeddings[a], embeddings[b], below[a], scale, implementation) for (a, b), w in weights.items()),
               jnp.float32(0))


def separation(x: jax.Array, y: jax.Array, scale: float | jax.Array, alike: jax.Array | None = None,
               implementation: str = "auto") -> jax.Array:
    """Embeddings of one modality pushed apart: cross-entropy of each row of x with its own y against the other x, () float32, nats.

    Logits: scale * (1 - alike_ij) * x_i . x_j for the others, scale * x_i . y_i for the target, which alone gets y's gradient.

    Args:
      x, y: (B, D) unit rows, row i of y the other side of pair i.
      scale: () inverse temperature.
      alike: how alike pairs are: (B, S) float, frozen embeddings of their captions (of any length), whose cosine it is; or (B,)
        integers, 1 where they are equal; None: 0 everywhere. Pairs of alike 1 keep a logit of 0, as in the code. No gradient.

    Source: Eslami and de Melo 2024 (AlignCLIP), `ClipInModalityLoss` of the code, which adds beta = 0.5 times this for texts,
    images or both to the sum (not the mean) of both directions of CLIP's loss.
    """
    if alike is None:
        factor, aux = None, ()
    elif jnp.issubdtype(alike.dtype, jnp.floating):
        factor, aux = _unlike, unit(alike)
    else:
        factor, aux = _different, alike
    others, _ = contrastive.lse(x, x, scale, ring.off_diagonal, aux, aux, columns=False, implementation=implementation,
                                factor=factor)
    own = scale * contrastive.matching(x, y)
    return jnp.mean(jnp.logaddexp(others, own) - own)


def _unlike(rows, keys, i, j):
    return 1.0 - jnp.einsum("rs,ks->rk", rows, keys, precision="highest")


def _different(rows, keys, i, j):
    return (rows[:, None] != keys[None, :]).astype(jnp.float32)


def centroid_cosine(x: jax.Array, y: jax.Array) -> jax.Array:
    """Cosine between the means of the rows of x (B, D) and of y (B, D), () float32: 1 without a gap between the modalities."""
    return contrastive.matching(unit(jnp.mean(x.astype(jnp.float32), 0)), unit(jnp.mean(y.astype(jnp.float32), 0)))
