"""Operations: SLIP's recipes in distribution, colours against PIL, the misalignment target, refusals."""
import math
import re

import cv2
import numpy as np
from PIL import Image, ImageEnhance, ImageFilter
import pytest
from scipy import stats

from mcd_jax.data import decode as decode_lib
from mcd_jax.data.ops import image_ops, style_ops
from mcd_jax.data.ops.augmented import PARAMS, Augmented, misalignment
from mcd_jax.data.views import Views

SLIP = "decode|crop(8,0.08)|jitter(.4,.4,.4,.1,p=.8)|gray(.2)|blur(.5)|flip"


def picture(height=80, width=100, seed=0, low=0, high=256):
    """Smooth random colours, uint8 (height, width, 3)."""
    coarse = np.random.default_rng(seed).uniform(low, high - 1, (5, 6, 3)).astype(np.float32)
    return np.clip(cv2.resize(coarse, (width, height), interpolation=cv2.INTER_LINEAR), 0, 255).astype(np.uint8)


def png(pixels):
    return cv2.imencode(".png", pixels[..., ::-1])[1].tobytes()


def view(spec, pixels=None, rows=1, seed=0):
    """The batch of `rows` draws of one view of one picture."""
    views = Views({"view": spec})
    example = {"image": png(picture() if pixels is None else pixels), "text": "a", "key": "a"}
    draws = views.draws(seed, range(rows))["view"]
    return views.collate([views(example, {"view": numbers}) for numbers in draws])


def params(*args, **kwargs):
    return dict(zip(PARAMS, view(*args, **kwargs)["view/params"].T))


def same(sample, reference):
    """Two-sample Kolmogorov-Smirnov: not told apart."""
    return stats.ks_2samp(sample, reference).pvalue > 1e-3


# ---- SLIP's recipes ----


def torchvision_crop(random, height, width, scale, ratio=(3 / 4, 4 / 3)):
    """torchvision.transforms.RandomResizedCrop.get_params, in numpy: (left, top, width, height) of the box."""
    for _ in range(10):
        area = height * width * random.uniform(*scale)
        aspect = math.exp(random.uniform(math.log(ratio[0]), math.log(ratio[1])))
        w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < w <= width and 0 < h <= height:
            return random.integers(0, width - w + 1), random.integers(0, height - h + 1), w, h
    w, h = width, height
    if width / height < ratio[0]:
        h = round(w / ratio[0])
    elif width / height > ratio[1]:
        w = round(h * ratio[1])
    return (width - w) // 2, (height - h) // 2, w, h


@pytest.mark.parametrize("spec, scale, size", [
    ("decode|crop(8,0.5)", (0.5, 1.0), (80, 100)), ("decode|crop(8,0.08)", (0.08, 1.0), (80, 100)),
    ("decode|crop(8,0.2,.6)", (0.2, 0.6), (64, 64)), ("decode|crop(8,.9)", (0.9, 1.0), (40, 100))])
def test_crop_boxes_are_distributed_as_torchvisions(spec, scale, size):
    got = params(spec, picture(*size), rows=3000)
    random = np.random.default_rng(1)
    reference = np.array([torchvision_crop(random, *size, scale) for _ in range(3000)]).T
    for name, values, unit in zip(("left", "top", "width", "height"), reference, (size[1], size[0]) * 2):
        assert same(np.rint(got[name] * unit), values), name
    shape = np.rint(got["width"] * size[1]).astype(int) / np.rint(got["height"] * size[0]).astype(int)
    assert same(shape, reference[2] / reference[3])


