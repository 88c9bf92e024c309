import functools
import re

import jax
import jax.numpy as jnp
from jax.sharding import AxisType
import numpy as np
import pytest

from mcd_jax.models import conv, towers, transformer, variants
from mcd_jax.sharding import constrain

SIZE, CONTEXT, VOCAB, EOT, DIM = 16, 6, 24, 2, 8
VIT = {"name": "vit", "width": 16, "depth": 2, "num_heads": 2, "mlp_dim": 32, "patch_size": 4}
RESNET = {"name": "resnet", "widths": (8, 16), "depths": (1, 1), "stem_patch": 2, "mask_patch": 4}
TEXT = {"name": "text", "width": 16, "depth": 2, "num_heads": 2, "mlp_dim": 32}


def make(image=None, text=None, **model):
    config = {"image": {**VIT, **(image or {})}, "text": {**TEXT, **(text or {})}, "embed_dim": DIM, **model}
    return towers.make(config, VOCAB, CONTEXT, EOT, SIZE)


def resnet(**options):
    return towers.make({"image": {**RESNET, **options}, "text": TEXT, "embed_dim": DIM}, VOCAB, CONTEXT, EOT, SIZE)


def init(built, seed=0):
    """Random parameters by numpy: compiling the real initialisation takes longer than most tests."""
    rng = np.random.default_rng(seed)

    def draw(path, leaf):
        around = path[-1].key in ("scale", "var")
        return jnp.asarray(around + rng.uniform(-0.3, 0.3, leaf.shape), jnp.float32)
    return jax.tree_util.tree_map_with_path(draw, shapes(built))


def pixels(batch=3, side=SIZE, seed=0):
    return jnp.asarray(np.random.default_rng(seed).integers(0, 256, (batch, side, side, 3), np.uint8))


def tokens():
    return jnp.asarray([[5, 6, 7, 8, EOT, 0], [9, EOT, 0, 0, 0, 0], [4, 5, 6, 7, 8, EOT]], jnp.int32)


def paths(tree):
    return {"/".join(k.key for k in path): leaf.shape for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def shapes(built):
    return jax.eval_shape(built.init, jax.random.key(0))


def close(a, b, tolerance=1e-5):
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=tolerance, atol=tolerance), a, b)


# ---- names and shapes ------------------------------------------------------------------------------------------------------------

def test_parameter_paths_are_public():
    found = paths(shapes(make(logit_bias=-10.0)))
    block = {"ln1/scale": (16,), "ln1/bias": (16,), "attn/q/kernel": (16, 16), "attn/q/bias": (16,), "attn/k/kernel": (16, 16),
             "attn/k/bias": (16,), "attn/v/kernel": (16, 16), "attn/v/bias": (16,), "attn/out/kernel": (16, 16),
             "attn/out/bias": (16,), "ln2/scale": (16,), "ln2/bias": (16,), "mlp/in/kernel": (16, 32), "mlp/in/bias": (32,),
             "mlp/out/kernel": (32, 16), "mlp/out/bias": (16,)}
    expected = {f"{tower}/block_{i}/{k}": v for tower in ("image", "text") for i in (0, 1) for k, v in block.items()}
    expected |= {"image/patch/kernel": (48, 16), "image/patch/bias": (16,), "image/position": (17, 16), "image/class_token": (16,),
                 "image/ln_post/scale": (16,), "image/ln_post/bias": (16,), "image/proj/kernel": (16, 8),
                 "text/token": (24, 16), "text/position": (6, 16), "text/ln_final/scale": (16,), "text/ln_final/bias": (16,),
                 "text/proj/kernel": (16, 8), "logit_scale": (), "logit_bias": ()}
    assert found == expected


def test_scanned_parameter_paths():
    found = paths(shapes(make({"scan": True, "pool": "map"}, {"scan": True}))["image"])
    assert found["blocks/attn/q/kernel"] == (2, 16, 16)
    assert found["pool/probe"] == (1, 1, 16) and found["pool/mlp/in/kernel"] == (16, 32) and "class_token" not in found


