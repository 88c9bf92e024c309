"""ALBEF on NLVR2 at the paper's size: text assignment on image-text pairs, then true or false of two images.

mcd-jax train --config=nlvr2_b16:stage=assign,init=runs/albef_b16,source=/data/pairs/*.array_record,\
tokenizer=/data/bert/tokenizer.json --workdir=runs/nlvr2_assign
mcd-jax train --config=nlvr2_b16:init=runs/nlvr2_assign_384,path=/data/nlvr2,\
tokenizer=/data/bert/tokenizer.json --workdir=runs/nlvr2

Rates and sizes are those of the published code (salesforce/ALBEF at b9727e4, configs/NLVR_pretrain.yaml and NLVR.yaml): assignment
at 256 px, batch 512, one epoch, a rate of 2e-5; then 384 px, batch 128, 10 epochs from 2e-5 to 1e-6 by a cosine that changes each
epoch. The first 100 steps have half the rate. Decay 0.02, no clipping. `init` of the second stage is the first's run with its
positions interpolated to 384 px; `from_albef=1`: that of pre-training. RandAugment is left out, as in `albef_b16.py`. Not
trained here.
"""
from mcd_jax.configs.albef import albef_b16, entailment_b16

from mcd_jax import config as config_lib
from mcd_jax.configs import pretrain
from mcd_jax.methods.albef import entailment, text_assignment


def get_config(arguments=""):
    args = pretrain.arguments(arguments, stage="judge", init="runs/nlvr2_assign_384", path="data/nlvr2", tables="nlvr_{}.json",
                              source="data/pairs/*.array_record", tokenizer="data/bert/tokenizer.json", from_albef=0, fsdp=1,
                              remat="full")
    if args["stage"] not in ("assign", "judge"):
        raise ValueError(f"--config=nlvr2_b16:stage={args['stage']}: it is 'assign' or 'judge'")
    if args["stage"] == "assign":
        kept = ("source", "tokenizer", "fsdp", "remat")
        config = albef_b16.get_config(",".join(f"{key}={args[key]}" for key in kept))
        config.steps, config.init_from = "1 epochs", args["init"]
        config.objective = config_lib.objective("text_assignment")
        config.init_fresh, config.init_copies = text_assignment.FRESH, text_assignment.COPIES
        config.optimizer.lr, config.optimizer.bounds = 2e-5, ()
        config.optimizer.schedule = ((".*", dict(entailment_b16.SLOWLY, hold="1 epoch")),)
        return config
    config = entailment_b16.base(args, batch_size=128, group=16, epochs=10)
    table = dict(name="judged", set="nlvr2", path=args["path"])
    config.data.source = dict(table, table=args["tables"].replace("{}", "train"))
    config.data.views = entailment_b16.views(args["tokenizer"], ("image", "image2"), random=True)
    config.objective = config_lib.objective("entailment", second="image2", classes=2, warmup=dict(label_distill="1 epoch"))
    config.init_fresh = ("judge/.*", "assign/.*")
    if args["from_albef"]:
        config.init_fresh, config.init_copies = entailment.FRESH, entailment.COPIES
    shown = entailment_b16.views(args["tokenizer"], ("image", "image2"), random=False)
    config.evals.verdicts = {part: dict(source=dict(table, table=args["tables"].replace("{}", part)), views=shown, batch_size=64,
                                        classes=("false", "true"), together="sentence") for part in ("dev", "test")}
    return config
