"""SigLIP on the embedded data set: the control at equal data, steps and model.

mcd-jax train --config=siglip_emoji --workdir=runs/siglip_emoji
"""
from mcd_jax import config as config_lib
from mcd_jax.configs import emoji


def get_config():
    config = emoji.base(emoji.STEPS, dict(image=emoji.ORIGINAL))
    config.objective = config_lib.objective("siglip")
    config.model.logit_scale = 2.3026   # log(10), the paper's start
    config.model.logit_bias = -10.0
    return config