def test_slips_augmented_recipe_has_the_documented_distributions():
    got = params(SLIP, rows=4000)
    jittered = got["brightness"] != 1
    for name, low, high in (("brightness", 0.6, 1.4), ("contrast", 0.6, 1.4), ("saturation", 0.6, 1.4), ("hue", -0.1, 0.1)):
        assert stats.kstest(got[name][jittered], stats.uniform(low, high - low).cdf).pvalue > 1e-3, name
        assert (got[name][~jittered] == (0 if name == "hue" else 1)).all()
    blurred = got["blur"] > 0
    assert stats.kstest(got["blur"][blurred] * 8 / 64, stats.uniform(0.1, 1.9).cdf).pvalue > 1e-3
    for chosen, share in ((jittered, 0.8), (got["gray"] == 1, 0.2), (blurred, 0.5), (got["flip"] == 1, 0.5)):
        assert stats.binomtest(int(chosen.sum()), 4000, share).pvalue > 1e-3
    columns = np.stack([jittered, got["gray"], blurred, got["flip"], got["brightness"], got["contrast"], got["hue"],
                        got["saturation"], got["left"]])
    dependence = np.abs(np.corrcoef(columns) - np.eye(9))
    assert dependence[:4, :4].max() < 0.06 and dependence[4:8, :4][:, 1:].max() < 0.06  # drawn independently


# ---- pixels ----


def overlaps(size, parts):
    """(parts, size) weights of exact area averaging; the identity where nothing shrinks."""
    edges = np.linspace(0, size, min(size, parts) + 1)
    start, end = edges[:-1, None], edges[1:, None]
    share = np.clip(np.minimum(end, np.arange(1, size + 1)) - np.maximum(start, np.arange(size)), 0, 1)
    return share / share.sum(1, keepdims=True)


def test_a_box_is_cut_resized_and_mirrored_as_its_params_say():
    pixels = picture(64, 64)
    for height, width in ((64, 64), (24, 40)):
        batch = view(f"decode|crop(({height},{width}),.1,.9)|flip", pixels, rows=20)
        for got, row in zip(batch["view"], batch["view/params"]):
            left, top, wide, high = (int(value) for value in np.rint(row[:4] * 64))
            box = pixels[top:top + high, left:left + wide]
            box = np.einsum("yh,xw,hwc->yxc", overlaps(high, height), overlaps(wide, width), box, optimize=True)
            expected = Image.fromarray(np.rint(box).astype(np.uint8)).resize((width, height), Image.Resampling.BILINEAR)
            assert np.abs((got[:, ::-1] if row[4] else got) - np.asarray(expected, int)).max() <= 2
    assert set(batch["view/params"][:, 4]) == {0, 1}


def test_boxes_of_crops_in_a_row_refer_to_the_stored_image():
    pixels = np.zeros((64, 64, 3), np.uint8)
    pixels[..., 0], pixels[..., 1] = np.arange(64), np.arange(64)[:, None]
    batch = view("decode|crop((48,48),.5,.7)|flip|crop((48,48),.4,.8)|flip(.3)", pixels, rows=30)
    for got, (left, top, wide, high, *_) in zip(batch["view"], batch["view/params"]):
        assert abs(got[..., 0].mean() - (64 * (left + wide / 2) - 0.5)) < 0.7
        assert abs(got[..., 1].mean() - (64 * (top + high / 2) - 0.5)) < 0.7


def test_center_and_resize():
    pixels = picture(80, 100)
    np.testing.assert_array_equal(view("decode|center(80)", pixels)["view"][0], pixels[:, 10:90])
    assert view("decode|center((20,50))", pixels)["view/params"][0][:4].tolist() == [0, 0.25, 1, 0.5]
    assert np.abs(view("decode|resize((40,50))", pixels)["view"][0]
                  - pixels.reshape(40, 2, 50, 2, 3).mean((1, 3))).max() <= 1


