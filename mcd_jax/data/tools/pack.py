"""Packs any source into ArrayRecord shards of small JPEG images, once, so that training decodes less:

    mcd-jax pack --source=my/config.py --out=DIR [--short_side=256 --quality=90 --shard_examples=10000 --workers=N]
    mcd-jax pack --source=/data/my_pairs --out=DIR
    mcd-jax pack --source name=folder path=/data/pictures table=captions.csv columns.text=title --out=DIR
    mcd-jax pack --out=DIR --verify

`--source` is a config (name or file), whose data.source is read; a path where pairs lie in any form that `detect` knows; or the
source's own keys. An example's key is what a hold-out goes by, so the same examples are held out of the result (where the source
has another key beside, as in a TFRecord, that is the column source_key). The result is read by
dict(name="array_record", path="DIR/*.array_record", columns=dict(key="key")); `encode.py` says what a record holds. Images whose
shorter side is longer than `--short_side` are reduced to it, none is enlarged. Examples that training would replace (corrupt, no
caption) are left out, counted by cause and named in DIR/bad_examples.jsonl.

The same command again goes on where the last one stopped: finished shards are kept. The same source and settings give the same
bytes, whatever the number of workers; DIR/manifest.json has sizes and sha256 of the shards, which `--verify` compares.
"""
import ast
import collections
import contextlib
import fcntl
import hashlib
import json
import os
import pathlib
import re
import sys
import time

from mcd_jax import command
from mcd_jax import config as config_lib
from mcd_jax.data import decode, sources
from mcd_jax.data import workers as workers_lib
from mcd_jax.data.tools import encode
from mcd_jax.run import atomic, small_files

NAME = "mcd_jax.data.tools.pack"   # this module, also where it is the command that runs
_DATA = (".tar", ".tfrecord", ".parquet", ".array_record", ".csv", ".tsv", ".jsonl", ".json")   # endings of a --source that is data
_SETTINGS = ("source", "short_side", "quality", "shard_examples", "keep", "source_examples")
_WHOLE = ("sidecars", "image_folder")   # sources that read all that lies below their path


# ---- one shard ----


def shard_name(number, count):
    return f"pairs-{number:05d}-of-{count:05d}.array_record"


def _names(source):
    """What a hold-out calls each example, list of str, so that the same ones are held out of what is packed; None: by its key."""
    return source.keys() if hasattr(source, "keys") else None


def write_shard(source, settings, out, number, count, names=None):
    """Writes shard `number` of `count`: the good ones of its `shard_examples` neighbours of the source, in their order.

    Args:
      names: as `_names` gives them, for the keys. A source's own key that is another stays in the column source_key.

    Returns:
      (its line of the manifest, list of lines for bad_examples.jsonl, sorted names of columns that it leaves out).

    Raises:
      atomic.Full: the disk has no room.
    """
    with atomic.room_for(out / shard_name(number, count)):
        return _shard(source, settings, out, number, count, names)


def _shard(source, settings, out, number, count, names):
    from array_record.python import array_record_module

    size = settings["shard_examples"]
    first, bad, left_out, examples = number * size, [], set(), 0
    name = shard_name(number, count)
    part = out / f".{name}.{os.getpid()}.part"   # its own: a worker of a run that was killed may still be writing
    writer = array_record_module.ArrayRecordWriter(str(part), "group_size:1")
    for index in range(first, min(first + size, settings["source_examples"])):
        key = names[index] if names else str(index)
        try:
            example = source[index]
            own = str(example["key"])
            key = names[index] if names else own
            example = {**example, "key": key, **({"source_key": own} if own != key else {})}
            data, more = encode.record(example, settings["short_side"], settings["quality"], (*settings["keep"], "source_key"))
        except decode.Bad as error:
            bad.append({"index": index, "key": key, "cause": error.cause, "detail": error.detail})
            continue
        except Exception as error:
            error.add_note(f"while packing example {index} of {settings['source_examples']}")
            raise
        writer.write(data)
        left_out |= more
        examples += 1
    writer.close()
    line = {"file": name, "first": first, "examples": examples, "bytes": 0, "sha256": "", "bad": len(bad)}
    if examples:
        line["bytes"], line["sha256"] = os.path.getsize(part), digest(part)
        _sync(part)
        os.replace(part, out / name)
    else:   # a file without records can't be opened
        part.unlink()
    return line, bad, sorted(left_out)


