"""Operations that pipe strings name: "decode|crop(64,0.08)|flip|jitter(.4,.4,.4,.1,p=.8)|gray(.2)|blur(.5)".

Each public function takes the literal arguments of the string and returns an `Op`. An op is given what the op before it
gave ("example", "image", "text" or "array") and a list of uniform numbers in [0, 1): all randomness of a row is drawn at
once, outside, so an op is a pure function.

SLIP's recipes (facebookresearch/SLIP, main.py and datasets.py) are
  original   decode|crop(224,0.5)
  augmented  decode|crop(224,0.08)|jitter(.4,.4,.4,.1,p=.8)|gray(.2)|blur(.5,method='pillow')|flip
They count towards the misalignment of `augmented.py`.
"""
import math

import cv2
import numpy as np
from PIL import Image, ImageFilter

from mcd_jax.data import decode as decode_lib
from mcd_jax.data.ops.augmented import Augmented, Op

_LUMA = np.array([0.299, 0.587, 0.114])
_YIQ = np.array([_LUMA, [0.5959, -0.2746, -0.3213], [0.2115, -0.5227, 0.3112]])
_GREY_PART = np.pad(np.tile(_LUMA, (3, 1)), ((0, 0), (0, 1)))  # these act on (r, g, b, 1)
_COLOUR_PART = np.pad(np.eye(3) - _GREY_PART[:, :3], ((0, 0), (0, 1)))
_TURNED_PART = np.pad(np.linalg.inv(_YIQ) @ [[0, 0, 0], [0, 0, 1], [0, -1, 0]] @ _YIQ, ((0, 0), (0, 1)))
_ATTEMPTS = 10
BLURS = ("cut", "pillow")


# ---- reading the example ----


def decode(column="image", content=""):
    """The pixels of an encoded image column, decoded once for all views of a row (see `decode.load`).

    content: a column, numbers (H, W) from 0, of how much of what the caption says is in which part of the image, as scenes have it
      in "said", as fine or coarse as wanted. The misalignment of the view is then the true one, 1 + the share of the content
      that is outside of it or painted over.
    """
    def run(example, _):
        part = np.asarray(example[content]) if content else None
        made = Augmented(example["pixels", column], example["jpeg", column], part)
        if content and (part.ndim != 2 or part.dtype.kind not in "biuf" or not part.size or not np.isfinite(part).all()
                        or part.min() < 0):
            raise decode_lib.Bad("content not a map",
                                 f"column {content!r} holds {part.dtype} {part.shape}: it takes numbers (H, W) from 0")
        if content and not _alike(part.shape, made.size):
            raise decode_lib.Bad("content not a map", f"column {content!r} is {part.shape[0]} x {part.shape[1]} and the image "
                                 f"{made.size[0]} x {made.size[1]}: a map has the image's proportions, to a cell")
        return made
    return Op(run, "example", "image", column=column, beside=(content,) if content else (),
              resolution_needed=lambda h, w, draws: 1.0)


def _alike(map_shape, image_shape):
    """Whether a map (H, W) and an image (h, w) have the same proportions: one side of the map may be a cell too long or short."""
    (rows, columns), (height, width) = map_shape, image_shape
    return abs(rows - columns * height / width) <= 1 or abs(columns - rows * width / height) <= 1


def column(name):
    """A stored number, flag or array: integers become int32, floats float32, bool stays."""
    def run(example, _):
        value = np.asarray(example[name])
        if value.dtype.kind not in "biuf":
            raise decode_lib.Bad("column not a number",
                                 f"column {name!r} holds {type(example[name]).__name__}: a batch carries only "
                            "numbers; text goes through caption|tokenize, and 'index' leads back to the example")
        return value.astype({"i": np.int32, "f": np.float32}.get(value.dtype.kind, value.dtype))
    return Op(run, "example", "array", column=name)


def stream(name):
    """Gives this view the random numbers of stream `name`, so that views of one image can share them."""
    return Op(lambda augmented, _: augmented, "image", "image", stream=f"stream {name}")


def blank():
    """Every pixel black: nothing is left to see, for what a model says without its image."""
    def run(augmented, _):
        augmented.pixels, augmented.matrix = np.zeros_like(augmented.pixels), None
        augmented.hidden = (*augmented.hidden, augmented.box)
        return augmented
    return Op(run, "image", "image")


# ---- geometry ----


