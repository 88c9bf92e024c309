"""MCD and GCL composed on the embedded data set: one pair of towers, each view encoded once, both losses.

python -m mcd_jax.train --config=configs/mcd_gcl_emoji.py --workdir=runs/mcd_gcl_emoji

Every weight and option is in its method's section: --config.objective.gcl.weights.gcl=0.5 --config.objective.mcd.ema_m=0.99. CLIP's
loss on the original view is MCD's and is left on.
"""
from configs import emoji, mcd_emoji
from mcd_jax import config as config_lib


def get_config():
    config = emoji.base(emoji.STEPS, dict(image=emoji.ORIGINAL, augmented=mcd_emoji.AUGMENTED))
    config.objective = config_lib.objective(("mcd", "gcl"), mcd=dict(weights=dict(clip_augmented=1.0), ema_m=0.99, keep=0.75))
    return config
