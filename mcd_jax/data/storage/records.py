"""Finds the records of TFRecord files and checks them, without TensorFlow.

A record is its length (8 bytes), a masked crc32c of the length, the data, a masked crc32c of the data. The crc of every
length is checked here. The data's is checked where the package google-crc32c is installed: in Python it would take longer
than decoding the image.
"""
import functools
import struct

HEAD, TAIL = 12, 4
_LENGTH = struct.Struct("<QI")


@functools.cache
def fast_crc():
    """google_crc32c.value, or None if the package is not installed."""
    try:
        import google_crc32c
    except ImportError:
        return None
    return google_crc32c.value


def crc32c(data):
    """The crc32c (Castagnoli) of a few bytes, by table."""
    table, value = _table(), 0xFFFFFFFF
    for byte in data:
        value = table[(value ^ byte) & 0xFF] ^ value >> 8
    return value ^ 0xFFFFFFFF


def masked(crc):
    """A crc as TFRecord stores it."""
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


def length(head):
    """The length that the 12 bytes before a record tell, or None if their crc is wrong."""
    value, crc = _LENGTH.unpack(head)
    return value if masked(crc32c(head[:8])) == crc else None


def intact(data, tail):
    """Whether `tail` (4 bytes) is the crc of `data`; None if there is no package to tell."""
    crc = fast_crc()
    return None if crc is None else masked(crc(data)) == int.from_bytes(tail, "little")


def records(window, size, problem):
    """Yields the (offset, length) of the data of each record in a file of `size` bytes.

    problem(cause, detail) is called for "truncated record" (the file ends inside it; it is left out) and for
    "broken record header" (what comes after it is lost).
    """
    at = 0
    while at < size:
        much = length(window.get(at, HEAD)) if at + HEAD <= size else 0
        if much is None:
            problem("broken record header", f"at byte {at}; the rest of the shard is lost")
            return
        if at + HEAD + much + TAIL > size:
            problem("truncated record", f"at byte {at}")
            return
        yield at + HEAD, much
        at += HEAD + much + TAIL


@functools.cache
def _table():
    table = []
    for value in range(256):
        for _ in range(8):
            value = value >> 1 ^ (0x82F63B78 if value & 1 else 0)
        table.append(value)
    return table
