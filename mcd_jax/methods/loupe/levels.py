"""The two levels of LOUPE's game: regions against their tokens, and regions against phrases, as `loupe.py` tells.

Each gives what its terms read, labels of interactions from an estimator or from playing, and moments for the running statistics.
"""
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict
import numpy as np

from mcd_jax.methods.loupe import estimator, game, hybrid, interaction, regions
from mcd_jax.models import towers as towers_lib
from mcd_jax.objectives.objective import Tree
from mcd_jax.sharding.constrain import params_at
from mcd_jax.sharding.microbatch import microbatched


class Model(NamedTuple):
    """What the levels of the game share: options, towers, the region head, the estimators of interactions."""
    config: ConfigDict
    opts: Any                                       # `loupe.Options`
    towers: towers_lib.Towers
    shapes: Mapping[str, tuple[int, int] | int]     # {"image": (N, W) of its tokens, "text": W, "dim": D}
    head: regions.Regions
    estimators: Mapping[str, estimator.Estimator]   # level -> the one that guesses its interactions; only of levels that have one
    levels: tuple[str, ...]                         # out of "token" and "pair", those that terms of some weight need

    def local(self, params: Tree, kind: str, x: jax.Array) -> jax.Array:
        """Unit joint features f32 (..., D) of means of tokens (..., W)."""
        if "local" in params:
            return towers_lib.unit(x.astype(jnp.float32) @ params["local"][kind])
        return towers_lib.unit(towers_lib.project(params, kind, x))

    def rule(self, quota: int) -> hybrid.Rule:
        opts, config = self.opts, self.config
        return hybrid.Rule(opts.samples, opts.every, opts.chunk, quota, config.group_size or 1, config.microbatches)

    def guess(self, params: Tree, level: str, *inputs: jax.Array) -> tuple[jax.Array | None, jax.Array | None]:
        """(estimate, sigma) in standard units, in microbatches; the gradient reaches the estimator alone."""
        if level not in self.estimators:
            return None, None

        def part(params, _, rows, __):
            with params_at(f"estimator/{level}"):
                return {"rows": self.estimators[level].apply(params, *rows)}
        inputs = tuple(jax.lax.stop_gradient(x) for x in inputs)
        return microbatched(part, self.config.microbatches)(params["estimator"][level], {}, inputs)["rows"]


# ---- the whole batch -------------------------------------------------------------------------------------------------------------


def on_batch(model: Model, out: Tree, params: Tree, memory: Tree, batch: Tree, key: jax.Array, step: jax.Array) -> Tree:
    """Regions of the images, and on both levels the labels of interactions with what the terms compare them to."""
    out = {**out, "scale": model.towers.scale(params)}
    tokens, words = out.pop("image/tokens", None), out.pop("text/tokens", None)
    if not model.levels:
        return out
    proposals = model.head.apply(params["regions"], tokens)
    k_token, k_pair = jax.random.split(key)
    warm, for_memory = step < model.opts.first, {}
    past = jax.lax.stop_gradient({level: _standard(memory["statistics"][level]) for level in model.levels})
    if "token" in model.levels:
        added, for_memory["token"] = _token_level(model, out, tokens, proposals, past["token"], params, batch, k_token, warm)
        out |= added
    if "pair" in model.levels:
        added, for_memory["pair"] = _pair_level(model, out, tokens, words, proposals, past["pair"], params, batch, k_pair, warm)
        out |= added
    return {**out, "for_memory": for_memory}


def _labelled(level, labels, past, estimate, sigma):
    """(what the terms read of one level, all (B, I); the moments of what was played, for the statistics)."""
    added = {f"{level}/label": labels.label, f"{level}/known": labels.known, f"{level}/played": labels.played,
             f"{level}/value": labels.value}
    if sigma is not None:
        added |= {f"{level}/estimate": estimate, f"{level}/sigma": sigma}
    count, (mean, spread) = jnp.sum(labels.played).astype(jnp.float32), past
    first, second = (jnp.sum(labels.value ** power) / jnp.maximum(count, 1) for power in (1, 2))
    return added, {"count": count, "mean": mean + spread * first,
                   "square": mean ** 2 + 2 * mean * spread * first + spread ** 2 * second}


# ---- token level: what a region is worth to the similarity of image and caption --------------------------------------------------


def _token_level(model, out, tokens, proposals, past, params, batch, key, warm):
    opts, shape = model.opts, proposals["logit"].shape
    estimate, sigma = model.guess(params, "token", tokens, out["text"], proposals["cover"])
    seen = {"pixels": batch[opts.image]} if opts.masking == "input" else {"tokens": tokens}
    frozen = {**params, **({"texts": out["text"]} if opts.worth == "softmax" else {})}
    labels = hybrid.labels(model.rule(opts.token_quota), _worth_of_tokens(model), frozen, {**seen, "text": out["text"]},
                           proposals["cover"], jnp.ones(shape, bool), estimate, sigma, key, warm, *past)
    added, moments = _labelled("token", labels, past, estimate, sigma)
    soft = {"token/soft": proposals["soft"]} if "soft" in proposals else {}
    return {**added, "token/logit": proposals["logit"], **soft}, moments


