"""Images and texts as a person has them, made into the rows that a network reads: by the same pipes as rows of a source.

An image is the path of a file, a file's bytes, a PIL image, or a uint8 array (height, width, 3). Bytes are decoded as `decode.py`
says. A row of stored embeddings, for towers that read those, is a float array (width,).
"""
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from concurrent import futures
import io
import os
import pathlib
from typing import Any

import numpy as np
from PIL import Image

from mcd_jax.data import decode as decode
from mcd_jax.data.views import Views

_THREADS = min(8, os.cpu_count() or 1)
_IN_PNG = ("1", "L", "LA", "P", "PA", "RGBA", "I;16")   # modes whose pixels a PNG file has as they are
_NO_RANGE = ("I", "F")   # modes of PIL that don't say which numbers are black and white


def listed(given: Any, what: str, stored: bool = False) -> list:
    """What was given as a list of single images or texts, every one of a kind that can be read.

    Args:
      given: a list (or another iterable) of them, an array of several, or a single one.
      what: "images" or "texts", for messages. stored: whether rows of numbers are read in their place.

    Raises:
      TypeError: no list, or an entry of another kind. ValueError: an empty list, or an array of another shape or type.
    """
    rank = 1 if stored else 3 if what == "images" else 0
    if isinstance(given, (str, bytes, bytearray, memoryview, os.PathLike, Image.Image)):
        items = [given]
    elif _is_array(given):
        given = np.asarray(given)
        several = given.ndim == (1 if given.dtype.kind in "OUS" else rank + 1)
        items = list(given) if several else [given]
    elif hasattr(given, "read"):
        raise TypeError(f"{what} is an open file: give its path, or its bytes by .read()")
    elif isinstance(given, (Set, Mapping)):
        raise TypeError(f"{what} must be a list, not {type(given).__name__}: row i of what comes out is entry i")
    elif isinstance(given, Iterable):
        items = list(given)
    else:
        raise TypeError(f"{what} must be a list, not {type(given).__name__}")
    if not items:
        raise ValueError(f"{what} is an empty list: give at least one")
    items = [np.asarray(item) if _is_array(item) else bytes(item) if isinstance(item, (bytearray, memoryview)) else item
             for item in items]
    for number, item in enumerate(items):
        (_check_row if stored else _check_image if what == "images" else _check_text)(item, f"{what}[{number}]")
    return items


def batches(view: Views, name: str, items: Sequence, what: str, size: int) -> Iterator[np.ndarray]:
    """The rows of `items` (of `listed`) through the pipe `name` of `view`, `size` at a time: arrays (b, ...), b <= size.

    Raises:
      FileNotFoundError: a path without a file. ValueError: an image or text that can't be used; the message says which.
    """
    column = view.sources[name]

    def row(number, draws):
        item, where = items[number], f"{what}[{number}]"
        try:
            return view(_example(item, column), {name: draws})
        except decode.Bad as error:
            raise ValueError(f"{where}{_named(item)} can't be used: {error}") from error
        except OSError as error:
            raise FileNotFoundError(f"{where}: the file {os.fspath(item)} can't be read: {error.strerror or error}") from error

    with futures.ThreadPoolExecutor(_THREADS) as pool:
        def begin(start):
            numbers = range(start, min(start + size, len(items)))
            draws = view.draws(0, list(numbers))[name] if len(numbers) else []
            return [pool.submit(row, number, own) for number, own in zip(numbers, draws)]

        waiting = begin(0)
        try:
            for start in range(0, len(items), size):
                current, waiting = waiting, begin(start + size)
                yield view.collate([made.result() for made in current])[name]
        finally:
            for made in waiting:
                made.cancel()


def _example(item, column):
    """What the first op of a pipe reads of one image or text."""
    if isinstance(item, Image.Image):
        item = _of_pil(item)
    elif isinstance(item, os.PathLike) or (isinstance(item, str) and column != "text"):
        item = pathlib.Path(item).read_bytes()
    if isinstance(item, np.ndarray) and item.ndim == 3:   # pixels that needn't be decoded
        return {column: b"", ("pixels", column): item, ("jpeg", column): None}
    return {column: item}


def _of_pil(picture):
    """Pixels of a PIL image, or the bytes of a PNG file where it has transparency, grey or a palette."""
    if picture.mode not in _IN_PNG:
        return np.asarray(picture.convert("RGB"))
    out = io.BytesIO()
    picture.save(out, "PNG", compress_level=1)
    return out.getvalue()


def _is_array(item):
    return hasattr(item, "__array__") and not isinstance(item, (str, bytes, Image.Image))   # numpy's own str is a str


def _check_image(item, where):
    if _is_array(item):
        if item.dtype != np.uint8 or item.ndim != 3 or item.shape[2] != 3 or 0 in item.shape:
            raise ValueError(f"{where} is an array {tuple(item.shape)} of {item.dtype}: pixels are uint8 from 0 to 255, "
                             "(height, width, 3)")
    elif not isinstance(item, (str, bytes, os.PathLike, Image.Image)):
        raise TypeError(f"{where} is of type {type(item).__name__}: an image is a path, a file's bytes, a PIL image or a uint8 "
                        "array")
    elif isinstance(item, Image.Image) and (item.mode in _NO_RANGE or 0 in item.size):
        raise ValueError(f"{where} is a PIL image of {item.size[0]} x {item.size[1]} pixels and mode {item.mode}"
                         + ("" if 0 in item.size else ", which doesn't say which numbers are black and white: make it L or RGB"))
    elif isinstance(item, str) and "\0" in item:
        raise ValueError(f"{where} is {item[:80]!r}, which is no path: it holds a zero byte")


def _check_text(item, where):
    if not isinstance(item, str):
        raise TypeError(f"{where} is of type {type(item).__name__}: a text is a str")
    if not item.strip():
        raise ValueError(f"{where} is empty: a text has at least one letter")


def _check_row(item, where):
    if not _is_array(item) or np.ndim(item) != 1 or np.asarray(item).dtype.kind not in "fiu":
        raise ValueError(f"{where}: this model's towers read stored embeddings, so a row is an array (width,) of numbers")


def _named(item):
    return f" ({os.fspath(item)})" if isinstance(item, (str, os.PathLike)) and len(os.fspath(item)) < 500 else ""
