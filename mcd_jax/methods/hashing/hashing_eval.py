"""Cross-modal retrieval by hash codes: images ask for texts and texts for images, ranked by Hamming distance.

An instance of `config.evals.hashing` says which rows ask and which can be found:

  source    source spec of the rows that can be found (the retrieval set)
  queries   source spec of those that ask; they take no part in what is found
  views     pipes of "image" and "text"
  labels    {"group": "column"}: under each name, the figures with that column's labels: integers, or vectors of 0 and 1. An item is
            relevant to a query that shares a label with it. Default: dict(label="label")
  codes     "hash" (default): image_hash and text_hash of the head "embed", of an objective that makes codes; or a number of bits:
            signs of a random rotation of the unit embeddings, minus the mean of their modality in the retrieval set (no training)
  ks        AP@k and P@k for these k (50, 1000)
  radii     Hamming radii of precision and recall: (0, 1, 2), or "all" for the whole curve
  seed      of the rotation (0)

Figures, as in group/image_to_text/mAP:

  mAP       mean over all queries of the average precision over the whole ranking. Codes of K bits have K + 1 distances, so ties
            decide a lot: this is the expected value over all orders of tied items, exact (`expected_ap`). A query without any
            relevant item counts 0 and stays in the mean, as in the code of DCMH, MITH and DSPH
  AP@k      the standard one: over the first k ranks, divided by the smaller of k and the number of relevant items. NOT what the
            published files call mAP@k, which cuts the relevant items and not the ranks (`ranked_ap` with cut="relevant")
  P@k       precision among the first k, expected like the mAP
  P@r<=2    precision of all pairs within a radius together, R@r<=2 their recall: relevant ones found over all relevant ones
  chance_mAP  what codes that are all the same get

Also queries, candidates, bits_on (share of bits that are on, over both sides) and, given when there are any, bad.
"""
from typing import NamedTuple

import numpy as np

from mcd_jax.config.keys import NEEDED, Key
from mcd_jax.evals import hamming, rows

KEYS = {
    "source": Key("source", NEEDED, "rows that can be found, the retrieval set"),
    "queries": Key("source", NEEDED, "rows that ask; they take no part in what is found"),
    "views": Key("map of str", {}, "pipes of image and text; left out: as in training, without randomness"),
    "labels": Key("dict | None", None, "{a name: a column}: figures under each name, with that column's labels; left out: "
                  "dict(label=\"label\")"),
    "codes": Key("str | int | None", "hash", "hash: of an objective that makes codes; or so many bits: signs of a random "
                 "rotation of embeddings"),
    "ks": Key("tuple", (50, 1000), "the k of AP@k and P@k"),
    "radii": Key("tuple | str", (0, 1, 2), "Hamming radii of precision and recall, or \"all\" for the whole curve"),
    "seed": Key("int", 0, "of the rotation"),
}
DIRECTIONS = (("image_to_text", "image", "text"), ("text_to_image", "text", "image"))
_PAIRS = 2 ** 24   # pairs of a query and an item that are held at a time


class Counts(NamedTuple):
    """Of each query, by Hamming distance 0 ... K: items and relevant items at that distance, int64 (Q, K + 1)."""
    items: np.ndarray
    relevant: np.ndarray


def relevance(query_labels, item_labels):
    """bool (Q, n): whether they share a label; labels (Q,) and (n,) integers, or (Q, C) and (n, C) of 0 and 1."""
    if query_labels.ndim == 1:
        return query_labels[:, None] == item_labels[None, :]
    return (query_labels > 0).astype(np.float32) @ (item_labels > 0).astype(np.float32).T > 0.5


