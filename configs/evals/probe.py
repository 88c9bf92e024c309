"""Linear probes on the sets of the literature, for any job (ImageNet, which is large, only when named):

    python -m mcd_jax.evaluate --workdir=runs/x --evals=configs/evals/probe.py:sets=dtd,pets,data_dir=/data/tfds
    python -m mcd_jax.evaluate --workdir=runs/x --evals=configs/evals/probe.py:sets=aircraft,folder=/data/{set}/{part}

Arguments as in zeroshot.py; "{part}" of folder becomes train and test. Also features (image_raw, image, pixels) and solver (lbfgs,
ridge). Logistic regression with C chosen on the set's validation part, or on a tenth of its training images, as in CLIP's paper.
"""
from configs.evals import zeroshot
from mcd_jax.evals import classes


def get_evals(arguments=""):
    args = zeroshot.parse(arguments, sets=(), data_dir="", folder="", read="params", n="", features="image_raw", solver="lbfgs")
    sets = args["sets"] or [name for name in zeroshot.SETS if name != "imagenet" and (args["folder"] or classes.read(name).tfds)]
    common = {key: args[key] for key in ("read", "features", "solver")} | dict(n=int(args["n"]) if args["n"] else None)

    def parts(name):
        held_out = not args["folder"] and "validation" in classes.read(name).tfds
        return dict(train=zeroshot.source(name, "train", args), source=zeroshot.source(name, "test", args),
                    **(dict(validation=zeroshot.source(name, "validation", args)) if held_out else {}))
    return dict(probe={name: dict(set=name, **parts(name), **common) for name in sets})
