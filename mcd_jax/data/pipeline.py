"""batch(step) is a pure function of (config, seed, step): nothing to save, nothing to lose, the same on any number of hosts.

Row j of step s is position s * batch_size + j of an endless stream, in which every epoch is a fresh permutation of the
source (see `order`). A position alone decides which example it is and how it is augmented. Each process makes only its own rows.
"""
import functools

import grain
import numpy as np

from mcd_jax.data import order, sources
from mcd_jax.data import processes as processes_lib
from mcd_jax.data.reader import Reader
from mcd_jax.data.views import Views

_PIECE = 256  # most rows that one worker makes in one go
_KEYS = ("source", "views", "workers", "processes", "prefetch", "cache", "max_bad")


def make(data_config, seed, batch_size, rows=None, bad_log=None):
    """The training pipeline of `config.data`.

    Args:
      data_config: mapping with `source` (see `sources.open`), `views` {name: pipe string}, and optionally `workers`
        (threads, default 2; 0 works in the caller's thread), `processes` (0, the default: the threads are this process's; else
        so many processes with `workers` threads each, see `processes`), `prefetch` (batches made ahead, default 4), `cache`
        (True or a number of MiB: decoded images are kept in memory, 1024 MiB by default; default False) and `max_bad`
        (the run stops when a larger share of the examples is bad, see `reader`; default 0.1).
      seed: int.
      batch_size: global rows per step, B.
      rows: which of them (slice or integers) this process holds; default all.
      bad_log: path of a JSON lines file that names bad examples, or None.

    Raises:
      ValueError: an unknown key, a bad value, or views that do not fit the source; the sentence says what would do.
    """
    unknown = set(data_config) - set(_KEYS)
    if unknown:
        raise ValueError(f"config.data has no {', '.join(sorted(unknown))}: its keys are {', '.join(_KEYS)}")
    opener = functools.partial(_opened, *(_plain(data_config[key]) for key in ("source", "views")))
    return Pipeline(*opener(), seed, batch_size, rows, workers=data_config.get("workers", 2),
                    processes=data_config.get("processes", 0), prefetch=data_config.get("prefetch", 4),
                    cache=data_config.get("cache", False), max_bad=data_config.get("max_bad", 0.1), bad_log=bad_log, opener=opener)


def _opened(source, views):
    return sources.open(source), Views(views)


def _plain(config):
    """Nested mappings as dicts, which can be sent to another process."""
    return {key: _plain(value) for key, value in config.items()} if hasattr(config, "items") else config


def example(views, source, index, seed, position=None):
    """One row: pure in (seed, index), or (seed, index, position) where an index comes more than once.

    Returns:
      dict of numpy arrays, the batch keys without the batch axis.
    """
    batch = _batch(views, Reader(source, views), seed, [index], [index if position is None else position])
    return {key: value[0] for key, value in batch.items()}


def sequential(source, views, batch_size, seed=0, indices=None):
    """The batches of `indices` (default: all) in order, the last one short. A row depends on (seed, index) only.

    Args:
      source: as `sources.open` returns it.
      views: Views, or the mapping {name: pipe string}.
    """
    views = views if isinstance(views, Views) else Views(views)
    reader = Reader(source, views)
    indices = np.arange(len(source)) if indices is None else np.asarray(indices)
    for start in range(0, len(indices), batch_size):
        some = indices[start:start + batch_size].tolist()
        yield _batch(views, reader, seed, some, some)


def _batch(views, reader, seed, indices, positions):
    draws = views.draws(seed, positions)
    rows, used = [], []
    for j, index in enumerate(indices):
        row, found = reader.row(index, {name: numbers[j] for name, numbers in draws.items()})
        rows.append(row)
        used.append(found)
    return {**views.collate(rows), "index": np.array(used, np.int32),
            "bad": np.array([a != b for a, b in zip(indices, used)], bool)}


