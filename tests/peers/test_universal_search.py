"""Universal retrieval with faiss and without gives the same ranks, ties and broken embeddings included."""
import faiss
import numpy as np
import pytest

from mcd_jax.evals import search


def unit(x):
    return (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32)


def both(queries, candidates, relevant, limit, excluded=None):
    """Ranks by faiss and by numpy, and whether each of them searched as it should."""
    index = {name: search.Index(candidates, name) for name in search.BACKENDS}
    assert isinstance(index["faiss"]._faiss, faiss.IndexFlatIP) and index["exact"]._faiss is None
    return [search.ranks(queries, index[name], relevant, limit, excluded).tolist() for name in search.BACKENDS]


@pytest.mark.parametrize("kind", ["random", "ties", "near", "same", "broken"])
@pytest.mark.parametrize("limit", [1, 10, 50])
def test_universal_faiss_and_numpy_give_the_same_ranks(kind, limit):
    rng = np.random.default_rng(limit)
    queries, candidates = unit(rng.normal(size=(60, 32))), unit(rng.normal(size=(2000, 32)))
    if kind == "ties":
        candidates = candidates[rng.integers(0, 40, 2000)]
        queries = candidates[rng.integers(0, 2000, 60)]
    if kind == "near":
        candidates = unit(candidates[:1] + 1e-7 * rng.normal(size=(2000, 32)))
        queries = np.repeat(candidates[:1], 60, axis=0)
    if kind == "same":
        queries, candidates = np.ones_like(queries), np.ones_like(candidates)
    if kind == "broken":
        candidates[rng.integers(0, 2000, 20)] = np.nan
        queries[3] = np.inf
    relevant = [rng.choice(2000, rng.integers(1, 5), replace=False) for _ in queries]
    scores = np.stack([np.sum(candidates.astype(np.float64) * query, axis=1) for query in np.nan_to_num(queries, posinf=1)])
    if kind in ("random", "near", "broken"):
        near = np.argsort(-scores, axis=1)
        relevant = [np.union1d(own, near[i, rng.integers(0, 2 * limit)]) for i, own in enumerate(relevant)]
    excluded = [rng.choice(2000, 3, replace=False) for _ in queries]
    for aside in (None, excluded):
        one, other = both(queries, candidates, relevant, limit, aside)
        assert one == other
        for i in (0, 7, 59):   # against all scores at once
            left_out = [] if aside is None else aside[i].tolist()
            right = [j for j in relevant[i] if np.isfinite(scores[i, j]) and j not in left_out]
            others = np.setdiff1d(np.arange(2000), [*relevant[i], *left_out])
            if right:
                assert one[i] == min(1 + np.sum(~(scores[i, others] < scores[i, right].max())), limit + 1)
    assert kind != "same" or set(one) == {limit + 1}
    assert kind not in ("random", "near") or len(set(one)) > 1


def test_universal_faiss_is_the_default_where_it_is_installed():
    assert search.backend() == "faiss" and search.backend("exact") == "exact"
