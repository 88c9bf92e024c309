"""Decoding: what happens to every kind of file, JPEGs at reduced size, and the pixels that published results were trained on."""
import io
import math
import struct

import cv2
import numpy as np
from PIL import Image
import pytest
import simplejpeg

from mcd_jax.data import decode as decode_lib
from mcd_jax.data import sources
from mcd_jax.data.ops import image_ops
from mcd_jax.data.pipeline import Pipeline
from mcd_jax.data.reader import Reader
from mcd_jax.data.views import Views


def picture(height=48, width=64, seed=0):
    """Smooth random colours, uint8 (height, width, 3)."""
    coarse = np.random.default_rng(seed).uniform(0, 255, (5, 6, 3)).astype(np.float32)
    return np.clip(cv2.resize(coarse, (width, height), interpolation=cv2.INTER_LINEAR), 0, 255).astype(np.uint8)


def encoded(picture, kind, **options):
    file = io.BytesIO()
    (picture if isinstance(picture, Image.Image) else Image.fromarray(picture)).save(file, kind, **options)
    return file.getvalue()


def pil(data):
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"), int)


@pytest.mark.parametrize("kind, mode, options", [
    ("JPEG", "RGB", {}), ("JPEG", "L", {}), ("JPEG", "CMYK", {}), ("JPEG", "RGB", {"progressive": True}), ("PNG", "RGB", {}),
    ("PNG", "RGBA", {}), ("PNG", "LA", {}), ("PNG", "P", {"transparency": 3}), ("PNG", "1", {}), ("WEBP", "RGB", {}),
    ("WEBP", "RGBA", {"lossless": True, "exact": True}), ("GIF", "P", {}), ("BMP", "RGB", {}), ("BMP", "P", {}), ("BMP", "1", {})])
def test_decode_equals_pil_on_white_and_never_trusts_broken_bytes(kind, mode, options):
    original = Image.fromarray(picture())
    if "A" in mode:
        original.putalpha(Image.fromarray(picture(seed=1)[..., 0]))
    data = encoded(original.convert(mode), kind, **options)
    stored = Image.open(io.BytesIO(data)).convert("RGBA")
    expected = Image.new("RGBA", stored.size, "white")
    expected.alpha_composite(stored)
    got = decode_lib.decode(data)
    assert got.dtype == np.uint8 and decode_lib.size(data) == (48, 64) == got.shape[:2] and not got.flags.writeable
    assert np.abs(got - np.asarray(expected.convert("RGB"), int)).max() <= 1
    with pytest.raises(decode_lib.Bad, match="giant image: 64x48 is more than 3000 pixels"):
        decode_lib.decode(data, max_pixels=3000)
    random = np.random.default_rng(0)
    broken = [data[:n] for n in random.integers(0, len(data) - 12, 40)]
    for _ in range(40):
        noisy = bytearray(data)
        for i in random.integers(0, len(data), 20):
            noisy[i] = random.integers(256)
        broken.append(bytes(noisy))
    bad = 0
    for data in broken:
        try:
            assert decode_lib.decode(data, max_pixels=10_000).shape[2] == 3
        except decode_lib.Bad as error:
            assert error.cause in ("empty image", "corrupt image", "giant image")
            bad += 1
    assert bad >= 40 or kind == "BMP"


# ---- the rules of the module's docstring ----


PHOTO = encoded(picture(), "JPEG", quality=90)


