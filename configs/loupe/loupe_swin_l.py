"""LOUPE at the paper's size: Swin-L at 224 px, BERT-Small, joint width 256, batch 65,536 (512 on each of 128 GPUs), 20 epochs.

mcd-jax train --config=loupe_swin_l:source=/data/pairs/*.array_record,tokenizer=/data/bert/tokenizer.json \
    --workdir=gs://my-bucket/runs/loupe_swin_l

The paper trained on 240 million pairs of its own, in batches of 512, which may also mean all GPUs together (`batch_size=512`). Its
texts are WordPiece tokens, at most 60: give BERT's tokenizer.json; without it they are CLIP's. One region in 32 images is played in
a step, 64 samples of 3 masked images each; `samples=500` comes closer to what may be the paper's number, at several times the cost.

Not trained here: compiled ahead of time only.
"""
from mcd_jax import config as config_lib
from mcd_jax.configs import pretrain

CONTEXT, PHRASES = 60, 8


def get_config(arguments=""):
    args = pretrain.arguments(arguments, batch_size=65536, source="data/pairs/*.array_record", tokenizer="clip", fsdp=16,
                              microbatches=8, samples=64, remat="full")
    tokens = f"{CONTEXT}, 'clip'" if args["tokenizer"] == "clip" else f"{CONTEXT}, {args['tokenizer']!r}, 'lower'"
    phrases = tokens.replace(f"{CONTEXT}, ", f"{CONTEXT}, {PHRASES}, ", 1).replace(", 'lower'", ", clean='lower'")
    config = config_lib.default()
    config.steps, config.batch_size = "20 epochs", args["batch_size"]
    config.microbatches, config.group_size = args["microbatches"], 32
    config.data.source = dict(name="array_record", path=args["source"])
    config.data.views = dict(image=pretrain.ORIGINAL, text=f"caption('random')|tokenize({tokens})",
                             phrases=f"caption('random')|phrases({phrases})")
    config.data.workers = 16
    config.model = dict(image=dict(name="swin", variant="L", drop_path=0.2, scan=True, remat=args["remat"]),
                        text=dict(name="bert", variant="Small", pool="first", scan=True, remat=args["remat"]),
                        embed_dim=256, dtype="bfloat16")
    config.objective = config_lib.objective("loupe", samples=args["samples"], chunk=16, token_quota=1, pair_quota=64)
    config.optimizer.lr, config.optimizer.weight_decay = 2e-4, 0.01
    config.optimizer.schedule = ((".*", dict(name="cosine", warmup="1 epoch", final=0.01)),)
    config.mesh = dict(slice=1, data=-1, fsdp=args["fsdp"], tensor=1, expert=1)
    config.checkpoint = dict(every="5 percent", keep=2, best="")
    return config
