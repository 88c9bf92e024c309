"""FILIP's loss: known numbers, the dense formula and its gradient, devices, tiles, padding; what it stores and what it sends."""
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mcd_jax.costs import hlo
from mcd_jax.losses import token_wise
from mcd_jax.sharding import mesh as mesh_lib

B, P, Q, D = 16, 5, 6, 8
MESHES = {"1": ({}, 1), "2 data": ({"data": 2}, 2), "2 data x 2 fsdp": ({"data": 2, "fsdp": 2}, 4)}


def unit(x):
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def of_reference():
    """Patches (3, 5, 8), words (3, 6, 8) and which are valid, behind the draws that other methods' figures of that script take."""
    draw = np.random.default_rng(0)
    for shape in ((4, 4, 8), (6, 8), (4, 4, 8)):
        draw.standard_normal(shape)
    patches, words = unit(draw.standard_normal((3, 5, 8))), unit(draw.standard_normal((3, 6, 8)))
    return np.float32(patches), np.float32(words), np.arange(6)[None] < np.array([6, 4, 3])[:, None]


def tokens(size=B, seed=0):
    draw = np.random.default_rng(seed)
    patches, words = (np.float32(unit(draw.standard_normal((size, n, D)))) for n in (P, Q))
    return jnp.asarray(patches), jnp.asarray(words), jnp.asarray(np.arange(Q)[None] < draw.integers(1, Q + 1, size)[:, None])


@pytest.mark.parametrize("pads, implementation, first, value", [
    ("masked", "ring", (0.385736, 0.279455, 0.262767), 0.717091), ("zero", "gather", (0.385736, 0.279455, 0.314551), 0.674279),
    ("counted", "ring", (0.385736, 0.338401, 0.343792), 0.588120)])
def test_filip_three_images_and_texts(pads, implementation, first, value):
    patches, words, valid = of_reference()
    words = token_wise.words(jnp.asarray(words), jnp.asarray(valid), pads)
    to_text, to_image = token_wise.similarities(patches, words)
    np.testing.assert_allclose(to_text[0], first, atol=1e-6)
    if pads == "masked":
        np.testing.assert_allclose(to_image[:, 0], (0.319258, 0.354935, 0.432302), atol=1e-6)
    assert float(token_wise.loss(jnp.asarray(patches), words, 10.0, 0, implementation)) == pytest.approx(value, abs=2e-6)


def test_filip_tokens_selected_as_in_the_released_code():
    patches, words, valid = of_reference()
    words = token_wise.words(jnp.asarray(words), jnp.asarray(valid), "counted")
    some, chosen = token_wise.select_tokens(jnp.asarray(patches), words, 2)
    places = [[[int(np.argmax(np.asarray(every[i]) @ np.asarray(one))) for one in own] for i, own in enumerate(kept)]
              for every, kept in ((patches, some), (words.tokens, chosen.tokens))]
    assert places == [[[1, 2], [4, 3], [0, 4]], [[0, 3], [0, 5], [5, 4]]]
    assert float(token_wise.loss(jnp.asarray(patches), words, 10.0, 2)) == pytest.approx(0.312465, abs=2e-6)
    assert token_wise.select_tokens(jnp.asarray(patches), words, 99)[0].shape == patches.shape


def dense(patches, tokens, scale, valid, pads="masked"):
    """The formula with all similarities at once."""
    product = jnp.einsum("ipd,jqd->ijpq", patches, tokens, precision=jax.lax.Precision.HIGHEST)
    if pads == "zero":
        product = jnp.where(valid[None, :, None], product, 0.0)
    looked = jnp.where(valid[None, :, None], product, -1e30) if pads == "masked" else product
    own = jnp.ones_like(valid) if pads == "counted" else valid
    to_text = looked.max(3).mean(2)
    to_image = jnp.sum(product.max(2) * own[None], axis=2) / own.sum(1)[None]
    return -0.5 * jnp.mean(jnp.diag(jax.nn.log_softmax(scale * to_text, axis=1) + jax.nn.log_softmax(scale * to_image, axis=0)))


def tiled(patches, tokens, scale, valid, pads="masked", implementation="ring", select=0):
    return token_wise.loss(patches, token_wise.words(tokens, valid, pads), scale, select, implementation)


def close(got, want):
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
        assert np.linalg.norm(a - b) <= 1e-5 * max(np.linalg.norm(b), 1e-3), (a, b)


def both(fn, mesh, args, **how):
    """(loss, gradients of patches, words and scale) on a mesh."""
    patches, words, scale, valid = args
    run = jax.jit(jax.value_and_grad(partial(fn, **how), argnums=(0, 1, 2)))
    config, devices = MESHES[mesh]
    mesh = mesh_lib.make(config, jax.devices()[:devices])
    with jax.set_mesh(mesh):
        patches, words, valid = jax.device_put((patches, words, valid), mesh_lib.batch_sharding(mesh))
        return run(patches, words, scale, valid)


