"""What the large configs share: the recipe on web pairs, and arguments on the command line. Not a config by itself.

    --config=mcd_web:variant=b16_yfcc15m,batch_size=32768,source=/data/yfcc15m/*.array_record

Recipe of SLIP (Mu et al. 2022), whose code the method's authors built on: 224 px, AdamW (0.9, 0.98), one epoch of warm-up, cosine,
captions of 77 CLIP tokens. The learning rate and weight decay are the careful ones: 3e-3 was tuned for SLIP's own objective.
"""
import glob
import os

from mcd_jax import config as config_lib

SIZE, CONTEXT = 224, 77
EPOCHS = dict(yfcc15m=32, cc3m=40)   # of published runs on these data
ORIGINAL = f"decode|crop({SIZE}, 0.5)"
AUGMENTED = f"decode|crop({SIZE}, 0.08)|jitter(0.4, 0.4, 0.4, 0.1, 0.8)|gray(0.2)|blur(0.5, method='pillow')|flip(0.5)"
MOCO = f"decode|crop({SIZE}, 0.2)|jitter(0.4, 0.4, 0.4, 0.1, 0.8)|gray(0.2)|blur(0.5, method='pillow')|flip(0.5)"   # MoCo v2's
TEXT = f"caption('random')|tokenize({CONTEXT}, 'clip')"


def arguments(text, /, **defaults):
    """The arguments after the colon of --config=file.py:key=value,key=value, each of its default's type.

    A default that is a type itself (`float`) is None where it isn't given. A text may hold commas: what follows one belongs to it
    if it has no "=", or if it goes on with a path that exists only so.

    Raises:
      ValueError: an unknown key, one that is given twice, or a value that isn't one.
    """
    given, last = {}, None
    for part in (text or "").split(","):
        key, equals, value = part.partition("=")
        if isinstance(defaults.get(last), str) and (not equals or continues_path(given[last], part)):
            given[last] += f",{part}"
            continue
        if part:
            if not equals and key not in defaults and "data" in defaults:
                raise ValueError(f"argument {part!r} of this config has no name: write data={part} if that is where your data are")
            config_lib.refuse_unknown(key, defaults, "argument of this config")
            if key in given:
                raise ValueError(f"argument {key!r} of this config is given twice, as {given[key]!r} and {value!r}: leave one out")
            given[key], last = value if equals else None, key
    values = {key: None if isinstance(default, type) else default for key, default in defaults.items()}
    for key, value in given.items():
        default = defaults[key]
        try:
            if not value:
                raise ValueError("no value")
            values[key] = (default if isinstance(default, type) else type(default))(value)
        except ValueError as error:
            part = key if value is None else f"{key}={value}"
            cure = ("a number is needed" if isinstance(default, type) else f"write {key}={default!r}, say" if default != "" else
                    f"it has no value: write one, or leave {key} out")
            raise ValueError(f"argument {part!r} of this config: {cure}") from error
    return values


def continues_path(text, part):
    """Whether `part` belongs to a path that a comma cut: `text` doesn't exist, what begins as both do, to the next "/", does."""
    text = os.path.expanduser(text)
    start = f"{text},{part.partition('/')[0]}"
    return not os.path.exists(text) and bool(glob.glob(glob.escape(start) + "*"))


def base(image, text, embed_dim, views, *, batch_size, steps, source, fsdp=1, remat="full"):
    """The config of a ViT and CLIP's text tower on pairs in array_record files.

    Args:
      image, text: variants, such as "B/16" and "clip-B".
      source: path or pattern of the files.
      fsdp: over how many neighbouring devices parameters are split.
    """
    config = config_lib.default()
    config.steps, config.batch_size = steps, batch_size
    config.data.source = dict(name="array_record", path=source)
    config.data.views = dict(**views, text=TEXT)
    config.data.workers = 16
    tower = dict(scan=True, remat=remat)
    config.model = dict(image=dict(name="vit", variant=image, **tower),
                        text=dict(name="text", variant=text, **tower), embed_dim=embed_dim, dtype="bfloat16")
    config.optimizer.lr, config.optimizer.weight_decay = 1e-3, 0.2
    config.optimizer.schedule = ((".*", dict(name="cosine", warmup="1 epoch", final=0.01)),)
    config.mesh = dict(slice=1, data=-1, fsdp=fsdp, tensor=1, expert=1)
    config.checkpoint = dict(every="5 percent", keep=2, best="")
    return config


def published(arguments_text, views):
    """The config of a published recipe for YFCC15M or CC3M: ViT-B/32 and CLIP's text tower, batch 4096. Not trained here.

    Args:
      arguments_text: what stands after the colon: data (a key of EPOCHS), image (variant of the tower), and as in `base`
        batch_size, source, fsdp, remat.
      views: of the batch, beside the text.
    """
    args = arguments(arguments_text, data="yfcc15m", image="B/32", batch_size=4096, source="", fsdp=1, remat="full")
    data, image = args.pop("data"), args.pop("image")
    config_lib.refuse_unknown(data, EPOCHS, "value of the argument data of this config")
    args["source"] = args["source"] or f"data/{data}/*.array_record"
    return base(image, "clip-B", 512, views, steps=f"{EPOCHS[data]} epochs", **args)
