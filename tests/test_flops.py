import jax
import jax.numpy as jnp
import pytest

from mcd_jax import flops, tally
from mcd_jax.models import towers

CONTEXT, VOCAB, EOT = 16, 64, 2
TEXT = {"name": "text", "width": 384, "depth": 1, "num_heads": 6, "mlp_dim": 1536}
IMAGES = {
    "vit": {"name": "vit", "width": 384, "depth": 1, "num_heads": 6, "patch_size": 8, "pool": "map"},
    "small resnet": {"name": "resnet", "widths": (64, 128, 256), "depths": (1, 1, 1), "stem_patch": 4},
    "clip resnet": {"name": "resnet", "widths": (128, 256), "depths": (1, 2), "stem": "clip", "stem_width": 32,
                    "block": "bottleneck", "norm": "frozen", "pool": "attention", "proj": "biased"},
    "efficientnet": {"name": "efficientnet", "stages": ((1, 3, 1, 1, 32), (2, 5, 2, 6, 48), (1, 3, 2, 6, 96))},
}


def compiled(fn, *shapes):
    return jax.jit(fn).lower(*shapes).compile().cost_analysis()["flops"]


@pytest.mark.parametrize("image", IMAGES.values(), ids=IMAGES)
def test_image_flops_agree_with_the_compiler(image):
    side, batch = 32 if image["name"] == "vit" else 64, 2
    config = {"image": image, "text": TEXT, "embed_dim": 64}
    built = towers.make(config, VOCAB, CONTEXT, EOT, side)
    params = jax.eval_shape(built.init, jax.random.key(0))
    pixels = jax.ShapeDtypeStruct((batch, side, side, 3), jnp.uint8)
    counted = compiled(lambda p, x: built.image(p, x)["raw"], params, pixels) / batch
    assert flops.forward(config, VOCAB, CONTEXT, EOT, side)["image"] == pytest.approx(counted, rel=0.05)


def test_text_and_kept_patches_agree_with_the_compiler():
    config = {"image": {**IMAGES["vit"], "pool": "class"}, "text": TEXT, "embed_dim": 64}
    built = towers.make(config, VOCAB, CONTEXT, EOT, 32)
    params = jax.eval_shape(built.init, jax.random.key(0))
    got = flops.forward(config, VOCAB, CONTEXT, EOT, 32, keep=0.5)
    text = compiled(lambda p, t: built.text(p, t)["raw"], params, jax.ShapeDtypeStruct((4, CONTEXT), jnp.int32)) / 4
    assert got["text"] == pytest.approx(text, rel=0.05)
    image = compiled(lambda p, x, ids: built.image(p, x, ids)["raw"], params, jax.ShapeDtypeStruct((4, 32, 32, 3), jnp.uint8),
                     jax.ShapeDtypeStruct((4, 8), jnp.int32)) / 4
    assert got["image"] == pytest.approx(image, rel=0.05)


def test_bert_costs_as_much_as_a_text_transformer_of_its_size():
    """The norms stand elsewhere; matrix products are the same."""
    config = {"image": IMAGES["vit"], "text": TEXT, "embed_dim": 64}
    bert = {**config, "text": {**TEXT, "name": "bert"}}
    assert flops.forward(bert, VOCAB, CONTEXT, EOT, 32) == flops.forward(config, VOCAB, CONTEXT, EOT, 32)
    built = towers.make(bert, VOCAB, CONTEXT, EOT, 32)
    params = jax.eval_shape(built.init, jax.random.key(0))
    counted = tally.count(lambda p, t: built.text(p, t)["raw"], params, jax.ShapeDtypeStruct((4, CONTEXT), jnp.int32)) / 4
    assert flops.forward(bert, VOCAB, CONTEXT, EOT, 32)["text"] == counted


@pytest.mark.parametrize("experts", [None, {"num": 4, "k": 2, "capacity": 1.0, "group_size": 4}])   # as many places as choices
def test_flops_of_a_shared_tower_with_and_without_limoe_experts(experts):
    shared = {"width": 64, "depth": 3, "num_heads": 2, "patch_size": 8, "mlp_dim": 128, **({"experts": experts} if experts else {})}
    config = {"shared": shared, "embed_dim": 32}
    built = towers.make(config, VOCAB, CONTEXT, EOT, 32)
    params = jax.eval_shape(built.init, jax.random.key(0))
    got = flops.forward(config, VOCAB, CONTEXT, EOT, 32)
    pixels, tokens = jax.ShapeDtypeStruct((4, 32, 32, 3), jnp.uint8), jax.ShapeDtypeStruct((4, CONTEXT), jnp.int32)
    for kind, one, rows in (("image", built.image, pixels), ("text", built.text, tokens)):
        keys = jax.random.key(0)[None] if experts else None
        counted = tally.count(lambda p, x, one=one, keys=keys: one(p, x, keys=keys)["raw"], params, rows) / 4
        assert got[kind] == pytest.approx(counted, rel=0.01 if experts else 1e-6)   # the weighted sum of k results is small


def test_published_flops():
    """OpenCLIP's table (docs/model_profile.csv): 14.78 GFLOPs for a pair of ViT-B/32 and 18.18 of RN50, which counts products with
    padding and the unused queries of the attention pooling."""
    clip = {"image": {"name": "vit", "variant": "B/32"}, "text": {"name": "text", "variant": "clip-B"}, "embed_dim": 512}
    assert sum(flops.forward(clip, 49408, 77, 49407, 224).values()) == pytest.approx(14.78e9, rel=0.01)
    resnet = {**clip, "image": {"name": "resnet", "variant": "RN50"}, "embed_dim": 1024}
    assert sum(flops.forward(resnet, 49408, 77, 49407, 224).values()) == pytest.approx(18.18e9, rel=0.06)


def test_peak():
    assert flops.peak("TPU v5 lite") == flops.peak("TPU v5e") == 197e12
    assert flops.peak("TPU v5p") == 459e12 and flops.peak("NVIDIA H100 80GB HBM3") == 989e12
    assert flops.peak("cpu") is None and flops.peak("TPU v50") is None


def test_a_tower_without_a_formula_is_refused(monkeypatch):
    monkeypatch.delitem(flops.FORMULAS, "vit")
    with pytest.raises(ValueError, match="no FLOP formula"):
        flops.forward({"image": IMAGES["vit"], "text": TEXT, "embed_dim": 64}, VOCAB, CONTEXT, EOT, 32)
