"""Analytic FLOPs of a model config, and the peak of each chip.

Matrix products and convolutions only, 2 per multiply-add, forward, per example; `TRAIN` times that is forward and backward.
Nothing is traced, so a config of any size can be planned. `tally.count` counts a whole step of any method from its trace instead.
"""
import jax.numpy as jnp

from mcd_jax.models import moe, shared
from mcd_jax.models.towers import tower

TRAIN = 3  # the backward pass costs two forward passes: one for the inputs' gradient, one for the weights'

# dense bf16 FLOP/s of one JAX device: v2 and v3 have two devices per chip (the vendor's figure is per chip), the others one.
# Sources: cloud.google.com/tpu/docs/system-architecture and the NVIDIA data sheets (without sparsity)
PEAK = {
    "TPU v2": 22.5e12,
    "TPU v3": 61.5e12,
    "TPU v4": 275e12,
    "TPU v5 lite": 197e12,
    "TPU v5e": 197e12,
    "TPU v5": 459e12,
    "TPU v5p": 459e12,
    "TPU v6 lite": 918e12,
    "TPU v6e": 918e12,
    "NVIDIA A100": 312e12,
    "NVIDIA H100": 989e12,
    "NVIDIA H200": 989e12,
}

# per JAX device: bytes of memory, bytes/s to it, bytes/s to the neighbours over all links (the vendor's Gbit/s / 8). Same sources
MEMORY = {
    "TPU v2": (8 * 2 ** 30, 350e9, 62e9),
    "TPU v3": (16 * 2 ** 30, 450e9, 82e9),
    "TPU v4": (32 * 2 ** 30, 1228e9, 300e9),
    "TPU v5 lite": (16 * 2 ** 30, 819e9, 200e9),
    "TPU v5e": (16 * 2 ** 30, 819e9, 200e9),
    "TPU v5": (95 * 2 ** 30, 2765e9, 600e9),
    "TPU v5p": (95 * 2 ** 30, 2765e9, 600e9),
    "TPU v6 lite": (32 * 2 ** 30, 1640e9, 448e9),
    "TPU v6e": (32 * 2 ** 30, 1640e9, 448e9),
}


def peak(kind):
    """FLOP/s of one device of this `device_kind` ("TPU v5 lite", "NVIDIA H100 80GB HBM3", ...); None if unknown, as for a CPU."""
    names = [name for name in PEAK if kind == name or kind.startswith((f"{name} ", f"{name}-"))]
    return PEAK[max(names, key=len)] if names else None


