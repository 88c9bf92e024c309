"""Mosaics: several images of another source on one white canvas, with the boxes of what they show (see mcd_jax.data.sources):

    dict(name="mosaic", source=dict(name="emoji", ...), side=2, size=128, examples=1000, seed=0, label="concept_id")

Example i is a pure function of (seed, i): side x side images of different labels, each scaled and placed at random within its tile.
For drawings on white the box is that of what isn't white. Columns: image (PNG), text (the names, with commas), key, boxes float32
(side * side, 4): left, top, right, bottom as shares of the canvas; labels int32 (side * side,); names, a list of str.
"""
import cv2
import numpy as np

from mcd_jax.config.keys import NEEDED, Key
from mcd_jax.data import decode as decode_lib
from mcd_jax.data import sources, tokenizers
from mcd_jax.data.sources.columns import check_spec, position

KEYS = {
    "source": Key("source", NEEDED, "whose images are put together"),
    "label": Key("str", NEEDED, "integer column; the images of a mosaic differ in it"),
    "side": Key("int", 2, "images along a side"),
    "size": Key("int", 128, "pixels of the canvas's side"),
    "examples": Key("int", 1000, "how many mosaics"),
    "seed": Key("int", 0, "of what is drawn"),
    "scale": Key("tuple", (0.6, 1.0), "smallest and largest size of an image, as a share of its tile"),
}
WHITE = 250    # a channel below this is drawn on
_TRIES = 50    # rows that are drawn for each tile before too few labels are said to differ


def make(spec):
    """The mosaics that a spec describes.

    spec: source, the spec of the images; label, its integer column by which the images of one mosaic differ; optionally side (2),
      tiles on each side; size (128), pixels of the canvas; examples (1000); seed (0); scale ((0.6, 1.0)), of the image in its tile.

    Raises:
      ValueError: a key that doesn't exist or a value that doesn't fit.
    """
    check_spec(spec, KEYS)
    side, size, examples = spec.get("side", 2), spec.get("size", 128), spec.get("examples", 1000)
    low, high = spec.get("scale", (0.6, 1.0))
    for name, value in (("side", side), ("size", size), ("examples", examples)):
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise ValueError(f"data.source.{name}={value!r} must be a whole number from 1")
    if not 0 < low <= high <= 1 or size // side * low < 4:
        raise ValueError(f"data.source.scale={(low, high)} must lie in (0, 1], the smaller first, and leave images of 4 px")
    return Mosaic(sources.open(spec["source"]), spec["label"], side, size, examples, spec.get("seed", 0), (low, high))


class Mosaic:
    """See the module."""

    def __init__(self, source, label, side, size, examples, seed, scale):
        if label not in source[0]:
            raise ValueError(f"data.source.label={label!r} is no column of the images: there are {', '.join(sorted(source[0]))}")
        self._source, self._label, self._side, self._size = source, label, side, size
        self._examples, self._seed, self._scale = examples, seed, scale

    def __len__(self):
        return self._examples

    def __getitem__(self, index):
        index = position(index, len(self))
        draw = np.random.Generator(np.random.Philox(key=np.array([self._seed, index], np.uint64)))
        tile = self._size // self._side
        canvas, boxes, parts = np.full((self._size, self._size, 3), 255, np.uint8), [], self._parts(draw)
        for place, part in enumerate(parts):
            length = max(4, round(tile * draw.uniform(*self._scale)))
            top, left = (tile * at + int(draw.integers(0, tile - length + 1)) for at in divmod(place, self._side))
            pixels = cv2.resize(decode_lib.decode(part["image"]), (length, length), interpolation=cv2.INTER_AREA)
            canvas[top:top + length, left:left + length] = pixels
            x0, y0, x1, y1 = drawn(pixels)
            boxes.append((left + x0, top + y0, left + x1, top + y1))
        names = [tokenizers.captions(dict(part), "text")[0] for part in parts]
        return {"image": cv2.imencode(".png", canvas[:, :, ::-1])[1].tobytes(), "text": ", ".join(names),
                "key": f"{self._seed}/{index}", "boxes": np.array(boxes, np.float32) / self._size,
                "labels": np.array([part[self._label] for part in parts], np.int32), "names": names}

    def _parts(self, draw):
        """Rows of the source with different labels, one for each tile."""
        found = {}
        for _ in range(_TRIES * self._side ** 2):
            row = self._source[int(draw.integers(len(self._source)))]
            found.setdefault(int(row[self._label]), row)
            if len(found) == self._side ** 2:
                return list(found.values())
        raise ValueError(f"data.source: a mosaic of {self._side}x{self._side} needs as many different values of "
                         f"{self._label!r}, and few were found")


def drawn(pixels):
    """(left, top, right, bottom) in pixels of what isn't white in uint8 (H, W, 3); all of it where everything is."""
    dark = (pixels < WHITE).any(2)
    rows, columns = np.flatnonzero(dark.any(1)), np.flatnonzero(dark.any(0))
    if not len(rows):
        return 0, 0, pixels.shape[1], pixels.shape[0]
    return columns[0], rows[0], columns[-1] + 1, rows[-1] + 1
