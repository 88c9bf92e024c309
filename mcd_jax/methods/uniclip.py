"""UniCLIP-style pretraining: pairs of images, of texts and of both in one space, by one loss, MP-NCE.

After "UniCLIP: Unified Framework for Contrastive Language-Image Pre-training" (Lee et al., NeurIPS 2022, arXiv 2209.13430). Its
abstract was available to us, and a third party's description of the loss; no code was released: THIS IS A RECONSTRUCTION. Known are
the three parts: augmentation parameters go to the projection head and not to the tower, MP-NCE, and similarities that depend on the
domain. The temperature and offset of each domain are learned; how the domains are weighed, the sizes of the head and the number of
views are options, and their defaults are ours.
"""
from collections.abc import Callable, Mapping
import math
from typing import NamedTuple

import jax.numpy as jnp
from ml_collections import ConfigDict

from mcd_jax.losses import mp_nce
from mcd_jax.models import augmentation_head
from mcd_jax.models import towers as towers_lib
from mcd_jax.objectives import two_tower
from mcd_jax.objectives.objective import Objective, apart
from mcd_jax.objectives.two_tower import TowerPass

DOMAINS = ("image_image", "image_text", "text_text")


class Options(NamedTuple):
    image: str = "image"               # the first image view
    augmented: tuple = ("augmented",)  # one or several further ones
    text: str = "text"
    aware: bool = True                 # whether a head is told what the augmentations did; without it towers are plain, as exports
                                       # have them
    hidden: int = 512                  # of that head
    denominator: str = "apart"         # "apart" (MP-NCE) | "supcon" | "mil": `losses.mp_nce`
    image_image: float = 1.0           # weight of positives that are both images
    image_text: float = 1.0            # and of an image and a text
    implementation: str = "auto"       # of the loss: "gather" | "ring" | "ring_bf16" | "auto" by size


WEIGHTS = {"mp_nce": 1.0}
_MOST = math.log(100)   # of the logarithm of a domain's inverse temperature


def domain(a: str, b: str) -> str:
    """The one of DOMAINS to which two views belong; that of the text is "text"."""
    return DOMAINS[(a == "text") + (b == "text")]


def make(config: ConfigDict, extra_terms: Mapping[str, Callable] = {}) -> Objective:
    """The `Objective`; term: mp_nce. The embeddings that evaluations see are those behind the head, of untouched images.

    Raises:
      ValueError: no augmented view, or a denominator that there isn't.
    """
    opts, towers = two_tower.prepare(config, Options)
    if not opts.augmented:
        raise ValueError("config.objective.augmented is empty: name at least one augmented view of config.data.views")
    if opts.denominator not in mp_nce.DENOMINATORS:
        raise ValueError(f"config.objective.denominator={opts.denominator!r} must be one of {', '.join(mp_nce.DENOMINATORS)}")
    keys = {"image": opts.image, **{view: view for view in opts.augmented}}   # view -> batch key
    head = augmentation_head.make(config.model.embed_dim, opts.hidden) if opts.aware else None

    def init(key, batch):
        own = {"log_scale": {name: jnp.float32(math.log(1 / 0.07)) for name in DOMAINS if name != "image_text"},   # has logit_scale
               "bias": {name: jnp.float32(0) for name in DOMAINS}}
        return {**towers.init(key), "uniclip": {**own, **({"head": head.init(apart(key))} if head else {})}}

    def behind(params, raw, what=None):
        """Unit embeddings f32 (b, D) of images out of the tower's."""
        return towers_lib.unit(head.apply(params["uniclip"]["head"], raw, what) if head else raw)

    def rows(params, encoded):
        return {name: out["z"] if name == "text" else out["raw"] for name, out in encoded.items()}

    def on_batch(out, params, memory, batch, key, step):
        images = {view: behind(params, out[view], batch[f"{keys[view]}/params"] if head else None) for view in keys}
        own = params["uniclip"]
        scales = {"image_text": towers.scale(params),
                  **{name: jnp.exp(jnp.minimum(x, _MOST)) for name, x in own["log_scale"].items()}}
        return {**out, **images, "scale": scales["image_text"], "scales": scales, "biases": own["bias"]}

    def loss(out):
        weights = {"image_image": opts.image_image, "image_text": opts.image_text}
        return mp_nce.loss({name: out[name] for name in (*keys, "text")}, domain, out["scales"], out["biases"], weights,
                           opts.denominator, opts.implementation)

    views = {**{view: TowerPass("image", key) for view, key in keys.items()}, "text": TowerPass("text", opts.text)}
    objective = two_tower.objective(
        config, towers,
        two_tower.ForwardPass(views, rows, on_batch, embed=lambda params, encoded: (
            {"image": behind(params, encoded["image"]["raw"])} if "image" in encoded else {})),
        needs=(opts.text, *(name for key in keys.values() for name in (key, *([f"{key}/params"] if head else [])))),
        init=init,
        terms={"mp_nce": loss, **extra_terms},
        metrics={**two_tower.metrics(opts.implementation),
                 **{f"scale/{name}": lambda out, name=name: out["scales"][name] for name in DOMAINS},
                 **{f"bias/{name}": lambda out, name=name: out["biases"][name] for name in DOMAINS}},
    )
    return objective._replace(behind=("image",) if head else ())
