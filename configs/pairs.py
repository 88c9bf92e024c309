"""My own image-text pairs on one machine, in one command:

mcd-jax train --config=pairs:data=/data/my_pairs --workdir=runs/mine
mcd-jax train --config=pairs:data=/data/cc3m,model=ViT-B/32,method=mcd,epochs=10 --workdir=runs/cc3m_b32

What lies at `data` is found out and printed (docs/your_data.md has the formats); a part is held out, and retrieval on it evaluated.
Arguments after the colon, all but data optional. The path may hold commas and "=".

  data       a folder, file, pattern or url: tar, TFRecord or Parquet shards, img2dataset's output, images with .txt or .json beside
             them, images with a csv, tsv, jsonl, COCO or Karpathy table, Hugging Face's Parquet, or a folder for each class
  model      small (default: minutes on two cores), medium, ViT-Ti/16 ViT-S/16 ViT-B/32 ViT-B/16 ViT-L/14 ... (any size and patch),
             RN50 ...
  method     clip (default), siglip, slip, mcd, eclipse, gcl, m2mix, or a module of your own by its dotted path (my_lab.method)
  size       pixels of a side: 64 (small), 112 (medium), 224
  epochs     30
  batch_size, lr, context (tokens of a caption): chosen by the model and the number of examples
  hold_out   share of the examples for validation: a fifth of fewer than 500, a tenth of up to 50,000, then at most 5,000
  image, text, key   columns, where the usual names don't fit

Everything that it sets can be changed as in any config: --config.optimizer.weight_decay=0.05.
"""
import functools
import math
import os
from typing import NamedTuple

from mcd_jax.configs.evals import zeroshot

from mcd_jax import config as config_lib
from mcd_jax.configs import pretrain
from mcd_jax.data import sources
from mcd_jax.data.detect.detect import detect
from mcd_jax.data.sources import hold_out
from mcd_jax.evals import rows
from mcd_jax.models import variants

MOST_HELD_OUT = 5000   # more candidates make retrieval slower, not surer
SHARES = (0.1, 0.05, 0.02, 0.01, 0.005, 0.002, 0.001, 0.0005, 0.0002, 0.0001)
VIEWS = dict(          # every method takes its views from here
    image="decode|crop({size}, 0.5)",
    augmented="decode|crop({size}, 0.08)|jitter(0.4, 0.4, 0.4, 0.1, 0.8)|gray(0.2)|blur(0.5, method='pillow')|flip(0.5)",   # SLIP's
)
METHODS = dict(        # batch key -> view of VIEWS
    clip=dict(image="image"), siglip=dict(image="image"), gcl=dict(image="image"), m2mix=dict(image="image"),
    eclipse=dict(image="image"),
    slip=dict(image="image", view1="augmented", view2="augmented"), mcd=dict(image="image", augmented="augmented"))
OPTIONS = dict(        # of small runs, measured on the embedded data set; larger ones keep the method's defaults
    mcd=dict(weights=dict(clip_augmented=1.0), ema_m=0.99, keep_share=0.75), slip=dict(hidden=512, out_dim=128),
    m2mix=dict(temperature=0.0))
EMBED = {"Ti": 256, "S": 384, "M": 512, "B": 512, "L": 768, "So400m": 1024, "H": 1024, "g": 1024, "g-opt": 1024,
         "RN50": 1024, "RN101": 512, "RN50x4": 640, "RN50x16": 768, "RN50x64": 1024}


class Model(NamedTuple):
    """A size of model and what goes with it on one machine."""
    towers: dict        # config.model
    size: int           # pixels
    context: int        # tokens
    batch: int          # most rows of a step
    rows: int           # rows that are encoded at a time
    lr: float
    small: bool = False


