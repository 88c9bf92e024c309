"""Zero-shot classification of your own images, or on the eleven sets of the literature, for any run:

    mcd-jax evaluate --workdir=runs/x --evals=zeroshot:folder=/data/my_classes
    mcd-jax evaluate --workdir=runs/x --evals=zeroshot:sets=cifar10,food101,data_dir=/data/tfds
    mcd-jax evaluate --workdir=runs/x --evals=zeroshot:sets=aircraft,folder=/data/aircraft/test

sets      names of mcd_jax/evals/sets (default: the eleven; without `folder` all but Aircraft, which TFDS doesn't have); imagenet7
          is ImageNet with the seven templates that SLIP uses
data_dir  where TFDS has prepared them with file_format="array_record" (default: TFDS's own place)
folder    a folder for each class. Without `sets`: classes of your own, /data/my_classes/<class>/x.jpg, named by their folders
          ("golden_retriever" is "golden retriever"); where it holds train/ and val/ or test/, the latter. With `sets`: in place of
          TFDS, "{set}" standing for the set's name; the folders carry the set's class names
templates a text file with a prompt on each line, "{}" where the name goes
names     a JSON file {"folder": "name"} or {"folder": ["name", "other name"]}, for folders whose names say nothing
read      whose parameters, "params" (default) or "memory/teacher"
n         at most so many images of each

`accuracy` is the figure of the literature: top1, or mean_per_class for Aircraft, Pets, Caltech-101 and Flowers-102. Image size,
tokenizer and context are the job's own. Published figures come with each set's own test images; TFDS's Caltech-101 is the split of
30 training images a class, its SUN397 the first of the ten official partitions, as in CLIP's paper.
"""
import json
import pathlib
import re

from mcd_jax.configs import pretrain
from mcd_jax.data import sources
from mcd_jax.data.detect.detect import detect
from mcd_jax.data.sources.image_folder import prettified
from mcd_jax.data.sources.tables import unique_keys
from mcd_jax.evals import classes

TEMPLATES = ("{}", "a photo of {}.", "a photo of a {}.", "an image of a {}.")   # of classes of one's own
SETS = ("cifar10", "cifar100", "food101", "pets", "flowers102", "sun397", "cars", "dtd", "caltech101", "aircraft", "imagenet")


def get_evals(arguments=""):
    args = parse(arguments, sets=(), data_dir="", folder="", templates="", names="", weights_from="params", n="")
    common = dict(weights_from=args["weights_from"], n=int(args["n"]) if args["n"] else None)
    if args["templates"]:
        common["templates"] = lines(args["templates"])
    if is_own(args):
        found = own_classes(args["folder"])
        source = found.held_out or found.spec
        names = renamed(sources.open(source).classes, args["names"])
        own = {"label": "label", "names": names, "templates": TEMPLATES, **common}
        return dict(zeroshot={instance(args["folder"]): dict(source=source, **own)})
    if args["names"]:
        raise ValueError("zeroshot: names=FILE is for a folder of your own classes; published sets have theirs")
    sets = args["sets"] or [name for name in SETS if args["folder"] or classes.read(name).tfds]
    return dict(zeroshot={name: dict(set=name, source=source_of(name, "test", args), **common) for name in sets})


# ---- class folders of one's own ----


def is_own(args):
    """Whether `folder` is a folder of one's own classes and not that of published sets."""
    return bool(args["folder"]) and not args["sets"] and "{set}" not in args["folder"]


def own_classes(folder):
    """The `detect.Found` of a folder with a folder for each class, or with train/ and val/ or test/ of such.

    Raises:
      ValueError, FileNotFoundError: it is none.
    """
    found = detect(folder)
    if found.spec["name"] != "image_folder":
        raise ValueError(f"folder={folder} holds {found.kind}; a folder for each class is needed: {folder}/<class>/x.jpg")
    return found


def renamed(classes, file):
    """Names for prompts: those of a JSON file {"folder": "name" or ["name", ...]}, else the folder's own as words."""
    try:
        named = json.loads(pathlib.Path(file).expanduser().read_text(), object_pairs_hook=unique_keys) if file else {}
    except ValueError as error:
        raise ValueError(f"names={file} must hold JSON such as {{\"folder\": \"name\"}}: {error}") from error
    if lost := sorted(set(named) - set(classes)):
        raise ValueError(f"names={file}: {lost[0]!r} is no class's folder; there are {', '.join(classes[:10])}")
    return [named.get(name, prettified(name)) for name in classes]


def instance(path):
    """What the figures of a path are called: the last part of it."""
    return re.sub(r"\W+", "_", pathlib.Path(path.rstrip("/*")).stem).strip("_") or "own"


def lines(file):
    """The lines of a text file that aren't empty."""
    return [line.strip() for line in pathlib.Path(file).expanduser().read_text().splitlines() if line.strip()]


# ---- published sets ----


def source_of(name, part, args):
    """The source spec of a set's part, by the arguments folder and data_dir."""
    if args["folder"]:
        return dict(name="image_folder", path=args["folder"].replace("{set}", name).replace("{part}", part))
    return classes.source(name, part, **({"data_dir": args["data_dir"]} if args["data_dir"] else {}))


def parse(text, /, **defaults):
    """"sets=a,b,weights_from=x" -> {**defaults, "sets": ("a", "b"), "read": "x"}: a word without "=" belongs to the key before it.

    Raises:
      ValueError: an unknown key, or one without a value.
    """
    values, key = {}, None
    for word in filter(None, (text or "").split(",")):
        name, equals, value = word.partition("=")
        if equals and isinstance(defaults.get(key), str):   # a path with a comma and a "=" in it
            equals = "" if pretrain.continues_path(",".join(values[key]), word) else equals
        key = name if equals else key
        if key not in defaults:
            raise ValueError(f"argument {word!r}: write {', '.join(f'{k}=...' for k in defaults)}")
        if equals and not value:
            raise ValueError(f"argument {word!r} has no value: write one, or leave {key} out")
        values.setdefault(key, []).append(value if equals else word)
    return {**defaults, **{k: tuple(v) if isinstance(defaults[k], tuple) else ",".join(v) for k, v in values.items()}}
