"""CLIP on generated scenes: the control at equal data, steps and model.

mcd-jax train --config=scenes_clip --workdir=runs/scenes_clip [--config=scenes_clip:twitter]

After the colon: a training vendor that is left out, for choosing.
"""
from mcd_jax import config as config_lib
from mcd_jax.configs import scenes


def get_config(left_out=""):
    config = scenes.base(dict(image=scenes.ORIGINAL), left_out)
    config.objective = config_lib.objective("clip")
    return config
