"""LIMoE on the embedded data set: one transformer for drawings and captions, with mixtures of experts; and its controls.

mcd-jax train --config=limoe_emoji --workdir=runs/limoe_emoji

Arguments after the colon, all optional, as in --config=limoe_emoji:entropy=off,capacity=0.5
  kind      limoe; dense: the same transformer without experts and CLIP's loss, equal active parameters; collapse: LIMoE whose
            global entropy of texts is rewarded for falling, to see that the metrics show it (routing/text/experts_used goes to 1)
  entropy   on; off: without the local and global terms, only importance, load and z (V-MoE's and ST-MoE's)
  priority  on; off: tokens come to the experts in their order, images first
  capacity  places of an expert as a multiple of its fair share (1.05)
  experts   8; of which each token uses one, in blocks 1 and 3 of 4
  mcd       off; on: MCD's terms on the same tower
  steps     400, of 128 pairs: 11 epochs, three minutes of one core

16 patches to 12 tokens of text, padding among them, which is a token like others (see models/shared.py). Thresholds are the paper's
shares of all experts [low to medium].
"""
import math

from mcd_jax import config as config_lib
from mcd_jax.configs import emoji, mcd_emoji, pretrain

KINDS = ("limoe", "dense", "collapse")
SHARED = dict(width=96, depth=4, mlp_dim=384, num_heads=3, patch_size=12)
ENTROPIES = ("local_text", "global_text", "global_image")


def get_config(arguments=""):
    args = pretrain.arguments(arguments, kind="limoe", entropy="on", priority="on", capacity=1.05, experts=8, mcd="off", steps=400)
    if args["kind"] not in KINDS or any(args[name] not in ("on", "off") for name in ("entropy", "priority", "mcd")):
        raise ValueError(f"limoe_emoji.py:{arguments}: kind is one of {', '.join(KINDS)}; entropy, priority and mcd are on or off")
    with_mcd, num = args["mcd"] == "on", args["experts"]
    views = dict(image=emoji.ORIGINAL)
    if with_mcd:   # a transformer takes one size of images; it sees three quarters of the augmented one's patches
        views["augmented"] = mcd_emoji.AUGMENTED.replace("crop(32", f"crop({emoji.SIZE}")
    config = emoji.base(f"{args['steps']} steps", views)
    config.batch_size, config.optimizer.lr = 128, 1e-3
    config.model = dict(shared=dict(SHARED), embed_dim=128, dtype="float32", logit_scale=math.log(10))   # the paper's start [high]
    if args["kind"] != "dense":
        config.model.shared.experts = dict(num=num, group_size=32, capacity=args["capacity"], priority=args["priority"] == "on")
    mcd = dict(weights=dict(clip_augmented=1.0), ema_m=0.99, keep_share=0.75)
    if args["kind"] == "dense":
        config.objective = config_lib.objective("mcd", **mcd) if with_mcd else config_lib.objective("clip")
    elif with_mcd:   # MCD's loss has CLIP's already
        limoe = balance(args, num)
        limoe["weights"]["clip"] = 0.0
        config.objective = config_lib.objective(("mcd", "limoe"), mcd=mcd, limoe=limoe)
    else:
        config.objective = config_lib.objective("limoe", **balance(args, num))
    return config


def balance(args, num):
    """Options and weights of the objective for so many experts."""
    weights = dict.fromkeys(ENTROPIES, 0.0) if args["entropy"] == "off" else {}
    least = dict(least_image=max(1.0, 20 / 32 * num), least_text=max(1.0, 9 / 32 * num), every_expert=True)
    if args["kind"] == "collapse":
        weights = dict(weights, global_text=-1.0, importance=0.0, load=0.0)
        least["least_text"] = float(num)
    return dict(weights=weights, **least)
