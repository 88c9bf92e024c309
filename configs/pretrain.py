"""What the large configs share: the recipe on web pairs, and arguments on the command line. Not a config by itself.

    --config=configs/mcd_b16_yfcc15m.py:batch_size=32768,source=/data/yfcc15m/*.array_record

Recipe of SLIP (Mu et al. 2022), whose code the method's authors built on: 224 px, AdamW (0.9, 0.98), one epoch of warm-up, cosine,
captions of 77 CLIP tokens. The learning rate and weight decay are the careful ones: 3e-3 was tuned for SLIP's own objective.
"""
from mcd_jax import config as config_lib

SIZE, CONTEXT = 224, 77
ORIGINAL = f"decode|crop({SIZE}, 0.5)"
AUGMENTED = f"decode|crop({SIZE}, 0.08)|jitter(0.4, 0.4, 0.4, 0.1, 0.8)|gray(0.2)|blur(0.5)|flip(0.5)"
TEXT = f"caption('random')|tokenize({CONTEXT}, 'clip')"


def arguments(text, **defaults):
    """The arguments after the colon of --config=file.py:key=value,key=value, each of its default's type.

    Raises:
      ValueError: an unknown key, or a value that isn't one.
    """
    values = dict(defaults)
    for part in filter(None, (text or "").split(",")):
        key, equals, value = part.partition("=")
        config_lib.refuse_unknown(key, defaults, "argument of this config")
        try:
            values[key] = type(defaults[key])(value) if equals else None
        except ValueError:
            values[key] = None
        if values[key] is None:
            raise ValueError(f"argument {part!r} of this config: write {key}={defaults[key]!r}, say")
    return values


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
