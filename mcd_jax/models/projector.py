"""Small MLPs behind a tower: the projection heads of self-supervision, predictors, a linear head over words."""
from collections.abc import Callable
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

NORMS = ("layer", "batch")


class Projector(NamedTuple):
    init: Callable    # (key) -> params
    apply: Callable   # (params, x (..., W); (B, W) with "batch") -> (..., out_dim) f32


class BatchNorm(nn.Module):
    """Batch normalisation by the whole of x (B, W), of which there is no average: for heads that nothing but a loss reads.

    Under an ambient mesh x is the global batch, so the result doesn't depend on how many devices there are, nor on microbatches
    where it is applied behind them.
    """
    eps: float = 1e-5

    @nn.compact
    def __call__(self, x):
        scale, bias = self.param("scale", nn.initializers.ones, (x.shape[-1],)), self.param("bias", nn.initializers.zeros,
                                                                                            (x.shape[-1],))
        x = x.astype(jnp.float32)
        centred = x - jnp.mean(x, axis=0, keepdims=True)
        deviation = jnp.sqrt(jnp.mean(centred ** 2, axis=0, keepdims=True) + self.eps)
        return centred / deviation * scale[None] + bias[None]


class _MLP(nn.Module):
    hidden: int
    out_dim: int
    layers: int
    norm: str = "layer"
    last_norm: bool = False
    last_bias: bool = False

    @nn.compact
    def __call__(self, x):
        norm, last = {"layer": nn.LayerNorm, "batch": BatchNorm}[self.norm], self.layers - 1
        for i in range(last):
            x = nn.Dense(self.hidden, use_bias=False, name=f"dense_{i}")(x)
            x = nn.relu(norm(name=f"norm_{i}")(x))
        x = nn.Dense(self.out_dim, use_bias=self.last_bias, name=f"dense_{last}")(x)
        return norm(name=f"norm_{last}")(x) if self.last_norm else x


def make(width: int, hidden: int, out_dim: int, layers: int = 3, norm: str = "layer", last_norm: bool = False,
         last_bias: bool = False) -> Projector:
    """An MLP `width -> hidden -> ... -> out_dim`, as SLIP's (models.py `_build_mlp`), with layer for batch normalisation.

    Batch statistics would be state that is neither a parameter nor memory, and they leak across the batch; SLIP's issue 30 reports
    NaNs from them.

    Args:
      layers: matrices; 1: a linear map, and no `hidden`.
      norm: one of NORMS, behind each layer but the last. "batch" is `BatchNorm`, which keeps no statistics.
      last_norm: whether it stands behind the last one too. last_bias: whether that one has a bias.
    """
    mlp = _MLP(hidden, out_dim, layers, norm, last_norm, last_bias)
    return Projector(init=lambda key: mlp.init(key, jnp.zeros((1, width)))["params"],
                     apply=lambda params, x: mlp.apply({"params": params}, x).astype(jnp.float32))


def width_of(image, params, shape):
    """Width of the pooled features that the image tower `image(params, pixels)` gives for pixels of `shape`, without computing."""
    out = jax.eval_shape(image, params, jax.ShapeDtypeStruct(shape, jnp.uint8))
    return out["pooled"].shape[-1]
