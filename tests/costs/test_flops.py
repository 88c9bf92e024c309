"""FLOPs counted from a trace against the compiler's count and OpenCLIP's published table; the peaks of chips."""
import jax
import jax.numpy as jnp
import pytest

from mcd_jax.costs import count_flops, flops
from mcd_jax.models import towers

CONTEXT, VOCAB, EOT = 16, 64, 2
TEXT = {"name": "text", "width": 384, "depth": 1, "num_heads": 6, "mlp_dim": 1536}
VIT = {"name": "vit", "width": 384, "depth": 1, "num_heads": 6, "patch_size": 8, "pool": "map"}


def passes(config, side, rows=2, context=CONTEXT, vocab=VOCAB, eot=EOT):
    """({"image" or "text": fn(params, input) -> raw embeddings}, shapes of params, of a batch of inputs)."""
    built = towers.make(config, vocab, context, eot, side)
    batch = {"image": jax.ShapeDtypeStruct((rows, side, side, 3), jnp.uint8),
             "text": jax.ShapeDtypeStruct((rows, context), jnp.int32)}
    forward = {"image": lambda p, x: built.image(p, x)["raw"], "text": lambda p, x: built.text(p, x)["raw"]}
    return forward, jax.eval_shape(built.init, jax.random.key(0)), batch


@pytest.mark.parametrize("kind, text", [("image", TEXT), ("text", TEXT), ("text", {**TEXT, "name": "bert"})], ids=str)
def test_they_agree_with_the_compiler(kind, text):
    forward, params, batch = passes({"image": VIT, "text": text, "embed_dim": 64}, 32)
    compiled = jax.jit(forward[kind]).lower(params, batch[kind]).compile().cost_analysis()["flops"]
    assert count_flops.count(forward[kind], params, batch[kind]) == pytest.approx(compiled, rel=0.05)


@pytest.mark.parametrize("image, dim, gflops, rel", [({"name": "vit", "variant": "B/32"}, 512, 14.78, 0.01),
                                                     ({"name": "resnet", "variant": "RN50"}, 1024, 18.18, 0.04)], ids=str)
def test_published_flops(image, dim, gflops, rel):
    """OpenCLIP's table (docs/model_profile.csv), of a pair; of RN50 it counts the unused queries of the attention pooling too."""
    config = {"image": image, "text": {"name": "text", "variant": "clip-B"}, "embed_dim": dim}
    forward, params, batch = passes(config, 224, 1, 77, 49408, 49407)
    total = sum(count_flops.count(forward[kind], params, batch[kind]) for kind in forward)
    assert total == pytest.approx(gflops * 1e9, rel=rel)


def test_peak():
    assert flops.peak("TPU v5 lite") == flops.peak("TPU v5e") == 197e12
    assert flops.peak("TPU v5p") == 459e12 and flops.peak("NVIDIA H100 80GB HBM3") == 989e12
    assert flops.peak("cpu") is None and flops.peak("TPU v50") is None
