"""DSPH on the embedded data set: the data, embeddings and recipe of configs/hashing_emoji.py.

    python -m mcd_jax.train --config=configs/dsph_emoji.py:run=runs/clip_emoji,bits=32 --workdir=runs/dsph_emoji

The proxies have SGD with momentum, as published, at a constant rate of .02. The published code table that we know starts at 17
labels; for the 10 groups the threshold is 0, as in all of its rows with at least as many bits as labels. A row has one label here,
so the term `apart`, of rows with several, is 0.
"""
from configs import hashing_emoji


def get_config(arguments=""):
    config = hashing_emoji.base(arguments, "dsph", rate=2e-1)
    if config.objective.classes <= 16:
        config.objective.threshold = 0.0
    proxies = "proxies"
    config.optimizer.optimizers = ((proxies, dict(name="sgd", momentum=0.9, l2=5e-4)), *config.optimizer.optimizers)
    config.optimizer.schedule = ((proxies, dict(name="constant")), *config.optimizer.schedule)
    config.optimizer.lr_mults = ((proxies, 0.02 / config.optimizer.lr), (".*", 1.0))
    config.optimizer.decay_mask = ((proxies, False), *config.optimizer.decay_mask)
    return config


def sweep(add):
    """16 to 128 bits, three seeds: `python -m mcd_jax.sweep --config=configs/dsph_emoji.py:run=... --workdir=...`."""
    hashing_emoji.runs(add, {})
