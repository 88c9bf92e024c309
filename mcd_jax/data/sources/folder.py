"""A folder of image files with a table of their texts (see mcd_jax.data.sources).

    dict(name="folder", path="/data/pictures", table="captions.csv")                                       image,text in line 1
    dict(name="folder", path="/data/cc3m", table="train.tsv", header=("text", "image"))                    no header line
    dict(name="folder", path="/data/coco", table="annotations/captions_val2017.json", images="val2017")    COCO captions
"""
from collections.abc import Mapping
import os
import re

from absl import logging

from mcd_jax.config.keys import NEEDED, Key
from mcd_jax.data.sources.columns import COLUMNS, WHERE, check_columns, check_spec, keep_rows, key_name, position
from mcd_jax.data.sources.tables import COCO, make_numbers, read_table

KEYS = {
    "path": Key("str", NEEDED, "a folder"),
    "table": Key("str", NEEDED, "the csv, tsv, jsonl or COCO table in it, or elsewhere"),
    "images": Key("str | None", "", "the folder in it that the table's image paths start from"),
    "header": Key("str | tuple | None", None, "names of the columns, where the table's first line doesn't have them"),
    "quoted": Key("bool", True, "whether quotation marks in a csv or tsv enclose a value"),
    "where": WHERE,
    "columns": COLUMNS,
    "by_image": Key("bool", False, "one example of all rows of an image, with the list of their texts"),
    "missing": Key("str", "refuse", "\"refuse\" an image that does not exist, or \"drop\" its row"),
}
def make(spec):
    """Opens the source: see `Folder`."""
    return Folder(spec)


