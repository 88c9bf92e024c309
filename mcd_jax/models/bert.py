"""BERT's encoder as a text tower (Devlin et al. 2018, arXiv 1810.04805): MiniLM, sentence-transformers, later fusion layers.

Post-normalised: every sublayer is x <- LayerNorm(x + sublayer(x)), so there is no last norm and no drop path. Hidden states equal
Hugging Face's BertModel without its pooler. Dropout is off unless the option `dropout` is set and random numbers are given.
"""
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from mcd_jax.models import transformer
from mcd_jax.models.heads import masked_mean
from mcd_jax.models.variants import BERT, bert_variant
from mcd_jax.sharding.constrain import shard_batch

STD = 0.02   # of all weights at the start (BertConfig.initializer_range)


def make(options, *, vocab_size, context, eot, dtype, pad=0):
    """A BERT from `config.model.text` (less its name): a variant such as "MiniLM-L6", and any field of Bert to override.

    Raises:
      ValueError: an option that isn't one, or a size that doesn't fit; the sentence names it.
    """
    options = {**bert_variant(options.get("variant")), **{k: v for k, v in options.items() if k != "variant"}}
    options.setdefault("mlp_dim", 4 * options.get("width", Bert.width))
    options["positions"] = options.get("positions") or context
    bert = transformer.build("model.text", Bert, options, vocab_size=vocab_size, context=context, eot=eot, pad=pad, dtype=dtype)
    if bert.width < 1 or bert.depth < 1 or bert.num_heads < 1 or bert.width % bert.num_heads:
        raise ValueError(f"config.model.text: width={bert.width} must be a multiple of num_heads={bert.num_heads}, "
                         f"and depth={bert.depth} at least 1")
    for name, known in (("act", transformer.ACTIVATIONS), ("remat", transformer.REMAT), ("pool", ("mean", "first"))):
        transformer.choose("model.text", name, getattr(bert, name), known)
    if bert.positions < context:
        raise ValueError(f"config.model.text.positions={bert.positions}: texts have {context} tokens, so at least that")
    if not 0 <= bert.dropout < 1 or bert.spare_ids < 0:
        raise ValueError(f"config.model.text: dropout={bert.dropout} must be in [0, 1) and spare_ids={bert.spare_ids} at least 0")
    if bert.types < 1:
        raise ValueError(f"config.model.text.types={bert.types} must be at least 1")
    return bert


class Bert(nn.Module):
    """tokens int32 (B, L) -> dict of "embedded" (B, L, W), "block_i", "tokens" (B, L, W): the last block's, "pooled" (B, W).

    Attention doesn't look at padding. Pooling: "mean" over the tokens that aren't padding, start and end included, as
    sentence-transformers; "first" the start token ([CLS]). All tokens have type 0. path_noise float32 (B, path_depth), uniform in
    [0, 1), turns dropout on; each number is the seed of one row in one layer, the last of the embeddings.
    """
    vocab_size: int
    context: int
    eot: int
    pad: int = 0
    width: int = 384
    depth: int = 6
    mlp_dim: int = 1536
    num_heads: int = 12
    positions: int = 512         # rows of the table of positions, at least the context; 0: the context
    types: int = 2               # rows of the table of token types, of which the first is used
    spare_ids: int = 0           # ids beyond the tokenizer's vocabulary, such as a [MASK] that it doesn't have
    dropout: float = 0.0         # of embeddings, attention weights and sublayers, in training (BERT: 0.1)
    pool: str = "mean"           # mean | first
    act: str = "gelu"
    eps: float = 1e-12
    scan: bool = False
    remat: str = "none"
    dtype: Any = jnp.float32

    @property
    def path_depth(self):
        return self.depth + 1 if self.dropout else 0

    @nn.compact
    def __call__(self, tokens, path_noise=None):
        length = tokens.shape[1]
        if length > self.positions:   # longer than in training is no fault: the published models' table has 512
            raise ValueError(f"text has {length} tokens and the tower has positions for {self.positions} "
                             f"(config.model.text.positions): tokenize({self.positions}) fits")
        table, position, kind = (self.param(name, nn.initializers.normal(STD), (rows, self.width)) for name, rows in (
            ("token", self.vocab_size + self.spare_ids), ("position", self.positions), ("type", self.types)))
        x = table[tokens] + (position[:length] + kind[0][None])[None]
        x = nn.LayerNorm(epsilon=self.eps, dtype=self.dtype, name="ln_embed")(x.astype(self.dtype))
        noise = path_noise if self.dropout else None
        if noise is not None:
            x = drop(x, seeds(noise[:, self.depth]), 0, self.dropout)
        out = {"embedded": x}
        seen = tokens != self.pad
        x, blocks = layers(
            x, seen, noise=None if noise is None else noise[:, :self.depth], dropout=self.dropout, depth=self.depth,
            num_heads=self.num_heads, mlp_dim=self.mlp_dim, act=self.act, eps=self.eps,
            dtype=self.dtype, scan=self.scan, remat=self.remat, owner=self)
        pooled = x[:, 0] if self.pool == "first" else masked_mean(x, seen)
        return {**out, **blocks, "tokens": x, "pooled": pooled}


