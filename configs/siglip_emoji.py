"""SigLIP on the embedded data set: the control at equal data, steps and model.

python -m mcd_jax.train --config=configs/siglip_emoji.py --workdir=runs/siglip_emoji
"""
from configs import emoji
from mcd_jax import config as config_lib


def get_config():
    config = emoji.base(emoji.STEPS, dict(image=emoji.ORIGINAL))
    config.objective = config_lib.objective("siglip")
    config.model.logit_scale = 2.3026   # log(10), the paper's start
    config.model.logit_bias = -10.0
    return config
