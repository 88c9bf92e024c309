"""A trained run that answers questions about a folder of images."""
import hashlib
import pathlib
import threading
from typing import NamedTuple

import jax
import numpy as np

from mcd_jax import plugins, trained
from mcd_jax.data import decode as decode_lib
from mcd_jax.data import reader
from mcd_jax.evals import building, entries, hamming, rows
from mcd_jax.evals import embedder as embedder_lib
from mcd_jax.evals import search as search_lib
from mcd_jax.run import fingerprint
from mcd_jax.run import workdir as workdir_lib
from mcd_jax.search import index as index_lib

LETTERS = 1000            # of a question; far more than any context holds
BYTES = 16 * 2 ** 20      # of an image that asks
FIRED = 64                # units of an image's sparse codes that are kept, the strongest


class Refused(ValueError):
    """A question that can't be answered; the message says why and what would be right."""


class Question(NamedTuple):
    unit: np.ndarray             # (D,) float32, unit: what is looked for
    codes: np.ndarray | None     # (K,) of the head's hash, by whose signs images are found first; None: by `unit` alone
    concepts: np.ndarray | None  # (H,) sparse codes, by which hits are explained


class Hit(NamedTuple):
    row: int              # which file of the folder
    score: float          # cosine of the question and the image
    words: tuple          # names of the concepts that both have


class One:
    """A source with the one image that asks."""

    def __init__(self, data):
        self._data = data

    def __len__(self):
        return 1

    def __getitem__(self, index):
        return {"image": self._data, "text": "", "key": "question"}


def _index_of(workdir, root):
    """Where the index of a folder lies: beside the run, or in the user's cache where the run lies in a bucket."""
    name = f"{hashlib.sha256(root.encode()).hexdigest()[:16]}.npz"
    if not workdir_lib.is_remote(workdir):
        return pathlib.Path(workdir) / "search" / name
    return pathlib.Path.home() / ".cache/mcd_jax/search" / hashlib.sha256(str(workdir).encode()).hexdigest()[:16] / name


