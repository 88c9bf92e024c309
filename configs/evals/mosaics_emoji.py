"""Zero-shot grounding and detection on mosaics of held-out drawings, for any run on the embedded data set:

    mcd-jax evaluate --workdir=runs/loupe_emoji --evals=mosaics_emoji
    mcd-jax evaluate --workdir=runs/clip_emoji --evals=mosaics_emoji:use=dense

"vendor" shows training concepts drawn by the vendor that nobody saw, "concepts" the held-out concepts. Regions come from the
method's own head where it has one; use=dense takes heat maps of token similarities from any two towers; use=heat those of a method
that reads image and name together (layer=1 the first of them; there is no detection then). With heat maps grounding also chooses
among the drawings, which a guess does rightly in 1 of side * side. side=3 makes mosaics of nine. Images are shown at `size` px, by
default those of training; size=96 shows the drawings as large as in training, to towers that take any size. Also weights_from= and
images=.
"""
from mcd_jax.configs import emoji, pretrain

SPLITS = {"vendor": "openmoji_train", "concepts": "test"}


def get_evals(arguments=""):
    args = pretrain.arguments(arguments, use="auto", side=2, size=emoji.SIZE, images=500, weights_from="params",
                              layer=0)
    text = emoji.LABEL.format(tokenizer="emoji")
    views = dict(image=f"decode|resize({args['size']})", text=text)
    found = {"grounding": {}, "detection": {}}
    for name, split in SPLITS.items():
        source = dict(name="mosaic", source=emoji.source(split), label="concept_id", side=args["side"], size=4 * emoji.SIZE,
                      examples=args["images"])
        common = dict(source=source, use=args["use"], weights_from=args["weights_from"])
        maps = dict(layer=args["layer"]) if args["use"] == "heat" else {}
        found["grounding"][name] = dict(common, views=views, **maps, **(dict(proposals="boxes") if args["use"] != "auto" else {}))
        if args["use"] == "heat":
            continue
        found["detection"][name] = dict(common, views=views, names=emoji.source(split), label="concept_id")
    return found
