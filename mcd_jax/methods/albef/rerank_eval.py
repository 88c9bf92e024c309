"""Retrieval in two stages: the nearest k candidates by cosine, put in order by a head that reads image and text together.

An instance of `config.evals.rerank` has the keys of `evals/retrieval.py`, and

  k         candidates that each query re-ranks (16). At least the number of candidates: all are
  head      the objective's head that scores given pairs ("match"): of {"text": tokens, "text_states", "image_states"} it returns
            "score" (n,), larger for a better match
  states    its head that encodes an image or a text for that once ("states"): "image" -> "image_states", "text" -> "text_states"

A query's first k candidates are ordered by their score alone, the others follow by cosine. Figures are those of retrieval, beside
the same of the first stage ("first/..."), the share of queries whose match is among the k ("within_k"), and the cost of both
stages: "first/seconds" (embedding everything and the cosines), "second/seconds" (states and scores), "second/pairs" scored. States
are kept in memory: "second/bytes". Ties count against a query, as in retrieval.
"""
import itertools
import time

import numpy as np

from mcd_jax.config.keys import Key
from mcd_jax.evals import retrieval, rows

KEYS = {
    **{key: own for key, own in retrieval.KEYS.items() if key != "similarity"},   # the first stage reads pooled embeddings
    "k": Key("int", 16, "candidates that each query ranks again; at least the number of candidates: all are"),
    "head": Key("str", "match", "the objective's head that scores given pairs"),
    "states": Key("str", "states", "its head that encodes an image or a text for that once"),
}


def reranked(scores, first, query_ids, candidate_ids, chosen):
    """Ranks (Q,) of the best matching candidate when the chosen ones are ordered by score and the others follow by cosine.

    Args:
      scores: (Q, k) of the chosen candidates; chosen: (Q, k) their numbers.
      first: (Q,) ranks by cosine alone, which count for a query none of whose chosen candidates match.
      query_ids: (Q,), candidate_ids: (N,).
    """
    match = np.asarray(candidate_ids)[chosen] == np.asarray(query_ids)[:, None]
    best = np.max(np.where(match, scores, -np.inf), axis=1, keepdims=True)
    rank = 1 + np.sum(~(scores < best) & ~match, axis=1)   # a tie, or a score that is no number, counts as nearer
    return np.where(match.any(1), rank, np.maximum(first, chosen.shape[1] + 1))


def nearest(queries, candidates, k, chunk=1024):
    """(Q, k) numbers of the nearest candidates by inner product, nearest first."""
    parts = []
    for start in range(0, len(queries), chunk):
        scores = queries[start:start + chunk] @ candidates.T
        some = np.argpartition(-scores, k - 1, axis=1)[:, :k] if k < scores.shape[1] else np.tile(np.arange(k), (len(scores), 1))
        parts.append(np.take_along_axis(some, np.argsort(-np.take_along_axis(scores, some, 1), axis=1, kind="stable"), 1))
    return np.concatenate(parts)


def make(config, name):
    """fn(embed, state) -> figures; `config`: see the module.

    Raises:
      ValueError: k below 1, or what retrieval refuses.
    """
    instance = f"rerank.{name}"
    count, ks = config.get("k", 16), tuple(config.get("ks", (1, 5, 10)))
    if isinstance(count, bool) or not isinstance(count, int) or count < 1:
        raise ValueError(f"config.evals.{instance}.k={count!r} must be a whole number of at least 1")
    collect, score = retrieval.parts({k: v for k, v in config.items() if k in (*retrieval.KEYS, "batch_size")}, name)
    source = rows.open_source(config["source"], (), instance)
    views = {key: rows.pick(config["views"], [key], instance) for key in ("image", "text")}
    size, texts = config.get("batch_size", 256), config.get("texts", "first")

    def states(embed, state, rest):
        """(states of the images (n, ...), of the texts (m, ...), tokens (m, L)) of the rows that retrieval found usable."""
        head = embed.head(config.get("states", "states"))
        image, _ = rows.encode(rows.like(head, embed), state, source, views["image"], ["image"], size, indices=rest["image"])
        if texts == "first":
            of, indices = source, rest["text"]
        else:
            _, first = np.unique(rest["ids"], return_index=True)
            own = retrieval.captions(source, first, None if texts == "all" else texts)
            of, indices = rows.Texts(itertools.chain.from_iterable(own)), None
        tokens = rows.tokens(of, views["text"], indices, size)
        text = rows.like(head, embed)(state, {"text": tokens})
        return image["image_states"], text["text_states"], tokens

    def fn(embed, state):
        begun = time.perf_counter()
        image, text, rest = collect(embed, state)
        figures = {f"first/{key}": value for key, value in score(image, text, rest).items()}
        sides = {"image": (image, rest["ids"][rest["image"]], rest["asks"][rest["image"]]),
                 "text": (text, rest["ids"][rest["text"]], rest["asks"][rest["text"]])}
        figures["first/seconds"] = time.perf_counter() - begun
        begun, pairs = time.perf_counter(), 0
        image_states, text_states, tokens = states(embed, state, rest)
        match = embed.head(config.get("head", "match"))
        for one, other in (("text", "image"), ("image", "text")):
            (queries, ids, asks), (candidates, other_ids, _) = sides[one], sides[other]
            own = np.flatnonzero(asks & np.isin(ids, other_ids))
            chosen = nearest(queries[own], candidates, min(count, len(candidates)))
            left, right = np.repeat(own, chosen.shape[1]), chosen.reshape(-1)
            texts_at, images_at = (left, right) if one == "text" else (right, left)
            scores = []
            for at in range(0, len(left), size):
                t, i = texts_at[at:at + size], images_at[at:at + size]
                pair = {"text": tokens[t], "text_states": text_states[t], "image_states": image_states[i]}
                scores.append(match(state, pair)["score"])
            pairs += len(left)
            first = retrieval.ranks(queries[own], candidates, ids[own], other_ids)
            rank = reranked(np.concatenate(scores).reshape(chosen.shape), first, ids[own], other_ids, chosen)
            figures |= {f"{one}_to_{other}/R@{k}": float(np.mean(rank <= k)) for k in ks}
            figures |= {f"{one}_to_{other}/MRR": float(np.mean(1 / rank)),
                        f"{one}_to_{other}/within_k": float(np.mean((other_ids[chosen] == ids[own][:, None]).any(1)))}
        figures |= {"second/seconds": time.perf_counter() - begun, "second/pairs": float(pairs),
                    "second/bytes": float(image_states.nbytes + text_states.nbytes)}
        return figures

    return fn

