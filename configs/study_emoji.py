"""MCD for choosing: two of the three training vendors train, the third is searched, and the held-out vendor is not looked at.

mcd-jax train --config=study_emoji:twitter --workdir=runs/study [--config.objective.weights.misalignment=5]

After the colon: the vendor left out (google, twitter, fluent). 300 steps of 256, 24 epochs; about 3 minutes on 2 cores.
"""
from mcd_jax.configs import emoji, mcd_emoji

VENDORS = ("google", "twitter", "fluent")


def get_config(left_out="twitter"):
    if left_out not in VENDORS:
        raise ValueError(f"study_emoji.py:{left_out} leaves out no training vendor: choose from {', '.join(VENDORS)}")
    config = mcd_emoji.get_config()
    config.steps = "300 steps"
    config.data.source.vendors = tuple(v for v in VENDORS if v != left_out)
    validation = config.evals.retrieval.validation
    unseen = dict(validation.to_dict(), source=emoji.source("train+validation+test", vendors=(left_out,)),
                  queries=dict(concept_split="train"))
    severity = dict(config.evals.misalignment.heldout_concepts.to_dict(), source=emoji.source("validation"))
    retrieval = dict(unseen_vendor=unseen, validation=validation, teacher=dict(unseen, weights_from="memory/teacher"))
    with config.unlocked():
        config.evals = dict(misalignment=dict(validation=severity), retrieval=retrieval)
    return config
