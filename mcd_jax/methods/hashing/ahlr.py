"""AHLR-R: hash codes with a dynamic mask and an auxiliary hash layer. A RECONSTRUCTION, NOT THE PUBLISHED METHOD.

Made of the abstract of "Dynamic Masking and Auxiliary Hash Learning for Enhanced Cross-Modal Retrieval" (NeurIPS 2025) alone: a
dynamic mask screens and weighs the key information of images and texts, an auxiliary hash layer balances the channels, a
contrastive loss makes codes discriminative. NO FORMULA, SIZE, WEIGHT OR SPLIT OF THE PAPER WAS AVAILABLE TO US, and we know of no
code. What follows is one well-defined form of these ideas, whose degenerate settings are known baselines. With raw embeddings
f (B, D) of a modality, K bits and keep share rho(t) = 1 - (1 - rho_min) min(1, t / t_mask):

    mask         p = sigmoid(W2 relu(W1 LN(f))),  M = the ceil(rho D) largest of a row,  f~ = f p stop_gradient(M)
    main code    u = tanh(W f~ + b), its signs are the bits
    auxiliary    omega = D softmax(W4 relu(W3 f)),  q = tanh(W_a (omega f) + b_a), while training only
    hash         L_c(u_image, u_text),  auxiliary: L_c(q_image, q_text),  L_c: `code_losses.supervised`
    guide        mean (u - stop_gradient(q))^2,  quantise: mean (u - stop_gradient(sign u))^2,  balance: mean (mean u)^2;
                 of both modalities

    the ablation                                  options and weights
    AHLR-R                                        (the default)
    + mask only                                   auxiliary 0, guide 0
    + auxiliary only                              mask=False
    baseline: frozen or trained CLIP + linear     mask=False, auxiliary 0, guide 0
    baseline without labels                       the same with positives="pair"
"""
from collections.abc import Callable, Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from mcd_jax.methods.hashing import code_heads as code_heads_lib
from mcd_jax.methods.hashing import code_losses, codes
from mcd_jax.objectives import two_tower
from mcd_jax.objectives.objective import Objective
from mcd_jax.objectives.two_tower import Term


class Options(NamedTuple):
    """All of these are ours [inference], to be swept; the abstract decides none."""
    image: str = "image"
    text: str = "text"
    label: str = "label"            # batch key: (B, C) of 0 and 1, or (B,) integers below classes
    classes: int = 0                # different labels; must be given
    bits: int = 32                  # of a code
    mask: bool = True               # channels are screened before the codes
    keep_share: float = 0.7         # rho_min: the share of channels that is left in the end, and in evaluations
    keep_until: float = 0.3         # t_mask: after which share of the run's steps it has fallen there
    mask_of: str = "sample"         # "sample" | "batch": one mask for the rows of a batch (in evaluations always of a sample)
    gate: str = "weight"            # "weight": p weighs and M screens | "straight_through": M screens, with the gradient of p
    auxiliary_bits: int = 0         # 0: as many as bits
    test: str = "main"              # codes of evaluations: "main" | "sum" of both (MITH sums its two heads)
    positives: str = "label"        # "label": all rows that share one | "pair": the row itself
    temperature: float = 0.2        # of the contrastive losses
    implementation: str = "auto"    # of the contrastive losses: "gather" | "ring" | "ring_bf16" | "auto" by size


WEIGHTS = {"hash": 1.0, "auxiliary": 0.5, "guide": 0.1, "quantise": 0.1, "balance": 0.0}
_CHOICES = {"mask_of": ("sample", "batch"), "gate": ("weight", "straight_through"), "test": ("main", "sum"),
            "positives": ("label", "pair")}


