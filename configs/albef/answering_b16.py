"""VQA v2 at the paper's size: ALBEF's ViT-B/16 at 384 px, BERT-base as 6 text and 6 fusion layers, and 6 layers that answer.

mcd-jax convert import ALBEF.pth --tokenizer=/data/bert/tokenizer.json --image_size=384 --out=runs/albef_384
mcd-jax train --config=answering_b16:path=/data,tokenizer=/data/bert/tokenizer.json,run=runs/albef_384,scan=0 \
  --workdir=gs://my-bucket/runs/answering_b16

path holds ALBEF's lists vqa_train.json, vqa_val.json, vqa_test.json, vg_qa.json and answer_list.json, COCO's images in coco and
Visual Genome's in genome. What VQA's server takes is written to `out`. Recipe of the published code (salesforce/ALBEF, VQA.py and
configs/VQA.yaml at 91de3c1): batch 256, 8 epochs, AdamW without clipping, 2e-5 to 1e-6 with a rate that changes every 100 steps in
the first 400 and then every epoch, decay 0.02 of all but biases and norms, distillation with a share of 0.4. distill=0: the
published run's decoder, which had none. Ten answers per question are decoded, as many as annotators can differ in; answers=4 costs
less and leaves the rarest ones out. scan=1 compiles faster and needs a run that has it. RandAugment is not among the operations of
this package: the view is a crop, a flip and colour jitter. Not trained here: planned only.
"""
import os

from mcd_jax.configs.albef import albef_b16

from mcd_jax import config as config_lib
from mcd_jax.configs import pretrain
from mcd_jax.methods.albef import vqa

SIZE, QUESTION, ANSWER, START = 384, 26, 12, 101   # 25 tokens of a question and at least one of padding; [CLS]
WHOLE = 128   # tokens in evaluation, which cuts none in the published code: it takes 50 words of a question
IMAGE = f"decode|crop({SIZE}, 0.5)|flip(0.5)|jitter(0.4, 0.4, 0.4, 0.1, 0.5)"
TABLES = ("vqa_train.json", "vqa_val.json", "vg_qa.json")


def get_config(arguments=""):
    args = pretrain.arguments(arguments, batch_size=256, path="data", tokenizer="data/bert/tokenizer.json", run="", fsdp=1,
                              remat="full", scan=1, distill=1, answers=10, out="vqa_result.json")
    config = albef_b16.get_config(f"tokenizer={args['tokenizer']},fsdp={args['fsdp']},remat={args['remat']}")
    config.steps, config.batch_size, config.group_size = "8 epochs", args["batch_size"], 0
    answer = f"tokenize({ANSWER}, '{args['tokenizer']}')"
    question, whole = (f"caption('first')|tokenize({length}, '{args['tokenizer']}', end=False)" for length in (QUESTION, WHOLE))

    def source(tables, **more):
        return dict(name="vqa", path=args["path"], tables=tables, images=dict(vqa="coco", vg="genome"), **more)

    config.data.source = source(TABLES, most=args["answers"])
    config.data.views = dict(image=IMAGE, text=question, weights="column('weights')",
                             answers=f"captions({args['answers']}, 'first', 'choices')|{answer}")
    config.model.image.scan = config.model.text.scan = bool(args["scan"])
    weights = {} if args["distill"] else dict(answer_distill=0.0)
    config.objective = config_lib.objective("vqa", weights=weights, start_id=START)
    config.optimizer.update(
        optimizers=((".*", dict(name="adamw", b1=0.9, b2=0.999, eps=1e-8)),), lr=2e-5, bounds=(),
        schedule=(("(image|text)/proj/.*", None),   # which nothing here reads
                  (".*", dict(name="cosine", warmup="400 steps", start=0.5, final=0.05, hold="1 epoch", warmup_hold="100 steps"))))
    config.sharding = config_lib.default().sharding
    if args["run"]:
        config.init_from, config.init_fresh, config.init_copies = args["run"], vqa.LEFT_OUT, vqa.COPIES
    config.evals.answers = dict(test=dict(
        source=source("vqa_test.json", words=50), answers=os.path.join(args["path"], "answer_list.json"), k=128, normal="vqa",
        views=dict(image=f"decode|resize({SIZE}, 'bicubic')", text=whole, answer=answer), out=args["out"]))
    return config
