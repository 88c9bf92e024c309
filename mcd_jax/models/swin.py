"""Swin transformer (Liu et al. 2021, arXiv 2103.14030): attention within windows that shift by half a window in every other block.

Blocks come in pairs, one with plain and one with shifted windows: pair j of stage i is at `stage_i_pair_j/plain/...` and
`.../shifted/...`; with `scan=True` the pairs of a stage are one stacked tree at `stage_i/...`. Patch merging takes the four
neighbours in PyTorch's order (rows fastest), as the published weights do.
"""
import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from mcd_jax.models import transformer
from mcd_jax.models.conv import Conv
from mcd_jax.models.resnet import mask_cells, masked
from mcd_jax.models.variants import SWINS, swin_variant
from mcd_jax.sharding.constrain import shard_batch

STD = 0.02   # of all weights at the start


def make(options, *, image_size, dtype):
    """A Swin transformer from `config.model.image` (less its name): a variant such as "L", and any field of Swin to override.

    Raises:
      ValueError: an option that isn't one, or a size that doesn't fit; the sentence names it.
    """
    options = {**swin_variant(options.get("variant")), **{k: v for k, v in options.items() if k != "variant"}}
    net = transformer.build("model.image", Swin, options, image_size=image_size, dtype=dtype)
    for name, known in (("pool", ("query", "mean")), ("act", transformer.ACTIVATIONS), ("remat", transformer.REMAT)):
        transformer.choose("model.image", name, getattr(net, name), known)
    if len(net.depths) != len(net.heads) or not net.depths or any(depth < 2 or depth % 2 for depth in net.depths):
        raise ValueError(f"config.model.image: depths={net.depths} and heads={net.heads} must have one entry per stage each, "
                         "and blocks come in pairs")
    if any(net.width * 2 ** i % heads for i, heads in enumerate(net.heads)):
        raise ValueError(f"config.model.image: heads={net.heads} must divide the widths of the stages, {net.width} and its doubles")
    if not 0 <= net.drop_path < 1:
        raise ValueError(f"config.model.image: drop_path={net.drop_path} must be in [0, 1)")
    net.sides((1, image_size, image_size, 3))
    return net


