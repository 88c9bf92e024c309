"""One small index per shard, made once by `mcd-jax index`: sequential shards become random access.

SHARD.index lies beside its shard, or in another folder. It holds where each example's members are, their keys, and columns of
numbers, by which a source's `where` chooses examples. An index is a numpy .npz without pickled objects; it is written under another
name and then renamed.
"""
import collections
import io
import json
import os
import urllib.parse
import zipfile

import numpy as np

from mcd_jax.data.storage import files, records, tar

VERSION = 1
ENDING = ".index"
NAMES = {"tar": ("*.tar",), "tfrecord": ("*.tfrecord", "*.tfrecords", "*.tfrecord*-of-*")}   # of shards in a folder
_COLUMNS = 256  # columns of numbers that one shard may have
_PACKED = {b"\x1f\x8b": ("gzip", "gunzip"), b"BZh": ("bzip2", "bunzip2"), b"\xfd7zXZ": ("xz", "unxz"),
           b"\x28\xb5\x2f\xfd": ("zstd", "unzstd")}


class Index:
    """Where the examples of one shard are.

    Attributes:
      kind: "tar" or "tfrecord".
      stamp: of the shard that was read (see files.File).
      members: kinds of members, list of m str ("jpg", "txt", ...); a TFRecord has one, "record".
      places: (n, m) unsigned, byte offsets in units of `unit`; 0 where an example lacks that member.
      sizes: (n, m) unsigned, bytes.
      unit: 512 for tar, else 1.
      columns: {name: (n,) numbers}, as far as they were loaded; a missing value is NaN.
      stored: list of the names of all columns of its file.
      asked: list of the columns that were asked for, or None for all.
      problems: {cause: [count, first]}.
    """

    def __init__(self, kind, stamp, members, places, sizes, names, columns, asked, problems, stored=None):
        self.kind, self.stamp, self.members, self.asked, self.problems = kind, stamp, members, asked, problems
        self.unit = tar.BLOCK if kind == "tar" else 1
        self.places, self.sizes, self.columns = places, sizes, columns
        self.stored = list(columns) if stored is None else stored
        self._text, self._ends = names

    def __len__(self):
        return len(self.places)

    def key(self, row):
        """bytes, or None if the shard has no keys of its own."""
        if not len(self._ends):
            return None
        return self._text[self._ends[row - 1] if row else 0:self._ends[row]].tobytes()

    def where(self, row):
        """[(member, offset, size)] of one example, in bytes."""
        return [(name, int(place) * self.unit, int(size))
                for name, place, size in zip(self.members, self.places[row].tolist(), self.sizes[row].tolist()) if place]

    def dump(self):
        """The bytes of its file."""
        about = {"version": VERSION, "kind": self.kind, "stamp": self.stamp, "members": self.members, "asked": self.asked,
                 "problems": self.problems, "columns": list(self.columns)}
        arrays = {f"column {number}": values for number, values in enumerate(self.columns.values())}
        file = io.BytesIO()
        np.savez(file, about=np.frombuffer(json.dumps(about).encode(), np.uint8), places=self.places, sizes=self.sizes,
                 text=self._text, ends=self._ends, **arrays)
        return file.getvalue()

    @classmethod
    def load(cls, url, columns=()):
        """Reads an index file, and of its columns those named (None: all). FileNotFoundError if there is none, ValueError if
        it is no index of this version."""
        file = files.File(url)
        data = io.BytesIO(file.read(0, file.size))
        try:
            with np.load(data, allow_pickle=False) as stored:
                about = json.loads(stored["about"].tobytes())
                if about["version"] != VERSION:
                    raise ValueError(f"version {about['version']}")
                wanted = {name: stored[f"column {number}"] for number, name in enumerate(about["columns"])
                          if columns is None or name in columns}
                self = cls(about["kind"], about["stamp"], about["members"], stored["places"], stored["sizes"],
                           (stored["text"], stored["ends"]), wanted, about["asked"], about["problems"], about["columns"])
                shape = (len(self), len(self.members))
                if not (self.places.shape == self.sizes.shape == shape and len(self._ends) in (0, len(self))
                        and all(values.shape == shape[:1] for values in wanted.values())):
                    raise ValueError("its arrays don't fit together")
        except (ValueError, KeyError, TypeError, zipfile.BadZipFile, EOFError) as error:
            raise ValueError(f"{url} is no index of version {VERSION}: {error}") from error
        return self

    def has(self, columns):
        """Whether `columns` (names, or None for all) were looked for when it was made."""
        return self.asked is None or (columns is not None and set(columns) <= set(self.asked))


def place(url, out=None):
    """Where the index of a shard lies."""
    url = os.fspath(url)
    if out is not None:
        return os.path.join(out, files.basename(url) + ENDING)
    if url.startswith(("http://", "https://")):
        parts = urllib.parse.urlsplit(url)
        return parts._replace(path=parts.path + ENDING).geturl()
    return url + ENDING


def find(file, out=None, columns=()):
    """The index of a shard (a files.File), or None if there is none that fits."""
    try:
        found = Index.load(place(file.url, out), columns)
    except (OSError, ValueError):  # some servers forbid what they don't have
        return None
    return found if found.stamp == file.stamp else None


