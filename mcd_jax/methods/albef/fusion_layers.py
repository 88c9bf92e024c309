"""Layers that read a text together with an image, on top of a BERT text tower, and the heads of masked words and of matching.

A BERT is split in two: its first layers are the text tower, the rest are the layers here, each with attention to the image's tokens
between its self-attention and its MLP (Li et al. 2021, ALBEF, section 3.1). They have the sizes of the tower.
"""
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from mcd_jax.models import bert, transformer
from mcd_jax.models.heads import masked_mean
from mcd_jax.objectives.objective import Tree
from mcd_jax.sharding.constrain import params_at

MATCH = 1   # of the two logits of `Cross.match`, the one that says that image and text belong together


class Cross(NamedTuple):
    """What `make` returns. b texts of L tokens, W the tower's width, images of M tokens of any width.

    init: (key) -> {"fusion": {...}, "mlm": {"dense", "ln", "bias"}, "itm": {"kernel", "bias"}}, float32.
    fuse: (params["fusion"], states (b, L, W), seen bool (b, L), image (b, M, V), noise=None) -> {"tokens" (b, L, W), "pooled" (b,
        W)}, pooled as the text tower pools; `noise` float32 (b, noise_depth) in [0, 1) turns the tower's dropout on.
    words: (params["mlm"], table (ids, W), tokens (b, L, W)) -> float32 (b, L, ids): BERT's head, its last matrix the word table.
    match: (params["itm"], pooled (b, W)) -> float32 (b, 2).
    relevance: (params {"fusion", "itm"}, states (b, L, W), seen bool (b, L), image (b, M, V)) -> (logits (b, 2), maps
        (b, layers, L, M)), float32: Grad-CAM of the match logit in every fusion layer, see `relevance`.
    noise_depth: columns of noise, 0 where the tower has no dropout.
    """
    init: Callable[[jax.Array], dict]
    fuse: Callable[..., dict]
    words: Callable[..., jax.Array]
    match: Callable[..., jax.Array]
    relevance: Callable[..., tuple[jax.Array, jax.Array]]
    noise_depth: int


class Layers(nn.Module):
    """The fusion layers of a `bert.Bert`, whose `depth` is theirs."""
    tower: Any

    @nn.compact
    def __call__(self, x, seen, cross, noise=None):
        t = self.tower
        return bert.layers(x.astype(t.dtype), seen, cross=cross.astype(t.dtype), noise=noise, dropout=t.dropout, depth=t.depth,
                           num_heads=t.num_heads, mlp_dim=t.mlp_dim, act=t.act, eps=t.eps, dtype=t.dtype, scan=t.scan,
                           remat=t.remat, owner=self)[0]


class Words(nn.Module):
    """BERT's transform before its decoder: dense, activation, norm."""
    tower: Any

    @nn.compact
    def __call__(self, x):
        t = self.tower
        x = nn.Dense(t.width, dtype=t.dtype, kernel_init=nn.initializers.normal(bert.STD), name="dense")(x)
        return nn.LayerNorm(epsilon=t.eps, dtype=t.dtype, name="ln")(transformer.ACTIVATIONS[t.act](x))


def relevance(tower: bert.Bert, logits: Callable, params: Tree, states: jax.Array, seen: jax.Array,
              image: jax.Array) -> tuple[jax.Array, jax.Array]:
    """How much each text position's attention to each image token speaks for a match, in every fusion layer.

    The weights A (b, heads, L, M) of a layer's attention to the image are taken as variables, G is the gradient of the match logit
    with respect to them, and the map is the mean over heads of A * max(G, 0); rows of padding are 0. Dropout is off.

    Args:
      tower: a `bert.Bert` whose depth is that of the fusion layers. logits: (params, last states, seen) -> (b, 2).
      params: {"fusion", "itm"}; the others as `Cross.relevance` takes them.

    Source: Selvaraju et al. 2017 (Grad-CAM) as Li et al. 2021 (ALBEF, section 4.5 and appendix) apply it to cross-attention.
    """
    blocks = transformer.unstacked(params["fusion"]) if tower.scan else params["fusion"]
    block = bert.Block(num_heads=tower.num_heads, mlp_dim=tower.mlp_dim, depth=tower.depth, act=tower.act, eps=tower.eps,
                       dtype=tower.dtype)
    mask, image = bert.mask_of(seen), image.astype(tower.dtype)

    def score(shifts):
        x, weights = states.astype(tower.dtype), []

        def weigh(found, shift):
            weights.append(found)
            return found + shift
        for i in range(tower.depth):
            x, _ = block.apply({"params": blocks[f"block_{i}"]}, x, None, mask, image, None, None, partial(weigh, shift=shifts[i]))
        found = logits(params, x, seen)
        return jnp.sum(found[:, MATCH]), (found, weights)

    zeros = jnp.zeros((tower.depth, len(states), tower.num_heads, states.shape[1], image.shape[1]))
    gradients, (found, weights) = jax.grad(score, has_aux=True)(zeros)
    maps = jnp.mean(jnp.stack(weights) * jnp.maximum(gradients, 0), axis=2)
    return found, jnp.where(seen[:, None, :, None], jnp.swapaxes(maps, 0, 1), 0.0)


def make(tower: bert.Bert, depth: int, image_width: int) -> Cross:
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

    def pool(x, seen):
        return x[:, 0] if tower.pool == "first" else masked_mean(x, seen)

    def fuse(params, states, seen, image, noise=None):
        with params_at("fusion"):
            x = layers.apply({"params": params}, states, seen, image, noise if tower.dropout else None)
        return {"tokens": x, "pooled": pool(x, seen)}

    def words(params, table, tokens):
        return words_of(transform, params, table, tokens)

    def match(params, pooled):
        return jnp.matmul(pooled.astype(jnp.float32), params["kernel"], precision="highest") + params["bias"][None]

    def logits(params, x, seen):
        return match(params["itm"], pool(x, seen))

    return Cross(init, fuse, words, match, partial(relevance, tower, logits), depth if tower.dropout else 0)


def words_of(transform: nn.Module, params: Tree, table: jax.Array, tokens: jax.Array) -> jax.Array:
    """float32 (b, L, ids): what BERT's head, {"dense", "ln", "bias"}, reads off `tokens` (b, L, W); `table` (ids, W) ends it."""
    x = transform.apply({"params": {k: v for k, v in params.items() if k != "bias"}}, tokens)
    return jnp.einsum("blw,vw->blv", x, table.astype(x.dtype), preferred_element_type=jnp.float32) + params["bias"][None, None]
