"""One small index per shard, made once: `mcd-jax index SHARDS... [--out DIR] [--workers N] [--columns a,b]`.

Sequential shards (tar, TFRecord) become random access. SHARDS are paths, urls or patterns ("/data/cc3m/{00000..00331}.tar").
SHARD.index lies beside its shard, or in DIR (a folder or a url), which then belongs to one data set. It holds where each
example's members are, their keys, and columns of numbers, by which a source's `where` chooses examples: the top-level numbers of
the .json member or of the tf.Example, all of them or those that --columns names.

The command may be stopped and started again: shards whose index is there and fits are passed over. A shard that changed since
(another size or time) is read again. It ends with what was found, and status 1 if a shard could not be indexed.
"""
import collections
import contextlib
import os
import sys
import time

from mcd_jax import command
from mcd_jax.data import workers as workers_lib
from mcd_jax.data.storage import files, index, tar


def maker(out, columns):
    """url -> `_one`, in a worker process."""
    return lambda url: _one(url, out, columns)


def _one(url, out, columns):
    """(whether it was there already, examples, problems, error, its bytes) of the index of one shard.

    The bytes are what `_written` has still to write, or None. A bucket takes an object whole or not at all, from any process; the
    file system doesn't, so that the process that clears up writes there.
    """
    try:
        found = index.find(files.File(url), out)
        if found is not None and found.has(columns):
            return True, len(found), _problems(found), None, None
        found, place = index.build(url, columns), index.place(url, out)
        if files.is_local(place):
            return False, len(found), _problems(found), None, found.dump()
        files.write(place, found.dump())
    except Exception as error:
        return False, 0, {}, _sentence(url, error), None
    return False, len(found), _problems(found), None, None


def _problems(found):
    """What is odd about an index, and what of a tar no example takes."""
    return {**found.problems, **(tar.without_image(found, tar.IMAGES.split(";")) if found.kind == "tar" else {})}


def _written(url, out, result):
    """A result of `_one` without its bytes, which are in the file now."""
    *result, data = result
    try:
        if data is not None:
            files.write(index.place(url, out), data)
    except OSError as error:
        return False, 0, {}, _sentence(url, error)
    return result


def _sentence(url, error):
    return command.sentence(error) if isinstance(error, (OSError, ValueError)) else f"{url}: {type(error).__name__}: {error}"


def main(argv=None):
    """Returns the exit status."""
    parser = command.Parser(prog="mcd-jax index", description=(__doc__ or "").partition("\n\n")[2])
    parser.add_argument("shards", nargs="+", metavar="SHARDS")
    parser.add_argument("--out", type=command.path, metavar="DIR", help="where to write, if not beside the shards")
    parser.add_argument("--workers", type=command.whole(1), default=os.cpu_count(), metavar="N",
                        help="processes (default: one per core)")
    parser.add_argument("--columns", metavar="a,b", help="numbers to keep (default: all; '' for none)")
    args = parser.parse_args(argv)
    columns = None if args.columns is None else [name for name in args.columns.split(",") if name]
    with command.sentences():
        return make(args.shards, args.out, args.workers, columns)


def make(shards, out, workers, columns):
    """Indexes what `shards` names; returns the exit status.

    Raises:
      ValueError, OSError: there is nothing to index, or two indexes would have one name.
    """
    urls = index.shards(shards, "SHARDS")
    twice = [name for name, count in collections.Counter(map(files.basename, urls)).items() if count > 1]
    if twice and out:
        raise ValueError(f"--out {out}: {twice[0]} comes more than once in SHARDS; give each folder an --out of its own")
    if out and files.is_local(out):
        os.makedirs(files.path(out), exist_ok=True)
    start, said = time.monotonic(), time.monotonic()
    there, examples, problems, failed = 0, 0, {}, []
    with contextlib.closing(_all(urls, out, columns, workers)) as made:   # no worker outlives it
        for number, (url, (old, count, found, error)) in enumerate(made, 1):
            there, examples = there + old, examples + count
            index.merge(problems, found, url)
            if error:
                failed.append(error)
                print(error, file=sys.stderr, flush=True)
            if time.monotonic() - said > 10:
                said = time.monotonic()
                print(f"{number:,} of {len(urls):,} shards, {examples:,} examples", flush=True)
    good = len(urls) - len(failed)
    print(f"{examples:,} examples in {good:,} of {len(urls):,} shards: {good - there:,} indexed in "
          f"{time.monotonic() - start:.1f} s, {there:,} had an index, {len(failed):,} failed")
    for line in index.tell(problems):
        print(f"  {line}")
    return 1 if failed else 0


def _all(urls, out, columns, processes):
    """Yields (url, result of _written) as they are done. Processes: parsing headers holds Python's lock."""
    if processes <= 1 or len(urls) == 1:
        results = ((url, _one(url, out, columns)) for url in urls)
    else:
        results = workers_lib.unordered("mcd_jax.data.tools.index:maker", (out, columns), urls, processes)
    with contextlib.closing(results):
        for url, result in results:
            yield url, _written(url, out, result)


if __name__ == "__main__":
    sys.exit(main())
