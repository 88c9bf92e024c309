"""Zero-shot classification on the eleven sets of the literature, for any job:

    python -m mcd_jax.evaluate --workdir=runs/x --evals=configs/evals/zeroshot.py:sets=cifar10,food101,data_dir=/data/tfds
    python -m mcd_jax.evaluate --workdir=runs/x --evals=configs/evals/zeroshot.py:sets=aircraft,folder=/data/aircraft/test

sets      names of mcd_jax/evals/sets (default: the eleven; without `folder` all but Aircraft, which TFDS doesn't have); imagenet7
          is ImageNet with the seven templates that SLIP uses
data_dir  where TFDS has prepared them with file_format="array_record" (default: TFDS's own place)
folder    a folder for each class instead, "{set}" standing for the set's name; its folders carry the set's class names
read      whose parameters, "params" (default) or "memory/teacher"
n         at most so many images of each

`accuracy` is the figure of the literature: top1, or mean_per_class for Aircraft, Pets, Caltech-101 and Flowers-102. Image size,
tokenizer and context are the job's own. Published figures come with each set's own test images; TFDS's Caltech-101 is the split of
30 training images a class, its SUN397 the first of the ten official partitions, as in CLIP's paper.
"""
from mcd_jax.evals import classes

SETS = ("cifar10", "cifar100", "food101", "pets", "flowers102", "sun397", "cars", "dtd", "caltech101", "aircraft", "imagenet")


def get_evals(arguments=""):
    args = parse(arguments, sets=(), data_dir="", folder="", read="params", n="")
    sets = args["sets"] or [name for name in SETS if args["folder"] or classes.read(name).tfds]
    common = dict(read=args["read"], n=int(args["n"]) if args["n"] else None)
    return dict(zeroshot={name: dict(set=name, source=source(name, "test", args), **common) for name in sets})


def source(name, part, args):
    """The source spec of a set's part, by the arguments folder and data_dir."""
    if args["folder"]:
        return dict(name="image_folder", path=args["folder"].replace("{set}", name).replace("{part}", part))
    return classes.source(name, part, **({"data_dir": args["data_dir"]} if args["data_dir"] else {}))


def parse(text, **defaults):
    """"sets=a,b,read=x" -> {**defaults, "sets": ("a", "b"), "read": "x"}: a word without "=" belongs to the key before it.

    Raises:
      ValueError: an unknown key.
    """
    values, key = {}, None
    for word in filter(None, (text or "").split(",")):
        name, equals, value = word.partition("=")
        key = name if equals else key
        if key not in defaults:
            raise ValueError(f"argument {word!r}: write {', '.join(f'{k}=...' for k in defaults)}")
        values.setdefault(key, []).append(value if equals else word)
    return {**defaults, **{k: tuple(v) if isinstance(defaults[k], tuple) else ",".join(v) for k, v in values.items()}}
