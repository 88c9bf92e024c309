"""GCL: image, text and the two fused as one contrastive problem, for retrieval where a query or a candidate may be any of them.

After the main text of "Generalized Contrastive Learning for Universal Multimodal Retrieval" (NeurIPS 2025, arXiv 2509.25638): the
supplement, with the temperature and the optimizer, was not available to us, and we know of no public code. The losses are in
`modalities.py`. Where the text leaves a choice open, it is a field of `Options` or a weight.

    the paper's table                             weights
    GCL                                           gcl 1 (the default)
    GCL without {i2t, t2i}                        gcl 1, i2t -1, t2i -1; or gcl 0 and 1 for each of the other four
    GCL without {i2it, t2it}, {it2i, it2t}        alike
    CL                                            gcl 0, clip 1
    CL + intra-modality separation (AlignCLIP)    gcl 0, clip 2, separate_image and separate_text 0.5 (which sides: not said)

`gcl` is the mean of six terms; "i2t" and the others are a sixth of one each, so that they add up to it. AlignCLIP's code adds both
directions of CLIP's loss where `clip` is their mean, hence the 2.
"""
from collections.abc import Callable, Mapping
from itertools import combinations, permutations
from typing import NamedTuple

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from mcd_jax.losses import contrastive
from mcd_jax.methods.gcl import fusion, modalities
from mcd_jax.objectives import two_tower
from mcd_jax.objectives.objective import Objective, apart
from mcd_jax.objectives.two_tower import Term


class Options(NamedTuple):
    """Confidence in each default is in brackets."""
    image: str = "image"
    text: str = "text"
    fusion: str = "raw_sum"     # "raw_sum" (UniIR's) [inference] | "unit_sum" | "tower" (VISTA's): fusion.py
    mask_self: bool = True      # an anchor is not its own negative [the paper's figure and text; its equation 2 doesn't say so]
    temperature: float = 0.0    # of all terms, fixed (VISTA: 0.02); 0: learned, params/logit_scale [not in the main text]
    alike: str = ""             # batch key by which separation spares like pairs: frozen sentence embeddings, or integer labels
    implementation: str = "auto"   # of the losses: "gather" | "ring" | "ring_bf16" | "auto" by size


NAMES = {"i": "image", "t": "text", "it": "fused"}
PAIRS = {f"{a}2{b}": (NAMES[a], NAMES[b]) for a, b in permutations(NAMES, 2)}
SEPARATIONS = {"separate_image": ("image", "text"), "separate_text": ("text", "image")}
WEIGHTS = {"gcl": 1.0, **dict.fromkeys(PAIRS, 0.0), "clip": 0.0, **dict.fromkeys(SEPARATIONS, 0.0)}


