"""Embeddings of a benchmark's entries: images, texts, and both fused."""
import numpy as np

from mcd_jax.data import pipeline
from mcd_jax.evals import rows
from mcd_jax.evals.benchmarks import MISSING

FUSIONS = ("raw_sum", "unit_sum")


def unit(x: np.ndarray, dtype: type = np.float32) -> np.ndarray:
    """Rows of x (n, D) scaled to length 1, of a float dtype; a row of zeros stays."""
    x = np.asarray(x, dtype)
    return x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), np.finfo(dtype).tiny)


class Pairs:
    """A source of images with texts: row i is row pairs[i][0] of `images` with the text pairs[i][1]."""

    def __init__(self, images, pairs):
        self._images, self._pairs = images, list(pairs)

    def __len__(self):
        return len(self._pairs)

    def __getitem__(self, index):
        row, text = self._pairs[index]
        return {**self._images[row], "text": text}


class Encoder:
    """Embeds the entries of a benchmark, each different image, text and pair once.

    An image entry is its image, or the mean of its frames' unit embeddings; a text entry its text. One with both is what the head
    calls "fused"; of a head that has no such thing, normalise(image_raw + text_raw) (mode "raw_sum", as in UniIR's
    clip_scorefusion/clip_sf.py: the longer of the two weighs more) or normalise(image + text) (mode "unit_sum").

    Attributes:
      bad: number of images and texts that can't be used.
    """

    def __init__(self, embed, state, images, entries, views, mode, size):
        """
        Args:
          embed, state: as an evaluation gets them. images: the source that the entries' rows belong to.
          entries: list of all `Entry`s that will be asked for.
          views: {"image", "text", "both": `pipeline.Views`}. mode: one of FUSIONS. size: rows per batch.

        Raises:
          ValueError: mode "raw_sum" with a head that has no raw embeddings.
        """
        used = sorted({row for entry in entries for row in entry.images if row != MISSING})
        self._mode, self._row, self._found, self._good = mode, {row: i for i, row in enumerate(used)}, {}, {}
        self._text = {text: i for i, text in enumerate(dict.fromkeys(entry.text for entry in entries if entry.text))}
        for name, source, indices in (("image", images, used), ("text", rows.Texts(self._text), list(self._text.values()))):
            if len(indices):
                found, self._good[name] = rows.encode(embed, state, source, views[name], [name], size, indices=indices)
                self._found |= {key: value for key, value in found.items() if key in (name, f"{name}_raw")}
        self.bad = int(sum(np.sum(~good) for good in self._good.values()))
        pairs = [pair for pair in dict.fromkeys(map(_pair, entries)) if pair and self._usable(pair)]
        self._pair = None
        if pairs and _fuses(embed, state, Pairs(images, pairs[:1]), views["both"]):
            found, _ = rows.encode(embed, state, Pairs(images, pairs), views["both"], ["image", "text"], size, together=True)
            self._pair, self._found["fused"] = {pair: i for i, pair in enumerate(pairs)}, found["fused"]
        elif pairs and mode == "raw_sum" and not {"image_raw", "text_raw"} <= self._found.keys():
            raise ValueError("fuse='raw_sum' needs a head 'embed' that gives image_raw and text_raw: "
                             f"this one gives {', '.join(sorted(self._found))}; fuse='unit_sum' does without")

    def __call__(self, entries):
        """((n, D) float32 unit embeddings, (n,) bool: whether each entry can be used; where not, zeros stand)."""
        out = np.zeros((len(entries), next(iter(self._found.values())).shape[1]), np.float32)
        images = [[self._row[row] for row in entry.images if row in self._row and self._good["image"][self._row[row]]]
                  for entry in entries]
        kinds = {"image": [], "text": [], "fused": []}
        for i, entry in enumerate(entries):
            if (images[i] or not entry.images) and (entry.images or entry.text) and (
                    not entry.text or self._good["text"][self._text[entry.text]]):
                kinds["fused" if entry.images and entry.text else "image" if entry.images else "text"].append(i)
        for kind, some in kinds.items():
            if some:
                out[some] = self._embed(kind, [entries[i] for i in some], [images[i] for i in some])
        good = np.zeros(len(entries), bool)
        good[[i for some in kinds.values() for i in some]] = True
        return out, good

    def _embed(self, kind, entries, images):
        if kind == "fused" and self._pair is not None:
            return self._found["fused"][[self._pair[_pair(entry)] for entry in entries]]
        suffix = "_raw" if kind == "fused" and self._mode == "raw_sum" else ""
        parts = []
        if kind != "text":
            found = self._found[f"image{suffix}"]
            single = all(len(own) == 1 for own in images)
            mean = found[[own[0] for own in images]] if single else np.stack([found[own].mean(axis=0) for own in images])
            parts.append(mean if suffix or single else unit(mean))
        if kind != "image":
            parts.append(self._found[f"text{suffix}"][[self._text[entry.text] for entry in entries]])
        return unit(sum(parts)) if kind == "fused" else parts[0]

    def _usable(self, pair):
        return pair[0] in self._row and self._good["image"][self._row[pair[0]]] and self._good["text"][self._text[pair[1]]]


def _pair(entry):
    """(row, text) of an entry that has both; None of others. Of several frames the middle one is fused with the text."""
    return (entry.images[len(entry.images) // 2], entry.text) if entry.images and entry.text else None


def _fuses(embed, state, source, views):
    """Whether the head fuses a batch with both modalities. An embedding of `embedder.make_embed` says so without compiling."""
    batch = next(pipeline.sequential(source, views, 1))
    batch = {name: batch[name] for name in ("image", "text")}
    return "fused" in (embed.gives(state, batch) if hasattr(embed, "gives") else embed(state, batch))