class Pipeline:
    """See `make`.

    Attributes:
      source, views: what it was made of.
      examples: number of examples in one epoch.
      shapes: {batch key: (shape with this process's rows first, dtype)}.
      stats: {cause: number of examples found bad or repaired so far}; `counts()` has the same as figures for the log.
      vocab_size, context, eot, pad: of the text view called "text", or of the only one (None without text views).
    """

    def __init__(self, source, views, seed, batch_size, rows=None, *, workers=2, processes=0, prefetch=4, cache=False,
                 max_bad=0.1, bad_log=None, opener=None, tell=False, offset=0):
        if len(source) < 1:
            raise ValueError("the source is empty")
        for name, value, least in (("batch_size", batch_size, 1), ("workers", workers, 0), ("processes", processes, 0),
                                   ("prefetch", prefetch, 1)):
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise ValueError(f"{name}={value!r} must be an integer of at least {least}")
        if isinstance(max_bad, bool) or not isinstance(max_bad, (int, float)) or not 0 <= max_bad <= 1:
            raise ValueError(f"max_bad={max_bad!r} must be a share of the examples, from 0 to 1")
        if isinstance(seed, bool) or not isinstance(seed, (int, np.integer)) or seed < 0:
            raise ValueError(f"seed={seed!r} must be an integer of at least 0")
        if processes and cache:
            raise ValueError("config.data.cache keeps images of this process; with config.data.processes set cache=False")
        if processes and opener is None:
            raise ValueError(f"processes={processes} needs `opener`, by which each of them opens the source")
        self.examples = order.size(source)
        self.source, self.views = source, views
        self._seed, self._batch_size, self._workers, self._prefetch = int(seed), batch_size, workers, prefetch
        self._processes, self._opener, self._offset = processes, opener, offset
        everything = np.arange(batch_size)
        self._rows = everything if rows is None else everything[rows]
        if not len(self._rows):
            raise ValueError(f"rows={rows!r} leaves this process none of the {batch_size} rows of a batch")
        self._reader = Reader(source, views, cache, bad_log, max_bad, tell)
        self.counts = self._reader.counts
        self._open = []
        first = self._make(0, self._rows[:1])
        self.shapes = {key: ((len(self._rows), *value.shape[1:]), value.dtype) for key, value in first.items()}
        text = views.tokens.get("text") or next(iter(views.tokens.values()), None)
        self.context = text[1] if text else None
        self.vocab_size, self.eot, self.pad = (text[0].vocab_size, text[0].eot, text[0].pad) if text else (None,) * 3

    @property
    def stats(self):
        return self._reader.stats()

    def batch(self, step):
        """The rows of this process at `step` >= 0, {key: numpy array}; made in the caller's thread."""
        return self._make(step, self._rows)

    def asked(self, step):
        """(positions in the stream, indices of the source that stand there) of this process's rows at `step`, lists of int.

        batch(step)["index"] differs from these indices where a bad example was replaced.
        """
        return self._asked(step, self._rows)

    def _asked(self, step, rows):
        positions = (int(step) * self._batch_size + self._offset + rows).tolist()
        return positions, [order.draw(self.source, self._seed, position) for position in positions]

    def keys(self, count=8):
        """{place: key of the example there} of `count` places spread over the first epoch; "" for an example without a key.

        They tell the order of other data, or of the same data otherwise sorted, apart.
        """
        places = sorted({i * (self.examples - 1) // max(count - 1, 1) for i in range(count)})
        return {place: self._reader.key(order.draw(self.source, self._seed, place)) for place in places}

    def iterate(self, first_step=0, offset=0):
        """Endless iterator over batch(first_step), batch(first_step + 1), ... made ahead by `workers` threads or `processes`.

        An error in a worker is raised here, at its step.

        Args:
          offset: row j of step s is position s * batch_size + j + offset of the stream from here on, for a run whose earlier
            steps had another batch size.
        """
        self._offset = offset
        pieces = self._pieces()
        ahead = max(-(-self._prefetch * pieces // max(self._processes, 1)), self._workers)
        if self._processes:
            build = functools.partial(_worker_pipeline, self._opener, self._seed, self._batch_size, self._rows, offset)
            made = processes_lib.pieces(build, first_step * pieces, self._processes, self._workers, ahead)
            self._open.append(made)
            rows = map(self._counted, made)
            return rows if pieces == 1 else map(_join, zip(*[rows] * pieces))
        data = grain.MapDataset.range(first_step * pieces, 2 ** 60).map(self.piece)
        data = data.to_iter_dataset(grain.ReadOptions(num_threads=self._workers, prefetch_buffer_size=ahead * bool(self._workers)))
        if pieces > 1:
            data = data.batch(pieces, batch_fn=_join)
        iterator = iter(data)
        self._open.append(iterator)
        return iterator

    def close(self):
        """Stops the workers."""
        while self._open:
            self._open.pop().close()

    def piece(self, number):
        """Part number % pieces of the rows of batch(number // pieces): what one worker makes in one go."""
        step, part = divmod(number, self._pieces())
        return self._make(step, np.array_split(self._rows, self._pieces())[part])

    def reports(self):
        """Of the Reader since the last call, see `Reader.reports`."""
        return self._reader.reports()

    def _pieces(self):
        return -(-len(self._rows) // _PIECE)

    def _counted(self, made):
        rows, reports = made
        self._reader.take(reports, rows["index"])
        return rows

    def _make(self, step, rows):
        positions, indices = self._asked(step, rows)
        return _batch(self.views, self._reader, self._seed, indices, positions)


def _worker_pipeline(opener, seed, batch_size, rows, offset):
    """The Pipeline that a worker process reads with. It never stops for bad examples: the training process counts them."""
    return Pipeline(*opener(), seed, batch_size, rows, workers=0, max_bad=1.0, tell=True, offset=offset)


def _join(pieces):
    return {key: np.concatenate([piece[key] for piece in pieces]) for key in pieces[0]}
