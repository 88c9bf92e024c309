"""Four methods on the same towers, data, steps and learning rate: what fusion and fine-grained alignment give, and what they cost.

mcd-jax train --config=grounding_emoji:method=clip --workdir=runs/grounding/start
mcd-jax train --config=grounding_emoji:method=albef,run=runs/grounding/start --workdir=runs/grounding/albef

Arguments after the colon, all optional
  method  albef, clip, loupe or mcd
  run     a run of method=clip whose towers it goes on from, as ALBEF's paper starts from trained towers
  steps   600, of 128 pairs: 16 epochs

Then `mcd-jax evaluate --workdir=... --evals=mosaics_emoji:use=...` with use=dense for CLIP and MCD,
use=heat for ALBEF and use=auto for LOUPE.
"""
from mcd_jax.configs.albef import albef_emoji
from mcd_jax.configs.loupe import loupe_emoji

from mcd_jax.configs import clip_emoji, mcd_emoji, pretrain

METHODS = dict(albef=lambda: albef_emoji.get_config("resnet"), clip=clip_emoji.get_config, loupe=loupe_emoji.get_config,
               mcd=mcd_emoji.get_config)
FRESH = dict(albef=("fusion/.*", "mlm/.*", "itm/.*", "temperature", "logit_scale"), clip=(), mcd=(),
             loupe=("regions/.*", "estimator/.*"))   # what a run of CLIP hasn't, or alone has


def get_config(arguments=""):
    args = pretrain.arguments(arguments, method="albef", run="", steps=600)
    method = args["method"]
    if method not in METHODS:
        raise ValueError(f"grounding_emoji.py:{arguments}: method is one of {', '.join(METHODS)}")
    config = METHODS[method]()
    config.steps, config.batch_size = f"{args['steps']} steps", 128
    config.optimizer.lr = 1e-3   # the best of 1e-3, 2e-3 and 4e-3 for CLIP
    config.model = METHODS["albef"]().model
    if args["run"]:
        config.init_from, config.init_fresh = args["run"], FRESH[method]
    for kind in ("gap", "misalignment", "zeroshot"):
        del config.evals[kind]
    if method == "albef":   # one fusion layer: with two a step costs twice as much
        config.objective.update(dict(queue=4 * config.batch_size, fusion_layers=1))
    return config
