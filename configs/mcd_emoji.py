"""MCD on the embedded data set.

python -m mcd_jax.train --config=configs/mcd_emoji.py --workdir=runs/mcd_emoji
"""

from configs import emoji
from mcd_jax import config as config_lib

AUGMENTED = f"decode|crop({emoji.SIZE}, 0.08)|jitter(0.4, 0.4, 0.4, 0.1, 0.8)|gray(0.2)|blur(0.5)|flip(0.5)"


def get_config():
    config = emoji.base("30 epochs", dict(image=emoji.MILD, augmented=AUGMENTED))
    config.objective = config_lib.objective("mcd", ema_m=0.99)
    return config