def model(name):
    """The `Model` called `name`.

    Raises:
      ValueError: no such size; the sentence lists them.
    """
    if name == "small":   # a conv net, which learns most from few images, and one layer over words
        image = dict(name="resnet", widths=(48, 128), depths=(1, 1), stem_patch=4, mask_patch=8, grad_rows=32)
        text = dict(name="text", width=192, depth=1, num_heads=3, causal=False, pool="mean")
        return Model(dict(image=image, text=text, embed_dim=192, dtype="float32"), 64, 32, 256, 256, 2e-3, True)
    if name == "medium":
        image = dict(name="vit", width=256, depth=8, mlp_dim=1024, num_heads=4, patch_size=16)
        text = dict(name="text", width=256, depth=4, mlp_dim=1024, num_heads=4)
        return Model(dict(image=image, text=text, embed_dim=256, dtype="bfloat16"), 112, 32, 512, 512, 1e-3, True)
    more = dict(remat="full")
    if name in variants.RESNETS:
        image, size = dict(name="resnet", variant=name), name
    else:
        kind, _, variant = name.partition("-")
        size, slash, patch = variant.partition("/")
        if kind != "ViT" or size not in variants.TRANSFORMERS or not slash or not patch.isdigit() or not int(patch):
            sizes = ", ".join(f"ViT-{size}" for size in variants.TRANSFORMERS)
            raise ValueError(f"model={name} is unknown: it is small, medium, {', '.join(variants.RESNETS)}, or {sizes} with the "
                             "patch size behind a slash, such as ViT-B/32")
        image = dict(name="vit", variant=variant, scan=True, **more)
    text = dict(name="text", variant=f"clip-{size}" if size in variants.CLIP_TEXT else "clip-H", scan=True, **more)
    large = size in ("L", "So400m", "H", "g", "g-opt", "RN50x16", "RN50x64")
    return Model(dict(image=image, text=text, embed_dim=EMBED[size], dtype="bfloat16"), 224, 77, 1024, 64 if large else 256, 5e-4)


class Parts(NamedTuple):
    train: dict         # source specs
    held_out: dict
    examples: tuple     # numbers of both
    rule: str           # how they were parted, for people
    left_out: tuple = ()   # sentences on rows that can't be used


def chosen_share(examples):
    """How much of so many examples is held out: a fifth of a few hundred, a tenth of thousands, no more than MOST_HELD_OUT."""
    return 0.2 if examples < 500 else next((share for share in SHARES if share * examples <= MOST_HELD_OUT), SHARES[-1])


def parts(found, share, path):
    """What is trained on and what is held out of a `Found`; share None: chosen by the number of examples. path: for messages.

    Raises:
      ValueError: fewer than two examples would be left on either side.
    """
    whole, given = sources.open(found.spec), share
    if found.held_out and not share:
        kept = len(sources.open(found.held_out))
        result = Parts(found.spec, found.held_out, (len(whole), kept), "the part that the data set itself keeps for it")
    else:
        share = share or chosen_share(len(whole))
        if not 0 < share < 1:
            raise ValueError(f"hold_out={share} is a share of the examples: a number between 0 and 1, such as 0.05")
        count = int(hold_out.is_held_out(hold_out.keys(whole), share).sum())
        train, held_out = (dict(name="hold_out", source=found.spec, part=part, share=share) for part in hold_out.PARTS)
        rule = f"those whose key's hash is below {share:g}: the same on any machine"
        result = Parts(train, held_out, (len(whole) - count, count), rule)
    missing, others = getattr(whole, "missing", 0), getattr(whole, "left_out", {})
    told = [f"{missing:,} rows whose image doesn't exist are left out"] if missing else []
    if found.held_out and given:
        told.append(f"hold_out={given:g} parts the rest: what the data set itself keeps for validation is in neither part")
    told += [f"left out: {', '.join(f'{count:,} x {cause}' for cause, count in others.items())}"] if others else []
    if min(result.examples) < 2:
        cure = f": set hold_out={0.5 if given == 0.3 else 0.3}, say" if sum(result.examples) > 5 else ""
        raise ValueError(f"data={path}: of {sum(result.examples):,} examples {result.examples[1]:,} would be held out "
                         f"({result.rule}); both parts need two at least{cure}")
    return result._replace(left_out=tuple(told))


def evaluations(found, split):
    """`config.evals` on the held-out part: retrieval; for class folders zero-shot classification and a linear probe."""
    common = dict(source=split.held_out, weights_from="params")
    if not found.classes:
        return dict(retrieval=dict(held_out=dict(common, texts="all" if found.several else "first", every="20 percent"))), ()
    held_out = sources.open(split.held_out)
    folders = getattr(held_out, "classes", None)
    names = zeroshot.renamed(folders, "") if folders else found.classes
    prompts = dict(label=found.label, names=names, templates=zeroshot.TEMPLATES)
    evals = dict(zeroshot=dict(held_out=dict(common, **prompts, every="20 percent")))
    label = "class_name" if folders else found.label
    seen, asked = ({str(value) for value in rows.columns(source, [label])[label].tolist()}
                   for source in (sources.open(split.train), held_out))
    if lost := sorted(asked - seen):
        return evals, (f"no linear probe: the class {lost[0]} has images in the held-out part alone",)
    return {**evals, "probe": dict(held_out=dict(common, train=split.train, label=label))}, ()