class Folder:
    """One example per row of the table; the image is read from its file on each access."""

    def __init__(self, spec):
        """
        spec:
          path: the folder.
          table: a file in it: csv or tsv, JSON lines (.jsonl), or COCO captions (.json: one example per image, with the list
            of its captions; image file_name, text captions, key id).
          images: the folder in it that image paths start from; default is the folder itself.
          header: the names of the columns where a csv or tsv file has no header line.
          quoted: False where quotes in a csv or tsv file are letters like others (default True).
          columns: image is the column with the file's path, text its caption (JSON: also a list), key its name (default:
            the image's path). Other columns are passed on, in csv and tsv as int or float where every value is one.
          where: {column: value, values or {min, max}}: the rows that are kept, see `columns.keep_rows`.
          by_image: True makes one example of all rows of an image, with the list of their texts; other columns are the first row's.
          missing: "refuse" (default) an image that does not exist, or "drop" its row; how many is logged, and the attribute
            `missing` of the source.

        Raises:
          FileNotFoundError: the folder, the table or an image does not exist.
          ValueError: a key or column that does not exist, a malformed line, an image that is a url or leads out of the
            folder, or no row that is left.
        """
        coco = str(spec.get("table", "")).lower().endswith(".json")
        columns = dict(spec.get("columns") or {})
        self._roles = check_spec({**spec, "columns": {**COCO, **columns} if coco else columns}, KEYS)
        if spec.get("missing", "refuse") not in ("refuse", "drop"):
            raise ValueError(f"data.source.missing={spec['missing']!r} must be 'refuse' or 'drop'")
        self._root = os.path.realpath(spec["path"])
        self._images = os.path.join(self._root, spec.get("images") or "")
        for key, folder in (("path", self._root), ("images", self._images)):
            if not os.path.isdir(folder):
                place = f" in {self._root}" if key == "images" else ""
                raise FileNotFoundError(f"data.source.{key} {spec[key]!r} is not a folder{place}")
        self._table = os.path.join(self._root, spec["table"])
        if not os.path.isfile(self._table):
            raise FileNotFoundError(f"data.source.table: there is no file {self._table}")
        rows = read_table(self._table, _header(spec.get("header")), spec.get("quoted", True))
        numbers = range(len(rows))
        if rows:
            check_columns(self._roles, rows[0], self._table)
            if not self._table.lower().endswith((".jsonl", ".json")):
                make_numbers(rows, keep=set(self._roles.values()))
            if spec.get("where"):
                where = dict(spec["where"])
                named = {name: [row[name] for row in rows] for name in where if name in rows[0]}
                numbers = keep_rows({**dict.fromkeys(rows[0], ()), **named}, where, self._table).tolist()
        self._rows, self.missing = [rows[number] for number in numbers], 0
        self._files = [self._inside(number, row[self._roles["image"]]) for number, row in zip(numbers, self._rows)]
        for number, row in zip(numbers, self._rows):
            self._check_lines(number, row[self._roles["text"]] if self._roles["text"] else None)
        self._find_missing(spec.get("missing") == "drop")
        if spec.get("by_image"):
            self._gather()

    def _inside(self, number, name):
        """The real path of an image named by the table; links are followed before it is judged."""
        name = name.decode("utf-8", "surrogatepass") if isinstance(name, bytes) else name   # a file's name that is not UTF-8
        if not isinstance(name, str) or not name or "\0" in name:
            raise ValueError(f"{self._table}, row {number + 1}: {name!r} is not the path of an image file")
        if name.startswith(("http://", "https://")):
            raise ValueError(f"{self._table}, row {number + 1}: {name!r} is a url, and images are not fetched while training: "
                             "fetch them once, for example by img2dataset (github.com/rom1504/img2dataset), which takes such a "
                             "table and writes shards for the webdataset or parquet source")
        file = os.path.realpath(os.path.join(self._images, name))
        if os.path.isabs(name) or os.path.commonpath([self._root, file]) != self._root:
            raise ValueError(f"{self._table}, row {number + 1}: the path {name!r} leads out of {self._root}; "
                             "images must lie inside the folder")
        return file

    def _check_lines(self, number, text):
        """Refuses a text of several lines of which one names an image: rows that a quote has swallowed."""
        for line in (text if isinstance(text, str) else "").splitlines()[1:]:
            names = [part.strip(" \"") for part in re.split(r"[,;|\t]", line) if "." in part]
            if image := next((name for name in names if os.path.isfile(os.path.join(self._images, name))), None):
                raise ValueError(f"{self._table}, row {number + 1}: its text has several lines, and one of them names the image "
                                 f"{image}: a quote that is not closed hides rows; where quotes are letters like others: "
                                 "data.source.quoted=False")

    def _find_missing(self, drop):
        there = [os.path.isfile(file) for file in self._files]
        if all(there):
            return
        self.missing = there.count(False)
        what = (f"{self.missing} of the {len(there)} images that {self._table} names do not exist, the first is "
                f"{self._files[there.index(False)]}")
        if not drop:
            raise FileNotFoundError(f"{what}; add the files, or drop their rows by data.source.missing='drop'")
        if not any(there):
            raise FileNotFoundError(f"{what}; nothing is left: is data.source.images the folder that the paths start from?")
        logging.warning("%s; their rows are dropped, %s are left", what, f"{there.count(True):,}")
        self._rows = [row for row, found in zip(self._rows, there) if found]
        self._files = [file for file, found in zip(self._files, there) if found]

    def _gather(self):
        """Makes one row of those of an image file."""
        text, rows = self._roles["text"], {}
        for file, row in zip(self._files, self._rows):
            own = row[text] if isinstance(row[text], list) else [row[text]]
            rows[file] = {**rows[file], text: rows[file][text] + own} if file in rows else {**row, text: own}
        self._files, self._rows = list(rows), list(rows.values())

    def keys(self):
        """The name of every example, list of str; no image is read."""
        column = self._roles["key"] or self._roles["image"]
        return [key_name(row[column], number) for number, row in enumerate(self._rows)]

    def __len__(self):
        return len(self._rows)

    def __getitem__(self, index):
        index = position(index, len(self))
        row, roles = self._rows[index], self._roles
        with open(self._files[index], "rb") as file:
            image = file.read()
        return {**row, "image": image, "text": row[roles["text"]], "key": key_name(row[roles["key"] or roles["image"]], index)}


def _header(names):
    if names is None:
        return None
    if isinstance(names, (str, Mapping)) or not names or not all(isinstance(name, str) and name for name in names) \
            or len(set(names)) < len(names):
        raise ValueError(f"data.source.header={names!r} must be a list of different names of columns, such as ('text', 'image')")
    return list(names)
