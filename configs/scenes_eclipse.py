"""ECLIPSE-style pretraining on generated scenes: a reconstruction, see `mcd_jax/methods/eclipse.py`.

mcd-jax train --config=scenes_eclipse --workdir=runs/scenes_eclipse [--config=scenes_eclipse:twitter]

After the colon: a training vendor that is left out, for choosing.
"""
from mcd_jax import config as config_lib
from mcd_jax.configs import scenes


def get_config(left_out=""):
    config = scenes.base(dict(image=scenes.ORIGINAL), left_out)
    config.objective = config_lib.objective("eclipse", ema_m=0.997)
    return config
