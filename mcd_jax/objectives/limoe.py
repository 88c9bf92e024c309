"""LIMoE: CLIP with mixtures of experts, whose routers are kept in balance (Mustafa et al. 2022, arXiv 2206.02770).

A reconstruction: no code was released and the paper's body was not available to us. The entropy losses are confirmed by formulas
quoted elsewhere; importance and load are V-MoE's code; weights and thresholds are as remembered, with the confidence noted beside
each. For one tower of both modalities set config.model.shared; mixtures in two towers (V-MoE) work too, each tower in balance by
itself. Other losses on such towers are composed: config.objective.name = ("siglip", "limoe") with the weight of limoe's clip 0.

Statistics are sums over the tokens of a row, made where the row is encoded, so that groups and batch have theirs whatever the
microbatches and the mesh.
"""
from typing import NamedTuple

import jax.numpy as jnp

from mcd_jax import config as config_lib
from mcd_jax.losses import contrastive, routing
from mcd_jax.objectives import pair


class Options(NamedTuple):
    """Confidence in each default is in brackets."""
    image: str = "image"
    text: str = "text"
    least_image: float = 20.0     # experts that images must spread over before the global term vanishes [low to medium]
    least_text: float = 9.0       # the same of texts; of 32 experts [low to medium]
    statistics: str = "group"     # the global, importance and load terms are means over groups ("group", as V-MoE), or of the batch
    every_expert: bool = False    # log the share of each expert of each mixture too
    form: str = "auto"            # of the contrastive loss


WEIGHTS = {"clip": 1.0,
           "local_text": 0.04, "local_image": 0.0,        # on texts only [medium]; 0.04 [low]
           "global_text": 0.04, "global_image": 0.04,     # on both, with thresholds [medium]; 0.04 [low]
           "importance": 0.04, "load": 0.04, "z": 0.04}   # used together with them [low to medium]
MODALITIES = ("image", "text")
SUMS = ("probability", "chosen", "entropy", "squared_lse", "kept")


def make(config):
    """The `Objective`; terms: clip, local_*, global_*, importance, load, z. Each is a mean over layers.

    Raises:
      ValueError: an option outside its choices, or a model without experts.
    """
    opts = config_lib.options(Options, config.objective)
    contrastive.check_form(opts.form)
    if opts.statistics not in ("group", "batch"):
        raise ValueError(f"config.objective.statistics={opts.statistics!r} must be 'group' or 'batch'")
    towers = pair.towers_of(config)
    if not towers.experts:
        raise ValueError("this objective balances experts, and the model has none to train: set config.model.shared.experts="
                         "dict(num=32), or `experts` of the image or the text tower")
    least = {"image": opts.least_image, "text": opts.least_text}
    for name, experts in towers.experts.items():
        if not 1 <= least[name] <= experts.num:
            raise ValueError(f"config.objective.least_{name}={least[name]} must lie in [1, {experts.num}]: so many experts "
                             "there are")
    with_load = pair.live(config, "load")
    if with_load and any(experts.noise == 0 for experts in towers.experts.values()):
        raise ValueError("config.objective.weights.load needs noise in the router (experts.noise > 0): without it no other expert "
                         "could have won; set the weight to 0")
    together = towers.both is not None

    def rows(params, encoded):
        out = pair.embeddings(params, encoded)
        for name in towers.experts:
            out |= {f"{name}/{key}": encoded[name]["routing"][key] for key in (*SUMS, *(("win",) if with_load else ()))}
            out[f"{name}/count"] = jnp.full(len(out["image"]), encoded[name]["tokens"].shape[1], jnp.float32)
        return out

    def finish(out, params, memory, batch, key, step):
        return {**out, "scale": towers.scale(params)}

    def totals(value, size):
        """Sums over each group of rows, or over the batch: (B, layers, E) -> (groups, layers, E)."""
        size = len(value) if opts.statistics == "batch" else size
        return value.reshape(-1, size, *value.shape[1:]).sum(1)

    def balance(out, key):
        """Mean variation over groups and layers, of both modalities together where they share experts."""
        sums = [totals(out[f"{name}/{key}"], towers.experts[name].group_size) for name in towers.experts]
        return jnp.mean(routing.variation(sum(sums))) if together else sum(jnp.mean(routing.variation(s)) for s in sums) / len(sums)

    def per_token(out, name, key):
        """Mean over tokens and layers of a sum per row (B, layers)."""
        return jnp.mean(out[f"{name}/{key}"] / out[f"{name}/count"][:, None])

    def global_entropy(out, name):
        return jnp.mean(routing.hinge(totals(out[f"{name}/probability"], towers.experts[name].group_size), least[name]))

    terms = {"clip": lambda out: contrastive.softmax(out["image"], out["text"], out["scale"], opts.form)}
    metrics = pair.metrics(opts.form)
    for name in MODALITIES:
        here = name in towers.experts
        terms[f"local_{name}"] = lambda out, name=name, here=here: per_token(out, name, "entropy") if here else jnp.float32(0)
        terms[f"global_{name}"] = lambda out, name=name, here=here: global_entropy(out, name) if here else jnp.float32(0)
        if here:
            metrics |= _metrics(name, per_token, towers.mixtures[name] if opts.every_expert else 0, towers.experts[name].num)
    terms["importance"] = lambda out: balance(out, "probability")
    terms["load"] = lambda out: balance(out, "win")
    terms["z"] = lambda out: sum(per_token(out, name, "squared_lse") for name in towers.experts) / len(towers.experts)
    metrics["routing/variation"] = lambda out: balance(out, "chosen")
    return pair.objective(
        config, towers,
        pair.Parts({"image": pair.View("image", opts.image), "text": pair.View("text", opts.text)}, rows, finish),
        terms=terms, metrics=metrics)


def _metrics(name, per_token, layers, num):
    """What to watch of one modality. Chosen: what tokens ask for, whether or not they find room."""
    def shares(out):
        """Share of the batch's tokens that choose each expert, (layers, E)."""
        total = out[f"{name}/chosen"].sum(0)
        return total / jnp.maximum(total.sum(-1, keepdims=True), 1.0)

    found = {"success": lambda out: per_token(out, name, "kept"),                # share of the tokens that found room
             "dropped": lambda out: 1 - per_token(out, name, "kept"),
             "entropy": lambda out: per_token(out, name, "entropy"),             # of a token: how undecided it is
             "mean_entropy": lambda out: jnp.mean(routing.spread(out[f"{name}/probability"].sum(0))),   # of the average token
             "experts_used": lambda out: jnp.mean(jnp.exp(routing.spread(out[f"{name}/chosen"].sum(0)))),   # 1: all go to one
             "busiest": lambda out: jnp.mean(jnp.max(shares(out), axis=-1))}     # share of the expert that most ask for
    for layer in range(layers):
        found |= {f"mixture_{layer}/expert_{e}": lambda out, layer=layer, e=e: shares(out)[layer, e] for e in range(num)}
    return {f"routing/{name}/{key}": fn for key, fn in found.items()}
