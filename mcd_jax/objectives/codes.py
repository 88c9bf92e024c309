"""What the hashing methods share: labels of a batch, codes of encoded features, their heads and metrics.

They read both towers' embeddings before they are made unit ("raw"), of towers that train, that are locked in memory
(config.model.locked), or from scratch. Their own parameters stand at params["hash"], one entry for each modality; the temperature
of the contrastive losses is theirs, so params has no logit_scale.
"""
import functools

import jax
import jax.numpy as jnp

from mcd_jax.losses import hashing
from mcd_jax.objectives import pair

MODALITIES = ("image", "text")


def check(opts, towers, config):
    """Refuses options that no method can work with; returns the width of a feature.

    Raises:
      ValueError: with the key's name.
    """
    for key in ("bits", "classes"):
        value, least = getattr(opts, key), {"bits": 1, "classes": 0}[key]
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise ValueError(f"config.objective.{key}={value!r} must be a whole number of at least {least}")
    return config.model.embed_dim


def views(opts):
    """`Parts.views` of both modalities."""
    return {"image": pair.View("image", opts.image), "text": pair.View("text", opts.text)}


def features(params, encoded):
    """`Parts.rows`: the raw embeddings f32 (b, D) of both modalities."""
    return {name: encoded[name]["raw"] for name in MODALITIES}


def labels_of(batch, opts):
    """The labels of a batch as (B, C) int32, 0 or 1.

    batch[opts.label] is (B, C) already where opts.classes is 0, else (B,) integers below it; another integer is no label at all.

    Raises:
      ValueError: the column has another shape.
    """
    labels = batch[opts.label]
    if labels.ndim != (1 if opts.classes else 2):
        raise ValueError(f"config.objective.classes={opts.classes}, and batch key {opts.label!r} has rows of shape "
                         f"{labels.shape[1:]}: with classes=0 a row is a vector of 0 and 1, one for each label; else it is one "
                         "integer below classes")
    if opts.classes:
        return jax.nn.one_hot(labels, opts.classes, dtype=jnp.int32)
    return (labels > 0).astype(jnp.int32)


def init(towers, own, key, batch):
    """The parameters: those of both towers, and own(key, batch) -> dict beside them."""
    k_towers, k_own = jax.random.split(key)
    params = towers.init(k_towers)
    return {**{name: params[name] for name in MODALITIES}, **own(k_own, batch)}


def each(make, key):
    """{modality: make(key)}, every one from a key of its own."""
    return {name: make(k) for name, k in zip(MODALITIES, jax.random.split(key, len(MODALITIES)))}


def heads(towers, code):
    """("hash" head, `Parts.embed`): codes of the modalities in a batch, and the same in the head "embed" as image_hash, text_hash.

    Args:
      code: (params, modality, raw embeddings (b, D)) -> f32 (b, K), of which `hashing.sign` gives the bits.
    """
    embed = pair.embed_head(towers)

    def codes(params, memory, batch):
        raw = embed(params, memory, batch)
        return {name: code(params, name, raw[f"{name}_raw"]) for name in MODALITIES if f"{name}_raw" in raw}

    def more(params, encoded):
        return {f"{name}_hash": code(params, name, out["raw"]) for name, out in encoded.items()}

    return {"hash": codes}, more


def metrics(code=lambda out, name: out[name]):
    """Logged of every method: how far codes are from their bits, how one-sided bits are, how well an image's bits fit its text's.

    Args:
      code: (out, modality) -> f32 (B, K).
    """
    def of_both(fn):
        return lambda out: sum(fn(code(out, name)) for name in MODALITIES) / len(MODALITIES)

    def agreement(out):
        image, text = (hashing.sign(code(out, name)) for name in MODALITIES)
        return jnp.mean(image == text)

    return {"bits/quantisation": of_both(hashing.quantise), "bits/balance": of_both(lambda u: hashing.balance(hashing.sign(u))),
            "bits/agreement": agreement}


def of_both(fn, out):
    """Sum of fn(codes) over the modalities of `out`, f32 ()."""
    return functools.reduce(jnp.add, (fn(out[name]) for name in MODALITIES))
