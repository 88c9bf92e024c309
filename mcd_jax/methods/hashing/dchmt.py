"""DCHMT: every bit is chosen by a softmax of two, and alike rows coincide (Tu et al., ACM MM 2022).

    z = relu(W f + b), D -> 128;  bit k: softmax(W_k z + b_k) over "off" and "on"
    L(A, B) = mean over all pairs of (S D)^2 + ((1 - S) (c - min(D, c)))^2,  loss: L(I, T) + L(I, I) + L(T, T)

D is the Euclidean distance of the 2 K probabilities, S whether two rows share a label, c = sqrt(2 K theta). This is the published
"select" layer with similarity function euclidean and loss type l2 [kalenforn/DCHMT, model and train/hash_train.py], on any towers.
"""
from collections.abc import Callable, Mapping
from typing import NamedTuple

from ml_collections import ConfigDict

from mcd_jax.methods.hashing import code_heads as code_heads_lib
from mcd_jax.methods.hashing import code_losses, codes
from mcd_jax.objectives import two_tower
from mcd_jax.objectives.objective import Objective


class Options(NamedTuple):
    image: str = "image"
    text: str = "text"
    label: str = "label"    # batch key: (B, C) of 0 and 1, or (B,) integers below classes
    classes: int = 0        # different labels; must be given
    bits: int = 32          # of a code
    theta: float = 0.5      # argparse's default; the command of the README has 0.75
    implementation: str = "auto"      # of the losses over pairs: "gather" | "ring" | "ring_bf16" | "auto" by size


WEIGHTS = {"inter": 1.0, "intra_image": 1.0, "intra_text": 1.0}


def make(config: ConfigDict, extra_terms: Mapping[str, Callable] = {}) -> Objective:
    """The `Objective`; terms: inter, intra_image, intra_text. Head: hash, "on" minus "off" of every bit, in (-1, 1).

    Where both are equal the published argmax says off, and a sign of ours on.

    Raises:
      ValueError: an option out of range.
    """
    opts, towers = two_tower.prepare(config, Options)
    width = codes.check(opts, towers, config)
    if not 0 < opts.theta <= 1:
        raise ValueError(f"config.objective.theta={opts.theta} must lie in (0, 1]: a share of the largest squared distance, 2 bits")
    select = code_heads_lib.select(width, opts.bits)

    def chosen(params, name, x):
        return select.apply(params["hash"][name], x)

    def code(params, name, x):
        both = chosen(params, name, x)
        return both[..., 1] - both[..., 0]

    def on_batch(out, params, memory, batch, key, step):
        coded = {name: chosen(params, name, out[name]).reshape(len(out[name]), -1) for name in codes.MODALITIES}
        return {**coded, "labels": codes.labels_of(batch, opts)}

    def between(a, b):
        return lambda out: code_losses.distances(out[a], out[b], out["labels"], opts.theta, opts.implementation)

    heads, more = codes.heads(towers, code)
    return two_tower.objective(
        config, towers, two_tower.ForwardPass(codes.views(opts), codes.features, on_batch, embed=more),
        needs=(opts.image, opts.text, opts.label),
        init=lambda key, batch: codes.init(towers, lambda k, _: {"hash": codes.each(select.init, k)}, key, batch),
        terms={"inter": between("image", "text"), "intra_image": between("image", "image"), "intra_text": between("text", "text"),
               **extra_terms},
        metrics=codes.metrics(lambda out, name: out[name][:, 1::2] - out[name][:, ::2]),
        heads=heads,
    )