def make(config: ConfigDict, extra_terms: Mapping[str, Callable] = {}) -> Objective:
    """The `Objective`; terms: hash, auxiliary, guide, quantise, balance. Head: hash.

    The auxiliary branch is built while one of its terms has a weight, or test="sum" reads it; it stands at params["auxiliary"], and
    with test="main" neither head reads that.

    Raises:
      ValueError: an option outside its choices, or code lengths that don't fit.
    """
    opts, towers = two_tower.prepare(config, Options)
    terms = {**_terms(opts), **extra_terms}
    live = two_tower.live(config, terms)
    width, until = _check(opts, towers, config, "guide" in live.terms)
    with_auxiliary = "auxiliary" in live.heads or opts.test == "sum"
    main, gate = code_heads_lib.tanh(width, opts.bits), code_heads_lib.gate(width)
    other, channels = code_heads_lib.tanh(width, opts.auxiliary_bits or opts.bits), code_heads_lib.channels(width)

    def init_heads(key, batch):
        k_main, k_gate, k_other, k_channels = jax.random.split(key, 4)
        params = {"hash": {name: {"main": one} for name, one in codes.each(main.init, k_main).items()}}
        if opts.mask:
            for name, one in codes.each(gate.init, k_gate).items():
                params["hash"][name]["gate"] = one
        if with_auxiliary:
            heads, weighs = codes.each(other.init, k_other), codes.each(channels.init, k_channels)
            params["auxiliary"] = {name: {"main": heads[name], "channels": weighs[name]} for name in codes.MODALITIES}
        return params

    def masked(params, name, x, share, whole_batch=False):
        if not opts.mask:
            return x
        p = gate.apply(params["hash"][name]["gate"], x)
        kept = code_heads_lib.keep_largest(p, share, whole_batch)
        return x * (p * kept if opts.gate == "weight" else kept + p - jax.lax.stop_gradient(p))

    def auxiliary(params, name, x):
        layers = params["auxiliary"][name]
        return other.apply(layers["main"], channels.apply(layers["channels"], x) * x)

    def code(params, name, x):
        u = main.apply(params["hash"][name]["main"], masked(params, name, x, opts.keep_share))
        return u + auxiliary(params, name, x) if opts.test == "sum" else u

    def on_batch(out, params, memory, batch, key, step):
        share = 1 - (1 - opts.keep_share) * jnp.minimum(1.0, step / until) if until else opts.keep_share
        coded = {name: main.apply(params["hash"][name]["main"], masked(params, name, out[name], share, opts.mask_of == "batch"))
                 for name in codes.MODALITIES}
        if with_auxiliary:
            coded |= {f"auxiliary/{name}": auxiliary(params, name, out[name]) for name in codes.MODALITIES}
        if opts.positives == "label":
            coded["labels"] = codes.labels_of(batch, opts)
        return {**coded, "share": jnp.float32(share)}

    heads, more = codes.heads(towers, code)
    return two_tower.objective(
        config, towers, two_tower.ForwardPass(codes.views(opts), codes.features, on_batch, embed=more),
        needs=(opts.image, opts.text, *((opts.label,) if opts.positives == "label" else ())),
        init=lambda key, batch: codes.init(towers, init_heads, key, batch),
        terms=terms,
        metrics={**codes.metrics(), **({"mask/share": lambda out: out["share"]} if opts.mask else {})},
        heads=heads,
    )


def _terms(opts):
    """Each with whether it needs the auxiliary branch."""
    def agree(prefix):
        return lambda out: code_losses.supervised(out[f"{prefix}image"], out[f"{prefix}text"], out.get("labels"), opts.temperature,
                                                  opts.implementation)

    def guide(out):
        return sum(code_losses.toward(out[name], out[f"auxiliary/{name}"]) for name in codes.MODALITIES)

    return {"hash": agree(""),
            "auxiliary": Term(agree("auxiliary/"), heads=("auxiliary",)),
            "guide": Term(guide, heads=("auxiliary",)),
            "quantise": lambda out: codes.of_both(code_losses.quantise, out),
            "balance": lambda out: codes.of_both(code_losses.balance, out)}


def _check(opts, towers, config, guided):
    """(width of a feature, steps until the mask keeps its smallest share) of options that fit."""
    width = codes.check(opts, towers, config)
    for key, allowed in _CHOICES.items():
        if getattr(opts, key) not in allowed:
            raise ValueError(f"config.objective.{key}={getattr(opts, key)!r} must be one of {', '.join(allowed)}")
    if not 0 < opts.keep_share <= 1 or not 0 <= opts.keep_until <= 1 or opts.temperature <= 0:
        raise ValueError(f"config.objective.keep_share={opts.keep_share} must lie in (0, 1], keep_until={opts.keep_until} in "
                         f"[0, 1], and temperature={opts.temperature} be positive")
    if opts.auxiliary_bits not in (0, opts.bits) and (guided or opts.test == "sum"):
        raise ValueError(f"config.objective.auxiliary_bits={opts.auxiliary_bits} differs from bits={opts.bits}: the term guide and "
                         "test='sum' need codes of one length; set auxiliary_bits=0, or weights.guide=0 and test='main'")
    return width, opts.keep_until * config.total_steps
