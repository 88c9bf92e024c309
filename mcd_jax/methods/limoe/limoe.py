"""LIMoE: CLIP with mixtures of experts, whose routers are kept in balance (Mustafa et al. 2022, arXiv 2206.02770).

A reconstruction: no code was released and the paper's body was not available to us. The entropy losses are confirmed by formulas
quoted elsewhere; importance and load are V-MoE's code; weights and thresholds are as remembered, with the confidence noted beside
each. For one tower of both modalities set config.model.shared; mixtures in two towers (V-MoE) work too, each tower in balance by
itself. Other losses on such towers are composed: config.objective.name = ("siglip", "limoe") with the weight of limoe's clip 0.

Statistics are sums over the tokens of a row, made where the row is encoded, so that groups and batch have theirs whatever the
microbatches and the mesh.
"""
from collections.abc import Callable, Mapping
from typing import NamedTuple

import jax.numpy as jnp
from ml_collections import ConfigDict

from mcd_jax.losses import contrastive, routing
from mcd_jax.objectives import two_tower
from mcd_jax.objectives.objective import Objective
from mcd_jax.objectives.two_tower import Term


class Options(NamedTuple):
    """Confidence in each default is in brackets."""
    image: str = "image"
    text: str = "text"
    least_image: float = 20.0     # experts that images must spread over before the global term vanishes [low to medium]
    least_text: float = 9.0       # the same of texts; of 32 experts [low to medium]
    statistics: str = "group"     # the global, importance and load terms are means over groups ("group", as V-MoE), or of the batch
    every_expert: bool = False    # log the share of each expert of each mixture too
    implementation: str = "auto"  # of the contrastive loss


WEIGHTS = {"clip": 1.0,
           "local_text": 0.04, "local_image": 0.0,        # on texts only [medium]; 0.04 [low]
           "global_text": 0.04, "global_image": 0.04,     # on both, with thresholds [medium]; 0.04 [low]
           "importance": 0.04, "load": 0.04, "z": 0.04}   # used together with them [low to medium]
MODALITIES = ("image", "text")
SUMS = ("probability", "chosen", "entropy", "squared_lse", "kept")


def make(config: ConfigDict, extra_terms: Mapping[str, Callable] = {}) -> Objective:
    """The `Objective`; terms: clip, local_*, global_*, importance, load, z. Each is a mean over layers.

    Raises:
      ValueError: an option outside its choices, or a model without experts.
    """
    opts, towers = two_tower.prepare(config, Options)
    if opts.statistics not in ("group", "batch"):
        raise ValueError(f"config.objective.statistics={opts.statistics!r} must be 'group' or 'batch'")
    if not towers.experts:
        raise ValueError("this objective balances experts, and the model has none to train: set config.model.shared.experts="
                         "dict(num=32), or `experts` of the image or the text tower")
    least = {"image": opts.least_image, "text": opts.least_text}
    for name, experts in towers.experts.items():
        if not 1 <= least[name] <= experts.num:
            raise ValueError(f"config.objective.least_{name}={least[name]} must lie in [1, {experts.num}]: so many experts "
                             "there are")
    terms = {**_terms(opts, towers, least), **extra_terms}
    with_load = "win" in two_tower.live(config, terms).heads
    if with_load and any(experts.noise == 0 for experts in towers.experts.values()):
        raise ValueError("config.objective.weights.load needs noise in the router (experts.noise > 0): without it no other expert "
                         "could have won; set the weight to 0")

    def rows(params, encoded):
        out = two_tower.embeddings(params, encoded)
        for name in towers.experts:
            out |= {f"{name}/{key}": encoded[name]["routing"][key] for key in (*SUMS, *(("win",) if with_load else ()))}
            out[f"{name}/count"] = jnp.full(len(out["image"]), encoded[name]["tokens"].shape[1], jnp.float32)
        return out

    def on_batch(out, params, memory, batch, key, step):
        return {**out, "scale": towers.scale(params)}

    metrics = {**two_tower.metrics(opts.implementation),
               "routing/variation": lambda out: _balance(opts, towers, out, "chosen")}
    for name, experts in towers.experts.items():
        metrics |= _metrics(name, towers.mixtures[name] if opts.every_expert else 0, experts.num)
    return two_tower.objective(
        config, towers,
        two_tower.ForwardPass({"image": two_tower.TowerPass("image", opts.image), "text": two_tower.TowerPass("text", opts.text)},
                              rows, on_batch),
        terms=terms, metrics=metrics)