def crop(size, min_scale, max_scale=1.0, ratio=(3 / 4, 4 / 3)):
    """A random box, resized: torchvision's RandomResizedCrop.

    Area uniform in [min_scale, max_scale] of the image, aspect ratio (width / height) log-uniform in `ratio`; after ten
    boxes that do not fit, the largest central one of an allowed ratio. Axes that shrink are averaged (see `_resize`), axes
    that grow are bilinear; nothing is padded.

    Args:
      size: side of the view in pixels, or (height, width).
    """
    if not 0 < min_scale <= max_scale <= 1 or not 0 < ratio[0] <= ratio[1]:
        raise ValueError(f"crop needs 0 < min_scale <= max_scale <= 1 and 0 < ratio[0] <= ratio[1], "
                         f"not {min_scale}, {max_scale}, {ratio}")
    low, high = math.log(ratio[0]), math.log(ratio[1])

    def box(h, w, draws):
        for i in range(_ATTEMPTS):
            area = h * w * (min_scale + (max_scale - min_scale) * draws[2 * i])
            aspect = math.exp(low + (high - low) * draws[2 * i + 1])
            box_w, box_h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
            if 0 < box_w <= w and 0 < box_h <= h:
                return int(draws[-2] * (w - box_w + 1)), int(draws[-1] * (h - box_h + 1)), box_w, box_h
        box_w, box_h = min(w, round(h * ratio[1])), min(h, round(w / ratio[0]))
        return (w - box_w) // 2, (h - box_h) // 2, box_w, box_h
    return _cutter(size, box, draws=2 * _ATTEMPTS + 2)


def resize(size, method="area"):
    """The whole image at `size` (a side, or (height, width)); the aspect ratio changes if it must.

    method: "area" averages the axes that shrink (see `_resize`); "bicubic" is Pillow's, as SigLIP's evaluation by open_clip, bit
    for bit, and reads JPEGs at their full size.
    """
    if _bicubic(method):
        return _pillow(size, lambda h, w, height, width: (height, width))
    return _cutter(size, lambda h, w, _: (0, 0, w, h))


def center(size, method="area"):
    """The central part at `size`, as large as it can be without changing the aspect ratio (CLIP's evaluation).

    method: as in `resize`; "bicubic" is torchvision's Resize of the shorter side and CenterCrop, as CLIP's evaluation by open_clip,
    bit for bit. It takes squares only.
    """
    height, width = _pair(size)
    if _bicubic(method):
        if height != width:
            raise ValueError(f"center({size}, 'bicubic') makes squares: give one side")
        return _pillow(size, lambda h, w, side, _: (side, int(side * w / h)) if h <= w else (int(side * h / w), side))

    def box(h, w, _):
        shrink = min(h / height, w / width)
        box_h, box_w = max(1, round(height * shrink)), max(1, round(width * shrink))
        return (w - box_w) // 2, (h - box_h) // 2, box_w, box_h
    return _cutter(size, box)


def flip(p=0.5):
    """Mirrors left and right with probability `p`."""
    _share("flip", p)

    def run(augmented, draws):
        if draws[0] < p:
            augmented.pixels = cv2.flip(augmented.pixels, 1)
            augmented.flip = not augmented.flip
        return augmented
    return Op(run, "image", "image", draws=1)


def _bicubic(method):
    if method not in ("area", "bicubic"):
        raise ValueError(f"method {method!r} is not one of 'area', 'bicubic'")
    return method == "bicubic"


def _pillow(size, scaled):
    """Resizes the whole image to scaled(h, w, height, width) by Pillow's bicubic, and cuts the middle out of that."""
    height, width = _pair(size)

    def run(augmented, _):
        h, w = augmented.pixels.shape[:2]
        tall, wide = scaled(h, w, height, width)
        pixels = augmented.pixels
        if (tall, wide) != (h, w):
            pixels = np.asarray(Image.fromarray(pixels).resize((wide, tall), Image.Resampling.BICUBIC))
        top, left = round((tall - height) / 2), round((wide - width) / 2)
        augmented.box = augmented.stored(left, top, width, height, wide, tall)
        augmented.pixels = pixels[top:top + height, left:left + width]
        augmented.size = (height, width)
        return augmented
    return Op(run, "image", "image", resolution_needed=lambda h, w, draws: 1.0)


