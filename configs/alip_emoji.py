"""ALIP on the embedded data set; a concept's tags stand in for the caption that a model would generate.

mcd-jax train --config=alip_emoji --workdir=runs/alip_emoji
"""
from mcd_jax import config as config_lib
from mcd_jax.configs import emoji


def get_config():
    config = emoji.base(emoji.STEPS, dict(image=emoji.ORIGINAL, caption=emoji.TEXT.format(tokenizer="emoji")))
    config.data.views.text = emoji.LABEL.format(tokenizer="emoji")
    config.objective = config_lib.objective("alip")
    return config
