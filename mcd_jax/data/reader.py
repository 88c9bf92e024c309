"""Reads examples from a source: replaces bad ones by the next good one, counts and names them, keeps decoded images.

What happens to bad input. An example that can't be used must not change the others, and nothing is left out silently:

* Bad (an `decode.Bad` from the source or from a view: a broken, empty or giant image, no caption, a missing column, a record
  whose checksum is wrong): the next good example of the source takes its place in this row, cyclically; `source.next(index)`
  says which is next where the source has it (a mixture stays in its part). The replacement depends on the data alone: which
  examples were seen before, by which thread or host, makes no difference, because nothing remembered is asked.
* Repaired (a caption that was too long or not UTF-8): used, and counted.
* A read that fails (OSError from `source[i]`): tried 3 times in all with short pauses. If it works then, it is counted as
  "read retried" among the repaired. If it does not, the run stops with the source's own error, which names the file, and the
  example's index beside it. It is not replaced: a shard that vanished or a network that is down would then change the
  data of the rest of the run, and nobody would know.
* Any other error in a source or a view: raised with the example's index and key, in the row's batch. It reaches the training
  loop at its step, from threads and from worker processes; a process that dies is an error with its exit code, and the run
  goes on from its checkpoint.
* Too many: once 1,000 examples were looked at (not all of them different), the run stops when more than `max_bad` of the
  different ones were bad. Replaced ones count, repaired ones don't. Each process counts what it read itself since it was
  started. Threads read ahead, so the step at which a run stops may differ a little from time to time; whether it does won't.
"""
import json
import pathlib
import threading
import time

import numpy as np

from mcd_jax.data.decode import Bad

_TRIES = 1000  # bad examples in a row after which the source, not an example, is to blame
_ENOUGH = 1000  # looks at examples before the share of bad ones means anything
_PAUSES = (0.1, 0.5)  # seconds before another try at a read that failed
_NAMED = 10_000  # lines of one cause in the log; further ones are only counted


class Unusable(ValueError):
    """Too many examples are bad: the source, not an example, is to blame. The sentence counts them by cause."""


