"""What a table beside images says (see `detect`): which of its columns is what, and where its images lie."""
import collections
from collections.abc import Mapping, Sequence
import json
import os
import re

from mcd_jax.data.detect.found import Found, parts
from mcd_jax.data.sources.tables import DELIMITERS, read_table

IMAGE = ("image", "file_name", "filename", "image_path", "image_name", "image_file", "filepath", "file_path", "file", "path",
         "img", "photo", "picture")
TEXT = ("caption", "captions", "text", "texts", "title", "description", "alt_text", "alt", "sentence", "sentences", "prompt",
        "label", "comment", "raw")
_ROWS = 200   # whose images are looked for
_HEAD = 65_536


def is_table(root: str, name: str) -> bool:
    """Whether a file (path below `root`) may be a table: csv, tsv, jsonl, or a json of COCO's or Karpathy's captions, at the top or
    in a folder `annotations`."""
    if os.path.dirname(name) not in ("", "annotations"):
        return False
    ending = os.path.splitext(name)[1].lower()
    if ending != ".json":
        return ending in (*DELIMITERS, ".jsonl")
    try:
        with open(os.path.join(root, name), "rb") as file:
            head = file.read(_HEAD)
    except OSError:
        return False
    return b'"images"' in head and (b'"sentences"' in head or "caption" in os.path.basename(name).lower() or b'"captions"' in head)


def looks_like_table(root: str, name: str) -> bool:
    """Whether a .txt at the top of the folder begins as a table does: with names of columns for images and captions."""
    if os.path.dirname(name) or not name.lower().endswith(".txt"):
        return False
    with open(os.path.join(root, name), encoding="utf-8", errors="replace") as file:
        columns = re.split(r"[,\t|]", file.readline(_HEAD).strip())
    return bool(_named(columns, IMAGE) and _named(columns, TEXT))


def found(root: str, tables: Sequence[str], given: Mapping[str, str], path: str) -> Found:
    """The `Found` of the tables of a folder: one, or one to train on and one for validation.

    Args:
      root: the folder. tables: paths below it. given: {role: column}. path: what the user named, for messages.

    Raises:
      ValueError: several tables, no column that fits, urls in place of files, or no image where the table says.
    """
    train, held_out, note = parts(tables)
    if len(train) > 1 or len(held_out) > 1:
        raise ValueError(f"data={path} holds {len(tables)} tables ({', '.join(tables[:5])}); name the one that is meant, such as "
                         f"data={os.path.join(path, tables[0]) if os.path.isdir(path) else tables[0]}")
    one = _json if train[0].endswith(".json") else _rows
    result = one(root, train[0], given, path)
    notes = (*result.notes, *([note] if note else ()))
    if not held_out:
        return result._replace(notes=notes)
    return result._replace(held_out=one(root, held_out[0], given, path).spec, notes=notes)


# ---- csv, tsv, jsonl ----


def _rows(root, table, given, path):
    file = os.path.join(root, table)
    rows = read_table(file)
    if not rows:
        raise ValueError(f"{file} has no rows")
    names = [str(name) for name in rows[0]]
    for role, column in given.items():
        if column not in names:
            raise ValueError(f"{file} has no column {column!r} for {role}; it has {', '.join(names)}")
    header = _header(root, names) if not given else None
    if header:
        rows, names = [dict(zip(header, names)), *(dict(zip(header, row.values())) for row in rows)], header
    image = given.get("image") or _named(names, IMAGE) or _files_column(root, rows, names)
    urls = [name for name in names if _are_urls(rows, name)]
    if urls and image in (None, *urls):
        raise ValueError(f"{file}: column {urls[0]!r} holds urls, and images aren't fetched while training; fetch them once, for "
                         "example by img2dataset (github.com/rom1504/img2dataset), and name its output folder")
    if image is None:
        raise ValueError(f"{file}: none of its columns ({', '.join(names)}) is called as one of files is (image, filename, ...) "
                         "or holds paths of files in its folder; say image=COLUMN")
    text = given.get("text") or _named([name for name in names if name != image], TEXT) or _only_text(rows, names, image)
    if text is None:
        raise ValueError(f"{file}: which of its columns ({', '.join(names)}) holds the captions can't be told; say text=COLUMN")
    paths = [row[image] for row in rows]
    base = _base(root, paths[:_ROWS], path, file, image)
    spec = {"name": "folder", "path": base[0], "table": os.path.relpath(file, base[0]), "missing": "drop",
            "columns": {"image": image, "text": text, **({"key": given["key"]} if "key" in given else {})}}
    if base[1]:
        spec["images"] = base[1]
    if header:
        spec["header"] = tuple(header)
    single, notes = len({os.path.normpath(str(name)) for name in paths}), ()   # "a.jpg" and "./a.jpg" are one image
    if repeated := single < len(paths):
        spec["by_image"] = True
        notes = (f"{len(rows):,} rows name {single:,} images: all rows of an image are one example",)
    kind = f"the table {table} of {len(rows):,} rows" + f", images in {base[1]}" * bool(base[1])
    columns = f"image {image}, text {text}, key {given.get('key', image)}"
    return Found(kind, spec, None, columns, repeated or isinstance(rows[0][text], list), notes=notes)


