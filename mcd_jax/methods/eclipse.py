"""ECLIPSE-style pretraining: an image tower that sees part of the patches learns from its moving average, which sees all of them.

After "Expediting Contrastive Language-Image Pretraining via Self-Distilled Encoders" (Kim et al., AAAI 2024, arXiv 2312.12659).
Its abstract was available and digests of it, no equations and no code: THIS IS A RECONSTRUCTION. Known is that online and averaged
image tower share one text tower, that the online one's tokens are thinned out (by EViT, which keeps what is attended to; here
patches are left out at random, before the tower), and that its alignment matrix learns from the averaged one's by a KL divergence
that doesn't reach the text. Unknown are the weight of the divergence, the momentum (here constant) and the share of tokens kept:
they are options, and their defaults are ours.
"""
from collections.abc import Callable, Mapping
from typing import NamedTuple

import jax
from ml_collections import ConfigDict

from mcd_jax.losses import contrastive, distill
from mcd_jax.objectives import two_tower
from mcd_jax.objectives.objective import Objective
from mcd_jax.objectives.two_tower import Term, TowerPass


class Options(NamedTuple):
    image: str = "image"
    text: str = "text"
    keep_share: float = 0.7       # share of the patches that the trained image tower sees; evaluations show it all of them
    ema_m: float = 0.994          # the averaged tower's momentum
    implementation: str = "auto"  # of the losses over all pairs: "gather" | "ring" | "ring_bf16" | "auto" by size


WEIGHTS = {"clip": 1.0, "distill": 1.0}


def make(config: ConfigDict, extra_terms: Mapping[str, Callable] = {}) -> Objective:
    """The `Objective`; terms: clip of the trained towers, distill from the averaged image tower. memory: teacher.

    Raises:
      ValueError: an option out of its range, or one tower for both modalities.
    """
    opts, towers = two_tower.prepare(config, Options)
    if not 0 < opts.keep_share <= 1:
        raise ValueError(f"config.objective.keep_share={opts.keep_share} must lie in (0, 1]")
    if not 0 <= opts.ema_m <= 1:
        raise ValueError(f"config.objective.ema_m={opts.ema_m} must lie in [0, 1]")
    if towers.both is not None:
        raise ValueError("eclipse averages the image tower and shares the text tower: config.model.shared is both in one")
    teacher = two_tower.teacher(("image",), opts.ema_m)

    def distilled(out):
        text = jax.lax.stop_gradient(out["text"])
        return distill.alignment_kl(out["teacher/image"], text, out["image"], text, out["scale"], out["scale"], opts.implementation)

    terms = {"clip": lambda out: contrastive.softmax(out["image"], out["text"], out["scale"], opts.implementation),
             "distill": Term(distilled, teacher=("image",)), **extra_terms}

    def on_batch(out, params, memory, batch, key, step):
        return {**out, "scale": towers.scale(params)}

    views = {"image": TowerPass("image", opts.image, opts.keep_share), "text": TowerPass("text", opts.text)}
    return two_tower.objective(
        config, towers,
        two_tower.ForwardPass(views, on_batch=on_batch, networks={"teacher": teacher.of},
                              optional={"teacher/image": TowerPass("image", opts.image, network="teacher")}),
        init_memory=teacher.init_memory,
        terms=terms,
        metrics=two_tower.metrics(opts.implementation),
        update_memory=teacher.update_memory,
    )
