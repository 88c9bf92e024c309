"""SLIP: CLIP plus SimCLR between two strongly augmented views (Mu et al. 2022, section 3; losses.py of the released code).

Where it differs from the released code: the projector has layer in place of batch normalisation (`models.projector` says why), and
pixels are normalised by config.model.mean and std, 0.5 each unless set; the released code has ImageNet's,
mean=(0.485, 0.456, 0.406) and std=(0.229, 0.224, 0.225).
"""
from collections.abc import Callable, Mapping
from typing import NamedTuple

import jax
from ml_collections import ConfigDict

from mcd_jax.losses import contrastive, ssl
from mcd_jax.models import projector
from mcd_jax.objectives import two_tower
from mcd_jax.objectives.objective import Objective


class Options(NamedTuple):
    image: str = "image"
    text: str = "text"
    view1: str = "view1"          # batch keys of the two augmented views
    view2: str = "view2"          # alike
    hidden: int = 4096            # projector width (released code: 4096)
    out_dim: int = 256            # projector output (released code: 256)
    ssl_temperature: float = 0.1  # released code: 0.1
    implementation: str = "auto"  # of the contrastive losses: "gather" | "ring" | "ring_bf16" | "auto" by size


WEIGHTS = {"clip": 1.0, "ssl": 1.0}   # released code: ssl scale 1


def make(config: ConfigDict, extra_terms: Mapping[str, Callable] = {}) -> Objective:
    """The `Objective`; terms: clip on the mild view, ssl between the two strong ones."""
    opts, towers = two_tower.prepare(config, Options)
    terms = {"clip": lambda out: contrastive.softmax(out["image"], out["text"], out["scale"], opts.implementation),
             "ssl": two_tower.Term(lambda out: ssl.nt_xent(out["view1"], out["view2"], opts.ssl_temperature, opts.implementation),
                                   views=("view1", "view2"), heads=("ssl",)), **extra_terms}
    with_ssl = "ssl" in two_tower.live(config, terms).heads
    size = config.model.inputs.image_size

    def head_for(params):
        return projector.make(projector.width_of(towers.image, params, (1, size, size, 3)), opts.hidden, opts.out_dim)

    def init(key, batch):
        k_towers, k_head = jax.random.split(key)
        params = towers.init(k_towers)
        return {**params, "ssl": head_for(params).init(k_head)} if with_ssl else params

    def rows(params, encoded):
        out = two_tower.embeddings(params, encoded)
        for view in ("view1", "view2") if with_ssl else ():   # in place of the embedding
            out[view] = head_for(params).apply(params["ssl"], encoded[view]["pooled"])
        return out

    def on_batch(out, params, memory, batch, key, step):
        return {**out, "scale": towers.scale(params)}

    views = {"image": two_tower.TowerPass("image", opts.image), "text": two_tower.TowerPass("text", opts.text)}
    strong = {"view1": two_tower.TowerPass("image", opts.view1), "view2": two_tower.TowerPass("image", opts.view2)}
    return two_tower.objective(
        config, towers, two_tower.ForwardPass(views, rows, on_batch, optional=strong),
        init=init,
        terms=terms,
        metrics=two_tower.metrics(opts.implementation),
    )
