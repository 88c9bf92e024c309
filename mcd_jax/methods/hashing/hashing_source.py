"""MIRFlickr-25K, NUS-WIDE and MS-COCO as they are distributed for cross-modal hashing (see mcd_jax.data.sources).

    dict(name="hashing", path="/data/flickr25k", protocol="mith_mirflickr25k", part="train", images="/data/mirflickr")
    dict(name="hashing", path="/data/coco", query=5000, train=10000, seed=1814, part="query", images="/data/coco2017")

  path      folder with index.mat (key "index": paths of the images), caption.mat ("caption": a text, or several, of each; or
            caption.txt, a line of each) and label.mat ("category" in DCHMT's and DSPH's files, "label" in MITH's: (n, C) of 0 and
            1); other names by the keys index, caption and label
  images    folder of the images. A stored path is one of the machine that made the file: `prefix` is taken off it (default: the
            folder that all of them share), and what is left is looked for here
  part      "query", "train" (which is the first of "retrieval"), "validation", or "retrieval": all that doesn't ask
  protocol  one of PROTOCOLS, or query, train and seed by themselves: a permutation of the rows by numpy's seed; the first `query`
            rows ask, the next `train` train
  validation  so many rows behind those that train, to choose a model by (the published code chooses on the queries); they stay in
            the retrieval set
  empty     what stands for a text that is empty, of an image without tags: "123456" by default, as in the published NUS-WIDE file;
            the published code encodes MIRFlickr's as they are, and a batch here carries no empty text
  split     a file that `save_splits` wrote, in place of a seed

Columns: image, text (a list), label (C,) int32, key. Python objects in a .mat file are neither made nor run: scipy reads version 5.
"""
import os
from typing import NamedTuple

import numpy as np

from mcd_jax.config.keys import NEEDED, Key
from mcd_jax.data.decode import Bad
from mcd_jax.data.sources.columns import position


class Protocol(NamedTuple):
    rows: int    # of the whole set
    labels: int
    query: int
    train: int
    seed: int


# MITH: DarrenZZhang/MM23-MITH load_data.py at 2763081, dataset/README.md at aee5ff9. DCHMT, DSPH and what builds on them:
# QinLab-WFU/DSPH dataset/dataloader.py at 0138ccb, with the sizes of utils/get_args.py
PROTOCOLS = {
    "mith_mirflickr25k": Protocol(20015, 24, 2000, 10000, 1),
    "mith_nuswide": Protocol(190421, 21, 2100, 10500, 1),
    "mith_coco": Protocol(122218, 80, 5000, 10000, 1),
    "dchmt_mirflickr25k": Protocol(24581, 24, 5000, 10000, 1814),
    "dchmt_nuswide": Protocol(195834, 21, 5000, 10000, 1814),
    "dchmt_coco": Protocol(122218, 80, 5000, 10000, 1814),
}
PARTS = ("query", "train", "validation", "retrieval")
KEYS = {
    "path": Key("str", NEEDED, "folder with index.mat, caption.mat or caption.txt, and label.mat"),
    "images": Key("str", NEEDED, "folder of the images"),
    "prefix": Key("str | None", None, "what is taken off a stored path of an image; left out: the folder that all of them share"),
    "index": Key("str | None", None, "another name of index.mat"),
    "caption": Key("str | None", None, "another name of caption.mat"),
    "label": Key("str | None", None, "another name of label.mat"),
    "part": Key("str", "train", "query | train (the first of retrieval) | validation | retrieval: all that doesn't ask"),
    "protocol": Key("str | None", None, f"a published split: {', '.join(PROTOCOLS)}"),
    "query": Key("int | None", None, "in place of a protocol: so many rows ask, the first of a permutation"),
    "train": Key("int | None", None, "the next so many train"),
    "seed": Key("int | None", None, "numpy's seed of the permutation"),
    "validation": Key("int", 0, "so many rows behind those that train, to choose a model by"),
    "split": Key("str | None", None, "a file that `save_splits` wrote, in place of a seed"),
    "empty": Key("str", "123456", "what stands for a text that is empty"),
}


def split(rows, query, train, seed, validation=0):
    """{part: int64 row numbers in the published order}: query, train, validation, and retrieval, which holds the last two.

    The permutation is `np.random.seed(seed); np.random.permutation(range(rows))` of the published code.

    Raises:
      ValueError: the parts don't fit.
    """
    if min(query, train) < 1 or validation < 0 or query + train + validation > rows:
        raise ValueError(f"data.source: query={query} and train={train} must be at least 1, and with validation={validation} no "
                         f"more than the {rows} rows")
    order = np.random.RandomState(seed).permutation(rows)
    return {"query": order[:query], "train": order[query:query + train],
            "validation": order[query + train:query + train + validation], "retrieval": order[query:]}