def digest(path):
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _sync(path):
    with path.open("rb") as file:
        os.fsync(file.fileno())


# ---- all of them ----


def pack(source, out, short_side=256, quality=90, shard_examples=10_000, workers=1, keep=(), say=print):
    """Packs a source into the local folder `out`.

    Args:
      source: as `config.data.source`. short_side: pixels, 0 for as it is. quality: of the JPEGs, 1 to 100.
      shard_examples: examples of the source per shard. workers: processes. keep: text columns to carry along.

    Returns:
      the manifest, a dict.

    Raises:
      ValueError: a bad value, or `out` holds what other settings made. RuntimeError: no example is good.
      BlockingIOError: another process packs into `out`.
    """
    for name, value, least in (("short_side", short_side, 0), ("quality", quality, 1), ("shard_examples", shard_examples, 1),
                               ("workers", workers, 1)):
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise ValueError(f"{name}={value!r} must be a whole number of at least {least}")
    if quality > 100:
        raise ValueError(f"quality={quality} must be at most 100")
    opened, out = sources.open(source), pathlib.Path(out)
    missing = [name for name in keep if not len(opened) or name not in opened[0] or name in encode.ROLES]
    if missing:
        raise ValueError(f"--keep={','.join(missing)}: the source has no such column to carry along")
    spec = json.loads(json.dumps(source.to_dict() if hasattr(source, "to_dict") else dict(source)))
    _refuse_own_folder(spec, out)
    settings = dict(zip(_SETTINGS, (spec, short_side, quality, shard_examples, list(keep), len(opened))))
    out.mkdir(parents=True, exist_ok=True)
    with _locked(out):
        try:
            return _pack(opened, out, settings, workers, say)
        finally:
            _remove_parts(out)


def _refuse_own_folder(spec, out):
    """Refuses to pack a data set into its own folder, or into one below a folder that is read whole: a ValueError."""
    for key, value in spec.items():
        if isinstance(value, dict):
            _refuse_own_folder(value, out)
        elif key in ("path", "images", "captions", "table") and isinstance(value, str) and "://" not in value:
            folder = pathlib.Path(re.split(r"[*?\[{]", value)[0])
            folder = (folder if os.path.isdir(value) or value.startswith(f"{folder}/") else folder.parent).resolve()
            if out.resolve() == folder or (spec.get("name") in _WHOLE and folder in out.resolve().parents):
                raise ValueError(f"--out={out} lies in the folder of the source, {value}, and what is packed couldn't be told from "
                                 "it afterwards: choose a folder elsewhere")


