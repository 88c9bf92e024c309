"""One small index per shard, made once: `python -m mcd_jax.data.index SHARDS... [--out DIR] [--workers N] [--columns a,b]`.

Sequential shards (tar, TFRecord) become random access. SHARDS are paths, urls or patterns ("/data/cc3m/{00000..00331}.tar").
SHARD.index lies beside its shard, or in DIR (a folder or a url), which then belongs to one data set. It holds where each
example's members are, their keys, and columns of numbers, by which a source's `where` chooses examples: the top-level numbers of
the .json member or of the tf.Example, all of them or those that --columns names.

The command may be stopped and started again: shards whose index is there and fits are passed over. A shard that changed since
(another size or time) is read again. It ends with what was found, and status 1 if a shard could not be indexed.
An index is a numpy .npz without pickled objects; it is written under another name and then renamed.
"""
import argparse
import collections
import concurrent.futures
import io
import json
import multiprocessing
import os
import sys
import time
import urllib.parse
import zipfile

import numpy as np

from mcd_jax.data import files, records, tar

VERSION = 1
ENDING = ".index"
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
      asked: list of the columns that were asked for, or None for all.
      problems: {cause: [count, first]}.
    """

    def __init__(self, kind, stamp, members, places, sizes, names, columns, asked, problems):
        self.kind, self.stamp, self.members, self.asked, self.problems = kind, stamp, members, asked, problems
        self.unit = tar.BLOCK if kind == "tar" else 1
        self.places, self.sizes, self.columns = places, sizes, columns
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
                           (stored["text"], stored["ends"]), wanted, about["asked"], about["problems"])
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


def shards(patterns, name="data.source.path"):
    """files.expand without index files."""
    found = [url for url in files.expand(patterns, name) if not url.endswith(ENDING)]
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

    from mcd_jax.data.sources import parse_example

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


def _one(url, out, columns):
    """(whether it was there already, examples, problems, error) of one shard; runs in a process of its own."""
    try:
        found = find(files.File(url), out)
        there = found is not None and found.has(columns)
        found = found if there else make(url, out, columns)
    except Exception as error:
        return False, 0, {}, str(error) if isinstance(error, (OSError, ValueError)) else f"{url}: {type(error).__name__}: {error}"
    return there, len(found), found.problems, None


def main(argv=None):
    """Returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m mcd_jax.data.index", description=__doc__.partition("\n\n")[2],
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("shards", nargs="+", metavar="SHARDS")
    parser.add_argument("--out", metavar="DIR", help="where to write, if not beside the shards")
    parser.add_argument("--workers", type=int, default=os.cpu_count(), metavar="N", help="processes (default: one per core)")
    parser.add_argument("--columns", metavar="a,b", help="numbers to keep (default: all; '' for none)")
    args = parser.parse_args(argv)
    columns = None if args.columns is None else [name for name in args.columns.split(",") if name]
    try:
        urls = shards(args.shards, "SHARDS")
        twice = [name for name, count in collections.Counter(map(files.basename, urls)).items() if count > 1]
        if twice and args.out:
            raise ValueError(f"--out {args.out}: {twice[0]} comes more than once in SHARDS; give each folder an --out of its own")
    except (OSError, ValueError, ImportError) as error:
        print(error, file=sys.stderr)
        return 1
    if args.out and files.is_local(args.out):
        os.makedirs(files.path(args.out), exist_ok=True)
    start, said = time.monotonic(), time.monotonic()
    there, examples, problems, failed = 0, 0, {}, []
    for number, (url, (old, count, found, error)) in enumerate(_all(urls, args.out, columns, args.workers), 1):
        there, examples = there + old, examples + count
        merge(problems, found, url)
        if error:
            failed.append(error)
            print(error, file=sys.stderr, flush=True)
        if time.monotonic() - said > 10:
            said = time.monotonic()
            print(f"{number:,} of {len(urls):,} shards, {examples:,} examples", flush=True)
    good = len(urls) - len(failed)
    print(f"{examples:,} examples in {good:,} of {len(urls):,} shards: {good - there:,} indexed in "
          f"{time.monotonic() - start:.1f} s, {there:,} had an index, {len(failed):,} failed")
    for line in tell(problems):
        print(f"  {line}")
    return 1 if failed else 0


def _all(urls, out, columns, workers):
    """Yields (url, result of _one) as they are done. Processes: parsing headers holds Python's lock."""
    if workers <= 1 or len(urls) == 1:
        for url in urls:
            yield url, _one(url, out, columns)
        return
    context = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(min(workers, len(urls)), mp_context=context) as pool:
        jobs = {pool.submit(_one, url, out, columns): url for url in urls}
        for job in concurrent.futures.as_completed(jobs):
            yield jobs[job], job.result()


if __name__ == "__main__":
    sys.exit(main())
