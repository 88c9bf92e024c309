"""What `mcd-jax analyze gap` measures on the embedded data set, with validation concepts to choose every move on:

    mcd-jax analyze gap --workdir=runs/clip_emoji --evals=gap_emoji

The config's own evaluations, and zero-shot classification of the validation concepts by label and by group. Also weights_from=.
"""
from mcd_jax.configs.evals import zeroshot

from mcd_jax.configs import emoji


def get_evals(arguments=""):
    args = zeroshot.parse(arguments, weights_from="params")
    found = emoji.evaluations(args["weights_from"])
    validation = emoji.source("validation")
    labels = dict(found["zeroshot"]["labels_heldout_concepts"], source=validation)
    groups = dict(found["zeroshot"]["groups_heldout_concepts"], source=validation)
    training = dict(found["gap"]["heldout_vendor"], source=emoji.source("train"), n=2000)   # for --pairs=training
    return dict(retrieval=found["retrieval"], gap=dict(found["gap"], training=training),
                zeroshot=dict(labels_validation=labels, groups_validation=groups, **found["zeroshot"]))