def _pack(source, out, settings, workers, say):
    count = -(-settings["source_examples"] // settings["shard_examples"])
    done, bad, left_out = _finished(out, settings, count)
    todo = [number for number in range(count) if number not in done]
    if done:
        say(f"{len(done)} of {count} shards are finished already")
    start, seen = time.perf_counter(), 0
    with contextlib.closing(_shards(source, out, settings, workers, todo, count)) as made:   # no worker outlives it
        for number, (line, worse, names) in made:
            done[number], left_out = line, left_out | set(names)
            bad += worse
            seen += line["examples"] + line["bad"]
            _save(out, settings, done, bad, left_out, count)
            say(f"{line['file']}: {line['examples']:,} examples, {line['bad']:,} bad, {line['bytes'] / 1e6:.1f} MB; "
                f"{seen / (time.perf_counter() - start):.0f} examples/s")
    manifest = _save(out, settings, done, bad, left_out, count)
    if not manifest["examples"]:
        raise RuntimeError(f"no example of the source is good: {_causes(manifest)}; {out}/bad_examples.jsonl names them")
    return manifest


def _shards(source, out, settings, workers, todo, count):
    """(number, result of write_shard) of each of `todo`, as they are finished."""
    if min(workers, len(todo)) < 2:
        names = _names(source) if todo else None
        for number in todo:
            yield number, write_shard(source, settings, out, number, count, names)
        return
    yield from workers_lib.unordered(f"{NAME}:shard_maker", (settings, out, count), todo, workers)


def shard_maker(settings, out, count):
    """number -> result of `write_shard`, in a worker process."""
    source = sources.open(settings["source"])
    names = _names(source)
    return lambda number: write_shard(source, settings, out, number, count, names)


def _finished(out, settings, count):
    """({number: line} of the shards that an earlier run finished, the lines of their bad examples, the columns left out)."""
    _remove_parts(out)
    path = out / "manifest.json"
    if not path.exists():
        strange = sorted(p.name for p in out.glob("*.array_record"))
        if [name for name in strange if name not in {shard_name(i, count) for i in range(count)}]:
            raise ValueError(f"{out} holds {strange[0]}, which isn't of this packing: choose another --out")
        return {}, [], set()
    manifest = _manifest(path)
    other = [key for key in _SETTINGS if manifest.get(key) != settings[key]]
    if other:
        raise ValueError(f"{out} was packed with {other[0]}={manifest.get(other[0])!r}, now it is {settings[other[0]]!r}: choose "
                         "another --out, or remove it")
    done = {line["first"] // settings["shard_examples"]: line for line in manifest["shards"] if _there(out, line)}
    log, size = out / "bad_examples.jsonl", settings["shard_examples"]
    bad = [line for line in small_files.lines(log) if isinstance(line.get("index"), int) and "cause" in line]
    return done, [line for line in bad if line["index"] // size in done], set(manifest["left_out"])


def _manifest(path):
    manifest = small_files.read(path)
    shards = manifest.get("shards")
    if {"complete", "left_out"} - manifest.keys() or not isinstance(shards, list) or any(
            not isinstance(line, dict) or {"first", "file", "examples", "bytes", "sha256"} - line.keys() for line in shards):
        raise ValueError(f"{path} isn't what `mcd-jax pack` writes: remove it and the shards beside it, and pack again")
    return manifest


def _remove_parts(out):
    """Removes what isn't whole; by the lock, nobody else is writing it."""
    for part in [*out.glob(".pairs-*.part"), *out.glob(".*.json*.part")]:
        part.unlink(missing_ok=True)


def _there(out, line):
    path = out / line["file"]
    return not line["examples"] or (path.is_file() and path.stat().st_size == line["bytes"])


def _save(out, settings, done, bad, left_out, count):
    bad = sorted(bad, key=lambda line: line["index"])
    lines, causes = [done[number] for number in sorted(done)], collections.Counter(line["cause"] for line in bad)
    manifest = {**settings, "complete": len(done) == count, "examples": sum(line["examples"] for line in lines),
                "bytes": sum(line["bytes"] for line in lines), "bad": dict(sorted(causes.items())),
                "left_out": sorted(left_out), "shards": lines}
    _replace(out / "bad_examples.jsonl", "".join(json.dumps(line) + "\n" for line in bad))   # first: the manifest says what is done
    _replace(out / "manifest.json", json.dumps(manifest, indent=1) + "\n")
    return manifest


def _replace(path, content):
    atomic.write_text(path, content)


@contextlib.contextmanager
def _locked(out):
    handle = os.open(out, os.O_RDONLY)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise BlockingIOError(f"another process packs into {out}") from error
        yield
    finally:
        os.close(handle)


def verify(out):
    """What is wrong with a packed folder, a list of sentences: shards missing, of other bytes or another number of records.

    Raises:
      FileNotFoundError: `out` has no manifest.json.
    """
    from array_record.python import array_record_module

    out = pathlib.Path(out)
    path = out / "manifest.json"
    if not path.exists():
        raise FileNotFoundError(f"{path} does not exist: has anything been packed into {out}?")
    manifest = _manifest(path)
    wrong = [] if manifest["complete"] else [f"{path} is not complete: start the same packing again"]
    for line in manifest["shards"]:
        file = out / line["file"]
        if not line["examples"]:
            continue
        if not file.is_file():
            wrong.append(f"{file} is missing")
        elif file.stat().st_size != line["bytes"] or digest(file) != line["sha256"]:
            wrong.append(f"{file} isn't what was packed: it has {file.stat().st_size:,} bytes of {line['bytes']:,} "
                         "or another sha256; remove it and start the packing again")
        else:
            reader = array_record_module.ArrayRecordReader(str(file))
            if reader.num_records() != line["examples"]:
                wrong.append(f"{file} has {reader.num_records()} records of {line['examples']}")
            reader.close()
    return wrong


# ---- the command ----


def read_source(words):
    """`config.data.source` of a config (its name or file, with ":arguments" if it takes any), of what lies at a path, or of
    KEY=VALUE words.

    "columns.text=title" reaches inside; a value that reads as a Python literal is one, all others are text.
    """
    if len(words) == 1 and (os.path.isdir(words[0]) or "://" in words[0] or words[0].endswith(_DATA)):
        from mcd_jax.data.detect.detect import detect  # brings in jax, which packing does not need
        found = detect(words[0])
        if found.held_out:
            raise ValueError(f"--source={words[0]} keeps a part for validation ({found.notes[-1]}): pack each by its own path or "
                             "keys")
        return found.spec
    if len(words) == 1 and "=" not in words[0].partition(":")[0]:
        return config_lib.from_file(words[0]).data.source.to_dict()
    spec = {}
    for word in words:
        key, equals, value = word.partition("=")
        if not equals or not key:
            raise ValueError(f"--source {word!r}: write KEY=VALUE, such as name=folder, or one config")
        with contextlib.suppress(ValueError, SyntaxError):
            value = ast.literal_eval(value)
        *outer, last = key.split(".")
        inside = spec
        for name in outer:
            inside = inside.setdefault(name, {})
        inside[last] = value
    return spec


def _causes(manifest):
    return ", ".join(f"{count:,} x {cause}" for cause, count in manifest["bad"].items())


def main(args=None):
    parser = command.Parser(prog="mcd-jax pack", description=__doc__)
    parser.add_argument("--source", action="extend", nargs="+", default=[], metavar="CONFIG, PATH or KEY=VALUE")
    parser.add_argument("--out", type=command.local_path, required=True, help="a local folder")
    parser.add_argument("--short_side", type=command.whole(0), default=256, help="pixels; 0: as it is")
    parser.add_argument("--quality", type=command.whole(1, 100), default=90, help="of the JPEGs")
    parser.add_argument("--shard_examples", type=command.whole(1), default=10_000, help="examples of the source per shard")
    parser.add_argument("--workers", type=command.whole(1), default=os.cpu_count(), help="processes")
    parser.add_argument("--keep", default="", metavar="A,B", help="text columns to carry along")
    parser.add_argument("--verify", action="store_true", help="only compare --out with its manifest")
    args = parser.parse_args(args)
    with command.sentences():
        if args.verify:
            wrong = verify(args.out)
            print("\n".join(wrong) or f"{args.out}: every shard is what was packed")
            sys.exit(1 if wrong else 0)
        if not args.source:
            parser.error("--source is needed: a config, a path of pairs or KEY=VALUE words")
        manifest = pack(read_source(args.source), args.out, args.short_side, args.quality, args.shard_examples, args.workers,
                        tuple(filter(None, args.keep.split(","))), lambda line: print(line, flush=True))
    bad = sum(manifest["bad"].values())
    print(f"packed {manifest['examples']:,} examples in {manifest['bytes'] / 1e6:.1f} MB; left out {bad:,} bad"
          + (f" ({_causes(manifest)})" if bad else "")
          + (f" and the columns {', '.join(manifest['left_out'])}" if manifest["left_out"] else "")
          + f"\nread it by data.source=dict(name='array_record', path='{args.out}/*.array_record', columns=dict(key='key'))")


if __name__ == "__main__":
    main()
