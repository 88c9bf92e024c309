"""A folder of images whose captions lie beside them, in files of the same name (see mcd_jax.data.sources).

    dict(name="sidecars", path="/data/pictures")                       a/x.jpg with a/x.txt, a/x.caption or a/x.json
    dict(name="sidecars", path="/data/cc3m", where=dict(width=dict(min=200)), columns=dict(text="alt;caption"))

Folders may be nested, as in img2dataset's output_format="files" (00000/000000012.jpg, .txt, .json). An example is an image that
has a caption. Its columns are the files beside it by their endings (txt, caption: bytes), the top-level fields of its .json, and
key, the path without its ending. `columns` names one of them for the text, or several: "txt;caption;text" (the default) is the
first that there is and that isn't empty, so the .txt, else the .caption or the .json's field of that name, else its field "text".
columns=dict(text=None): no text is needed. caption_lines=True: every line of a text is a caption of its own. where: {field of the
.json: value, values, or {min, max}}, by `columns.keep_rows`.

Every .json is read once at the start (about 20,000 a second). What is not as it should be, by rule:
  an image without a caption       left out; counted as "no caption"
  a caption without an image       not an example, as where a download failed; "no image"
  a .json whose status isn't       left out; "failed (<status>)". img2dataset says "success" of those that it has
    "success"
  a .json that is none             its fields are missing; "broken json"
  a named pipe, a link to nothing  its image is left out; "not a file"
  hidden files, folders _tmp       passed over
Counts are printed when the source is opened, and are its attribute `left_out`. To read millions of small files faster, pack them
(`mcd-jax pack`).
"""
import collections
from collections.abc import Mapping
import concurrent.futures
import functools
import json
import os
from typing import Any

from absl import logging

from mcd_jax.config.keys import NEEDED, Key
from mcd_jax.data.decode import Bad
from mcd_jax.data.sources.columns import WHERE, captions, check_spec, first_value, keep_rows, position
from mcd_jax.data.sources.image_folder import ENDINGS, NO_FILE, is_plain_file

TEXTS = (".txt", ".caption")
TEXT = "txt;caption;text"
KEYS = {
    "path": Key("str", NEEDED, "a folder, with folders inside or not"),
    "columns": Key("dict", {}, f"the files beside an image or fields of its .json that serve as text and key: dict(text={TEXT!r})"),
    "where": WHERE,
    "caption_lines": Key("bool", False, "every line of a text is a caption of its own"),
}
_THREADS = 16
_SKIPPED = ("_tmp", "__MACOSX")


def make(spec: Mapping[str, Any]) -> "Sidecars":
    """Opens the source.

    Raises:
      FileNotFoundError: the folder does not exist.
      ValueError: an unknown key, no image with a caption, nothing left by `where`, or a link that leads out of the folder.
    """
    return Sidecars(spec)


