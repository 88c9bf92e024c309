"""Encoded bytes -> uint8 RGB pixels. Anything that can't be trusted raises `Bad` with a cause that can be counted.

What happens to files that are not plain:

  no bytes                             Bad "empty image"
  HTML or text named .jpg, TIFF, AVIF  Bad "corrupt image": what a file is, is told by its first bytes, never by a name
  truncated, broken inside             Bad "corrupt image". JPEGs are read strictly: where other readers make up grey pixels
                                       after a bad code, this one refuses
  bytes after the end of the picture   ignored
  more than 64 Mi pixels               Bad "giant image", by its header: no memory is spent on a decompression bomb
  progressive, grey or CMYK JPEG       decoded as any other (CMYK as OpenCV converts it)
  EXIF orientation                     ignored: pixels as stored, as in PIL and torchvision
  bytes between segments of a JPEG     ignored ahead of its first scan; behind it they may be broken pixels, so "corrupt image"
  transparent pixels                   composited on white, of grey and RGB PNGs of any depth too (tRNS)
  palette, grey, 1 bit                 expanded to RGB
  16 bits a channel                    the upper 8
  animated GIF, WebP, PNG              the first frame of the animation
  a GIF's frame smaller than its       around it what PIL puts there: transparent where the frame has transparent pixels, else the
    canvas                             first colour of its palette
  colour profiles, dates, texts of a   neither read nor checked
    PNG

A picture takes 3 bytes of memory for each pixel, and at most 16 while it is decoded (a PNG of 16 bits with alpha).
"""
import io
import struct

import cv2
import numpy as np
from PIL import Image
import simplejpeg

from mcd_jax.data import image_bytes

cv2.setNumThreads(0)  # parallelism is over rows; OpenCV's own pool would fight it for the same cores
cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)  # it names no file: the log of bad examples does

MAX_PIXELS = 64 * 1024 * 1024
_BAND = 256  # rows that are composited at a time
_IGNORE = cv2.IMREAD_IGNORE_ORIENTATION  # as PIL and torchvision do: pixels as stored


class Bad(Exception):
    """An example that can't be used. `cause` is a short fixed phrase (it is counted), `detail` is for the log."""

    def __init__(self, cause, detail=""):
        super().__init__(f"{cause}: {detail}" if detail else cause)
        self.cause = cause
        self.detail = detail


def is_jpeg(data):
    """Whether bytes claim to be a JPEG file."""
    return data[:2] == b"\xff\xd8"


def size(data):
    """(height, width) in pixels, read from the header without decoding.

    Args:
      data: bytes of a JPEG, PNG, WebP, GIF or BMP file.

    Raises:
      Bad: the bytes are no such file, or end inside the header.
    """
    try:
        if is_jpeg(data):
            return simplejpeg.decode_jpeg_header(data, strict=False)[:2]
        if data[:8] == b"\x89PNG\r\n\x1a\n" and data[12:16] == b"IHDR":
            return struct.unpack(">II", data[16:24])[::-1]
        if data[:4] == b"RIFF" and data[8:12] == b"WEBP" and len(data) >= 30:
            return _webp_size(data)
        if data[:6] in (b"GIF87a", b"GIF89a"):
            return struct.unpack("<HH", data[6:10])[::-1]
        if data[:2] == b"BM":
            old = data[14:18] == b"\x0c\0\0\0"   # the header of OS/2 and Windows 2 has 12 bytes
            width, height = struct.unpack("<HH", data[18:22]) if old else struct.unpack("<ii", data[18:26])
            return abs(height), width
    except (struct.error, ValueError, KeyError) as error:
        cause = "" if isinstance(error, KeyError) else f" ({error})"   # simplejpeg's KeyError: a kind of colours that no file has
        raise Bad("corrupt image", f"its header is cut or broken{cause}") from error
    raise Bad("corrupt image", f"not JPEG, PNG, WebP, GIF or BMP; the first bytes are {bytes(data[:8])!r}")


def _webp_size(data):
    kind = data[12:16]
    if kind == b"VP8X":
        width, height = (1 + int.from_bytes(data[i:i + 3], "little") for i in (24, 27))
    elif kind == b"VP8L":
        bits = struct.unpack("<I", data[21:25])[0]
        width, height = (bits & 0x3FFF) + 1, ((bits >> 14) & 0x3FFF) + 1
    elif kind == b"VP8 ":
        width, height = (v & 0x3FFF for v in struct.unpack("<HH", data[26:30]))
    else:
        raise Bad("corrupt image", f"a WebP file that starts with {kind!r}")
    return height, width