def count(queries, items, bits, query_labels, item_labels):
    """The `Counts` of packed codes (Q, W) against (n, W), with labels as `relevance` takes them."""
    found = Counts(*(np.zeros((len(queries), bits + 1), np.int64) for _ in range(2)))
    step = max(1, _PAIRS // max(1, len(items)))
    for start in range(0, len(queries), step):
        some = slice(start, start + step)
        far = hamming.distances(queries[some], items).astype(np.int64)
        right = relevance(query_labels[some], item_labels)
        far += (np.arange(len(far)) * (bits + 1))[:, None]
        size = len(far) * (bits + 1)
        found.items[some] = np.bincount(far.ravel(), minlength=size).reshape(-1, bits + 1)
        found.relevant[some] = np.bincount(far[right], minlength=size).reshape(-1, bits + 1)
    return found


def expected_ap(counts, k=None):
    """Average precision of each query, expected over all orders of items at the same distance, float64 (Q,).

    Args:
      counts: a `Counts`.
      k: ranks that count; None: all of them.

    With N items and R relevant ones nearer than a group of n items of which r are relevant, the place t of the group (1 ... n)
    holds a relevant one with probability r / n, and then 1 + R + (t - 1)(r - 1) / (n - 1) of the N + t first are relevant, in
    expectation (McSherry and Najork, ECIR 2008). The sum over t has a closed form in harmonic numbers.
    """
    n, r = counts.items.astype(np.float64), counts.relevant.astype(np.float64)
    before, right = np.cumsum(n, axis=1) - n, np.cumsum(r, axis=1) - r
    size, total = int(counts.items.sum(axis=1).max(initial=0)), r.sum(axis=1)
    harmonic = np.concatenate([[0.0], np.cumsum(1.0 / np.arange(1, size + 1))])
    places = n if k is None else np.clip(k - before, 0, n)
    start = before.astype(np.int64)
    ones = harmonic[start + places.astype(np.int64)] - harmonic[start]      # sum of 1 / (N + t)
    steps = places - (before + 1) * ones                                   # sum of (t - 1) / (N + t)
    slope = (r - 1) / np.maximum(n - 1, 1)
    gained = np.sum(r / np.maximum(n, 1) * ((1 + right) * ones + slope * steps), axis=1)
    return gained / np.maximum(total if k is None else np.minimum(total, k), 1)


def expected_precision(counts, k):
    """Precision among the first k of each query, expected over all orders of items at the same distance, float64 (Q,)."""
    n, r = counts.items.astype(np.float64), counts.relevant.astype(np.float64)
    places = np.clip(k - (np.cumsum(n, axis=1) - n), 0, n)
    return np.sum(r / np.maximum(n, 1) * places, axis=1) / np.maximum(np.minimum(k, n.sum(axis=1)), 1)


def radius(counts):
    """(precision, recall) of all pairs within Hamming radius 0 ... K together, float64 (K + 1,) each; 0 where nothing is found."""
    items, right = (np.cumsum(c.sum(axis=0)) for c in counts)
    return right / np.maximum(items, 1), right / max(1, right[-1])


def ranked_ap(far, relevant, k=None, cut="rank"):
    """Average precision of each query for one order of the items: by distance, tied ones as they stand. float64 (Q,).

    Args:
      far: (Q, n) distances. relevant: (Q, n) bool.
      k: None, or where to cut: cut="rank": the first k ranks count; "relevant": the first k relevant items do, wherever they rank,
        which is what the published files (kalenforn/DCHMT, utils/calc_utils.py, `calc_map_k_matrix`) compute as mAP@k.

    For an order of one's own, permute the columns of both first. A query without relevant items gets 0.
    """
    if cut not in ("rank", "relevant"):
        raise ValueError(f"cut={cut!r} must be 'rank' or 'relevant'")
    found = np.zeros(len(far))
    for q, (row, right) in enumerate(zip(far, relevant)):
        ranks = 1 + np.flatnonzero(right[np.argsort(row, kind="stable")])
        total = len(ranks) if k is None else min(k, len(ranks))
        ranks = ranks[ranks <= k] if k is not None and cut == "rank" else ranks[:total]
        found[q] = np.sum(np.arange(1, len(ranks) + 1) / ranks) / max(1, total)
    return found


def rotated(x, reference, bits, seed=0):
    """Codes by chance, float64 (n, bits): projections of x (n, D) minus the mean of `reference` (m, D), rows of the same modality.

    The directions are random and the same for every call with this seed, orthogonal in blocks of D.
    """
    rng, dim = np.random.default_rng(seed), x.shape[1]
    blocks = [np.linalg.qr(rng.normal(size=(dim, dim)))[0] for _ in range(-(-bits // dim))]
    return (x - reference.mean(axis=0, keepdims=True)) @ np.concatenate(blocks, axis=1)[:, :bits]


def figures(counts, ks, radii):
    """Flat figures of one direction."""
    right = counts.relevant.sum(axis=1)
    found = {"mAP": float(np.mean(expected_ap(counts)))}
    for k in ks:
        found |= {f"AP@{k}": float(np.mean(expected_ap(counts, k))), f"P@{k}": float(np.mean(expected_precision(counts, k)))}
    precision, recall = radius(counts)
    for r in range(len(precision)) if radii == "all" else radii:
        if r < len(precision):
            found |= {f"P@r<={r}": float(precision[r]), f"R@r<={r}": float(recall[r])}
    same = Counts(counts.items.sum(axis=1, keepdims=True), counts.relevant.sum(axis=1, keepdims=True))
    return {**found, "chance_mAP": float(np.mean(expected_ap(same))), "queries": float(len(right)),
            "candidates": float(counts.items[0].sum()) if len(right) else 0.0}


def make(config, name):
    """fn(embed, state) -> {"group/image_to_text/mAP": ..., ...}; `config`: see the module.

    Raises:
      ValueError: a missing column, view or key, or a value out of range.
    """
    instance = f"hashing.{name}"
    labels = dict(config.get("labels") or {"label": "label"})
    sources = {side: rows.open_source(config[side], labels.values(), instance) for side in ("queries", "source")}
    views = {key: rows.pick(config["views"], [key], instance) for key in ("image", "text")}
    kind, ks, radii = config.get("codes") or "hash", tuple(config.get("ks", (50, 1000))), config.get("radii", (0, 1, 2))
    if kind != "hash" and (isinstance(kind, (bool, str)) or kind < 1):
        raise ValueError(f"config.evals.{instance}.codes={kind!r} must be 'hash' or a number of bits")
    if any(isinstance(k, bool) or not isinstance(k, int) or k < 1 for k in ks) or (isinstance(radii, str) and radii != "all"):
        raise ValueError(f"config.evals.{instance}: ks={ks} must be numbers of at least 1, and radii={radii!r} numbers or 'all'")
    size, seed = config.get("batch_size", 256), config.get("seed", 0)

    def collect(embed, state, side):
        """modality -> (codes (n, K), source rows (n,)), and the number of rows that can't be used."""
        found, bad = {}, 0
        for key, view in views.items():
            out, good = rows.encode(embed, state, sources[side], view, [key], size)
            want = f"{key}_hash" if kind == "hash" else key
            if want not in out:
                raise ValueError(f"config.evals.{instance}: this run's embeddings have no {want!r} but {', '.join(out)}: its "
                                 "objective makes no codes; codes=64 takes signs of a random rotation of any embeddings")
            found[key], bad = (out[want][good], np.flatnonzero(good)), bad + int(np.sum(~good))
        return found, bad

    def evaluate(embed, state):
        (asking, bad), (stored, more) = (collect(embed, state, side) for side in ("queries", "source"))
        tables = {side: rows.columns(sources[side], labels.values()) for side in sources}
        result = {}
        for direction, one, other in DIRECTIONS:
            (query, query_rows), (item, item_rows) = asking[one], stored[other]
            if kind != "hash":
                query, item = rotated(query, stored[one][0], kind, seed), rotated(item, item, kind, seed)
            bits, packed = query.shape[1], (hamming.pack(query), hamming.pack(item))
            for label, column in labels.items():
                wanted = (tables[side][column][at] for side, at in (("queries", query_rows), ("source", item_rows)))
                found = figures(count(*packed, bits, *wanted), ks, radii)
                found["bits_on"] = float(np.mean(np.concatenate([query, item]) >= 0))
                result.update({f"{label}/{direction}/{figure}": value for figure, value in found.items()})
        return {**result, "bad": float(bad + more)} if bad + more else result

    return evaluate

