"""Networks that guess the interaction of a coalition and how far off the guess may be: a value and an uncertainty in (0, 1).

A reconstruction of LOUPE's UNSIL (arXiv 2208.02515), whose layers are unknown. `of_regions` is a small pre-normalised transformer
over an image's tokens, marked with whether they are in the coalition; `of_pairs` follows the shape of the estimator of HBI
(jpthu17/HBI, HBI/models/banzhaf.py) for the pairs of regions and phrases: a convolution, self-attention over the cells, a residual,
and a convolution. Who calls them stops the gradient into what they are given.
"""
from collections.abc import Callable
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from mcd_jax.models import transformer

LEAST = 1e-3   # of the uncertainty, and of what it lacks to 1


class Estimator(NamedTuple):
    """init: (key) -> params; apply: (params, *inputs) -> (value, sigma), f32."""
    init: Callable[[jax.Array], dict]
    apply: Callable[..., tuple[jax.Array, jax.Array]]


def _outputs(x):
    """(value, sigma) of the last axis, which has length 2."""
    x = x.astype(jnp.float32)
    return x[..., 0], jnp.clip(jax.nn.sigmoid(x[..., 1]), LEAST, 1 - LEAST)


class _OfRegions(nn.Module):
    width: int
    depth: int
    num_heads: int

    @nn.compact
    def __call__(self, tokens, text, coalition):
        batch, count, cells = coalition.shape
        flag = self.param("flag", nn.initializers.normal(0.1), (2, self.width))
        x = nn.LayerNorm(name="norm")(nn.Dense(self.width, name="tokens")(tokens))
        x = x[:, None] + flag[coalition.astype(jnp.int32)]
        caption = nn.LayerNorm(name="norm_text")(nn.Dense(self.width, name="text")(text))[:, None, None]
        x = jnp.concatenate([x, jnp.broadcast_to(caption, (batch, count, 1, self.width))], axis=2)
        x, _ = transformer.run_blocks(
            x.reshape(batch * count, cells + 1, self.width), depth=self.depth, num_heads=self.num_heads, mlp_dim=4 * self.width,
            act="gelu", eps=1e-5, dtype=jnp.float32, scan=False, remat="none", owner=self)
        x = x.reshape(batch, count, cells + 1, self.width)
        weight = coalition[..., None].astype(jnp.float32)
        inside = (x[:, :, :-1] * weight).sum(2) / jnp.maximum(weight.sum(2), 1.0)
        x = nn.LayerNorm(name="norm_out")(jnp.concatenate([inside, x[:, :, -1]], axis=-1))
        return nn.Dense(2, name="out")(nn.gelu(nn.Dense(self.width, name="hidden")(x)))


def of_regions(tokens: tuple[int, int], text: int, width: int, depth: int, num_heads: int) -> Estimator:
    """The estimator of the token level: (params, tokens (B, N, W), text (B, D), coalition bool (B, M, N)) -> (B, M) twice.

    Args:
      tokens: (N, W). text: D.

    Raises:
      ValueError: a width that the heads don't divide.
    """
    if width < 1 or depth < 1 or num_heads < 1 or width % num_heads:
        raise ValueError(f"config.objective: estimator_width={width} must be a multiple of estimator_heads={num_heads}, "
                         f"and estimator_depth={depth} at least 1")
    net = _OfRegions(width, depth, num_heads)
    cells, channels = tokens
    zeros = jnp.zeros((1, cells, channels)), jnp.zeros((1, text)), jnp.zeros((1, 1, cells), bool)
    return Estimator(init=lambda key: net.init(key, *zeros)["params"],
                     apply=lambda params, *inputs: _outputs(net.apply({"params": params}, *inputs)))


class _OfPairs(nn.Module):
    width: int

    @nn.compact
    def __call__(self, scores, phrases):
        there = jnp.broadcast_to(phrases[:, None], scores.shape)
        x = jnp.stack([jnp.where(there, scores, 0.0), there.astype(jnp.float32)], axis=-1)
        x = nn.gelu(nn.Conv(self.width, (3, 3), name="in")(x))
        flat = nn.LayerNorm(name="norm")(x.reshape(len(x), -1, self.width))
        y = transformer.Attention(1, name="attn")(flat, flat)
        x = x + y.reshape(x.shape)
        return nn.Conv(2, (3, 3), name="out")(x)


def of_pairs(width: int = 64) -> Estimator:
    """The estimator of the semantics level: (params, scores (B, M, P), phrases bool (B, P)) -> (B, M, P) twice."""
    net = _OfPairs(width)
    return Estimator(init=lambda key: net.init(key, jnp.zeros((1, 2, 2)), jnp.zeros((1, 2), bool))["params"],
                     apply=lambda params, *inputs: _outputs(net.apply({"params": params}, *inputs)))
