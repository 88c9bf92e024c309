"""CLIP with the smallest towers that still look like those of a pod: for compiles of seconds."""
from mcd_jax import config as config_lib
from mcd_jax.configs import pretrain


def get_config():
    views = dict(image=pretrain.ORIGINAL)
    config = pretrain.base("B/16", "clip-B", 128, views, steps="10 epochs", batch_size=4096, source="not/here", fsdp=1)
    small = dict(width=128, depth=2, num_heads=2, mlp_dim=256)
    config.model.image = dict(config.model.image.to_dict(), variant="", patch_size=16, **small)
    config.model.text = dict(config.model.text.to_dict(), variant="", **small)
    config.objective = config_lib.objective("clip")
    return config
