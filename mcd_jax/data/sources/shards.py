"""What the sources over indexed shards share: opening the indexes, choosing the examples, finding one of them."""
import bisect
import concurrent.futures
import contextlib
import itertools
import shlex

from absl import logging
import numpy as np

from mcd_jax.data.decode import Bad
from mcd_jax.data.sources.columns import check_spec, keep_rows, position
from mcd_jax.data.storage import files, index

_THREADS = 16
_UNWRITTEN = {}  # (url, stamp) -> index that could not be written: a process opens a source more than once
_MEMBERS = 12  # kinds of members that a sentence names
_LOOK = 100  # examples at the start among which one must have the columns


class Shards:
    """Indexed shards as one list of examples. In memory an example takes its index entry: about 40 bytes in a tar of three
    members and keys of nine letters, 8 in a TFRecord, and 8 more where `where` chooses."""

    def __init__(self, spec, kind, roles, declared):
        """spec: path (paths, urls or patterns), index (folder of the indexes; default: beside the shards), where, columns.

        Args:
          kind: "tar" or "tfrecord".
          roles: {role: names separated by ";", the first that an example has counts}, where spec["columns"] says nothing.
          declared: the keys that the spec may have, {key: keys.Key}.

        Raises:
          FileNotFoundError, ValueError: see `sources.open`.
        """
        check_spec(spec, declared)
        roles = {**roles, **(spec.get("columns") or {})}
        self.roles = {role: tuple(filter(None, (names or "").split(";"))) for role, names in roles.items()}
        self._wanted = tuple(spec.get("where") or ())
        urls = index.shards(spec["path"], inside=index.NAMES[kind])
        with concurrent.futures.ThreadPoolExecutor(_THREADS) as pool:
            self._files = list(pool.map(files.File, urls))
            self._indexes = list(pool.map(lambda file: index.find(file, spec.get("index"), self._wanted), self._files))
        self._build([number for number, found in enumerate(self._indexes) if found is None], spec)
        for file, found in zip(self._files, self._indexes):
            if found.kind != kind:
                raise ValueError(f"data.source.path: {file.url} is a {found.kind} file; the {spec['name']} source "
                                 f"reads {kind} files")
        self._starts = [0, *itertools.accumulate(map(len, self._indexes))]
        keep = np.concatenate([self.usable(found) for found in self._indexes])
        if spec.get("where"):
            chosen = np.zeros(len(keep), bool)
            chosen[keep_rows(self._table(), spec["where"], f"{urls[0]} and the other shards" if len(urls) > 1 else urls[0])] = True
            keep &= chosen
            if not keep.any():
                raise ValueError(f"data.source.where: no example with an image is left by {dict(spec['where'])}")
        self._rows = None if keep.all() else np.flatnonzero(keep)
        problems, without = {}, {}
        for file, found in zip(self._files, self._indexes):
            index.merge(problems, found.problems, file.url)
            index.merge(without, self.without_image(found), file.url)
        problems |= without
        self.left_out = {cause: count for cause, (count, _) in without.items()}
        if not len(self):
            members = sorted({name for found in self._indexes for name in found.members})
            many = f" and {len(members) - _MEMBERS:,} more" * (len(members) > _MEMBERS)
            told = "; ".join(line for line in index.tell(problems) if " x no image " not in line)
            told = f" ({told})" if told else ""
            raise ValueError(f"data.source.path: no example of {urls[0]} ({len(urls):,} shards) has an image; the members are "
                             f"{', '.join(members[:_MEMBERS]) or 'none'}{many}{told}; set data.source.columns.image")
        if problems:
            logging.warning("%s source: %s examples; left out or repaired in its shards: %s", spec["name"], f"{len(self):,}",
                            "; ".join(index.tell(problems)))

    def usable(self, found):
        """(n,) bool: which entries of an index are examples."""
        return np.ones(len(found), bool)

    def without_image(self, found):
        """{cause: [count, first]} of what an index holds that makes no example."""
        return {}

    def __len__(self):
        return self._starts[-1] if self._rows is None else len(self._rows)

    def chosen(self, values):
        """Those of a list with a value for each entry of the indexes that belong to the examples."""
        return list(values) if self._rows is None else [values[row] for row in self._rows.tolist()]

    def find(self, number):
        """(file, index, row in it) of example `number`."""
        number = position(number, len(self))
        row = number if self._rows is None else int(self._rows[number])
        shard = bisect.bisect_right(self._starts, row) - 1
        return self._files[shard], self._indexes[shard], row - self._starts[shard]

    def check(self, read, members=()):
        """Refuses roles for which neither `members` nor what `read(number)` gives of the first examples has a column."""
        seen = set(members)
        for role in ("image", "text"):
            names = self.roles[role]
            wanted = {part for name in names for part in (name, name.split("/")[0])}
            for number in range(min(len(self), _LOOK) if names else 0):
                if seen & wanted:
                    break
                with contextlib.suppress(Bad):
                    seen |= read(number).keys()
            if names and not seen & wanted:
                raise ValueError(f"{self._files[0].url} has no column {' or '.join(names)} for {role}; it has "
                                 f"{', '.join(sorted(seen))}; set data.source.columns.{role}")

    def _build(self, missing, spec):
        """Indexes the shards whose numbers are given."""
        if not missing:
            return
        paths = [spec["path"]] if isinstance(spec["path"], str) else list(map(str, spec["path"]))
        out = ["--out", str(spec["index"])] if spec.get("index") else []
        logging.warning("%s source: %s of %s shards have no index that fits them, the first is %s; they are read through once now. "
                        "Ahead of a run, and in parallel: mcd-jax index %s", spec["name"], f"{len(missing):,}",
                        f"{len(self._files):,}", self._files[missing[0]].url, shlex.join([*paths, *out]))
        kept = []
        with concurrent.futures.ThreadPoolExecutor(_THREADS) as pool:
            for number, (found, error) in zip(missing, pool.map(lambda n: self._made(self._files[n], spec), missing)):
                self._indexes[number] = found
                kept += [error] if error else []
        if kept:
            logging.warning("%s source: %s indexes could not be kept, so the next run reads these shards again (%s); "
                            "data.source.index names a folder for them", spec["name"], f"{len(kept):,}", kept[0])

    @staticmethod
    def _made(file, spec):
        """(the index of a shard, why it could not be written or None)."""
        found = _UNWRITTEN.pop((file.url, file.stamp), None) or index.build(file.url)
        if found.stamp != file.stamp:
            raise files.Changed(f"{file.url} changed while it was opened")
        try:
            files.write(index.place(file.url, spec.get("index")), found.dump())
        except Exception as error:  # whatever a store raises: the index in memory does as well
            _UNWRITTEN[file.url, file.stamp] = found
            return found, f"{type(error).__name__}: {error}"
        return found, None

    def _table(self):
        """{column: (all entries,) numbers} of the columns that `where` names."""
        names = sorted({name for found in self._indexes for name in found.columns})
        for file, found in zip(self._files, self._indexes):
            if not found.has(self._wanted):
                raise ValueError(f"data.source.where: the index of {file.url} was made for {found.asked}; make it again "
                                 f"with --columns {','.join(self._wanted)} or without (mcd-jax index)")
        if lacking := [name for name in self._wanted if name not in names]:
            stored = sorted({name for found in self._indexes for name in found.stored})
            raise ValueError(f"data.source.where: no shard has a field {lacking[0]!r} of numbers, and an index keeps no others; "
                             f"there {'are ' + ', '.join(stored) if stored else 'is none'}")
        return {name: np.concatenate([found.columns.get(name, np.full(len(found), np.nan)) for found in self._indexes])
                for name in names}