TOWER = Bert   # its fields are keys of config.model
VARIANTS = tuple(BERT)


def layers(x, seen, *, cross=None, cross_seen=None, noise=None, dropout=0.0, causal=False, **options):
    """BERT's layers inside the calling module's scope: those of a text tower or, given `cross`, fusion layers.

    Args:
      x: (B, L, W) states; seen: bool (B, L), False at padding.
      cross: (B, M, V) tokens that every layer attends to between its self-attention and its MLP; None: no such sublayer.
      cross_seen: bool (B, M), or None where all are seen.
      noise: float32 (B, depth) uniform in [0, 1), the seeds of dropout for each row and layer; None: no dropout.
      dropout: its rate.
      causal: whether a position only sees itself and those before it.
      **options: as `transformer.run_blocks` takes.

    Returns:
      The last states and a dict "block_i" -> states after layer i.
    """
    inputs = () if cross is None else (cross, None if cross_seen is None else mask_of(cross_seen))
    if noise is not None:
        inputs = (*(inputs or (None, None)), jnp.float32(dropout))
    gain = None if noise is None else seeds(noise).T
    own = mask_of(seen)
    if causal:
        own = own & jnp.tril(jnp.ones((x.shape[1],) * 2, bool))[None, None]
    return transformer.run_blocks(x, mask=own, layer=Block, inputs=inputs, gain=gain, **options)


def seeds(noise):
    """uint32 like `noise`, the bits of float32 numbers."""
    return jax.lax.bitcast_convert_type(noise.astype(jnp.float32), jnp.uint32)


def mask_of(seen):
    """bool (B, 1, 1, N) of `seen` (B, N); a row of padding only sees its first position, so that softmax stays finite."""
    return (seen | ((jnp.arange(seen.shape[1]) == 0)[None] & ~seen.any(1, keepdims=True)))[:, None, None]


def drop(x, seed, site, rate):
    """x (B, ...) with elements dropped and the others divided by the probability to stay.

    What is dropped of a row follows from its seed, uint32 (B,), from the number of the site and from the element's place alone, not
    from the other rows: it depends neither on microbatches nor on the mesh. The bits are two rounds of murmur3's finaliser over
    these three; jax.random's own, split by rows and sites, take minutes to compile.
    """
    place = jnp.zeros(x.shape[1:], jnp.uint32)
    for axis, size in enumerate(x.shape[1:]):
        place = place * jnp.uint32(size) + jax.lax.broadcasted_iota(jnp.uint32, x.shape[1:], axis)
    first = _mixed(seed + jnp.uint32(site) * jnp.uint32(0x9E3779B9))
    bits = _mixed(first.reshape(-1, *[1] * (x.ndim - 1)) ^ _mixed(place)[None])
    stays = bits.astype(jnp.float32) * 2.0 ** -32 >= rate
    return jnp.where(stays, x / (1 - rate), 0).astype(x.dtype)


def _mixed(x):
    """murmur3's 32-bit finaliser (public domain), uint32."""
    for shift, factor in ((16, 0x85EBCA6B), (13, 0xC2B2AE35)):
        x = (x ^ (x >> shift)) * jnp.uint32(factor)
    return x ^ (x >> 16)


class Block(nn.Module):
    """x (B, L, W) -> (x', x'): self-attention, then attention to `cross` where it is given, then an MLP, a norm after each.

    `gain` holds the seeds of dropout, uint32 (B,), or is None: no dropout. There is no drop path in BERT. `weigh`, if given, is
    applied to the weights of the attention to `cross`, float32 (B, heads, L, M), in place of dropout.
    """
    num_heads: int
    mlp_dim: int
    depth: int
    act: str = "gelu"
    eps: float = 1e-12
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x, gain, mask, cross=None, cross_mask=None, rate=None, weigh=None):
        def dropped(site):
            return None if gain is None else lambda y: drop(y, gain, site, rate)

        def added(x, y, site):
            return x + (y if gain is None else drop(y, gain, site, rate))

        def norm(name, x):
            return nn.LayerNorm(epsilon=self.eps, dtype=self.dtype, name=name)(x)

        def attend(name, x, keys, mask, site, weigh=None):
            y = transformer.Attention(self.num_heads, self.dtype, std=STD, name=name)(x, keys, mask, weigh or dropped(site))
            return added(x, y, site + 1)

        x = norm("ln_attn", attend("attn", x, x, mask, 0))
        if cross is not None:
            x = norm("ln_cross", attend("cross", x, cross, cross_mask, 2, weigh))
        x = norm("ln_mlp", added(x, transformer.Mlp(self.mlp_dim, self.act, self.dtype, std=STD, name="mlp")(x), 4))
        x = shard_batch(x)
        return x, x
