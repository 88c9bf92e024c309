"""Layers that read a text together with an image, on top of a BERT text tower, and the heads of masked words and of matching.

A BERT is split in two: its first layers are the text tower, the rest are the layers here, each with attention to the image's tokens
between its self-attention and its MLP (Li et al. 2021, ALBEF, section 3.1). They have the sizes of the tower.
"""
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from mcd_jax.models import bert, transformer
from mcd_jax.models.heads import masked_mean

MATCH = 1   # of the two logits of `Cross.match`, the one that says that image and text belong together


class Cross(NamedTuple):
    """What `make` returns. b texts of L tokens, W the tower's width, images of M tokens of any width.

    init: (key) -> {"fusion": {...}, "mlm": {"dense", "ln", "bias"}, "itm": {"kernel", "bias"}}, float32.
    fuse: (params["fusion"], states (b, L, W), seen bool (b, L), image (b, M, V), noise=None) -> {"tokens" (b, L, W), "pooled" (b,
        W)}, pooled as the text tower pools; `noise` float32 (b, noise_depth) in [0, 1) turns the tower's dropout on.
    words: (params["mlm"], table (ids, W), tokens (b, L, W)) -> float32 (b, L, ids): BERT's head, its last matrix the word table.
    match: (params["itm"], pooled (b, W)) -> float32 (b, 2).
    noise_depth: columns of noise, 0 where the tower has no dropout.
    """
    init: Callable
    fuse: Callable
    words: Callable
    match: Callable
    noise_depth: int


class Layers(nn.Module):
    """The fusion layers of a `bert.Bert`, whose `depth` is theirs."""
    tower: Any

    @nn.compact
    def __call__(self, x, seen, cross, noise=None):
        t = self.tower
        return bert.layers(x.astype(t.dtype), seen, cross=cross.astype(t.dtype), noise=noise, dropout=t.dropout, depth=t.depth,
                           num_heads=t.num_heads, mlp_dim=t.mlp_dim, act=t.act, eps=t.eps, dtype=t.dtype, scan=t.scan,
                           remat=t.remat, init=self.is_initializing())[0]


class Words(nn.Module):
    """BERT's transform before its decoder: dense, activation, norm."""
    tower: Any

    @nn.compact
    def __call__(self, x):
        t = self.tower
        x = nn.Dense(t.width, dtype=t.dtype, kernel_init=nn.initializers.normal(bert.STD), name="dense")(x)
        return nn.LayerNorm(epsilon=t.eps, dtype=t.dtype, name="ln")(transformer.ACTIVATIONS[t.act](x))


def make(tower, depth, image_width):
    """The fusion layers on top of a text tower.

    Args:
      tower: the `bert.Bert` below. depth: fusion layers. image_width: of the image's tokens.

    Raises:
      ValueError: a text tower of another kind, or no layer.
    """
    if not isinstance(tower, bert.Bert):
        raise ValueError("config.model.text.name must be 'bert': fusion layers continue a BERT")
    if isinstance(depth, bool) or not isinstance(depth, int) or depth < 1:
        raise ValueError(f"config.objective.fusion_layers={depth!r} must be a whole number of at least 1")
    tower = tower.clone(depth=depth)
    layers, transform = Layers(tower), Words(tower)

    def init(key):
        k_layers, k_words, k_match = jax.random.split(key, 3)
        states, image = jnp.zeros((1, tower.context, tower.width), tower.dtype), jnp.zeros((1, 1, image_width), tower.dtype)
        words = transform.init(k_words, states)["params"]
        return {"fusion": layers.init(k_layers, states, jnp.ones((1, tower.context), bool), image)["params"],
                "mlm": {**words, "bias": jnp.zeros((tower.vocab_size + tower.spare_ids,))},
                "itm": {"kernel": jax.random.normal(k_match, (tower.width, 2)) * bert.STD, "bias": jnp.zeros((2,))}}

    def fuse(params, states, seen, image, noise=None):
        x = layers.apply({"params": params}, states, seen, image, noise if tower.dropout else None)
        return {"tokens": x, "pooled": x[:, 0] if tower.pool == "first" else masked_mean(x, seen)}

    def words(params, table, tokens):
        x = transform.apply({"params": {k: v for k, v in params.items() if k != "bias"}}, tokens)
        return jnp.einsum("blw,vw->blv", x, table.astype(x.dtype), preferred_element_type=jnp.float32) + params["bias"][None, None]

    def match(params, pooled):
        return jnp.matmul(pooled.astype(jnp.float32), params["kernel"], precision="highest") + params["bias"][None]

    return Cross(init, fuse, words, match, depth if tower.dropout else 0)
