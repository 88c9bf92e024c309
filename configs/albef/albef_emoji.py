"""ALBEF on the embedded data set: an image tower, a text tower and fusion layers on top, at the data and steps of the others.

mcd-jax train --config=albef_emoji --workdir=runs/albef_emoji

The towers are the small ViT of `configs/clip_emoji.py:vit` and a BERT of two layers; two fusion layers continue it. With `:resnet`
the image tower is that of the other configs on this data set. The tokenizer has neither a start token nor [MASK]: texts are pooled
by their mean, and one id beyond the vocabulary stands for [MASK].
"""
from mcd_jax import config as config_lib
from mcd_jax.configs import emoji
from mcd_jax.data import tokenizers

WIDTH = 128


def get_config(image="vit"):
    config = emoji.base(emoji.STEPS, dict(image=emoji.ORIGINAL))
    if image not in ("vit", "resnet"):
        raise ValueError(f"--config=albef_emoji:{image}: the image tower is 'vit' or 'resnet'")
    # a queue of four steps: captions come again every 18 steps, and in a longer queue a text would meet itself as a negative
    config.objective = config_lib.objective(
        "albef", fusion_layers=2, queue=4 * config.batch_size, ema_m=0.95, mask_rate=0.3,
        mask_id=tokenizers.make("emoji").vocab_size,
        # the paper's BERT knows its words at the start; one from scratch learns nothing but words at their full weight, and the
        # matching head goes on saying no to everything
        weights=dict(mlm=0.1, mlm_distill=0.04))
    if image == "vit":
        config.model.image = dict(name="vit", width=WIDTH, depth=4, mlp_dim=4 * WIDTH, num_heads=4, patch_size=8, pool="class",
                                  patch_bias=False, ln_pre=True)
    config.model.text = dict(name="bert", width=WIDTH, depth=2, mlp_dim=4 * WIDTH, num_heads=4, pool="mean", spare_ids=1)
    config.model.embed_dim = WIDTH
    config.optimizer.lr = 1e-3
    config.optimizer.bounds = (("temperature", (0.001, 0.5)),)
    # the published rate of 1e-4: at 1e-3 it falls to a quarter in a hundred steps, and the images end in a narrow cone
    config.optimizer.lr_mults = (("temperature", 0.1), (".*", 1.0))
    second = {name: dict(instance.to_dict(), k=16) for name, instance in config.evals.retrieval.items() if name != "validation"}
    config.evals.rerank = {name: {k: v for k, v in settings.items() if k != "every"} for name, settings in second.items()}
    config.sharding = (("queue/.*", (None, ("slice", "data", "fsdp", "expert"))), *config.sharding)
    return config
