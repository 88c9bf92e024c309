"""A method of four numbers: the training around it is what is tested, and it traces in no time."""
from typing import NamedTuple

import jax.numpy as jnp

from mcd_jax.objectives import objective


class Options(NamedTuple):
    pass


WEIGHTS = {"square": 1.0}


def make(config):
    def embed(params, memory, batch):
        rows = {key: jnp.ones((len(batch[key]), 4)) / 2 for key in ("image", "text") if key in batch}
        return {**rows, **{f"{key}_raw": value for key, value in rows.items()}}
    return objective.Objective(
        needs=("image", "text"), init=lambda key, batch: {"numbers": jnp.ones(4)}, init_memory=objective.nothing,
        forward=lambda params, memory, batch, key, step: {"numbers": params["numbers"], "for_memory": None},
        terms={"square": lambda out: jnp.sum(out["numbers"] ** 2)}, metrics={}, heads={"embed": embed},
        update_memory=objective.unchanged)
