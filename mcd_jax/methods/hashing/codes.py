"""What the hashing methods share: labels of a batch, codes of encoded features, their heads and metrics.

They read both towers' embeddings before they are made unit ("raw"), of towers that train, that are locked in memory
(config.model.locked), or from scratch. Their own parameters stand at params["hash"], one entry for each modality; the temperature
of the contrastive losses is theirs, so params has no logit_scale.
"""
from collections.abc import Callable, Mapping
import functools
from typing import Any

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from mcd_jax.methods.hashing import code_losses
from mcd_jax.models.towers import Towers
from mcd_jax.objectives import two_tower
from mcd_jax.objectives.objective import Tree

MODALITIES = ("image", "text")


def check(opts: Any, towers: Towers, config: ConfigDict) -> int:
    """Refuses options that no method can work with; returns the width of a feature.

    Raises:
      ValueError: with the key's name.
    """
    for key in ("bits", "classes"):
        value, least = getattr(opts, key), {"bits": 1, "classes": 0}[key]
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise ValueError(f"config.objective.{key}={value!r} must be a whole number of at least {least}")
    return config.model.embed_dim


def views(opts: Any) -> Mapping[str, two_tower.TowerPass]:
    """`ForwardPass.views` of both modalities."""
    return {"image": two_tower.TowerPass("image", opts.image), "text": two_tower.TowerPass("text", opts.text)}


def features(params: Tree, encoded: Tree) -> Tree:
    """`ForwardPass.rows`: the raw embeddings f32 (b, D) of both modalities."""
    return {name: encoded[name]["raw"] for name in MODALITIES}


def labels_of(batch: Tree, opts: Any) -> jax.Array:
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


def init(towers: Towers, init_heads: Callable[..., Tree], key: jax.Array, batch: Tree) -> Tree:
    """The parameters: those of both towers, and init_heads(key, batch) -> dict beside them."""
    k_towers, k_heads = jax.random.split(key)
    params = towers.init(k_towers)
    return {**{name: params[name] for name in MODALITIES}, **init_heads(k_heads, batch)}


def each(make: Callable[[jax.Array], Tree], key: jax.Array) -> Mapping[str, Tree]:
    """{modality: make(key)}, every one from a key of its own."""
    return {name: make(k) for name, k in zip(MODALITIES, jax.random.split(key, len(MODALITIES)))}


def heads(towers: Towers, code: Callable[..., jax.Array]) -> tuple[Mapping[str, Callable], Callable]:
    """({"hash": head}, `ForwardPass.embed`): codes of a batch's modalities, in "embed" as image_hash and text_hash.

    Args:
      code: (params, modality, raw embeddings (b, D)) -> f32 (b, K), of which `code_losses.sign` gives the bits.
    """
    embed = two_tower.embed_head(towers)

    def codes(params, memory, batch):
        raw = embed(params, memory, batch)
        return {name: code(params, name, raw[f"{name}_raw"]) for name in MODALITIES if f"{name}_raw" in raw}

    def more(params, encoded):
        return {f"{name}_hash": code(params, name, out["raw"]) for name, out in encoded.items()}

    return {"hash": codes}, more


def metrics(code: Callable[[Tree, str], jax.Array] = lambda out, name: out[name]) -> Mapping[str, Callable]:
    """Logged of every method: how far codes are from their bits, how one-sided bits are, how well an image's bits fit its text's.

    Args:
      code: (out, modality) -> f32 (B, K).
    """
    def of_both(fn):
        return lambda out: sum(fn(code(out, name)) for name in MODALITIES) / len(MODALITIES)

    def agreement(out):
        image, text = (code_losses.sign(code(out, name)) for name in MODALITIES)
        return jnp.mean(image == text)

    return {"bits/quantisation": of_both(code_losses.quantise),
            "bits/balance": of_both(lambda u: code_losses.balance(code_losses.sign(u))),
            "bits/agreement": agreement}


def of_both(fn: Callable[[jax.Array], jax.Array], out: Tree) -> jax.Array:
    """Sum of fn(codes) over the modalities of `out`, f32 ()."""
    return functools.reduce(jnp.add, (fn(out[name]) for name in MODALITIES))
