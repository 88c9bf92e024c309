"""ALIP as released (Yang et al. 2023): a generated caption beside the raw text, AdamW, weight decay on everything, one cycle.

mcd-jax train --config=alip_web:data=yfcc15m,source=/data/yfcc15m/*.array_record --workdir=gs://my-bucket/runs/alip

Arguments after the colon: `pretrain.published`. Not trained here: compiled ahead of time only (docs/sharding.md).

The examples have the generated caption in the column "caption". The learning rate's cycle is kept, that of beta1 isn't.
"""
from mcd_jax import config as config_lib
from mcd_jax.configs import pretrain


def get_config(arguments=""):
    caption = f"caption('first', column='caption')|tokenize({pretrain.CONTEXT}, 'clip')"
    config = pretrain.published(arguments, dict(image=f"decode|crop({pretrain.SIZE}, 0.9)", caption=caption))
    config.objective = config_lib.objective("alip")
    config.optimizer.decay_mask = ((".*", 1.0),)
    config.optimizer.schedule = ((".*", dict(name="cosine", warmup="10 percent", start=0.04, final=4e-6)),)
    return config
