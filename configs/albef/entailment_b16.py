"""ALBEF on SNLI-VE at the paper's size: 384 px, batch 256, 5 epochs.

mcd-jax train --config=entailment_b16:init=runs/albef_b16_384,path=/data/snli_ve,images=flickr30k-images,\
tokenizer=/data/bert/tokenizer.json --workdir=gs://my-bucket/runs/entailment

Rates and sizes are those of the published code (salesforce/ALBEF at b9727e4, configs/VE.yaml): 2e-5 to 1e-6 by a cosine that
changes each epoch, half of it in the first 100 steps, decay 0.02, no clipping, distillation without a ramp. `init` is a run whose
images have 384 px: `mcd-jax convert import` makes one of the published weights and interpolates their positions. `tables`
names the files, {} stands for train, dev and test. Evaluation also shows what the text alone gives away. RandAugment is left out,
as in `albef_b16.py`. Not trained here.
"""
from mcd_jax.configs.albef import albef_b16

from mcd_jax import config as config_lib
from mcd_jax.configs import pretrain
from mcd_jax.methods.albef import entailment, judged_source

SIZE, CONTEXT = 384, 31
SLOWLY = dict(name="cosine", warmup="100 steps", start=0.5, warmup_hold="100 steps")


def get_config(arguments=""):
    args = pretrain.arguments(arguments, init="runs/albef_b16_384", path="data/snli_ve", tables="ve_{}.json",
                              images="flickr30k-images", tokenizer="data/bert/tokenizer.json", fsdp=1, remat="full")
    config = base(args, batch_size=256, group=32, epochs=5)
    table = dict(name="judged", set="snli_ve", path=args["path"], images=args["images"])
    config.data.source = dict(table, table=args["tables"].replace("{}", "train"))
    config.data.views = views(args["tokenizer"], ("image",), random=True)
    config.objective = config_lib.objective("entailment")
    config.init_fresh = entailment.FRESH
    shown = dict(views=views(args["tokenizer"], ("image",), random=False), classes=judged_source.CLASSES["snli_ve"], batch_size=64)
    one = {part: dict(shown, source=dict(table, table=args["tables"].replace("{}", part))) for part in ("dev", "test")}
    config.evals.verdicts = {**one, "test_text_alone": dict(one["test"], blank=("image",))}
    return config


def views(tokenizer, images, random):
    """Pipes of the images, the text and, for training (`random`), the label."""
    look = f"crop({SIZE}, 0.5)|flip(0.5)" if random else f"resize({SIZE}, 'bicubic')"
    found = {name: f"decode({name!r})|{look}" for name in images}
    found["text"] = f"caption('first')|tokenize({CONTEXT}, '{tokenizer}', end=False)"
    return {**found, "label": "column('label')"} if random else found


def base(args, batch_size, group, epochs):
    """The model and optimizer of fine-tuning; data, objective and evaluations are missing."""
    config = albef_b16.get_config(f"batch_size={batch_size},group={group},queue=0,fsdp={args['fsdp']},remat={args['remat']}")
    config.init_from, config.steps = args["init"], f"{epochs} epochs"
    config.optimizer.lr, config.optimizer.bounds = 2e-5, ()
    config.optimizer.schedule = ((".*", dict(SLOWLY, final=0.05, hold="1 epoch")),)
    return config
