"""SigLIP: every image-caption pair of the batch is a binary question (Zhai et al. 2023, algorithm 1)."""
from collections.abc import Callable, Mapping

from ml_collections import ConfigDict

from mcd_jax.losses import contrastive
from mcd_jax.methods import clip
from mcd_jax.objectives import two_tower
from mcd_jax.objectives.objective import Objective

Options = clip.Options

WEIGHTS = {"siglip": 1.0}


def make(config: ConfigDict, extra_terms: Mapping[str, Callable] = {}) -> Objective:
    """The `Objective`; terms: siglip. The model needs a logit bias (`config.model.logit_bias`, -10 in the paper).

    Raises:
      ValueError: the model has no logit bias.
    """
    if config.model.get("logit_bias") is None:
        raise ValueError("the sigmoid loss needs a learned bias: set config.model.logit_bias=-10.0 (and logit_scale=log(10))")
    opts, towers = two_tower.prepare(config, Options)

    def on_batch(out, params, memory, batch, key, step):
        return {**out, "scale": towers.scale(params), "bias": towers.bias(params)}

    return two_tower.objective(
        config, towers, two_tower.ForwardPass({"image": two_tower.TowerPass("image", opts.image),
                                               "text": two_tower.TowerPass("text", opts.text)}, on_batch=on_batch),
        terms={"siglip": lambda out: contrastive.sigmoid(out["image"], out["text"], out["scale"], out["bias"],
                                                         opts.implementation), **extra_terms},
        metrics={**two_tower.metrics(opts.implementation), "logit_bias": lambda out: out["bias"]},
    )
