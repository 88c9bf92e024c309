"""FILIP: patches look for words and words for patches, in place of one embedding for each side (Yao et al. 2021, arXiv 2111.07783).

Digests of the paper were available to us, and two released codes that are not its authors' training code (MindFormers' model and
DeCLIP's repository, https://github.com/Sense-GVT/DeCLIP): where they differ, there is an option. Both towers' tokens, without class
tokens, go through linear heads of their own; `losses.token_wise` has the similarity. Its temperature is learned apart from that of
the pooled embeddings, which nothing trains unless the weight of `clip` says so: evaluations of retrieval and zero-shot
classification compare tokens then (the head `token_wise`), and exports refuse the run.
"""
from collections.abc import Callable, Mapping
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from mcd_jax.losses import contrastive, token_wise
from mcd_jax.models import towers as towers_lib
from mcd_jax.models.text import first_match
from mcd_jax.objectives import two_tower
from mcd_jax.objectives.objective import Objective, apart
from mcd_jax.objectives.two_tower import Term, TowerPass


class Options(NamedTuple):
    image: str = "image"
    text: str = "text"
    token_width: int = 256        # of the tokens that are compared (the paper: 256)
    pads: str = "masked"          # what a text's padding does: "masked" | "zero" | "counted", `losses.token_wise.words`
    select: int = 0               # tokens of each image and text that others see; 0: all (DeCLIP's repository: 16)
    implementation: str = "auto"  # of the losses over all pairs: "gather" | "ring" | "ring_bf16" | "auto" by size


WEIGHTS = {"filip": 1.0, "clip": 0.0}   # clip: of the pooled embeddings
_MOST = math.log(100)   # of the logarithm of the inverse temperature


def make(config: ConfigDict, extra_terms: Mapping[str, Callable] = {}) -> Objective:
    """The `Objective`; terms: filip, of tokens, and clip, of the pooled embeddings. Heads: also `token_wise`.

    Raises:
      ValueError: an option out of its range, or a tower without tokens.
    """
    opts, towers = two_tower.prepare(config, Options)
    if opts.pads not in token_wise.PADS:
        raise ValueError(f"config.objective.pads={opts.pads!r} must be one of {', '.join(token_wise.PADS)}")
    if opts.token_width < 1 or opts.select < 0:
        raise ValueError(f"config.objective.token_width={opts.token_width} must be at least 1, and select={opts.select} at least 0")
    for kind in ("image", "text"):
        if (config.model.get(kind) or {}).get("name") == "stored":
            raise ValueError(f"config.model.{kind}.name='stored' has one embedding of each {kind} and no tokens, which filip "
                             "compares: take a tower that has them")

    def filip(out):
        words = token_wise.Words(out["text_tokens"], out["text_weight"], out["text_found"])
        return token_wise.loss(out["image_tokens"], words, out["token_scale"], opts.select, opts.implementation)

    terms = {"filip": Term(filip, heads=("tokens",)),
             "clip": lambda out: contrastive.softmax(out["image"], out["text"], out["scale"], opts.implementation), **extra_terms}
    live = two_tower.live(config, terms)
    with_tokens = "tokens" in live.heads

    def init(key, batch):
        params = towers.init(key)
        if not with_tokens:
            return params
        widths = _widths(config, towers, params)
        heads = {kind: {"kernel": jax.random.normal(k, (width, opts.token_width)) * width ** -0.5}
                 for (kind, width), k in zip(widths.items(), jax.random.split(apart(key)), strict=True)}
        return {**params, "filip": {**heads, "logit_scale": jnp.float32(math.log(1 / 0.07))}}

    def of_tokens(params, encoded):
        """Unit "image_tokens" f32 (b, P, E); "text_tokens" (b, Q, E), "text_weight" and "text_found", see `token_wise.Words`."""
        tokens = {kind: _unit_tokens(params["filip"][kind], out["tokens"]) for kind, out in encoded.items()}
        found = {"image_tokens": tokens["image"]} if "image" in tokens else {}
        if "text" in tokens:
            words = token_wise.words(tokens["text"], _valid(encoded["text"]["input"], config.model.inputs), opts.pads)
            found |= {f"text_{name}": value for name, value in words._asdict().items()}
        return found

    def rows(params, encoded):
        return {**two_tower.embeddings(params, encoded), **(of_tokens(params, encoded) if with_tokens else {})}

    def on_batch(out, params, memory, batch, key, step):
        own = {"token_scale": jnp.exp(jnp.minimum(params["filip"]["logit_scale"], _MOST))} if with_tokens else {}
        return {**out, "scale": towers.scale(params), **own}

    def head(params, memory, batch):
        return of_tokens(params, {kind: {**getattr(towers, kind)(params, batch[kind]), "input": batch[kind]}
                                  for kind in ("image", "text") if kind in batch})

    pooled = bool(live.terms - {"filip"})
    objective = two_tower.objective(
        config, towers,
        two_tower.ForwardPass({"image": TowerPass("image", opts.image), "text": TowerPass("text", opts.text)}, rows, on_batch),
        init=init,
        terms=terms,
        metrics={**(two_tower.metrics(opts.implementation) if pooled else {}),
                 "token_scale": Term(lambda out: out["token_scale"], heads=("tokens",))},
        heads={"token_wise": head} if with_tokens else {},
    )
    return objective._replace(pooled=pooled)


def _unit_tokens(head, tokens):
    kernel = head["kernel"].astype(tokens.dtype)
    return towers_lib.unit(jnp.matmul(tokens, kernel, preferred_element_type=jnp.float32))


def _valid(tokens, inputs):
    """bool (b, L): which tokens are no padding. Where that is the end of the text as well, its first one is none."""
    pad = inputs.get("pad", 0)
    valid = tokens != pad
    if pad != inputs.eot:
        return valid
    return valid | (jnp.arange(tokens.shape[1])[None] == first_match(tokens, inputs.eot)[:, None])


def _widths(config, towers, params):
    """{"image": W of its tokens, "text": W}, without computing."""
    size, context = config.model.inputs.image_size, config.model.inputs.context
    given = {"image": jax.ShapeDtypeStruct((1, size, size, 3), jnp.uint8), "text": jax.ShapeDtypeStruct((1, context), jnp.int32)}
    return {kind: jax.eval_shape(getattr(towers, kind), params, example)["tokens"].shape[-1] for kind, example in given.items()}