@pytest.mark.parametrize("data, cause, detail", [
    (b"", "empty image", "zero bytes"),
    (b"<!DOCTYPE html><html><body>404</body></html>", "corrupt image", "not JPEG, PNG, WebP, GIF or BMP; the first bytes are"),
    (b'{"error": 403}', "corrupt image", "not JPEG"), (bytes(1000), "corrupt image", "not JPEG"),
    (encoded(picture(), "TIFF"), "corrupt image", "not JPEG"), (b"\xff\xd8", "corrupt image", "its header is cut"),
    (PHOTO[:200], "corrupt image", "its header is cut or broken"),
    (PHOTO[:-2], "corrupt image", "Premature end"), (PHOTO[:len(PHOTO) // 2], "corrupt image", "Premature end"),
    (encoded(picture(), "JPEG", progressive=True)[:-200], "corrupt image", "Premature end"),
    (PHOTO[:-2] + b"made up" + PHOTO[-2:], "corrupt image", "extraneous bytes"),
    (encoded(picture(), "PNG")[:-12], "corrupt image", "longer than the file"),
    (encoded(picture(), "WEBP")[:-50], "corrupt image", "do not decode"),
    (encoded(picture(), "GIF")[:-500], "corrupt image", "GIF|decode|gif"),
    (encoded(picture(), "BMP")[:-2000], "corrupt image", "do not decode"),
    (b"RIFF\x40\0\0\0WEBPICCP" + bytes(64), "corrupt image", "a WebP file that starts with b'ICCP'")])
def test_what_is_no_whole_picture_is_refused_and_counted_by_its_cause(data, cause, detail):
    with pytest.raises(decode_lib.Bad, match=detail) as caught:
        decode_lib.decode(data)
    assert caught.value.cause == cause


def test_a_png_with_a_broken_chunk_length_is_refused_before_memory_is_spent_on_it():
    data = bytearray(encoded(picture(), "PNG"))
    data[33:37] = b"\xf0\0\0\0"
    with pytest.raises(decode_lib.Bad, match="corrupt image: a chunk of the PNG is longer than the file"):
        decode_lib.decode(bytes(data))


def enlarged(kind, side):
    """A file of `kind` whose header claims side x side pixels."""
    data = encoded(picture(), kind)
    old, new = {
        "JPEG": (struct.pack(">HH", 48, 64), struct.pack(">HH", side, side)),
        "PNG": (struct.pack(">II", 64, 48), struct.pack(">II", side, side)),
        "GIF": (struct.pack("<HH", 64, 48), struct.pack("<HH", side, side)),
        "BMP": (struct.pack("<ii", 64, 48), struct.pack("<ii", side, side)),
        "WEBP": (struct.pack("<HH", 64, 48), struct.pack("<HH", side, side))}[kind]
    assert old in data[:1000]
    return data.replace(old, new, 1)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "GIF", "BMP", "WEBP"])
def test_a_decompression_bomb_is_refused_from_its_header(monkeypatch, kind):
    def spent(*args, **kwargs):
        raise MemoryError("decoding was tried")
    monkeypatch.setattr(cv2, "imdecode", spent)
    monkeypatch.setattr(simplejpeg, "decode_jpeg", spent)
    with pytest.raises(decode_lib.Bad, match="giant image: 16001x16001 is more than 67108864 pixels"):
        decode_lib.decode(enlarged(kind, 16001))


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "BMP", "WEBP"])  # a frame of a GIF may be smaller than its screen
def test_a_header_that_promises_more_than_there_is_makes_a_bad_image(kind):
    with pytest.raises(decode_lib.Bad, match="corrupt image"):
        decode_lib.decode(enlarged(kind, 500))


def test_orientation_is_ignored_and_what_follows_the_picture_too():
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees
    for kind in ("JPEG", "PNG", "WEBP"):
        turned = encoded(picture(), kind, exif=exif)
        assert np.abs(decode_lib.decode(turned) - pil(turned)).max() <= 1 and decode_lib.decode(turned).shape == (48, 64, 3)
    for end in (b"trailing garbage", bytes(5000), PHOTO):
        np.testing.assert_array_equal(decode_lib.decode(PHOTO + end), decode_lib.decode(PHOTO))
    clean = encoded(picture(), "PNG")
    np.testing.assert_array_equal(decode_lib.decode(clean + b"more"), decode_lib.decode(clean))


