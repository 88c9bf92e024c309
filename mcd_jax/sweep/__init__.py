"""Sweeps: `mcd-jax sweep --config=mcd_emoji --workdir=runs/weights [--parallel=2] [--config.key=value ...]`.

A config file that defines `sweep(add)` can be swept: each `add({"optimizer.lr": 1e-3, "seed": 0})` is one run. What is here helps
to write it, and imports nothing, since every training run of the file imports it too:

    def sweep(add):
        for run in grid({"optimizer.lr": [1e-3, 3e-3], "seed": range(3)}):
            add(run)
        for run in sample(10, seed=0, space={"optimizer.lr": log_uniform(1e-4, 1e-2), "batch_size": [128, 256]}):
            add(run)

`plan` turns the file into runs, `runs` runs them, `tables` writes `sweep.csv` and `sweep.html`, `__main__` is the command.
"""
from collections.abc import Iterable, Mapping
import itertools
import math
import random


def grid(space):
    """Every combination of the values in `space`, the last key changing fastest.

    Args:
      space: override key -> values (list, tuple, range, ...); a string, a mapping or a number is a single value.

    Returns:
      An iterator of {key: value}.

    Raises:
      ValueError: a key without values.
    """
    values = [_values(key, given) for key, given in space.items()]
    return (dict(zip(space, combination)) for combination in itertools.product(*values))


def sample(n, seed, space):
    """`n` random points of `space`, each drawn by (seed, its number, key) alone: the first 5 of 10 are the 5 of 5.

    Args:
      n: how many. seed: any number.
      space: override key -> function of a random.Random (such as `log_uniform`), or what `grid` takes, to choose from.

    Returns:
      An iterator of {key: value}.

    Raises:
      ValueError: a key without values.
    """
    space = {key: given if callable(given) else _choice(_values(key, given)) for key, given in space.items()}
    return ({key: draw(random.Random(f"{seed}/{i}/{key}")) for key, draw in space.items()} for i in range(n))


def uniform(low, high):
    """A draw for `sample`: evenly between `low` and `high`, to three digits, so that names stay short.

    Raises:
      ValueError: the bounds are not in order.
    """
    if not low <= high:
        raise ValueError(f"uniform({low}, {high}): the bounds must be in order")
    return lambda rng: _digits(rng.uniform(low, high), low, high)


def log_uniform(low, high):
    """A draw for `sample`: evenly between `low` and `high` in the logarithm, to three digits.

    Raises:
      ValueError: the bounds are not positive or not in order.
    """
    if not 0 < low <= high:
        raise ValueError(f"log_uniform({low}, {high}): the bounds must be positive and in order")
    return lambda rng: _digits(math.exp(rng.uniform(math.log(low), math.log(high))), low, high)


def _digits(value, low, high):
    return float(min(max(float(f"{value:.3g}"), low), high))


def _choice(values):
    return lambda rng: rng.choice(values)


def _values(key, given):
    values = list(given) if isinstance(given, Iterable) and not isinstance(given, (str, bytes, Mapping)) else [given]
    if not values:
        raise ValueError(f"{key!r} has no values to sweep over")
    return values
