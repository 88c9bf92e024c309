"""Vision transformer (Dosovitskiy et al. 2020, arXiv 2010.11929), with CLIP's and SigLIP's variations as options."""
from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from mcd_jax.models import mixed, moe, transformer
from mcd_jax.models.heads import AttentionPool
from mcd_jax.models.variants import TRANSFORMERS, decode_variant


def make(options, *, image_size, dtype):
    """A ViT from `config.model.image` (less its name): a variant such as "S/16", and any field of ViT to override.

    Raises:
      ValueError: an option that isn't one, or a size that doesn't fit; the sentence names it.
    """
    options = {**decode_variant(options.get("variant")), **{k: v for k, v in options.items() if k != "variant"}}
    options.setdefault("mlp_dim", 4 * options.get("width", ViT.width))
    experts = moe.make("model.image", options.pop("experts", None), options.get("depth", ViT.depth),
                       options.get("drop_path", 0.0), options.get("scan", False))
    vit = transformer.build("model.image", ViT, options, image_size=image_size, experts=experts, dtype=dtype)
    transformer.check("model.image", vit)
    transformer.choose("model.image", "pool", vit.pool, ("class", "mean", "map"))
    transformer.choose("model.image", "position", vit.position, ("learned", "sincos2d"))
    if vit.spare_token and vit.pool == "class":
        raise ValueError("config.model.image: spare_token=True is a class token that isn't read; with pool='class' it is")
    if image_size < vit.patch_size or (image_size % vit.patch_size and not vit.cut_rest):
        raise ValueError(f"config.model.image: images of {image_size} px can't be cut into patches of "
                         f"patch_size={vit.patch_size} px" + (
                             "" if image_size < vit.patch_size else
                             f"; cut_rest=True leaves out the last {image_size % vit.patch_size} px"))
    if vit.position == "sincos2d" and (vit.width % 4 or vit.width < 8):
        raise ValueError(f"config.model.image: position='sincos2d' needs a width divisible by 4 and at least 8, not {vit.width}")
    return vit


