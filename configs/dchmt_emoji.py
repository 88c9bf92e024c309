"""DCHMT on the embedded data set: the data, embeddings and recipe of configs/hashing_emoji.py.

    python -m mcd_jax.train --config=configs/dchmt_emoji.py:run=runs/clip_emoji,bits=32 --workdir=runs/dchmt_emoji
"""
from configs import hashing_emoji


def get_config(arguments=""):
    return hashing_emoji.base(arguments, "dchmt", rate=6e-2)


def sweep(add):
    """16 to 128 bits, three seeds: `python -m mcd_jax.sweep --config=configs/dchmt_emoji.py:run=... --workdir=...`."""
    hashing_emoji.runs(add, {})
