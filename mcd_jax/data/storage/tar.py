"""Finds the members of tar archives without unpacking: ustar, GNU (long names) and pax, as WebDataset and img2dataset write.

A member's name is split as WebDataset does: the key ends at the first dot after the last slash, the rest, in lower case,
is the kind ("a/001.seg.png": key "a/001", kind "seg.png"). Members of one key are one example, wherever they stand. So a dot inside
a name of one's own ("photo 1.5.jpg") ends the key too early; `without_image` says what is lost by that.
"""
import json
import zlib

import numpy as np

IMAGES = "jpg;jpeg;png;webp;gif;bmp"   # kinds of members that are images, unless a source names others
BLOCK = 512
_HEAD_LIMIT = 2 ** 20  # bytes that the extended header of one member may take
_JSON_LIMIT = 2 ** 20  # larger .json members are not searched for numbers
_KINDS = 64  # kinds of members in one shard; a name with a date such as a.2020.01.jpg would make each its own kind
_LINK, _NO_DATA = b"12", b"123456"
_ZEROS = bytes(BLOCK)
_TEXTS = ("txt", "caption", "json", "cls")


class Window:
    """Reads a file front to back in large pieces."""

    def __init__(self, file, piece):
        self._file, self._piece = file, piece
        self._data, self._start = b"", 0

    def get(self, offset, size):
        begin = offset - self._start
        if begin < 0 or begin + size > len(self._data):
            much = min(max(size, self._piece), self._file.size - offset)
            self._data, self._start, begin = self._file.read(offset, much), offset, 0
        return self._data[begin:begin + size]


def is_head(head):
    """Whether 512 bytes are a tar header: their checksum is right."""
    try:
        told = int(head[148:156].strip(b"\0 "), 8)
    except ValueError:
        return False
    total = (zlib.adler32(head) & 0xFFFF) - 1  # the sum of the bytes modulo 65,521, 30 times as fast as sum(head)
    if (total - sum(head[148:156]) + 256 - told) % 65_521 == 0:
        return True
    rest = head[:148] + head[156:]
    return told == sum(rest) + 256 - 256 * sum(byte > 127 for byte in rest)  # some old programs added signed bytes