def test_resnet_parameter_paths():
    found = {k for k in paths(shapes(resnet())["image"]) if not k.endswith("bias")}
    assert found == {"stem/kernel", "norm/scale", "proj/kernel", "stage_0_block_0/conv1/kernel", "stage_0_block_0/conv2/kernel",
                     "stage_0_block_0/norm1/scale", "stage_0_block_0/norm2/scale", "stage_1_block_0/conv1/kernel",
                     "stage_1_block_0/conv2/kernel", "stage_1_block_0/norm1/scale", "stage_1_block_0/norm2/scale",
                     "stage_1_block_0/shortcut/kernel"}


@pytest.mark.parametrize("image", [{"pool": "class"}, {"pool": "mean", "position": "sincos2d", "ln_pre": True}, {"pool": "map"}])
def test_vit_outputs(image):
    built = make(image)
    out = jax.eval_shape(built.image, shapes(built), pixels())
    prefix = image["pool"] == "class"
    assert {k: v.shape for k, v in out.items()} == {
        "patches": (3, 16, 16), "block_0": (3, 16 + prefix, 16), "block_1": (3, 16 + prefix, 16), "tokens": (3, 16, 16),
        "pooled": (3, 16), "raw": (3, DIM), "z": (3, DIM)}
    assert built.num_patches((3, SIZE, SIZE, 3)) == 16


def test_resnet_takes_any_size():
    built = resnet()
    params = shapes(built)
    for side, grid in ((16, 4), (24, 6), (10, 2)):
        out = jax.eval_shape(built.image, params, pixels(side=side))
        assert out["z"].shape == (3, DIM) and out["tokens"].shape == (3, grid * grid, 16)
    assert built.num_patches((3, 24, 16, 3)) == 24


def test_clip_resnet_sizes():
    """38.32 M parameters as in OpenCLIP's table (docs/model_profile.csv); with frozen norms their statistics come on top."""
    text = {**TEXT, "variant": "clip-RN50", "depth": 1, "width": 16, "num_heads": 2}
    config = {"image": {"name": "resnet", "variant": "RN50", "proj": "biased"}, "text": text, "embed_dim": 1024}
    built = towers.make(config, VOCAB, CONTEXT, EOT, 224)
    assert sum(np.prod(s, dtype=int) for s in paths(shapes(built)["image"]).values()) == 38_316_896
    frozen = towers.make({**config, "image": {**config["image"], "norm": "frozen"}}, VOCAB, CONTEXT, EOT, 224)
    assert {"mean", "var", "scale", "bias"} == set(shapes(frozen)["image"]["stage_0_block_0"]["norm1"])
    out = jax.eval_shape(built.image, shapes(built), pixels(2, 224))
    assert out["tokens"].shape == (2, 49, 2048) and out["pooled"].shape == (2, 2048)


def test_clip_vit_size():
    """CLIP ViT-B/32 has 151,277,313 parameters."""
    image = {"name": "vit", "variant": "B/32", "patch_bias": False, "ln_pre": True, "act": "quick_gelu"}
    config = {"image": image, "text": {"name": "text", "variant": "clip-B", "act": "quick_gelu"}, "embed_dim": 512}
    built = towers.make(config, 49408, 77, 49407, 224)
    assert sum(np.prod(s, dtype=int) for s in paths(shapes(built)).values()) == 151_277_313


def test_variants():
    assert variants.decode_variant("So400m/14") == {"width": 1152, "depth": 27, "mlp_dim": 4304, "num_heads": 16, "patch_size": 14}
    assert variants.decode_variant(None) == {} and "patch_size" not in variants.decode_variant("Ti")
    assert variants.text_variant("clip-L")["width"] == 768 and variants.text_variant("L")["width"] == 1024


# ---- the same function, built differently ----------------------------------------------------------------------------------------

