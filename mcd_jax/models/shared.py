"""One transformer for images and texts (LIMoE, Mustafa et al. 2022, arXiv 2206.02770).

Only the first layer (patches, tokens) and the last projection know the modality; between them both go through the same blocks,
whose mixtures they share. No code of LIMoE was released: this is a reconstruction from the paper's abstract, from notes on it and
from V-MoE's code, on which it was built.
"""
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from mcd_jax.models import mixed, moe, transformer
from mcd_jax.models.heads import masked_mean
from mcd_jax.models.variants import TRANSFORMERS, decode_variant
from mcd_jax.models.vit import cut


def make(options, *, image_size, vocab_size, context, eot, dtype, pad=0):
    """A `Shared` from `config.model.shared` (less its proj): a variant such as "B/16", and any field of Shared to override.

    Raises:
      ValueError: an option that isn't one, or a size that doesn't fit; the sentence names it.
    """
    options = {**decode_variant(options.get("variant")), **{k: v for k, v in options.items() if k != "variant"}}
    options.setdefault("mlp_dim", 4 * options.get("width", Shared.width))
    experts = moe.make("model.shared", options.pop("experts", None), options.get("depth", Shared.depth))
    tower = transformer.build("model.shared", Shared, options, image_size=image_size, vocab_size=vocab_size, context=context,
                              experts=experts, dtype=dtype, pad=pad)
    transformer.check("model.shared", tower)
    if image_size % tower.patch_size:
        raise ValueError(f"config.model.shared: images of {image_size} px can't be cut into patches of "
                         f"patch_size={tower.patch_size} px")
    return tower


class Shared(nn.Module):
    """Pixels (B, S, S, 3) or tokens int32 (B, L), or both -> {"image": {...}, "text": {...}} of the modalities given.

    Each has "tokens" (B, N, W) after the last norm, "pooled" (B, W), their mean, and, of a tower with experts, "routing": dict of
    float32 sums over the row's tokens of that modality in each mixture (B, layers, ...), see `moe.Mixture`. Where both are given,
    row i of both competes for the experts with the other rows of its group; images come first.
    """
    image_size: int
    vocab_size: int
    context: int
    pad: int = 0
    width: int = 192
    depth: int = 6
    mlp_dim: int = 768
    num_heads: int = 3
    patch_size: int = 8
    experts: Any = None
    pad_mask: bool = False       # padding is a token like others (big_vision's convention; LIMoE's isn't known). True: routed only
    act: str = "gelu"
    eps: float = 1e-6
    remat: str = "none"
    dtype: Any = jnp.float32

    drop_path = 0.0

    def num_patches(self, shape):
        """Patches of pixels of this (B, H, W, 3) shape; ValueError for another size than the tower's."""
        if tuple(shape[1:3]) != (self.image_size, self.image_size):
            raise ValueError(f"the shared tower was built for images of {self.image_size}x{self.image_size} px and got "
                             f"{shape[1]}x{shape[2]}: give the view that size")
        return (self.image_size // self.patch_size) ** 2

    @nn.compact
    def __call__(self, pixels=None, tokens=None, keys=None, keep_ids=None):
        names, parts, masks, seen = [], [], [], {}
        normal = nn.initializers.normal
        if pixels is not None:
            count = self.num_patches(pixels.shape)
            patches = cut(pixels, self.patch_size)
            position = self.param("image_position", normal(self.width ** -0.5), (count, self.width)).astype(self.dtype)
            if keep_ids is not None:
                patches = jnp.take_along_axis(patches, keep_ids[:, :, None], axis=1)
            x = nn.Dense(self.width, dtype=self.dtype, name="patch", kernel_init=normal(patches.shape[-1] ** -0.5))(patches)
            parts.append(x + (position[None] if keep_ids is None else position[keep_ids]))
            names.append("image")
            masks.append(None)
        if tokens is not None:
            if tokens.shape[1] > self.context:
                raise ValueError(f"text has {tokens.shape[1]} tokens and the tower was built for {self.context}: "
                                 f"tokenize({self.context}) fits")
            table = self.param("token", normal(0.02), (self.vocab_size, self.width))
            position = self.param("text_position", normal(0.01), (self.context, self.width))
            parts.append(table[tokens].astype(self.dtype) + position[:tokens.shape[1]].astype(self.dtype)[None])
            names.append("text")
            real = (tokens != self.pad).at[:, 0].set(True)
            masks.append(real[:, None, None] if self.pad_mask else None)
            seen["text"] = real if self.pad_mask else None
        parts, routing = mixed.run_mixed(
            tuple(parts), keys, depth=self.depth, num_heads=self.num_heads, mlp_dim=self.mlp_dim, act=self.act, eps=self.eps,
            dtype=self.dtype, remat=self.remat, experts=self.experts, masks=tuple(masks), owner=self)
        norm, out = nn.LayerNorm(epsilon=self.eps, dtype=self.dtype, name="ln_final"), {}
        for i, (name, x) in enumerate(zip(names, parts, strict=True)):
            x = norm(x)
            out[name] = {"tokens": x, "pooled": x.mean(1) if seen.get(name) is None else masked_mean(x, seen[name])}
            if routing:
                out[name]["routing"] = jax.tree.map(lambda value, i=i: value[:, :, i], routing)
        return out


TOWER = Shared   # its fields are keys of config.model
VARIANTS = tuple(TRANSFORMERS)   # with a patch size behind a slash, as in "B/16"