def members(window, size, problem):
    """Yields (name, offset of the data, size of the data) of each file in an archive of `size` bytes.

    Names are bytes as stored: they are never used as paths. problem(cause, detail) is called for
      "no end of the archive"   the file ends where a header or the end should be
      "truncated member"        the file ends inside a member or its header; the member is left out
      "broken header"           what should be a header is none; what comes after it is lost
      "data after the end"      there is something behind the end of the archive, as in archives put together by cat
      "link", "sparse member"   left out
    """
    at, name, length, sparse = 0, None, None, False
    while True:
        if at + BLOCK > size:
            problem(*(("no end of the archive", f"at byte {at}") if at == size else ("truncated member", f"header at byte {at}")))
            return
        head = window.get(at, BLOCK)
        if head == _ZEROS:
            if window.get(at, min(size - at, 2 ** 16)).strip(b"\0"):
                problem("data after the end", f"the archive ends at byte {at}")
            return
        kind, begin = head[156:157], at
        try:
            if not is_head(head):
                raise ValueError
            much = _number(head[124:136]) if length is None or kind in b"xXgLK" else length
            data = at + BLOCK
            if kind == b"S" and head[482]:
                while window.get(data, BLOCK)[504]:
                    data += BLOCK
                data += BLOCK
            if kind in b"xXgLK" and much > _HEAD_LIMIT:
                raise ValueError
            if kind in _NO_DATA:
                much = 0
            if data + much > size:
                problem("truncated member", _say(name or _name(head)))
                return
            at = data + -(-much // BLOCK) * BLOCK
            if kind == b"L":
                name = window.get(data, much).split(b"\0")[0]
                continue
            if kind in b"xX":
                records = _pax(window.get(data, much))
                name = records.get(b"path", name)
                length = _whole(records[b"size"]) if b"size" in records else None
                sparse = any(key.startswith(b"GNU.sparse") for key in records)
                continue
            if kind in b"gK":
                continue
        except (ValueError, IndexError):
            problem("broken header", f"at byte {begin}; the rest of the shard is lost")
            return
        full = name or _name(head)
        if kind in _LINK:
            problem("link", _say(full))
        elif sparse or kind == b"S":
            problem("sparse member", _say(full))
        elif kind in b"0\x007" and not full.endswith(b"/"):
            yield full, data, much
        name, length, sparse = None, None, False


def split(name):
    """(key, kind) of a member's name, both bytes; None for what has no kind or is hidden ("README", ".x", "._001.jpg")."""
    folder, slash, base = name.rpartition(b"/")
    stem, _, kind = base.partition(b".")
    return (folder + slash + stem, kind.lower()) if stem and kind else None


def examples(window, size, wants_json, problem):
    """The examples of an archive.

    Args:
      wants_json: whether to read the .json members.
      problem: see `members`; also "duplicated key" (a second member of the same kind and key begins an example of its
        own), "broken json", "too many kinds of members" and "name without an ending" (left out; hidden ones aren't told).

    Returns:
      (keys: list of bytes; kinds: list of str; places: list of (row, number of the kind, offset, size); fields: {row: dict})
    """
    keys, kinds, places, fields, rows, have = [], {}, [], {}, {}, []
    for name, offset, length in members(window, size, problem):
        parts = split(name)
        if parts is None:
            if not name.rpartition(b"/")[2].startswith(b"."):
                problem("name without an ending", _say(name))
            continue
        key, kind = parts
        number = kinds.setdefault(kind, len(kinds)) if kind in kinds or len(kinds) < _KINDS else None
        if number is None:
            problem("too many kinds of members", _say(name))
            continue
        row = rows.get(key)
        if row is None or have[row] >> number & 1:
            if row is not None:
                problem("duplicated key", _say(key))
            row = rows[key] = len(keys)
            keys.append(key)
            have.append(0)
        have[row] |= 1 << number
        places.append((row, number, offset, length))
        if wants_json and kind == b"json" and length <= _JSON_LIMIT:
            try:
                value = json.loads(window.get(offset, length))
            except (ValueError, RecursionError):
                value = None
            if isinstance(value, dict):
                fields[row] = value
            else:
                problem("broken json", _say(name))
    return keys, [_say(kind) for kind in kinds], places, fields


def without_image(found, images):
    """What `index.Index` of a tar holds that makes no example: {cause: [count, first]}.

    "image with a dot in its name": an image file whose kind has a dot, in an example that has no image otherwise, or beside a text
    of the same name in one that has. "no image": members of one key without an image.

    Args:
      images: the kinds of which an example has one, list of str.
    """
    whole = np.isin(found.members, images)
    there = found.places != 0
    usable = (there & whole).any(axis=1)
    dotted = {name: number for number, name in enumerate(found.members)
              if not whole[number] and "." in name and name.rpartition(".")[2] in IMAGES.split(";")}
    told = {}
    for name, number in dotted.items():
        beside = [other for other, kind in enumerate(found.members)
                  if kind.rpartition(".")[0] == name.rpartition(".")[0] and kind.rpartition(".")[2] in _TEXTS]
        lost = there[:, number] & (~usable | there[:, beside].any(axis=1))
        if lost.any():
            first = f"{_say(found.key(int(np.argmax(lost))))}.{name}"
            told.setdefault("image with a dot in its name, where the key ends", [0, first])[0] += int(lost.sum())
    none = ~usable & ~there[:, list(dotted.values())].any(axis=1)
    if none.any():
        row = int(np.argmax(none))
        told["no image"] = [int(none.sum()), f"{_say(found.key(row))} with {', '.join(kind for kind, *_ in found.where(row))}"]
    return told


def _name(head):
    name = head[:100].split(b"\0")[0]
    prefix = head[345:500].split(b"\0")[0] if head[257:263] == b"ustar\0" else b""
    return prefix + b"/" + name if prefix else name


def _number(field):
    if field[0] == 0x80:
        return int.from_bytes(field[1:], "big")
    return _whole(field.split(b"\0")[0].strip() or b"0", 8)


def _whole(digits, base=10):
    value = int(digits, base)
    if value < 0:
        raise ValueError
    return value


def _pax(data):
    """The records of an extended header, "length key=value" each, {bytes: bytes}."""
    records, at = {}, 0
    while at < len(data) and data[at]:
        digits, space, _ = data[at:at + 20].partition(b" ")
        end = at + int(digits)
        key, equals, value = data[at + len(digits) + 1:end - 1].partition(b"=")
        if not space or not equals or end > len(data) or data[end - 1:end] != b"\n":
            raise ValueError
        records[key] = value.split(b"\0")[0]
        at = end
    return records


def _say(name):
    return name.decode("utf-8", "backslashreplace")[:200]