def build(url, columns=None):
    """Reads a shard once, front to back.

    Args:
      columns: names of the numbers to keep; None for all, () for none.

    Raises:
      ValueError: the file is neither a tar nor a TFRecord, or is compressed.
      OSError: it can't be read, or changed meanwhile.
    """
    file = files.File(url)
    window = tar.Window(file, 2 ** 20 if files.is_local(url) else 2 ** 23)
    kind = _kind(file, window)
    problems = {}

    def problem(cause, detail):
        problems.setdefault(cause, [0, detail])[0] += 1

    wanted = columns is None or len(columns) > 0
    if kind == "tar":
        keys, members, found, fields = tar.examples(window, file.size, wanted, problem)
    else:
        keys, members, found, fields = _records(window, file.size, wanted, problem)
    count = len(keys) if kind == "tar" else len(found)
    row, member, offset, size = np.array(found, np.int64).reshape(-1, 4).T
    places, sizes = np.zeros((2, count, len(members)), np.int64)
    places[row, member] = offset // (tar.BLOCK if kind == "tar" else 1)
    sizes[row, member] = size
    names = (np.frombuffer(b"".join(keys), np.uint8), _small(np.cumsum([len(key) for key in keys], dtype=np.int64)))
    numbers = _numbers(fields, count, columns, problem)
    file.check()
    return Index(kind, file.stamp, members, _small(places), _small(sizes), names, numbers,
                 None if columns is None else list(columns), problems)


def make(url, out=None, columns=None):
    """Builds the index of a shard and writes it; see `build`."""
    made = build(url, columns)
    files.write(place(url, out), made.dump())
    return made


def shards(patterns, name="data.source.path", inside=(*NAMES["tar"], *NAMES["tfrecord"])):
    """files.expand without index files."""
    found = [url for url in files.expand(patterns, name, inside) if not url.endswith(ENDING)]
    if not found:
        raise FileNotFoundError(f"{name}: {patterns!r} fits nothing but index files")
    return found


def tell(problems):
    """{cause: [count, first]} as a list of phrases."""
    return [f"{count:,} x {cause} (the first: {first})" for cause, (count, first) in sorted(problems.items())]


def merge(total, problems, url):
    """Adds the problems of one shard to those of all."""
    for cause, (count, first) in problems.items():
        total.setdefault(cause, [0, f"{files.basename(url)}, {first}"])[0] += count


def _kind(file, window):
    if not file.size:
        raise ValueError(f"{file.url} is empty: a shard has at least one block")
    head = window.get(0, min(file.size, tar.BLOCK))
    for magic, (name, tool) in _PACKED.items():
        if head.startswith(magic):
            raise ValueError(f"{file.url} is compressed by {name}, where nothing can be read without what precedes it; "
                             f"unpack it first ({tool}: images don't shrink anyway)")
    if len(head) == tar.BLOCK and (tar.is_head(head) or not head.strip(b"\0")):
        return "tar"
    if len(head) >= records.HEAD and records.length(head[:records.HEAD]) is not None:
        return "tfrecord"
    raise ValueError(f"{file.url} is neither a tar archive nor a TFRecord file: it begins with {head[:16]!r}")


def _records(window, size, wanted, problem):
    from google.protobuf.message import DecodeError

    from mcd_jax.data.storage.examples import parse_example

    found, fields = [], {}
    for offset, length in records.records(window, size, problem):
        data = window.get(offset, length + records.TAIL)
        if records.intact(data[:length], data[length:]) is False:
            problem("corrupt record", f"at byte {offset}")
            continue
        if wanted:
            try:
                values = parse_example(data[:length])
            except DecodeError:
                problem("not a tf.train.Example", f"at byte {offset}")
                continue
            fields[len(found)] = {name: value[0] for name, value in values.items() if len(value) == 1}
        found.append((len(found), 0, offset, length))
    return [], ["record"], found, fields


def _numbers(fields, count, asked, problem):
    """{column: (count,) numbers} of {row: {name: any value}}: numbers and flags; what is missing or no number is NaN."""
    found = collections.defaultdict(list)
    for row, values in fields.items():
        for name, value in values.items():
            if isinstance(value, (int, float)) and (asked is None or name in asked):
                if name in found or len(found) < _COLUMNS:
                    found[name].append((row, value))
                else:
                    problem("too many columns", name[:200])
    columns = {name: np.full(count, np.nan) for name in asked or ()}
    for name, pairs in found.items():
        rows, values = zip(*pairs)
        if len(rows) == count and all(isinstance(value, int) and abs(value) < 2 ** 62 for value in values):
            columns[name] = _small(np.array(values, np.int64))
        else:
            columns[name] = np.full(count, np.nan)
            columns[name][list(rows)] = [value if abs(value) < 1e300 or isinstance(value, float) else np.nan for value in values]
    return dict(sorted(columns.items()))


def _small(values):
    """Integers in the smaller type that holds them."""
    if not values.size or (values.min() >= 0 and values.max() < 2 ** 32):
        return values.astype(np.uint32)
    return values.astype(np.int64)
