"""SigLIP on generated scenes: the control at equal data, steps and model.

mcd-jax train --config=scenes_siglip --workdir=runs/scenes_siglip [--config=scenes_siglip:twitter]

After the colon: a training vendor that is left out, for choosing.
"""
from mcd_jax import config as config_lib
from mcd_jax.configs import scenes


def get_config(left_out=""):
    config = scenes.base(dict(image=scenes.ORIGINAL), left_out)
    config.objective = config_lib.objective("siglip")
    config.model.logit_scale = 2.3026   # log(10), the paper's start
    config.model.logit_bias = -10.0
    return config
