"""Text transformer: causal with end-of-text pooling (CLIP, arXiv 2103.00020), or bidirectional (SigLIP, arXiv 2303.15343)."""
from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from mcd_jax.models import mixed, moe, transformer
from mcd_jax.models.heads import AttentionPool, masked_mean
from mcd_jax.models.variants import CLIP_TEXT, TRANSFORMERS, text_variant

IMAGE_TOKEN = -1   # in place of an id: neither padding nor the end of the text


def make(options, *, vocab_size, context, eot, dtype, pad=0):
    """A text tower from `config.model.text` (less its name): a variant such as "clip-B" or "S", and any field of Text to override.

    Raises:
      ValueError: an option that isn't one, or a size that doesn't fit; the sentence names it.
    """
    options = {**text_variant(options.get("variant")), **{k: v for k, v in options.items() if k != "variant"}}
    options.setdefault("mlp_dim", 4 * options.get("width", Text.width))
    experts = moe.make("model.text", options.pop("experts", None), options.get("depth", Text.depth),
                       options.get("drop_path", 0.0), options.get("scan", False))
    text = transformer.build("model.text", Text, options, vocab_size=vocab_size, context=context, eot=eot, pad=pad, experts=experts,
                             dtype=dtype)
    transformer.check("model.text", text, least_depth=0 if text.pool in ("mean", "map") and not text.scan else 1)
    transformer.choose("model.text", "pool", text.pool, ("eot", "last", "first", "class", "mean", "map"))
    if text.causal and text.pool in ("first", "class"):
        raise ValueError(f"config.model.text: pool={text.pool!r} would read a position that sees no other token in a causal tower; "
                         "use pool='eot' or 'last', or causal=False")
    if text.spare_ids < 0:
        raise ValueError(f"config.model.text.spare_ids={text.spare_ids} must be at least 0")
    if not 0 <= eot < vocab_size:
        raise ValueError(f"config.model.text: the end-of-text id {eot} is outside the vocabulary of {vocab_size} tokens")
    return text


