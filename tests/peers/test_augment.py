"""Augmentations beside torchvision's: the same distributions of parameters, and with the same parameters the same pixels.

Differences are of 255, on the photo-like pictures of the benchmark (colourful ones). What differs on purpose: hue turns the colour
plane of YIQ, which keeps the brightness, and not the hexagon of HSV; colours are clipped once, after all changes.
"""

import cv2
import numpy as np
from PIL import Image
import pytest
from scipy import stats
import torch
from torchvision import transforms
from torchvision.transforms import InterpolationMode, v2
from torchvision.transforms.v2 import functional as F

from mcd_jax.bench import photos
from mcd_jax.data import decode
from mcd_jax.data.ops import image_ops
from mcd_jax.data.ops.augmented import PARAMS, Augmented
from mcd_jax.data.views import Views

torch.set_num_threads(1)
ROWS = 4000


def draws(spec, rows=ROWS, seed=0):
    return Views({"view": spec}).draws(seed, range(rows))["view"]


def params(spec, pixels, rows=ROWS):
    """{name: (rows,) values} of our draws of a view of `pixels`."""
    views = Views({"view": spec})
    example = {("pixels", "image"): pixels, ("jpeg", "image"): None}
    got = [views(example, {"view": numbers})["view"].params() for numbers in views.draws(0, range(rows))["view"]]
    return dict(zip(PARAMS, np.array(got).T))


def same(ours, theirs):
    """Kolmogorov-Smirnov, two samples of 4,000: not told apart at 0.1 %."""
    return stats.ks_2samp(ours, theirs).pvalue > 1e-3


def same_share(ours, theirs):
    """Chi-square of two counts of 4,000: not told apart at 0.1 %."""
    counts = [[sum(ours), len(ours) - sum(ours)], [sum(theirs), len(theirs) - sum(theirs)]]
    return stats.chi2_contingency(counts).pvalue > 1e-3


# ---- distributions ----


@pytest.mark.parametrize("scale", [(0.08, 1.0), (0.5, 1.0), (0.9, 1.0)])
@pytest.mark.parametrize("height, width", [(75, 100), (120, 60)])
def test_crops_are_drawn_as_random_resized_crop_draws_them(scale, height, width):
    torch.manual_seed(1)
    picture = torch.zeros(3, height, width, dtype=torch.uint8)
    theirs = np.array([transforms.RandomResizedCrop.get_params(picture, list(scale), [3 / 4, 4 / 3]) for _ in range(ROWS)])
    top, left, high, wide = theirs.T
    got = params(f"decode|crop(8,{scale[0]},{scale[1]})", np.zeros((height, width, 3), np.uint8))
    left_, top_, wide_, high_ = (np.rint(got[name] * unit) for name, unit in zip(PARAMS, (width, height) * 2))
    for name, a, b in (("area", wide_ * high_, wide * high), ("aspect", wide_ / high_, wide / high), ("left", left_, left),
                       ("top", top_, top), ("right", left_ + wide_, left + wide), ("bottom", top_ + high_, top + high)):
        assert same(a, b), name


def test_jitter_factors_are_drawn_as_color_jitter_draws_them():
    torch.manual_seed(2)
    theirs = [transforms.ColorJitter.get_params((0.6, 1.4), (0.6, 1.4), (0.6, 1.4), (-0.1, 0.1))[1:] for _ in range(ROWS)]
    got = params("decode|jitter(.4,.4,.4,.1,p=1)", np.full((8, 8, 3), 100, np.uint8))
    for name, values in zip(("brightness", "contrast", "saturation", "hue"), np.array(theirs).T):
        assert same(got[name], values), name


def test_shares_and_blur_widths_are_drawn_as_torchvisions():
    torch.manual_seed(3)
    got = params("decode|jitter(.4,.4,.4,.1,p=.8)|gray(.2)|blur(.5)|flip", np.full((64, 64, 3), 100, np.uint8))
    ramp = torch.arange(48, dtype=torch.uint8).reshape(3, 4, 4)
    changed = lambda transform: [bool((transform(ramp) != ramp).any()) for _ in range(ROWS)]
    jitter = v2.RandomApply([v2.RandomInvert(p=1.0)], p=0.8)  # its share is RandomApply's, whatever is applied
    for name, ours, theirs in (("jitter", got["brightness"] != 1, changed(jitter)), ("flip", got["flip"], changed(
            v2.RandomHorizontalFlip())), ("gray", got["gray"], changed(v2.RandomGrayscale(0.2))),
            ("blur", got["blur"] > 0, changed(v2.RandomApply([v2.RandomInvert(p=1.0)], p=0.5)))):
        assert same_share(ours, theirs), name
    sigmas = [transforms.GaussianBlur.get_params(0.1, 2.0) for _ in range(ROWS)]
    assert same(got["blur"][got["blur"] > 0], sigmas)  # of a view of 64 pixels the unit is one pixel


# ---- pixels ----


def differences(a, b):
    d = np.abs(np.asarray(a, float) - np.asarray(b, float))
    return d.mean(), d.max()


def theirs_of(function, pixels, *args, **kwargs):
    """A torchvision function of uint8 (H, W, 3), on a uint8 tensor."""
    return function(torch.from_numpy(np.ascontiguousarray(pixels.transpose(2, 0, 1))), *args, **kwargs).numpy().transpose(1, 2, 0)


def pictures(size, count=3):
    return [data for data, _ in photos.examples(size, count)]


_MODES = {"bilinear": InterpolationMode.BILINEAR, "bicubic": InterpolationMode.BICUBIC}