# ---- statistics of the routers ---------------------------------------------------------------------------------------------------


def _totals(opts, value, size):
    """Sums over each group of rows, or over the batch: (B, layers, E) -> (groups, layers, E)."""
    size = len(value) if opts.statistics == "batch" else size
    return value.reshape(-1, size, *value.shape[1:]).sum(1)


def _balance(opts, towers, out, key):
    """Mean variation over groups and layers, of both modalities together where they share experts."""
    sums = [_totals(opts, out[f"{name}/{key}"], towers.experts[name].group_size) for name in towers.experts]
    if towers.both is not None:
        return jnp.mean(routing.variation(sum(sums)))
    return sum(jnp.mean(routing.variation(s)) for s in sums) / len(sums)


def _per_token(out, name, key):
    """Mean over tokens and layers of a sum per row (B, layers)."""
    return jnp.mean(out[f"{name}/{key}"] / out[f"{name}/count"][:, None])


# ---- terms and metrics -----------------------------------------------------------------------------------------------------------


def _terms(opts, towers, least):
    """Those of a modality without experts are 0. "win" is the chance to be among the chosen, which only the term load needs."""
    def local(name):
        return lambda out: _per_token(out, name, "entropy") if name in towers.experts else jnp.float32(0)

    def spread(name):
        def hinge(out):
            total = _totals(opts, out[f"{name}/probability"], towers.experts[name].group_size)
            return jnp.mean(routing.hinge(total, least[name]))
        return hinge if name in towers.experts else lambda out: jnp.float32(0)

    return {"clip": lambda out: contrastive.softmax(out["image"], out["text"], out["scale"], opts.implementation),
            **{f"local_{name}": local(name) for name in MODALITIES},
            **{f"global_{name}": spread(name) for name in MODALITIES},
            "importance": lambda out: _balance(opts, towers, out, "probability"),
            "load": Term(lambda out: _balance(opts, towers, out, "win"), heads=("win",)),
            "z": lambda out: sum(_per_token(out, name, "squared_lse") for name in towers.experts) / len(towers.experts)}


def _metrics(name, layers, num):
    """What to watch of one modality. Chosen: what tokens ask for, whether or not they find room."""
    def shares(out):
        """Share of the batch's tokens that choose each expert, (layers, E)."""
        total = out[f"{name}/chosen"].sum(0)
        return total / jnp.maximum(total.sum(-1, keepdims=True), 1.0)

    result = {"success": lambda out: _per_token(out, name, "kept"),                # share of the tokens that found room
             "dropped": lambda out: 1 - _per_token(out, name, "kept"),
             "entropy": lambda out: _per_token(out, name, "entropy"),             # of a token: how undecided it is
             "mean_entropy": lambda out: jnp.mean(routing.spread(out[f"{name}/probability"].sum(0))),   # of the average token
             "experts_used": lambda out: jnp.mean(jnp.exp(routing.spread(out[f"{name}/chosen"].sum(0)))),   # 1: all go to one
             "busiest": lambda out: jnp.mean(jnp.max(shares(out), axis=-1))}     # share of the expert that most ask for
    for layer in range(layers):
        result |= {f"mixture_{layer}/expert_{e}": lambda out, layer=layer, e=e: shares(out)[layer, e] for e in range(num)}
    return {f"routing/{name}/{key}": fn for key, fn in result.items()}
