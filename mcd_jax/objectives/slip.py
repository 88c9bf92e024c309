"""SLIP: CLIP plus SimCLR between two strongly augmented views (Mu et al. 2022, section 3; losses.py of the released code)."""
from typing import NamedTuple

import jax

from mcd_jax import config as config_lib
from mcd_jax.losses import contrastive, ssl
from mcd_jax.models import projector
from mcd_jax.objectives import pair


class Options(NamedTuple):
    image: str = "image"
    text: str = "text"
    view1: str = "view1"
    view2: str = "view2"
    hidden: int = 4096            # projector width (released code: 4096)
    out_dim: int = 256            # projector output (released code: 256)
    ssl_temperature: float = 0.1  # released code: 0.1
    form: str = "auto"            # of the contrastive losses: "gather" | "ring" | "ring_bf16" | "auto" by size


WEIGHTS = {"clip": 1.0, "ssl": 1.0}   # released code: ssl scale 1


def make(config):
    """The `Objective`; terms: clip on the mild view, ssl between the two strong ones."""
    opts = config_lib.options(Options, config.objective)
    contrastive.check_form(opts.form)
    towers = pair.towers_of(config)
    with_ssl = pair.live(config, "ssl")
    size = config.model.inputs.image_size
    head = None

    def projector_for(params):
        nonlocal head
        width = projector.width_of(towers.image, params, (1, size, size, 3))
        head = head or projector.make(width, opts.hidden, opts.out_dim)
        return head

    def init(key, batch):
        k_towers, k_head = jax.random.split(key)
        params = towers.init(k_towers)
        return {**params, "ssl": projector_for(params).init(k_head)} if with_ssl else params

    def rows(params, encoded):
        out = pair.embeddings(params, {name: encoded[name] for name in ("image", "text")})
        for view in ("view1", "view2") if with_ssl else ():
            out[view] = projector_for(params).apply(params["ssl"], encoded[view]["pooled"])
        return out

    def finish(out, params, memory, batch, key, step):
        return {**out, "scale": towers.scale(params)}

    views = {"image": pair.View("image", opts.image), "text": pair.View("text", opts.text)}
    if with_ssl:
        views |= {"view1": pair.View("image", opts.view1), "view2": pair.View("image", opts.view2)}
    return pair.objective(
        config, towers, pair.Parts(views, rows, finish),
        init=init,
        terms={"clip": lambda out: contrastive.softmax(out["image"], out["text"], out["scale"], opts.form),
               "ssl": lambda out: ssl.nt_xent(out["view1"], out["view2"], opts.ssl_temperature, opts.form)},
        metrics=pair.metrics(opts.form),
    )
