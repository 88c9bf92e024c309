"""Image-text retrieval, both ways: recall at k, mean reciprocal rank, and what chance would give.

What an instance may say is KEYS.

A query is answered at k when any candidate that matches it is among the k nearest: every caption asks for its image, and an image
is answered by any of its captions, as in the published figures for COCO and Flickr30k (clip_benchmark's rule: the share of queries
whose recall among the k highest scores is above 0). Nearness is the cosine, or token by token (`similarity`). Candidates that tie
with the best match count as nearer, so a collapsed network scores 0, not 1. Rows that can't be used (a corrupt image) neither ask
nor answer; "bad" is their number, given when there are any.
"""
import itertools
import math
from typing import NamedTuple

import numpy as np

from mcd_jax.config.keys import NEEDED, Key
from mcd_jax.evals import rows
from mcd_jax.evals import similarity as similarity_lib

KEYS = {
    "source": Key("source", NEEDED, "its rows are the image candidates; the first row of each value of `match` gives the text "
                  "candidates"),
    "views": Key("map of str", {}, "pipes of image and text; left out: as in training, without randomness"),
    "texts": Key("str | int", "first", "how many of that row's captions: \"first\", \"all\", or so many, the first of them"),
    "match": Key("str | None", None, "integer column that says which images and texts belong together; left out: row i matches "
                 "row i"),
    "queries": Key("dict | None", None, "{column: a value or several}: only these rows ask, every row stays a candidate"),
    "without": Key("dict | None", None, "{a name: a column}: the same figures once more under that name, without the rows where "
                   "the column is true"),
    "ks": Key("tuple", (1, 5, 10), "the k of R@k"),
    "similarity": similarity_lib.KEY,
}


def ranks(queries, candidates, query_ids, candidate_ids, chunk=1024):
    """Rank of the nearest matching candidate for each query, 1 = first; ties count against it.

    Args:
      queries: (Q, D) float32 unit embeddings; candidates: (N, D). Or `similarity.Tokens` of both.
      query_ids: (Q,) ids; candidate_ids: (N,) ids. A candidate matches a query when the ids are equal.
      chunk: queries per block; memory is chunk * N floats.

    Returns:
      (Q,) int64 ranks.

    Raises:
      ValueError: a query has no matching candidate.
    """
    query_ids, candidate_ids = np.asarray(query_ids), np.asarray(candidate_ids)
    lost = ~np.isin(query_ids, candidate_ids)
    if lost.any():
        raise ValueError(f"{int(lost.sum())} of {len(query_ids)} queries match no candidate, such as id {query_ids[lost][0]}")
    found = []
    for start in range(0, len(queries), chunk):
        scores = similarity_lib.scores(queries[start:start + chunk], candidates)
        match = query_ids[start:start + chunk, None] == candidate_ids[None, :]
        best = np.max(np.where(match, scores, -np.inf), axis=1, keepdims=True)
        nearer = ~(scores < best) & ~match  # not "scores >= best": an embedding with a NaN then ranks last
        found.append(1 + np.sum(nearer, axis=1))
    return np.concatenate(found) if found else np.zeros(0, np.int64)


def recall(queries, candidates, query_ids, candidate_ids, ks=(1, 5, 10), chunk=1024):
    """{"R@k": share of queries with a match among the k nearest, "MRR": mean of 1 / rank}; arguments as in `ranks`."""
    rank = ranks(queries, candidates, query_ids, candidate_ids, chunk)
    return {**{f"R@{k}": float(np.mean(rank <= k)) for k in ks}, "MRR": float(np.mean(1.0 / rank))}


def chance(query_ids, candidate_ids, ks=(1, 5, 10)):
    """{"chance_R@k": expected R@k of a random order}: 1 - C(N - m, k) / C(N, k) for m matches among N candidates."""
    ids, counts = np.unique(candidate_ids, return_counts=True)
    count = dict(zip(ids.tolist(), counts.tolist()))
    matches = np.array([count[i] for i in np.asarray(query_ids).tolist()])
    size, values, weights = len(candidate_ids), *np.unique(matches, return_counts=True)
    miss = {k: [math.comb(size - m, k) / math.comb(size, k) if k <= size else 0.0 for m in values.tolist()] for k in ks}
    return {f"chance_R@{k}": float(1.0 - np.average(miss[k], weights=weights)) for k in ks}


class Side(NamedTuple):
    """One modality: unit rows (n, D), their ids (n,), which of them act as queries (n,), and other masks (n,) by name."""
    rows: np.ndarray | similarity_lib.Tokens
    ids: np.ndarray
    asks: np.ndarray

    def only(self, keep):
        return Side(*(field[keep] for field in self))


