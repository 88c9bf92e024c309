"""What `python -m mcd_jax.analyze gap` measures on the embedded data set, with validation concepts to choose every move on:

    python -m mcd_jax.analyze gap --workdir=runs/clip_emoji --evals=configs/evals/gap_emoji.py

The config's own evaluations, and zero-shot classification of the validation concepts by label and by group. Also read=.
"""
from configs import emoji
from configs.evals import zeroshot


def get_evals(arguments=""):
    args = zeroshot.parse(arguments, read="params")
    found = emoji.evaluations(args["read"])
    validation = emoji.source("validation")
    labels = dict(found["zeroshot"]["labels_heldout_concepts"], source=validation)
    groups = dict(found["zeroshot"]["groups_heldout_concepts"], source=validation)
    training = dict(found["gap"]["heldout_vendor"], source=emoji.source("train"), n=2000)   # for --pairs=training
    return dict(retrieval=found["retrieval"], gap=dict(found["gap"], training=training),
                zeroshot=dict(labels_validation=labels, groups_validation=groups, **found["zeroshot"]))
