"""AHLR-R (our reconstruction, see methods/hashing/ahlr.py) and CLIP + linear hash on the embedded data set; hashing_emoji.py.

    mcd-jax train --config=ahlr_emoji:run=runs/clip_emoji,bits=32 --workdir=runs/ahlr_emoji
    mcd-jax train --config=ahlr_emoji:run=runs/clip_emoji,variant=baseline --workdir=runs/linear_hash_emoji

variant=both (AHLR-R, the default), mask, auxiliary, baseline: the ablation; baseline is a linear hash layer on the embeddings with
the label-aware contrastive loss. Controls: "gate" is the mask's network without the mask, which leaves no channel out; "pair" is
the baseline without labels, with only a drawing's own caption as positive.
"""
from mcd_jax.configs.hashing import hashing_emoji

from mcd_jax.configs import pretrain

OFF = {"auxiliary": 0.0, "guide": 0.0}
VARIANTS = {"both": {}, "mask": dict(weights=OFF, rate=6e-2), "gate": dict(weights=OFF, keep_share=1.0, rate=6e-2),
            "auxiliary": dict(mask=False), "baseline": dict(mask=False, weights=OFF),
            "pair": dict(mask=False, weights=OFF, positives="pair")}


def get_config(arguments=""):
    words = [word for word in arguments.split(",") if word]
    variant = pretrain.arguments(",".join(w for w in words if w.startswith("variant=")), variant="both")["variant"]
    if variant not in VARIANTS:
        raise ValueError(f"variant={variant} must be one of {', '.join(VARIANTS)}")
    return hashing_emoji.base(",".join(w for w in words if not w.startswith("variant=")), "ahlr", **VARIANTS[variant])


def sweep(add):
    """The ablation, 16 to 128 bits, three seeds: `mcd-jax sweep --config=ahlr_emoji:run=... --workdir=...`."""
    names = {"mask": "objective.mask", "positives": "objective.positives", "keep_share": "objective.keep_share",
             "rate": "optimizer.lr"}
    variants = [{names[key]: value for key, value in changes.items() if key != "weights"}
                | {f"objective.weights.{term}": weight for term, weight in changes.get("weights", {}).items()}
                for changes in VARIANTS.values()]
    hashing_emoji.runs(add, *variants)