class Engine:
    """Answers to texts, images and both. Threads may share it.

    A run whose objective has a head "concepts" explains its hits. With `bits`, images are found by the Hamming distance of hash
    codes (the embedding's image_hash, text_hash) and the nearest `shortlist` of them ordered by cosine.

    Attributes:
      folder: `folder.Folder`. index: `index.Index`. embedded: number of files embedded when this was made.
    """

    def __init__(self, workdir, folder, step=None, weights_from="params", path=None, batch_size=64, bits=False, shortlist=200):
        """
        Args:
          workdir: folder of a run with a checkpoint. step: which one, the newest when None.
          folder: `folder.Folder`. weights_from: whose parameters, see `embedder.parameters`.
          path: file of the index; None: one for each folder below <workdir>/search.
          batch_size: images that are embedded at a time. bits, shortlist: see above.

        Raises:
          FileNotFoundError, ValueError: no such run, step or parameters; a run without an image and a text view, or
            whose towers read stored embeddings; bits of a run without hash codes.
        """
        self.folder = folder
        self._run, self._state = trained.open_run(workdir, step)
        model = self._run.config.model
        if any(model.get(kind, {}).get("name") == "stored" for kind in ("image", "text")):
            raise ValueError(f"{workdir}: this run reads stored embeddings, so it can't look at files: train it over its towers")
        pipes = building.default_views(self._run.config)
        for name in ("image", "text"):
            if name not in pipes:
                raise ValueError(f"{workdir}: its config has no view from which to tell how it takes a question's {name}")
        self._views = {name: rows.pick(pipes, [name], "search") for name in ("image", "text")}
        heads = self._run.objective.heads
        explanation = plugins.find("explanation", "concepts") if "concepts" in heads else None
        self.concepts = None
        if explanation:
            with workdir_lib.opened(workdir, write=False) as small:
                self.concepts = explanation.make(small.folder)
        self._heads = ("embed", "concepts") if self.concepts else ("embed",)
        self._embed = {size: embedder_lib.on_mesh(self._run, weights_from, size, self._heads) for size in (1, batch_size)}
        self._size, self._lock, self._bits, self._shortlist = batch_size, threading.Lock(), bits, shortlist
        prints = fingerprint.fingerprints(embedder_lib.parameters(self._state, weights_from))
        digest = hashlib.sha256(repr(sorted(prints.items())).encode()).hexdigest()
        stamp = index_lib.stamp(form=2, network=digest, view=pipes["image"], heads=self._heads)
        self.index, self.embedded = index_lib.refresh(path or _index_of(self._run.workdir, folder.root), stamp, folder,
                                                      self._encode)
        self._rows = np.flatnonzero(self.index.good)
        if not len(self._rows):
            raise ValueError(f"none of the {len(folder)} images below {folder.root} can be read")
        if bits and "hash" not in self.index.extra:
            raise ValueError(f"{workdir}: this run makes no hash codes; those of objectives that hash do")
        self._search = hamming.Index(self.index.extra["hash"][self._rows]) if bits else search_lib.Index(
            self.index.image[self._rows])

    def text(self, question):
        """The `Question` of a text.

        Raises:
          Refused: nothing that says something, or over LETTERS characters.
        """
        if not question.strip():
            raise Refused("the question is empty: type what the picture should show")
        if len(question) > LETTERS:
            raise Refused(f"the question has {len(question):,} characters; at most {LETTERS:,} are read")
        try:
            return self._one("text", rows.Texts([question]))
        except reader.Unusable as error:
            raise Refused(f"the question {question[:40]!r} is empty once it is cleaned: type what the picture should "
                          "show") from error

    def image(self, data):
        """The `Question` of an image file's bytes.

        Raises:
          Refused: no image that can be decoded, or over BYTES.
        """
        if len(data) > BYTES:
            raise Refused(f"the image has {len(data):,} bytes; at most {BYTES:,} are read")
        try:
            decode_lib.decode(data)
        except decode_lib.Bad as error:
            raise Refused(f"the question is no image that can be used ({error})") from error
        return self._one("image", One(data))

    def member(self, row):
        """The `Question` of an image of the folder.

        Raises:
          Refused: there is no such row, or its file can't be used.
        """
        if not 0 <= row < len(self.folder) or not self.index.good[row]:
            raise Refused(f"there is no usable image number {row}: they go from 0 to {len(self.folder) - 1}")
        extra = self.index.extra
        codes = np.unpackbits(extra["hash"][row]).astype(np.float32) - 0.5 if "hash" in extra else None
        return Question(self.index.image[row], codes, self._sparse(row) if self.concepts else None)

    def nearest(self, questions, count):
        """The `count` images nearest to the sum of some `Question`s, nearest first (ties as the files): list of `Hit`."""
        unit = entries.unit(np.sum([question.unit for question in questions], axis=0)[None])
        count = min(count, len(self._rows))
        if self._bits:
            codes = np.sum([question.codes for question in questions], axis=0)[None]
            near = self._search.search(hamming.pack(codes), max(count, self._shortlist))[1][0]
        else:
            near = next(self._search.shortlist(unit, count))[1][0]
        scores = self.index.image[self._rows[near]] @ unit[0]
        order = sorted(range(len(near)), key=lambda i: (-scores[i], self._rows[near[i]]))[:count]
        fired = np.sum([question.concepts for question in questions], axis=0) if self.concepts else None
        return [Hit(row, score, tuple(self.concepts.words(fired, self._sparse(row))) if self.concepts else ())
                for row, score in ((int(self._rows[near[i]]), float(scores[i])) for i in order)]

    def _sparse(self, row):
        """(H,) codes of an image of the folder."""
        units, values, size = (self.index.extra[f"concepts_{part}"][row] for part in ("units", "values", "size"))
        codes = np.zeros(int(size), np.float32)
        codes[units[values > 0]] = values[values > 0]
        return codes

    def _one(self, name, source):
        with self._lock, jax.set_mesh(self._run.mesh):
            found, _ = rows.encode(self._embed[1], self._state, source, self._views[name], [name], 1)
        return Question(*(found[key][0] if key in found else None for key in (name, f"{name}_hash", f"{name}_codes")))

    def _encode(self, some):
        with jax.set_mesh(self._run.mesh):
            found, good = rows.encode(self._embed[self._size], self._state, self.folder, self._views["image"], ["image"],
                                      self._size, indices=some)
        out = {"image": found["image"]}
        if "image_hash" in found:
            out["hash"] = hamming.pack(found["image_hash"])
        if "image_codes" in found:   # few units fire: their numbers and values
            codes = found["image_codes"]
            units = np.argsort(-codes, axis=1, kind="stable")[:, :FIRED].astype(np.int32)
            out |= {"concepts_units": units, "concepts_values": np.take_along_axis(codes, units, axis=1),
                    "concepts_size": np.full(len(codes), codes.shape[1], np.int32)}
        return out, good
