"""MP-NCE: one contrastive loss over any number of views of images and texts, each of which has several positives.

After UniCLIP (Lee et al., NeurIPS 2022, arXiv 2209.13430), of which the abstract was available to us and a third party's
description of the loss (deepnoid-ai/RadZero), no official code: a reconstruction.
"""
from collections.abc import Callable, Mapping, Sequence

import jax
import jax.numpy as jnp

from mcd_jax.losses import contrastive
from mcd_jax.sharding import ring

DENOMINATORS = ("apart", "supcon", "mil")


def of_anchor(positives: Sequence[jax.Array], negatives: jax.Array, weights: Sequence[float] | None = None,
              denominator: str = "apart") -> jax.Array:
    """The loss of each anchor, float32 (B,), nats.

    apart:  mean over p of weight_p * -log(e^p / (e^p + sum of e^n)): other positives are left out of the denominator (MP-NCE)
    supcon: all positives stand in each denominator (Khosla et al. 2020)
    mil:    -log(sum of e^p / (sum of e^p + sum of e^n)) (Miech et al. 2020); weights don't enter

    Args:
      positives: P scaled similarities, each (B,). negatives: (B,), the log-sum-exp of those of an anchor's negatives.
      weights: of the positives; None: 1 each.
      denominator: one of DENOMINATORS.

    Raises:
      ValueError: another denominator.
    """
    if denominator not in DENOMINATORS:
        raise ValueError(f"denominator={denominator!r} must be one of {', '.join(DENOMINATORS)}")
    weights = [1.0] * len(positives) if weights is None else weights
    together = jax.nn.logsumexp(jnp.stack(list(positives)), axis=0)
    if denominator == "mil":
        return jnp.logaddexp(together, negatives) - together
    below = [jnp.logaddexp(positive if denominator == "apart" else together, negatives) for positive in positives]
    return jnp.mean(jnp.stack([w * (b - p) for w, b, p in zip(weights, below, positives)]), axis=0)


def loss(views: Mapping[str, jax.Array], domain: Callable[[str, str], str], scales: Mapping[str, jax.Array],
         biases: Mapping[str, jax.Array], weights: Mapping[str, float], denominator: str = "apart",
         implementation: str = "auto") -> jax.Array:
    """Mean of `of_anchor` over every row of every view, float32 ().

    The positives of a row are the same row of the other views; its negatives are all other rows of every view, its own too. A
    similarity is scale * (cosine - bias), with the numbers of the two views' domain.

    Args:
      views: name -> unit rows (B, D); two at least.
      domain: (view, view) -> a name in the three mappings, the same for both orders.
      scales: inverse temperatures, (); biases: of cosines, (); weights: of positives.
      denominator, implementation: as `of_anchor` and the contrastive losses take them.
    """
    names = list(views)
    positives, negatives = {name: {} for name in names}, {name: [] for name in names}
    for i, a in enumerate(names):
        for b in names[i:]:
            kind, x, y = domain(a, b), views[a], views[b]
            scale, shift = scales[kind], scales[kind] * biases[kind]
            rows, columns = contrastive.lse(x, y, scale, ring.off_diagonal, columns=a != b, implementation=implementation)
            negatives[a].append(rows - shift)
            if a != b:
                negatives[b].append(columns - shift)
                positives[a][b] = positives[b][a] = scale * contrastive.matching(x, contrastive.seen(y, implementation)) - shift

    def of_view(a):
        below, own = jax.nn.logsumexp(jnp.stack(negatives[a]), axis=0), [weights[domain(a, b)] for b in positives[a]]
        return jnp.mean(of_anchor(list(positives[a].values()), below, own, denominator))
    return jnp.mean(jnp.stack([of_view(name) for name in names]))