@pytest.mark.parametrize("pads, implementation, mesh", [
    *(("masked", "ring", mesh) for mesh in MESHES), ("masked", "gather", "2 data"), ("zero", "ring", "2 data x 2 fsdp"),
    ("counted", "gather", "2 data x 2 fsdp")])
def test_filip_equals_the_dense_formula(pads, implementation, mesh, monkeypatch):
    """Value and gradients, in tiles of 3 rows: no number of devices here divides evenly."""
    monkeypatch.setattr(token_wise, "TILE_FLOATS", 3 * 3 * P * Q + 1)
    patches, words, valid = tokens()
    args = patches, words, jnp.float32(6.0), valid
    assert token_wise.tile_of(P, Q) == 3
    close(both(tiled, mesh, args, pads=pads, implementation=implementation), both(dense, "1", args, pads=pads))


def test_filip_selected_tokens_on_devices(monkeypatch):
    monkeypatch.setattr(token_wise, "TILE_FLOATS", 3 * 3 * P * Q)
    patches, words, valid = tokens()
    args = patches, words, jnp.float32(6.0), valid
    want = both(tiled, "1", args, implementation="gather", select=2)
    close(both(tiled, "2 data x 2 fsdp", args, select=2), want)
    assert abs(float(want[0]) - float(dense(*args))) > 0.01


def test_filip_padding_never_wins_and_learns_nothing():
    """Padding that equals every patch would win each search."""
    patches, words, valid = tokens()
    words = jnp.where(valid[:, :, None], words, patches[:, :1])
    other = jnp.where(valid[:, :, None], words, -words)
    for pads, same in (("masked", True), ("zero", True), ("counted", False)):
        values = [float(tiled(patches, w, 6.0, valid, pads)) for w in (words, other)]
        assert (values[0] == values[1]) == same
        grad = jax.grad(tiled, argnums=1)(patches, words, 6.0, valid, pads)
        assert np.any(grad[~np.asarray(valid)]) != same and np.any(grad[np.asarray(valid)])
    alone = jnp.zeros_like(valid)   # a text without a valid token has its first
    first = valid.at[:].set(False).at[:, 0].set(True)
    np.testing.assert_allclose(tiled(patches, words, 6.0, alone), dense(patches, words, 6.0, first), rtol=1e-5)
    with pytest.raises(ValueError, match="pads='none' must be one of masked, zero, counted"):
        token_wise.words(words, valid, "none")


def test_filip_words_can_travel_as_bfloat16():
    patches, words, valid = tokens()
    rounded = words.astype(jnp.bfloat16).astype(jnp.float32)
    np.testing.assert_allclose(tiled(patches, words, 50.0, valid, implementation="ring_bf16"),
                               tiled(patches, rounded, 50.0, valid), rtol=1e-5)


def compiled(implementation, size, devices=4, patches=7, words=9):
    mesh = mesh_lib.make({"data": devices}, jax.devices()[:devices])
    shape = lambda *of, dtype=jnp.float32: jax.ShapeDtypeStruct((size, *of), dtype, sharding=mesh_lib.batch_sharding(mesh))
    args = shape(patches, D), shape(words, D), jnp.float32(9.0), shape(words, dtype=bool)
    with jax.set_mesh(mesh):
        return jax.jit(jax.value_and_grad(partial(tiled, implementation=implementation), argnums=(0, 1, 2))).lower(*args).compile()


@pytest.mark.parametrize("implementation", ["ring", "gather"])
def test_filip_memory_grows_with_the_rows_of_a_device(implementation, monkeypatch):
    """Twice the batch is four times the similarities; a device holds twice as many tokens, and gathered two logits of a pair."""
    monkeypatch.setattr(token_wise, "TILE_FLOATS", 16 * 16 * 7 * 9)
    small, large = (compiled(implementation, n).memory_analysis().temp_size_in_bytes for n in (512, 1024))
    logits = 0 if implementation == "ring" else 8 * 4 * 1024 * 1024 / 4   # eight such arrays of a device at most
    assert large - logits < 2.1 * small and large < 4 * 1024 * 1024 * 7 * 9 / 4 / 2, (small, large)


def test_filip_what_travels():
    """Ring: words and their sums, words and their gradient; gathered: once ahead of the loop, and their gradient once behind it."""
    found = hlo.collectives(compiled("ring", 64).as_text())
    assert set(found) == {"collective-permute", "all-reduce"} and found["all-reduce"]["bytes"] <= 64, found
    text = compiled("gather", 64).as_text()
    assert "all-gather" in hlo.collectives(text) and not hlo.collectives(text, loops_only=True)