class Text(nn.Module):
    """tokens int32 (B, L) -> dict of "embedded" (B, L, W), "block_i", "tokens" (B, L, W) after the last norm, "pooled" (B, W).

    Pooling: "eot" the first end-of-text position (the last position where there is none); "last" the last token that isn't padding
    (without pad_mask: the last position, as SigLIP); "first" the first token; "class" a learned token put before the others (it
    isn't among "tokens"); "mean" over tokens that aren't padding (without pad_mask: all); "map" attention pooling over the same.

    `image` puts P vectors after the first token (the class token, where there is one), for a tower that reads both: a dict of
    "tokens" (B, P, W) and "position" (P, W), rows that follow the table of positions; a token's position is where it stands then.
    With experts there is "routing" in place of "block_i", see `moe.Mixture`, and keys make it a training's.
    """
    vocab_size: int
    context: int
    eot: int
    pad: int = 0                 # may be eot, as SigLIP's: then the first one is no padding
    width: int = 192
    depth: int = 4               # 0 with mean or attention pooling: a bag of words
    mlp_dim: int = 768
    num_heads: int = 3
    causal: bool = True          # a token sees only those before it. SigLIP: False
    pool: str = "eot"            # eot | last | first | class | mean | map
    pad_mask: bool = True        # attention doesn't look at padding. SigLIP: False
    spare_ids: int = 0           # ids beyond the tokenizer's vocabulary, such as a [MASK] that it doesn't have; not exported
    act: str = "gelu"
    eps: float = 1e-5
    drop_path: float = 0.0
    scan: bool = False
    remat: str = "none"
    experts: Any = None          # moe.Options: some blocks have a mixture of experts in place of their MLP (V-MoE)
    dtype: Any = jnp.float32

    @property
    def path_depth(self):
        return self.depth if self.drop_path else 0

    @nn.compact
    def __call__(self, tokens, path_noise=None, image=None, keys=None):
        if tokens.shape[1] > self.context:
            raise ValueError(f"text has {tokens.shape[1]} tokens and the tower was built for {self.context}: "
                             f"tokenize({self.context}) fits")
        table = self.param("token", nn.initializers.normal(0.02), (self.vocab_size + self.spare_ids, self.width))
        position = self.param("position", nn.initializers.normal(0.01), (self.context, self.width))
        x = table[tokens].astype(self.dtype)
        if image is not None:
            at, count = int(self.pool != "class"), image["tokens"].shape[1]
            x = jnp.concatenate([x[:, :at], image["tokens"].astype(self.dtype), x[:, at:]], axis=1)
            tokens = jnp.insert(tokens, jnp.full((count,), at), IMAGE_TOKEN, axis=1)
            position = jnp.concatenate([position, image["position"]])
        length = tokens.shape[1]
        x = x + position[:length].astype(self.dtype)[None]
        out = {"embedded": x}
        seen = tokens != self.pad if self.pad_mask else jnp.ones_like(tokens, bool)
        if self.pad == self.eot:
            seen |= jnp.arange(length)[None] == first_match(tokens, self.eot)[:, None]
        prefix = int(self.pool == "class")
        if prefix:
            token = self.param("class_token", nn.initializers.normal(0.02), (self.width,)).astype(self.dtype)
            x = jnp.concatenate([jnp.broadcast_to(token[None, None], (x.shape[0], 1, self.width)), x], axis=1)
        x, blocks = mixed.run_either(
            x, keys, experts=self.experts, depth=self.depth, num_heads=self.num_heads, mlp_dim=self.mlp_dim, act=self.act,
            eps=self.eps, dtype=self.dtype, scan=self.scan, remat=self.remat, mask=self._mask(seen, prefix),
            gain=transformer.path_gain(path_noise, self.drop_path, self.depth), owner=self)
        x = nn.LayerNorm(epsilon=self.eps, dtype=self.dtype, name="ln_final")(x)
        out.update(blocks, tokens=x[:, prefix:])
        if self.pool == "map":
            pool = AttentionPool(self.num_heads, self.mlp_dim, self.act, self.eps, self.dtype, name="pool")
            out["pooled"] = pool(x, _or_self(seen)[:, None, None])
        elif self.pool == "mean":
            out["pooled"] = masked_mean(x, seen)
        elif self.pool in ("first", "class"):
            out["pooled"] = x[:, 0]
        else:
            at = last_token(seen) if self.pool == "last" else first_match(tokens, self.eot)
            out["pooled"] = jnp.take_along_axis(x, at[:, None, None], axis=1)[:, 0]
        return out

    def _mask(self, seen, prefix):
        """bool (B or 1, 1, N or 1, N), True where a query (third axis) sees a key (last axis); None if all see all."""
        length = seen.shape[1]
        if self.causal:  # padding stands at the end, where no real token looks
            return jnp.tril(jnp.ones((length, length), bool))[None, None]
        if not self.pad_mask:
            return None
        return jnp.pad(_or_self(seen) if not prefix else seen, ((0, 0), (prefix, 0)), constant_values=True)[:, None, None]


TOWER = Text   # its fields are keys of config.model
VARIANTS = (*TRANSFORMERS, *(f"clip-{size}" for size in CLIP_TEXT))


def first_match(tokens, value):
    """int32 (B,): the first position of `value` in each row of tokens (B, L), the last position where there is none."""
    match = tokens == value
    return jnp.where(match.any(1), jnp.argmax(match, 1), tokens.shape[1] - 1)


def last_token(seen):
    """int32 (B,): the last position where `seen` (B, L) is True, 0 where there is none."""
    return jnp.maximum(jnp.where(seen, jnp.arange(seen.shape[1])[None], 0).max(1), 0)


def _or_self(seen):
    """`seen` with the first position added in rows that see nothing at all (an empty caption), so that softmax stays finite."""
    return seen.at[:, 0].set(seen[:, 0] | ~seen.any(1))
