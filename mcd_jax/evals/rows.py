"""Rows of a source for the evaluations: stored columns, texts, and embeddings in source order.

On several processes each reads and decodes only the images that its own devices embed; stored columns (labels, ids, texts) are
read by all, so that every process has the whole table and arrives at the same figures.
"""
import collections
from concurrent import futures
import itertools
import os

import numpy as np

from mcd_jax.data import decode, pipeline, sources
from mcd_jax.run import agreement, console

_THREADS = min(8, os.cpu_count() or 1)
_READ = 64  # rows of stored columns that a thread reads in one go


class Texts:
    """A source of texts without images: row i has text[i]."""

    def __init__(self, texts):
        self._texts = list(texts)

    def __len__(self):
        return len(self._texts)

    def __getitem__(self, index):
        return {"text": self._texts[index], "key": str(index)}


def open_source(spec, names, instance):
    """The source of `spec`, once its first readable row is seen to have the columns `names`.

    Raises:
      FileNotFoundError: it isn't on this machine. ValueError: it is empty or lacks a column. The message names the evaluation.
    """
    try:
        source = sources.open(spec)
    except (ValueError, OSError) as error:
        key, text = f"config.evals.{instance}.source", str(error)
        text = text.replace("data.source", key) if "data.source" in text else f"{key}: {text}"
        raise (FileNotFoundError if isinstance(error, FileNotFoundError) else ValueError)(text) from error
    if len(source) == 0:
        raise ValueError(f"config.evals.{instance}.source has no rows: {dict(spec)}")
    row = next(filter(None, (_row(source, index) for index in range(len(source)))), {})
    for name in names:
        if name not in row:
            raise ValueError(f"config.evals.{instance} reads column {name!r}, which its source does not have: "
                             f"there are {', '.join(sorted(row))}")
    return source


def columns(source, names, indices=None, ragged=(), unread=None):
    """Stored columns: name -> numpy array of one value per row, or a list for names in `ragged`; images are not decoded.

    A source with a method column(name) gives them without reading its images.

    Args:
      indices: rows to read, all of them when None.
      unread: what stands for the values of a row that can't be read; None: those of another row, for `encode` says which those are.
    """
    names = list(dict.fromkeys(names))
    indices = range(len(source)) if indices is None else [int(index) for index in indices]
    if hasattr(source, "column"):
        whole = {name: source.column(name) for name in names}
        found = {name: [values[index] for index in indices] for name, values in whole.items()}
    else:
        def read(some):
            rows = (_row(source, index) for index in some)
            return [row and tuple(row[name] for name in names) for row in rows]
        parts = [indices[start:start + _READ] for start in range(0, len(indices) if names else 0, _READ)]
        rows = list(itertools.chain.from_iterable(_ahead(read, parts)))
        other = next(filter(None, rows), ()) if unread is None else [unread] * len(names)
        found = {name: [(row or other)[i] for row in rows] for i, name in enumerate(names)}
    return {name: values if name in ragged else np.asarray(values) for name, values in found.items()}


def _row(source, index):
    try:
        return source[index]
    except decode.Bad:
        return None


def _ahead(fn, items):
    """fn(item) for each item, in order, made ahead by threads."""
    with futures.ThreadPoolExecutor(_THREADS) as pool:
        waiting = collections.deque()
        try:
            for item in items:
                waiting.append(pool.submit(fn, item))
                if len(waiting) > _THREADS:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:   # an error, or nobody reads on: what hasn't begun is dropped
            for future in waiting:
                future.cancel()


def select(table, where, instance):
    """Boolean mask over rows whose columns hold one of the wanted values: where = {column: value or list of values}."""
    keep = None
    for name, wanted in dict(where or {}).items():
        wanted = list(wanted) if isinstance(wanted, (list, tuple)) else [wanted]
        match = np.isin(table[name], wanted)
        keep = match if keep is None else keep & match
        if not keep.any():
            raise ValueError(f"config.evals.{instance}: no row has {name} in {wanted}; "
                             f"found {sorted(map(str, set(table[name].tolist())))[:12]}")
    return np.ones(len(next(iter(table.values()))), bool) if keep is None else keep


