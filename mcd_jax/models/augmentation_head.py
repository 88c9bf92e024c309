"""A head that is told what an augmentation did, so that the tower below it needn't know: UniCLIP's, as far as it is described.

Lee et al., NeurIPS 2022 (arXiv 2209.13430): the augmentation's parameters are encoded by an MLP and joined to the feature in a
residual MLP. Its sizes and the exact vector are not in what was available to us: a reconstruction.
"""
from collections.abc import Callable
from typing import NamedTuple

import flax.linen as nn
import jax.numpy as jnp
import numpy as np

UNTOUCHED = np.float32([0, 0, 1, 1, 0, 1, 1, 1, 0, 0, 0, 0])   # a view's `params` of an image to which nothing was done


class AugmentationHead(NamedTuple):
    init: Callable    # (key) -> params
    apply: Callable   # (params, x (B, D), what (B, 12) or None for images to which nothing was done) -> f32 (B, D)


class _Residual(nn.Module):
    hidden: int

    @nn.compact
    def __call__(self, x, what):
        told = nn.Dense(self.hidden, name="told_out")(nn.relu(nn.Dense(self.hidden, name="told_in")(what)))
        both = jnp.concatenate([x, told], axis=-1)
        return x + nn.Dense(x.shape[-1], name="out")(nn.relu(nn.Dense(self.hidden, name="in")(both)))


def make(width: int, hidden: int) -> AugmentationHead:
    """The head of embeddings (B, width); `what` is the batch key "<view>/params"."""
    mlp = _Residual(hidden)

    def apply(params, x, what=None):
        what = jnp.zeros((len(x), len(UNTOUCHED))) if what is None else what - UNTOUCHED[None]
        return mlp.apply({"params": params}, x.astype(jnp.float32), what)

    return AugmentationHead(
        init=lambda key: mlp.init(key, jnp.zeros((1, width)), jnp.zeros((1, len(UNTOUCHED))))["params"], apply=apply)