def _named(names, usual):
    """The column of one of the usual names: one of exactly that name, else the only one that differs by case and blanks alone."""
    for name in usual:
        fits = [name] if name in names else [column for column in names if column.strip().lower() == name]
        if fits:
            return fits[0] if len(fits) == 1 else None
    return None


def _header(root, names):
    """Names for the columns of a table whose first line names an image that exists, so is no header; else None."""
    there = [number for number, name in enumerate(names) if os.path.splitext(name)[1] and _find(root, [name]) is not None]
    if len(there) != 1 or len(names) < 2:
        return None
    text = max((number for number in range(len(names)) if number != there[0]), key=lambda number: len(names[number]))
    return ["image" if n == there[0] else "text" if n == text else f"column{n + 1}" for n in range(len(names))]


def _files_column(root, rows, names):
    fits = [name for name in names if _find(root, [row[name] for row in rows[:_ROWS]]) is not None]
    return fits[0] if len(fits) == 1 else None


def _are_urls(rows, name):
    values = [row[name] for row in rows[:_ROWS]]
    return all(isinstance(value, str) and value.startswith(("http://", "https://")) for value in values)


def _only_text(rows, names, image):
    """The only other column that holds text."""
    def is_text(value):
        return isinstance(value, (str, list)) and not re.fullmatch(r"[-+.\deE]*", value if isinstance(value, str) else "x")
    fits = [name for name in names if name != image and any(is_text(row[name]) for row in rows[:_ROWS])]
    return fits[0] if len(fits) == 1 else None


# ---- where images lie ----


def _base(root, paths, path, file, what):
    """(the folder that holds both, the folder in it that the paths start from, "" for itself)."""
    for place in (root, os.path.dirname(root)):
        inside = _find(place, paths)
        if inside is not None:
            return place, inside
    raise ValueError(f"{file}: of the first {len(paths)} images that its column {what!r} names, such as {str(paths[0])[:80]!r}, "
                     f"none is in {root} or a folder in it; lay the images there")


def _find(root, paths):
    """The folder in `root` ("" for itself) from which one of the paths leads to a file, or None."""
    usable = [path for path in paths if isinstance(path, str) and path and "\0" not in path and not os.path.isabs(path)]
    try:
        inside = sorted(entry.name for entry in os.scandir(root) if entry.is_dir() and not entry.name.startswith("."))
    except OSError:
        return None
    for folder in ("", *inside):
        if any(os.path.isfile(os.path.join(root, folder, path)) for path in usable):
            return folder
    return None


# ---- COCO and Karpathy ----


def _json(root, table, given, path):
    file = os.path.join(root, table)
    if given:
        raise ValueError(f"data={path}: {', '.join(given)} name columns, but {table} has fixed ones")
    try:
        with open(file, encoding="utf-8") as opened:
            about = json.load(opened)
        images = about["images"]
        karpathy = "sentences" in images[0]
        names = [os.path.join(image.get("filepath", "") if karpathy else "", image["filename" if karpathy else "file_name"])
                 for image in images[:_ROWS]]
    except (ValueError, KeyError, TypeError, IndexError, AttributeError) as error:
        raise ValueError(f"{file} is neither COCO's captions nor Karpathy's: it needs a list \"images\" with file_name (and a list "
                         "\"annotations\" with captions), or with filename, split, sentences; JSON lines end in .jsonl") from error
    place, inside = _base(root, names, path, file, "images")
    if not karpathy:
        spec = {"name": "folder", "path": place, "table": os.path.relpath(file, place), "missing": "drop"}
        return Found(f"COCO captions of {len(images):,} images", {**spec, **({"images": inside} if inside else {})}, None,
                            "image file_name, text the captions, key id", True)
    counts = collections.Counter(image.get("split") for image in images)
    spec = {"name": "karpathy", "path": os.path.join(place, inside) if inside else place, "table": file}
    kept = next((split for split in ("val", "test") if counts.get(split)), None) if counts.get("train") else None
    told = ", ".join(f"{count:,} {split}" for split, count in counts.items())
    split = "train" if counts.get("train") else "+".join(map(str, counts))
    return Found(f"Karpathy's captions of {len(images):,} images ({told})", {**spec, "split": split, "captions": None},
                        {**spec, "split": kept} if kept else None, "image filename, text the sentences, key the path", True,
                        notes=(f"its split {kept} is held out",) if kept else ())
