"""DeCLIP on generated scenes, whose captions have words to mask.

mcd-jax train --config=scenes_declip --workdir=runs/scenes_declip [--config=scenes_declip:twitter]

After the colon: a training vendor that is left out, for choosing.
"""
from mcd_jax.configs import declip_emoji, scenes

STRONG = f"decode|crop({scenes.SIZE}, 0.2)|jitter(0.4, 0.4, 0.4, 0.1, 0.8)|gray(0.2)|blur(0.5)|flip(0.5)"


def get_config(left_out=""):
    config = scenes.base(dict(image=STRONG, augmented=STRONG), left_out)
    declip_emoji.declip(config, *scenes.TEXT.split("|"))
    return config
