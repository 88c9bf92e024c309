"""ECLIPSE-style pretraining on the embedded data set: a reconstruction, see `mcd_jax/methods/eclipse.py`.

mcd-jax train --config=eclipse_emoji --workdir=runs/eclipse_emoji
"""
from mcd_jax import config as config_lib
from mcd_jax.configs import emoji


def get_config():
    config = emoji.base(emoji.STEPS, dict(image=emoji.ORIGINAL))
    config.objective = config_lib.objective("eclipse", ema_m=0.99)
    return config
