"""What lies at a path: `detect("/data/my_pairs")` is the spec of the source that reads it, and sentences on what was seen.

Pure: it lists files, and reads a footer, a header line or a few rows. What it knows (see docs/your_data.md):

  tar, TFRecord, array_record, Parquet shards    also img2dataset's, with 00000.parquet and 00000_stats.json beside them
  images with .txt, .caption or .json beside     also img2dataset's output_format="files"
  images and one table                           csv, tsv, jsonl; COCO's or Karpathy's json
  a folder for each class                        no captions: the names of the classes stand for them

Where the data set itself keeps a part for validation (folders train/ and val/, files train-*.parquet and validation-*.parquet,
Karpathy's splits), that part is `held_out`.
"""
import json
import os
import re

from mcd_jax.data.detect import parquet_columns, table_columns
from mcd_jax.data.detect.found import PARTS, Found, joined, mixed, parts
from mcd_jax.data.sources.image_folder import ENDINGS as IMAGES
from mcd_jax.data.sources.image_folder import ImageFolder, prettified
from mcd_jax.data.sources.sidecars import TEXTS
from mcd_jax.data.sources.tables import DELIMITERS
from mcd_jax.data.storage import files
from mcd_jax.data.storage.stores import is_local

SHARDS = (   # kind, source, regex of the name
    ("tar shards", "webdataset", r"\.tar$"),
    ("TFRecord shards", "tfrecord", r"\.tfrecords?(-\d+-of-\d+)?$"),
    ("array_record shards", "array_record", r"\.array_?record(-\d+-of-\d+)?$"),
    ("Parquet files", "parquet", r"\.parquet$"),
)
COLUMNS = {"webdataset": "image .jpg, .png, ...; text .txt, else \"caption\" of the .json; key the members' name",
           "tfrecord": "image jpg, png, image, ...; text caption, text or txt; key key",
           "array_record": "image image, text text, key key",
           "sidecars": "image the file; text .txt, else .caption, else \"caption\" or \"text\" of the .json; key its path"}
PACKED = r"\.(zip|tgz|tar\.(gz|bz2|xz|zst)|7z|rar)$"
_SKIPPED = ("_tmp", "__MACOSX")
_PASSED = (".index", ".md", ".log", ".yaml", ".yml")
_NAMES = ("LICENSE", "NOTICE", "_SUCCESS", "_metadata", "_common_metadata", "Thumbs.db", "manifest.json",
          "bad_examples.jsonl")


def detect(path: str, image: str = "", text: str = "", key: str = "") -> Found:
    """The `Found` of a path.

    Args:
      path: a file, a folder, a pattern ("/data/{00000..00331}.tar", "gs://bucket/*.tar") or a url.
      image, text, key: columns of a table or of shards to take, where the usual names don't fit.

    Raises:
      FileNotFoundError: nothing is there, or the folder holds nothing that could be examples.
      ValueError: there is more than one kind of thing, no caption, or no column that fits; the sentence says what would do.
      OSError: it can't be read.
    """
    given = {role: column for role, column in (("image", image), ("text", text), ("key", key)) if column}
    place = files.path(path)
    if not is_local(place) or (not os.path.exists(place) and re.search(r"[*?\[{]", place)):
        return _shards(path, _expand(place), given, place)
    place = os.path.abspath(place)
    if not os.path.exists(place):
        raise FileNotFoundError(f"data={path}: there is no such file or folder")
    if os.path.isfile(place):
        return _file(path, place, given)
    return _folder(path, place, given)


# ---- files and patterns ----


def _expand(pattern):
    if not re.search(r"[*?\[{]", pattern) and not any(re.search(regex, pattern) for *_, regex in SHARDS):
        pattern = pattern.rstrip("/") + "/*"
    return [url for url in files.expand(pattern, "data") if not _passed(files.basename(url))]


def _passed(name):
    return name.startswith(".") or name.endswith((*_PASSED, "_stats.json")) or name in _NAMES


