"""Linear probes on your own images, or on the sets of the literature, for any run (ImageNet, which is large, only when named):

    mcd-jax evaluate --workdir=runs/x --evals=probe:folder=/data/my_classes
    mcd-jax evaluate --workdir=runs/x --evals=probe:sets=dtd,pets,data_dir=/data/tfds
    mcd-jax evaluate --workdir=runs/x --evals=probe:sets=aircraft,folder=/data/{set}/{part}

Arguments as in zeroshot.py. Classes of your own: where the folder holds train/ and val/ or test/, the probe is fitted on the
first and measured on the other; else it is measured on a fifth of the images, by the hash of their names. "{part}" of folder
becomes train and test. Also features (pooled, image_raw, image, pixels) and solver (lbfgs, ridge). Logistic regression on what the
projection reads, with C chosen on the set's validation part, or on a tenth of its training images, as in CLIP's paper.
"""
from mcd_jax.configs.evals import zeroshot

from mcd_jax.data.sources import hold_out
from mcd_jax.evals import classes

SHARE = 0.2   # of a folder without parts


def get_evals(arguments=""):
    args = zeroshot.parse(arguments, sets=(), data_dir="", folder="", weights_from="params", n="", features="pooled",
                          solver="lbfgs")
    common = {key: args[key] for key in ("weights_from", "features", "solver")} | dict(n=int(args["n"]) if args["n"] else None)
    if zeroshot.is_own(args) and "{part}" not in args["folder"]:
        found = zeroshot.own_classes(args["folder"])
        train, test = found.spec, found.held_out
        if not test:
            train, test = (dict(name="hold_out", source=found.spec, part=part, share=SHARE) for part in hold_out.PARTS)
        return dict(probe={zeroshot.instance(args["folder"]): dict(train=train, source=test, label="class_name", **common)})
    sets = args["sets"] or [name for name in zeroshot.SETS if name != "imagenet" and (args["folder"] or classes.read(name).tfds)]

    def parts(name):
        held_out = not args["folder"] and "validation" in classes.read(name).tfds
        return dict(train=zeroshot.source_of(name, "train", args), source=zeroshot.source_of(name, "test", args),
                    **(dict(validation=zeroshot.source_of(name, "validation", args)) if held_out else {}))
    return dict(probe={name: dict(set=name, **parts(name), **common) for name in sets})
