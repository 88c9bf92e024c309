"""DCHMT on the embedded data set: the data, embeddings and recipe of hashing_emoji.py.

    mcd-jax train --config=dchmt_emoji:run=runs/clip_emoji,bits=32 --workdir=runs/dchmt_emoji
"""
from mcd_jax.configs.hashing import hashing_emoji


def get_config(arguments=""):
    return hashing_emoji.base(arguments, "dchmt", rate=6e-2)


def sweep(add):
    """16 to 128 bits, three seeds: `mcd-jax sweep --config=dchmt_emoji:run=... --workdir=...`."""
    hashing_emoji.runs(add, {})