@pytest.mark.parametrize("mode", _MODES)
@pytest.mark.parametrize("least", [0.9, 0.5, 0.08])
@pytest.mark.parametrize("size", ["500x375", "1000x750"])
def test_a_crop_has_the_pixels_of_an_antialiased_resized_crop(size, least, mode):
    """Boxes drawn by us. Mean 0.9 and maximum 30 for whole decodes, PNG or JPEG, on the first box that is drawn, and for a reduced
    one on the box that its params tell; mean 1.5 on the one that was drawn: that may lie half a reduced pixel away."""
    crop, reduced = image_ops.crop(224, least), 0
    for data in pictures(size):
        whole = decode.decode(data)
        h, w = whole.shape[:2]
        picture = Image.fromarray(whole)
        for numbers in draws(f"decode|crop(224,{least})", rows=4):
            numbers = numbers[:crop.draws]
            few = decode.decode(data, resolution_needed=lambda height, width: crop.resolution_needed(height, width, numbers))
            png, jpeg, small = (crop.run(Augmented(*args), numbers) for args in ((whole,), (whole, (h, w)), (few, (h, w))))
            left, top, wide, high = (round(float(v)) for v in np.array(png.box) * [w, h, w, h])
            expected = F.resized_crop(picture, top, left, high, wide, [224, 224], _MODES[mode], antialias=True)
            for augmented in (png, jpeg):
                mean, most = differences(augmented.pixels, expected)
                assert augmented.box == png.box and mean < 0.9 and most <= 30
            if few.shape != whole.shape:
                reduced += 1
                x, y, wide, high = np.array(small.box) * [w, h, w, h]
                own = picture.resize((224, 224), getattr(Image.Resampling, mode.upper()), box=(x, y, x + wide, y + high))
                mean, most = differences(small.pixels, own)
                assert mean < 0.6 and most <= 30 and differences(small.pixels, expected)[0] < 1.5
    assert reduced > 5 or size == "500x375"


@pytest.fixture(scope="module")
def view():
    return cv2.resize(decode.decode(pictures("500x375", 1)[0]), (224, 224), interpolation=cv2.INTER_AREA)


def jittered(pixels, brightness=1.0, contrast=1.0, saturation=1.0, hue=0.0):
    augmented = Augmented(pixels)
    image_ops._jitter(augmented, brightness, contrast, saturation, hue)
    return augmented.drawn()


@pytest.mark.parametrize("factor", [0.6, 0.8, 1.2, 1.4])
@pytest.mark.parametrize("name", ["brightness", "contrast", "saturation"])
def test_each_factor_changes_pixels_as_its_adjustment_does(view, name, factor):
    """To one step: torchvision rounds down, we to the nearest. Clipped pixels too."""
    expected = theirs_of(getattr(F, f"adjust_{name}"), view, factor)
    assert differences(jittered(view, **{name: factor}), expected)[1] <= 1
    assert differences(view, expected)[0] > 4


def test_three_factors_at_once_are_close_to_their_adjustments_in_any_order(view):
    """Mean 4 on average where the change is 27: what they clip on the way is lost."""
    random = np.random.default_rng(0)
    found, change = [], []
    for _ in range(20):
        factors = dict(zip(("brightness", "contrast", "saturation"), random.uniform(0.6, 1.4, 3)))
        expected = view
        for name in random.permutation(list(factors)):
            expected = theirs_of(getattr(F, f"adjust_{name}"), expected, factors[name])
        found.append(differences(jittered(view, **factors), expected)[0])
        change.append(differences(view, expected)[0])
    assert np.mean(found) < 4 and max(found) < 12 and np.mean(change) > 20


@pytest.mark.parametrize("hue", [-0.1, -0.05, 0.05, 0.1, 0.5])
def test_hue_turns_the_colours_the_same_way_but_keeps_the_brightness(view, hue):
    """What is left when the luma is taken away differs by less than 60 % of the change; the other way round, by over 1.5 of it."""
    luma = np.array([0.299, 0.587, 0.114])
    colour = lambda pixels: pixels - (pixels @ luma)[..., None]
    ours, theirs, backwards = jittered(view, hue=hue), theirs_of(F.adjust_hue, view, hue), theirs_of(F.adjust_hue, view, -hue)
    change = differences(colour(view), colour(theirs))[0]
    assert differences(colour(ours), colour(theirs))[0] < 0.6 * change
    assert hue == 0.5 or differences(colour(ours), colour(backwards))[0] > 1.5 * change
    inside = (jittered(view, hue=hue).min(-1) > 0) & (ours.max(-1) < 255)
    assert np.abs(ours @ luma - view @ luma)[inside].max() < 1.5 < differences(theirs @ luma, view @ luma)[0]


def test_gray_is_rgb_to_grayscale(view):
    augmented = image_ops.gray(1.0).run(Augmented(view), [0.0])
    assert differences(augmented.drawn(), theirs_of(F.rgb_to_grayscale, view, 3))[1] <= 1


@pytest.mark.parametrize("sigma", [0.1, 0.5, 1.0, 1.5, 2.0])
def test_blur_is_as_wide_as_torchvisions(view, sigma):
    """Torchvision's kernel, 23 pixels wide as SimCLR's at 224, is not cut off: Pillow's blur, by three boxes, is as wide."""
    wide = theirs_of(F.gaussian_blur, view, [23, 23], [sigma, sigma])
    apart = {method: differences(image_ops.blur(1.0, (sigma, sigma), method).run(Augmented(view), [0.0, 0.0]).pixels, wide)[0]
             for method in image_ops.BLURS}
    assert apart["pillow"] < 1.0
