"""Poolings: (B, N, W) tokens to one (B, W) vector."""
from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from mcd_jax.models.transformer import Attention, Mlp


class AttentionPool(nn.Module):
    """A learned query attends to the tokens, then a residual MLP: the MAP head of Zhai et al. 2021 (arXiv 2106.04560) and SigLIP.

    tokens (B, N, W), mask bool (B, 1, 1, N) -> (B, W).
    """
    num_heads: int
    mlp_dim: int
    act: str = "gelu"
    eps: float = 1e-5
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, tokens, mask=None):
        batch, _, width = tokens.shape
        probe = self.param("probe", nn.initializers.normal(width ** -0.5), (1, 1, width))
        probe = jnp.broadcast_to(probe.astype(self.dtype), (batch, 1, width))
        x = Attention(self.num_heads, self.dtype, name="attn")(probe, tokens, mask)
        y = nn.LayerNorm(epsilon=self.eps, dtype=self.dtype, name="ln")(x)
        return (x + Mlp(self.mlp_dim, self.act, self.dtype, name="mlp")(y))[:, 0]


class GridPool(nn.Module):
    """CLIP's ResNet pooling (arXiv 2103.00020, 2.4): the mean token attends to itself and the grid, each with a learned position.

    tokens (B, cells, W) -> (B, W): CLIP's output projection is the tower's own `proj` here.
    """
    num_heads: int
    cells: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, tokens):
        _, count, width = tokens.shape
        if count != self.cells:
            raise ValueError(f"attention pooling was built for a grid of {self.cells} cells and got {count}: "
                             "use images of config.data's size, or pool='mean', which takes any size")
        x = jnp.concatenate([tokens.mean(1, keepdims=True), tokens], 1)
        x = x + self.param("position", nn.initializers.normal(width ** -0.5), (count + 1, width)).astype(self.dtype)[None]
        return Attention(self.num_heads, self.dtype, project=False, name="attn")(x[:, :1], x)[:, 0]


def masked_mean(tokens, seen):
    """Mean over the tokens (B, N, W) where `seen` (B, N) is True; 0 for a row that sees none."""
    weight = seen.astype(tokens.dtype)[:, :, None]
    return (tokens * weight).sum(1) / jnp.maximum(weight.sum(1), 1)
