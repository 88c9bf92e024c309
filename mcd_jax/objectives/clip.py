"""CLIP: one softmax contrastive loss over matching images and captions (Radford et al. 2021, figure 3)."""
from typing import NamedTuple

from mcd_jax import config as config_lib
from mcd_jax.losses import contrastive
from mcd_jax.objectives import pair


class Options(NamedTuple):
    image: str = "image"   # batch key of the image view
    text: str = "text"     # batch key of the caption
    form: str = "auto"     # of the contrastive loss: "gather" | "ring" | "ring_bf16" | "auto" by size (losses/contrastive.py)


WEIGHTS = {"clip": 1.0}


def make(config):
    """The `Objective`; terms: clip."""
    opts = config_lib.options(Options, config.objective)
    contrastive.check_form(opts.form)
    towers = pair.towers_of(config)

    def finish(out, params, memory, batch, key, step):
        return {**out, "scale": towers.scale(params)}

    return pair.objective(
        config, towers, pair.Parts({"image": pair.View("image", opts.image), "text": pair.View("text", opts.text)}, finish=finish),
        terms={"clip": lambda out: contrastive.softmax(out["image"], out["text"], out["scale"], opts.form)},
        metrics=pair.metrics(opts.form),
    )
