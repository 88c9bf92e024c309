"""ALBEF fine-tuned for retrieval on the embedded data set: all drawings of one concept match each other.

mcd-jax train --config=albef_retrieval_emoji:run=runs/albef_emoji --workdir=runs/albef_retrieval_emoji

Starts from a run of `albef_emoji.py` (`image=resnet` where that had one; an empty `run` starts from scratch). The concept
stands for the image id of the published fine-tuning: rows and keys of the queue with one concept are positives alike and no
negatives, so the queue may be long. No masked words, and the temperature is not bound, as there. Rate and queue are chosen for this
data.
"""
from mcd_jax.configs.albef import albef_emoji

from mcd_jax.configs import pretrain


def get_config(arguments=""):
    args = pretrain.arguments(arguments, run="runs/albef_emoji", image="vit", steps="300 steps", lr=1e-4)
    config = albef_emoji.get_config(args["image"])
    config.init_from, config.steps = args["run"], args["steps"]
    config.data.views.concept = "column('concept_id')"
    config.objective.update(dict(ids="concept", queue=16 * config.batch_size, temperature_range=()))
    config.objective.weights.update(dict(mlm=0.0, mlm_distill=0.0))
    config.optimizer.lr, config.optimizer.bounds = args["lr"], ()
    return config