@pytest.mark.parametrize("shape", [(80, 100), (100, 80), (30, 51), (64, 64), (40, 40)])
def test_bicubic_is_torchvisions(shape):
    """torchvision.transforms.Resize(side) and CenterCrop(side) of a PIL image, written out; `tests/peers` compares with itself."""
    pixels, side = picture(*shape), 40
    high, wide = (side, int(side * shape[1] / shape[0])) if shape[0] <= shape[1] else (int(side * shape[0] / shape[1]), side)
    scaled = Image.fromarray(pixels)
    scaled = scaled if scaled.size == (wide, high) else scaled.resize((wide, high), Image.Resampling.BICUBIC)
    top, left = round((high - side) / 2), round((wide - side) / 2)
    batch = view(f"decode|center({side}, 'bicubic')", pixels)
    np.testing.assert_array_equal(batch["view"][0], np.asarray(scaled)[top:top + side, left:left + side])
    box = [left / wide, top / high, side / wide, side / high]
    np.testing.assert_allclose(batch["view/params"][0][:4], box, atol=1e-6)
    whole = Image.fromarray(pixels).resize((30, 20), Image.Resampling.BICUBIC)
    np.testing.assert_array_equal(view("decode|resize((20,30), 'bicubic')", pixels)["view"][0], np.asarray(whole))
    mirrored = params(f"decode|flip(1)|center({side}, 'bicubic')", pixels)
    np.testing.assert_allclose(mirrored["left"], 1 - box[0] - box[2], atol=1e-6)


@pytest.mark.parametrize("spec, message", [("center((20,30), 'bicubic')", "makes squares: give one side"),
                                           ("resize(20, 'cubic')", "'cubic' is not one of 'area', 'bicubic'")])
def test_bicubic_refusals(spec, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        Views({"view": f"decode|{spec}"})


def jittered(pixels, **strength):
    """Pixels and factors of one jitter of one kind."""
    spec = ",".join(str(strength.get(name, 0)) for name in ("brightness", "contrast", "saturation", "hue"))
    batch = view(f"decode|jitter({spec},p=1)", pixels, rows=6)
    return zip(batch["view"].astype(int), batch["view/params"])


@pytest.mark.parametrize("name, enhance", [
    ("brightness", ImageEnhance.Brightness), ("contrast", ImageEnhance.Contrast), ("saturation", ImageEnhance.Color)])
def test_jitter_equals_pil_where_nothing_is_clipped(name, enhance):
    pixels = picture(low=90, high=170)
    for got, row in jittered(pixels, **{name: 0.4}):
        expected = enhance(Image.fromarray(pixels)).enhance(float(row[PARAMS.index(name)]))
        assert np.abs(got - np.asarray(expected)).max() <= 1


def test_brightness_contrast_and_saturation_at_once_equal_pil_one_after_the_other():
    pixels = picture(low=100, high=150)
    for got, row in jittered(pixels, brightness=0.3, contrast=0.4, saturation=0.4):
        expected = Image.fromarray(pixels)
        for enhance, factor in zip((ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color), row[5:8]):
            expected = enhance(expected).enhance(float(factor))
        assert np.abs(got - np.asarray(expected)).max() <= 3


def test_hue_keeps_grey_and_luma_and_turns_as_hsv_does():
    pixels = picture(low=90, high=170)
    luma = np.array([0.299, 0.587, 0.114])
    grey = np.repeat(picture()[..., :1], 3, axis=2)
    for got, row in jittered(pixels, hue=0.1):
        assert np.abs(got @ luma - pixels @ luma).max() < 1
        hsv = cv2.cvtColor(pixels, cv2.COLOR_RGB2HSV_FULL)
        hsv[..., 0] += np.uint8(round(256 * float(row[PARAMS.index("hue")])) % 256)
        turned = cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB_FULL).astype(int)
        kept = np.abs(pixels - pixels.mean((0, 1))).mean()
        assert np.abs((turned - turned.mean(2, keepdims=True)) - (got - got.mean(2, keepdims=True))).mean() < 0.3 * kept
    for got, _ in jittered(grey, hue=0.5):
        assert np.abs(got - grey).max() <= 1


