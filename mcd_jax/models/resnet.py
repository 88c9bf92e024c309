"""Convolutional image towers: CLIP's modified ResNets (arXiv 2103.00020, section 2.4) and small ones for small images.

Batch normalisation keeps statistics, which a pure function of (params, pixels) can't update. So norm is "layer" (over the channels
of each position), "group" (32 groups of channels, fewer where the width doesn't divide), or "frozen": batch normalisation whose
stored mean and variance are parameters without a gradient, for imported weights.

The defaults are the small tower for 32 to 96 px. On CPU, XLA's convolutions run forward and for the input's gradient at the speed
of matrix products, faster than sums of shifted products or unfolded patches; `grad_rows=8` speeds the kernel's gradient up, and
training by about half again. Inside a loop (microbatches > 1) XLA's CPU convolutions are slower by an order of magnitude.
"""
import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from mcd_jax.models import transformer
from mcd_jax.models.conv import Conv
from mcd_jax.models.heads import GridPool
from mcd_jax.models.variants import RESNETS, resnet_variant
from mcd_jax.sharding.constrain import shard_batch


def make(options, *, image_size, dtype):
    """A ResNet from `config.model.image` (less its name): a variant such as "RN50", and any field of ResNet to override.

    Raises:
      ValueError: an option that isn't one, or a size that doesn't fit; the sentence names it.
    """
    options = {**resnet_variant(options.get("variant")), **{k: v for k, v in options.items() if k != "variant"}}
    net = transformer.build("model.image", ResNet, options, image_size=image_size, dtype=dtype)
    for name, known in (("stem", ("clip", "patch")), ("block", ("bottleneck", "basic")), ("norm", ("layer", "group", "frozen")),
                        ("pool", ("mean", "attention")), ("act", transformer.ACTIVATIONS)):
        transformer.choose("model.image", name, getattr(net, name), known)
    if len(net.widths) != len(net.depths) or not net.widths:
        raise ValueError(f"config.model.image: widths={net.widths} and depths={net.depths} must have one entry per stage each")
    if net.grad_rows < 0:
        raise ValueError(f"config.model.image.grad_rows={net.grad_rows} must be a number of examples, or 0 for off")
    if net.pool == "attention" and net.widths[-1] % net.num_heads:
        raise ValueError(f"config.model.image: the last width {net.widths[-1]} is not divisible by num_heads={net.num_heads}")
    net.grid((1, image_size, image_size, 3))
    return net


