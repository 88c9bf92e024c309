"""EfficientNet-Lite as an image tower (Tan and Le 2019, arXiv 1905.11946; tensorflow/tpu, models/official/efficientnet/lite).

Inverted bottlenecks with ReLU6 and without squeeze-and-excitation. Batch normalisation is frozen: its statistics are parameters
without a gradient (`.../mean`, `.../var`), for imported weights. A locked tower (`config.model.locked`) has them in memory with the
rest of it; in a tower that is trained they stay as they are, as no gradient comes and nothing of one dimension decays.

Padding is TensorFlow's "SAME": with stride 2 and an even side the one odd row of zeros stands below and at the right, which PyTorch
ports of these weights imitate (efficientnet_lite_pytorch, timm's tf_efficientnet_lite0). That package's port fixes the padding for
224 px when it is built; it is the same where all strided sides are even, which is so for multiples of 32. Other networks were
trained with padding on both sides (timm's efficientnet_lite0): padding="both". The published weights want pixels as
(x - 127) / 128: config.model.mean=127/255, std=128/255.
"""
from collections.abc import Callable
import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from mcd_jax.models import transformer
from mcd_jax.models.resnet import FrozenNorm, mask_cells, masked
from mcd_jax.models.variants import EFFICIENTNETS, efficientnet_variant
from mcd_jax.sharding.constrain import shard_batch


def make(options, *, image_size, dtype):
    """An EfficientNet from `config.model.image` (less its name): variant="lite0", and any field of EfficientNet to override.

    Raises:
      ValueError: an option that isn't one, or stages that make no network; the sentence names it.
    """
    options = {**efficientnet_variant(options.get("variant")), **{k: v for k, v in options.items() if k != "variant"}}
    net = transformer.build("model.image", EfficientNet, options, image_size=image_size, dtype=dtype)
    transformer.choose("model.image", "padding", net.padding, ("same", "both"))
    transformer.choose("model.image", "depthwise", net.depthwise, ("conv", "sum"))
    for stage in net.stages:
        if len(stage) != 5 or min(stage) < 1 or stage[1] % 2 == 0:
            raise ValueError(f"config.model.image.stages has {stage}: a stage is (repeats, odd kernel, stride, expansion, width)")
    if not net.stages:
        raise ValueError("config.model.image.stages is empty: give a variant, such as 'lite0', or at least one stage")
    return net


class EfficientNet(nn.Module):
    """Normalised pixels (B, H, W, 3) -> dict of "stem", "stage_i" (B, h, w, C), "tokens" (B, N, features), "pooled" (B, features).

    Any H and W. keep_ids int32 (B, K) are the patches that are kept, of a grid of `mask_patch` pixels; the others are set to 0.
    There is no drop path: path_noise is ignored.
    """
    stages: tuple = ((1, 3, 1, 1, 16), (1, 3, 2, 6, 24))   # (repeats, kernel, stride of the first, expansion, width) of each
    stem_width: int = 32
    features: int = 1280
    padding: str = "same"        # same (TensorFlow's) | both (PyTorch's)
    depthwise: str = "conv"      # conv | sum (of shifted products: on CPU 10 to 50 times as fast as XLA's grouped convolution)
    eps: float = 1e-3            # of the batch normalisation; timm's efficientnet_lite0: 1e-5
    mask_patch: int = 8
    image_size: int = 224
    dtype: Any = jnp.float32

    @property
    def path_depth(self):
        return 0

    def num_patches(self, shape):
        """Patches of the masking grid for pixels of this shape, see `mask_cells`."""
        return mask_cells(shape, self.mask_patch)

    @nn.compact
    def __call__(self, pixels, keep_ids=None, path_noise=None):
        layer = functools.partial(_layer, padding=self.padding, summed=self.depthwise == "sum", eps=self.eps, dtype=self.dtype)
        x = pixels if keep_ids is None else masked(pixels, keep_ids, self.num_patches(pixels.shape), self.mask_patch)
        x = layer("stem", x, self.stem_width, side=3, stride=2)
        out, number = {"stem": x}, 0
        for i, (repeats, kernel, stride, expansion, width) in enumerate(self.stages):
            for j in range(repeats):
                x = Block(width, kernel, 1 if j else stride, expansion, layer, name=f"block_{number}")(x)
                number += 1
            x = out[f"stage_{i}"] = shard_batch(x)
        x = layer("head", x, self.features)
        tokens = out["tokens"] = x.reshape(x.shape[0], -1, self.features)
        return {**out, "pooled": tokens.mean(1)}


TOWER = EfficientNet   # its fields are keys of config.model
VARIANTS = tuple(EFFICIENTNETS)


class Block(nn.Module):
    """Inverted bottleneck (B, H, W, C) -> (B, h, w, width): 1x1 up, depthwise, 1x1 down, and the input again where shapes allow."""
    width: int
    kernel: int
    stride: int
    expansion: int
    layer: Callable

    @nn.compact
    def __call__(self, x):
        inner = self.expansion * x.shape[-1]
        y = self.layer("expand", x, inner) if self.expansion > 1 else x
        y = self.layer("depthwise", y, inner, side=self.kernel, stride=self.stride, depthwise=True)
        y = self.layer("project", y, self.width, act=False)
        return x + y if x.shape == y.shape and self.stride == 1 else y


def _layer(name, x, width, act=True, *, padding, summed, eps, dtype, **options):
    """Convolution `name`, normalisation `name`_norm and ReLU6, inside the calling module's scope."""
    x = Conv(width, padding=padding, summed=summed, dtype=dtype, name=name, **options)(x)
    x = FrozenNorm(dtype, eps=eps, name=f"{name}_norm")(x)
    return jax.nn.relu6(x) if act else x


class Conv(nn.Module):
    """(B, H, W, C) -> (B, ceil(H / stride), ceil(W / stride), width); parameter "kernel" (side, side, C or 1, width), no bias."""
    width: int
    side: int = 1
    stride: int = 1
    depthwise: bool = False
    padding: str = "same"
    summed: bool = False
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x):
        inputs = 1 if self.depthwise else x.shape[-1]
        kernel = self.param("kernel", nn.initializers.he_normal(), (self.side, self.side, inputs, self.width)).astype(self.dtype)
        x = x.astype(self.dtype)
        if self.side == 1:
            return x @ kernel[0, 0]
        padding = ((self.side // 2,) * 2,) * 2
        if self.padding == "same":
            padding = jax.lax.padtype_to_pads(x.shape[1:3], kernel.shape[:2], (self.stride,) * 2, "SAME")
        if self.depthwise and self.summed:
            return shifted(x, kernel, self.stride, padding)
        return jax.lax.conv_general_dilated(x, kernel, (self.stride,) * 2, padding, dimension_numbers=("NHWC", "HWIO", "NHWC"),
                                            feature_group_count=self.width if self.depthwise else 1)


def shifted(x, kernel, stride, padding):
    """Depthwise convolution of x (B, H, W, C) by kernel (s, s, 1, C) as a sum over the kernel's s * s products."""
    x, side = jnp.pad(x, ((0, 0), *padding, (0, 0))), kernel.shape[0]
    height, width = ((n - side) // stride * stride + 1 for n in x.shape[1:3])
    return sum(x[:, i:i + height:stride, j:j + width:stride] * kernel[i, j, 0][None, None, None]
               for i in range(side) for j in range(side))