def forward(model_config, vocab_size, context, eot, image_size, keep=1.0, pad=0):
    """FLOPs of one forward pass over one (image, text) pair.

    Args:
      model_config, vocab_size, context, eot, image_size, pad: as `towers.make`.
      keep: share of the patches that a ViT keeps; a convolutional tower computes them all.

    Returns:
      {"image": float, "text": float}, projections included; without the similarity of the batch (2 * B * embed_dim per row).

    Raises:
      ValueError: a tower that this file has no formula for, or a config that `towers.make` refuses.
    """
    text = {"vocab_size": vocab_size, "context": context, "eot": eot, **({"pad": pad} if pad else {})}
    result = {}
    if "shared" in model_config:
        options = {k: v for k, v in model_config["shared"].items() if k != "proj"}
        module = shared.make(options, image_size=image_size, dtype=jnp.float32, **text)
        proj = 2 * module.width * model_config["embed_dim"] * (model_config["shared"].get("proj") != "none")
        patches = max(1, round(keep * (image_size // module.patch_size) ** 2))
        return {"image": float(2 * patches * 3 * module.patch_size ** 2 * module.width + _blocks(module, patches) + proj),
                "text": float(_blocks(module, context) + proj)}
    for kind, given in (("image", {"image_size": image_size}), ("text", text)):
        name, module, proj = tower(model_config, kind, **given)
        if name not in FORMULAS:
            raise ValueError(f"config.model.{kind}.name={name!r} has no FLOP formula; there are {', '.join(FORMULAS)}")
        body, width = FORMULAS[name](module, keep)
        result[kind] = float(body + (0 if proj == "none" else 2 * width * model_config["embed_dim"]))
    return result


def _vit(vit, keep):
    patches = max(1, round(keep * (vit.image_size // vit.patch_size) ** 2))
    tokens = patches + (vit.pool == "class")
    total = 2 * patches * 3 * vit.patch_size ** 2 * vit.width + _blocks(vit, tokens)
    return total + (_pool(vit, tokens) if vit.pool == "map" else 0), vit.width


def _text(text, keep):
    tokens = text.context + (text.pool == "class")
    return _blocks(text, tokens) + (_pool(text, tokens) if text.pool == "map" else 0), text.width


def _bert(bert, keep):
    return _blocks(bert, bert.context), bert.width


def _blocks(tower, tokens):
    per_token = 8 * tower.width ** 2 + 4 * tokens * tower.width + 4 * tower.width * tower.mlp_dim  # q k v out, attention, MLP
    experts, more = getattr(tower, "experts", None), 0
    if experts:   # a router, and k networks in place of one; places that stay empty don't count
        mixtures = len(moe.mixture_layers(experts, tower.depth))
        more = mixtures * (2 * tower.width * experts.num + (experts.k - 1) * 4 * tower.width * tower.mlp_dim)
    return tokens * (tower.depth * per_token + more)


def _pool(tower, tokens):
    """Attention pooling: one query over the tokens, then an MLP on one token."""
    return 4 * tower.width ** 2 * (tokens + 1) + 4 * tokens * tower.width + 4 * tower.width * tower.mlp_dim


def _resnet(net, keep):
    side, width = net.image_size, net.widths[0]
    if net.stem == "patch":
        side //= net.stem_patch
        total = side ** 2 * _conv(net.stem_patch, 3, width)
    else:
        half, side = net.stem_width // 2, -(-side // 2)
        width = net.stem_width
        total = _same(side, 3, half, stride=2) + _same(side, half, half) + _same(side, half, width)
        side //= 2
    for stage, (wide, depth) in enumerate(zip(net.widths, net.depths, strict=True)):
        for block in range(depth):
            down = bool(stage) and not block
            before, side = side, side // 2 if down else side
            if net.block == "basic":
                total += _same(side, width, wide) + _same(side, wide, wide)
            else:
                total += before ** 2 * _conv(1, width, wide // 4) + _same(before, wide // 4, wide // 4)
                total += side ** 2 * _conv(1, wide // 4, wide)
            total += side ** 2 * _conv(1, width, wide) if width != wide else 0
            width = wide
    if net.pool == "attention":
        cells = side ** 2 + 1
        total += 2 * width ** 2 * (1 + 2 * cells) + 4 * cells * width
    return total, width


def _efficientnet(net, keep):
    side = -(-net.image_size // 2)
    total, width = _taps(net.image_size, 3, 2) ** 2 * 2 * 3 * net.stem_width, net.stem_width
    for repeats, kernel, stride, expansion, wide in net.stages:
        for step in [stride] + [1] * (repeats - 1):
            inner, before, side = width * expansion, side, -(-side // step)
            total += _conv(1, width, inner) * before ** 2 * (expansion > 1) + 2 * _taps(before, kernel, step) ** 2 * inner
            total, width = total + side ** 2 * _conv(1, inner, wide), wide
    return total + side ** 2 * _conv(1, width, net.features), net.features


def _swin(net, keep):
    """Attention costs 4 * cells of a window * width per cell; the pooling query attends to all tokens once."""
    sides = net.sides((1, net.image_size, net.image_size, 3))
    total = 2 * sides[0] ** 2 * 3 * net.patch_size ** 2 * net.width
    for stage, (side, depth) in enumerate(zip(sides, net.depths, strict=True)):
        width, window = net.width * 2 ** stage, min(net.window, side)
        total += 4 * side ** 2 * width ** 2 if stage else 0   # merging: 2 * (2 * width) * width per new cell
        total += depth * side ** 2 * (8 * width ** 2 + 4 * window ** 2 * width + 4 * net.mlp_ratio * width ** 2)
    cells = side ** 2
    return total + (4 * width ** 2 * (cells + 1) + 4 * cells * width if net.pool == "query" else 0), width


def _taps(side, kernel, stride):
    """Products with data along one side of a convolution with TensorFlow's padding: those with zeros don't count, as in XLA."""
    out = -(-side // stride)
    first = max((out - 1) * stride + kernel - side, 0) // 2
    return sum(0 <= at * stride + tap - first < side for at in range(out) for tap in range(kernel))


def _conv(side, inputs, outputs):
    return 2 * side ** 2 * inputs * outputs


def _same(side, inputs, outputs, stride=1):
    """A 3x3 convolution to a side x side grid, its input padded by one pixel of zeros; only products with data count, as in XLA."""
    taps = 3 * side - 1 if stride == 2 else 3 * side - 2
    return 2 * taps ** 2 * inputs * outputs


FORMULAS = {"vit": _vit, "resnet": _resnet, "efficientnet": _efficientnet, "swin": _swin, "text": _text, "bert": _bert}
