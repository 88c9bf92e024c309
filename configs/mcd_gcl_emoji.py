"""MCD and GCL composed on the embedded data set: one pair of towers, each view encoded once, both losses.

mcd-jax train --config=mcd_gcl_emoji --workdir=runs/mcd_gcl_emoji

Every weight and option is in its method's section: --config.objective.gcl.weights.gcl=0.5 --config.objective.mcd.ema_m=0.99. CLIP's
loss on the original view is MCD's and is left on.
"""
from mcd_jax import config as config_lib
from mcd_jax.configs import emoji, mcd_emoji


def get_config():
    config = emoji.base(emoji.STEPS, dict(image=emoji.ORIGINAL, augmented=mcd_emoji.AUGMENTED))
    config.objective = config_lib.objective(("mcd", "gcl"), mcd=dict(weights=dict(clip_augmented=1.0), ema_m=0.99, keep_share=0.75))
    return config
