"""CLIP: one softmax contrastive loss over matching images and captions (Radford et al. 2021, figure 3)."""
from typing import NamedTuple

from mcd_jax import config as config_lib
from mcd_jax.losses import contrastive
from mcd_jax.microbatch import microbatched
from mcd_jax.objectives import Objective, nothing, pair, unchanged


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

    def encode(params, memory, rows, key):
        return {"rows": {
            "image": towers.image(params, rows["image"], path_noise=rows.get("image/noise"))["z"],
            "text": towers.text(params, rows["text"], path_noise=rows.get("text/noise"))["z"]}}

    def forward(params, memory, batch, key, step):
        rows = {"image": batch[opts.image], "text": batch[opts.text]}
        rows |= pair.path_noise(towers, key, len(rows["image"]), "image")
        out = microbatched(encode, config.microbatches)(params, memory, rows)["rows"]
        return {**out, "scale": towers.scale(params)}

    return Objective(
        needs=(opts.image, opts.text),
        init=lambda key, batch: towers.init(key),
        start=nothing,
        forward=forward,
        terms={"clip": lambda out: contrastive.softmax(out["image"], out["text"], out["scale"], opts.form)},
        metrics=pair.metrics(opts.form),
        heads={"embed": pair.embed_head(towers)},
        remember=unchanged,
    )
