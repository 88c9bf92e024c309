"""MCD on the embedded data set.

python -m mcd_jax.train --config=configs/mcd_emoji.py --workdir=runs/mcd_emoji
"""
from configs import emoji
from mcd_jax import config as config_lib

# the augmented view is smaller: the term needs its distance to the caption, not its detail, and it costs less than half as much
AUGMENTED = "decode|crop(32, 0.2)|jitter(0.4, 0.4, 0.4, 0.1, 0.8)|gray(0.2)|blur(0.3)|flip(0.5)"


def get_config():
    config = emoji.base(emoji.STEPS, dict(image=emoji.ORIGINAL, augmented=AUGMENTED))
    config.objective = config_lib.objective("mcd", ema_m=0.99, keep=0.75)
    return config
