"""Fusion layers that read a text together with two images: every layer is there twice (Li et al. 2021, ALBEF, section 4.4, NLVR2).

The first copy of a layer attends to the first image, the second, right behind it, to the second. Both project their image to keys
and values alike; everything else is each copy's own. The first copies are the layers of `fusion_layers.py`, parameter for parameter
("fusion"), so that they can be a trained model's; the second ones ("second") lack the projections that are shared.
"""
from collections.abc import Callable
from typing import NamedTuple

import jax

from mcd_jax.models import bert, transformer
from mcd_jax.models.heads import masked_mean

SHARED = ("k", "v")   # of the attention to the images


class Twin(NamedTuple):
    """What `make` returns. b texts of L tokens, W the tower's width, images of M tokens.

    init: (params "fusion" of `fusion_layers.Cross.init` drawn anew) -> the parameters of the second copies.
    fuse: (first copies, second copies, states (b, L, W), seen bool (b, L), (image (b, M, V), image (b, M, V)), noise=None) ->
        {"tokens" (b, L, W), "pooled" (b, W)} as `fusion_layers.Cross.fuse`; `noise` float32 (b, noise_depth).
    noise_depth: columns of noise, 0 where the tower has no dropout.
    """
    init: Callable[[dict], dict]
    fuse: Callable[..., dict]
    noise_depth: int


def make(tower: bert.Bert, depth: int) -> Twin:
    """`Twin` layers on top of a `bert.Bert`, `depth` pairs of them."""
    block = bert.Block(num_heads=tower.num_heads, mlp_dim=tower.mlp_dim, depth=depth, act=tower.act, eps=tower.eps,
                       dtype=tower.dtype)

    def fuse(first, second, states, seen, images, noise=None):
        noise = noise if tower.dropout else None
        gain, rate = (None, None) if noise is None else (bert.seeds(noise).T, tower.dropout)
        first, second = (transformer.unstacked(p) if tower.scan else p for p in (first, second))
        mask, images = bert.mask_of(seen), [image.astype(tower.dtype) for image in images]

        def pair(x, own, other, gains):
            other = {**other, "cross": {**other["cross"], **{name: own["cross"][name] for name in SHARED}}}
            for params, image, gain in zip((own, other), images, gains):
                x, _ = block.apply({"params": params}, x, gain, mask, image, None, rate)
            return x
        if tower.remat != "none":
            pair = jax.checkpoint(pair, policy=transformer.REMAT[tower.remat])
        x = states.astype(tower.dtype)
        for i in range(depth):
            gains = (None, None) if gain is None else (gain[2 * i], gain[2 * i + 1])
            x = pair(x, first[f"block_{i}"], second[f"block_{i}"], gains)
        return {"tokens": x, "pooled": x[:, 0] if tower.pool == "first" else masked_mean(x, seen)}

    return Twin(_without_shared, fuse, 2 * depth if tower.dropout else 0)


def _without_shared(fusion):
    """The parameters of fusion layers without what their twins share with them."""
    return {name: {**layer, "cross": {k: v for k, v in layer["cross"].items() if k not in SHARED}}
            for name, layer in fusion.items()}
