"""DeFILIP on generated scenes: DeCLIP's recipe there, and FILIP's term beside it.

mcd-jax train --config=scenes_defilip --workdir=runs/scenes_defilip [--config=scenes_defilip:twitter]

After the colon: a training vendor that is left out, for choosing.
"""
from mcd_jax.configs import declip_emoji, scenes_declip


def get_config(left_out=""):
    config = scenes_declip.get_config(left_out)
    declip_emoji.add_filip(config)
    return config
