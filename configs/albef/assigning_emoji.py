"""Text assignment on the embedded data set: to which of two drawings a caption belongs, or to neither; a guess is right in 1 of 3.

mcd-jax train --config=assigning_emoji:run=runs/albef_emoji --workdir=runs/assigning_emoji

Starts from a run of `albef_emoji.py` (an empty `run`: from scratch). It is the first stage of
`nlvr2_b16.py` in small; `methods/albef/entailment.py` with two images goes on from its run. Drawings of one concept count as
different here.
"""
from mcd_jax.configs.albef import albef_emoji

from mcd_jax import config as config_lib
from mcd_jax.configs import pretrain
from mcd_jax.methods.albef import text_assignment


def get_config(arguments=""):
    args = pretrain.arguments(arguments, run="runs/albef_emoji", image="vit", steps="300 steps", lr=3e-4)
    config = albef_emoji.get_config(args["image"])
    config.steps, config.optimizer.lr = args["steps"], args["lr"]
    config.optimizer.bounds, config.optimizer.lr_mults = (), ()
    config.objective = config_lib.objective("text_assignment", fusion_layers=2)
    if args["run"]:
        config.init_from, config.init_fresh, config.init_copies = args["run"], text_assignment.FRESH, text_assignment.COPIES
    config.evals, config.sharding = {}, config_lib.default().sharding
    return config
