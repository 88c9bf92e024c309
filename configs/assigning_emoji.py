"""Text assignment on the embedded data set: to which of two drawings a caption belongs, or to neither; a guess is right in 1 of 3.

python -m mcd_jax.train --config=configs/assigning_emoji.py:run=runs/albef_emoji --workdir=runs/assigning_emoji

Starts from a run of `configs/albef_emoji.py` (an empty `run`: from scratch). It is the first stage of
`configs/nlvr2_b16.py` in small; `objectives/judging.py` with two images goes on from its run. Drawings of one concept count as
different here.
"""
from configs import albef_emoji, pretrain
from mcd_jax import config as config_lib
from mcd_jax.objectives import assigning


def get_config(arguments=""):
    args = pretrain.arguments(arguments, run="runs/albef_emoji", image="vit", steps="300 steps", lr=3e-4)
    config = albef_emoji.get_config(args["image"])
    config.steps, config.optimizer.lr = args["steps"], args["lr"]
    config.optimizer.bounds, config.optimizer.lr_mults = (), ()
    config.objective = config_lib.objective("assigning", fusion_layers=2)
    if args["run"]:
        config.init_from, config.init_fresh, config.init_copies = args["run"], assigning.FRESH, assigning.COPIES
    config.evals, config.sharding = {}, config_lib.default().sharding
    return config