def _file(path, place, given):
    ending = os.path.splitext(place)[1].lower()
    if re.search(PACKED, place):
        raise ValueError(f"data={path}: packed files aren't read; unpack it and name the folder")
    if ending in DELIMITERS or ending in (".jsonl", ".json"):
        return table_columns.found(os.path.dirname(place), [os.path.basename(place)], given, path)
    if any(re.search(regex, place) for *_, regex in SHARDS):
        return _shards(path, [place], given, place)
    raise ValueError(f"data={path} is neither a shard (.tar, .tfrecord, .array_record, .parquet) nor a table (.csv, .tsv, .jsonl, "
                     ".json); of single images name the folder")


def _shards(path, urls, given, pattern):
    """Shards of one kind; Parquet beside the others is img2dataset's table of what it downloaded."""
    kinds = {source: [url for url in urls if re.search(regex, files.basename(url))] for _, source, regex in SHARDS}
    kinds = {source: own for source, own in kinds.items() if own}
    if len(kinds) > 1 and "parquet" in kinds:
        other = {_stem(url) for source, own in kinds.items() if source != "parquet" for url in own}
        if {_stem(url) for url in kinds["parquet"]} <= other:
            del kinds["parquet"]
    if len(kinds) != 1:
        some = "; ".join(f"{len(own)} {source}" for source, own in kinds.items()) or f"{len(urls)} files of other kinds"
        such = os.path.join(os.path.dirname(pattern), "*.tar")
        raise ValueError(f"data={path} holds {some}, where shards of one kind are needed (.tar, .tfrecord, .array_record or "
                         f".parquet); name those meant by a pattern, such as data='{such}'")
    (source, urls), = kinds.items()
    train, held_out, note = parts(urls, files.basename)
    if source == "parquet":
        return parquet_columns.found(train, held_out, given, path)._replace(notes=_notes(urls, note))
    columns = {"key": "key"} if source == "array_record" else {}
    more = {"columns": {**columns, **given}} if columns or given else {}
    spec = {"name": source, "path": joined(train), **more}
    title = next(kind for kind, name, _ in SHARDS if name == source)
    return Found(f"{len(urls):,} {title}", spec, {**spec, "path": joined(held_out)} if held_out else None,
                 _told(COLUMNS[source], given), notes=_notes(urls, note))


def _stem(url):
    return os.path.splitext(url)[0]


def _told(usual, given):
    return usual + "".join(f"; {role}: {column}" for role, column in given.items())


def _notes(urls, note):
    """What img2dataset's 00000_stats.json beside local shards say, after `note`."""
    asked = got = 0
    for url in urls:
        try:
            with open(f"{_stem(url)}_stats.json", encoding="utf-8") as file:
                about = json.load(file)
            asked, got = asked + int(about["count"]), got + int(about["successes"])
        except (OSError, ValueError, KeyError, TypeError):
            continue
    told = (f"img2dataset got {got:,} of {asked:,} images; the other rows are left out",) if got < asked else ()
    return (*told, *([note] if note else ()))


# ---- folders ----


def _folder(path, root, given):
    listing = _listing(root)
    stems = {os.path.splitext(name)[0] for name in listing if name.lower().endswith(IMAGES)}
    images = [name for name in listing if name.lower().endswith(IMAGES)]
    beside = [name for name in listing if name.endswith((*TEXTS, ".json")) and os.path.splitext(name)[0] in stems]
    shards = [name for name in listing if any(re.search(regex, name) for *_, regex in SHARDS)]
    tables = [name for name in listing if name not in beside and table_columns.is_table(root, name)]
    if not images and shards:
        if tables:
            raise mixed(path, f"{len(shards)} shards", f"the table {tables[0]}", tables[0])
        return _shards(path, [os.path.join(root, name) for name in shards], given, os.path.join(root, "*"))
    if not images:
        packed = [name for name in listing if re.search(PACKED, name)]
        if packed:
            raise FileNotFoundError(f"data={path} holds packed files ({packed[0]}), which aren't read; unpack them")
        if tables:   # images elsewhere, or urls: the table's own sentence says which
            return table_columns.found(root, tables, given, path)
        what = f"{len(listing):,} files, none of them an image, a shard or a table (the first is {{}})" if listing else "no files"
        raise FileNotFoundError(f"data={path} holds {what.format(*listing[:1])}")
    metadata = {name for name in shards if name.endswith(".parquet") and os.path.isdir(os.path.join(root, _stem(name)))}
    if set(shards) - metadata:
        raise mixed(path, f"{len(images):,} loose images", f"{len(shards):,} shards such as {shards[0]}", "*.tar")
    covered = {os.path.splitext(name)[0] for name in beside}
    if covered and tables:
        raise mixed(path, f"{len(covered):,} images with captions beside them", f"the table {tables[0]}", tables[0])
    if tables:
        return table_columns.found(root, tables, given, path)
    if covered:
        return _sidecars(path, root, images, covered, beside, given, [os.path.join(root, name) for name in metadata])
    return _classes(path, root, images, [name for name in listing if table_columns.looks_like_table(root, name)])


