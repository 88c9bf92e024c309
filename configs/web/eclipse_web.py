"""ECLIPSE-style pretraining on web pairs: a reconstruction, see `mcd_jax/methods/eclipse.py`.

mcd-jax train --config=eclipse_web:data=yfcc15m,source=/data/yfcc15m/*.array_record --workdir=gs://my-bucket/runs/eclipse

Arguments after the colon: `pretrain.published`. Not trained here: compiled ahead of time only (docs/sharding.md).
"""
from mcd_jax import config as config_lib
from mcd_jax.configs import pretrain


def get_config(arguments=""):
    config = pretrain.published(arguments, dict(image=pretrain.ORIGINAL))
    config.objective = config_lib.objective("eclipse")
    return config