def save_splits(path, **parts):
    """Writes the parts of a `split` as an .npz file of int32 arrays."""
    np.savez_compressed(path, **{name: np.asarray(rows, np.int32) for name, rows in parts.items()})


def load_split(path, rows):
    """{part: int64 row numbers} of a file by `save_splits`.

    Raises:
      ValueError: it lacks a part, names rows that there aren't, or lets what asks also be found.
    """
    with np.load(path, allow_pickle=False) as stored:
        found = {name: stored[name].astype(np.int64) for name in stored.files}
    lacking = [name for name in ("query", "train", "retrieval") if name not in found]
    if lacking:
        raise ValueError(f"data.source.split {path} has no {', '.join(lacking)}; it has {', '.join(found)}")
    outside = [name for name, own in found.items() if own.size and not 0 <= own.min() <= own.max() < rows]
    if outside:
        raise ValueError(f"data.source.split {path}: {outside[0]} names rows outside of the {rows} that there are")
    if np.intersect1d(found["query"], found["retrieval"]).size:
        raise ValueError(f"data.source.split {path}: rows of query are in retrieval as well")
    return found


class Hashing:
    """One example per image of a part; the image is read from its file on each access.

    Attributes:
      labels: int32 (n, C) of this part.
    """

    def __init__(self, spec):
        """spec: see the module.

        Raises:
          FileNotFoundError: no such folder or file.
          ValueError: an unknown key, part or protocol, a file without its key, or files that don't fit together.
        """
        for key in spec:
            if key not in ("name", *KEYS):
                raise ValueError(f"data.source has no key {key!r} for the hashing source; it has name, {', '.join(KEYS)}")
        for key in ("path", "images"):
            if not os.path.isdir(str(spec.get(key, ""))):
                raise FileNotFoundError(f"data.source.{key} {spec.get(key)!r} is not a folder")
        self._root = os.path.realpath(spec["images"])
        part = spec.get("part", "train")
        if part not in PARTS:
            raise ValueError(f"data.source.part={part!r} must be one of {', '.join(PARTS)}")
        paths, texts, labels, where = _read(spec)
        rows = self._rows_of(spec, part, len(paths), labels.shape[1], where)
        if not len(rows):
            raise ValueError("data.source.part='validation' has no rows: set data.source.validation to a number of them")
        self._files = [self._inside(name, where) for name in _relative([paths[i] for i in rows], paths, spec.get("prefix"), where)]
        self._texts, self.labels = [_filled(texts[i], spec.get("empty", "123456")) for i in rows], labels[rows]

    def _rows_of(self, spec, part, count, classes, where):
        if spec.get("split"):
            return load_split(os.path.join(spec["path"], spec["split"]), count)[part]
        own = {key: spec.get(key) for key in ("query", "train", "seed")}
        if spec.get("protocol"):
            if spec["protocol"] not in PROTOCOLS:
                raise ValueError(f"data.source.protocol={spec['protocol']!r} must be one of {', '.join(PROTOCOLS)}")
            given = PROTOCOLS[spec["protocol"]]
            if (count, classes) != (given.rows, given.labels):
                raise ValueError(f"{where} has {count:,} rows with {classes} labels; the protocol {spec['protocol']} is of "
                                 f"{given.rows:,} with {given.labels}, and other rows have another permutation: give query, train "
                                 "and seed instead")
            own = {key: getattr(given, key) if value is None else value for key, value in own.items()}
        lacking = [key for key, value in own.items() if value is None]
        if lacking:
            raise ValueError(f"data.source.{lacking[0]} is missing: give protocol, split, or query, train and seed")
        return split(count, **own, validation=spec.get("validation", 0))[part]

    def _inside(self, name, where):
        path = os.path.realpath(os.path.join(self._root, name))
        if not path.startswith(os.path.join(self._root, "")):
            raise ValueError(f"{where}: {name!r} leads out of {self._root}")
        return path

    def __len__(self):
        return len(self._files)

    def __getitem__(self, index):
        index = position(index, len(self))
        try:
            with open(self._files[index], "rb") as file:
                image = file.read()
        except FileNotFoundError as error:
            raise Bad("missing image", self._files[index]) from error
        return {"image": image, "text": list(self._texts[index]), "label": self.labels[index], "key": self._key(index)}

    def _key(self, index):
        return os.path.relpath(self._files[index], self._root).replace(os.sep, "/")

    def column(self, name):
        """The values of a column other than image for all rows; no image is read.

        Raises:
          KeyError: no such column.
        """
        return {"label": lambda: list(self.labels), "text": lambda: [list(own) for own in self._texts],
                "key": lambda: [self._key(index) for index in range(len(self))]}[name]()


