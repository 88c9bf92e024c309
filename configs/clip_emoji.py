"""CLIP on the embedded data set: the control at equal data, steps and model.

mcd-jax train --config=clip_emoji --workdir=runs/clip_emoji

With `:vit` the towers are small ones of CLIP's own kind (a ViT, a causal text transformer), images are resized and texts cleaned as
open_clip does, so that the run can be exported to it (`mcd-jax convert export`):

mcd-jax train --config=clip_emoji:vit --workdir=runs/clip_emoji_vit
"""
from mcd_jax import config as config_lib
from mcd_jax.configs import emoji

TEXT = f"caption('random')|tokenize({emoji.CONTEXT}, 'emoji', 'whitespace')"
PLAIN = dict(image=f"decode|resize({emoji.SIZE}, 'bicubic')", text=TEXT.replace("random", "first"))


def get_config(towers="resnet"):
    config = emoji.base(emoji.STEPS, dict(image=emoji.ORIGINAL))
    config.objective = config_lib.objective("clip")
    if towers == "vit":
        vit(config)
    elif towers != "resnet":
        raise ValueError(f"--config=clip_emoji:{towers}: the towers are 'resnet' or 'vit'")
    return config


def vit(config):
    """Puts CLIP's own kinds of towers, pixels and texts into a config."""
    config.data.views.text = TEXT
    config.model.image = dict(name="vit", width=128, depth=4, mlp_dim=512, num_heads=4, patch_size=8, pool="class",
                              patch_bias=False, ln_pre=True)
    config.model.text = dict(name="text", width=128, depth=2, mlp_dim=512, num_heads=4, causal=True, pool="eot")
    config.model.embed_dim = 128
    config.optimizer.lr = 1e-3
    for instance in (*config.evals.retrieval.values(), *config.evals.gap.values()):
        instance.views = PLAIN
    del config.evals["zeroshot"], config.evals["misalignment"]
