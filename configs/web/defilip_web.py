"""DeFILIP as released: DeCLIP's recipe, and FILIP's term of 16 tokens beside it.

mcd-jax train --config=defilip_web:data=yfcc15m,source=/data/yfcc15m/*.array_record --workdir=gs://my-bucket/runs/defilip

Arguments after the colon: `pretrain.published`. Not trained here: compiled ahead of time only (docs/sharding.md).
"""
from mcd_jax.configs.web import declip_web


def get_config(arguments=""):
    config = declip_web.recipe(arguments, "defilip")
    config.optimizer.bounds = (("(filip/)?logit_scale", (3.0, 4.605)),)   # of tokens too, there
    return config