class ResNet(nn.Module):
    """Normalised pixels (B, H, W, 3) -> dict of "stem" and "stage_i" (B, h, w, C), the last as "tokens" (B, N, W), "pooled" (B, W).

    Any H and W with pool="mean" (what is left over by the strides is cut off); pool="attention" needs image_size. keep_ids int32
    (B, K) are the patches that are kept, of a grid of `mask_patch` pixels; the others are set to 0, the mean colour, so that
    they have no influence. There is no drop path: path_noise is ignored.
    """
    widths: tuple = (64, 128, 256)
    depths: tuple = (1, 1, 1)
    block: str = "basic"         # basic (pre-activation) | bottleneck (CLIP's)
    stem: str = "patch"          # patch (one convolution of stem_patch pixels) | clip (three and a pooling: stride 4)
    stem_patch: int = 4
    stem_width: int = 64         # of CLIP's stem; the patch stem has the first stage's width
    norm: str = "layer"          # layer | group | frozen
    act: str = "relu"
    pool: str = "mean"           # mean | attention
    num_heads: int = 8           # of attention pooling
    mask_patch: int = 8
    grad_rows: int = 0           # on CPU 8 to 32: see conv.sliced
    image_size: int = 64
    dtype: Any = jnp.float32

    @property
    def path_depth(self):
        return 0

    def num_patches(self, shape):
        """Patches of the masking grid for pixels of this shape, see `mask_cells`."""
        return mask_cells(shape, self.mask_patch)

    def grid(self, shape):
        """(h, w) of the last stage for pixels of this (B, H, W, 3) shape.

        Raises:
          ValueError: the images are smaller than the stride of the whole tower.
        """
        stride = 4 if self.stem == "clip" else self.stem_patch
        grid = tuple(side // stride // 2 ** (len(self.widths) - 1) for side in shape[1:3])
        if 0 in grid:
            whole = stride * 2 ** (len(self.widths) - 1)
            raise ValueError(f"images of {shape[1]}x{shape[2]} px are smaller than the {whole} px that one cell of the last "
                             "stage covers: use larger images, fewer stages or a smaller stem_patch")
        return grid

    @nn.compact
    def __call__(self, pixels, keep_ids=None, path_noise=None):
        self.grid(pixels.shape)
        norm, conv, act = _layers(self.norm, self.act, self.dtype, self.grad_rows)
        x = pixels if keep_ids is None else masked(pixels, keep_ids, self.num_patches(pixels.shape), self.mask_patch)
        if self.stem == "patch":
            x = conv(self.widths[0], self.stem_patch, self.stem_patch, name="stem")(x)
        else:
            for i, (width, stride) in enumerate(((self.stem_width // 2, 2), (self.stem_width // 2, 1), (self.stem_width, 1))):
                x = conv(width, 3, stride, name=f"stem{i}")(x)
                x = act(norm(name=f"stem_norm{i}")(x))
            x = _halved(x)
        out = {"stem": x}
        block = Bottleneck if self.block == "bottleneck" else Basic
        for i, (width, depth) in enumerate(zip(self.widths, self.depths, strict=True)):
            for j in range(depth):
                x = block(width, bool(i) and not j, self.norm, self.act, self.grad_rows, self.dtype, name=f"stage_{i}_block_{j}")(x)
            x = out[f"stage_{i}"] = shard_batch(x)
        if self.block == "basic":
            x = act(norm(name="norm")(x))
        tokens = out["tokens"] = x.reshape(x.shape[0], -1, x.shape[-1])
        if self.pool == "mean":
            out["pooled"] = tokens.mean(1)
        else:
            height, width = self.grid((1, self.image_size, self.image_size, 3))
            out["pooled"] = GridPool(self.num_heads, height * width, self.dtype, name="pool")(tokens)
        return out


TOWER = ResNet   # its fields are keys of config.model
VARIANTS = tuple(RESNETS)


class Basic(nn.Module):
    """Pre-activation block of two 3x3 convolutions (He et al. 2016, arXiv 1603.05027), after a 2x2 mean where `down`."""
    width: int
    down: bool
    norm: str
    act: str
    grad_rows: int
    dtype: Any

    @nn.compact
    def __call__(self, x):
        norm, conv, act = _layers(self.norm, self.act, self.dtype, self.grad_rows)
        x = _halved(x) if self.down else x
        y = conv(self.width, 3, name="conv1")(act(norm(name="norm1")(x)))
        y = conv(self.width, 3, name="conv2")(act(norm(name="norm2")(y)))
        if x.shape != y.shape:
            x = conv(self.width, 1, name="shortcut")(x)
        return x + y


class Bottleneck(nn.Module):
    """CLIP's block: convolutions 1x1, 3x3, 1x1; where `down`, a 2x2 mean before the last and the shortcut's (anti-aliased)."""
    width: int
    down: bool
    norm: str
    act: str
    grad_rows: int
    dtype: Any

    @nn.compact
    def __call__(self, x):
        norm, conv, act = _layers(self.norm, self.act, self.dtype, self.grad_rows)
        y = act(norm(name="norm1")(conv(self.width // 4, 1, name="conv1")(x)))
        y = act(norm(name="norm2")(conv(self.width // 4, 3, name="conv2")(y)))
        if self.down:
            x, y = _halved(x), _halved(y)
        y = norm(scale_init=nn.initializers.zeros, name="norm3")(conv(self.width, 1, name="conv3")(y))
        if x.shape != y.shape:
            x = norm(name="shortcut_norm")(conv(self.width, 1, name="shortcut")(x))
        return act(x + y)


class FrozenNorm(nn.Module):
    """Batch normalisation of (B, h, w, C) by stored, fixed statistics: (x - mean) / sqrt(var + eps) * scale + bias."""
    dtype: Any
    scale_init: Any = nn.initializers.ones
    eps: float = 1e-5

    @nn.compact
    def __call__(self, x):
        shape = (x.shape[-1],)
        scale, bias = self.param("scale", self.scale_init, shape), self.param("bias", nn.initializers.zeros, shape)
        mean, var = self.param("mean", nn.initializers.zeros, shape), self.param("var", nn.initializers.ones, shape)
        scale = scale * jax.lax.rsqrt(jax.lax.stop_gradient(var) + self.eps)
        bias = bias - jax.lax.stop_gradient(mean) * scale
        return x * scale.astype(self.dtype)[None, None, None] + bias.astype(self.dtype)[None, None, None]


def mask_cells(shape, patch):
    """Patches of `patch` pixels in images of this (B, H, W, 3) shape.

    Raises:
      ValueError: H or W isn't divisible by `patch`.
    """
    if shape[1] % patch or shape[2] % patch:
        raise ValueError(f"images of {shape[1]}x{shape[2]} px can't be cut into patches of "
                         f"config.model.image.mask_patch={patch} px")
    return (shape[1] // patch) * (shape[2] // patch)


def masked(pixels, keep_ids, count, patch):
    """Pixels (B, H, W, C) with the `patch` px squares that aren't in keep_ids (B, K), row-major out of `count`, set to 0."""
    batch, height, width, channels = pixels.shape
    keep = (keep_ids[:, :, None] == jnp.arange(count)[None, None]).any(1)
    keep = keep.reshape(batch, height // patch, 1, width // patch, 1, 1)
    x = pixels.reshape(batch, height // patch, patch, width // patch, patch, channels)
    return jnp.where(keep, x, 0).reshape(pixels.shape)


def _layers(norm, act, dtype, grad_rows):
    """Constructors of normalisation and convolution, and the activation."""
    norms = {
        "layer": functools.partial(nn.LayerNorm, epsilon=1e-5, dtype=dtype),
        "group": functools.partial(_group_norm, dtype=dtype),
        "frozen": functools.partial(FrozenNorm, dtype=dtype),
    }
    return norms[norm], functools.partial(Conv, grad_rows=grad_rows, dtype=dtype), transformer.ACTIVATIONS[act]


def _group_norm(dtype, **options):
    """Group normalisation with the most groups out of 32, 16, 8, ... that leave at least 4 channels in each."""
    def norm(x):
        groups = next((g for g in (32, 16, 8, 4, 2) if x.shape[-1] % g == 0 and x.shape[-1] // g >= 4), 1)
        return nn.GroupNorm(groups, epsilon=1e-5, dtype=dtype, **options)(x)
    return norm


def _halved(x):
    return nn.avg_pool(x, window_shape=(2, 2), strides=(2, 2))   # by name: jax2onnx takes them so
