"""Reads a table that says what each image file of a folder shows: csv, tsv, JSON lines or COCO captions, as dicts of equal keys.

A csv or tsv is separated as its ending says; where its first line has one column so, by what separates that line into several: a
comma, a tab, ";" or "|". Files are UTF-8, or UTF-16 with its mark at the start.
"""
import csv
import json
import os

from mcd_jax.data.sources.columns import check_names

DELIMITERS = {".csv": ",", ".tsv": "\t"}
_OTHERS = ("\t", ";", "|", ",")   # tried where a file's own gives one column
_UTF16 = (b"\xff\xfe", b"\xfe\xff")
COCO = {"image": "file_name", "text": "captions", "key": "id"}  # which of its columns is what


def read_table(path, header=None, quoted=True):
    """The rows of a csv, tsv, jsonl or (COCO captions) json file: list of dicts that share one set of keys.

    Bytes that are not UTF-8 stay in the text that holds them, which is then bytes.

    Args:
      header: the names of the columns of a csv or tsv file that has no header line, else None.
      quoted: whether a double quote at the start of a csv or tsv field opens a quoted one; else it is a letter like others.

    Raises:
      ValueError: a malformed row, with its file and line.
    """
    ending = os.path.splitext(path)[1].lower()
    if ending not in (*DELIMITERS, ".jsonl", ".json"):
        raise ValueError(f"data.source.table {path} must end in .csv, .tsv or .jsonl, or in .json (COCO captions)")
    if header is not None and ending not in DELIMITERS:
        raise ValueError(f"data.source.header names the columns of a csv or tsv file without a header line; {path} is none")
    with open(path, "rb") as file:
        encoding, errors = ("utf-16", "replace") if file.read(2) in _UTF16 else ("utf-8-sig", "surrogateescape")
    with open(path, encoding=encoding, errors=errors, newline="") as file:
        if ending == ".json":
            return _coco(file, path)
        return _json_rows(file, path) if ending == ".jsonl" else _separated(file, path, DELIMITERS[ending], header, quoted)


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


def json_lines(file, path):
    """Yields (number from 1, object) of the lines of an open JSON lines file that aren't empty.

    Raises:
      ValueError: a line is no JSON object; the message names `path` and the line.
    """
    for number, line in enumerate(file, 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line, object_pairs_hook=unique_keys)
        except (json.JSONDecodeError, RecursionError) as error:
            raise ValueError(f"{path}, line {number} is not JSON: {error}") from error
        except ValueError as error:
            raise ValueError(f"{path}, line {number}: {error}") from error
        if not isinstance(row, dict):
            raise ValueError(f"{path}, line {number} is not a JSON object but {line.strip()[:40]!r}")
        yield number, row


def unique_keys(pairs):
    """The dict of a JSON object's pairs, for json.loads(object_pairs_hook=...). Raises ValueError where a key comes twice."""
    found = dict(pairs)
    if len(found) < len(pairs):
        keys = [key for key, _ in pairs]
        raise ValueError(f"the key {next(key for key in keys if keys.count(key) > 1)!r} comes twice in an object")
    return found


def _json_rows(file, path):
    """Rows with the keys of all rows: what one leaves out is None."""
    rows = [{name: [_text(item) for item in value] if isinstance(value, list) else _text(value) for name, value in row.items()}
            for _, row in json_lines(file, path)]
    names = dict.fromkeys(name for row in rows for name in row)
    return [row if len(row) == len(names) else {**dict.fromkeys(names), **row} for row in rows]


def _separated(file, path, delimiter, header, quoted):
    csv.field_size_limit(2 ** 31 - 1)  # captions may be long; the pipeline cuts them
    first = file.readline()
    file.seek(0)
    if delimiter not in first:
        fits = [other for other in _OTHERS if other in first and (not header or first.count(other) == len(header) - 1)]
        delimiter = fits[0] if fits else delimiter
    spaced = not header and 0 < first.count(delimiter) == first.count(f"{delimiter} ")   # "image, text"
    reader = csv.DictReader(_without_zeros(file, path), fieldnames=header, delimiter=delimiter, strict=True,
                            quoting=csv.QUOTE_MINIMAL if quoted else csv.QUOTE_NONE, skipinitialspace=spaced)
    rows = []
    try:
        reader.fieldnames = [name.strip() for name in reader.fieldnames or ()]
        check_names(reader.fieldnames, path, "; of a file without a header line, data.source.header names them")
        for row in reader:
            if None in row or None in row.values():
                raise ValueError(f"{path}, line {reader.line_num} does not have the {len(reader.fieldnames)} fields of "
                                 f"{'data.source.header' if header else 'its header'}: {', '.join(reader.fieldnames)}")
            rows.append({name: _text(value) for name, value in row.items()})
    except csv.Error as error:
        raise ValueError(f"{path}, after line {reader.line_num}: {error}" + quoted * (
            "; where quotes are letters like others: data.source.quoted=False")) from error
    return rows


def _without_zeros(file, path):
    """The lines; zero bytes are what a damaged disk leaves, and may hide the end of a line, so that later rows would shift."""
    for number, line in enumerate(file, 1):
        if "\0" in line:
            raise ValueError(f"{path}, line {number} holds a zero byte: it is damaged, or not UTF-8 text")
        yield line


def _coco(file, path):
    """One row per image of a COCO captions file, by increasing image id: its entry under "images", and "captions", the list
    of the captions that its annotations have, by increasing annotation id. An image without any has an empty list."""
    try:
        found = json.load(file)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not JSON: {error} (tables of JSON lines end in .jsonl)") from error
    for name, needed in (("images", ("id", "file_name")), ("annotations", ("id", "image_id", "caption"))):
        entries = found.get(name) if isinstance(found, dict) else None
        if not isinstance(entries, list):
            raise ValueError(f"{path} is not a COCO captions file: it has no list {name!r}")
        for number, entry in enumerate(entries):
            lacking = [key for key in needed if not isinstance(entry, dict) or key not in entry]
            if lacking:
                raise ValueError(f"{path}: entry {number} of {name!r} has no {', '.join(lacking)}; a captions file such as "
                                 "captions_train2017.json is needed")
            if not isinstance(entry["id"], int) or not isinstance(entry.get("image_id", 0), int):
                raise ValueError(f"{path}: entry {number} of {name!r}: ids must be integers")
    rows = {}
    for image in sorted(found["images"], key=lambda image: image["id"]):
        if image["id"] in rows:
            raise ValueError(f"{path}: image id {image['id']} comes twice")
        rows[image["id"]] = {**image, "captions": []}
    for annotation in sorted(found["annotations"], key=lambda annotation: annotation["id"]):
        if annotation["image_id"] not in rows:
            raise ValueError(f"{path}: annotation {annotation['id']} is of image {annotation['image_id']}, which is not among "
                             "the images")
        rows[annotation["image_id"]]["captions"].append(_text(annotation["caption"]))
    if rows and not found["annotations"]:
        raise ValueError(f"{path} has images but no captions")
    everywhere = set.intersection(*map(set, rows.values())) if rows else set()
    return [{name: value for name, value in row.items() if name in everywhere} for row in rows.values()]


def _text(value):
    """The value; a str that is not valid Unicode (undecodable bytes, lone surrogates) as bytes."""
    if not isinstance(value, str):
        return value
    try:
        value.encode()
    except UnicodeEncodeError:
        return value.encode("utf-8", "surrogatepass")
    return value
