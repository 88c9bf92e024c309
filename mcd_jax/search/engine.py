"""A trained run that answers questions about a folder of images."""
import hashlib
import pathlib
import threading
from typing import NamedTuple

import jax
import numpy as np

from mcd_jax import embed as embed_lib
from mcd_jax import evaluate, fingerprint
from mcd_jax.data import image as image_lib
from mcd_jax.evals import entries, rows
from mcd_jax.evals import search as search_lib
from mcd_jax.search import index as index_lib

LETTERS = 1000            # of a question; far more than any context holds
BYTES = 16 * 2 ** 20      # of an image that asks


class Refused(ValueError):
    """A question that can't be answered; the message says why and what would be right."""


class Hit(NamedTuple):
    row: int              # which file of the folder
    score: float          # cosine of the question and the image


class One:
    """A source with the one image that asks."""

    def __init__(self, data):
        self._data = data

    def __len__(self):
        return 1

    def __getitem__(self, index):
        return {"image": self._data, "text": "", "key": "question"}


class Engine:
    """Answers to texts, images and both. Threads may share it.

    Attributes:
      folder: `folder.Folder`. index: `index.Index`. embedded: number of files embedded when this was made.
      concepts: None; see `explain`.
    """

    def __init__(self, workdir, folder, step=None, read="params", path=None, batch_size=64):
        """
        Args:
          workdir: folder of a run with a checkpoint. step: which one, the newest when None.
          folder: `folder.Folder`. read: whose parameters, see `embed.parameters`.
          path: file of the index; None: one for each folder below <workdir>/search.
          batch_size: images that are embedded at a time.

        Raises:
          FileNotFoundError, ValueError: no such run, step or parameters; a run without an image and a text view.
        """
        self.folder = folder
        self._job, self._state = evaluate.open_run(workdir, step)
        self._job.pipeline.close()
        pipes = evaluate.default_views(self._job.config)
        for name in ("image", "text"):
            if name not in pipes:
                raise ValueError(f"{workdir}: its config has no view from which to tell how it takes a question's {name}")
        self._views = {name: rows.pick(pipes, [name], "search") for name in ("image", "text")}
        place = evaluate.placement(self._job.mesh)
        self._embed = {size: embed_lib.make_embed(self._job.objective, read, evaluate.batch_rows(size, self._job.mesh), place)
                       for size in (1, batch_size)}
        self._size, self._lock = batch_size, threading.Lock()
        prints = fingerprint.fingerprints(embed_lib.parameters(self._state, read))
        digest = hashlib.sha256(repr(sorted(prints.items())).encode()).hexdigest()
        stamp = index_lib.stamp(form=1, network=digest, view=pipes["image"])
        default = pathlib.Path(workdir) / "search" / f"{hashlib.sha256(folder.root.encode()).hexdigest()[:16]}.npz"
        self.index, self.embedded = index_lib.refresh(path or default, stamp, folder, self._encode)
        self._rows = np.flatnonzero(self.index.good)
        if not len(self._rows):
            raise ValueError(f"none of the {len(folder)} images below {folder.root} can be read")
        self._search = search_lib.Index(self.index.image[self._rows])

    def text(self, question):
        """(D,) float32, unit: the embedding of a text.

        Raises:
          Refused: nothing but white space, or over LETTERS characters.
        """
        if not question.strip():
            raise Refused("the question is empty: type what the picture should show")
        if len(question) > LETTERS:
            raise Refused(f"the question has {len(question):,} characters; at most {LETTERS:,} are read")
        return self._one("text", rows.Texts([question]))

    def image(self, data):
        """(D,) float32, unit: the embedding of an image file's bytes.

        Raises:
          Refused: no image that can be decoded, or over BYTES.
        """
        if len(data) > BYTES:
            raise Refused(f"the image has {len(data):,} bytes; at most {BYTES:,} are read")
        try:
            image_lib.decode(data)
        except image_lib.Bad as error:
            raise Refused(f"the question is no image that can be used ({error})") from error
        return self._one("image", One(data))

    def member(self, row):
        """(D,) float32, unit: the embedding of an image of the folder.

        Raises:
          Refused: there is no such row, or its file can't be used.
        """
        if not 0 <= row < len(self.folder) or not self.index.good[row]:
            raise Refused(f"there is no usable image number {row}: they go from 0 to {len(self.folder) - 1}")
        return self.index.image[row]

    def nearest(self, questions, count):
        """The `count` images nearest to the sum of some embeddings, nearest first (ties as the files): list of `Hit`."""
        question = entries.unit(np.sum(questions, axis=0)[None])
        count = min(count, len(self._rows))
        near = next(self._search.shortlist(question, count))[1][0]
        scores = self._search.rows[near] @ question[0]
        order = sorted(range(len(near)), key=lambda i: (-scores[i], self._rows[near[i]]))
        return [Hit(int(self._rows[near[i]]), float(scores[i])) for i in order]

    def _one(self, name, source):
        with self._lock, jax.set_mesh(self._job.mesh):
            found, _ = rows.encode(self._embed[1], self._state, source, self._views[name], [name], 1)
        return found[name][0]

    def _encode(self, some):
        with jax.set_mesh(self._job.mesh):
            found, good = rows.encode(self._embed[self._size], self._state, self.folder, self._views["image"], ["image"],
                                      self._size, indices=some)
        return {"image": found["image"]}, good