def test_scan_and_remat_equal_the_unrolled_tower():
    plain = make({"drop_path": 0.5})
    params, x = init(plain), pixels()
    noise = jnp.asarray([[0.9, 0.9], [0.1, 0.2], [0.3, 0.8]])

    def loss(built):
        def fn(params):
            out = built.image(params, x, path_noise=noise)
            return (out["z"] * jnp.arange(24.0).reshape(3, DIM)).sum() + out["block_0"].sum()
        return jax.jit(jax.value_and_grad(fn))

    value, gradient = loss(plain)(params)
    close(loss(make({"drop_path": 0.5, "remat": "dots"}))(params), (value, gradient))
    stacked = {**params, "image": transformer.stacked(params["image"])}
    got, scanned = loss(make({"drop_path": 0.5, "scan": True, "remat": "full"}))(stacked)
    close((got, transformer.unstacked(scanned["image"])), (value, gradient["image"]), 1e-4)


def test_keeping_all_patches_is_the_full_image():
    for built in (make(), resnet()):
        ids = towers.draw_keep_ids(jax.random.key(1), 3, 16, 1.0)
        assert (ids == jnp.arange(16)[None]).all()
        all_kept, full = jax.jit(lambda params, ids, built=built: [built.image(params, pixels(), i)["z"] for i in (ids, None)])(
            init(built), ids)
        close(all_kept, full)


def test_kept_patches_keep_their_positions():
    built = make()
    params = init(built)
    ids = towers.draw_keep_ids(jax.random.key(3), 3, 16, 0.5)
    full, kept = jax.jit(lambda params, ids: [built.image(params, pixels(), i)["patches"] for i in (None, ids)])(params, ids)
    close(kept, jnp.take_along_axis(full, ids[:, :, None], axis=1))


def test_masked_patches_have_no_influence():
    ids = towers.draw_keep_ids(jax.random.key(3), 3, 16, 0.5)
    kept = np.zeros((3, 16), bool)
    np.put_along_axis(kept, np.asarray(ids), True, axis=1)
    kept = kept.reshape(3, 4, 1, 4, 1, 1).repeat(4, 2).repeat(4, 4).reshape(3, SIZE, SIZE)
    x = pixels().astype(jnp.float32)
    for built in (make(), resnet()):
        params = init(built)
        grad = jax.jit(jax.grad(lambda x, built=built, params=params: (built.image(params, x, ids)["z"] ** 3).sum()))(x)
        touched = np.abs(np.asarray(grad)).sum(-1) > 0
        assert not touched[~kept].any() and touched[kept].all()


def test_draw_keep_ids():
    ids = np.asarray(towers.draw_keep_ids(jax.random.key(0), 500, 9, 0.5))
    assert ids.shape == (500, 4) and ids.dtype == np.int32 and (np.diff(ids, axis=1) > 0).all()
    counts = np.bincount(ids.ravel(), minlength=9)
    assert ids.max() == 8 and np.abs(counts - 500 * 4 / 9).max() < 60
    assert towers.draw_keep_ids(jax.random.key(0), 2, 9, 0.01).shape == (2, 1)
    with pytest.raises(ValueError, match="share of patches"):
        towers.draw_keep_ids(jax.random.key(0), 2, 9, 0.0)


def test_drop_path():
    gain = np.asarray(transformer.path_gain(jax.random.uniform(jax.random.key(0), (20_000, 3)), 0.4, 3))
    np.testing.assert_allclose(gain.mean(1), 1.0, atol=0.02)
    np.testing.assert_allclose((gain == 0).mean(1), (0.0, 0.2, 0.4), atol=0.01)
    assert transformer.path_gain(jnp.ones((4, 3)), 0.0, 3) is None and transformer.path_gain(None, 0.4, 3) is None
    built = make({"drop_path": 0.5})
    params, x = init(built), pixels()
    out = jax.jit(lambda params: built.image(params, x, path_noise=jnp.zeros((3, 2))))(params)
    close(out["block_1"], out["block_0"])  # the last block dropped: the identity
    assert built.path_depth == {"image": 2, "text": 0}


