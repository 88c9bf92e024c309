"""ALBEF at the paper's size: ViT-B/16 at 256 px, BERT-base as 6 text and 6 fusion layers, batch 512, queue 65,536, 30 epochs.

mcd-jax train --config=albef_b16:source=/data/pairs/*.array_record,tokenizer=/data/bert/tokenizer.json \
  --workdir=gs://my-bucket/runs/albef_b16

Optimizer, schedule and switches are those of the published code (salesforce/ALBEF at b9727e4): AdamW without clipping, decay 0.02
of all but biases and norms (positions, class token and temperature have it), a rate that changes every 100 steps in the first 2,000
and then every epoch. Groups of 64 rows are its 64 images per process; a device holds whole groups, so at 512 rows 16 chips need
group=32. The published weights can be imported (`mcd-jax convert import`); the ViT of a new run starts from scratch
unless config.init_from gives one.
RandAugment is not among the operations of this package: the view is a crop, a flip and colour jitter. Not trained here: compiled
ahead of time only. tokenizer: BERT's (uncased) as a tokenizer.json.
"""
from mcd_jax import config as config_lib
from mcd_jax.configs import pretrain

SIZE, CONTEXT, MASK = 256, 26, 103   # 25 tokens and at least one of padding: BERT without [SEP]
IMAGE = f"decode|crop({SIZE}, 0.2)|flip(0.5)|jitter(0.4, 0.4, 0.4, 0.1, 0.5)"


def get_config(arguments=""):
    args = pretrain.arguments(arguments, batch_size=512, source="data/pairs/*.array_record", tokenizer="data/bert/tokenizer.json",
                              fsdp=1, remat="full", group=64, queue=65536)
    config = config_lib.default()
    config.steps, config.batch_size, config.group_size = "30 epochs", args["batch_size"], args["group"]
    config.data.source = dict(name="array_record", path=args["source"])
    config.data.views = dict(image=IMAGE, text=f"caption('random')|tokenize({CONTEXT}, '{args['tokenizer']}', end=False)")
    config.data.workers = 16
    tower = dict(scan=True, remat=args["remat"])
    config.model = dict(
        image=dict(name="vit", variant="B/16", eps=1e-6, proj="biased", **tower),
        text=dict(name="bert", variant="Base", depth=6, pool="first", dropout=0.1, proj="biased", **tower),
        embed_dim=256, dtype="bfloat16",
        mean=(0.48145466, 0.4578275, 0.40821073), std=(0.26862954, 0.26130258, 0.27577711))
    config.objective = config_lib.objective("albef", mask_id=MASK, queue=args["queue"])
    config.optimizer.lr, config.optimizer.weight_decay, config.optimizer.clip_norm = 1e-4, 0.02, 0.0
    config.optimizer.optimizers = ((".*", dict(name="adamw", b1=0.9, b2=0.999, eps=1e-8)),)
    config.optimizer.schedule = ((".*", dict(name="cosine", warmup="2000 steps", start=0.1, final=0.1, hold="1 epoch",
                                             warmup_hold="100 steps")),)
    config.optimizer.decay_mask = ((".*/bias|.*/scale", False), (".*", True))
    config.optimizer.bounds = (("temperature", (0.001, 0.5)),)
    config.mesh = dict(slice=1, data=-1, fsdp=args["fsdp"], tensor=1, expert=1)
    config.sharding = (("queue/.*", (None, ("slice", "data", "fsdp", "expert"))), *config.sharding)
    config.checkpoint = dict(every="5 percent", keep=2, best="")
    return config
