"""DSPH on the embedded data set: the data, embeddings and recipe of hashing_emoji.py.

    mcd-jax train --config=dsph_emoji:run=runs/clip_emoji,bits=32 --workdir=runs/dsph_emoji

The proxies have SGD with momentum, as published, at a constant rate of .02. The threshold is the published code table's, for the 10
groups 0 with 16 and 32 bits, -.03125 with 64, -.0625 with 128 (the published tables here were taken with 0 everywhere:
--config.objective.threshold=0). A row has one label here, so the term `apart`, of rows with several, is 0.
"""
from mcd_jax.configs.hashing import hashing_emoji


def get_config(arguments=""):
    config = hashing_emoji.base(arguments, "dsph", rate=2e-1)
    proxies = "proxies"
    config.optimizer.optimizers = ((proxies, dict(name="sgd", momentum=0.9, l2=5e-4)), *config.optimizer.optimizers)
    config.optimizer.schedule = ((proxies, dict(name="constant")), *config.optimizer.schedule)
    config.optimizer.lr_mults = ((proxies, 0.02 / config.optimizer.lr), (".*", 1.0))
    config.optimizer.decay_mask = ((proxies, False), *config.optimizer.decay_mask)
    return config


def sweep(add):
    """16 to 128 bits, three seeds: `mcd-jax sweep --config=dsph_emoji:run=... --workdir=...`."""
    hashing_emoji.runs(add, {})
