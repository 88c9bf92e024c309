"""Reads examples from a source: replaces bad ones by the next good one, counts and logs them, keeps decoded images."""
import json
import pathlib
import threading

from mcd_jax.data.image import Bad

_TRIES = 1000  # bad examples in a row after which the source, not an example, is to blame


class Reader:
    """A source seen through views.

    Attributes:
      stats: {cause: number of different examples with it so far}: bad ones, which were replaced, and repaired ones.
    """

    def __init__(self, source, views, cache=False, log=None):
        self.stats = {}
        self._source = source
        self._views = views
        self._room = (1024 if cache is True else cache or 0) * 2 ** 20
        self._kept = {}
        self._bad = {}
        self._seen = set()
        self._lock = threading.Lock()
        self._log = None if log is None else pathlib.Path(log)
        if self._log is not None and self._log.exists():
            self._logged = {(line["index"], line["cause"])
                            for line in map(json.loads, self._log.read_text().splitlines())}
        else:
            self._logged = set()
        views.check(source[0].keys())

    def row(self, index, draws):
        """(result of the views, index used): of example `index`, or if that is bad of the next good one, cyclically.

        Raises:
          RuntimeError: there is no good one within reach.
        """
        count = len(self._source)
        tries = min(count, _TRIES)
        for used in range(index, index + tries):
            used %= count
            if used in self._bad:
                continue
            example = self._read(used)
            try:
                result = self._views(example, draws)
            except Bad as bad:
                self._bad[used] = bad.cause
                self._report(used, example, bad.cause, bad.detail)
                continue
            except Exception as error:
                error.add_note(f"while making the views of example {used} of {count}")
                raise
            for note in example.pop("notes", ()):
                self._report(used, example, note, "")
            self._keep(used, example)
            return result, used
        causes = ", ".join(f"{count} x {cause}" for cause, count in sorted(self.stats.items()))
        raise RuntimeError(f"no usable example: {tries} in a row from index {index} are bad ({causes})"
                           + (f"; {self._log} names them" if self._log else ""))

    def _read(self, index):
        kept = self._kept.get(index)
        if kept is not None:
            return kept
        try:
            stored = self._source[index]
        except Exception as error:
            error.add_note(f"while reading example {index} of {len(self._source)}")
            raise
        example = {column: stored[column] for column in self._views.columns}
        example["key"] = stored.get("key", "")
        return example

    def _keep(self, index, example):
        if self._room <= 0 or index in self._kept:
            return
        decoded = [name for name in example if isinstance(name, tuple) and name[0] == "pixels"]
        for name in decoded:
            example.pop(name[1], None)
        self._room -= 1024 + sum(example[name].nbytes for name in decoded)
        self._kept[index] = example

    def _report(self, index, example, cause, detail):
        with self._lock:
            if (index, cause) in self._seen:
                return
            self._seen.add((index, cause))
            self.stats[cause] = self.stats.get(cause, 0) + 1
            if self._log is not None and (index, cause) not in self._logged:
                key = example["key"]
                line = {"index": index, "key": key.decode(errors="replace") if isinstance(key, bytes) else str(key),
                        "cause": cause, "detail": detail}
                with self._log.open("a") as file:
                    file.write(json.dumps(line) + "\n")
