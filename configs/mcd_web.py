"""MCD on web pairs at the published sizes: batch 4096, the settings of its line of work (a reconstruction, see methods/mcd).

mcd-jax train --config=mcd_web:variant=b16_cc3m,source=/data/cc3m/*.array_record --workdir=gs://my-bucket/runs/mcd_b16_cc3m

Arguments after the colon, all optional
  variant  b32_yfcc15m, b16_yfcc15m, l14_yfcc15m (32 epochs) or b16_cc3m (40): the image tower's size and the data
  batch_size, source, fsdp, remat   as in pretrain.py

Not trained here: compiled ahead of time only (docs/sharding.md).
"""
from mcd_jax import config as config_lib
from mcd_jax.configs import pretrain

VARIANTS = {   # image tower, text tower, width of the embedding, epochs, data
    "b32_yfcc15m": ("B/32", "clip-B", 512, 32, "yfcc15m"), "b16_yfcc15m": ("B/16", "clip-B", 512, 32, "yfcc15m"),
    "l14_yfcc15m": ("L/14", "clip-L", 768, 32, "yfcc15m"), "b16_cc3m": ("B/16", "clip-B", 512, 40, "cc3m")}


def get_config(arguments=""):
    args = pretrain.arguments(arguments, variant="b16_yfcc15m", batch_size=4096, source="", fsdp=1, remat="full")
    variant = args.pop("variant")
    config_lib.refuse_unknown(variant, VARIANTS, "variant of this config")
    image, text, width, epochs, data = VARIANTS[variant]
    args["source"] = args["source"] or f"data/{data}/*.array_record"
    views = dict(image=pretrain.ORIGINAL, augmented=pretrain.AUGMENTED)
    config = pretrain.base(image, text, width, views, steps=f"{epochs} epochs", **args)
    config.objective = config_lib.objective("mcd")
    return config
