"""MCD, ViT-B/32, on YFCC15M: batch 4096, 32 epochs, the settings of the method's line of work (a reconstruction, see the README).

python -m mcd_jax.train --config=configs/mcd_b32_yfcc15m.py:source=/data/yfcc15m/*.array_record --workdir=gs://my-bucket/runs/mcd_b32_yfcc15m

Not trained here: compiled ahead of time only (README, table of flagship configs).
"""
from configs import pretrain
from mcd_jax import config as config_lib


def get_config(arguments=""):
    args = pretrain.arguments(arguments, batch_size=4096, source="data/yfcc15m/*.array_record", fsdp=1, remat="full")
    views = dict(image=pretrain.ORIGINAL, augmented=pretrain.AUGMENTED)
    config = pretrain.base("B/32", "clip-B", 512, views, steps="32 epochs", **args)
    config.objective = config_lib.objective("mcd")
    return config
