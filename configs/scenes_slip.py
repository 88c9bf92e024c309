"""SLIP on generated scenes: two crops that no caption is compared with.

mcd-jax train --config=scenes_slip --workdir=runs/scenes_slip [--config=scenes_slip:twitter]

After the colon: a training vendor that is left out, for choosing.
"""
from mcd_jax import config as config_lib
from mcd_jax.configs import scenes


def get_config(left_out=""):
    config = scenes.base(dict(image=scenes.ORIGINAL, view1=scenes.AUGMENTED, view2=scenes.AUGMENTED), left_out)
    config.objective = config_lib.objective("slip", hidden=512, out_dim=128)
    return config