def test_colour_maps_in_a_row_are_fused_without_changing_the_result():
    pixels = picture(low=90, high=170)
    fused, stepwise = Augmented(pixels), Augmented(pixels)
    for op, draws in ((image_ops.jitter(0.3, 0.3, 0.3, 0.1), [0, 0.1, 0.9, 0.2, 0.8]), (image_ops.gray(0.5), [0.4]),
                      (image_ops.jitter(0.2, 0.2, 0.2, 0.1), [0, 0.7, 0.2, 0.6, 0.3]), (style_ops.invert(0.5), [0.1])):
        op.run(fused, draws)
        op.run(stepwise, draws).drawn()
    assert fused.pixels is pixels and fused.params() == stepwise.params()
    assert np.abs(fused.drawn() - stepwise.drawn().astype(int)).max() <= 1
    gray = view("decode|gray(1)")["view"][0]
    assert np.abs(gray - np.asarray(Image.fromarray(picture()).convert("L"), int)[..., None]).max() <= 1


def test_blur_has_the_width_it_says():
    pixels = np.zeros((65, 65, 3), np.uint8)
    pixels[:, 32:] = 255
    for sigma in (0.5, 1.0, 1.7, 3.0):
        batch = view(f"decode|blur(1,({sigma},{sigma}))", pixels)
        step = np.diff(batch["view"][0, 32, :, 0].astype(float)) / 255
        place = np.arange(64) - 31
        assert abs(math.sqrt((step * place ** 2).sum()) / sigma - 1) < 0.15
        assert batch["view/params"][0][PARAMS.index("blur")] == pytest.approx(64 * sigma / 65)


@pytest.mark.parametrize("sigma", [0.1, 0.3, 1.0, 2.0])
def test_blur_by_pillow_is_what_slip_uses(sigma):
    """SLIP and MoCo v2: image.filter(ImageFilter.GaussianBlur(radius=uniform(.1, 2)))."""
    pixels = picture()
    got = view(f"decode|blur(1,({sigma},{sigma}),method='pillow')", pixels)["view"][0]
    np.testing.assert_array_equal(got, Image.fromarray(pixels).filter(ImageFilter.GaussianBlur(sigma)))


@pytest.mark.parametrize("sigma, cut, pillow", [(0.3, 0.30, 1.0), (1.0, 0.94, 1.0), (2.0, 0.93, 1.0)])
def test_blurs_have_these_widths(sigma, cut, pillow):
    """Shares of sigma, from how far a faint ramp's edge spreads; the numbers are in the op's documentation."""
    edge = np.zeros((65, 65, 3), np.uint8)
    edge[:, 32:] = 255
    for method, share in (("cut", cut), ("pillow", pillow)):
        step = np.diff(view(f"decode|blur(1,({sigma},{sigma}),method='{method}')", edge)["view"][0, 32, :, 0].astype(float)) / 255
        assert math.sqrt((step * (np.arange(64) - 31) ** 2).sum()) / sigma == pytest.approx(share, abs=0.03)


# ---- misalignment ----


@pytest.mark.parametrize("spec", ["decode", "decode|resize(16)", "decode|flip(1)", "decode|crop(16,1.,1.,(1.25,1.25))",
                                  "decode|jitter(.4,.4,.4,.1,p=0)|gray(0)|blur(0)|invert(0)|erase(0)",
                                  *[f"decode|severity('{kind}',0)" for kind in ("crop", "jitter", "gray", "blur", "all")]])
def test_an_untouched_image_has_misalignment_exactly_one(spec):
    batch = view(spec)
    assert batch["view/misalignment"].dtype == np.float32 and batch["view/misalignment"].tolist() == [1.0]
    if "severity" in spec:
        np.testing.assert_array_equal(batch["view"][0], picture())


def test_misalignment_is_its_formula():
    rows = np.array([[0, 0, 0.5, 0.25, 1, 1, 1, 1, 0, 0, 0, 0], [0, 0, 1, 1, 0, 0.6, 1.4, 0.7, -0.1, 0, 0, 0],
                     [0, 0, 1, 1, 0, 1, 1, 0.8, 0.1, 1, 2, 0], [0.1, 0, 0.5, 1, 0, 1, 1, 1, 0, 0, 0, 0.75]])
    np.testing.assert_allclose(misalignment(rows), [1 + math.log(8), 1 + 0.4 + 0.4 + 0.3 + 0.4, 1 + 1 + math.log(5),
                                                    1 + math.log(2) + 0.75], rtol=1e-6)
    batch = view(SLIP, rows=50)
    np.testing.assert_array_equal(misalignment(batch["view/params"]), batch["view/misalignment"])
    assert (batch["view/misalignment"] >= 1).all() and np.isfinite(batch["view/misalignment"]).all()


