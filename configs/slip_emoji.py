"""SLIP on the embedded data set: the control that spends its second view on self-supervision.

mcd-jax train --config=slip_emoji --workdir=runs/slip_emoji
"""
from mcd_jax import config as config_lib
from mcd_jax.configs import emoji


def get_config():
    config = emoji.base(emoji.STEPS, dict(image=emoji.ORIGINAL, view1=emoji.AUGMENTED, view2=emoji.AUGMENTED))
    config.objective = config_lib.objective("slip", hidden=512, out_dim=128)
    return config