def encode(embed, state, source, views, names, batch_size, indices=None, together=False):
    """Embeds rows in order.

    Args:
      embed: embed(state, batch) -> {"image": (n, D) float32, "text": ...}. One made for several processes (`embedder.make_embed`)
        has `held`, the rows of a batch that this process must fill, and `exchange`, which gives every process all rows.
      views: `pipeline.Views`; names: those of its keys that the embedding takes ("image", "text").
      batch_size: rows per batch; with `held`, that of the embedding is taken instead.
      indices: (n,) source rows, all of them when None.
      together: the embedding gets all `names` of a row at once, as one that fuses them needs it, and not one by one.

    Returns:
      (key -> (n, D) float32 arrays for every key that `embed` returns, (n,) bool: False for a row that can't be used, such as a
      corrupt image; what stands there belongs to another row).
    """
    indices = np.arange(len(source)) if indices is None else np.asarray(indices)
    held, size = getattr(embed, "held", None), getattr(embed, "batch_size", batch_size)
    if held is not None:   # processes that see other rows would wait for each other
        rows = {"rows to embed": len(indices), "rows of their source": len(source)}
        agreement.agree("the same rows to embed", {agreement.DATA: rows})

    def read(start):
        some = indices[start:start + size]
        own = np.arange(len(some)) if held is None else held[held < len(some)]
        own = own if len(own) else np.arange(1)   # none of a short batch: one row all the same, for the shapes
        batch = next(pipeline.sequential(source, views, len(own), seed=0, indices=some[own]))
        return {name: _spread(batch[name], own, len(some)) for name in (*names, "bad")}

    parts, good = [], []
    with console.Progress(len(indices), f"embedding {' and '.join(names)}", show=len(indices) > size) as progress:
        for batch in _ahead(read, range(0, len(indices), size)):
            part = {}
            for some in [names] if together else [[name] for name in names]:  # one at a time: all evaluations share two functions
                part |= embed(state, {name: batch[name] for name in some})
            parts.append(part)
            bad = batch["bad"] if held is None else embed.exchange({"bad": batch["bad"]})["bad"]
            good.append(~bad)
            progress.step(len(bad))
    return {key: np.concatenate([part[key] for part in parts]) for key in parts[0]}, np.concatenate(good)


def with_bad(figures, *good):
    """The figures, and where rows couldn't be used, their number as "bad" beside them. good: as `encode` gives it."""
    bad = sum(int(np.sum(~some)) for some in good)
    return {**figures, "bad": float(bad)} if bad else figures


def refuse_empty(good, texts, instance):
    """Raises ValueError where a prompt can't be used, as one without a letter. good: of `encode`; texts: those that it embedded."""
    if not good.all():
        raise ValueError(f"config.evals.{instance}: the prompt {texts[int(np.argmin(good))]!r} is empty")


def like(head, embed):
    """`head` with what `encode` reads of an embedding made for several processes."""
    def call(state, batch):
        return head(state, batch)
    for name in ("held", "batch_size", "exchange"):
        if hasattr(embed, name):
            setattr(call, name, getattr(embed, name))
    return call


def tokens(source, view, indices, size):
    """int32 (m, L) token rows of a source's rows, all of them when `indices` is None; `view`: `pipeline.Views` of "text".

    Raises:
      ValueError: a row has no text that can be used; what stood at its place would be another row's.
    """
    def keep(state, batch):
        return {"tokens": batch["text"]}
    found, good = encode(keep, None, source, view, ["text"], size, indices=indices)
    if not good.all():
        row = int(np.argmin(good) if indices is None else np.asarray(indices)[np.argmin(good)])
        raise ValueError(f"row {row} has no text that can be used: {str(source[row].get('text'))[:80]!r} is empty")
    return found["tokens"]


def _spread(values, places, count):
    """An array of `count` rows with `values` at `places` and zeros elsewhere."""
    if len(places) == count:
        return values
    whole = np.zeros((count, *values.shape[1:]), values.dtype)
    whole[places] = values
    return whole


def pick(pipes, names, instance):
    """The compiled `pipeline.Views` of `names` out of the evaluation's `views`.

    Raises:
      ValueError: one is missing.
    """
    for name in names:
        if name not in pipes:
            raise ValueError(f"config.evals.{instance}.views needs a pipe for {name!r}: it has {', '.join(sorted(pipes))}")
    return pipeline.Views({name: pipes[name] for name in names})


def sample(source, where, n, instance):
    """At most `n` source rows (all when None) that fit `where`, evenly spaced and in order: int array."""
    rows = np.arange(len(source))
    if where:
        rows = rows[select(columns(source, where), where, instance)]
    if n is None or n >= len(rows):
        return rows
    return rows[np.linspace(0, len(rows) - 1, n).round().astype(int)]