def get_config(arguments=""):
    args = pretrain.arguments(arguments, data="", model="small", method="clip", size=int, epochs=30.0, batch_size=int, lr=float,
                              context=int, hold_out=float, image="", text="", key="")
    for name in ("size", "epochs", "batch_size", "lr", "context", "hold_out"):
        if args[name] is not None and not args[name] > 0:
            share = ": a share of the examples between 0 and 1, such as 0.05" if name == "hold_out" else ""
            raise ValueError(f"argument {name}={args[name]} of this config must be above 0{share}, or left out")
    if not args["data"]:
        raise ValueError("pairs: say where your pairs are: --config=pairs:data=PATH")
    method, sized = args["method"], model(args["model"])
    if method not in METHODS and "." not in method:
        raise ValueError(f"method={method}: pairs alone suffice for {', '.join(METHODS)} and modules of your own (my_lab.method); "
                         "what other methods need, configs of their own say")
    found = detect(args["data"], args["image"], args["text"], args["key"])
    split = parts(found, args["hold_out"], args["data"])
    size, context = args["size"] or sized.size, args["context"] or sized.context
    batch_size = args["batch_size"] or max(8, min(sized.batch, 2 ** int(math.log2(max(8, split.examples[0] / 8)))))

    config = config_lib.default()
    config.steps, config.batch_size = f"{args['epochs']:g} epochs", batch_size
    config.microbatches = next(k for k in range(1, batch_size + 1) if batch_size % k == 0 and batch_size // k <= sized.rows)
    config.data.source = split.train
    views = METHODS.get(method, METHODS["clip"])
    config.data.views = dict({key: VIEWS[view].format(size=size) for key, view in views.items()},
                             text=f"caption('random')|tokenize({context}, 'clip')")
    config.data.workers = max(1, min(16, os.cpu_count() or 1))
    config.model = sized.towers
    if method == "siglip":
        config.model.logit_scale, config.model.logit_bias = math.log(10), -10.0   # the paper's start
    config.objective = config_lib.objective(method, **(OPTIONS.get(method, {}) if sized.small else {}))
    config.optimizer.lr = args["lr"] or sized.lr
    config.evals, notes = evaluations(found, split)
    config.checkpoint = dict(every="20 percent", keep=2, best="")
    tell(args, found, split, config, (size, context), notes)
    return config


def tell(args, found, split, config, shape, notes):
    """Prints what was decided. shape: pixels and tokens."""
    train, held_out = split.examples
    seen = "retrieval" if "retrieval" in config.evals else " and ".join(config.evals)
    steps = math.ceil(args["epochs"] * train / config.batch_size)
    slices = f" in {config.microbatches} microbatches" if config.microbatches > 1 else ""
    extra = [key for key in config.data.views if key not in ("image", "text")]
    lines = dict(
        data=f"{args['data']}: {found.kind}", columns=found.columns,
        examples=f"{train + held_out:,}: {train:,} to train on, {held_out:,} held out ({split.rule})",
        model=f"{args['model']}, images of {shape[0]} px, CLIP's tokenizer, {shape[1]} tokens",
        method=args["method"] + (f", with the views {' and '.join(extra)}" if extra else ""),
        training=f"{args['epochs']:g} epochs, {steps:,} steps of {config.batch_size}{slices}, learning rate "
                 f"{config.optimizer.lr:g}",
        evaluation=f"{seen} on the held-out part, every 20 % and at the end")
    notes = (*found.notes, *split.left_out, *notes)
    rows = [f"  {name:<10} {text}" for name, text in lines.items()] + [f"  {'':<10} {note}" for note in notes]
    _say("\n".join(["pairs: what was found and chosen (arguments after the colon change it)", *rows]))


@functools.cache
def _say(text):
    """Once, however often a command reads its config."""
    print(text, flush=True)
