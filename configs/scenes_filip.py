"""FILIP on generated scenes: CLIP's control with patches that look for words in place of one embedding for each side.

mcd-jax train --config=scenes_filip --workdir=runs/scenes_filip [--config=scenes_filip:twitter]

After the colon: a training vendor that is left out, for choosing.
"""
from mcd_jax import config as config_lib
from mcd_jax.configs import scenes


def get_config(left_out=""):
    config = scenes.base(dict(image=scenes.ORIGINAL), left_out)
    config.objective = config_lib.objective("filip")
    return config
