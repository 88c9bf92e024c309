"""m2-Mix and m3-Mix: CLIP with geodesic mixtures of embeddings, the mixtures of other pairs as hard negatives.

Oh, So et al., "Geodesic Multi-Modal Mixup for Robust Fine-Tuning" (NeurIPS 2023, arXiv 2203.03897). A reconstruction: only the
abstract and the released code (`changdaeoh/multimodal-mixup` at 5009bcb) were available to us. `mixup.py` has the formulas,
and says where the paper is remembered to differ from the code. Terms and their weights in the released scripts:

    m2-Mix (the default)   clip 1, m2 in {0.05, 0.01, 0.005, 0.001}
    m3-Mix                 clip 1, m2 0.01, v 0.05, l 0.05, vl in {0.05, 0.1, 0.2}; m2_beta 0.2

all but clip divided by the number of the epoch, from 1 (`DECAY`). The scripts add up the two anchors of m2, here they are
averaged; `m2_reduce="sum"`, or twice the weight, is theirs. One coefficient per batch and term is drawn from Beta(b, b), the same
on every mesh and for any number of microbatches.

By the published figures, as remembered, a higher temperature alone gives most of the gain over fine-tuning at 0.01: compare with
the plain loss at such a temperature (`configs/m2mix_emoji.py:kind=control`).
"""
from collections.abc import Callable, Mapping
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from mcd_jax.losses import contrastive
from mcd_jax.methods.m2mix import mixup
from mcd_jax.objectives import two_tower
from mcd_jax.objectives.objective import Objective
from mcd_jax.objectives.two_tower import Term


class Options(NamedTuple):
    """The released scripts' values; "paper" marks where what is remembered of the paper differs from them."""
    image: str = "image"
    text: str = "text"
    temperature: float = 0.01         # of clip, v, l, vl; constant. 0: params/logit_scale, learned unless the optimizer freezes it
    m2_temperature: float = 0.07      # of m2, constant. 0: that of the other terms
    m2_learned: bool = False          # that of m2 is learned, from m2_temperature on: params/m2/logit_scale (the earlier script)
    beta: float = 0.5                 # of the Beta(beta, beta) that mixing coefficients are drawn from, of v and l
    vl_beta: float = 0.5              # of vl
    m2_beta: float = 0.5              # of m2
    m2_reduce: str = "mean"           # of the two anchors, paper; "sum" (main.py)
    m2_negative_scale: float = 0.0    # inverse temperature of the negatives alone, constant (README: 0.01). 0: as the positives
    vl_target: str = "own"            # paper; "both" (main.py)
    unmixed_negatives: bool = False   # v, l, vl: mix only (j, j) and (j, partner of j) (`--original_neg`)
    implementation: str = "auto"      # of the contrastive losses: "gather" | "ring" | "ring_bf16" | "auto" by size


WEIGHTS = {"clip": 1.0, "m2": 0.01, "v": 0.0, "l": 0.0, "vl": 0.0}
DECAY = {term: "1 epoch" for term in ("m2", "v", "l", "vl")}
MIXED = ("m2", "v", "l", "vl")   # the order of their random keys


def _check(opts):
    for name, choices in (("m2_reduce", mixup.REDUCE), ("vl_target", mixup.TARGETS)):
        if getattr(opts, name) not in choices:
            raise ValueError(f"config.objective.{name}={getattr(opts, name)!r} must be one of {', '.join(choices)}")
    for name in ("temperature", "m2_temperature", "m2_negative_scale"):
        if getattr(opts, name) < 0:
            raise ValueError(f"config.objective.{name}={getattr(opts, name)} must be positive, or 0 (see methods/m2mix/m2mix.py)")
    for name in ("beta", "vl_beta", "m2_beta"):
        if getattr(opts, name) <= 0:
            raise ValueError(f"config.objective.{name}={getattr(opts, name)} must be positive, as a Beta distribution's parameter")
    if opts.m2_learned and not opts.m2_temperature:
        raise ValueError("config.objective.m2_learned needs a temperature to start from: set config.objective.m2_temperature")


def make(config: ConfigDict, extra_terms: Mapping[str, Callable] = {}) -> Objective:
    """The `Objective`; terms: clip, m2, v, l, vl.

    Raises:
      ValueError: an option outside its choices.
    """
    opts, towers = two_tower.prepare(config, Options)
    _check(opts)
    terms = {**_terms(opts), **extra_terms}
    mixed = two_tower.live(config, terms).heads
    betas = {"m2": opts.m2_beta, "v": opts.beta, "l": opts.beta, "vl": opts.vl_beta}
    own_scale = opts.m2_learned and "m2" in mixed

    def init(key, batch):
        params = towers.init(key)
        return {**params, "m2": {"logit_scale": jnp.float32(-math.log(opts.m2_temperature))}} if own_scale else params

    def on_batch(out, params, memory, batch, key, step):
        out = {**out, "scale": jnp.float32(1 / opts.temperature) if opts.temperature else towers.scale(params)}
        if own_scale:
            out["m2/scale"] = jnp.exp(params["m2"]["logit_scale"])
        else:
            out["m2/scale"] = jnp.float32(1 / opts.m2_temperature) if opts.m2_temperature else out["scale"]
        for i, term in enumerate(MIXED):
            if term in mixed:
                out[f"mix/{term}"] = jax.random.beta(jax.random.fold_in(key, i), betas[term], betas[term])
        return out

    return two_tower.objective(
        config, towers, two_tower.ForwardPass({"image": two_tower.TowerPass("image", opts.image),
                                               "text": two_tower.TowerPass("text", opts.text)}, on_batch=on_batch),
        init=init,
        terms=terms,
        metrics=_metrics(opts.implementation),
    )


def _mixtures(out):
    return out["image"], out["text"], mixup.slerp(out["image"], out["text"], out["mix/m2"])


def _terms(opts):
    """Each with the coefficient that it needs, under the term's name."""
    def m2(out):
        return mixup.m2(*_mixtures(out), out["m2/scale"], opts.m2_reduce, opts.m2_negative_scale or None, opts.implementation)

    def mixed(loss, term, **more):
        return Term(lambda out: loss(out["image"], out["text"], out[f"mix/{term}"], out["scale"],
                                     unmixed_negatives=opts.unmixed_negatives, implementation=opts.implementation, **more),
                    heads=(term,))

    return {"clip": lambda out: contrastive.softmax(out["image"], out["text"], out["scale"], opts.implementation),
            "m2": Term(m2, heads=("m2",)),
            "v": mixed(mixup.v_mix, "v"),
            "l": mixed(mixup.l_mix, "l"),
            "vl": mixed(mixup.vl_mix, "vl", target=opts.vl_target)}


def _metrics(implementation):
    return {**two_tower.metrics(implementation),
            **{f"mix/{term}": Term(lambda out, term=term: out[f"mix/{term}"], heads=(term,)) for term in MIXED},
            "m2/logit_scale": Term(lambda out: out["m2/scale"], heads=("m2",)),
            "m2/hard_negatives": Term(lambda out: mixup.hard_share(*_mixtures(out), implementation), heads=("m2",))}