def _read(spec):
    """(paths, lists of texts, labels int32 (n, C), the index file) of the whole set."""
    names = {key: spec.get(key) or f"{key}.mat" for key in ("index", "caption", "label")}
    if "caption" not in spec and not os.path.isfile(os.path.join(spec["path"], names["caption"])):
        names["caption"] = "caption.txt"
    files = {key: os.path.join(spec["path"], name) for key, name in names.items()}
    for key, path in files.items():
        if not os.path.isfile(path):
            raise FileNotFoundError(f"data.source.{key}: there is no file {path}")
    paths = [own[0].strip() for own in _texts(files["index"], "index")]
    if files["caption"].endswith(".txt"):
        with open(files["caption"], encoding="utf-8", errors="replace") as lines:
            texts = [[line.strip()] for line in lines]
    else:
        texts = [[text.strip() for text in own] for own in _texts(files["caption"], "caption")]
    labels = _mat(files["label"], "category", "label")
    if labels.ndim != 2 or labels.dtype.kind not in "biuf":
        raise ValueError(f"{files['label']}: labels must be an array (n, C) of 0 and 1, not {labels.dtype} {labels.shape}")
    sizes = {files["index"]: len(paths), files["caption"]: len(texts), files["label"]: len(labels)}
    if len(set(sizes.values())) > 1:
        found = ", ".join(f"{path} has {n:,} rows" for path, n in sizes.items())
        raise ValueError(f"data.source: the files don't fit together: {found}")
    return paths, texts, (labels > 0).astype(np.int32), files["index"]


def _mat(path, *keys):
    """The array of a .mat file under the first of `keys` that it has."""
    from scipy import io

    try:
        stored = io.loadmat(path)
    except NotImplementedError as error:
        raise ValueError(f"{path} is a .mat file of version 7.3, which is HDF5: save it as version 5, "
                         "as scipy.io.savemat does") from error
    except (ValueError, OSError, TypeError, EOFError, io.matlab.MatReadError) as error:
        raise ValueError(f"{path} is no .mat file that can be read: {error}") from error
    for key in keys:
        if key in stored:
            return np.asarray(stored[key])
    present = ", ".join(key for key in stored if not key.startswith("__"))
    raise ValueError(f"{path} has no {' or '.join(map(repr, keys))}; it has {present}")


def _texts(path, key):
    """The texts of each row: [[str, ...], ...], from an array of padded strings, or cells of them, one or several in a cell."""
    stored = _mat(path, key)
    if stored.ndim == 2 and stored.shape[0] == 1 and stored.shape[1] > 1 and stored.dtype.kind == "O":
        stored = stored[0]   # savemat makes a list of lists a row of cells, and the published loaders take it out again
    found = [_strings(own) for own in stored]
    empty = [number for number, own in enumerate(found) if not own]
    if empty:
        raise ValueError(f"{path}: row {empty[0]} of {key!r} holds no text")
    return found


def _strings(value):
    """All strings in a cell, in order; arrays and cells may be nested."""
    if isinstance(value, str):
        return [str(value)]
    if isinstance(value, np.ndarray):
        return [text for own in value.ravel() for text in _strings(own)]
    return []


def _filled(texts, word):
    """The texts that aren't empty; `word` where all are."""
    return [text for text in texts if text] or [word]


def _relative(names, every, prefix, where):
    """Paths without the part that belongs to the machine that made the file."""
    if prefix is None:
        prefix = os.path.commonpath([os.path.dirname(name) or "." for name in every]) if every[0].startswith("/") else ""
    prefix = prefix.rstrip("/") + "/" if prefix.strip("/.") else ""
    other = [name for name in names if not name.startswith(prefix)]
    if other:
        raise ValueError(f"{where}: {other[0]!r} does not begin with data.source.prefix={prefix!r}")
    return [name[len(prefix):] for name in names]


def make(spec):
    """The source protocol of mcd_jax.data.sources."""
    return Hashing(dict(spec))
