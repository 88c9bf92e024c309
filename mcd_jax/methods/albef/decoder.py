"""A decoder of short texts, such as answers, on top of a fused text: BERT layers that see no later word, and attend to the states.

Its layers have the shape of fusion layers (`fusion_layers.py`), so that they can start as copies of them, and its tables that of
the text tower's (Li et al. 2021, ALBEF, and its code, models/model_vqa.py: an own embedding, an own head of words).
"""
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from mcd_jax.methods.albef import fusion_layers
from mcd_jax.models import bert
from mcd_jax.sharding.constrain import params_at


class Decoder(NamedTuple):
    """What `make` returns. b texts of T tokens, W the tower's width, read states (b, L, V).

    init: (key) -> {"decoder": {"token", "position", "type", "ln_embed", "block_i"}, "answers": {"dense", "ln", "bias"}}, float32.
    logits: (params, tokens int32 (b, T), states (b, L, V), seen bool (b, L), noise=None) -> float32 (b, T, ids): at each position
        those of the word after it; `params` has the two entries, `noise` float32 (b, noise_depth) turns dropout on.
    noise_depth: columns of noise, 0 where the tower has no dropout.
    context: the longest text in tokens.
    """
    init: Callable[[jax.Array], dict]
    logits: Callable[..., jax.Array]
    noise_depth: int
    context: int


class Layers(nn.Module):
    """tokens int32 (B, T) -> (B, T, W), with the fields of a `bert.Bert`, whose `depth` is the decoder's."""
    tower: Any

    @nn.compact
    def __call__(self, tokens, states, seen, noise=None):
        t, length = self.tower, tokens.shape[1]
        table, position, kind = (self.param(name, nn.initializers.normal(bert.STD), (rows, t.width)) for name, rows in (
            ("token", t.vocab_size + t.spare_ids), ("position", t.positions), ("type", t.types)))
        x = table[tokens] + (position[:length] + kind[0][None])[None]
        x = nn.LayerNorm(epsilon=t.eps, dtype=t.dtype, name="ln_embed")(x.astype(t.dtype))
        if noise is not None:
            x = bert.drop(x, bert.seeds(noise[:, t.depth]), 0, t.dropout)
        return bert.layers(x, tokens != t.pad, cross=states.astype(t.dtype), cross_seen=seen, causal=True,
                           noise=None if noise is None else noise[:, :t.depth], dropout=t.dropout, depth=t.depth,
                           num_heads=t.num_heads, mlp_dim=t.mlp_dim, act=t.act, eps=t.eps, dtype=t.dtype, scan=t.scan,
                           remat=t.remat, owner=self)[0]


def make(tower: bert.Bert, depth: int) -> Decoder:
    """A decoder that reads states as wide as the tower's.

    Args:
      tower: the `bert.Bert` whose sizes, vocabulary and table of positions it has. depth: its layers.

    Raises:
      ValueError: a text tower of another kind, or no layer.
    """
    if not isinstance(tower, bert.Bert):
        raise ValueError("config.model.text.name must be 'bert': a decoder has the sizes and the vocabulary of a BERT")
    if isinstance(depth, bool) or not isinstance(depth, int) or depth < 1:
        raise ValueError(f"config.objective.decoder_layers={depth!r} must be a whole number of at least 1")
    tower = tower.clone(depth=depth)
    layers, transform = Layers(tower), fusion_layers.Words(tower)

    def init(key):
        k_layers, k_words = jax.random.split(key)
        states, tokens = jnp.zeros((1, 1, tower.width), tower.dtype), jnp.zeros((1, 2), jnp.int32)
        words = transform.init(k_words, states)["params"]
        return {"decoder": layers.init(k_layers, tokens, states, jnp.ones((1, 1), bool))["params"],
                "answers": {**words, "bias": jnp.zeros((tower.vocab_size + tower.spare_ids,))}}

    def logits(params, tokens, states, seen, noise=None):
        with params_at("decoder"):
            x = layers.apply({"params": params["decoder"]}, tokens, states, seen, noise if tower.dropout else None)
        return fusion_layers.words_of(transform, params["answers"], params["decoder"]["token"], x)

    return Decoder(init, logits, depth + 1 if tower.dropout else 0, tower.positions)
