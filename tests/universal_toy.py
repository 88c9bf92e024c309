"""A benchmark for tests: images of one colour and texts of one word, which say the number of the concept they show."""
import io

import numpy as np
from PIL import Image

from mcd_jax.data import tokenizers
from mcd_jax.evals.benchmarks import MODALITIES, Benchmark, Entry, Task

_TOKENIZER = tokenizers.make("clip", "", 0)
_TEXTS = ("word{}", "other{}", "Word{}.", "Other{}.")
_WORDS = {tuple(_TOKENIZER.row(text.format(i), 8).tolist()): i for text in _TEXTS for i in range(9)}


def png(number):
    """A PNG file of one colour."""
    out = io.BytesIO()
    Image.fromarray(np.full((4, 4, 3), 20 * number, np.uint8)).save(out, "PNG")
    return out.getvalue()


class Images:
    """Row i shows number i % concepts."""

    def __init__(self, count, concepts=None):
        self._count, self._concepts = count, concepts or count

    def __len__(self):
        return self._count

    def __getitem__(self, index):
        return {"image": png(index % self._concepts), "text": "word0", "key": str(index)}


def seen(images):
    """The numbers that a batch of images shows."""
    return np.asarray(images)[:, 0, 0, 0] // 20


def read(tokens):
    """The numbers that a batch of tokens says."""
    return np.array([_WORDS[tuple(row.tolist())] for row in np.asarray(tokens)])


def make(spec):
    n = spec["concepts"]
    sides = [[Entry(f"{m} {i}", m, (offset + i,) if m != "text" else (), f"{word}{i}" if m != "image" else "")
              for m in MODALITIES for i in range(n)] for offset, word in ((0, "word"), (n, "other"))]
    relevant = [[f"{m} {i}" for m in MODALITIES] for _ in MODALITIES for i in range(n)]
    if spec.get("wrong"):
        relevant[0] = ["nothing"]
    return Benchmark(Images(2 * n, n), sides[1], [Task("", sides[0], relevant)])