def test_of_16_bits_the_upper_8_are_kept():
    values = np.random.default_rng(0).integers(0, 2 ** 16, (48, 64, 3)).astype(np.uint16)
    np.testing.assert_array_equal(decode_lib.decode(cv2.imencode(".png", values[..., ::-1])[1].tobytes()), values >> 8)
    gray = decode_lib.decode(cv2.imencode(".png", values[..., 0])[1].tobytes())
    np.testing.assert_array_equal(gray, np.repeat(values[..., :1] >> 8, 3, 2))
    alpha = np.full((48, 64, 1), 0x8040, np.uint16)
    got = decode_lib.decode(cv2.imencode(".png", np.dstack([values[..., ::-1], alpha]))[1].tobytes())
    assert np.abs(got - (255 + (0x80 / 255) * ((values >> 8).astype(float) - 255))).max() <= 0.51


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG"])
def test_of_an_animation_the_first_frame_is_taken(kind):
    frames = [Image.fromarray(picture(seed=i)) for i in range(3)]
    data = encoded(frames[0], kind, save_all=True, append_images=frames[1:], duration=50)
    assert Image.open(io.BytesIO(data)).n_frames == 3
    got = decode_lib.decode(data)
    assert got.shape == (48, 64, 3) and np.abs(got - pil(data)).max() <= 1
    assert np.abs(got - picture(seed=0).astype(int)).mean() < 6 < np.abs(got - picture(seed=1).astype(int)).mean()


# ---- JPEGs at reduced size ----


def jpeg(height, width, seed=0, **options):
    return simplejpeg.encode_jpeg(picture(height, width, seed), quality=95, **options)


