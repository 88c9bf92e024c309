"""A folder of image files with a csv, tsv or jsonl table of their texts (see mcd_jax.data.sources)."""

import csv
import json
import os

from mcd_jax.data.columns import check_columns, check_spec, position

DELIMITERS = {".csv": ",", ".tsv": "\t"}


class Folder:
    """One example per row of the table; the image is read from its file on each access."""

    def __init__(self, spec):
        """spec: path (the folder), table (a file in it with a header line, or JSON lines), columns: image is the
        column with the file's path relative to the folder, text its caption (in jsonl also a list), key its name
        (default: the image's path). Other columns are passed on, as int or float where every value is one.

        Raises:
          FileNotFoundError: the folder, the table or an image does not exist.
          ValueError: a key or column that does not exist, a malformed line, or a path that leaves the folder.
        """
        self._roles = check_spec(spec, ("path", "table"))
        self._root = os.path.realpath(spec["path"])
        if not os.path.isdir(self._root):
            raise FileNotFoundError(f"data.source.path {spec['path']!r} is not a folder")
        self._table = os.path.join(self._root, spec["table"])
        if not os.path.isfile(self._table):
            raise FileNotFoundError(f"data.source.table: there is no file {self._table}")
        self._rows = read_table(self._table)
        if self._rows:
            check_columns(self._roles, self._rows[0], self._table)
            if not self._table.endswith(".jsonl"):
                make_numbers(self._rows, keep=set(self._roles.values()))
        self._files = [self._inside(number, row[self._roles["image"]]) for number, row in enumerate(self._rows)]
        missing = [file for file in self._files if not os.path.isfile(file)]
        if missing:
            raise FileNotFoundError(f"{len(missing)} of the {len(self._files)} images that {self._table} names do "
                                    f"not exist, the first is {missing[0]}; take their rows out or add the files")

    def _inside(self, number, name):
        """The real path of an image named by the table; links are followed before it is judged."""
        if not isinstance(name, str) or not name or "\0" in name:
            raise ValueError(f"{self._table}, row {number + 1}: {name!r} is not the path of an image file")
        file = os.path.realpath(os.path.join(self._root, name))
        if os.path.isabs(name) or os.path.commonpath([self._root, file]) != self._root:
            raise ValueError(f"{self._table}, row {number + 1}: the path {name!r} leads out of {self._root}; "
                             "images must lie inside the folder")
        return file

    def __len__(self):
        return len(self._rows)

    def __getitem__(self, index):
        index = position(index, len(self))
        row, roles = self._rows[index], self._roles
        with open(self._files[index], "rb") as file:
            image = file.read()
        key = row[roles["key"] or roles["image"]]
        return {**row, "image": image, "text": row[roles["text"]], "key": str(key)}


def read_table(path):
    """The rows of a csv, tsv (header line) or jsonl file: list of dicts that share one set of keys.

    Bytes that are not UTF-8 stay in the text that holds them, which is then bytes.
    Raises ValueError naming the file and line of a malformed row.
    """
    ending = os.path.splitext(path)[1].lower()
    if ending not in (*DELIMITERS, ".jsonl"):
        raise ValueError(f"data.source.table {path} must end in .csv, .tsv or .jsonl")
    with open(path, encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
        rows = _json_lines(file, path) if ending == ".jsonl" else _separated(file, path, DELIMITERS[ending])
    for number, row in enumerate(rows):
        if row.keys() != rows[0].keys():
            odd = sorted(row.keys() ^ rows[0].keys())
            raise ValueError(f"{path}, row {number + 1}: the columns {', '.join(odd)} are not in every row")
    return rows


def make_numbers(rows, keep):
    """Turns, in place, every column of str outside `keep` into int, else float, where every value is one."""
    for name in rows[0].keys() - keep:
        for kind in (int, float):
            try:
                values = [kind(row[name]) for row in rows]
            except ValueError:
                continue
            for row, value in zip(rows, values):
                row[name] = value
            break


def _json_lines(file, path):
    rows = []
    for number, line in enumerate(file, 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{path}, line {number} is not JSON: {error}") from error
        if not isinstance(row, dict):
            raise ValueError(f"{path}, line {number} is not a JSON object but {line.strip()[:40]!r}")
        rows.append({name: [_text(item) for item in value] if isinstance(value, list) else _text(value)
                     for name, value in row.items()})
    return rows


def _separated(file, path, delimiter):
    csv.field_size_limit(2 ** 31 - 1)  # captions may be long; the pipeline cuts them
    reader = csv.DictReader(_without_zeros(file, path), delimiter=delimiter, strict=True)
    rows = []
    try:
        for row in reader:
            if None in row or None in row.values():
                raise ValueError(f"{path}, line {reader.line_num} does not have the {len(reader.fieldnames)} fields "
                                 f"of its header: {', '.join(reader.fieldnames)}")
            rows.append({name: _text(value) for name, value in row.items()})
    except csv.Error as error:
        raise ValueError(f"{path}, after line {reader.line_num}: {error}") from error
    return rows


def _without_zeros(file, path):
    """The lines; zero bytes are what a damaged disk leaves, and may hide the end of a line, so that later rows would shift."""
    for number, line in enumerate(file, 1):
        if "\0" in line:
            raise ValueError(f"{path}, line {number} holds a zero byte: it is damaged, or not UTF-8 text")
        yield line


def _text(value):
    """The value; a str that is not valid Unicode (undecodable bytes, lone surrogates) as bytes."""
    if not isinstance(value, str):
        return value
    try:
        value.encode()
    except UnicodeEncodeError:
        return value.encode("utf-8", "surrogatepass")
    return value