@pytest.mark.parametrize("kind", ["crop", "jitter", "gray", "blur", "all"])
def test_misalignment_grows_with_the_severity_and_so_does_the_change(kind):
    levels = np.linspace(0, 1, 11)
    batches = [view(f"decode|severity('{kind}',{level})|resize(64)", rows=4) for level in levels]
    y = np.stack([batch["view/misalignment"] for batch in batches])
    assert (np.diff(y, axis=0) > 0).all() and (y[0] == 1).all() and np.isfinite(y).all()
    np.testing.assert_allclose(y, y[:, :1] + np.zeros_like(y), atol=0.05)  # the level alone decides
    change = [np.abs(batch["view"] - batches[0]["view"].astype(int)).mean() for batch in batches]
    assert change[0] == 0 and change[5] > 0.3 and change[10] > change[5] > change[2] > 0


def test_severe_crops_of_an_image_lie_inside_mild_ones():
    boxes = np.stack([view(f"decode|severity('crop',{level})", rows=5)["view/params"][:, :4] for level in (0.2, 0.5, 1)])
    left, top, wide, high = np.moveaxis(boxes, -1, 0)
    for low, size in ((left, wide), (top, high)):
        assert (np.diff(low, axis=0) >= -1e-6).all() and (np.diff(low + size, axis=0) <= 1e-6).all()
    other = view("decode|severity('crop',1,draw=1)", rows=5)["view/params"][:, :4]
    assert (other[:, :2] != boxes[2][:, :2]).any(axis=1).all()


@pytest.mark.parametrize("spec, adds", [
    ("invert(1)", 1), ("solarize(1)", 0.5), ("posterize(1)", 0.25), ("outline(1)", 0.25), ("edges(1)", 1),
    ("background(1)", 0.25), ("smooth(1,5)", 0.25), ("erase(1,(.1,.1))", -math.log(0.9))])
def test_style_operations_change_the_picture_and_add_what_they_say(spec, adds):
    pixels = picture()
    cv2.circle(pixels, (40, 40), 20, (255, 255, 255), -1)
    batch = view(f"decode|{spec}", pixels, rows=3)
    np.testing.assert_allclose(batch["view/misalignment"], 1 + adds, atol=0.02)
    assert (np.abs(batch["view"] - pixels.astype(int)).mean((1, 2, 3)) > 0.3).all()
    untouched = view(f"decode|{spec.replace('(1', '(0', 1)}", pixels)
    np.testing.assert_array_equal(untouched["view"][0], pixels)
    assert untouched["view/misalignment"].tolist() == [1.0]


def test_style_operations_do_what_their_names_say():
    pixels = np.full((32, 32, 3), 255, np.uint8)
    pixels[8:24, 8:24] = (200, 40, 40)
    np.testing.assert_array_equal(view("decode|invert(1)", pixels)["view"][0], 255 - pixels)
    painted = view("decode|background(1)", pixels, rows=3)["view"]
    for got in painted:
        assert (got[8:24, 8:24] == (200, 40, 40)).all() and len(np.unique(got[:8].reshape(-1, 3), axis=0)) == 1
    assert len(np.unique(painted[:, 0, 0], axis=0)) == 3
    drawn = view("decode|outline(1,(1,1))", pixels)["view"][0]
    assert (drawn[8, 8:24] < 100).all() and (drawn[14:18, 14:18] == (200, 40, 40)).all() and (drawn[0] == 255).all()
    lines = view("decode|edges(1)", pixels)["view"][0]
    assert (lines[14:18, 14:18] == 255).all() and (lines[8, 8:24] < 60).all()
    assert len(np.unique(view("decode|posterize(1,(2,2))")["view"])) <= 4
    erased = view("decode|erase(1,(.25,.25))", np.full((40, 40, 3), 7, np.uint8), rows=5)["view"]
    assert np.abs((erased != 7).any(-1).mean((1, 2)) - 0.25).max() < 0.02