def both_ways(image, text, ks):
    """Flat figures of both directions between two `Side`s; a query that nothing matches does not ask."""
    figures = {}
    for direction, one, other in (("text_to_image", text, image), ("image_to_text", image, text)):
        one = one.only(one.asks & np.isin(one.ids, other.ids))
        if not len(one.ids):
            raise ValueError(f"{direction}: no query has a matching candidate")
        values = {**recall(one.rows, other.rows, one.ids, other.ids, ks), **chance(one.ids, other.ids, ks),
                  "queries": float(len(one.ids)), "candidates": float(len(other.ids))}
        figures.update({f"{direction}/{name}": value for name, value in values.items()})
    return figures


def figures_of(settings) -> list[str]:
    """The names of the figures of an instance with these settings."""
    names = [f"{way}/{name}" for way in ("text_to_image", "image_to_text") for name in (
        "MRR", *(f"{start}R@{k}" for start in ("", "chance_") for k in settings.get("ks", (1, 5, 10))), "queries", "candidates")]
    return [*names, *(f"{label}/{name}" for label in settings.get("without") or () for name in names), "bad"]


def captions(source, indices, n=None):
    """[[caption, ...], ...]: the first `n` texts (None: all) of each of the rows `indices`; none of a row that can't be read.

    What is no text, such as None where a table has nothing, is among them: to encode it counts as bad.
    """
    stored = rows.columns(source, ["text"], indices, ragged=("text",), unread=[])["text"]
    return [list(some)[:n] if isinstance(some, (list, tuple, np.ndarray)) else [some] for some in stored]


def make(config, name):
    """fn(embed, state) -> {"text_to_image/R@1": ..., "no_flags/text_to_image/R@1": ...}; `config`: see the module."""
    collect, score = parts(config, name, config.get("similarity", "auto"))
    return lambda embed, state: score(*collect(embed, state))


def parts(config, name, similarity="pooled"):
    """The two halves of `make`, for who changes the embeddings in between. similarity: in place of the config's.

    Returns:
      collect(embed, state) -> (image (n, D), text (m, D), rest): unit rows that can be used, and what else the figures need;
      score(image, text, rest) -> the figures. Of another similarity than pooled rows may be `similarity.Tokens`.
    """
    instance = f"retrieval.{name}"
    match, queries = config.get("match"), dict(config.get("queries") or {})
    without, ks = dict(config.get("without") or {}), tuple(config.get("ks", (1, 5, 10)))
    similarity_lib.check(similarity, instance)
    needed = {*queries, *without.values(), *([match] if match else [])}
    source = rows.open_source(config["source"], needed, instance)
    image_view, text_view = (rows.pick(config["views"], [key], instance) for key in ("image", "text"))
    size, texts = config.get("batch_size", 256), config.get("texts", "first")
    if texts not in ("first", "all") and (isinstance(texts, (bool, str)) or texts < 1):
        raise ValueError(f"config.evals.{instance}.texts={texts!r} must be 'first', 'all' or a number of captions")
    if texts != "first" and text_view.columns != ["text"]:
        raise ValueError(f"config.evals.{instance}.texts={texts!r} needs a pipe of 'text' that reads the column text alone, "
                         f"not {', '.join(text_view.columns)}")

    def collect(embed, state):
        table = rows.columns(source, needed)
        ids = table[match] if match else np.arange(len(source))
        asks = rows.select({**table, "": ids}, queries, instance)
        _, first = np.unique(ids, return_index=True)
        embed = similarity_lib.using(embed, similarity, instance)
        image, image_good = rows.encode(embed, state, source, image_view, ["image"], size)
        if texts == "first":
            owner = first
            text, text_good = rows.encode(embed, state, source, text_view, ["text"], size, indices=first)
        else:
            own = captions(source, first, None if texts == "all" else texts)
            owner = np.repeat(first, [len(some) for some in own])
            every = rows.Texts(itertools.chain.from_iterable(own))
            text, text_good = rows.encode(embed, state, every, text_view, ["text"], size)
        rest = {"ids": ids, "asks": asks, "image": np.flatnonzero(image_good), "text": owner[text_good],   # source rows
                "without": {label: table[column].astype(bool) for label, column in without.items()},
                "bad": int(np.sum(~image_good) + np.sum(~text_good))}
        return similarity_lib.rows_of(image, "image")[image_good], similarity_lib.rows_of(text, "text")[text_good], rest

    def score(image, text, rest):
        places = rest["image"], rest["text"]
        sides = [Side(unit, rest["ids"][at], rest["asks"][at]) for unit, at in zip((image, text), places)]
        figures = both_ways(*sides, ks)
        for label, gone in rest["without"].items():
            fewer = both_ways(*(side.only(~gone[at]) for side, at in zip(sides, places)), ks)
            figures.update({f"{label}/{key}": value for key, value in fewer.items()})
        return {**figures, "bad": float(rest["bad"])} if rest["bad"] else figures

    return collect, score
