"""An image view in the making: its pixels, what was done to it, and how much that misaligns it with its caption.

An image view reports what was done to it as a row of PARAMS, and `misalignment` turns rows into y >= 1,
exactly 1 for an untouched image:
  y = 1 - log(kept area) + |brightness-1| + |contrast-1| + max(|saturation-1| + 4|hue|, gray) + log(1 + blur^2) + style
The area is a share of the stored image. Blur is its sigma in 1/64 of the view's shorter side: a Gaussian of that
width leaves about 1/(1 + blur^2) of the frequencies of a 64-pixel picture. A half turn of hue counts like two full
losses of saturation. A mirror image adds nothing. `style` sums what the ops of `style_ops.py` add.

That is how strong the augmentation is, whatever is in the picture. Where it is known what the caption says and where that is, the
view can report what it truly lost in its place: see `decode` and `true_misalignment`.
"""
from collections.abc import Callable
from typing import NamedTuple

import cv2
import numpy as np

PARAMS = ("left", "top", "width", "height", "flip", "brightness", "contrast", "saturation", "hue", "gray", "blur",
          "style")


class Op(NamedTuple):
    """One step of a pipe. `run(value, draws)`: `draws` is a list of `draws` uniforms."""
    run: Callable
    takes: str
    gives: str
    draws: int = 0
    column: str | None = None  # the example's column that it reads
    beside: tuple = ()  # further columns that it reads
    stream: str | None = None  # views with one stream share their random numbers
    tokens: tuple | None = None  # (tokenizer, context)
    tokenizer: object = None  # that its text goes through
    with_tokenizer: Callable | None = None  # tokenizer -> this op, in a pipe in which that tokenizer follows
    resolution_needed: Callable | None = None  # (height, width, draws) -> share of an image's resolution that it makes use of


class Augmented:
    """An image view in the making: uint8 pixels, a colour matrix not applied yet, and what was done so far.

    `size` is the (height, width) in which boxes are drawn: that of the stored image, also where a JPEG was decoded to
    fewer pixels, and after a cut that of the view. `jpeg`, the stored (height, width), marks the view of a JPEG. `content` is
    None, or how much of what the caption says is in which part of the stored image, (H, W); `hidden` holds the boxes that were
    painted over, (left, top, width, height) in shares of the stored image.
    """
    __slots__ = ("blur", "box", "brightness", "content", "contrast", "flip", "gray", "hidden", "hue", "jpeg", "matrix", "pixels",
                 "saturation", "size", "style")

    def __init__(self, pixels, jpeg=None, content=None):
        self.pixels = pixels
        self.content = content
        self.hidden = ()
        self.jpeg = jpeg
        self.size = jpeg or pixels.shape[:2]
        self.matrix = None
        self.box = (0.0, 0.0, 1.0, 1.0)
        self.flip = self.gray = False
        self.brightness = self.contrast = self.saturation = 1.0
        self.hue = self.blur = self.style = 0.0

    def stored(self, left, top, width, height, wide, tall):
        """A box of the view, whose pixels are `tall` x `wide`, as (left, top, width, height) in shares of the stored image."""
        x, y, box_w, box_h = self.box   # of the stored image, which a flip does not turn
        first = wide - left - width if self.flip else left
        return x + box_w * first / wide, y + box_h * top / tall, box_w * width / wide, box_h * height / tall

    def drawn(self):
        """The pixels with all colour changes applied, uint8 (H, W, 3)."""
        if self.matrix is not None:
            self.pixels = cv2.transform(self.pixels, self.matrix)
            self.matrix = None
        return self.pixels

    def recolour(self, matrix):
        """Adds a float64 (3, 4) map of (r, g, b, 1). Maps in a row are applied as one, clipped once."""
        if self.matrix is not None:
            offset = matrix[:, 3]
            matrix = matrix[:, :3] @ self.matrix
            matrix[:, 3] += offset
        self.matrix = matrix

    def params(self):
        """A row of PARAMS, list of float."""
        return [*self.box, self.flip, self.brightness, self.contrast, self.saturation, self.hue, self.gray, self.blur,
                self.style]


def misalignment(params):
    """y (module docstring) of rows of PARAMS, (..., 12) -> float32 (...)."""
    _, _, width, height, _, brightness, contrast, saturation, hue, gray, blur, style = np.moveaxis(
        np.asarray(params, np.float64), -1, 0)
    colour = np.maximum(np.abs(saturation - 1) + 4 * np.abs(hue), gray)
    severity = -np.log(width * height) + np.abs(brightness - 1) + np.abs(contrast - 1) + colour + np.log1p(
        blur * blur) + style
    return (1 + severity).astype(np.float32)


def true_misalignment(content, params, hidden=()):
    """1 + the share of the content that a view has lost: exactly 1 for the whole image, 2 for a part without any of it.

    Args:
      content: numbers (H, W) from 0, how much of what the caption says is in which part of the image; a caption of which nothing is
        seen can't be lost.
      params: a row of PARAMS, whose box is in shares of the image; of pixels that it cuts, a share counts.
      hidden: boxes (left, top, width, height) in shares of the image that the view shows painted over.

    Returns:
      float.
    """
    content = np.asarray(content, np.float64)
    left, top, width, height = params[:4]
    total = content.sum()
    for x, y, wide, high in hidden:
        content = content * (1 - np.outer(_covered(content.shape[0], y, high), _covered(content.shape[1], x, wide)))
    kept = _covered(content.shape[0], top, height) @ content @ _covered(content.shape[1], left, width)
    return float(1 + np.clip(1 - kept / total, 0, 1)) if total > 0 else 1.0


def _covered(count, start, length):
    """Shares of `count` pixels in a row that lie within [start, start + length), which are shares of the row: (count,)."""
    at = np.arange(count)
    return np.clip(np.minimum(at + 1, (start + length) * count) - np.maximum(at, start * count), 0, 1)