# ---- streams ----


def test_views_of_one_stream_share_their_draws():
    spec = "decode|stream('s')|crop(8,.1)|flip"
    views = Views({"a": spec, "b": spec.replace("8", "16"), "c": "decode|crop(8,.1)|flip"})
    draws = views.draws(0, [3, 4, 9])
    assert draws["a"] == draws["b"] != draws["c"] and draws["a"][2] == views.draws(0, [9])["a"][0]


def test_an_image_is_decoded_once_for_all_of_its_views(monkeypatch):
    calls = []
    monkeypatch.setattr(decode_lib, "decode", lambda data, resolution_needed: calls.append(data) or picture())
    views = Views({"a": "decode|resize(8)", "b": "decode|gray(1)", "c": "decode|crop(8,.5)"})
    views({"image": b"x"}, {name: numbers[0] for name, numbers in views.draws(0, [0]).items()})
    assert len(calls) == 1


# ---- refusals ----


@pytest.mark.parametrize("spec, words", [
    ("decode|crop(8,0.5", "is not a pipe of operations"),
    ("decode|shear(8)", "view 'view': no operation 'shear'; there are background, blank, blur, caption, captions, center, "),
    ("decode|crop(8)", r"view 'view': 'crop\(8\)' in 'decode\|crop\(8\)': missing a required argument: 'min_scale'; it is "
                       r"crop\(size, min_scale, max_scale=1.0"),
    ("decode|crop(8,0.5,scale=2)", "got an unexpected keyword argument 'scale'"),
    ("decode|crop(8,2.)", "0 < min_scale <= max_scale <= 1"), ("decode|crop(8.,.5)", "size is a number of pixels"),
    ("decode|crop(size,.5)", "must be plain numbers, strings or tuples"),
    ("decode|crop(__import__('os').getpid(),.5)", "must be plain numbers"),
    ("decode|flip(2)", r"flip: 2 is not in \[0, 1\]"), ("decode|jitter(.1,.1,.1,.6)", "hue at most 0.5"),
    ("decode|blur(.5,(0,1))", r"0 < sigma\[0\]"),
    ("decode|blur(.5,method='box')", "blur: method='box' must be one of cut, pillow"),
    ("decode|severity('rain',1)", "use one of crop, jitter, gray, blur, all"),
    ("decode|posterize(1,(0,9))", "bits must lie in 1..8"), ("decode|erase(1,(.5,.1))", "area"),
    ("decode|smooth(1,4)", "must be 3, 5 or 7"), ("caption('last')|tokenize(8)", "use 'random' or 'first'"),
    ("crop(8,.5)", r"'crop\(8, 0.5\)' in .* works on an image, but gets an example; image views start with decode"),
    ("caption|crop(8,.5)", "works on an image, but gets a text"), ("decode|tokenize(8)", "works on a text, but gets an image"),
    ("caption", "ends with a text, which no batch can carry; add tokenize"), ("decode|column('x')", "works on an example"),
    ("decode|no.such.module(3)", "'no.such.module' can't be imported"), ("caption|tokenize(2)", "context 2 has no room"),
    ("caption|tokenize(8,'clap')", "no tokenizer 'clap'"), (3, "must be a pipe string")])
def test_a_wrong_pipe_is_refused_with_what_would_be_right(spec, words):
    with pytest.raises(ValueError, match=words):
        Views({"view": spec})


def test_operations_of_ones_own_come_by_dotted_path():
    assert view("decode|mcd_jax.data.ops.style_ops.invert(1)")["view/misalignment"].tolist() == [2.0]