def decode(data, max_pixels=MAX_PIXELS, resolution_needed=None):
    """Decodes one image file; the module docstring has the rules.

    Args:
      data: bytes of a JPEG, PNG, WebP, GIF or BMP file.
      max_pixels: a larger image is refused from its header, before memory is spent on it.
      resolution_needed: None, or a function (height, width) -> the share of this resolution that will do, called once for a
        JPEG and never for others. It may then come at 1/2, 1/4 or 1/8 of its size (rounded up): its blocks are transformed to
        fewer pixels, which costs less. Other fractions take longer than the whole picture.

    Returns:
      uint8 (H, W, 3), RGB, read-only.

    Raises:
      Bad: "empty image", "corrupt image" (also truncated files) or "giant image".
    """
    if not data:
        raise Bad("empty image", "zero bytes")
    height, width = shape = size(data)
    if height < 1 or width < 1:
        raise Bad("corrupt image", f"header says {width}x{height}")
    if height * width > max_pixels:
        raise Bad("giant image", f"{width}x{height} is more than {max_pixels} pixels")
    if is_jpeg(data):
        if resolution_needed is not None:
            share = resolution_needed(height, width)
            parts = next((parts for parts in (8, 4, 2) if share * parts <= 1), 1)
            shape = -(-height // parts), -(-width // parts)
        pixels = _decode_jpeg(data, *shape)
    else:
        pixels = _decode_other(data)
    if pixels.shape[:2] not in (shape, (height, width)):  # OpenCV reduces nothing
        raise Bad("corrupt image", f"header says {width}x{height}, pixels are {pixels.shape[1]}x{pixels.shape[0]}")
    pixels.flags.writeable = False
    return pixels


def load(example, column, resolution_needed=None):
    """Decodes an image column into example["pixels", column], where the operation decode finds it.

    Args:
      resolution_needed: None, or a function (height, width) -> share of the resolution that the views of this row use: JPEGs
        come at a half, a quarter or an eighth of their size where that will do (see `decode`). Boxes are drawn in pixels of the
        stored image and then moved to the nearest of the pixels that are there.
    """
    if ("pixels", column) in example:
        return
    data = example[column]
    if not isinstance(data, (bytes, bytearray, memoryview)):
        raise Bad("image not bytes", f"column {column!r} holds {type(data).__name__}: decode takes encoded bytes")
    jpeg = []

    def asked(height, width):  # of JPEGs only
        jpeg.append((height, width))
        return resolution_needed(height, width) if resolution_needed else 1.0
    example["pixels", column] = decode(bytes(data), resolution_needed=asked)
    example["jpeg", column] = jpeg[0] if jpeg else None


def _decode_jpeg(data, height, width):
    for tidied in (False, True):
        try:
            return simplejpeg.decode_jpeg(data, min_height=height, min_width=width)
        except (ValueError, KeyError) as error:
            if "color" in str(error).lower():
                break   # a colour space that libjpeg does not turn into RGB
            whole = image_bytes.jpeg_without_stray_bytes(data) if "extraneous" in str(error) and not tidied else data
            if whole is data:
                raise Bad("corrupt image", str(error)) from error
            data = whole
    return _decode_other(data)


def _decode_other(data):
    try:
        if data[:4] == b"\x89PNG":
            return _decode_png(data)
        if data[:3] == b"GIF":
            height, width = size(data)
            left, top, wide, high = image_bytes.gif_frame(data)
            if (wide, high) != (width, height) and left + wide <= width and top + high <= height:
                return _decode_by_pil(data)
            return _rgb(_decode_by_opencv(data, True))
    except ValueError as error:
        raise Bad("corrupt image", str(error)) from error
    alpha = data[:4] == b"RIFF" and (
        (data[12:16] == b"VP8L" and data[24] & 0x10) or (data[12:16] == b"VP8X" and data[20] & 0x10))
    return _rgb(_decode_by_opencv(data, alpha))


def _decode_png(data):
    data, transparent = image_bytes.png_parts(data)
    pixels = _decode_by_opencv(data, transparent is not None or data[25] in (4, 6))
    if pixels.ndim == 2 and transparent is not None:   # OpenCV reads the transparent colour of RGB and of palettes, not of grey
        depth = data[24]
        key = int.from_bytes(transparent[:2], "big") * (255 // (2 ** depth - 1) if depth < 8 else 1)
        result = _rgb(pixels.copy())
        result[pixels == key] = 255
        return result
    return _rgb(pixels)


def _decode_by_opencv(data, alpha):
    """uint8 or uint16, (H, W), or (H, W, 3 or, with `alpha`, 4) in the order blue, green, red."""
    try:
        pixels = cv2.imdecode(np.frombuffer(data, np.uint8), (cv2.IMREAD_UNCHANGED if alpha else cv2.IMREAD_COLOR) | _IGNORE)
    except cv2.error as error:
        raise Bad("corrupt image", error.err) from error
    if pixels is None:
        raise Bad("corrupt image", f"{len(data)} bytes do not decode")
    return pixels


def _decode_by_pil(data):
    try:
        with Image.open(io.BytesIO(data)) as picture:
            picture = picture.convert("RGBA")
    except Exception as error:   # of many kinds
        raise Bad("corrupt image", f"{type(error).__name__}: {error}") from error
    return _on_white(np.asarray(picture))


def _rgb(pixels):
    """uint8 (H, W, 3) of what OpenCV decoded; its memory may be used."""
    if pixels.dtype != np.uint8:
        pixels = np.right_shift(pixels, 8, out=pixels).astype(np.uint8)
    if pixels.ndim == 2:
        return cv2.cvtColor(pixels, cv2.COLOR_GRAY2RGB)
    if pixels.shape[2] == 4:
        pixels = _on_white(pixels)
    return cv2.cvtColor(pixels, cv2.COLOR_BGR2RGB, dst=pixels)


def _on_white(pixels):
    result = np.empty((*pixels.shape[:2], 3), np.uint8)
    for top in range(0, len(pixels), _BAND):
        band = pixels[top:top + _BAND]
        alpha = band[..., 3:].astype(np.float32) / 255
        result[top:top + _BAND] = np.rint(band[..., :3] * alpha + 255 * (1 - alpha))
    return result