def _worth_of_tokens(model):
    opts, towers = model.opts, model.towers

    def worth(params, rows, masks):
        """The similarity of an image, of which some cells are left, with its caption: masks (R, S, N) -> (R, S)."""
        if opts.masking == "input":
            pixels = regions.keep_cells(rows["pixels"], masks, model.config.model.get("mean", 0.5))
            raw = towers.image(params, pixels.reshape(-1, *pixels.shape[2:]))["z"].reshape(*masks.shape[:2], -1)
        else:
            bias = towers_lib.project(params, "image", jnp.zeros_like(rows["tokens"][:, :1]))
            tokens = towers_lib.project(params, "image", rows["tokens"]) - bias
            raw = jnp.einsum("rsn,rnd->rsd", masks.astype(jnp.float32), tokens) / tokens.shape[1] + bias
        image = towers_lib.unit(raw)
        similarity = jnp.einsum("rsd,rd->rs", image, rows["text"])
        if opts.worth == "cosine":
            return similarity
        scale = towers.scale(params)
        return jnp.exp(scale * similarity - jax.nn.logsumexp(scale * jnp.einsum("rsd,bd->rsb", image, params["texts"]), axis=2))
    return worth


# ---- semantics level: how well regions and phrases find each other ---------------------------------------------------------------


def _pair_level(model, out, tokens, words, proposals, past, params, batch, key, warm):
    opts, spans = model.opts, batch[model.opts.phrases]
    there = spans[..., 1] > spans[..., 0]
    features = [model.local(params, kind, means(x, chosen)) for kind, x, chosen in (
        ("image", tokens, proposals["cover"]), ("text", words, inside(spans, words.shape[1])))]
    scale = 1 / opts.temperature if opts.temperature else out["scale"]
    scores = scale * jnp.einsum("bmd,bpd->bmp", *features)
    size, m, p = scores.shape
    estimate, sigma = (None if x is None else x.reshape(size, m * p) for x in model.guess(params, "pair", scores, there))
    pairs = jnp.broadcast_to(there[:, None], scores.shape).reshape(size, m * p)
    rows = jax.lax.stop_gradient({"scores": scores, "phrases": there})
    if opts.pair_labels == "exact":
        worths = _worth_of_pairs({}, rows, jnp.broadcast_to(game.subsets(m + p)[None], (size, 2 ** (m + p), m + p)))
        value = (worths @ game.pair_weights(m, p).reshape(m * p, -1).T.astype("float32") - past[0]) / past[1]
        labels = hybrid.Labels(value, pairs, jnp.where(pairs, value, 0.0), pairs)
    else:
        coalition = jnp.broadcast_to(jnp.asarray(all_pairs(m, p))[None], (size, m * p, m + p))
        labels = hybrid.labels(model.rule(opts.pair_quota), _worth_of_pairs, {}, rows, coalition, pairs, estimate, sigma, key, warm,
                               *past)
    added, moments = _labelled("pair", labels, past, estimate, sigma)
    return {**added, "pair/scores": scores, "pair/phrases": there}, moments


def _worth_of_pairs(params, rows, masks):
    return jax.vmap(interaction.alignment_worth)(rows["scores"], rows["phrases"], masks)


# ---- helpers ---------------------------------------------------------------------------------------------------------------------


def inside(spans: jax.Array, length: int) -> jax.Array:
    """bool (B, P, length): the tokens of each span (B, P, 2)."""
    at = jnp.arange(length)[None, None]
    return (at >= spans[..., :1]) & (at < spans[..., 1:])


def means(tokens: jax.Array, chosen: jax.Array) -> jax.Array:
    """The mean of the chosen tokens: tokens (B, N, W), chosen bool (B, I, N) -> f32 (B, I, W); 0 where none is."""
    weight = chosen.astype(jnp.float32)
    total = jnp.einsum("bin,bnw->biw", weight, tokens.astype(jnp.float32))
    return total / jnp.maximum(weight.sum(2), 1.0)[..., None]


def all_pairs(rows: int, columns: int) -> np.ndarray:
    """bool (rows * columns, rows + columns): the coalitions of one row and one column player each."""
    i, j = np.divmod(np.arange(rows * columns), columns)
    players = np.arange(rows + columns)[None]
    return (players == i[:, None]) | (players == rows + j[:, None])


def _standard(past):
    """(mean, spread) of running statistics."""
    return past["mean"], jnp.sqrt(jnp.maximum(past["square"] - past["mean"] ** 2, 1e-8))
