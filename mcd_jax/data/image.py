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
  transparent pixels                   composited on white
  palette, grey, 1 bit                 expanded to RGB
  16 bits a channel                    the upper 8
  animated GIF, WebP, PNG              the first frame of the animation

A picture takes 3 bytes of memory for each pixel, and at most 16 while it is decoded (a PNG of 16 bits with alpha).
"""
import struct

import cv2
import numpy as np
import simplejpeg

cv2.setNumThreads(0)  # parallelism is over rows; OpenCV's own pool would fight it for the same cores

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
            width, height = struct.unpack("<ii", data[18:26])
            return abs(height), width
    except (struct.error, ValueError, KeyError) as error:
        raise Bad("corrupt image", f"header: {error!r}") from error
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


def decode(data, max_pixels=MAX_PIXELS, enough=None):
    """Decodes one image file; the module docstring has the rules.

    Args:
      data: bytes of a JPEG, PNG, WebP, GIF or BMP file.
      max_pixels: a larger image is refused from its header, before memory is spent on it.
      enough: None, or a function (height, width) -> the share of this resolution that will do, called once for a JPEG and
        never for others. It may then come at 1/2, 1/4 or 1/8 of its size (rounded up): its blocks are transformed to
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
        if enough is not None:
            share = enough(height, width)
            parts = next((parts for parts in (8, 4, 2) if share * parts <= 1), 1)
            shape = -(-height // parts), -(-width // parts)
        pixels = _decode_jpeg(data, *shape)
    else:
        pixels = _decode_other(data)
    if pixels.shape[:2] not in (shape, (height, width)):  # OpenCV reduces nothing
        raise Bad("corrupt image", f"header says {width}x{height}, pixels are {pixels.shape[1]}x{pixels.shape[0]}")
    pixels.flags.writeable = False
    return pixels


def load(example, column, enough=None):
    """Decodes an image column into example["pixels", column], where the operation decode finds it.

    Args:
      enough: None, or a function (height, width) -> share of the resolution that the views of this row make use of:
        JPEGs come at a half, a quarter or an eighth of their size where that will do (see `decode`). Boxes are
        drawn in pixels of the stored image and then moved to the nearest of the pixels that are there.
    """
    if ("pixels", column) in example:
        return
    data = example[column]
    if not isinstance(data, (bytes, bytearray, memoryview)):
        raise Bad("image not bytes", f"column {column!r} holds {type(data).__name__}: decode takes encoded bytes")
    jpeg = []

    def asked(height, width):  # of JPEGs only
        jpeg.append((height, width))
        return enough(height, width) if enough else 1.0
    example["pixels", column] = decode(bytes(data), enough=asked)
    example["jpeg", column] = jpeg[0] if jpeg else None


def _decode_jpeg(data, height, width):
    try:
        return simplejpeg.decode_jpeg(data, min_height=height, min_width=width)
    except (ValueError, KeyError) as error:
        if "color" not in str(error).lower():
            raise Bad("corrupt image", str(error)) from error
    return _decode_other(data)  # a colour space that libjpeg does not turn into RGB


def _decode_other(data):
    alpha = _may_have_alpha(data)
    buffer = np.frombuffer(data, np.uint8)
    try:
        pixels = cv2.imdecode(buffer, (cv2.IMREAD_UNCHANGED if alpha else cv2.IMREAD_COLOR) | _IGNORE)
    except cv2.error as error:
        raise Bad("corrupt image", error.err) from error
    if pixels is None:
        raise Bad("corrupt image", f"{len(data)} bytes do not decode")
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


def _may_have_alpha(data):
    if data[:4] == b"\x89PNG":
        return b"tRNS" in _png_chunks(data) or data[25] in (4, 6)  # the first checks the file
    if data[:4] == b"RIFF":
        return (data[12:16] == b"VP8L" and bool(data[24] & 0x10)) or (data[12:16] == b"VP8X" and bool(data[20] & 0x10))
    return data[:3] == b"GIF"


def _png_chunks(data):
    """The kinds of the chunks of a PNG. OpenCV would believe a broken length and reserve up to 4 GB for it."""
    place, kinds = 8, [b""]
    while kinds[-1] != b"IEND":
        kinds.append(data[place + 4:place + 8])
        place += 12 + int.from_bytes(data[place:place + 4], "big")
        if len(kinds[-1]) < 4 or place > len(data):
            raise Bad("corrupt image", "a chunk of the PNG is longer than the file")
    return kinds
