"""DeCLIP as released: two strong views, captions changed by `eda` without synonyms, masked words, a bank of 65,536 texts.

mcd-jax train --config=declip_web:data=yfcc15m,source=/data/yfcc15m/*.array_record --workdir=gs://my-bucket/runs/declip

Arguments after the colon: `pretrain.published`. Not trained here: compiled ahead of time only (docs/sharding.md).

The patch embedding is trained, which is frozen there.
"""
from mcd_jax import config as config_lib
from mcd_jax.configs import pretrain
from mcd_jax.data import tokenizers

STREAM = "text_stream('declip')"   # both texts are one caption


def get_config(arguments=""):
    return recipe(arguments, "declip")


def recipe(arguments, method):
    """The config of DeCLIP, or of a method that has its options."""
    caption, tokenize = pretrain.TEXT.split("|")
    config = pretrain.published(arguments, dict(image=pretrain.MOCO, augmented=pretrain.MOCO,
                                                augmented_text=f"{caption}|{STREAM}|eda(1, 0.1)|{tokenize}"))
    config.data.views.text = f"{caption}|{STREAM}|{tokenize}"
    words = tokenizers.make("clip")
    config.model.text.spare_ids = 1   # the tokenizer has no mask
    config.objective = config_lib.objective(method, mask_id=words.vocab_size, start_id=words.vocab_size - 2)
    config.sharding = (("(.*/)?bank/rows", (("slice", "data", "fsdp", "expert"),)), *config.sharding)
    config.optimizer.weight_decay = 0.1
    config.optimizer.bounds = (("logit_scale", (3.0, 4.605)),)
    config.optimizer.schedule = ((".*", dict(name="cosine", warmup="2500 steps", start=0.1)),)
    return config
