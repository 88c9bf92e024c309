"""Ranks of relevant candidates among many: a shortlist by faiss (IndexFlatIP, when it is installed) or numpy, then exact scores.

Both backends give the same ranks. They only propose candidates; scores that decide are computed anew in float64, one pair at a
time, so that equal embeddings have equal scores, and a query whose shortlist does not decide is compared with every candidate.
"""
import importlib.util

import numpy as np

BACKENDS = ("faiss", "exact")


def backend(name=None):
    """`name`, or "faiss" where that is installed and "exact" elsewhere.

    Raises:
      ValueError: an unknown name, or faiss is asked for and not installed.
    """
    there = importlib.util.find_spec("faiss") is not None
    if name is None:
        return "faiss" if there else "exact"
    if name not in BACKENDS or (name == "faiss" and not there):
        raise ValueError(f"search={name!r} must be one of {', '.join(BACKENDS)}" + (
            "" if there else "; faiss is not installed (pip install faiss-cpu)"))
    return name


class Index:
    """Candidates that are searched by inner product.

    Attributes:
      rows: (N, D) float32, candidates that are not finite as zeros. broken: (N,) bool, which those are. length: of the longest.
    """

    def __init__(self, candidates, name=None):
        """candidates: (N, D) float32; name: see `backend`."""
        candidates = np.ascontiguousarray(candidates, np.float32)
        self.broken = ~np.isfinite(candidates).all(axis=1)
        self.rows = np.where(self.broken[:, None], np.float32(0), candidates) if self.broken.any() else candidates
        self.length = float(np.max(np.linalg.norm(self.rows, axis=1), initial=0.0))
        self._faiss = None
        if backend(name) == "faiss":
            import faiss
            self._faiss = faiss.IndexFlatIP(self.rows.shape[1])
            self._faiss.add(self.rows)

    def shortlist(self, queries, count, chunk=2 ** 25):
        """Yields (start, (q, count) int64): the `count` nearest candidates, in no order, of queries start, start + 1, ...

        Args:
          queries: (Q, D) float32, finite. count: at most N. chunk: scores that are held at a time.
        """
        step = max(1, chunk // len(self.rows))
        for start in range(0, len(queries), step):
            some = np.ascontiguousarray(queries[start:start + step])
            if count >= len(self.rows):
                yield start, np.broadcast_to(np.arange(len(self.rows)), (len(some), len(self.rows)))
            elif self._faiss is not None:
                yield start, self._faiss.search(some, count)[1]
            else:
                yield start, np.argpartition(-(some @ self.rows.T), count - 1, axis=1)[:, :count]


def ranks(queries, index, relevant, limit, excluded=None, pools=None):
    """Rank of each query's nearest relevant candidate, 1 = first, up to `limit`.

    Candidates that tie with it count as nearer, and so do candidates that are not finite. A relevant candidate that is excluded or
    not finite is behind all others.

    Args:
      queries: (Q, D) float32.
      index: `Index` of N candidates.
      relevant: for each query an int array of candidates. excluded: the same, of those that rank behind all others; None: none.
      pools: for each query an int array of the candidates that it has; None: all have all.

    Returns:
      (Q,) int64: 1 ... limit, or limit + 1 for whatever is further away.
    """
    queries = np.asarray(queries, np.float32)
    found = np.full(len(queries), limit + 1, np.int64)
    good = np.flatnonzero(np.isfinite(queries).all(axis=1))
    none = np.zeros(0, np.int64)
    if pools is not None:
        for query in good:
            aside = none if excluded is None else excluded[query]
            found[query] = _rank(queries[query], index, relevant[query], aside, pools[query], limit, len(pools[query]))
        return found
    reach = max((len(relevant[query]) + (0 if excluded is None else len(excluded[query])) for query in good), default=0)
    for start, lists in index.shortlist(queries[good], min(limit + reach, len(index.rows))):
        for query, near in zip(good[start:start + len(lists)], lists):
            aside = none if excluded is None else excluded[query]
            found[query] = _rank(queries[query], index, relevant[query], aside, near, limit, len(index.rows))
    return found


def _rank(query, index, relevant, excluded, near, limit, size):
    """The rank of one query, of whose `size` candidates `near` are the nearest, or all."""
    right = relevant[~index.broken[relevant] & ~np.isin(relevant, excluded)]
    if not len(right):
        return min(size - len(relevant) + 1, limit + 1)
    scores = _scores(query, index.rows[np.concatenate([right, near])])
    best, scores = scores[:len(right)].max(), scores[len(right):]
    if len(near) < size and best <= scores.min() + _margin(query, index):
        if _nearer(index, near, scores, best, relevant, excluded) >= limit:
            return limit + 1
        near = np.arange(size)   # others may tie with the best: ask them all
        scores = np.concatenate([_scores(query, index.rows[start:start + 2 ** 16]) for start in range(0, size, 2 ** 16)])
        best = max(best, scores[right].max())
    return min(1 + _nearer(index, near, scores, best, relevant, excluded, everywhere=len(near) < size), limit + 1)


def _nearer(index, near, scores, best, relevant, excluded, everywhere=True):
    """How many candidates other than the relevant and the excluded ones are at least as near as `best`."""
    aside = np.concatenate([relevant, excluded])
    count = int(np.sum((scores >= best) & ~index.broken[near] & ~np.isin(near, aside)))
    broken = np.flatnonzero(index.broken) if everywhere else near[index.broken[near]]
    return count + int(np.sum(~np.isin(broken, aside)))


def _scores(query, rows):
    """Inner products in float64, each by itself: a pair has the same score whatever stands beside it."""
    return np.sum(rows.astype(np.float64) * query.astype(np.float64), axis=1)


def _margin(query, index):
    """How far a backend's float32 product may be from the exact one, and a bit more."""
    return len(query) * 2.0 ** -22 * index.length * float(np.linalg.norm(query))
