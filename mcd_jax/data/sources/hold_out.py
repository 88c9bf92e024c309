"""A part of another source, so that what is evaluated was never trained on (see mcd_jax.data.sources):

    dict(name="hold_out", source=dict(name="folder", ...), part="train", share=0.05)       what is left
    dict(name="hold_out", source=dict(name="folder", ...), part="held_out", share=0.05)    what is held out

An example is held out when the hash of its key, a number in [0, 1), is below `share`. So its side depends on its key and the share
alone: it is the same on every machine and in every order, stays when examples are added, and examples of one key stay together. The
two parts are disjoint and together the whole. Keys come from what the source knows without reading images (`source.keys()` or
`source.column("key")`); one that has neither is read through once.
"""
from collections.abc import Iterable, Mapping
import concurrent.futures
import hashlib
from typing import Any

from absl import logging
import numpy as np

from mcd_jax.config.keys import NEEDED, Key
from mcd_jax.data import sources
from mcd_jax.data.decode import Bad
from mcd_jax.data.sources.columns import check_spec, position

PARTS = ("train", "held_out")
SHARE = 0.05
KEYS = {
    "source": Key("source", NEEDED, "the whole"),
    "part": Key("str", NEEDED, "train | held_out"),
    "share": Key("float", SHARE, "of the examples that are held out, in (0, 1)"),
}
_THREADS = 16


def make(spec: Mapping[str, Any]) -> Any:
    """The part of the source that a spec describes.

    spec: source, the spec of the whole; part, "train" or "held_out"; share, in (0, 1), of those held out (default 0.05).

    Raises:
      ValueError: a key or value that doesn't fit, a part without examples, or a source with an order of its own (a mixture).
      FileNotFoundError: a file of the source does not exist.
    """
    check_spec(spec, KEYS)
    part, share = spec["part"], spec.get("share", SHARE)
    if spec.get("columns"):
        raise ValueError("data.source.columns: the hold_out source has none; set columns of the source that it takes a part of")
    if part not in PARTS:
        raise ValueError(f"data.source.part={part!r} must be {' or '.join(map(repr, PARTS))}")
    if isinstance(share, bool) or not isinstance(share, (int, float)) or not 0 < share < 1:
        raise ValueError(f"data.source.share={share!r} must be a number between 0 and 1: how much is held out")
    source = sources.open(spec["source"])
    if hasattr(source, "draw") and not hasattr(source, "only"):
        raise ValueError(f"data.source.source: a {spec['source']['name']} has an order of its own, which a part of it can't keep; "
                         "hold out of each of its sources instead")
    held_out = is_held_out(keys(source), share)
    rows = np.flatnonzero(held_out == (part == "held_out"))
    if not len(rows):
        what, cure = ("none", "raise") if part == "held_out" else ("all", "lower")
        raise ValueError(f"data.source.share={share}: of {len(source):,} examples {what} would be held out; {cure} it")
    return source.only(rows) if hasattr(source, "only") else Part(source, rows)


def keys(source: Any) -> list[str]:
    """The name of every example of a source, list of str."""
    if hasattr(source, "keys"):
        return source.keys()
    if hasattr(source, "column"):
        return [str(key) for key in source.column("key")]
    if len(source) > 100_000:
        logging.warning("hold_out source: reading the keys of %s examples, whose source has no list of them", f"{len(source):,}")

    def read(number):
        try:
            return str(source[number]["key"])
        except Bad:
            return f"bad example {number}"
    with concurrent.futures.ThreadPoolExecutor(_THREADS) as pool:
        return list(pool.map(read, range(len(source))))


def place(key: str) -> float:
    """Where a key falls in [0, 1): the first 53 bits of its BLAKE2b hash, so the same everywhere."""
    return (int.from_bytes(hashlib.blake2b(key.encode("utf-8", "backslashreplace"), digest_size=8).digest()) >> 11) / 2 ** 53


def is_held_out(names: Iterable[str], share: float) -> np.ndarray:
    """(n,) bool: whether each of n keys is held out."""
    return np.array([place(name) < share for name in names], bool)


class Part:
    """Some rows of a source, in its order. Attributes of the source that hold for any part are passed on: `classes`, and what it
    left out when it was opened, `left_out` and `missing`."""

    def __init__(self, source, rows):
        """rows: (n,) int, increasing."""
        self._source, self._rows = source, np.asarray(rows, np.int64)
        if hasattr(source, "column"):
            self.column = self._column
        if hasattr(source, "keys"):
            self.keys = self._keys
        for name in ("classes", "left_out", "missing"):
            if hasattr(source, name):
                setattr(self, name, getattr(source, name))

    def __len__(self):
        return len(self._rows)

    def __getitem__(self, index):
        return self._source[int(self._rows[position(index, len(self))])]

    def _keys(self):
        every = self._source.keys()
        return [every[row] for row in self._rows.tolist()]

    def _column(self, name):
        values = self._source.column(name)
        return [values[row] for row in self._rows.tolist()]
