"""MCD on generated scenes, where a crop keeps or loses what the caption names.

mcd-jax train --config=scenes_mcd --workdir=runs/scenes_mcd [--config=scenes_mcd:twitter]

After the colon: a training vendor that is left out, for choosing.
"""
from mcd_jax import config as config_lib
from mcd_jax.configs import scenes


def get_config(left_out=""):
    config = scenes.base(dict(image=scenes.ORIGINAL, augmented=scenes.AUGMENTED), left_out)
    config.objective = config_lib.objective("mcd", ema_m=0.997)
    return config
