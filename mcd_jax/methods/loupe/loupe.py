"""LOUPE: regions of an image and phrases of its caption aligned by their interactions in cooperative games.

After "Fine-Grained Semantically Aligned Vision-Language Pre-Training" (Li et al., NeurIPS 2022, arXiv 2208.02515). THE OFFICIAL
CODE WAS NEVER PUBLISHED, AND OF THE PAPER ONLY THE ABSTRACT AND THE FRAMEWORK FIGURE WERE AVAILABLE TO US: this is a
reconstruction, not a verified reproduction. What is certain: two encoders with a global contrastive loss; regions generated from
patch tokens; phrases from the caption; a token-level Shapley interaction that supervises the regions' confidences, a
semantics-level one that supervises which phrase a region aligns with; a neural estimator that knows its uncertainty (UNSIL) in
place of most sampling; all of which is gone when the two encoders are used. The interaction is exact mathematics
(`game.py`). Everything else is from memory or ours: each choice is a field of `Options` with the confidence in it.

    L = clip + token + semantics + unsil
    token      the worth of a set of image tokens is the similarity of what is left of the image with its caption; how much more a
               region is worth than its tokens one by one, scaled to [0, 1], is the label of its confidence
    semantics  the worth of a set of regions and phrases is how well they find each other; the interactions of a region with the
               phrases, made a distribution, are the labels of its softmax over the phrases
    unsil      the estimator's error by sampling, over its uncertainty

Interactions are standardised by running statistics in memory before the estimator learns them [inference: its uncertainty lies in
(0, 1) and calibrates to its error, and cosines interact by a few hundredths]. In-batch quotas follow config.group_size, each row
by itself where that is 0.
"""
from collections.abc import Callable, Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from mcd_jax.losses import contrastive
from mcd_jax.methods.loupe import estimator, interaction, regions
from mcd_jax.methods.loupe import levels as levels_lib
from mcd_jax.objectives import two_tower
from mcd_jax.objectives.objective import Objective
from mcd_jax.objectives.two_tower import Term


class Options(NamedTuple):
    """Open points of the method. Confidence in each default is in brackets; the defaults are for large runs."""
    image: str = "image"
    text: str = "text"
    phrases: str = "phrases"          # spans of the caption's tokens [noun phrases: high; how they are found: medium]
    implementation: str = "auto"      # of the contrastive loss
    regions: int = 8                  # M, the most confident boxes of an image [unknown]
    anchors: tuple = ((0.3, 0.3), (0.6, 0.6), (0.4, 0.8), (0.8, 0.4))   # (width, height) of the boxes around a cell [inference]
    geometry: str = "anchors"         # "anchors": the loss as written, boxes don't learn; "soft_cover": they do, by c [inference]
    softness: float = 0.5             # of the soft cover's edges, in cells [inference]
    hidden: int = 256                 # width of the region head's two layers [unknown]
    project: str = "shared"           # of regions and phrases: the towers' projections, or "own" ones [unknown; with no other image
                                      # to tell apart, own ones only sharpen what they start with: planted blocks stay unaligned]
    masking: str = "input"            # players left out: pixels at the "input" [medium-high], or the fast option, final "tokens"
    worth: str = "cosine"             # of image and text, or "softmax": the text's probability in the batch [inference: cosine]
    samples: int = 500                # K [low: hundreds to two thousand]
    every: bool = False               # look at all members of a coalition in each sample, not at one drawn for all [inference]
    chunk: int = 0                    # samples at once; 0: all. Memory only
    token_labels: str = "hybrid"      # or "sampled": always play, no estimator [hybrid: medium-high]
    pair_labels: str = "hybrid"       # or "sampled", or "exact": all subsets of regions and phrases, up to 16 of them
    token_quota: int = 8              # regions played in each group of rows; 0: all [inference: a fixed number]
    pair_quota: int = 64              # pairs of a region and a phrase, alike
    first: int = 1000                 # steps in which everything is to be played [inference]
    token_scale: str = "minmax"       # interactions to [0, 1]: "minmax" over an image's regions, or "sigmoid" [inference]
    pair_scale: str = "softmax"       # interactions to weights: "softmax" over phrases, or "minmax" over pairs [inference]
    token_temperature: float = 1.0    # of the sigmoid, in standard deviations [inference]
    pair_temperature: float = 0.5     # of the softmax, in standard deviations [inference]
    temperature: float = 0.1          # of region-phrase similarities; 0: the contrastive loss's [unknown]
    beta: float = 1.0                 # price of uncertainty [unknown]
    statistics: float = 0.99          # momentum of the running mean and variance of interactions [inference]
    estimator_width: int = 256        # of the network that estimates interactions [unknown, as the next two]
    estimator_depth: int = 3          # its blocks
    estimator_heads: int = 4          # of its attention


