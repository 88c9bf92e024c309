"""CLIP on the embedded data set at a fixed temperature: what the temperature alone does to the modality gap.

mcd-jax train --config=temperature_emoji:20 --workdir=runs/t20     (after the colon: 1 / temperature)
mcd-jax sweep --config=temperature_emoji --workdir=runs/temperature              (all six)
mcd-jax analyze gap --workdir=runs/t20 [--workdir=...]                        (a table with a line for each)

The optimizer freezes the temperature: left to learn, it moves away from where it started. Fine-tuning takes the temperature from
the run that it starts from, so set it there first:

mcd-jax analyze amend --workdir=runs/clip_emoji --trained --scale=20 --out=runs/start20
mcd-jax train --config=temperature_emoji:20 --workdir=runs/tuned20 --config.init_from=runs/start20
"""
import math
import re

from mcd_jax.configs import clip_emoji
from mcd_jax.sweep import grid

SCALES = (100, 50, 30, 20, 10, 1)


def get_config(scale="100"):
    config = clip_emoji.get_config()
    if not re.fullmatch(r"\d+(\.\d+)?", scale) or not float(scale):
        raise ValueError(f"temperature_emoji:{scale}: after the colon stands 1 / temperature, a number above 0, such as 20")
    config.model.logit_scale = math.log(float(scale))
    config.optimizer.schedule = (("logit_scale", None), *config.optimizer.schedule)
    return config


def sweep(add):
    """The six temperatures of "Mind the Gap", section 3.2, from scratch: one run each."""
    for run in grid({"model.logit_scale": [round(math.log(scale), 4) for scale in SCALES]}):
        add(run)
