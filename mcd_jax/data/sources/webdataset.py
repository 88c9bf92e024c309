"""WebDataset tar shards, also as img2dataset writes them, with random access (see mcd_jax.data.sources).

    dict(name="webdataset", path="/data/cc3m/{00000..00331}.tar")
    dict(name="webdataset", path="gs://bucket/laion/*.tar", where=dict(similarity=dict(min=0.3)), columns=dict(text="caption"))

An example is the members of one key: 0001.jpg, 0001.txt, 0001.json. Its columns are its members by their endings (bytes; .cls, .id
and .index as int, .npy as array) and the top-level fields of its .json. `columns` names one of them for image, text and key, or
several: "png;jpg" is the first that the example has. By default the image is jpg;jpeg;png;webp;gif;bmp, the text is txt;caption
(the .txt, else the field "caption" of the .json, which may be a list), the key is the members' name. columns=dict(text=None): no
text is needed. caption_lines=True: every line of a text is a caption of its own. where: {field: value, values, or {min, max}} over
the numbers of the .json, by `columns.keep_rows`.

Each shard needs an index (`mcd-jax index`); one that is missing is made first. Reading an example is one
ranged read of its neighbouring members. Archives are ustar, GNU or pax; compressed ones are refused.

What is not as it should be, by rule:
  a header that is none          what precedes it is used, the rest of that shard is lost; counted as "broken header"
  a half-written shard           the member that the file's end cuts is dropped; "truncated member", or "no end of the archive"
  an archive behind an archive   only the first is read; "data after the end"
  names with / at the start, ..  names are keys, never paths: nothing is unpacked, so they need no care
  hidden names                   ignored
  names without an ending        ignored; counted
  links, sparse members          ignored; counted
  a key that comes twice         members of one key belong together wherever they stand; a second one of the same kind begins an
                                 example of its own; "duplicated key"
  no image member                not an example; counted as "no image"
  a dot inside a name            ends the key as WebDataset has it: "1.5.jpg" and "1.5.txt" are the members 5.jpg and 5.txt of the
                                 key 1; "image with a dot in its name". Names with dots are written anew, or read by the sidecars
                                 source after unpacking
  no caption                     the example is bad: "no caption" (an empty one: "empty caption")
  a .json that is none           its fields are missing; "broken json"; bad only if a view or the text needs one of them
  a field that is missing, null  the example is bad if a view reads it: "missing <field>"
  a shard that changes or        files.Changed names it, and the run stops: places in it would mean something else
  vanishes during a run
Counts are printed when the source is opened and by the index command; bad examples are replaced and named as everywhere.
"""
import contextlib
import io
import json

import numpy as np

from mcd_jax.config.keys import NEEDED, Key
from mcd_jax.data.decode import Bad
from mcd_jax.data.sources.columns import COLUMNS, WHERE, captions, first_value, key_name
from mcd_jax.data.sources.shards import Shards
from mcd_jax.data.storage import files, tar
from mcd_jax.data.storage.tar import IMAGES

KEYS = {
    "path": Key("str | tuple", NEEDED, "files, urls, patterns or folders, one or several"),
    "index": Key("str | None", None, "folder of the indexes; left out: beside the shards"),
    "where": WHERE,
    "columns": COLUMNS,
    "caption_lines": Key("bool", False, "every line of a text is a caption of its own"),
}
_GAP = 65_536  # bytes between two members that are rather read along than left out by another request
_NUMBERS = ("cls", "id", "index")


def make(spec):
    """Opens the source.

    Raises:
      FileNotFoundError: no shard fits a path.
      ValueError: an unknown key or column, a file that is no tar, or nothing left by `where`.
    """
    return WebDataset(spec)


class WebDataset(Shards):
    def __init__(self, spec):
        self._images = ((spec.get("columns") or {}).get("image") or IMAGES).split(";")
        self._lines = bool(spec.get("caption_lines", False))
        super().__init__(spec, "tar", {"image": IMAGES, "text": "txt;caption", "key": None}, KEYS)
        self.check(self._columns, (name for found in self._indexes for name in found.members))

    def usable(self, found):
        images = [number for number, name in enumerate(found.members) if name in self._images]
        return (found.places[:, images] != 0).any(axis=1)

    def without_image(self, found):
        return tar.without_image(found, self._images)

    def __getitem__(self, number):
        row = self._columns(number)
        value = {role: first_value(row, names) for role, names in self.roles.items()}
        if value["image"] is None:
            raise Bad("missing image", row["key"])
        row["image"] = value["image"]
        if self.roles["text"]:
            row["text"] = captions(value["text"], self._lines, row["key"], self.roles["text"])
        if value["key"] is not None:
            row["key"] = key_name(value["key"], number)
        return row

    def keys(self):
        """The name of every example, list of str: that of its members, behind its shard's where two shards have the same names."""
        found = [[key_name(shard.key(row), row) for row in range(len(shard))] for shard in self._indexes]
        if sum(map(len, map(set, found))) > len(set().union(*found)):
            found = [[f"{files.basename(file.url)}/{key}" for key in keys] for file, keys in zip(self._files, found)]
        return self.chosen([key for keys in found for key in keys])

    def _columns(self, number):
        """dict of the members, the fields of the .json, and key."""
        file, found, entry = self.find(number)
        stored = read(file, found.where(entry))
        fields = {}
        if "json" in stored:
            with contextlib.suppress(ValueError, RecursionError):
                fields = json.loads(stored["json"])
        row = {**(fields if isinstance(fields, dict) else {}), **{name: _value(name, data) for name, data in stored.items()}}
        row["key"] = key_name(found.key(entry), number)
        return row


def read(file, places):
    """{member: bytes} of [(member, offset, size)]; members that lie close together come in one read."""
    places = sorted(places, key=lambda place: place[1])
    spans = []
    for name, offset, size in places:
        if spans and offset - spans[-1][1] <= _GAP:
            spans[-1][1] = offset + size
            spans[-1][2].append((name, offset, size))
        else:
            spans.append([offset, offset + size, [(name, offset, size)]])
    result = {}
    for start, end, inside in spans:
        data = file.read(start, end - start)
        result.update({name: data[offset - start:offset - start + size] for name, offset, size in inside})
    return result


def _value(name, data):
    kind = name.rpartition(".")[2]
    if kind in _NUMBERS and data.strip().isdigit():
        return int(data)
    if kind == "npy":
        try:
            return np.load(io.BytesIO(data), allow_pickle=False)
        except (ValueError, EOFError, OSError):
            return None
    return data
