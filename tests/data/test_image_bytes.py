"""Files that decoders read differently or complain about: transparent colours of PNGs, odd chunks, GIFs smaller than their canvas,
old BMPs, stray bytes in JPEGs. What is right is PIL's pixels on white where PIL reads the file, else the PNG specification's."""
import io
import struct
import zlib

import numpy as np
from PIL import Image
import pytest

from mcd_jax.data import decode as decode_lib
from mcd_jax.data import image_bytes


def chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(values, depth, *extra):
    """A PNG of integers (H, W) or (H, W, 3) below 2 ** depth, with chunks behind its header."""
    height, width = values.shape[:2]
    bits = (values.reshape(height, -1, 1) >> np.arange(depth - 1, -1, -1)) & 1
    lines = b"".join(b"\0" + line.tobytes() for line in np.packbits(bits.astype(np.uint8).reshape(height, -1), axis=1))
    head = struct.pack(">IIBBBBB", width, height, depth, 2 if values.ndim == 3 else 0, 0, 0, 0)
    chunks = [chunk(b"IHDR", head), *extra, chunk(b"IDAT", zlib.compress(lines)), chunk(b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


def on_white(data):
    picture = Image.open(io.BytesIO(data)).convert("RGBA")
    return np.asarray(Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture).convert("RGB"))


def encoded(pixels, kind, **options):
    file = io.BytesIO()
    (pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)).save(file, kind, **options)
    return file.getvalue()


PIXELS = np.random.default_rng(1).integers(0, 256, (24, 40, 3), np.uint8)


@pytest.mark.parametrize("depth, channels", [(1, 1), (2, 1), (4, 1), (8, 1), (16, 1), (8, 3), (16, 3)])
def test_the_transparent_colour_of_a_png_is_white(depth, channels):
    random = np.random.default_rng(depth)
    top = 2 ** depth - 1
    for key in {0, 1, top // 2, top - 1, top}:
        values = random.choice([0, top, key, key ^ 1, (key + 7) % (top + 1), random.integers(top + 1)], (9, 13, channels))
        values = values[..., 0] if channels == 1 else values
        data = png(values, depth, chunk(b"tRNS", struct.pack(">H", key) * channels))
        clear = values == key if channels == 1 else (values == key).all(2)
        shown = values >> 8 if depth == 16 else values * (255 // top)
        expected = np.where(clear[..., None], 255, shown if channels == 3 else shown[..., None].repeat(3, 2))
        np.testing.assert_array_equal(decode_lib.decode(data), expected)
        if depth in (1, 8):   # PIL compares a key of 2 or 4 bits with values of 8, and one of 16 not at all
            np.testing.assert_array_equal(on_white(data), expected)
        plain = decode_lib.decode(png(values, depth))
        np.testing.assert_array_equal(plain, shown if channels == 3 else shown[..., None].repeat(3, 2))


def test_odd_chunks_of_a_png_change_no_pixel_and_print_nothing(capfd):
    values, transparent = np.arange(60).reshape(6, 10), chunk(b"tRNS", struct.pack(">H", 7))
    odd = [chunk(b"iCCP", b"icc\0\0" + zlib.compress(bytes(200))), chunk(b"sRGB", b"\0"), chunk(b"sRGB", b"\1"),
           chunk(b"tIME", bytes(3)), chunk(b"eXIf", bytes(8)), chunk(b"sBIT", bytes(3)), chunk(b"zTXt", b"a\0\0not zlib"),
           chunk(b"tEXt", b"a\0b")[:-1] + b"?"]
    plain, decorated = png(values, 8, transparent), png(values, 8, *odd, transparent)
    np.testing.assert_array_equal(decode_lib.decode(decorated), decode_lib.decode(plain))
    for kind, place in (("IDAT", b"IDAT"), ("tRNS", b"tRNS")):
        broken = bytearray(png(values, 8, transparent))
        broken[broken.index(place) + 5] ^= 1
        with pytest.raises(decode_lib.Bad, match=f"corrupt image: the checksum of a chunk {kind} of the PNG is wrong"):
            decode_lib.decode(bytes(broken))
    with pytest.raises(decode_lib.Bad):
        decode_lib.decode(encoded(PIXELS, "GIF")[:-300])
    printed = capfd.readouterr()
    assert printed.out == printed.err == ""


@pytest.mark.parametrize("transparency", [None, 3])
@pytest.mark.parametrize("background", [0, 7])
def test_around_a_gif_frame_smaller_than_its_canvas_are_pils_pixels(transparency, background):
    tile = Image.fromarray(PIXELS).quantize(16)
    data = bytearray(encoded(tile, "GIF", **({} if transparency is None else {"transparency": transparency})))
    data[6:10], data[11] = struct.pack("<HH", 60, 50), background
    place = data.index(b",", 13 + 3 * 2 ** ((data[10] & 7) + 1))
    data[place + 1:place + 5] = struct.pack("<HH", 15, 20)
    assert image_bytes.gif_frame(bytes(data)) == (15, 20, 40, 24) and decode_lib.size(bytes(data)) == (50, 60)
    np.testing.assert_array_equal(decode_lib.decode(bytes(data)), on_white(bytes(data)))
    with pytest.raises(decode_lib.Bad, match="corrupt image"):
        decode_lib.decode(bytes(data[:-200]))


def test_a_bmp_with_the_header_of_os2_has_its_own_size():
    rows = b"".join(row[:, ::-1].tobytes() for row in PIXELS[::-1])
    data = b"BM" + struct.pack("<IHHIIHHHH", 26 + len(rows), 0, 0, 26, 12, 40, 24, 1, 24) + rows
    assert decode_lib.size(data) == (24, 40)
    np.testing.assert_array_equal(decode_lib.decode(data), PIXELS)
    np.testing.assert_array_equal(on_white(data), PIXELS)


@pytest.mark.parametrize("mode, options", [("RGB", {}), ("L", {}), ("RGB", {"progressive": True}), ("CMYK", {})])
def test_stray_bytes_ahead_of_the_scan_of_a_jpeg_are_passed_over_and_behind_it_refused(mode, options):
    data = encoded(Image.fromarray(PIXELS).convert(mode), "JPEG", quality=90, **options)
    expected, scan = decode_lib.decode(data), data.index(b"\xff\xda")
    for marker in (b"\xff\xdb", b"\xff\xc0" if not options else b"\xff\xc2", b"\xff\xc4", b"\xff\xda"):
        at = data.index(marker)
        for stray in (b"\0\0", b"stray", b"\xff\0", b"\xff\xff\xff"):
            got = decode_lib.decode(data[:at] + stray + data[at:])
            np.testing.assert_array_equal(got, expected)
    with pytest.raises(decode_lib.Bad, match="extraneous bytes"):
        decode_lib.decode(data[:-2] + b"made up" + data[-2:])
    assert image_bytes.jpeg_without_stray_bytes(data) is data
    assert image_bytes.jpeg_without_stray_bytes(data[:scan]) == data[:scan]
