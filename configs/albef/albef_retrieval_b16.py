"""ALBEF fine-tuned for retrieval at the paper's size: 384 px, batch 256, 5 epochs of COCO's captions or 10 of Flickr30K's.

mcd-jax train --config=albef_retrieval_b16:set=coco,path=/data/coco,table=dataset_coco.json,\
init=runs/albef_b16_384,tokenizer=/data/bert/tokenizer.json --workdir=gs://my-bucket/runs/albef_coco

Schedule and switches are those of the published code (salesforce/ALBEF at b9727e4, configs/Retrieval_*.yaml): rate 1e-5 to 1e-6 by
a cosine that changes each epoch, decay 0.02, groups of 32 rows, its images per process. `init` is a run whose images have 384 px:
`mcd-jax convert import` makes one of the published weights and interpolates their positions.

An epoch there shows every caption once; a row here is an image with one of its five captions, so five epochs stand for one. Texts
are cut at 30 tokens (there only evaluation cuts them). The queue starts with random keys (there with those of pre-training).
Evaluation re-ranks the first 256 (COCO) or 128 candidates by the matching head. RandAugment is left out, as in
`albef_b16.py`. Not trained here.
"""
from mcd_jax.configs.albef import albef_b16

from mcd_jax.configs import pretrain

SIZE, CONTEXT, CAPTIONS = 384, 31, 5
EPOCHS, CANDIDATES = dict(coco=5, flickr=10), dict(coco=256, flickr=128)


def get_config(arguments=""):
    args = pretrain.arguments(arguments, set="coco", path="data/coco", table="dataset_coco.json", init="runs/albef_b16_384",
                              tokenizer="data/bert/tokenizer.json", batch_size=256, group=32, queue=65536, fsdp=1, remat="full")
    if args["set"] not in EPOCHS:
        raise ValueError(f"--config=albef_retrieval_b16:set={args['set']}: it is one of {', '.join(EPOCHS)}")
    kept = ("batch_size", "group", "queue", "fsdp", "remat", "tokenizer")
    config = albef_b16.get_config(",".join(f"{key}={args[key]}" for key in kept))
    config.init_from, config.steps = args["init"], f"{CAPTIONS * EPOCHS[args['set']]} epochs"
    table = dict(name="karpathy", path=args["path"], table=args["table"], captions=CAPTIONS)
    tokenize = f"tokenize({CONTEXT}, '{args['tokenizer']}', end=False)"
    config.data.source = dict(table, split="train")
    config.data.views = dict(image=f"decode|crop({SIZE}, 0.5)|flip(0.5)", text=f"caption('random')|{tokenize}",
                             ids="column('imgid')")
    config.objective.update(dict(ids="ids", temperature_range=()))
    config.objective.weights.update(dict(mlm=0.0, mlm_distill=0.0))
    config.objective.warmup.itc_distill = f"{CAPTIONS} epochs"
    config.optimizer.lr, config.optimizer.bounds = 1e-5, ()
    config.optimizer.schedule = ((".*", dict(name="cosine", warmup="0 steps", final=0.1, hold=f"{CAPTIONS} epochs")),)
    shown = dict(image=f"decode|resize({SIZE}, 'bicubic')", text=f"caption('first')|{tokenize}")
    second = dict(views=shown, texts="all", k=CANDIDATES[args["set"]], batch_size=64)
    config.evals.rerank = {part: dict(second, source=dict(table, split=part)) for part in ("val", "test")}
    return config