# ---- numbers ---------------------------------------------------------------------------------------------------------------------

def test_bfloat16_keeps_float32_parameters_and_embeddings():
    full, half = make(), make(dtype="bfloat16")
    params = init(half)
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype("float32")}
    out = jax.jit(half.image)(params, pixels())
    assert out["tokens"].dtype == jnp.bfloat16 and out["z"].dtype == out["raw"].dtype == jnp.float32
    np.testing.assert_allclose(np.linalg.norm(out["z"], axis=1), 1.0, rtol=1e-6)
    cosine = (out["z"] * jax.jit(full.image)(params, pixels())["z"]).sum(1)
    assert (cosine > 0.999).all()


def test_initialisation():
    """Real initial values: deterministic in the key, unit-size activations, a depth-scaled residual stream, CLIP's temperature."""
    built = make({"width": 64, "depth": 1, "mlp_dim": 128}, {"depth": 1})
    start = jax.jit(built.init)
    params = start(jax.random.key(0))
    close(start(jax.random.key(0)), params)
    image = params["image"]
    block = image["block_0"]
    for kernel, std in ((block["attn"]["q"]["kernel"], 64 ** -0.5), (block["mlp"]["out"]["kernel"], 128 ** -0.5),
                        (image["proj"]["kernel"], 64 ** -0.5), (params["text"]["token"], 0.02)):
        np.testing.assert_allclose(np.std(kernel), std, rtol=0.1)
    np.testing.assert_allclose(built.scale(params), 1 / 0.07, rtol=1e-6)
    assert np.abs(block["attn"]["q"]["kernel"] - block["attn"]["k"]["kernel"]).max() > 0.01


def test_unit_has_a_finite_gradient_at_zero():
    z, grad = jax.value_and_grad(lambda x: towers.unit(x).sum())(jnp.zeros((2, 3)))
    assert z == 0 and np.isfinite(grad).all()


def test_scale_and_bias():
    built = make(logit_bias=-10.0)
    params = {"logit_scale": jnp.float32(0.0), "logit_bias": jnp.float32(-10.0)}
    assert built.scale(params) == 1 and built.bias(params) == -10
    assert make().bias({"logit_scale": jnp.float32(0.0)}) == 0


def test_pixels_are_normalised_inside():
    grey = jnp.full((1, SIZE, SIZE, 3), 102, jnp.uint8)
    built = make(mean=(0.4, 0.4, 0.4), std=0.2)
    params = init(built)
    out = jax.jit(built.image)(params, grey)
    expected = (params["image"]["patch"]["bias"][None] + params["image"]["position"][1:])[None]  # zero pixels add nothing
    close(out["patches"], expected)


# ---- what is refused -------------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize(("kind", "options", "sentence"), [
    ("image", {"name": "resnext"}, "no model module 'resnext'"),
    ("image", {"name": "text"}, "no image tower"),
    ("text", {"name": "vit"}, "no text tower"),
    ("image", {"widht": 16}, "config.model.image has no key 'widht'"),
    ("image", {"image_size": 32}, "no key 'image_size'"),
    ("image", {"width": 18, "num_heads": 4}, "width=18 must be a multiple of num_heads=4"),
    ("image", {"width": "16"}, "width='16' should be a value like"),
    ("image", {"patch_size": 5}, "patches of patch_size=5"),
    ("image", {"variant": "XXL/16"}, "variant='XXL/16' is unknown"),
    ("image", {"variant": "B/x"}, "after the slash"),
    ("image", {"pool": "max"}, "config.model.image.pool='max' is not one of"),
    ("image", {"remat": "some"}, "remat='some' is not one of"),
    ("image", {"proj": "none"}, "needs the tower's width 16 to equal embed_dim=8"),
    ("text", {"act": "swish"}, "config.model.text.act='swish'"),
    ("text", {"pool": "class"}, "causal"),
    ("text", {"drop_path": 1.0}, "must be in"),
    ("text", {"spare_ids": -1}, "spare_ids=-1 must be at least 0"),
])
def test_refused_options(kind, options, sentence):
    with pytest.raises(ValueError, match=re.escape(sentence)):
        shapes(make(**{kind: options}))


