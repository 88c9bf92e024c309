"""ALIP: the caption as found and one that a model generated, each pair weighed by how well the three fit (Yang et al. 2023).

"ALIP: Adaptive Language-Image Pre-training with Synthetic Caption", arXiv 2308.08428; the weights as the released code computes
them (deepglint/ALIP, train.py and src/open_alip/loss.py). Batch keys: the image, its caption, and a second caption. Captions are
generated elsewhere (the paper: OFA) and stored: `caption('first', 'generated')|tokenize(77)` reads them from a column of that name.
"""
from collections.abc import Callable, Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from mcd_jax.losses import contrastive
from mcd_jax.objectives import two_tower
from mcd_jax.objectives.objective import Objective
from mcd_jax.objectives.two_tower import TowerPass

FITS = ("text_caption", "image_text", "image_caption")   # the three inner products, each with an average of its own


class Options(NamedTuple):
    image: str = "image"
    text: str = "text"
    caption: str = "caption"      # batch key of the generated caption's tokens
    momentum: float = 0.99        # of the averages of the three inner products (released code: 0.99)
    most: float | None = None     # bound of a pair's weight; None: none, as in the released code, where weights reach e^2 and more
    implementation: str = "auto"  # of the losses over all pairs: "gather" | "ring" | "ring_bf16" | "auto" by size


WEIGHTS = {"clip": 1.0, "clip_caption": 1.0}


def fits(image: jax.Array, text: jax.Array, caption: jax.Array) -> dict[str, jax.Array]:
    """The inner products of unit rows (B, D) with one another, FITS -> f32 (B,), without gradient."""
    image, text, caption = jax.lax.stop_gradient((image, text, caption))
    pairs = {"text_caption": (text, caption), "image_text": (image, text), "image_caption": (image, caption)}
    return {name: contrastive.matching(*pair) for name, pair in pairs.items()}


def pair_weights(fit: Mapping[str, jax.Array], mean: Mapping[str, jax.Array],
                 most: float | None = None) -> tuple[jax.Array, jax.Array]:
    """Weights f32 (B,) of the pairs of image and caption, and of image and generated caption.

    With g = exp(fit - mean)^2 of text and caption, a sample weighs min(1, g). Where the two texts fit less than is usual (g < 1),
    each pair weighs its own exp(fit - mean)^2 besides.

    Args:
      fit: as `fits` gives it. mean: FITS -> () averages. most: bound of a pair's own weight, or None.
    """
    own = {name: jnp.exp(fit[name] - mean[name]) ** 2 for name in FITS}
    sample = jnp.minimum(1.0, own["text_caption"])

    def of(name):
        weight = own[name] if most is None else jnp.minimum(own[name], most)
        return sample * jnp.where(own["text_caption"] < 1, weight, 1.0)
    return of("image_text"), of("image_caption")


def make(config: ConfigDict, extra_terms: Mapping[str, Callable] = {}) -> Objective:
    """The `Objective`; terms: clip and clip_caption, weighed. memory: the averages of FITS, 1 at the start, as released.

    Raises:
      ValueError: an option out of its range.
    """
    opts, towers = two_tower.prepare(config, Options)
    if not 0 <= opts.momentum <= 1:
        raise ValueError(f"config.objective.momentum={opts.momentum} must lie in [0, 1]")
    if opts.most is not None and opts.most <= 0:
        raise ValueError(f"config.objective.most={opts.most} must be above 0, or None for no bound")

    def weighed(text, weight):
        def loss(out):
            return contrastive.softmax(out["image"], out[text], out["scale"], opts.implementation, out[weight])
        return loss

    def on_batch(out, params, memory, batch, key, step):
        fit, before = fits(out["image"], out["text"], out["caption"]), jax.lax.stop_gradient(memory["fit"])
        mean = {name: opts.momentum * before[name] + (1 - opts.momentum) * jnp.mean(fit[name]) for name in FITS}
        of_text, of_caption = pair_weights(fit, mean, opts.most)
        return {**out, "scale": towers.scale(params), "weight": of_text, "caption_weight": of_caption, "fit": fit,
                "for_memory": {"fit": mean}}

    views = {"image": TowerPass("image", opts.image), "text": TowerPass("text", opts.text),
             "caption": TowerPass("text", opts.caption)}
    return two_tower.objective(
        config, towers, two_tower.ForwardPass(views, on_batch=on_batch),
        init_memory=lambda key, params, batch: {"fit": {name: jnp.float32(1) for name in FITS}},
        terms={"clip": weighed("text", "weight"), "clip_caption": weighed("caption", "caption_weight"), **extra_terms},
        metrics={**two_tower.metrics(opts.implementation), **{f"fit/{name}": lambda out, name=name: jnp.mean(out["fit"][name])
                                                              for name in FITS},
                 "weight": lambda out: jnp.mean(out["weight"]), "caption_weight": lambda out: jnp.mean(out["caption_weight"])},
        update_memory=lambda memory, params, for_memory, step: {**memory, **for_memory},
    )