class ViT(nn.Module):
    """Normalised pixels (B, S, S, 3) -> dict of "patches", "block_i" and "tokens" (B, K, W), and "pooled" (B, W).

    "patches" are embedded patches with their position, "tokens" come after the last norm; the class token isn't among them, but
    leads each "block_i". With norm_pooled both "tokens" and "pooled" have been through that norm, each by itself. keep_ids int32
    (B, K) keeps those patches only (row-major positions in the grid); path_noise float32 (B, depth), uniform in [0, 1), turns
    drop path on. With experts there is "routing" in place of "block_i", see `moe.Mixture`, and keys make it a training's.
    """
    width: int = 192
    depth: int = 6
    mlp_dim: int = 768
    num_heads: int = 3
    patch_size: int = 8
    image_size: int = 64
    pool: str = "class"          # class | mean | map
    spare_token: bool = False    # a class token that pooling doesn't read. CLIPA (arXiv 2305.07017): True, with pool="mean"
    norm_pooled: bool = False    # the last norm comes after pooling. CLIPA: True
    position: str = "learned"    # learned | sincos2d
    patch_bias: bool = True      # CLIP: False
    cut_rest: bool = False       # pixels right and below that fill no patch are left out (VALID). SigLIP So400m/14 at 384 px: True
    ln_pre: bool = False         # CLIP: True
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

    def num_patches(self, shape):
        """Patches of pixels of this (B, H, W, 3) shape.

        Raises:
          ValueError: the images don't have the size that the positions were made for.
        """
        size = self.image_size
        if tuple(shape[1:3]) != (size, size):
            raise ValueError(f"the ViT was built for images of {size}x{size} px and got {shape[1]}x{shape[2]}: "
                             "give the view that size, or use a convolutional tower, which takes any size")
        return (size // self.patch_size) ** 2

    @nn.compact
    def __call__(self, pixels, keep_ids=None, path_noise=None, keys=None):
        count = self.num_patches(pixels.shape)
        grid = self.image_size // self.patch_size
        patches = cut(pixels, self.patch_size)
        prefix = int(self.pool == "class" or self.spare_token)
        if self.position == "learned":
            position = self.param("position", nn.initializers.normal(self.width ** -0.5), (prefix + count, self.width))
        else:
            position = jnp.pad(sincos2d(grid, grid, self.width), ((prefix, 0), (0, 0)))
        position = position.astype(self.dtype)
        if keep_ids is not None:
            patches = jnp.take_along_axis(patches, keep_ids[:, :, None], axis=1)
        x = nn.Dense(self.width, use_bias=self.patch_bias, dtype=self.dtype, name="patch",
                     kernel_init=nn.initializers.normal(patches.shape[-1] ** -0.5))(patches)
        at_patches = position[prefix:]
        x = x + (at_patches[None] if keep_ids is None else at_patches[keep_ids])
        out = {"patches": x}
        if prefix:
            token = self.param("class_token", nn.initializers.normal(self.width ** -0.5), (self.width,)).astype(self.dtype)
            token = jnp.broadcast_to((token + position[0])[None, None], (x.shape[0], 1, self.width))
            x = jnp.concatenate([token, x], axis=1)
        if self.ln_pre:
            x = nn.LayerNorm(epsilon=self.eps, dtype=self.dtype, name="ln_pre")(x)
        x, blocks = mixed.run_either(
            x, keys, experts=self.experts, depth=self.depth, num_heads=self.num_heads, mlp_dim=self.mlp_dim, act=self.act,
            eps=self.eps, dtype=self.dtype, scan=self.scan, remat=self.remat,
            gain=transformer.path_gain(path_noise, self.drop_path, self.depth), owner=self)
        norm = nn.LayerNorm(epsilon=self.eps, dtype=self.dtype, name="ln_post")
        if not self.norm_pooled:
            x = norm(x)
        if self.pool == "class":
            pooled = x[:, 0]
        elif self.pool == "mean":
            pooled = x[:, prefix:].mean(1)
        else:
            pooled = AttentionPool(self.num_heads, self.mlp_dim, self.act, self.eps, self.dtype, name="pool")(x[:, prefix:])
        out.update(blocks, tokens=norm(x[:, prefix:]) if self.norm_pooled else x[:, prefix:],
                   pooled=norm(pooled) if self.norm_pooled else pooled)
        return out


TOWER = ViT   # its fields are keys of config.model
VARIANTS = tuple(TRANSFORMERS)   # with a patch size behind a slash, as in "B/16"


def cut(pixels, patch):
    """(B, H, W, C) -> (B, H//patch * W//patch, patch * patch * C): rows of patches, each row-major with channels last.

    Pixels that fill no patch are left out, as by a VALID convolution.
    """
    batch, height, width, channels = pixels.shape
    height, width = height - height % patch, width - width % patch
    pixels = pixels[:, :height, :width]
    x = pixels.reshape(batch, height // patch, patch, width // patch, patch, channels)
    return x.transpose(0, 1, 3, 2, 4, 5).reshape(batch, -1, patch * patch * channels)


def sincos2d(height, width, channels, temperature=10_000.0):
    """Fixed positions (height * width, channels) float32: sine and cosine of x, then of y, as MoCo v3 (arXiv 2104.02057)."""
    y, x = jnp.meshgrid(jnp.arange(height, dtype=jnp.float32), jnp.arange(width, dtype=jnp.float32), indexing="ij")
    omega = temperature ** -(jnp.arange(channels // 4) / (channels // 4 - 1))
    x, y = (jnp.outer(v.reshape(-1), omega) for v in (x, y))
    return jnp.concatenate([jnp.sin(x), jnp.cos(x), jnp.sin(y), jnp.cos(y)], axis=1)
