"""What stands around the pixels of an image file, and copies of it without what decoders stumble over. Pure functions of bytes.

A broken file raises ValueError with a sentence for the log of bad examples.
"""
import struct
import zlib

_PIXELS = (b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND", b"acTL", b"fcTL", b"fdAT")   # chunks of a PNG that pixels come from
_ALONE = (0x01, *range(0xD0, 0xD8))   # markers of a JPEG without a length
_SCAN = 0xDA


def png_parts(data: bytes) -> tuple[bytes, bytes | None]:
    """(the PNG with only the chunks that pixels come from, what its tRNS chunk holds or None).

    libpng prints a line on stderr for each odd colour profile, text or date, and OpenCV believes a broken length and reserves up to
    4 GB for it: neither sees them.

    Raises:
      ValueError: a chunk is longer than the file, or one of those that matter has a wrong checksum.
    """
    place, kept, transparent, kind = 8, [data[:8]], None, b""
    while kind != b"IEND":
        kind, end = data[place + 4:place + 8], place + 12 + int.from_bytes(data[place:place + 4], "big")
        if len(kind) < 4 or end > len(data):
            raise ValueError("a chunk of the PNG is longer than the file")
        if kind in _PIXELS:
            chunk = memoryview(data)[place:end]
            if zlib.crc32(chunk[4:-4]) != int.from_bytes(chunk[-4:], "big"):
                raise ValueError(f"the checksum of a chunk {kind.decode()} of the PNG is wrong")
            kept.append(chunk)
            transparent = bytes(chunk[8:-4]) if kind == b"tRNS" else transparent
        place = end
    return b"".join(kept) if sum(map(len, kept)) < place else data, transparent


def gif_frame(data: bytes) -> tuple[int, int, int, int]:
    """(left, top, width, height) of the first frame of a GIF on its canvas.

    Raises:
      ValueError: there is none before the end of the file.
    """
    place = 13 + (3 * 2 ** ((data[10] & 7) + 1) if len(data) > 12 and data[10] & 0x80 else 0)
    while data[place:place + 1] == b"!":   # an extension: a kind, and blocks with their lengths up to one of none
        place += 2
        while place < len(data) and data[place]:
            place += 1 + data[place]
        place += 1
    if data[place:place + 1] != b"," or len(data) < place + 9:
        raise ValueError("the GIF has no frame")
    return struct.unpack("<4H", data[place + 1:place + 9])


def jpeg_without_stray_bytes(data: bytes) -> bytes:
    """A JPEG without what lies between the segments ahead of its first scan, where it can't be pixels.

    Behind the start of a scan such bytes may be what is left of broken pixels, so there they stay. `data` itself where there are
    none, or where the segments can't be followed.
    """
    place, kept, begin = 2, [], 0
    while place < len(data):
        start = place
        while place + 1 < len(data) and not (data[place] == 0xFF and data[place + 1] not in (0x00, 0xFF)):
            place += 1   # a marker: 0xFF and neither 0 nor a further fill byte
        if data[start:place].strip(b"\xff"):
            kept.append(data[begin:start])
            begin = place
        marker, place = data[place + 1:place + 2], place + 2
        if not marker or marker[0] == _SCAN:
            return b"".join([*kept, data[begin:]]) if kept and marker else data
        if marker[0] not in _ALONE:
            place += int.from_bytes(data[place:place + 2], "big")
    return data