WEIGHTS = {"clip": 1.0, "token": 1.0, "semantics": 1.0, "unsil": 1.0}   # unit weights [high; of unsil: medium]
LEVELS = ("token", "pair")   # of interactions: heads that terms need, in the order in which their estimators are drawn
_CHOICES = {"geometry": ("anchors", "soft_cover"), "project": ("own", "shared"), "masking": ("input", "tokens"),
            "worth": ("cosine", "softmax"), "token_labels": ("hybrid", "sampled"), "pair_labels": ("hybrid", "sampled", "exact"),
            "token_scale": ("minmax", "sigmoid"), "pair_scale": ("softmax", "minmax")}


def _check(opts):
    for name, choices in _CHOICES.items():
        if getattr(opts, name) not in choices:
            raise ValueError(f"config.objective.{name}={getattr(opts, name)!r} must be one of {', '.join(choices)}")
    for name in ("temperature", "token_temperature", "pair_temperature", "beta", "softness"):
        if getattr(opts, name) < 0 or (not getattr(opts, name) and name != "temperature"):
            raise ValueError(f"config.objective.{name}={getattr(opts, name)} must be positive")
    if opts.samples < 1 or (opts.chunk and opts.samples % opts.chunk):
        raise ValueError(f"config.objective.chunk={opts.chunk} must divide config.objective.samples={opts.samples}, at least 1")
    if min(opts.token_quota, opts.pair_quota, opts.first) < 0:
        raise ValueError("config.objective.token_quota, pair_quota and first are numbers from 0")
    if not 0 <= opts.statistics < 1:
        raise ValueError(f"config.objective.statistics={opts.statistics} must lie in [0, 1)")


def make(config: ConfigDict, extra_terms: Mapping[str, Callable] = {}) -> Objective:
    """The `Objective`; terms: clip, token, semantics, unsil. memory: statistics. Heads: also `regions`.

    Raises:
      ValueError: an option outside its choices, or a tower whose tokens are no square grid.
    """
    opts, towers = two_tower.prepare(config, Options)
    _check(opts)
    terms = {**_terms(opts), **extra_terms}
    live = two_tower.live(config, terms)
    model = _model(config, opts, towers, tuple(level for level in LEVELS if level in live.heads))
    levels = model.levels

    def rows(params, encoded):
        out = two_tower.embeddings(params, encoded)
        return {**out, **{f"{kind}/tokens": encoded[kind]["tokens"] for kind in ("image", "text") if levels}}

    def init_memory(key, params, batch):
        fresh = {"steps": jnp.float32(0), "mean": jnp.float32(0), "square": jnp.float32(1)}
        return {"statistics": {level: dict(fresh) for level in levels}} if levels else {}

    def update_memory(memory, params, for_memory, step):
        if not levels:
            return memory
        return {**memory, "statistics": {level: _followed(memory["statistics"][level], for_memory[level], opts.statistics)
                                         for level in levels}}

    def on_batch(out, params, memory, batch, key, step):
        return levels_lib.on_batch(model, out, params, memory, batch, key, step)

    return two_tower.objective(
        config, towers, two_tower.ForwardPass({"image": two_tower.TowerPass("image", opts.image),
                                               "text": two_tower.TowerPass("text", opts.text)}, rows, on_batch),
        needs=(opts.image, opts.text, *((opts.phrases,) if "pair" in levels else ())),
        init=lambda key, batch: _init(model, key),
        init_memory=init_memory,
        terms=terms,
        metrics={**two_tower.metrics(opts.implementation), **_metrics(levels, tuple(model.estimators))},
        heads={"regions": _regions_head(model)} if levels else {},
        update_memory=update_memory)


def _model(config, opts, towers, levels):
    shapes = _shapes(config, towers)
    labels = {"token": opts.token_labels, "pair": opts.pair_labels}
    makers = {"token": lambda: estimator.of_regions(shapes["image"], shapes["dim"], opts.estimator_width, opts.estimator_depth,
                                                    opts.estimator_heads),
              "pair": estimator.of_pairs}
    estimators = {level: makers[level]() for level in levels if labels[level] == "hybrid"}
    return levels_lib.Model(config, opts, towers, shapes, _head_for(opts, shapes["image"]), estimators, levels)


def _head_for(opts, tokens):
    """The region head on so many tokens (N, W) of an image."""
    return regions.make(tokens, opts.hidden, opts.anchors, opts.regions, opts.geometry == "soft_cover", opts.softness)


