"""The projection head of image-image self-supervision."""
from collections.abc import Callable
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp


class Projector(NamedTuple):
    init: Callable    # (key) -> params
    apply: Callable   # (params, x (B, W)) -> (B, out_dim) f32


class _MLP(nn.Module):
    hidden: int
    out_dim: int
    layers: int

    @nn.compact
    def __call__(self, x):
        for i in range(self.layers - 1):
            x = nn.Dense(self.hidden, use_bias=False, name=f"dense_{i}")(x)
            x = nn.relu(nn.LayerNorm(name=f"norm_{i}")(x))
        return nn.Dense(self.out_dim, use_bias=False, name=f"dense_{self.layers - 1}")(x)


def make(width, hidden, out_dim, layers=3):
    """An MLP `width -> hidden -> ... -> out_dim`, as SLIP's (models.py `_build_mlp`), with layer for batch normalisation.

    Batch statistics would be state that is neither a parameter nor memory, and they leak across the batch; SLIP's issue 30 reports
    NaNs from them.
    """
    mlp = _MLP(hidden, out_dim, layers)
    return Projector(init=lambda key: mlp.init(key, jnp.zeros((1, width)))["params"],
                     apply=lambda params, x: mlp.apply({"params": params}, x).astype(jnp.float32))


def width_of(image, params, shape):
    """Width of the pooled features that the image tower `image(params, pixels)` gives for pixels of `shape`, without computing."""
    out = jax.eval_shape(image, params, jax.ShapeDtypeStruct(shape, jnp.uint8))
    return out["pooled"].shape[-1]
