"""Hash codes as bits: packed 8 to a byte, and searched by Hamming distance.

faiss's binary index (IndexBinaryFlat) where it is installed, else numpy's popcount; both give the same neighbours in the same
order: by distance, and of equal ones the lower row first.
"""
import numpy as np

from mcd_jax.evals.search import backend

_BLOCK = 2 ** 25   # bytes of distances that are held at a time


def pack(codes):
    """Bits of real-valued codes (n, K): uint8 (n, ceil(K / 8)), the first bit highest, on where a code is at least 0.

    Raises:
      ValueError: a code that isn't finite: it has no bits.
    """
    codes = np.asarray(codes)
    if codes.ndim != 2 or not codes.shape[1]:
        raise ValueError(f"codes are rows of numbers, not an array of shape {codes.shape}")
    if not np.isfinite(codes).all():
        rows = np.flatnonzero(~np.isfinite(codes).all(axis=1))
        raise ValueError(f"{len(rows)} of {len(codes)} codes are not finite, row {rows[0]} first: they have no bits")
    return np.packbits(codes >= 0, axis=1)


def unpack(packed, bits):
    """What `pack` made of codes of so many bits: int8 (n, K) of -1 and +1."""
    return np.unpackbits(packed, axis=1, count=bits).astype(np.int8) * 2 - 1


def distances(queries, items):
    """Hamming distances, uint16 (Q, n), of packed codes (Q, W) and (n, W)."""
    queries, items = _words(queries), _words(items)
    if queries.shape[1] != items.shape[1]:
        raise ValueError(f"queries have {queries.shape[1]} words of {queries.itemsize} bytes and items {items.shape[1]}")
    found = np.zeros((len(queries), len(items)), np.uint16)
    for q, i in zip(queries.T, items.T):   # word by word: nothing of Q x n x W is held
        found += np.bitwise_count(q[:, None] ^ i[None, :])
    return found


def _words(packed):
    """Rows of bytes as rows of the widest words that divide them."""
    packed = np.ascontiguousarray(packed, np.uint8)
    width = packed.shape[1]
    size = next(size for size in (8, 4, 2, 1) if width % size == 0)
    return packed.view(f"u{size}")


class Index:
    """Packed codes (n, W) to be searched."""

    def __init__(self, packed, name=None):
        """name: see `backend`."""
        self.packed = np.ascontiguousarray(packed, np.uint8)
        self._faiss = None
        if backend(name) == "faiss":
            import faiss
            self._faiss = faiss.IndexBinaryFlat(8 * self.packed.shape[1])
            self._faiss.use_heap = False   # counts instead: of equal distances the lower rows are kept, in order
            self._faiss.add(self.packed)

    def search(self, queries, k):
        """The k nearest of each query: distances int32 and rows int64, (Q, min(k, n))."""
        queries, k = np.ascontiguousarray(queries, np.uint8), min(k, len(self.packed))
        if self._faiss is not None:
            found, rows = self._faiss.search(queries, k)
            return found.astype(np.int32), rows
        step, parts = max(1, _BLOCK // max(1, 2 * len(self.packed))), []
        for start in range(0, len(queries), step):
            near = distances(queries[start:start + step], self.packed)
            parts.append([_nearest(row, k) for row in near])
        rows = np.array([row for part in parts for row in part], np.int64).reshape(len(queries), k)
        codes = self.packed[rows] ^ queries[:, None]
        return np.bitwise_count(codes).sum(axis=2, dtype=np.int32), rows


def _nearest(row, k):
    """Numbers of the k smallest of a row, in order; of equal ones the first."""
    last = np.partition(row, k - 1)[k - 1]
    closer, level = np.flatnonzero(row < last), np.flatnonzero(row == last)
    chosen = np.concatenate([closer, level[:k - len(closer)]])
    return chosen[np.argsort(row[chosen], kind="stable")]
