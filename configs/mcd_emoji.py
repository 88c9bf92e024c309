"""MCD on the embedded data set.

mcd-jax train --config=mcd_emoji --workdir=runs/mcd_emoji

One seed: text to image on the held-out vendor R@1 15.9, R@10 37.5 (without flags 8.8, 29.9); 490 s of training on 2 cores.
The augmented view is also a positive here (weights.clip_augmented), unlike in the method's default.
"""
from mcd_jax import config as config_lib
from mcd_jax.configs import emoji
from mcd_jax.sweep import grid

# smaller than the original view: the crop enlarges what it shows, and the term costs half as much
AUGMENTED = "decode|crop(32, 0.3)|jitter(0.4, 0.4, 0.4, 0.2, 0.8)|gray(0.2)|flip(0.5)"


def get_config():
    config = emoji.base(emoji.STEPS, dict(image=emoji.ORIGINAL, augmented=AUGMENTED))
    config.objective = config_lib.objective("mcd", weights=dict(clip_augmented=1.0), ema_m=0.99, keep_share=0.75)
    return config


def sweep(add):
    """What the misalignment term is worth, over three seeds: `mcd-jax sweep --config=... --workdir=...`, 9 runs."""
    for run in grid({"objective.weights.misalignment": [0.0, 1.0, 5.0], "seed": range(3)}):
        add(run)