def _listing(root):
    """Sorted paths of all files below a folder, relative to it."""
    def fail(error):
        raise OSError(f"data={root} can't be read: {error}") from error
    found = []
    for folder, inside, names in os.walk(root, onerror=fail):
        inside[:] = [name for name in inside if not name.startswith(".") and name not in _SKIPPED]
        found += [os.path.relpath(os.path.join(folder, name), root) for name in names if not _passed(name)]
    return sorted(found)


def _sidecars(path, root, images, covered, beside, given, metadata):
    if 2 * len(covered) < len(images):
        raise ValueError(f"data={path}: only {len(covered):,} of {len(images):,} images have a caption beside them (x.txt or "
                         "x.json for x.jpg); add the others, or name the folder that has them all")
    if "image" in given:
        raise ValueError(f"data={path}: image={given['image']} names a column, but the images are files with captions beside them")
    endings = sorted({os.path.splitext(name)[1] for name in beside})
    where = {"columns": dict(given)} if given else {}
    train, held_out, note = _top_parts(root, images)
    spec = {"name": "sidecars", "path": train, **where}
    without = sum(os.path.splitext(name)[0] not in covered for name in images)   # x.png and x.jpg may share one x.txt
    notes = (f"{without:,} images have none and are left out",) if without else ()
    return Found(f"{len(images):,} images with {' and '.join(endings)} beside them", spec,
                 {**spec, "path": held_out} if held_out else None, _told(COLUMNS["sidecars"], given),
                 notes=(*notes, *_notes(metadata, note)))


def _top_parts(root, images):
    """(folder to train on, folder kept for validation or None, a sentence) by the names of the folders at the top."""
    tops = sorted({name.split(os.sep)[0] if os.sep in name else "" for name in images})
    if len(tops) < 2 or not all(top.lower() in PARTS for top in tops):
        return root, None, ""
    train, held_out, _ = parts(tops)
    if len(train) != 1 or len(held_out) != 1:
        return root, None, ""
    return os.path.join(root, train[0]), os.path.join(root, held_out[0]), f"the folder {held_out[0]} is held out"


def _classes(path, root, images, texts):
    train, held_out, note = _top_parts(root, images)
    whole = [os.path.join(root, name) for name in images]
    inside = [os.path.relpath(name, train) for name in whole if name.startswith(train + os.sep)]
    loose = [name for name in inside if os.sep not in name]
    folders = {name.split(os.sep)[0] for name in inside if os.sep in name}
    if (loose or len(folders) < 2) and texts:
        raise ValueError(f"data={path}: {texts[0]} looks like a table of the {len(images):,} images; call it "
                         f"{os.path.splitext(texts[0])[0]}.csv if commas separate its columns, .tsv if tabs do")
    if loose or len(folders) < 2:
        raise ValueError(f"data={path} holds {len(images):,} images without captions: lay a text file beside each (x.txt for "
                         "x.jpg) or a table captions.csv with the columns image and text, or sort them into class folders")
    names = tuple(prettified(name) for name in ImageFolder(train).classes)
    spec = {"name": "image_folder", "path": train, "prettify": True}
    return Found(f"{len(images):,} images in {len(folders):,} class folders", spec,
                 {**spec, "path": held_out} if held_out else None, "image the file, text the name of its folder, key its path",
                 classes=names, notes=("there are no captions: the names of the classes stand for them", *([note] if note else ())))