class Swin(nn.Module):
    """Normalised pixels (B, S, S, 3) -> dict of "stage_i" (B, h, w, C), "tokens" (B, N, W) after the last norm, "pooled" (B, W).

    Pooling: "query", one learned query attends to the tokens; "mean". keep_ids int32 (B, K) are the patches that are kept, of a
    grid of `mask_patch` pixels; the others are set to 0, the mean colour. path_noise float32 (B, sum of depths) turns drop path on.
    """
    width: int = 96
    depths: tuple = (2, 2, 6, 2)
    heads: tuple = (3, 6, 12, 24)
    window: int = 7
    patch_size: int = 4
    mlp_ratio: int = 4
    pool: str = "query"          # query | mean
    act: str = "gelu"
    eps: float = 1e-5
    drop_path: float = 0.0
    mask_patch: int = 32
    scan: bool = False
    remat: str = "none"
    image_size: int = 224
    dtype: Any = jnp.float32

    @property
    def path_depth(self):
        return sum(self.depths) if self.drop_path else 0

    def num_patches(self, shape):
        """Patches of the masking grid for pixels of this shape."""
        return mask_cells(shape, self.mask_patch)

    def sides(self, shape):
        """Cells on the side of each stage for pixels of this (B, H, W, 3) shape.

        Raises:
          ValueError: images that aren't square, or whose stages can't be cut into windows.
        """
        side, found = shape[1] // self.patch_size, []
        for _ in self.depths:
            found.append(side)
            side //= 2
        whole = self.patch_size * 2 ** (len(self.depths) - 1)
        if shape[1] != shape[2] or shape[1] % whole or any(side % min(self.window, side) for side in found):
            raise ValueError(f"images of {shape[1]}x{shape[2]} px don't fit a Swin transformer: they must be square, a multiple of "
                             f"{whole} px, and each stage's grid ({', '.join(map(str, found))}) a multiple of window={self.window} "
                             "or smaller than it")
        return found

    @nn.compact
    def __call__(self, pixels, keep_ids=None, path_noise=None):
        self.sides(pixels.shape)
        x = pixels if keep_ids is None else masked(pixels, keep_ids, self.num_patches(pixels.shape), self.mask_patch)
        norm = functools.partial(nn.LayerNorm, epsilon=self.eps, dtype=self.dtype)
        x = Conv(self.width, self.patch_size, self.patch_size, dtype=self.dtype, name="patch")(x)
        x = x + self.param("patch_bias", nn.initializers.zeros, (self.width,)).astype(self.dtype)[None, None, None]
        x = norm(name="ln_patch")(x)
        gain = transformer.path_gain(path_noise, self.drop_path, sum(self.depths))
        out, first = {}, 0
        for i, (depth, heads) in enumerate(zip(self.depths, self.heads, strict=True)):
            if i:
                x = norm(name=f"merge_{i}_ln")(merged(x))
                x = nn.Dense(self.width * 2 ** i, use_bias=False, dtype=self.dtype, kernel_init=nn.initializers.normal(STD),
                             name=f"merge_{i}")(x)
            own = None if gain is None else gain[first:first + depth].reshape(depth // 2, 2, -1)
            x = out[f"stage_{i}"] = self._stage(i, x, own, depth, heads)
            first += depth
        x = norm(name="ln_post")(x)
        tokens = out["tokens"] = x.reshape(x.shape[0], -1, x.shape[-1])
        if self.pool == "mean":
            return {**out, "pooled": tokens.mean(1)}
        query = self.param("query", nn.initializers.normal(STD), (1, 1, tokens.shape[-1])).astype(self.dtype)
        query = jnp.broadcast_to(query, (len(tokens), 1, tokens.shape[-1]))
        return {**out, "pooled": transformer.Attention(self.heads[-1], self.dtype, std=STD, name="pool")(query, tokens)[:, 0]}

    def _stage(self, number, x, gain, depth, heads):
        def pair(name, depth=0):
            return transformer.layer_of(Pair, self, name, self.dtype, self.remat, depth)
        name = f"stage_{number}"
        options = {"heads": heads, "window": self.window, "mlp_dim": self.mlp_ratio * x.shape[-1], "act": self.act, "eps": self.eps,
                   "dtype": self.dtype}
        if self.scan:
            pairs = nn.scan(pair(name, depth // 2), variable_axes={"params": 0}, split_rngs={"params": True}, length=depth // 2)
            return pairs(**options, name=name)(x, gain)[0]
        for j in range(depth // 2):
            x, _ = pair(f"{name}_pair_{j}")(**options, name=f"{name}_pair_{j}")(x, None if gain is None else gain[j])
        return x


TOWER = Swin   # its fields are keys of config.model
VARIANTS = tuple(SWINS)


class Pair(nn.Module):
    """x (B, h, w, C) -> (x', None): a block with plain windows, then one with shifted ones. gain: None or (2, B), as `Block`'s."""
    heads: int
    window: int
    mlp_dim: int
    act: str
    eps: float
    dtype: Any

    @nn.compact
    def __call__(self, x, gain):
        for i, name in enumerate(("plain", "shifted")):
            y = Block(self.heads, self.window, bool(i), self.mlp_dim, self.act, self.eps, self.dtype, name=name)(x)
            x = y if gain is None else x + gain[i].astype(x.dtype)[:, None, None, None] * (y - x)
        return shard_batch(x), None


class Block(nn.Module):
    """x (B, h, w, C) -> x': attention within windows, then an MLP, each after a norm and added. One window for a grid no larger."""
    heads: int
    window: int
    shifted: bool
    mlp_dim: int
    act: str
    eps: float
    dtype: Any

    @nn.compact
    def __call__(self, x):
        side, width = x.shape[1], x.shape[-1]
        window = min(self.window, side)
        shift = window // 2 if self.shifted and side > window else 0
        norm = functools.partial(nn.LayerNorm, epsilon=self.eps, dtype=self.dtype)
        y = jnp.roll(norm(name="ln1")(x), (-shift, -shift), (1, 2)) if shift else norm(name="ln1")(x)
        y = WindowAttention(self.heads, window, self.dtype, name="attn")(cut(y, window), border(side, window, shift))
        y = join(y, side, window)
        x = x + (jnp.roll(y, (shift, shift), (1, 2)) if shift else y)
        mlp = transformer.Mlp(self.mlp_dim, self.act, self.dtype, std=STD, name="mlp")
        return x + mlp(norm(name="ln2")(x).reshape(-1, side * side, width)).reshape(x.shape)


class WindowAttention(nn.Module):
    """x (B, K, N, C), K windows of N cells -> the same; seen: None or bool (K, N, N), which cells of a window may look where."""
    heads: int
    window: int
    dtype: Any

    @nn.compact
    def __call__(self, x, seen):
        batch, count, cells, width = x.shape
        dense = functools.partial(nn.Dense, width, dtype=self.dtype, kernel_init=nn.initializers.normal(STD))
        q, k, v = (dense(name=name)(x).reshape(batch * count, cells, self.heads, -1) for name in ("q", "k", "v"))
        table = self.param("position", nn.initializers.normal(STD), ((2 * self.window - 1) ** 2, self.heads))
        bias = table[offsets(self.window)].transpose(2, 0, 1)[None]   # (1, heads, N, N)
        mask = None if seen is None else jnp.tile(jnp.asarray(seen)[:, None], (batch, 1, 1, 1))
        y = jax.nn.dot_product_attention(q, k, v, bias=bias.astype(self.dtype), mask=mask)
        return dense(name="out")(y.reshape(x.shape))


def cut(x, window):
    """(B, h, w, C) -> (B, windows, cells of a window, C), both row-major."""
    batch, side, _, width = x.shape
    x = x.reshape(batch, side // window, window, side // window, window, width)
    return x.transpose(0, 1, 3, 2, 4, 5).reshape(batch, -1, window * window, width)


def join(x, side, window):
    """The inverse of `cut`."""
    batch, _, _, width = x.shape
    x = x.reshape(batch, side // window, side // window, window, window, width)
    return x.transpose(0, 1, 3, 2, 4, 5).reshape(batch, side, side, width)


def merged(x):
    """(B, h, w, C) -> (B, h/2, w/2, 4C): the cells (0, 0), (1, 0), (0, 1), (1, 1) (row, column) of each square."""
    return jnp.concatenate([x[:, row::2, column::2] for column in (0, 1) for row in (0, 1)], axis=-1)


def border(side, window, shift):
    """bool (windows, N, N): cells of a shifted window that were neighbours before the shift; None without a shift."""
    if not shift:
        return None
    line = np.zeros(side, int)
    line[side - window:side - shift], line[side - shift:] = 1, 2
    area = 3 * line[:, None] + line[None]
    area = area.reshape(side // window, window, side // window, window).transpose(0, 2, 1, 3).reshape(-1, window * window)
    return area[:, :, None] == area[:, None]


def offsets(window):
    """int (N, N): the row of the table of positions for each query cell and key cell of a window."""
    place = np.stack(np.meshgrid(np.arange(window), np.arange(window), indexing="ij")).reshape(2, -1)
    apart = place[:, :, None] - place[:, None] + window - 1
    return apart[0] * (2 * window - 1) + apart[1]
