"""DSPH: codes near the proxies of their labels, far from all others (Huo et al., "Deep Semantic-aware Proxy Hashing").

    u = tanh(dropout(W f + b)), dropout .2;  proxies P (C, K)
    proxy, of each modality: mean over (row, its label) of 1 - cos(u, P) + mean over (row, another label) of relu(cos - th)
    apart, I-I, T-T and I-T: mean over pairs that share no label, of rows with several, of relu(cos - th), weight .8

th is a published table's, by bits and labels [QinLab-WFU/DSPH, utils/utils.py `HyP`, utils/codetable.xlsx]. As published, the
proxies have an optimizer of their own: configs/dsph_emoji.py.
"""
from typing import NamedTuple

import jax

from mcd_jax import config as config_lib
from mcd_jax.losses import contrastive, hashing
from mcd_jax.models import hashing as heads_lib
from mcd_jax.objectives import codes, pair


class Options(NamedTuple):
    image: str = "image"
    text: str = "text"
    label: str = "label"        # batch key: (B, C) of 0 and 1, or (B,) integers below classes
    classes: int = 0
    bits: int = 32
    dropout: float = 0.2
    threshold: float = -1.0     # th, a cosine; below 0: the published table's
    form: str = "auto"          # of the losses over pairs: "gather" | "ring" | "ring_bf16" | "auto" by size


WEIGHTS = {"proxy": 1.0, "apart": 0.8}


def make(config):
    """The `Objective`; terms: proxy, apart. Head: hash. The proxies are params["proxies"]; the head doesn't read them.

    Raises:
      ValueError: an option out of range, or a threshold that the table as we know it lacks.
    """
    opts = config_lib.options(Options, config.objective)
    contrastive.check_form(opts.form)
    towers = pair.towers_of(config)
    width = codes.check(opts, towers, config)
    if not 0 <= opts.dropout < 1 or opts.threshold >= 1:
        raise ValueError(f"config.objective.dropout={opts.dropout} must lie in [0, 1), threshold={opts.threshold} below 1")
    head = heads_lib.tanh(width, opts.bits)

    def own(key, batch):
        k_head, k_points = jax.random.split(key)
        classes = codes.labels_of(batch, opts).shape[1]
        _threshold(opts, classes)
        points = jax.random.normal(k_points, (classes, opts.bits)) * (2 / classes) ** 0.5   # kaiming_normal_(mode="fan_out")
        return {"hash": codes.each(head.init, k_head), "proxies": points}

    def code(params, name, x):
        return head.apply(params["hash"][name], x)

    def finish(out, params, memory, batch, key, step):
        labels, found = codes.labels_of(batch, opts), {}
        for name, k in zip(codes.MODALITIES, jax.random.split(key)):
            kept = jax.random.bernoulli(k, 1 - opts.dropout, (len(labels), opts.bits))   # of the whole batch, wherever its rows are
            found[name] = head.apply(params["hash"][name], out[name], kept / (1 - opts.dropout))
        return {**found, "labels": labels, "proxies": params["proxies"]}

    def proxy(out):
        th = _threshold(opts, out["labels"].shape[1])
        return sum(hashing.proxies(out[name], out["proxies"], out["labels"], th) for name in codes.MODALITIES)

    def apart(out):
        th = _threshold(opts, out["labels"].shape[1])
        return sum(hashing.apart(out[a], out[b], out["labels"], th, opts.form)
                   for a, b in (("image", "image"), ("text", "text"), ("image", "text")))

    heads, more = codes.heads(towers, code)
    return pair.objective(
        config, towers, pair.Parts(codes.views(opts), codes.features, finish, embed=more),
        needs=(opts.image, opts.text, opts.label),
        init=lambda key, batch: codes.init(towers, own, key, batch),
        terms={"proxy": proxy, "apart": apart},
        metrics=codes.metrics(),
        heads=heads,
    )


def _threshold(opts, classes):
    return opts.threshold if opts.threshold >= 0 else hashing.threshold(opts.bits, classes)
