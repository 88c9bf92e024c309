"""DSPH: codes near the proxies of their labels, far from all others (Huo et al., "Deep Semantic-aware Proxy Hashing").

    u = tanh(dropout(W f + b)), dropout .2, W and b as torch.nn.Linear starts them;  proxies P (C, K)
    proxy, of each modality: mean over (row, its label) of 1 - cos(u, P) + mean over (row, another label) of relu(cos - th)
    apart, I-I, T-T and I-T: mean over pairs that share no label, of rows with several, of relu(cos - th), weight .8

th is a published table's, by bits and labels [QinLab-WFU/DSPH, utils/utils.py `HyP`, utils/codetable.xlsx]. As published, the
proxies have an optimizer of their own: configs/hashing/dsph_emoji.py.
"""
from collections.abc import Callable, Mapping
from typing import NamedTuple

import jax
from ml_collections import ConfigDict

from mcd_jax.methods.hashing import code_heads as code_heads_lib
from mcd_jax.methods.hashing import code_losses, codes
from mcd_jax.objectives import two_tower
from mcd_jax.objectives.objective import Objective


class Options(NamedTuple):
    image: str = "image"
    text: str = "text"
    label: str = "label"        # batch key: (B, C) of 0 and 1, or (B,) integers below classes
    classes: int = 0            # different labels; must be given
    bits: int = 32              # of a code
    dropout: float = 0.2        # of the heads, in training
    threshold: float = -1.0     # th, a cosine above -1; -1: the published table's, for these bits and labels
    implementation: str = "auto"   # of the losses over pairs: "gather" | "ring" | "ring_bf16" | "auto" by size


WEIGHTS = {"proxy": 1.0, "apart": 0.8}


def make(config: ConfigDict, extra_terms: Mapping[str, Callable] = {}) -> Objective:
    """The `Objective`; terms: proxy, apart. Head: hash. The proxies are params["proxies"]; the head doesn't read them.

    Raises:
      ValueError: an option out of range, or a threshold that the table as we know it lacks.
    """
    opts, towers = two_tower.prepare(config, Options)
    width = codes.check(opts, towers, config)
    if not 0 <= opts.dropout < 1 or not -1 <= opts.threshold < 1:
        raise ValueError(f"config.objective.dropout={opts.dropout} must lie in [0, 1), threshold={opts.threshold} in [-1, 1)")
    head = code_heads_lib.tanh(width, opts.bits, start="torch")

    def init_heads(key, batch):
        k_head, k_points = jax.random.split(key)
        classes = codes.labels_of(batch, opts).shape[1]
        _threshold(opts, classes)
        points = jax.random.normal(k_points, (classes, opts.bits)) * (2 / classes) ** 0.5   # kaiming_normal_(mode="fan_out")
        return {"hash": codes.each(head.init, k_head), "proxies": points}

    def code(params, name, x):
        return head.apply(params["hash"][name], x)

    def on_batch(out, params, memory, batch, key, step):
        labels, coded = codes.labels_of(batch, opts), {}
        for name, k in zip(codes.MODALITIES, jax.random.split(key)):
            kept = jax.random.bernoulli(k, 1 - opts.dropout, (len(labels), opts.bits))   # of the whole batch, wherever its rows are
            coded[name] = head.apply(params["hash"][name], out[name], kept / (1 - opts.dropout))
        return {**coded, "labels": labels, "proxies": params["proxies"]}

    def proxy(out):
        th = _threshold(opts, out["labels"].shape[1])
        return sum(code_losses.proxies(out[name], out["proxies"], out["labels"], th) for name in codes.MODALITIES)

    def apart(out):
        th = _threshold(opts, out["labels"].shape[1])
        return sum(code_losses.apart(out[a], out[b], out["labels"], th, opts.implementation)
                   for a, b in (("image", "image"), ("text", "text"), ("image", "text")))

    heads, more = codes.heads(towers, code)
    return two_tower.objective(
        config, towers, two_tower.ForwardPass(codes.views(opts), codes.features, on_batch, embed=more),
        needs=(opts.image, opts.text, opts.label),
        init=lambda key, batch: codes.init(towers, init_heads, key, batch),
        terms={"proxy": proxy, "apart": apart, **extra_terms},
        metrics=codes.metrics(),
        heads=heads,
    )


def _threshold(opts, classes):
    return opts.threshold if opts.threshold > -1 else code_losses.threshold(opts.bits, classes)
