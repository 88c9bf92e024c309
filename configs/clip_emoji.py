"""CLIP on the embedded data set: the control at equal data, steps and model.

python -m mcd_jax.train --config=configs/clip_emoji.py --workdir=runs/clip_emoji
"""
from configs import emoji
from mcd_jax import config as config_lib


def get_config():
    config = emoji.base(emoji.STEPS, dict(image=emoji.ORIGINAL))
    config.objective = config_lib.objective("clip")
    return config
