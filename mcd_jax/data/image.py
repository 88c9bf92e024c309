"""Encoded bytes -> uint8 RGB pixels. Anything that can't be trusted raises `Bad` with a cause that can be counted."""
import struct

import cv2
import numpy as np
import simplejpeg

cv2.setNumThreads(0)  # parallelism is over rows; OpenCV's own pool would fight it for the same cores

MAX_PIXELS = 64 * 1024 * 1024
_IGNORE = cv2.IMREAD_IGNORE_ORIENTATION  # as PIL and torchvision do: pixels as stored


class Bad(Exception):
    """An example that can't be used. `cause` is a short fixed phrase (it is counted), `detail` is for the log."""

    def __init__(self, cause, detail=""):
        super().__init__(f"{cause}: {detail}" if detail else cause)
        self.cause = cause
        self.detail = detail


def size(data):
    """(height, width) in pixels, read from the header without decoding.

    Args:
      data: bytes of a JPEG, PNG, WebP, GIF or BMP file.

    Raises:
      Bad: the bytes are no such file, or end inside the header.
    """
    try:
        if data[:2] == b"\xff\xd8":
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
    else:
        width, height = (v & 0x3FFF for v in struct.unpack("<HH", data[26:30]))
    return height, width


def decode(data, max_pixels=MAX_PIXELS):
    """Decodes one image file.

    Transparent pixels are composited on white. EXIF orientation is ignored (as in PIL and torchvision).

    Args:
      data: bytes of a JPEG, PNG, WebP, GIF (first frame) or BMP file.
      max_pixels: a larger image is refused from its header, before memory is spent on it.

    Returns:
      uint8 (H, W, 3), RGB, read-only.

    Raises:
      Bad: "empty image", "corrupt image" (also truncated files) or "giant image".
    """
    if not data:
        raise Bad("empty image", "zero bytes")
    height, width = size(data)
    if height < 1 or width < 1:
        raise Bad("corrupt image", f"header says {width}x{height}")
    if height * width > max_pixels:
        raise Bad("giant image", f"{width}x{height} is more than {max_pixels} pixels")
    pixels = _decode_jpeg(data) if data[:2] == b"\xff\xd8" else _decode_other(data)
    if pixels.shape[:2] != (height, width):
        raise Bad("corrupt image", f"header says {width}x{height}, pixels are {pixels.shape[1]}x{pixels.shape[0]}")
    pixels.flags.writeable = False
    return pixels


def _decode_jpeg(data):
    try:
        return simplejpeg.decode_jpeg(data, colorspace="RGB", strict=True)
    except (ValueError, KeyError) as error:
        if "color" not in str(error).lower():
            raise Bad("corrupt image", str(error)) from error
    return _decode_other(data)  # CMYK


def _decode_other(data):
    if data[:4] == b"\x89PNG":
        _check_png(data)
    buffer = np.frombuffer(data, np.uint8)
    try:
        pixels = cv2.imdecode(buffer, (cv2.IMREAD_UNCHANGED if _may_have_alpha(data) else cv2.IMREAD_COLOR) | _IGNORE)
    except cv2.error as error:
        raise Bad("corrupt image", error.err) from error
    if pixels is None:
        raise Bad("corrupt image", f"{len(data)} bytes do not decode")
    if pixels.dtype != np.uint8:
        pixels = (pixels >> 8).astype(np.uint8)
    if pixels.ndim == 2:
        return cv2.cvtColor(pixels, cv2.COLOR_GRAY2RGB)
    if pixels.shape[2] == 4:
        alpha = pixels[..., 3:].astype(np.float32) / 255
        pixels = np.rint(pixels[..., :3] * alpha + 255 * (1 - alpha)).astype(np.uint8)
    return cv2.cvtColor(pixels, cv2.COLOR_BGR2RGB)


def _check_png(data):
    place, kind = 8, b""
    while kind != b"IEND":  # OpenCV would believe a broken length and reserve up to 4 GB for it
        kind = data[place + 4:place + 8]
        place += 12 + int.from_bytes(data[place:place + 4], "big")
        if len(kind) < 4 or place > len(data):
            raise Bad("corrupt image", "a chunk of the PNG is longer than the file")


def _may_have_alpha(data):
    if data[:4] == b"\x89PNG":
        return data[25] in (4, 6) or b"tRNS" in data[:4096]
    if data[:4] == b"RIFF":
        return (data[12:16] == b"VP8L" and bool(data[24] & 0x10)) or (data[12:16] == b"VP8X" and bool(data[20] & 0x10))
    return data[:3] == b"GIF"