class Sidecars:
    """One example per image that has a caption, by the order of their paths. Attributes: left_out, {cause: how many}."""

    def __init__(self, spec):
        check_spec(spec, KEYS)
        columns = dict(spec.get("columns") or {})
        if columns.keys() - {"text", "key"}:
            raise ValueError("data.source.columns: the image of the sidecars source is its file; columns may name text and key")
        self._names = tuple(filter(None, (columns.get("text", TEXT) or "").split(";")))
        self._key, self._lines = columns.get("key"), bool(spec.get("caption_lines", False))
        self._root = os.path.realpath(spec["path"])
        if not os.path.isdir(self._root):
            raise FileNotFoundError(f"data.source.path {spec['path']!r} is not a folder")
        self.left_out = collections.Counter()
        images, beside = listed(self._root)
        stems = {os.path.splitext(image)[0] for image in images}
        self.left_out["no image"] = len(beside.keys() - stems)
        where = dict(spec.get("where") or {})
        with concurrent.futures.ThreadPoolExecutor(_THREADS) as pool:
            looked = list(pool.map(lambda image: self._look(image, beside, where), images))
        self._rows, table = [], {name: [] for name in where}
        for image, (cause, broken, fields) in zip(images, looked):
            self.left_out["broken json"] += broken
            if cause:
                self.left_out[cause] += 1
                continue
            self._rows.append((image, beside.get(os.path.splitext(image)[0], ())))
            for name, values in table.items():
                values.append(fields.get(name))
        self.left_out = {cause: count for cause, count in self.left_out.items() if count}
        told = ", ".join(f"{count:,} x {cause}" for cause, count in self.left_out.items())
        if not self._rows:
            raise ValueError(f"data.source.path {spec['path']!r}: none of its {len(images):,} images has a caption beside it, in a "
                             f".txt or .caption file or a field {' or '.join(self._names)} of a .json" + f" ({told})" * bool(told))
        if where:
            known = {name: values for name, values in table.items() if any(value is not None for value in values)}
            self._rows = [self._rows[row] for row in keep_rows(known, where, f"the .json files of {self._root}").tolist()]
        if told:
            _warn(f"sidecars source: {len(self._rows):,} examples in {self._root}; left out or repaired: {told}")

    def _look(self, image, beside, where):
        """(why an image is no example or "", whether its .json is broken, the fields that `where` names)."""
        stem = os.path.splitext(image)[0]
        endings = beside.get(stem, ())
        if not all([is_plain_file(self._root, name) for name in (image, *(stem + ending for ending in endings))]):
            return NO_FILE, False, {}
        if ".json" not in endings:
            fits = not self._names or any(name in self._names and f".{name}" in endings for name in ("txt", "caption"))
            return "" if fits else "no caption", False, {}
        row, broken = self._stored(stem, endings)
        status = row.get("status", "success")
        if status != "success":
            return f"failed ({status})", broken, {}
        if self._names and not first_value(row, self._names):
            return "no caption", broken, {}
        return "", broken, {name: row.get(name) for name in where}

    def _stored(self, stem, endings):
        """({column: value} of the files beside an image, whether its .json is none)."""
        files, fields = {}, {}
        for ending in endings:
            with open(os.path.join(self._root, stem + ending), "rb") as file:
                files[ending[1:]] = file.read()
        if "json" in files:
            try:
                fields = json.loads(files.pop("json"))
            except (ValueError, RecursionError):
                fields = None
        return {**(fields if isinstance(fields, dict) else {}), **files}, not isinstance(fields, dict)

    def keys(self):
        """The name of every example, list of str: its image's path without the ending; no file is read."""
        return [_name(image) for image, _ in self._rows]

    def __len__(self):
        return len(self._rows)

    def __getitem__(self, index):
        image, endings = self._rows[position(index, len(self))]
        row, _ = self._stored(os.path.splitext(image)[0], endings)
        with open(os.path.join(self._root, image), "rb") as file:
            row["image"] = file.read()
        key = row.get(self._key) if self._key else None
        row["key"] = _name(image) if key is None else str(key)
        if self._names:
            value = first_value(row, self._names)
            if value is None:
                raise Bad("no caption", f"{row['key']}: neither of {', '.join(self._names)}")
            row["text"] = captions(value, self._lines, row["key"], self._names)
        return row


def listed(root: str) -> tuple[list[str], dict[str, tuple]]:
    """(sorted paths of the images below a folder, {path without ending: endings of the captions beside it}), relative to it.

    Raises:
      OSError: a folder can't be read.
    """
    images, beside = [], collections.defaultdict(tuple)
    for folder, inside, names in os.walk(root, onerror=_raise):
        inside[:] = sorted(name for name in inside if not name.startswith(".") and name not in _SKIPPED)
        for name in names:
            stem, ending = os.path.splitext(name)
            if name.startswith("."):
                continue
            if ending.lower() in ENDINGS:
                images.append(os.path.relpath(os.path.join(folder, name), root))
            elif ending in (*TEXTS, ".json") and not (ending == ".json" and stem.endswith("_stats")):
                beside[os.path.relpath(os.path.join(folder, stem), root)] += (ending,)
    return sorted(images), dict(beside)


@functools.cache
def _warn(sentence):
    """Once, however often the folder is opened."""
    logging.warning("%s", sentence)


def _raise(error):
    raise error


def _name(image):
    return os.path.splitext(image)[0].replace(os.sep, "/")
