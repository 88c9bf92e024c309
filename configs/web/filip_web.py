"""FILIP as DeCLIP's repository releases it, but for its masked words: AdamW, MoCo-v2's crop, 16 tokens that others see.

mcd-jax train --config=filip_web:data=yfcc15m,source=/data/yfcc15m/*.array_record --workdir=gs://my-bucket/runs/filip

Arguments after the colon: `pretrain.published`. Not trained here: compiled ahead of time only (docs/sharding.md).

The paper's own recipe (batch 8192, LAMB, AutoAugment, back-translated captions) isn't this one: its code isn't released.
"""
from mcd_jax import config as config_lib
from mcd_jax.configs import pretrain


def get_config(arguments=""):
    config = pretrain.published(arguments, dict(image=pretrain.MOCO))
    config.objective = config_lib.objective("filip", pads="counted", select=16)
    config.optimizer.lr, config.optimizer.weight_decay = 5e-4, 0.5
    return config
