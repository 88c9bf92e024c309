"""Stored embeddings as a source: the array_record files that `mcd-jax embed` writes.

A row has image_embedding and text_embedding (float32 arrays, not normalised; either may be missing), text (the caption that was
embedded), key, index (the row of the source that was embedded) and that source's columns of numbers and words. The pipe
column('image_embedding') makes a batch of them, float32 (B, D); config.model.image = dict(name="stored", width=D, proj="none")
reads it. Files of at most `keep_mib` together stay in memory once read: heads train faster than rows can be parsed.
"""
import os

import numpy as np

from mcd_jax.config.keys import NEEDED, Key
from mcd_jax.data.sources.array_record import ArrayRecords
from mcd_jax.data.sources.columns import position
from mcd_jax.data.storage import files

KEYS = {
    "path": Key("str | tuple", NEEDED, "files, urls, patterns or folders, one or several"),
    "cache_mib": Key("int | float", files.CACHE_MIB, "MiB that copies of files behind a url may take"),
    "cache": Key("str", files.CACHE, "folder of these copies"),
    "keep_mib": Key("int | float", 1024, "files of so many MiB together stay in memory once they are read"),
}
COLUMNS = ("image_embedding", "text_embedding")


class Embeddings:
    """See the module. Items are new dicts; reading is safe from any thread."""

    def __init__(self, spec):
        for key in spec:
            if key not in ("name", *KEYS):
                raise ValueError(f"data.source has no key {key!r} for the embeddings source; it has name, {', '.join(KEYS)}")
        keep = spec.get("keep_mib", 1024)
        self._records = ArrayRecords({**{key: value for key, value in spec.items() if key != "keep_mib"},
                                      "columns": {"image": None, "text": None, "key": "key"}})
        paths = files.expand(spec["path"], inside=("*.array_record*",))
        small = all(map(files.is_local, paths)) and sum(map(os.path.getsize, paths)) <= keep * 2 ** 20
        self._kept = {} if small else None
        if len(self) and not self[0].keys() & {*COLUMNS}:
            raise ValueError(f"data.source.path={spec['path']!r} holds no stored embeddings but {', '.join(sorted(self[0]))}: "
                             "mcd-jax embed writes them")

    def __len__(self):
        return len(self._records)

    def __getitem__(self, index):
        index = position(index, len(self))
        if self._kept is not None and index in self._kept:
            return dict(self._kept[index])
        row = self._records[index]
        row |= {name: np.array(row[name], np.float32, ndmin=1) for name in COLUMNS if name in row}
        if self._kept is not None:
            self._kept[index] = row
        return dict(row)


def make(spec):
    """The source of `spec`: path (a file, url or pattern, or a list of them), keep_mib (default 1024), and what array_record takes
    for urls beside it.

    Raises:
      FileNotFoundError: no file fits a path. ValueError: an unknown key, or files without embeddings.
    """
    return Embeddings(spec)