class Reader:
    """A source seen through views. See the module's docstring for what it does with bad input."""

    def __init__(self, source, views, cache=False, log=None, max_bad=1.0, tell=False):
        """
        Args:
          source: as `sources.open` returns it.
          views: Views.
          cache: keep decoded images in memory: True (1,024 MiB) or a number of MiB.
          log: path of a JSON lines file that gets the index, key, cause and detail of each bad or repaired example, once
            each and at most 10,000 of each cause; or None.
          max_bad: largest share of bad examples, in [0, 1].
          tell: keep what was found until `reports` is called.

        Raises:
          ValueError: the source is empty, or lacks a column that a view reads.
          Unusable: the first examples are all bad.
        """
        self._source, self._views, self._count = source, views, len(source)
        self._next = getattr(source, "next", None) or (lambda index: (index + 1) % self._count)
        self._room = (1024 if cache is True else cache or 0) * 2 ** 20
        self._whole = bool(cache)  # also those that find no room: what a batch holds must not depend on what is kept
        self._kept = {}
        self._lock = threading.Lock()
        self._max_bad, self._looks, self._looked = max_bad, 0, _Indices(self._count)
        self._bad, self._repaired = {}, {}  # {cause: _Indices}
        self._log = None if log is None else pathlib.Path(log)
        self._named = _named(self._log)
        self._reports = [] if tell else None
        views.check(self._columns())

    def counts(self):
        """Figures for the log, {name: number of different examples}, of this process since it was started.

        "bad_examples" were replaced, "bad_examples/<cause>" say why and add up to it; "repaired_examples/<cause>" were used.
        """
        with self._lock:
            counts = {"bad_examples": sum(marks.size for marks in self._bad.values())}
            for name, causes in (("bad_examples", self._bad), ("repaired_examples", self._repaired)):
                counts |= {f"{name}/{cause.replace(' ', '_')}": marks.size for cause, marks in causes.items()}
        return counts

    def stats(self):
        """{cause: number of different examples}, bad and repaired ones."""
        with self._lock:
            return {cause: marks.size for cause, marks in [*self._bad.items(), *self._repaired.items()]}

    def reports(self):
        """What was found since the last call, for `take` in another process: list of [bad?, index, key, cause, detail]."""
        with self._lock:
            reports, self._reports = self._reports, []
        return reports

    def take(self, reports, used):
        """Counts what a Reader in another process found: its `reports`, and the indices of the rows that it made.

        Raises:
          Unusable: as `row`.
        """
        for index in used.tolist():
            self._look_at(index)
        for bad, index, key, cause, detail in reports:
            self._report(self._bad if bad else self._repaired, index, key, cause, detail)
        if reports:
            self._check()

    def row(self, index, draws):
        """(result of the views, index used): of example `index`, or if that is bad of the next good one.

        Raises:
          Unusable: more than `max_bad` of the examples are bad, or so many in a row that none is within reach.
          OSError: a read failed three times.
        """
        used, tried = index, 0
        while tried < min(self._count, _TRIES):
            kept, tried = self._kept.get(used), tried + 1
            example = kept or {"key": ""}
            try:
                if kept is None:
                    self._read(used, example)
                result = self._views(example, draws, self._whole)
            except Bad as bad:
                self._report(self._bad, used, example["key"], bad.cause, bad.detail)
                self._check()
                last, used = bad, self._next(used)
                if used == index:
                    break
                continue
            except Exception as error:
                error.add_note(f"at example {used} of {self._count}" + (f", key {example['key']!r}" if example["key"] else ""))
                raise
            self._look_at(used)
            for note in example.pop("notes", ()):
                self._report(self._repaired, used, example["key"], note, "")
            self._keep(used, example)
            return result, used
        raise Unusable(f"no usable example: {tried} in a row from index {index} are bad ({self._causes()}), the last: {last}"
                       + self._where())

    def key(self, index):
        """The key of example `index` as text; that of a bad example says why it is."""
        try:
            key = self._stored(index)[0].get("key", "")
        except Bad as bad:
            return f"bad: {bad.cause}"
        return key.decode(errors="replace") if isinstance(key, bytes) else str(key)

    # ---- reading ---------------------------------------------------------------------------------------------------------------

    def _read(self, index, example):
        """Puts the key and the columns of the views into `example`."""
        stored, failure = self._stored(index)
        example["key"] = stored.get("key", "")
        if failure:
            self._report(self._repaired, index, example["key"], "read retried", failure)
        for column in self._views.columns:
            value = stored.get(column)
            if value is None or (isinstance(value, list) and not value):
                raise Bad(f"missing {column}")
            example[column] = value

    def _stored(self, index):
        """(source[index], what went wrong before it worked or None); an OSError is tried again."""
        failure = None
        for pause in (*_PAUSES, None):
            try:
                return self._source[index], failure
            except OSError as error:
                if pause is None:
                    error.add_note(f"{1 + len(_PAUSES)} tries to read it failed")
                    raise
                failure = str(error)
                time.sleep(pause)

    def _columns(self):
        """The columns of the first example that can be read."""
        if not self._count:
            raise ValueError("the source is empty")
        for index in range(min(self._count, _TRIES)):
            try:
                return self._stored(index)[0].keys()
            except Bad as bad:
                last = bad
        raise Unusable(f"no usable example: the first {index + 1} are bad, the last: {last}")

    def _keep(self, index, example):
        with self._lock:
            if self._room <= 0 or index in self._kept:
                return
            decoded = [name for name in example if isinstance(name, tuple) and name[0] == "pixels"]
            for name in decoded:
                example.pop(name[1], None)
            self._room -= 1024 + sum(example[name].nbytes for name in decoded)
            self._kept[index] = example

    # ---- counting --------------------------------------------------------------------------------------------------------------

    def _look_at(self, index):
        with self._lock:
            self._looks += 1
            self._looked.add(index)

    def _report(self, causes, index, key, cause, detail):
        if causes is self._bad:
            self._look_at(index)
        key = key.decode(errors="replace") if isinstance(key, bytes) else str(key)
        with self._lock:
            if self._reports is not None:
                self._reports.append([causes is self._bad, index, key, cause, detail])
            if not causes.setdefault(cause, _Indices(self._count)).add(index) or self._log is None:
                return
            named = self._named.setdefault(cause, set())
            if index in named or len(named) >= _NAMED:
                return
            named.add(index)
            with self._log.open("a") as file:
                file.write(json.dumps({"index": index, "key": key, "cause": cause, "detail": detail}) + "\n")

    def _check(self):
        with self._lock:
            bad, looked = sum(marks.size for marks in self._bad.values()), self._looked.size
            if self._looks < _ENOUGH or bad <= self._max_bad * looked:
                return
        raise Unusable(f"{bad / looked:.1%} of the {looked:,} examples looked at so far are bad ({self._causes()}), more than "
                       f"config.data.max_bad={self._max_bad}: repair or take out what is broken, or allow more{self._where()}")

    def _causes(self):
        with self._lock:
            return ", ".join(f"{marks.size:,} x {cause}" for cause, marks in sorted(self._bad.items()))

    def _where(self):
        return f"; {self._log} names them" if self._log else ""


class _Indices:
    """A growing set of indices below `count`, in at most count / 8 bytes (a run may see a billion examples)."""

    def __init__(self, count):
        self._bits = np.zeros(-(-count // 8), np.uint8)  # the system hands out its pages as they are written to
        self.size = 0

    def add(self, index):
        """Whether `index` is new."""
        place, bit = index >> 3, 1 << (index & 7)
        new = not int(self._bits[place]) & bit
        if new:
            self._bits[place] |= bit
            self.size += 1
        return new


def _named(log):
    """{cause: indices} that a log names already. A line cut short by a crash is closed and passed over."""
    named = {}
    if log is None or not log.exists():
        return named
    text = log.read_text(errors="replace")
    if text and not text.endswith("\n"):
        with log.open("a") as file:
            file.write("\n")
    for line in text.splitlines():
        try:
            entry = json.loads(line)
            named.setdefault(entry["cause"], set()).add(entry["index"])
        except (ValueError, KeyError, TypeError):
            continue
    return named
