"""Sparse autoencoders over the embeddings of an image and a text, and the autoencoder that aligns unaligned ones before them.

Plain functions of parameter trees. Encoders and decoders are shared by both modalities or separate: VL-SAE shares the encoder and
separates the decoders; its ablations are SAE-D (linear, both separate) and SAE-V (linear, both shared).
"""
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from mcd_jax.methods.vl_sae import sparse

MODALITIES = ("image", "text")
ENCODERS = ("distance", "linear")


class Sae(NamedTuple):
    """B rows, D their width, H units; `kind` is "image" or "text".

    init: (key) -> {"encoder": ..., "decoder": ...}: {"kernel": (H, D)} without a bias for distances, (H, D) with (H,) if linear;
      decoders {"kernel": (H, D), "bias": (D,)}. Separate ones stand under "image" and "text".
    encode: (params, kind, x (B, D)) -> codes (B, H) float32, k of them kept.
    decode: (params, kind, codes (B, H)) -> (B, D) float32.
    """
    init: Callable[[jax.Array], dict]
    encode: Callable[..., jax.Array]
    decode: Callable[..., jax.Array]


class Aligner(NamedTuple):
    """init: (key) -> {kind: {"encode": {kernel, bias}, "decode": ...}}; encode, decode: (params, kind, (B, D)) -> (B, D)."""
    init: Callable[[jax.Array], dict]
    encode: Callable[..., jax.Array]
    decode: Callable[..., jax.Array]


def make(width: int, units: int, k: int, encoder: str = "distance", shared_encoder: bool = True,
         shared_decoder: bool = False) -> Sae:
    """The autoencoder.

    Args:
      width: D. units: H. k: activations kept per row.
      encoder: "distance" (2 - distance to a unit's weight, of unit vectors) or "linear" (ReLU of an affine map).

    Raises:
      ValueError: k or a choice out of range.
    """
    if encoder not in ENCODERS:
        raise ValueError(f"config.objective.encoder={encoder!r} must be one of {', '.join(ENCODERS)}")
    if not 1 <= k <= units:
        raise ValueError(f"config.objective.k={k} must lie between 1 and the {units} units (config.objective.ratio times the width "
                         f"{width} of the embeddings)")

    def encoder_init(key):
        k_kernel, k_bias = jax.random.split(key)
        params = {"kernel": _uniform(k_kernel, (units, width), width)}
        return params if encoder == "distance" else {**params, "bias": _uniform(k_bias, (units,), width)}

    def init(key):
        def each(fn, key, shared):
            return fn(key) if shared else {kind: fn(jax.random.fold_in(key, i)) for i, kind in enumerate(MODALITIES)}
        k_encoder, k_decoder = jax.random.split(key)
        return {"encoder": each(encoder_init, k_encoder, shared_encoder),
                "decoder": each(lambda key: _affine(key, units, width), k_decoder, shared_decoder)}

    def encode(params, kind, x):
        own = params["encoder"] if shared_encoder else params["encoder"][kind]
        if encoder == "distance":
            return sparse.top(sparse.closeness(x, own["kernel"]), k)
        x = jnp.einsum("bd,hd->bh", x.astype(jnp.float32), own["kernel"], precision="highest") + own["bias"][None]
        return sparse.top(jax.nn.relu(x), k)

    def decode(params, kind, codes):
        return _apply(params["decoder"] if shared_decoder else params["decoder"][kind], codes)

    return Sae(init, encode, decode)


def make_aligner(width: int, hidden: int) -> Aligner:
    """The auxiliary autoencoder of representations of `width` that are not aligned: four affine maps, no non-linearity."""
    def init(key):
        keys = jax.random.split(key, 4)
        return {kind: {"encode": _affine(keys[2 * i], width, hidden), "decode": _affine(keys[2 * i + 1], hidden, width)}
                for i, kind in enumerate(MODALITIES)}

    return Aligner(init, lambda params, kind, x: _apply(params[kind]["encode"], x.astype(jnp.float32)),
                   lambda params, kind, x: _apply(params[kind]["decode"], x))


def _uniform(key, shape, fan_in):
    """torch's default for a linear layer: uniform in +-1 / sqrt(fan_in)."""
    return jax.random.uniform(key, shape, jnp.float32, -1, 1) * fan_in ** -0.5


def _affine(key, inputs, outputs):
    k_kernel, k_bias = jax.random.split(key)
    return {"kernel": _uniform(k_kernel, (inputs, outputs), inputs), "bias": _uniform(k_bias, (outputs,), inputs)}


def _apply(params, x):
    return jnp.einsum("bi,io->bo", x, params["kernel"], precision="highest") + params["bias"][None]