def test_refused_models_and_sizes():
    with pytest.raises(ValueError, match="has no key 'embed_dims'"):
        make(embed_dims=8)
    with pytest.raises(ValueError, match="dtype='float16'"):
        make(dtype="float16")
    with pytest.raises(ValueError, match="one entry per stage"):
        resnet(depths=(1,))
    with pytest.raises(ValueError, match="grad_rows=-1"):
        resnet(grad_rows=-1)
    with pytest.raises(ValueError, match="16x16 px are smaller than the 32 px"):
        resnet(stem_patch=16)
    built = make({"drop_path": 0.1})
    with pytest.raises(ValueError, match="built for images of 16x16 px and got 24x24"):
        jax.eval_shape(built.image, shapes(built), pixels(side=24))
    with pytest.raises(ValueError, match="mask_patch=4"):
        resnet().num_patches((1, 18, 16, 3))
    with pytest.raises(ValueError, match="text has 7 tokens"):
        jax.eval_shape(built.text, shapes(built), jnp.zeros((1, 7), jnp.int32))
    with pytest.raises(ValueError, match=r"path_noise has shape \(3, 5\)"):
        jax.eval_shape(built.image, shapes(built), pixels(), None, jnp.zeros((3, 5)))
    with pytest.raises(ValueError, match="grid of 16 cells and got 36"):
        attention = resnet(pool="attention")
        jax.eval_shape(attention.image, shapes(attention), pixels(side=24))


# ---- mesh ------------------------------------------------------------------------------------------------------------------------

def test_activations_are_split_over_the_batch_axes():
    mesh = jax.make_mesh((2, 2), ("data", "fsdp"), axis_types=(AxisType.Auto,) * 2)
    x = jnp.ones((8, 3, 4))
    assert constrain.shard_batch(x) is x
    with jax.set_mesh(mesh):
        out = jax.jit(constrain.shard_batch)(x)
        assert out.sharding.shard_shape(out.shape) == (2, 3, 4)
        odd = jax.jit(constrain.shard_batch)(x[:3])
        assert odd.sharding.shard_shape(odd.shape) == (3, 3, 4)


def test_sliced_convolution_is_the_convolution():
    rng = np.random.default_rng(0)
    x, kernel, grad = (jnp.asarray(rng.normal(size=shape), jnp.float32) for shape in ((5, 6, 4, 3), (3, 3, 3, 2), (5, 6, 4, 2)))
    plain, pull = jax.vjp(lambda x, kernel: conv.convolve(x, kernel, 1, 1), x, kernel)
    for rows in (2, 8):  # uneven slices, and one slice
        got, pull_sliced = jax.vjp(lambda x, kernel, rows=rows: conv.sliced(x, kernel, 1, rows), x, kernel)
        close(got, plain)
        close(pull_sliced(grad), pull(grad))


@pytest.mark.parametrize("options", [
    {"norm": "group", "grad_rows": 2},
    {"norm": "frozen", "stem": "clip", "stem_width": 4, "block": "bottleneck", "widths": (8,), "depths": (1,)},
])
def test_resnet_norms_learn(options):
    built = resnet(**options)
    params = init(built)
    weights = jnp.arange(24.0).reshape(3, DIM)
    grad = jax.jit(jax.grad(lambda params: (built.image(params, pixels())["z"] * weights).sum()))(params)["image"]
    for path, leaf in jax.tree_util.tree_leaves_with_path(grad):
        assert np.isfinite(leaf).all()
        assert np.any(leaf) == (path[-1].key not in ("mean", "var")), path
