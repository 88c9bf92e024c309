"""CLIP, ViT-g/14, on YFCC15M: the largest tower of the size table, for planning a v5p pod.

mcd-jax train --config=clip_g14_yfcc15m:batch_size=65536,source=/data/yfcc15m/*.array_record --workdir=gs://my-bucket/runs/clip_g14

Not trained here: compiled ahead of time only (README, table of flagship configs).
"""
from mcd_jax import config as config_lib
from mcd_jax.configs import pretrain


def get_config(arguments=""):
    args = pretrain.arguments(arguments, batch_size=65536, source="data/yfcc15m/*.array_record", fsdp=16, remat="full")
    config = pretrain.base("g/14", "clip-g", 1024, dict(image=pretrain.ORIGINAL), steps="32 epochs", **args)
    config.objective = config_lib.objective("clip")
    return config
