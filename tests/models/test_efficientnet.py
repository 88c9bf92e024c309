"""EfficientNet-Lite against loops in numpy: TensorFlow's padding, frozen normalisation, shortcuts; masks; the published size."""
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_models import CONTEXT, DIM, EOT, TEXT, VOCAB, close, init, paths, pixels, shapes

from mcd_jax.models import towers

STAGES = ((1, 3, 1, 1, 4), (2, 5, 2, 2, 6))
IMAGE = {"name": "efficientnet", "stages": STAGES, "stem_width": 5, "features": 7, "mask_patch": 4}


def make(size=16, **options):
    return towers.make({"image": {**IMAGE, **options}, "text": TEXT, "embed_dim": DIM}, VOCAB, CONTEXT, EOT, size)


def zeros_before(side, kernel, stride, padding):
    """(zeros above the first row, rows of the output). TensorFlow: as few as give ceil(side / stride) rows, the odd one below."""
    if padding == "both":
        return kernel // 2, (side + 2 * (kernel // 2) - kernel) // stride + 1
    out = math.ceil(side / stride)
    return max((out - 1) * stride + kernel - side, 0) // 2, out


def slow_conv(x, kernel, stride, padding, depthwise):
    side, (before, out) = kernel.shape[0], zeros_before(len(x), kernel.shape[0], stride, padding)
    y = np.zeros((out, out, kernel.shape[3]))
    for i in range(out):
        for j in range(out):
            for di in range(side):
                for dj in range(side):
                    row, column = i * stride + di - before, j * stride + dj - before
                    if 0 <= row < len(x) and 0 <= column < len(x):
                        k = kernel[di, dj]
                        y[i, j] += x[row, column] * k[0] if depthwise else x[row, column] @ k
    return y


def slow(params, image, padding="same", eps=1e-3):
    """Features of the last map (h, w, features) of one image, in float64."""
    p = jax.tree.map(lambda x: np.asarray(x, np.float64), params)

    def layer(p, name, x, stride=1, act=True):
        n = p[f"{name}_norm"]
        x = slow_conv(x, p[name]["kernel"], stride, padding, name == "depthwise")
        x = (x - n["mean"]) / np.sqrt(n["var"] + eps) * n["scale"] + n["bias"]
        return np.clip(x, 0, 6) if act else x

    x, number = layer(p, "stem", (image.astype(np.float64) / 255 - 0.5) / 0.5, 2), 0
    for repeats, _, stride, expansion, _ in STAGES:
        for step in [stride] + [1] * (repeats - 1):
            block, before = p[f"block_{number}"], x
            x = layer(block, "expand", x) if expansion > 1 else x
            x = layer(block, "project", layer(block, "depthwise", x, step), act=False)
            x = x + before if step == 1 and x.shape == before.shape else x
            number += 1
    return layer(p, "head", x)


@pytest.mark.parametrize("size, padding, depthwise", [
    (16, "same", "sum"), (18, "same", "conv"), (17, "same", "sum"), (17, "same", "conv"), (16, "both", "conv"),
    (17, "both", "sum")])
def test_features_equal_the_slow_form(size, padding, depthwise):
    """An even side, one that becomes odd on the way, an odd one, and PyTorch's padding."""
    built = make(size, padding=padding, depthwise=depthwise)
    params = jax.tree.map(lambda x: 2 * x, init(built))   # so that ReLU6 cuts on both sides
    images = pixels(2, size)
    out = jax.jit(built.image)(params, images)
    for i, image in enumerate(np.asarray(images)):
        want = slow(params["image"], image, padding)
        assert 0 < (want == 0).mean() < 1
        np.testing.assert_allclose(out["tokens"][i], want.reshape(-1, 7), rtol=2e-4, atol=2e-4)
        np.testing.assert_allclose(out["pooled"][i], want.mean((0, 1)), rtol=2e-4, atol=2e-4)


def test_statistics_get_no_gradient():
    built = make()
    params = init(built)
    grads = jax.jit(jax.grad(lambda p: (built.image(p, pixels())["z"][:, 0] ** 2).sum()))(params)["image"]
    leaves = jax.tree_util.tree_leaves_with_path(grads)
    still = {"/".join(k.key for k in path) for path, g in leaves if not np.asarray(g).any()}
    layers = ["stem", "head"]
    layers += [f"block_{i}/{name}" for i in range(3) for name in ("expand", "depthwise", "project")[not i:]]
    assert still == {f"{name}_norm/{what}" for name in layers for what in ("mean", "var")}


def test_masked_patches_have_no_influence():
    built = make()
    params, keep = init(built), jnp.asarray([[0, 5, 6, 15]] * 3)
    hidden = np.ones((4, 4), bool)
    hidden[np.unravel_index([0, 5, 6, 15], (4, 4))] = False
    hidden = hidden.repeat(4, 0).repeat(4, 1)[None, :, :, None]
    image = jax.jit(built.image)
    close(image(params, jnp.where(hidden, 200, pixels()).astype(jnp.uint8), keep)["z"], image(params, pixels(), keep)["z"])
    assert built.num_patches((1, 16, 16, 3)) == 16
    with pytest.raises(ValueError, match=r"18x18 px can't be cut into patches of config\.model\.image\.mask_patch=4"):
        built.num_patches((1, 18, 18, 3))


def test_lite0_has_the_published_size():
    """timm's tf_efficientnet_lite0 has 4,652,008 parameters, 1,281,000 in its classifier; the two statistics aren't among them."""
    image = {"name": "efficientnet", "variant": "lite0"}
    built = towers.make({"image": image, "text": TEXT, "embed_dim": DIM}, VOCAB, CONTEXT, EOT, 32)
    found = paths({k: v for k, v in shapes(built)["image"].items() if k != "proj"})
    statistics = sum(math.prod(shape) for path, shape in found.items() if path.endswith(("/mean", "/var")))
    assert sum(math.prod(shape) for shape in found.values()) - statistics == 4_652_008 - 1_281_000
    assert found["head/kernel"] == (1, 1, 320, 1280) and found["block_15/depthwise/kernel"] == (3, 3, 1, 1152)


@pytest.mark.parametrize("options, words", [
    (dict(variant="lite9"), "efficientnet variant='lite9' is unknown; there are lite0"),
    (dict(stages=((1, 4, 1, 1, 4),)), r"a stage is \(repeats, odd kernel"),
    (dict(stages=()), "stages is empty"),
    (dict(padding="valid"), r"config\.model\.image\.padding='valid' is not one of 'same', 'both'"),
])
def test_what_does_not_fit_is_refused(options, words):
    with pytest.raises(ValueError, match=words):
        make(**options)
