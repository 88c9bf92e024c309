"""CLIP: one softmax contrastive loss over matching images and captions (Radford et al. 2021, figure 3)."""
from collections.abc import Callable, Mapping
from typing import NamedTuple

from ml_collections import ConfigDict

from mcd_jax.losses import contrastive
from mcd_jax.objectives import two_tower
from mcd_jax.objectives.objective import Objective


class Options(NamedTuple):
    image: str = "image"   # batch key of the image view
    text: str = "text"     # batch key of the caption
    implementation: str = "auto"   # of the contrastive loss: "gather" | "ring" | "ring_bf16" | "auto" by size


WEIGHTS = {"clip": 1.0}


def make(config: ConfigDict, extra_terms: Mapping[str, Callable] = {}) -> Objective:
    """The `Objective`; terms: clip, and `extra_terms` of one's own, name -> function of `out`, or `two_tower.Term`."""
    opts, towers = two_tower.prepare(config, Options)

    def on_batch(out, params, memory, batch, key, step):
        return {**out, "scale": towers.scale(params)}

    return two_tower.objective(
        config, towers, two_tower.ForwardPass({"image": two_tower.TowerPass("image", opts.image),
                                               "text": two_tower.TowerPass("text", opts.text)}, on_batch=on_batch),
        terms={"clip": lambda out: contrastive.softmax(out["image"], out["text"], out["scale"], opts.implementation),
               **extra_terms},
        metrics=two_tower.metrics(opts.implementation),
    )
