"""DeCLIP on the embedded data set.

mcd-jax train --config=declip_emoji --workdir=runs/declip_emoji

Both image views are strong (MoCo v2's), as in the released code. The text tower of this data set is a bag of words, which shows a
masked word nothing but its place: `mlm` learns how frequent words are there (`configs/scenes_declip.py` has a layer). Captions come
again every 18 steps, so the bank holds four steps of both texts, and not a text's own earlier embeddings.
"""
from mcd_jax import config as config_lib
from mcd_jax.configs import emoji
from mcd_jax.data import tokenizers

STRONG = f"decode|crop({emoji.SIZE}, 0.2)|jitter(0.4, 0.4, 0.4, 0.1, 0.8)|gray(0.2)|blur(0.5)|flip(0.5)"
STREAM = "text_stream('declip')"   # both texts are one caption


def get_config():
    config = emoji.base(emoji.STEPS, dict(image=STRONG, augmented=STRONG))
    declip(config, *config.data.views.text.split("|"))
    return config


def declip(config, caption, tokenize):
    """Sets the objective, what it needs of the text tower, and both texts, by the pipes of a caption and of its tokens."""
    config.data.views.text = f"{caption}|{STREAM}|{tokenize}"
    config.data.views.augmented_text = f"{caption}|{STREAM}|eda(1, 0.1)|{tokenize}"
    config.model.text.spare_ids = 1   # the tokenizer has no mask
    config.objective = config_lib.objective("declip", mask_id=tokenizers.make("emoji").vocab_size, bank=8 * config.batch_size,
                                            hidden=512, bottleneck=128)
    config.sharding = (("(.*/)?bank/rows", (("slice", "data", "fsdp", "expert"),)), *config.sharding)


def add_filip(config):
    """Makes a config of `declip` one of DeFILIP."""
    own = config.objective
    shared = {key: own[key] for key in ("mask_id", "bank", "hidden", "bottleneck")}
    config.objective = config_lib.objective("defilip", pads="masked", select=0, **shared)
