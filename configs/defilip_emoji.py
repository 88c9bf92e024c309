"""DeFILIP on the embedded data set: DeCLIP's recipe there, and FILIP's term beside it.

mcd-jax train --config=defilip_emoji --workdir=runs/defilip_emoji
"""
from mcd_jax.configs import declip_emoji


def get_config():
    config = declip_emoji.get_config()
    declip_emoji.add_filip(config)
    return config
