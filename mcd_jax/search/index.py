"""The stored index of a folder: one embedding per image, kept between calls; only files that are new or changed are embedded."""
import json
import pathlib
from typing import NamedTuple
import zipfile
import zlib

from absl import logging
import numpy as np

from mcd_jax import command
from mcd_jax.run import atomic

ARRAYS = ("names", "sizes", "changed", "image", "good")


class Index(NamedTuple):
    """Rows are the files of a `folder.Folder`, in its order."""
    image: np.ndarray     # (N, D) float32, unit; zeros where a file can't be used
    good: np.ndarray      # (N,) bool
    extra: dict           # name -> (N, ...) array of what else is stored beside each image: "codes", "concepts"


def load(path, stamp):
    """{File's three fields: row} and the arrays of an index written by `save`; empty where there is none or its stamp differs."""
    try:
        with np.load(path, allow_pickle=False) as stored:
            if str(stored["stamp"]) != stamp:
                return {}, {}
            arrays = {name: stored[name] for name in stored.files if name != "stamp"}
    except (KeyError, ValueError, OSError, EOFError, TypeError, NotImplementedError, zipfile.BadZipFile, zlib.error):
        return {}, {}
    if not set(ARRAYS) <= arrays.keys() or () in (lengths := {value.shape[:1] for value in arrays.values()}) or len(lengths) != 1:
        return {}, {}
    files = zip(arrays["names"].tolist(), arrays["sizes"].tolist(), arrays["changed"].tolist())
    return {file: row for row, file in enumerate(files)}, arrays


def save(path, stamp, files, index):
    """Writes an index whole or not at all."""
    path = pathlib.Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    names, sizes, changed = (list(column) for column in zip(*files))
    with atomic.writing(path) as part, open(part, "wb") as file:
        np.savez(file, stamp=np.array(stamp), names=np.array(names, dtype=str), sizes=np.array(sizes, np.int64),
                 changed=np.array(changed, np.int64), image=index.image, good=index.good, **index.extra)


def refresh(path, stamp, folder, encode):
    """The index of a folder as it is now.

    Args:
      path: file of the stored index; read when it is there, written when anything changed.
      stamp: str that says which network made the embeddings; a stored index with another is made anew.
      folder: `folder.Folder`.
      encode: rows (n,) int -> ({"image": (n, D) float32, name: (n, ...)}, good (n,) bool), the embeddings of those files.

    Returns:
      (Index, number of files that were embedded now).
    """
    known, arrays = load(path, stamp)
    old = np.array([known.get(tuple(file), -1) for file in folder.files])
    new = np.flatnonzero(old < 0)
    if not len(new) and len(known) == len(folder):
        return Index(arrays["image"], arrays["good"], {k: v for k, v in arrays.items() if k not in ARRAYS}), 0
    found, good = encode(new) if len(new) else ({}, np.zeros(0, bool))
    names = found if len(new) else [k for k in arrays if k not in ARRAYS or k == "image"]
    columns = {}
    for name in names:
        like = found[name] if len(new) else arrays[name]
        columns[name] = np.zeros((len(folder), *like.shape[1:]), like.dtype)
        if len(new):
            columns[name][new] = np.where(good.reshape(-1, *[1] * (like.ndim - 1)), found[name], np.zeros((), like.dtype))
        if (old >= 0).any():
            columns[name][old >= 0] = arrays[name][old[old >= 0]]
    usable = np.zeros(len(folder), bool)
    usable[new] = good
    usable[old >= 0] = arrays["good"][old[old >= 0]] if (old >= 0).any() else False
    index = Index(columns.pop("image"), usable, columns)
    try:
        save(path, stamp, folder.files, index)
    except OSError as error:   # a run that may only be read, or a full disk: the answers are the same
        logging.warning("the folder's embeddings are not kept for the next time (%s); --index=FILE keeps them elsewhere",
                        command.sentence(error))
    return index, len(new)


def stamp(**what):
    """A str that is the same for the same values (numbers, text)."""
    return json.dumps(what, sort_keys=True)
