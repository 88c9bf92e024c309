"""LOUPE: regions of an image and phrases of its caption aligned by their interactions in cooperative games.

After "Fine-Grained Semantically Aligned Vision-Language Pre-Training" (Li et al., NeurIPS 2022, arXiv 2208.02515). THE OFFICIAL
CODE WAS NEVER PUBLISHED, AND OF THE PAPER ONLY THE ABSTRACT AND THE FRAMEWORK FIGURE WERE AVAILABLE TO US: this is a
reconstruction, not a verified reproduction. What is certain: two encoders with a global contrastive loss; regions generated from
patch tokens; phrases from the caption; a token-level Shapley interaction that supervises the regions' confidences, a
semantics-level one that supervises which phrase a region aligns with; a neural estimator that knows its uncertainty (UNSIL) in
place of most sampling; all of which is gone when the two encoders are used. The interaction is exact mathematics
(`losses/game.py`). Everything else is from memory or ours: each choice is a field of `Options` with the confidence in it.

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
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from mcd_jax import config as config_lib
from mcd_jax.losses import contrastive, game, interaction
from mcd_jax.microbatch import microbatched
from mcd_jax.models import estimator, regions
from mcd_jax.models import towers as towers_lib
from mcd_jax.objectives import hybrid, pair


class Options(NamedTuple):
    """Open points of the method. Confidence in each default is in brackets; the defaults are for large runs."""
    image: str = "image"
    text: str = "text"
    phrases: str = "phrases"          # spans of the caption's tokens [noun phrases: high; how they are found: medium]
    form: str = "auto"                # of the contrastive loss
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
    estimator_width: int = 256        # [unknown, as the next two]
    estimator_depth: int = 3
    estimator_heads: int = 4


WEIGHTS = {"clip": 1.0, "token": 1.0, "semantics": 1.0, "unsil": 1.0}   # unit weights [high; of unsil: medium]
_CHOICES = {"geometry": ("anchors", "soft_cover"), "project": ("own", "shared"), "masking": ("input", "tokens"),
            "worth": ("cosine", "softmax"), "token_labels": ("hybrid", "sampled"), "pair_labels": ("hybrid", "sampled", "exact"),
            "token_scale": ("minmax", "sigmoid"), "pair_scale": ("softmax", "minmax")}


def _check(opts, config):
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


def make(config):
    """The `Objective`; terms: clip, token, semantics, unsil. memory: statistics. Heads: also `regions`.

    Raises:
      ValueError: an option outside its choices, or a tower whose tokens are no square grid.
    """
    opts = config_lib.options(Options, config.objective)
    _check(opts, config)
    contrastive.check_form(opts.form)
    towers = pair.towers_of(config)
    live = [name for name, term in (("token", "token"), ("pair", "semantics")) if pair.live(config, term)]
    guessed = [name for name in live if {"token": opts.token_labels, "pair": opts.pair_labels}[name] == "hybrid"]
    shapes = _shapes(config, towers)

    def head_for(tokens):
        return regions.make(tokens, opts.hidden, opts.anchors, opts.regions, opts.geometry == "soft_cover", opts.softness)

    head = head_for(shapes["image"])
    estimators = {"token": estimator.of_regions(shapes["image"], shapes["dim"], opts.estimator_width, opts.estimator_depth,
                                                opts.estimator_heads), "pair": estimator.of_pairs()}
    def rule(quota):
        return hybrid.Rule(opts.samples, opts.every, opts.chunk, quota, config.group_size or 1, config.microbatches)

    def init(key, batch):
        k_towers, k_head, k_image, k_text, k_guess = jax.random.split(key, 5)
        params = towers.init(k_towers)
        if live:
            params["regions"] = head.init(k_head)
        if "pair" in live and opts.project == "own":
            params["local"] = {kind: jax.random.normal(k, (width, shapes["dim"])) * width ** -0.5 for kind, k, width in (
                ("image", k_image, shapes["image"][1]), ("text", k_text, shapes["text"]))}
        if guessed:
            params["estimator"] = {name: estimators[name].init(jax.random.fold_in(k_guess, i)) for i, name in enumerate(guessed)}
        return params

    def start(key, params, batch):
        fresh = {"steps": jnp.float32(0), "mean": jnp.float32(0), "square": jnp.float32(1)}
        return {"statistics": {name: dict(fresh) for name in live}} if live else {}

    def remember(memory, params, keep, step):
        if not live:
            return memory
        return {**memory, "statistics": {name: _followed(memory["statistics"][name], keep[name], opts.statistics) for name in live}}

    def rows(params, encoded):
        out = pair.embeddings(params, encoded)
        return {**out, **{f"{kind}/tokens": encoded[kind]["tokens"] for kind in ("image", "text") if live}}

    def local(params, kind, x):
        """Unit joint features f32 (..., D) of means of tokens (..., W)."""
        if "local" in params:
            return towers_lib.unit(x.astype(jnp.float32) @ params["local"][kind])
        return towers_lib.unit(towers_lib.project(params, kind, x))

    def worth(params, rows, masks):
        """Token level: the similarity of an image, of which some cells are left, with its caption: masks (R, S, N) -> (R, S)."""
        if opts.masking == "input":
            pixels = regions.keep_cells(rows["pixels"], masks, config.model.get("mean", 0.5))
            raw = towers.image(params, pixels.reshape(-1, *pixels.shape[2:]))["z"].reshape(*masks.shape[:2], -1)
        else:
            bias = towers_lib.project(params, "image", jnp.zeros_like(rows["tokens"][:, :1]))
            tokens = towers_lib.project(params, "image", rows["tokens"]) - bias
            raw = jnp.einsum("rsn,rnd->rsd", masks.astype(jnp.float32), tokens) / tokens.shape[1] + bias
        image = towers_lib.unit(raw)
        own = jnp.einsum("rsd,rd->rs", image, rows["text"])
        if opts.worth == "cosine":
            return own
        scale = towers.scale(params)
        return jnp.exp(scale * own - jax.nn.logsumexp(scale * jnp.einsum("rsd,bd->rsb", image, params["texts"]), axis=2))

    def worth_of_pairs(params, rows, masks):
        return jax.vmap(interaction.alignment_worth)(rows["scores"], rows["phrases"], masks)

    def guess(params, name, **given):
        """(estimate, sigma) in standard units, in microbatches; the gradient reaches the estimator alone."""
        if name not in guessed:
            return None, None
        def part(params, _, rows, __):
            return {"rows": estimators[name].apply(params, *rows)}
        given = tuple(jax.lax.stop_gradient(x) for x in given.values())
        return microbatched(part, config.microbatches)(params["estimator"][name], {}, given)["rows"]

    def labelled(out, name, found, past, estimate, sigma):
        """Adds what the terms read of one level, all (B, I), and returns the moments of what was played, for the statistics."""
        out |= {f"{name}/label": found.label, f"{name}/known": found.known, f"{name}/played": found.played,
                f"{name}/value": found.value}
        if sigma is not None:
            out |= {f"{name}/estimate": estimate, f"{name}/sigma": sigma}
        count, (mean, spread) = jnp.sum(found.played).astype(jnp.float32), past
        first, second = (jnp.sum(found.value ** power) / jnp.maximum(count, 1) for power in (1, 2))
        return {"count": count, "mean": mean + spread * first,
                "square": mean ** 2 + 2 * mean * spread * first + spread ** 2 * second}

    def token_level(out, tokens, found, past, params, memory, batch, key, warm):
        shape = found["logit"].shape
        estimate, sigma = guess(params, "token", tokens=tokens, text=out["text"], coalition=found["cover"])
        seen = {"pixels": batch[opts.image]} if opts.masking == "input" else {"tokens": tokens}
        frozen = {**params, **({"texts": out["text"]} if opts.worth == "softmax" else {})}
        labels = hybrid.labels(rule(opts.token_quota), worth, frozen, {**seen, "text": out["text"]}, found["cover"],
                               jnp.ones(shape, bool), estimate, sigma, key, warm, *past)
        out |= {"token/logit": found["logit"], **({"token/soft": found["soft"]} if "soft" in found else {})}
        return labelled(out, "token", labels, past, estimate, sigma)

    def pair_level(out, tokens, words, found, past, params, batch, key, warm):
        spans = batch[opts.phrases]
        there = spans[..., 1] > spans[..., 0]
        features = [local(params, kind, means(x, chosen)) for kind, x, chosen in (
            ("image", tokens, found["cover"]), ("text", words, inside(spans, words.shape[1])))]
        scale = 1 / opts.temperature if opts.temperature else out["scale"]
        scores = scale * jnp.einsum("bmd,bpd->bmp", *features)
        size, m, p = scores.shape
        estimate, sigma = guess(params, "pair", scores=scores, phrases=there)
        pairs = jnp.broadcast_to(there[:, None], scores.shape).reshape(size, m * p)
        rows = jax.lax.stop_gradient({"scores": scores, "phrases": there})
        if opts.pair_labels == "exact":
            worths = worth_of_pairs({}, rows, jnp.broadcast_to(game.subsets(m + p)[None], (size, 2 ** (m + p), m + p)))
            value = (worths @ game.pair_weights(m, p).reshape(m * p, -1).T.astype("float32") - past[0]) / past[1]
            labels = hybrid.Labels(value, pairs, jnp.where(pairs, value, 0.0), pairs)
        else:
            coalition = jnp.broadcast_to(jnp.asarray(all_pairs(m, p))[None], (size, m * p, m + p))
            flat = [None if x is None else x.reshape(size, m * p) for x in (estimate, sigma)]
            labels = hybrid.labels(rule(opts.pair_quota), worth_of_pairs, {}, rows, coalition, pairs, *flat, key, warm, *past)
            estimate, sigma = flat
        out |= {"pair/scores": scores, "pair/phrases": there}
        return labelled(out, "pair", labels, past, estimate, sigma)

    def finish(out, params, memory, batch, key, step):
        out = {**out, "scale": towers.scale(params)}
        tokens, words = out.pop("image/tokens", None), out.pop("text/tokens", None)
        if not live:
            return out
        found = head.apply(params["regions"], tokens)
        k_token, k_pair = jax.random.split(key)
        warm, keep = step < opts.first, {}
        past = jax.lax.stop_gradient({name: _standard(memory["statistics"][name]) for name in live})
        if "token" in live:
            keep["token"] = token_level(out, tokens, found, past["token"], params, memory, batch, k_token, warm)
        if "pair" in live:
            keep["pair"] = pair_level(out, tokens, words, found, past["pair"], params, batch, k_pair, warm)
        return {**out, "keep": keep}

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
        return sum((interaction.estimator(*(out[f"{name}/{part}"] for part in ("estimate", "sigma", "value", "played")), opts.beta)
                    for name in guessed), jnp.float32(0))

    def regions_head(params, memory, batch):
        """"boxes" (B, M, 4), "confidence" (B, M), unit "features" (B, M, D) of images; unit "text" (B, D), as of one phrase."""
        found = {}
        if "image" in batch:
            tokens = towers.image(params, batch["image"])["tokens"]
            made = head_for(tokens.shape[1:]).apply(params["regions"], tokens)   # of any size that the tower takes
            found |= {"boxes": made["boxes"], "confidence": jax.nn.sigmoid(made["logit"]),
                      "features": local(params, "image", means(tokens, made["cover"]))}
        if "text" in batch:
            inputs = config.model.inputs
            real = (batch["text"] != inputs.get("pad", 0)) & (batch["text"] != inputs.eot)
            words = towers.text(params, batch["text"])["tokens"]
            found["text"] = local(params, "text", means(words, real[:, None]))[:, 0]
        return found

    needs = (opts.image, opts.text, *((opts.phrases,) if "pair" in live else ()))
    return pair.objective(
        config, towers, pair.Parts({"image": pair.View("image", opts.image), "text": pair.View("text", opts.text)}, rows, finish),
        needs=needs, init=init, start=start,
        terms={"clip": lambda out: contrastive.softmax(out["image"], out["text"], out["scale"], opts.form),
               "token": token, "semantics": semantics, "unsil": unsil},
        metrics={**pair.metrics(opts.form), **_metrics(live, guessed)},
        heads={"regions": regions_head} if live else {},
        remember=remember)


def inside(spans, length):
    """bool (B, P, length): the tokens of each span (B, P, 2)."""
    at = jnp.arange(length)[None, None]
    return (at >= spans[..., :1]) & (at < spans[..., 1:])


def means(tokens, chosen):
    """The mean of the chosen tokens: tokens (B, N, W), chosen bool (B, I, N) -> f32 (B, I, W); 0 where none is."""
    weight = chosen.astype(jnp.float32)
    total = jnp.einsum("bin,bnw->biw", weight, tokens.astype(jnp.float32))
    return total / jnp.maximum(weight.sum(2), 1.0)[..., None]


def all_pairs(rows, columns):
    """bool (rows * columns, rows + columns): the coalitions of one row and one column player each."""
    i, j = np.divmod(np.arange(rows * columns), columns)
    players = np.arange(rows + columns)[None]
    return (players == i[:, None]) | (players == rows + j[:, None])


def _standard(past):
    """(mean, spread) of running statistics."""
    return past["mean"], jnp.sqrt(jnp.maximum(past["square"] - past["mean"] ** 2, 1e-8))


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


def _metrics(live, guessed):
    """What there is to watch: shares played, the estimator's uncertainty and error, region confidences."""
    def error(name):
        def of(out):
            played = out[f"{name}/played"]
            square = jnp.where(played, (out[f"{name}/estimate"] - out[f"{name}/value"]) ** 2, 0.0)
            return jnp.sqrt(square.sum() / jnp.maximum(played.sum(), 1))
        return of
    found = {f"{name}/played": lambda out, name=name: jnp.mean(out[f"{name}/played"]) for name in live}
    found |= {f"{name}/sigma": lambda out, name=name: jnp.mean(out[f"{name}/sigma"]) for name in guessed}
    found |= {f"{name}/error": error(name) for name in guessed}
    if "token" in live:
        found["token/confidence"] = lambda out: jnp.mean(jax.nn.sigmoid(out["token/logit"]))
    return found