def _cutter(size, box, draws=0):
    """Cuts box(h, w, draws) = (left, top, width, height) out of an image of (h, w) pixels and resizes it to `size`."""
    height, width = _pair(size)

    def run(augmented, numbers):
        return _cut(augmented, *box(*augmented.size, numbers), height, width)

    def resolution_needed(h, w, numbers):
        _, _, box_w, box_h = box(h, w, numbers)
        return max(height / box_h, width / box_w)
    return Op(run, "image", "image", draws=draws, resolution_needed=resolution_needed)


def _cut(augmented, left, top, box_w, box_h, height, width):
    h, w = augmented.pixels.shape[:2]
    if augmented.size != (h, w):
        left, box_w = _nearest(left, box_w, w / augmented.size[1])
        top, box_h = _nearest(top, box_h, h / augmented.size[0])
    if (box_h, box_w) != (h, w):
        augmented.box = augmented.stored(left, top, box_w, box_h, w, h)
        augmented.pixels = augmented.pixels[top:top + box_h, left:left + box_w]
    augmented.pixels = _resize(augmented.pixels, height, width, exact=augmented.jpeg is None)
    augmented.size = (height, width)
    return augmented


def _nearest(start, length, scale):
    """The interval of an axis in pixels of another size."""
    first = round(start * scale)
    return first, max(1, round((start + length) * scale) - first)


def _resize(pixels, height, width, exact):
    """Averages over areas the axes that shrink, then stretches the others bilinearly.

    Large pictures, those of JPEGs, take a way with a third of the cost and the same quality where both axes shrink, to
    at least a sixth: bilinear at two or four times the size (so that samples are at most 1.5 pixels apart), then halved.
    """
    h, w = pixels.shape[:2]
    shrink = max(h / height, w / width)
    if not exact and h > height and w > width and shrink <= 6:
        times = 2 if shrink <= 3 else 4
        pixels = cv2.resize(pixels, (times * width, times * height), interpolation=cv2.INTER_LINEAR)
        while times > 1:
            times //= 2
            pixels = cv2.resize(pixels, (times * width, times * height), interpolation=cv2.INTER_AREA)
        return pixels
    if w > width or h > height:
        w, h = min(w, width), min(h, height)
        pixels = cv2.resize(pixels, (w, h), interpolation=cv2.INTER_AREA)
    if (h, w) != (height, width):
        pixels = cv2.resize(pixels, (width, height), interpolation=cv2.INTER_LINEAR)
    return pixels


# ---- colour and blur ----


def jitter(brightness, contrast, saturation, hue, p=0.8):
    """Colour jitter with probability `p`: torchvision's ColorJitter ranges, as one affine map of the colours.

    Brightness, contrast and saturation factors are uniform in [max(0, 1 - x), 1 + x], hue in [-hue, hue] turns.
    Differences: colours are clipped once, at the end (so the four commute and their order, random in torchvision, does
    not matter); contrast is about the exact mean grey; hue turns the colour plane of YIQ, which keeps the luma, instead
    of the hexagon of HSV, which keeps the largest channel.
    """
    _share("jitter", p)
    if min(brightness, contrast, saturation, hue) < 0 or hue > 0.5:
        raise ValueError(f"jitter strengths are at least 0, and hue at most 0.5: ({brightness}, {contrast}, "
                         f"{saturation}, {hue})")
    ranges = [(max(0.0, 1 - x), 1 + x) for x in (brightness, contrast, saturation)] + [(-hue, hue)]

    def run(augmented, draws):
        if draws[0] < p:
            _jitter(augmented, *(low + (high - low) * u for (low, high), u in zip(ranges, draws[1:])))
        return augmented
    return Op(run, "image", "image", draws=5)


def _jitter(augmented, brightness, contrast, saturation, hue):
    mean = cv2.mean(augmented.pixels)
    if augmented.matrix is not None:
        mean = augmented.matrix @ (*mean[:3], 1.0)
    grey = 0.299 * mean[0] + 0.587 * mean[1] + 0.114 * mean[2]
    scale = brightness * contrast
    turn = 2 * math.pi * hue
    matrix = _GREY_PART * scale
    matrix += _COLOUR_PART * (scale * saturation * math.cos(turn))
    if hue:
        matrix += _TURNED_PART * (scale * saturation * math.sin(turn))
    matrix[:, 3] = brightness * (1 - contrast) * grey
    augmented.recolour(matrix)
    augmented.brightness *= brightness
    augmented.contrast *= contrast
    augmented.saturation *= saturation
    augmented.hue += hue