def _init(model, key):
    """The parameters: towers and what the live levels train."""
    k_towers, k_head, k_image, k_text, k_guess = jax.random.split(key, 5)
    params, shapes = model.towers.init(k_towers), model.shapes
    if model.levels:
        params["regions"] = model.head.init(k_head)
    if "pair" in model.levels and model.opts.project == "own":
        params["local"] = {kind: jax.random.normal(k, (width, shapes["dim"])) * width ** -0.5 for kind, k, width in (
            ("image", k_image, shapes["image"][1]), ("text", k_text, shapes["text"]))}
    if model.estimators:
        params["estimator"] = {level: one.init(jax.random.fold_in(k_guess, i))
                               for i, (level, one) in enumerate(model.estimators.items())}
    return params


# ---- terms, heads ----------------------------------------------------------------------------------------------------------------


def _terms(opts):
    """Each with the level that it needs; unsil takes what there is of both."""
    def token(out):
        labels = interaction.bounded(out["token/label"], out["token/known"], opts.token_scale, opts.token_temperature)
        return interaction.token(out["token/logit"], jax.lax.stop_gradient(labels), out["token/known"], out.get("token/soft"))

    def semantics(out):
        shape, there = out["pair/scores"].shape, out["pair/phrases"]
        labels = jax.lax.stop_gradient(out["pair/label"]).reshape(shape)
        known = jnp.all(out["pair/known"].reshape(shape) | ~there[:, None], axis=2)
        weights = interaction.distributed(labels, there, opts.pair_scale, opts.pair_temperature)
        return interaction.semantics(out["pair/scores"], weights, there, known)

    def unsil(out):
        guessed = [level for level in LEVELS if f"{level}/sigma" in out]
        return sum((interaction.estimator(*(out[f"{level}/{part}"] for part in ("estimate", "sigma", "value", "played")), opts.beta)
                    for level in guessed), jnp.float32(0))

    return {"clip": lambda out: contrastive.softmax(out["image"], out["text"], out["scale"], opts.implementation),
            "token": Term(token, heads=("token",)), "semantics": Term(semantics, heads=("pair",)), "unsil": unsil}


def _regions_head(model):
    def regions_head(params, memory, batch):
        """"boxes" (B, M, 4), "confidence" (B, M), unit "features" (B, M, D) of images; unit "text" (B, D), as of one phrase."""
        result = {}
        if "image" in batch:
            tokens = model.towers.image(params, batch["image"])["tokens"]
            made = _head_for(model.opts, tokens.shape[1:]).apply(params["regions"], tokens)   # of any size that the tower takes
            result |= {"boxes": made["boxes"], "confidence": jax.nn.sigmoid(made["logit"]),
                       "features": model.local(params, "image", levels_lib.means(tokens, made["cover"]))}
        if "text" in batch:
            inputs = model.config.model.inputs
            real = (batch["text"] != inputs.get("pad", 0)) & (batch["text"] != inputs.eot)
            words = model.towers.text(params, batch["text"])["tokens"]
            result["text"] = model.local(params, "text", levels_lib.means(words, real[:, None]))[:, 0]
        return result
    return regions_head


def _followed(past, seen, momentum):
    """Statistics after a step in which `count` interactions of these moments were played; the first ones count more."""
    keep = jnp.where(seen["count"] > 0, jnp.minimum(momentum, past["steps"] / (past["steps"] + 1)), 1.0)
    return {"steps": past["steps"] + (seen["count"] > 0),
            **{name: keep * past[name] + (1 - keep) * seen[name] for name in ("mean", "square")}}


def _shapes(config, towers):
    """{"image": (N, W) of its tokens, "text": W, "dim": D}, without computing."""
    size, context = config.model.inputs.image_size, config.model.inputs.context
    shapes = jax.eval_shape(towers.init, jax.random.key(0))
    image = jax.eval_shape(towers.image, shapes, jax.ShapeDtypeStruct((1, size, size, 3), jnp.uint8))
    text = jax.eval_shape(towers.text, shapes, jax.ShapeDtypeStruct((1, context), jnp.int32))
    return {"image": image["tokens"].shape[1:], "text": text["tokens"].shape[-1], "dim": image["z"].shape[-1]}


def _metrics(levels, guessed):
    """What there is to watch: shares played, the estimator's uncertainty and error, region confidences."""
    def error(name):
        def of(out):
            played = out[f"{name}/played"]
            square = jnp.where(played, (out[f"{name}/estimate"] - out[f"{name}/value"]) ** 2, 0.0)
            return jnp.sqrt(square.sum() / jnp.maximum(played.sum(), 1))
        return of
    metrics = {f"{name}/played": lambda out, name=name: jnp.mean(out[f"{name}/played"]) for name in levels}
    metrics |= {f"{name}/sigma": lambda out, name=name: jnp.mean(out[f"{name}/sigma"]) for name in guessed}
    metrics |= {f"{name}/error": error(name) for name in guessed}
    if "token" in levels:
        metrics["token/confidence"] = lambda out: jnp.mean(jax.nn.sigmoid(out["token/logit"]))
    return metrics
