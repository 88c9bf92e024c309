"""Operations on an image's drawing style, for pipe strings; the misalignment that each adds stands in its docstring."""
import math

import cv2
import numpy as np

from mcd_jax.data.ops.augmented import Op

_INVERT = np.hstack([-np.eye(3), np.full((3, 1), 255.0)])
_CROSS = cv2.getStructuringElement(cv2.MORPH_CROSS, (3, 3))


def _op(name, p, adds, change, draws=0):
    if not 0 <= p <= 1:
        raise ValueError(f"{name}: {p} is not in [0, 1]")

    def run(augmented, numbers):
        if numbers[0] < p:
            done = change(augmented, *numbers[1:])
            augmented.style += adds if done is None else done
        return augmented
    return Op(run, "image", "image", draws=1 + draws)


def invert(p):
    """Negative colours with probability `p`. Adds 1."""
    return _op("invert", p, 1.0, lambda augmented: augmented.recolour(_INVERT.copy()))


def solarize(p, threshold=(96, 224)):
    """Inverts the channels above a random threshold (uniform in the range). Adds 0.5."""
    def change(augmented, u):
        cut = threshold[0] + (threshold[1] - threshold[0]) * u
        values = np.arange(256)
        augmented.pixels = cv2.LUT(augmented.drawn(), np.where(values > cut, 255 - values, values).astype(np.uint8))
    return _op("solarize", p, 0.5, change, draws=1)


def posterize(p, bits=(2, 4)):
    """Keeps a random number of bits per channel, rounded so that black and white stay. Adds 0.25."""
    low, high = bits
    if not 1 <= low <= high <= 8:
        raise ValueError(f"posterize: bits must lie in 1..8, not {bits}")

    def change(augmented, u):
        steps = 2 ** (low + int(u * (high - low + 1))) - 1
        augmented.pixels = cv2.LUT(augmented.drawn(), np.rint(np.rint(np.arange(256) * (steps / 255)) * (255 / steps))
                              .astype(np.uint8))
    return _op("posterize", p, 0.25, change, draws=1)


def outline(p, strength=(0.5, 1.0)):
    """Draws dark lines where the colours change, as in a cartoon, over the picture. Adds 0.25."""
    def change(augmented, u):
        pixels = augmented.drawn()
        augmented.pixels = cv2.subtract(pixels, _lines(pixels, strength[0] + (strength[1] - strength[0]) * u))
    return _op("outline", p, 0.25, change, draws=1)


def edges(p):
    """Only those lines, dark on white: a line drawing. Adds 1."""
    def change(augmented):
        augmented.pixels = cv2.bitwise_not(_lines(augmented.drawn(), 2.0))
    return _op("edges", p, 1.0, change)


def _lines(pixels, strength):
    steps = cv2.morphologyEx(cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY), cv2.MORPH_GRADIENT, _CROSS)
    return cv2.cvtColor(cv2.convertScaleAbs(steps, alpha=2 * strength), cv2.COLOR_GRAY2RGB)


def erase(p, area=(0.02, 0.2)):
    """Paints a random box of one random colour over a share of the view, uniform in `area`. Adds -log(1 - share)."""
    low, high = area
    if not 0 < low <= high < 1:
        raise ValueError(f"erase needs 0 < area[0] <= area[1] < 1, not {area}")

    def change(augmented, share, shape, across, down, *colour):
        pixels = augmented.drawn().copy()
        h, w = pixels.shape[:2]
        side, aspect = math.sqrt(low + (high - low) * share), 2 ** (shape - 0.5)
        box_w, box_h = min(w, max(1, round(w * side * aspect))), min(h, max(1, round(h * side / aspect)))
        left, top = int(across * (w - box_w + 1)), int(down * (h - box_h + 1))
        pixels[top:top + box_h, left:left + box_w] = [int(256 * u) for u in colour]
        augmented.pixels = pixels
        augmented.hidden = (*augmented.hidden, augmented.stored(left, top, box_w, box_h, w, h))
        return -math.log(max(1 - box_w * box_h / (w * h), 1 / (w * h)))
    return _op("erase", p, 0.0, change, draws=7)


def background(p, white=250):
    """Replaces white (all channels at least `white`) by one random colour. Adds 0.25."""
    def change(augmented, *colour):
        pixels = augmented.drawn()
        paint = cv2.inRange(pixels, (white,) * 3, (255,) * 3)
        augmented.pixels = cv2.add(cv2.bitwise_and(pixels, pixels, mask=cv2.bitwise_not(paint)),
                              np.array([[[int(256 * u) for u in colour]]], np.uint8) & paint[..., None])
    return _op("background", p, 0.25, change, draws=3)


def smooth(p, side=3):
    """Median filter: flat areas without shading or texture. Adds 0.25."""
    if side not in (3, 5, 7):
        raise ValueError(f"smooth: side {side} must be 3, 5 or 7 pixels")

    def change(augmented):
        augmented.pixels = cv2.medianBlur(augmented.drawn(), side)
    return _op("smooth", p, 0.25, change)
