"""GCL on the embedded data set: image, text and both fused in one contrastive loss, at the data, steps and model of the others.

mcd-jax train --config=gcl_emoji --workdir=runs/gcl_emoji

Three vendors draw each concept, so a batch of 256 holds about 0.1 other drawings per concept: negatives that are none, as in every
config on this data set.
"""
from mcd_jax import config as config_lib
from mcd_jax.configs import emoji
from mcd_jax.sweep import grid


def get_config():
    config = emoji.base(emoji.STEPS, dict(image=emoji.ORIGINAL))
    config.objective = config_lib.objective("gcl")
    return config


def sweep(add):
    """The paper's ablation (its table 5) and the fusions, three seeds: `mcd-jax sweep --config=... --workdir=...`."""
    def without(*terms):
        return {"objective.weights.gcl": 1.0, **{f"objective.weights.{term}": -1.0 for term in terms}}

    contrastive = {"objective.weights.gcl": 0.0, "objective.weights.clip": 1.0}
    separated = {"objective.weights.gcl": 0.0, "objective.weights.clip": 2.0, "objective.weights.separate_image": 0.5,
                 "objective.weights.separate_text": 0.5}
    variants = [{}, contrastive, separated, without("i2t", "t2i"), without("i2it", "t2it"), without("it2i", "it2t"),
                {"objective.fusion": "unit_sum"}, {"objective.fusion": "tower"}]
    for run in grid({"seed": range(3)}):
        for variant in variants:
            add({**variant, **run})
