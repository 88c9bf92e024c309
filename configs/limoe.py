"""LIMoE at the paper's sizes (Mustafa et al. 2022, arXiv 2206.02770) on web pairs in array_record files.

mcd-jax train --config=limoe:variant=B/16,source=/data/pairs/*.array_record --workdir=gs://my-bucket/runs/limoe_b16
mcd-jax compile --config=limoe:variant=H/14,expert=32 --topology=v5p:8x8x8

Not trained here: compiled ahead of time only. The paper's data (3.6 billion pairs) aren't public, no code or weights are, and its
settings are known in part: the confidence in each is in brackets. [unconfirmed]: taken as given, no source seen.

Arguments after the colon, all optional:
  variant     S/32, S/16, B/32, B/16, L/16, H/14
  setting     full: 781,250 steps of 16,384 pairs; ablation: 100,000 of 8,192, in the paper for B/16 [unconfirmed]
  kind        limoe; dense: the same transformer without experts and CLIP's loss; vmoe: without the entropy terms
  optimizer   adafactor [high]; adamw
  schedule    cosine or rsqrt [low]
  vocabulary  path of a sentencepiece model of 32,000 pieces (*.model) whose id 1 ends a text [family's: high]; "clip": CLIP's own
  expert      devices that share the experts, a divisor of 32; fsdp: neighbouring devices that share what else there is
  batch_size  0: as the setting says
"""
import math

from mcd_jax import config as config_lib
from mcd_jax.configs import pretrain

STEPS = {"full": ("781250 steps", 16384), "ablation": ("100000 steps", 8192)}
SIZES = {   # V-MoE's; its S is not the S/16 of other papers [medium]
    "S": dict(width=512, depth=8, mlp_dim=2048, num_heads=8), "B": dict(width=768, depth=12, mlp_dim=3072, num_heads=12),
    "L": dict(width=1024, depth=24, mlp_dim=4096, num_heads=16), "H": dict(width=1280, depth=32, mlp_dim=5120, num_heads=16)}
VARIANTS = ("S/32", "S/16", "B/32", "B/16", "L/16", "H/14")
EVERY = 2                                                        # mixtures are blocks 1, 3, 5, ... from 0 [high]; but
LAYERS = {"H": (2, 6, 10, 14, 17, 20, 23, 25, 27, 29, 30, 31)}   # 12 of them [their number: high, it gives 5.6B; which: medium]
EXPERTS = dict(
    num=32,             # [high]
    k=1,                # [high]
    capacity=1.05,      # V-MoE's in pretraining; LIMoE's [low]
    group_size=32,      # pairs; V-MoE takes 8 images, which would leave 128 tokens of text to 32 experts [inference]
    priority=True,      # batch priority routing in training too [high]
    noise=1.0,          # V-MoE's
)
SIZE, CONTEXT = 224, 16   # px [high: H/14 had a further run at 288]; tokens [high]
LEARNING_RATE = 1e-3      # [low to medium]
DECAY = 1e-4              # a step, at the peak of the learning rate [low to medium]
WARMUP = "10000 steps"    # [low to medium]
OPTIMIZERS = {
    # big_vision's Adafactor; factored from 33: biases (32, width) of experts must not be, over experts
    "adafactor": dict(name="adafactor", decay_rate=0.8, max_decay=0.999, min_dim_size_to_factor=33, clipping_threshold=0.0,
                      momentum=0.9),
    "adamw": dict(name="adamw", b1=0.9, b2=0.98, eps=1e-8),
}


def get_config(arguments=""):
    args = pretrain.arguments(arguments, variant="B/16", setting="full", kind="limoe", optimizer="adafactor", schedule="cosine",
                              vocabulary="clip", source="data/pairs/*.array_record", expert=32, fsdp=1, remat="full", batch_size=0)
    for name, known in dict(variant=VARIANTS, setting=STEPS, kind=("limoe", "dense", "vmoe"), optimizer=OPTIMIZERS,
                            schedule=("cosine", "rsqrt")).items():
        if args[name] not in known:
            raise ValueError(f"limoe.py:{arguments}: {name} is one of {', '.join(known)}")
    size, _, patch = args["variant"].partition("/")
    config = config_lib.default()
    config.steps, batch_size = STEPS[args["setting"]]
    config.batch_size = args["batch_size"] or batch_size
    config.data.source = dict(name="array_record", path=args["source"])
    words = "'clip'" if args["vocabulary"] == "clip" else f"'{args['vocabulary']}', 'lower', 1"
    config.data.views = dict(image=f"decode|crop({SIZE}, 0.5)",   # [low]
                             text=f"caption('random')|tokenize({CONTEXT}, {words})")
    config.data.workers = 16
    config.model = dict(
        shared=dict(**SIZES[size], patch_size=int(patch), remat=args["remat"]),   # padding is a token like others [medium]
        embed_dim=SIZES[size]["width"],   # projections without a bias [low]
        logit_scale=math.log(10), dtype="bfloat16")
    if args["kind"] != "dense":
        config.model.shared.experts = dict(EXPERTS, **(dict(layers=LAYERS[size]) if size in LAYERS else dict(every=EVERY)))
    weights = dict.fromkeys(("local_text", "global_text", "global_image"), 0.0) if args["kind"] == "vmoe" else {}
    limoe = args["kind"] != "dense"
    config.objective = config_lib.objective("limoe", weights=weights) if limoe else config_lib.objective("clip")
    config.optimizer.optimizers = ((".*", OPTIMIZERS[args["optimizer"]]),)
    config.optimizer.lr, config.optimizer.weight_decay = LEARNING_RATE, DECAY / LEARNING_RATE
    config.optimizer.schedule = ((".*", dict(name=args["schedule"], warmup=WARMUP)),)
    config.mesh = dict(slice=1, data=-1, fsdp=args["fsdp"], tensor=1, expert=args["expert"] if limoe else 1)
    config.checkpoint = dict(every="2 percent", keep=2, best="")
    return config
