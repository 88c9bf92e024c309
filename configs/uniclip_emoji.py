"""UniCLIP-style pretraining on the embedded data set: a reconstruction, see `mcd_jax/methods/uniclip.py`.

mcd-jax train --config=uniclip_emoji --workdir=runs/uniclip_emoji
"""
from mcd_jax import config as config_lib
from mcd_jax.configs import emoji


def get_config():
    config = emoji.base(emoji.STEPS, dict(image=emoji.ORIGINAL, augmented=emoji.AUGMENTED))
    config.objective = config_lib.objective("uniclip")
    return config