def box_mean(pixels, parts):
    h, w = (side // parts for side in pixels.shape[:2])
    return pixels[:h * parts, :w * parts].reshape(h, parts, w, parts, 3).mean((1, 3))


def test_a_jpeg_comes_at_a_half_a_quarter_or_an_eighth_where_that_is_enough():
    data, asked = jpeg(201, 303), []
    whole = decode_lib.decode(data)
    for share, parts in ((1.0, 1), (0.51, 1), (0.5, 2), (0.26, 2), (0.25, 4), (0.13, 4), (0.125, 8), (0.01, 8), (3.0, 1)):
        got = decode_lib.decode(data, resolution_needed=lambda h, w: asked.append((h, w)) or share)
        assert got.shape == (-(-201 // parts), -(-303 // parts), 3) and not got.flags.writeable
        mean = box_mean(whole, parts)
        assert np.abs(got[:mean.shape[0], :mean.shape[1]] - mean).mean() < 1
    assert set(asked) == {(201, 303)}
    for kind in ("PNG", "WEBP", "GIF", "BMP"):
        assert decode_lib.decode(encoded(picture(), kind), resolution_needed=lambda h, w: 0.1).shape == (48, 64, 3)
    for mode in ("CMYK", "L"):
        few = decode_lib.decode(encoded(Image.fromarray(picture()).convert(mode), "JPEG"), resolution_needed=lambda h, w: 0.5)
        assert few.shape == (24, 32, 3) and np.abs(few - box_mean(picture(), 2)).mean() < (60 if mode == "L" else 3)
    with pytest.raises(decode_lib.Bad, match="corrupt image: Premature end"):
        decode_lib.decode(data[:-100], resolution_needed=lambda h, w: 0.1)


def seen(monkeypatch):
    """The shapes that decode_lib.decode gives from now on."""
    shapes, decode = [], decode_lib.decode

    def watched(data, **options):
        pixels = decode(data, **options)
        shapes.append(pixels.shape[:2])
        return pixels
    monkeypatch.setattr(decode_lib, "decode", watched)
    return shapes


@pytest.mark.parametrize("specs, shape", [
    (["decode|resize(64)"], (75, 100)), (["decode|center(100)"], (150, 200)), (["decode|resize((64,101))"], (150, 200)),
    (["decode|resize(64)", "decode|resize(160)"], (300, 400)), (["decode|resize(64)", "decode"], (300, 400)),
    (["decode|stream('s')|resize(64)"], (75, 100)), (["decode|gray(1)|resize(64)"], (300, 400)),
    (["decode|severity('crop',1)|resize(64)"], (300, 400)), (["decode|crop(64,.25,.25,(1.,1.))"], (150, 200)),
    (["decode|crop(64,.05,.05,(1.,1.))"], (300, 400))])
def test_the_most_demanding_view_of_a_row_decides(monkeypatch, specs, shape):
    shapes = seen(monkeypatch)
    views = Views({f"view{i}": spec for i, spec in enumerate(specs)})
    draws = {name: numbers[0] for name, numbers in views.draws(0, [0]).items()}
    views({"image": jpeg(300, 400)}, draws)
    views({"image": jpeg(300, 400)}, draws, whole=True)
    assert shapes == [shape, (300, 400)]


def gradient(height, width):
    """A JPEG whose red is the column and whose green is the row, of 256."""
    pixels = np.zeros((height, width, 3), np.uint8)
    pixels[..., 0], pixels[..., 1] = np.arange(width) * 256 // width, (np.arange(height) * 256 // height)[:, None]
    return simplejpeg.encode_jpeg(pixels, quality=98, colorsubsampling="444")


def test_params_are_of_the_stored_image_at_any_resolution(monkeypatch):
    """A whole and a reduced decode of the same draws cut the same box, to one pixel of what is there."""
    shapes, data = seen(monkeypatch), gradient(601, 803)
    for spec in ("decode|crop((48,40),.2,.9)|flip|crop((24,30),.4,.8)", "decode|center((50,40))", "decode|resize(64)"):
        views = Views({"view": spec})
        draws = views.draws(0, range(20))["view"]
        rows = [[views({"image": data}, {"view": numbers}, whole=whole)["view"] for numbers in draws] for whole in (False, True)]
        reduced, full = (views.collate([{"view": augmented} for augmented in looks]) for looks in rows)
        boxes, same = reduced["view/params"][:, :4], full["view/params"]
        assert np.abs(boxes - same[:, :4]).max() <= 8.5 / 601
        np.testing.assert_array_equal(reduced["view/params"][:, 4:], same[:, 4:])
        for channel, (low, size) in enumerate(((0, 2), (1, 3))):
            middle = 256 * (boxes[:, low] + boxes[:, size] / 2)
            assert np.abs(reduced["view"][..., channel].mean((1, 2)) - middle).max() < 2
        assert np.abs(reduced["view"] - full["view"].astype(int)).mean() < 2
    assert {(601, 803), (151, 201)} < set(shapes)


class Photos:
    """Twelve JPEGs of a size that is reduced for some draws and not for others."""

    def __len__(self):
        return 12

    def __getitem__(self, index):
        return {"image": jpeg(90, 120, index), "text": "", "key": str(index)}


def test_the_batch_is_a_pure_function_and_what_is_kept_in_memory_is_whole(monkeypatch):
    shapes, views = seen(monkeypatch), {"view": "decode|crop(20,.1)|flip"}
    plain = Pipeline(Photos(), Views(views), 0, 12, workers=0)
    batches = [plain.batch(step) for step in range(3)]
    assert len(set(shapes)) == 3  # whole, half, quarter
    for step in (2, 0):
        halves = [Pipeline(Photos(), Views(views), 0, 12, rows=slice(6 * i, 6 * i + 6), workers=0).batch(step) for i in range(2)]
        np.testing.assert_array_equal(np.concatenate([half["view"] for half in halves]), batches[step]["view"])
    del shapes[:]
    kept = [Pipeline(Photos(), Views(views), 0, 12, workers=0, cache=cache) for cache in (True, 1e-4)]  # the second: no room
    for step in (0, 1, 2, 1):
        a, b = (data.batch(step) for data in kept)
        np.testing.assert_array_equal(a["view"], b["view"])
        assert np.abs(a["view"] - batches[step]["view"].astype(int)).mean() < 4
    assert set(shapes) == {(90, 120)}
    assert Reader(Photos(), Views(views)).row(0, Views(views).draws(0, [0]) | {"view": [0.5] * 24})[1] == 0


# ---- the two ways to shrink ----


@pytest.mark.parametrize("shrink", [1.1, 1.5, 2.0, 2.5, 3.0, 4.0, 5.9, 7.0])
def test_jpegs_are_averaged_as_well_as_by_areas(shrink):
    """Against PIL's antialiased filter, on noise with every frequency; plain bilinear is up to four times further away."""
    random = np.random.default_rng(0)
    pixels = cv2.resize(random.integers(0, 256, (420, 560, 3)).astype(np.uint8), (840, 630), interpolation=cv2.INTER_CUBIC)
    height, width = int(630 / shrink), int(840 / shrink)
    reference = np.asarray(Image.fromarray(pixels).resize((width, height), Image.Resampling.BILINEAR), int)
    error = lambda got: np.abs(got - reference).mean()
    fast, exact = (image_ops._resize(pixels, height, width, exact) for exact in (False, True))
    linear = error(cv2.resize(pixels, (width, height), interpolation=cv2.INTER_LINEAR))
    assert error(fast) <= 1.4 * error(exact) + 1 and (shrink in (1.1, 2.0) or error(fast) < 0.75 * linear)
    offset = np.abs(fast.mean((0, 1)) - pixels.mean((0, 1))).max()
    assert offset < 1


# ---- the pixels that published results were trained on ----


def as_published(pixels, draws, size, least, strong):
    """crop(size, least), and with `strong` |jitter(.4,.4,.4,.1,p=.8)|gray(.2)|blur(.5)|flip, of a PNG, step by step."""
    h, w = pixels.shape[:2]
    for i in range(10):
        area, aspect = h * w * (least + (1 - least) * draws[2 * i]), math.exp(math.log(3 / 4) + math.log(16 / 9) * draws[2 * i + 1])
        wide, high = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if wide <= w and high <= h:
            left, top = int(draws[20] * (w - wide + 1)), int(draws[21] * (h - high + 1))
            break
    view = pixels[top:top + high, left:left + wide]
    if wide > size or high > size:
        view = cv2.resize(view, (min(wide, size), min(high, size)), interpolation=cv2.INTER_AREA)
    if view.shape != (size, size, 3):
        view = cv2.resize(view, (size, size), interpolation=cv2.INTER_LINEAR)
    if not strong:
        return view
    matrix, luma = np.eye(3, 4), np.array([0.299, 0.587, 0.114])
    if draws[22] < 0.8:
        brightness, contrast, saturation = (0.6 + 0.8 * u for u in draws[23:26])
        turn = 2 * math.pi * (0.2 * draws[26] - 0.1)
        scale = brightness * contrast
        yiq = np.array([luma, [0.5959, -0.2746, -0.3213], [0.2115, -0.5227, 0.3112]])
        grey = np.tile(luma, (3, 1))
        turned = np.linalg.inv(yiq) @ [[0, 0, 0], [0, 0, 1], [0, -1, 0]] @ yiq
        matrix[:, :3] = scale * (grey + saturation * (math.cos(turn) * (np.eye(3) - grey) + math.sin(turn) * turned))
        matrix[:, 3] = brightness * (1 - contrast) * (luma @ view.mean((0, 1)))
    if draws[27] < 0.2:
        matrix = np.tile(luma, (3, 1)) @ matrix
    if draws[28] < 0.5:
        sigma = 0.1 + 1.9 * draws[29]
        view = cv2.GaussianBlur(view, (2 * math.ceil(2 * sigma) + 1,) * 2, sigma)
    if draws[30] < 0.5:
        view = cv2.flip(view, 1)
    return view if (matrix == np.eye(3, 4)).all() else cv2.transform(view, matrix)


@pytest.mark.parametrize("size", [32, 48, 64])
def test_views_of_the_embedded_drawings_are_what_they_were(size):
    source = sources.open({"name": "emoji", "split": "train"})
    specs = {"image": f"decode|crop({size},0.5)",
             "augmented": f"decode|crop({size},0.08)|jitter(.4,.4,.4,.1,p=.8)|gray(.2)|blur(.5)|flip"}
    batch = Pipeline(source, Views(specs), 0, 128, workers=0).batch(3)
    draws = Views(specs).draws(0, range(3 * 128, 4 * 128))
    for j, index in enumerate(batch["index"].tolist()):
        pixels = decode_lib.decode(source[index]["image"])
        for name, least, strong in (("image", 0.5, False), ("augmented", 0.08, True)):
            np.testing.assert_array_equal(batch[name][j], as_published(pixels, draws[name][j], size, least, strong))