def make(config: ConfigDict, extra_terms: Mapping[str, Callable] = {}) -> Objective:
    """The `Objective`; terms: gcl, i2t, i2it, t2i, t2it, it2i, it2t, clip, separate_image, separate_text. Head: also `fused`.

    Raises:
      ValueError: an option outside its choices, or a text tower that can't read an image's tokens.
    """
    opts, towers = two_tower.prepare(config, Options)
    if opts.fusion not in fusion.KINDS:
        raise ValueError(f"config.objective.fusion={opts.fusion!r} must be one of {', '.join(fusion.KINDS)}")
    if opts.temperature < 0:
        raise ValueError(f"config.objective.temperature={opts.temperature} must be positive, or 0 to learn it")
    if opts.fusion == "tower" and not towers.reads_image:
        raise ValueError(f"config.objective.fusion='tower' needs a text tower that reads an image's tokens: "
                         f"config.model.text.name={config.model.get('text', {}).get('name', 'that of a shared tower')!r} doesn't, "
                         "'text' does")
    terms = {**_terms(opts), **extra_terms}
    live = two_tower.live(config, terms)
    with_fused, with_alike = "fused" in live.heads, "alike" in live.heads and bool(opts.alike)
    reader = _reader(config, towers) if opts.fusion == "tower" and with_fused else None

    def init(key, batch):
        params = towers.init(key)
        return params if reader is None else {**params, "fusion": reader.init(apart(key))}

    def fuse(params, encoded):
        """The fused embeddings of an encoded image and text, raw and unit (b, D)."""
        image, text = encoded["image"], encoded["text"]
        if reader is None:
            raw = fusion.add(image["raw"], text["raw"], opts.fusion)
            return {"fused_raw": raw, "fused": fusion.unit(raw)}
        read = towers.text(params, text["input"], path_noise=text["path_noise"],
                           image=reader.apply(params["fusion"], image["tokens"]))
        return {"fused_raw": read["raw"], "fused": read["z"]}

    def rows(params, encoded):
        out = two_tower.embeddings(params, encoded)
        return {**out, "fused": fuse(params, encoded)["fused"]} if with_fused else out

    def on_batch(out, params, memory, batch, key, step):
        scale = jnp.float32(1 / opts.temperature) if opts.temperature else towers.scale(params)
        out = {**out, "scale": scale}
        if with_fused:
            below = modalities.denominators({name: out[name] for name in NAMES.values()}, scale, opts.mask_self,
                                            opts.implementation)
            out |= {f"denominator/{name}": value for name, value in below.items()}
        return {**out, "alike": batch[opts.alike]} if with_alike else out

    def more(params, encoded):
        return fuse(params, encoded) if len(encoded) == 2 and (reader or opts.fusion != "tower") else {}

    return two_tower.objective(
        config, towers,
        two_tower.ForwardPass({"image": two_tower.TowerPass("image", opts.image), "text": two_tower.TowerPass("text", opts.text)},
                              rows, on_batch, embed=more),
        needs=(opts.image, opts.text, *((opts.alike,) if with_alike else ())),
        init=init,
        terms=terms,
        metrics=_metrics(opts.implementation),
    )


def _reader(config, towers):
    """The `Fusion` that projects the image tower's tokens into the text tower."""
    size, context = config.model.inputs.image_size, config.model.inputs.context
    shapes = jax.eval_shape(towers.init, jax.random.key(0))
    image = jax.eval_shape(towers.image, shapes, jax.ShapeDtypeStruct((1, size, size, 3), jnp.uint8))
    text = jax.eval_shape(towers.text, shapes, jax.ShapeDtypeStruct((1, context), jnp.int32))
    return fusion.make(image["tokens"].shape[1:], text["tokens"].shape[-1])


# ---- terms and metrics -----------------------------------------------------------------------------------------------------------


def _one(out, name, implementation):
    """One of the six terms, by its name in PAIRS."""
    anchor, target = PAIRS[name]
    return modalities.term(out[anchor], out[target], out[f"denominator/{anchor}"], out["scale"], implementation)


def _terms(opts):
    """Each with what it needs: the fused embedding, or how alike pairs are."""
    def separation(name):
        x, y = SEPARATIONS[name]
        return lambda out: modalities.separation(out[x], out[y], out["scale"], out.get("alike"), opts.implementation)

    def of_pairs(names):
        return Term(lambda out: sum(_one(out, name, opts.implementation) for name in names) / len(PAIRS), heads=("fused",))

    return {"gcl": of_pairs(tuple(PAIRS)),
            **{name: of_pairs((name,)) for name in PAIRS},
            "clip": lambda out: contrastive.softmax(out["image"], out["text"], out["scale"], opts.implementation),
            **{name: Term(separation(name), heads=("alike",)) for name in SEPARATIONS}}


def _metrics(implementation):
    """Centroid cosines and accuracies of every two modalities that there are, and the six terms of the loss, each on its own."""
    def cosine(x, y):
        return lambda out: modalities.centroid_cosine(out[x], out[y])

    def accuracy(x, y):
        return lambda out: contrastive.accuracy(out[x], out[y], implementation)

    result = {**two_tower.metrics(implementation), "centroid_cosine/i2t": cosine("image", "text")}
    for a, b in combinations(NAMES, 2):
        if "it" in (a, b):
            result[f"centroid_cosine/{a}2{b}"] = Term(cosine(NAMES[a], NAMES[b]), heads=("fused",))
            result[f"accuracy/{a}2{b}"] = Term(accuracy(NAMES[a], NAMES[b]), heads=("fused",))
    for name in PAIRS:
        result[f"term/{name}"] = Term(lambda out, name=name: _one(out, name, implementation), heads=("fused",))
    return result
