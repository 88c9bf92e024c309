"""Swin: windows, shifts and merging against loops in numpy, parameter counts, scanned equal to unrolled, sizes refused."""
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mcd_jax.costs import count_flops
from mcd_jax.models import bert, swin

SMALL = dict(width=8, depths=(2, 4), heads=(1, 2), window=2, patch_size=4, mask_patch=8)


def made(**more):
    return swin.make({**SMALL, **more}, image_size=16, dtype=jnp.float32)


def test_swin_l_and_bert_small_have_the_published_numbers_of_parameters():
    """timm's swin_large_patch4_window7_224 without its head; google/bert_uncased_L-4_H-512_A-8 without its pooler."""
    net = swin.make(dict(variant="L", pool="mean"), image_size=224, dtype=jnp.float32)
    shapes = jax.eval_shape(lambda: net.init(jax.random.key(0), jnp.zeros((1, 224, 224, 3))))
    assert sum(x.size for x in jax.tree.leaves(shapes)) == 194_995_476
    text = bert.make(dict(variant="Small"), vocab_size=30522, context=60, eot=102, dtype=jnp.float32)
    shapes = jax.eval_shape(lambda: text.init(jax.random.key(0), jnp.ones((1, 60), jnp.int32)))
    layer = 12 * 512 ** 2 + 13 * 512            # q k v out, MLP of 2,048, their biases, two norms
    assert sum(x.size for x in jax.tree.leaves(shapes)) == (30522 + 512 + 2 + 2) * 512 + 4 * layer


def test_windows_cut_and_join_and_shifts_hide_what_was_no_neighbour():
    x = np.arange(2 * 4 * 4).reshape(2, 4, 4, 1)
    pieces = swin.cut(jnp.asarray(x), 2)
    np.testing.assert_array_equal(pieces[1, 2].reshape(2, 2), x[1, 2:, :2, 0])
    np.testing.assert_array_equal(swin.join(pieces, 4, 2), x)
    seen, rolled = swin.border(4, 2, 1), np.roll(np.arange(16).reshape(4, 4), (-1, -1), (0, 1))
    for number, window in enumerate(swin.cut(jnp.asarray(rolled)[None, :, :, None], 2)[0, :, :, 0]):
        for a, i in enumerate(np.asarray(window)):
            for b, j in enumerate(np.asarray(window)):
                near = all(abs(p - q) < 2 for p, q in zip(divmod(int(i), 4), divmod(int(j), 4)))
                assert seen[number, a, b] == near
    table = swin.offsets(3)
    assert table[0, 0] == table[4, 4] == 12 and table[0, 8] == 0 and table[8, 0] == 24 and len(np.unique(table)) == 25


def test_merging_takes_rows_first():
    x = jnp.arange(4.0).reshape(1, 2, 2, 1)   # 0 1 / 2 3
    np.testing.assert_array_equal(swin.merged(x)[0, 0, 0], [0, 2, 1, 3])


@pytest.mark.full
def test_scanned_equals_unrolled_and_remade():
    x = jax.random.normal(jax.random.key(0), (2, 16, 16, 3))
    plain = made(pool="query")
    params = plain.init(jax.random.key(1), x)["params"]
    want = plain.apply({"params": params}, x)
    assert want["tokens"].shape == (2, 4, 16) and want["pooled"].shape == (2, 16)
    stacked = {k: v for k, v in params.items() if not k.startswith("stage")}
    for i, depth in enumerate(SMALL["depths"]):
        pairs = [params[f"stage_{i}_pair_{j}"] for j in range(depth // 2)]
        stacked[f"stage_{i}"] = jax.tree.map(lambda *leaves: jnp.stack(leaves), *pairs)
    got = made(pool="query", scan=True, remat="full").apply({"params": stacked}, x)
    np.testing.assert_allclose(got["pooled"], want["pooled"], atol=1e-5)
    dropped = made(drop_path=0.5)
    everything = dropped.apply({"params": params}, x, None, jnp.ones((2, 6)))
    nothing = dropped.apply({"params": params}, x, None, jnp.zeros((2, 6)))
    assert dropped.path_depth == 6 and float(jnp.abs(everything["pooled"] - nothing["pooled"]).max()) > 1e-4


def test_flops_are_near_the_published_ones():
    """34.5 G multiply-adds (Liu et al. 2021, table 1b)."""
    net = swin.make(dict(variant="L", pool="mean"), image_size=224, dtype=jnp.float32)
    x = jax.ShapeDtypeStruct((1, 224, 224, 3), jnp.float32)
    params = jax.eval_shape(net.init, jax.random.key(0), x)["params"]
    forward = lambda params, x: net.apply({"params": params}, x)["pooled"]
    assert jax.eval_shape(forward, params, x).shape == (1, 1536)
    assert abs(count_flops.count(forward, params, x) / 2 / 34.5e9 - 1) < 0.02


@pytest.mark.parametrize("changes, size, words", [
    (dict(depths=(2, 3)), 16, "blocks come in pairs"), (dict(heads=(3, 2)), 16, "must divide the widths"),
    (dict(window=3), 16, "don't fit a Swin transformer"), (dict(), 20, "a multiple of 8 px"), (dict(pool="map"), 16, "pool='map'"),
    (dict(variant="XL"), 16, "swin variant='XL' is unknown; there are T, S, B, L"),
])
def test_what_can_not_be_built_is_refused(changes, size, words):
    with pytest.raises(ValueError, match=words):
        swin.make({**SMALL, **changes}, image_size=size, dtype=jnp.float32)