def gray(p):
    """Grey (Rec. 601 luma) with probability `p`."""
    _share("gray", p)

    def run(augmented, draws):
        if draws[0] < p:
            augmented.recolour(_GREY_PART.copy())
            augmented.gray = True
        return augmented
    return Op(run, "image", "image", draws=1)


def blur(p, sigma=(0.1, 2.0), method="cut"):
    """Gaussian blur with probability `p`; sigma, in pixels of the view, uniform in the range.

    method: "pillow" is Pillow's GaussianBlur of that radius, bit for bit, as in SLIP and MoCo v2: about 1 ms for 224 pixels. "cut"
    is the Gaussian at whole pixels up to 2 sigma, five times as fast and narrower than it says: 0.93 of sigma at 2, 0.30 at 0.3.
    """
    _share("blur", p)
    if method not in BLURS:
        raise ValueError(f"blur: method={method!r} must be one of {', '.join(BLURS)}")
    low, high = sigma
    if not 0 < low <= high:
        raise ValueError(f"blur needs 0 < sigma[0] <= sigma[1], not {sigma}")

    def run(augmented, draws):
        if draws[0] < p:
            _blur(augmented, low + (high - low) * draws[1], method)
        return augmented
    return Op(run, "image", "image", draws=2)


def _blur(augmented, sigma, method="cut"):   # commutes with a colour map
    if method == "pillow":
        augmented.pixels = np.asarray(Image.fromarray(augmented.pixels).filter(ImageFilter.GaussianBlur(sigma)))
    else:
        side = 2 * math.ceil(2 * sigma) + 1
        augmented.pixels = cv2.GaussianBlur(augmented.pixels, (side, side), sigma)
    augmented.blur = math.hypot(augmented.blur, 64 * sigma / min(augmented.pixels.shape[:2]))


# ---- fixed severity, for evaluation ----


def severity(kind, level, draw=0):
    """A change of known strength, for yardsticks: only the place of the crop and signs are random.

    level 0 leaves the image untouched, and misalignment grows with the level. The random numbers are those of stream
    `draw`, whatever the view is called: the crops of one image at growing levels lie inside each other.

    Args:
      kind: "crop" keeps 1 - 0.92 level of the area (level 1 is the smallest crop of SLIP), same size and aspect ratio;
        "jitter" changes brightness, contrast and saturation by +-0.4 level and hue by +-0.1 level;
        "gray" takes away `level` of the saturation; "blur" has sigma = level / 32 of the shorter side;
        "all" does the four of them.
      level: in [0, 1].
    """
    kinds = ("crop", "jitter", "gray", "blur")
    if kind not in (*kinds, "all"):
        raise ValueError(f"severity({kind!r}): use one of {', '.join(kinds)}, all")
    _share("severity", level)

    def run(augmented, draws):
        if kind in ("crop", "all"):
            _keep(augmented, 1 - 0.92 * level, draws[0], draws[1])
        if level and kind in ("jitter", "all"):
            signs = [1 if u < 0.5 else -1 for u in draws[2:]]
            _jitter(augmented, *(1 + 0.4 * level * sign for sign in signs[:3]), 0.1 * level * signs[3])
        if level and kind in ("gray", "all"):
            _jitter(augmented, 1.0, 1.0, 1 - level, 0.0)
        if level and kind in ("blur", "all"):
            _blur(augmented, level * min(augmented.pixels.shape[:2]) / 32)
        return augmented
    return Op(run, "image", "image", draws=6, stream=f"severity {draw}")


def _keep(augmented, area, across, down):
    h, w = augmented.pixels.shape[:2]
    box_w, box_h = max(1, round(w * math.sqrt(area))), max(1, round(h * math.sqrt(area)))
    _cut(augmented, round(across * (w - box_w)), round(down * (h - box_h)), box_w, box_h, h, w)


def _pair(size):
    pair = size if isinstance(size, tuple) else (size, size)
    if len(pair) != 2 or not all(isinstance(side, int) and side > 0 for side in pair):
        raise ValueError(f"size is a number of pixels or (height, width), not {size!r}")
    return pair


def _share(name, p):
    if not 0 <= p <= 1:
        raise ValueError(f"{name}: {p} is not in [0, 1]")
