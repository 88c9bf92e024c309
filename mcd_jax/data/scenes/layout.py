"""Where the things of a scene stand, and which of their pixels are seen."""
from collections.abc import Sequence

import cv2
import numpy as np

BACKGROUNDS = ("white", "plain", "gradient", "noise", "stripes")
WHITE = 244       # a channel below this isn't the paper that a drawing is on
COVERED = 0.25    # share of a pixel that a thing covers, at least, where it is seen: lines are thinner than pixels
_TRIES = 20       # places that are drawn for a thing before the one with the least overlap is taken


def cut_out(pixels: np.ndarray) -> np.ndarray:
    """A drawing on white without its paper: the smallest part of uint8 (H, W, 3) that holds it, with its cover, uint8 (h, w, 4).

    Cover is 0 on paper, where colours are 0 too, and 255 elsewhere. Paper is what is white and joined to the edge; white inside a
    drawing is part of it.
    """
    white = np.pad((pixels >= WHITE).all(2).astype(np.uint8), 1, constant_values=1)
    cv2.floodFill(white, None, (0, 0), 2)
    drawn = white[1:-1, 1:-1] != 2
    if not drawn.any():   # a drawing that is white all over
        drawn = np.ones_like(drawn)
    rows, columns = np.flatnonzero(drawn.any(1)), np.flatnonzero(drawn.any(0))
    part = slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1)
    cover = drawn[part][:, :, None].astype(np.uint8)
    return np.concatenate([pixels[part] * cover, 255 * cover], axis=2)


def background(kind: str, size: int, draw: np.random.Generator) -> np.ndarray:
    """uint8 (size, size, 3) of one of BACKGROUNDS, pale enough for drawings to be seen on it."""
    pale, other = draw.integers(176, 256, (2, 3)).astype(np.float32)
    if kind == "white":
        return np.full((size, size, 3), 255, np.uint8)
    if kind == "plain":
        share = np.zeros((size, size, 1), np.float32)
    elif kind == "noise":
        coarse = draw.random((8, 8), np.float32)
        share = cv2.resize(coarse, (size, size), interpolation=cv2.INTER_CUBIC)[:, :, None]
    else:
        angle = draw.uniform(0, 2 * np.pi)
        y, x = np.mgrid[:size, :size].astype(np.float32) / size - 0.5
        along = x * np.cos(angle) + y * np.sin(angle)
        share = (along + 0.71) / 1.42 if kind == "gradient" else (np.floor(along * 8) % 2).astype(np.float32)
        share = share[:, :, None]
    return np.clip(pale + (other - pale) * share, 0, 255).astype(np.uint8)


def places(sides: np.ndarray, overlap: float, draw: np.random.Generator) -> np.ndarray:
    """Corners float64 (n, 2), left and top as shares of the canvas, of things whose (width, height) is `sides` (n, 2).

    Of the smaller of two boxes at most the share `overlap` lies in the other, where the canvas has room for that.
    """
    corners = np.zeros((len(sides), 2))
    for i, side in enumerate(sides):
        tried = draw.random((_TRIES, 2)) * (1 - side)
        if not i:
            corners[i] = tried[0]
            continue
        low = np.maximum(tried[:, None], corners[None, :i])
        high = np.minimum(tried[:, None] + side, corners[None, :i] + sides[None, :i])
        common = np.clip(high - low, 0, None).prod(-1) / np.minimum(side.prod(), sides[:i].prod(-1))
        worst = common.max(1)
        fits = np.flatnonzero(worst <= overlap)
        corners[i] = tried[fits[0] if len(fits) else worst.argmin()]
    return corners


def paint(canvas: np.ndarray, drawings: Sequence[np.ndarray], boxes: np.ndarray) -> np.ndarray:
    """Paints drawings onto uint8 canvas (S, S, 3), in place and in order; returns which pixels show which, bool (n, S, S).

    Args:
      drawings: n of uint8 (h, w, 4), as `cut_out` makes them.
      boxes: (n, 4) int, left, top, right, bottom in pixels of the canvas.
    """
    seen = np.zeros((len(drawings), *canvas.shape[:2]), bool)
    for i, (drawing, (left, top, right, bottom)) in enumerate(zip(drawings, boxes)):
        drawing = cv2.resize(drawing, (int(right - left), int(bottom - top)), interpolation=cv2.INTER_AREA)
        cover, part = drawing[:, :, 3:], canvas[top:bottom, left:right]
        under = (part.astype(np.uint16) * (255 - cover) + 127) // 255
        part[:] = np.minimum(drawing[:, :, :3] + under, 255)
        solid = cover[:, :, 0] >= COVERED * 255
        seen[:i, top:bottom, left:right] &= ~solid
        seen[i, top:bottom, left:right] = solid
    return seen
