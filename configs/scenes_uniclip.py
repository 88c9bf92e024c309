"""UniCLIP-style pretraining on generated scenes: a reconstruction, see `mcd_jax/methods/uniclip.py`.

mcd-jax train --config=scenes_uniclip --workdir=runs/scenes_uniclip [--config=scenes_uniclip:twitter]

After the colon: a training vendor that is left out, for choosing.
"""
from mcd_jax import config as config_lib
from mcd_jax.configs import scenes


def get_config(left_out=""):
    config = scenes.base(dict(image=scenes.ORIGINAL, augmented=scenes.AUGMENTED), left_out)
    config.objective = config_lib.objective("uniclip")
    return config
