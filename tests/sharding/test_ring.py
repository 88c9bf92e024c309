"""The ring against dense sums: values, gradients, devices, uneven tiles; what it stores and what it sends."""
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mcd_jax.costs import hlo
from mcd_jax.losses import contrastive, distill, ssl
from mcd_jax.sharding import mesh as mesh_lib
from mcd_jax.sharding import ring

B, D = 24, 8
MESHES = {"1": ({}, 1), "2 data": ({"data": 2}, 2), "2 data x 2 fsdp": ({"data": 2, "fsdp": 2}, 4),
          "2 slices x 2 tensor": ({"slice": 2, "tensor": 2}, 4)}


def unit(x):
    return x / jnp.linalg.norm(x, axis=-1, keepdims=True)


def rows(seed, size=B):
    return unit(jax.random.normal(jax.random.key(seed), (size, D)))


def on(name, *arrays):
    """(mesh, arrays split over its batch axes)"""
    config, devices = MESHES[name]
    mesh = mesh_lib.make(config, jax.devices()[:devices])
    return mesh, jax.device_put(arrays, mesh_lib.batch_sharding(mesh))


def close(got, want, tolerance=1e-5):
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
        assert np.linalg.norm(a - b) <= tolerance * max(np.linalg.norm(b), 1e-3), (a, b)


LOSSES = {
    "softmax": lambda x, y, scale, bias, implementation: contrastive.softmax(x, y, scale, implementation),
    "sigmoid": contrastive.sigmoid,
    "nt_xent": lambda x, y, scale, bias, implementation: ssl.nt_xent(x, y, 1 / 5.0, implementation),
    "alignment_kl": lambda x, y, scale, bias, implementation: distill.alignment_kl(rows(3), rows(4), x, y, 7.0, scale,
                                                                                   implementation),
}


@pytest.mark.parametrize("mesh", MESHES)
@pytest.mark.parametrize("name", LOSSES)
def test_equals_the_gather_form(name, mesh, monkeypatch):
    equals_the_gather_form(LOSSES[name], mesh, monkeypatch)


def equals_the_gather_form(loss, mesh, monkeypatch):
    """loss(x, y, scale, bias, implementation) in tiles of 5 rows: no number of devices here divides evenly."""
    monkeypatch.setattr(ring, "TILE", 5)
    args = rows(1), rows(2), jnp.float32(6.0), jnp.float32(-2.0)
    gradient = lambda implementation: jax.jit(jax.value_and_grad(lambda *a: loss(*a, implementation), argnums=(0, 1, 2, 3)))
    want = gradient("gather")(*args)
    mesh, split = on(mesh, *args[:2])
    with jax.set_mesh(mesh):
        close(gradient("ring")(*split, *args[2:]), want)


def same_label(rows, keys, i, j):
    return (rows["label"][:, None] != keys["label"][None, :]) | (i == j)


def soft(rows, keys, i, j):
    weights = rows["w"][:, None] * keys["w"][None, :]
    return weights, 2.0 * weights


@pytest.mark.parametrize("mesh", ["1", "2 data x 2 fsdp"])
def test_labels_targets_and_extra_keys(mesh):
    """More keys than rows, pairs of one label left out, weighted sums of logits: against NumPy and against autodiff."""
    x, y, size = rows(1), rows(2, 2 * B), 2 * B
    row_aux = {"label": jnp.arange(B) % 7, "w": jnp.linspace(0.1, 1.0, B)}
    key_aux = {"label": jnp.arange(size) % 7, "w": jnp.linspace(-1.0, 1.0, size)}
    out = [jnp.sin(jnp.arange(n, dtype=jnp.float32) + k) for k, n in enumerate((B, size, B, size))]

    def dense(x, y, scale, bias, row_aux, key_aux):
        logits = scale * contrastive.similarity(x, y) + bias
        i, j = jnp.arange(B)[:, None], jnp.arange(size)[None, :]
        kept = jnp.where(same_label(row_aux, key_aux, i, j), logits, ring.NEVER)
        p, q = soft(row_aux, key_aux, i, j)
        return ring.Sums(jax.nn.logsumexp(kept, 1), jax.nn.logsumexp(kept, 0), jnp.sum(p * logits, 1), jnp.sum(q * logits, 0))

    def tiled(x, y, scale, bias, row_aux, key_aux):
        return ring.lse(x, y, scale, bias, row_aux, key_aux, allow=same_label, target=soft, tile=7)

    def value(sums, *args):
        return sum(jnp.sum(a * b) for a, b in zip(sums(*args), out, strict=True))
    scalars = jnp.float32(3.0), jnp.float32(0.5)
    want = jax.jit(dense)(x, y, *scalars, row_aux, key_aux), jax.jit(jax.grad(partial(value, dense), argnums=(0, 1, 2, 3)))(
        x, y, *scalars, row_aux, key_aux)
    logits = 3.0 * np.asarray(x, np.float64) @ np.asarray(y, np.float64).T + 0.5
    allowed = [[(i % 7 != j % 7) or i == j for j in range(size)] for i in range(B)]
    sums = [sum(np.exp(v) for v, ok in zip(*pair, strict=True) if ok) for pair in zip(logits, allowed, strict=True)]
    close(want[0].row_lse, np.log(sums))
    mesh, (x, y, row_aux, key_aux) = on(mesh, x, y, row_aux, key_aux)
    with jax.set_mesh(mesh):
        close(jax.jit(tiled)(x, y, *scalars, row_aux, key_aux), want[0])
        close(jax.jit(jax.grad(partial(value, tiled), argnums=(0, 1, 2, 3)))(x, y, *scalars, row_aux, key_aux), want[1])


def nobody(rows, keys, i, j):
    return (i != 2) & (i != j)


def test_a_row_without_keys_and_logits_far_apart():
    """Row 2 may not pair with any key; the logits of row 0 are 400 below those of the others. Nothing is NaN or lost."""
    x, y = rows(1).at[0].set(-1.0), jnp.ones((B, D))
    run = jax.jit(jax.value_and_grad(lambda x, y: jnp.sum(jnp.where(
        jnp.arange(B) == 2, 0.0, ring.lse(x, y, 50.0, allow=nobody, tile=6).row_lse)), argnums=(0, 1)))
    value, (dx, dy) = run(x, y)
    want = sum(50.0 * np.sum(np.asarray(x, np.float64)[i]) + np.log(B - 1) for i in range(B) if i != 2)
    np.testing.assert_allclose(value, want, rtol=1e-5)
    assert np.all(np.isfinite(dx)) and np.all(np.isfinite(dy)) and not np.any(dx[2])
    np.testing.assert_allclose(dx[0], np.full(D, 50.0), rtol=1e-5)
    assert ring.lse(x, y, 50.0, allow=nobody).row_lse[2] < -1e29


def weighted_distance(x, y, shared, row_aux, key_aux, i, j):
    return shared * row_aux[:, None] * jnp.sum((x["a"][:, None] - y["b"][None, :]) ** 2, axis=-1) * (i <= j)


@pytest.mark.parametrize("mesh", ["1", "2 data x 2 fsdp"])
def test_sum_of_any_function_of_pairs(mesh):
    x, y, w, c = rows(1), rows(2), jnp.linspace(0.0, 1.0, B), jnp.float32(1.5)
    i = jnp.arange(B)
    dense = lambda x, y, c: jnp.sum(weighted_distance({"a": x}, {"b": y}, c, w, (), i[:, None], i[None, :]))
    want = jax.jit(jax.value_and_grad(dense, argnums=(0, 1, 2)))(x, y, c)
    mesh, (x, y, w) = on(mesh, x, y, w)
    tiled = lambda x, y, c: ring.pair_sum(weighted_distance, {"a": x}, {"b": y}, c, w, tile=5)
    with jax.set_mesh(mesh):
        close(jax.jit(tiled)(x, y, c), want[0])
        close(jax.jit(jax.value_and_grad(lambda *a: 1.0 * tiled(*a), argnums=(0, 1, 2)))(x, y, c), want)


@pytest.mark.parametrize("mesh", ["1", "2 data x 2 fsdp"])
def test_nearest_takes_the_first_of_equals(mesh):
    x = rows(1)
    y = jnp.tile(rows(2, 6), (4, 1))   # every key occurs four times
    want = np.argmax(np.asarray(contrastive.similarity(x, y[:6])), axis=1)
    mesh, (x, y) = on(mesh, x, y)
    with jax.set_mesh(mesh):
        np.testing.assert_array_equal(jax.jit(partial(ring.nearest, tile=5))(x, y), want)
        own = contrastive.accuracy(x, x, "ring")
    assert own == 1.0


def compiled(implementation, size, devices=4, **spec):
    """The softmax loss with its gradient over `size` rows on 4 devices."""
    mesh = mesh_lib.make({"data": devices}, jax.devices()[:devices])
    x = jax.ShapeDtypeStruct((size, D), jnp.float32, sharding=mesh_lib.batch_sharding(mesh))
    with jax.set_mesh(mesh):
        return jax.jit(jax.value_and_grad(lambda x, y: contrastive.softmax(x, y, 10.0, implementation), argnums=(0, 1))).lower(x,
                                                                                                                               x).compile()


def test_memory_grows_with_the_rows_of_a_device(monkeypatch):
    monkeypatch.setattr(ring, "TILE", 64)
    small, large = (compiled("ring", n).memory_analysis().temp_size_in_bytes for n in (4096, 8192))
    dense = [compiled("gather", n).memory_analysis().temp_size_in_bytes for n in (4096, 8192)]
    assert large < 2.2 * small and large < dense[1] / 50
    assert dense[1] > 3.5 * dense[0]


def test_what_travels():
    """Keys and their sums in one pass, keys and their gradient in the other; nothing is gathered, nothing reduced but scalars."""
    found = hlo.collectives(compiled("ring", 256).as_text())
    assert set(found) == {"collective-permute", "all-reduce"}
    assert 8 <= found["collective-permute"]["count"] <= 80 and found["all-reduce"]["bytes"] <= 32, found


def test_keys_can_travel_as_bfloat16():
    x, y = rows(1), rows(2)
    exact, rounded = (ring.lse(x, y, 10.0, transport=t).row_lse for t in (None, jnp.bfloat16))
    want = ring.lse(x, y.astype(jnp.bfloat16).astype(jnp.float32), 10.0).row_lse
    np.testing.assert_allclose(rounded, want, rtol=1e-6)
    assert 1e-6 < np.max(np.abs(rounded - exact)) < 0.05
    for loss in (contrastive.softmax(x, y, 10.0, "ring_bf16"), contrastive.sigmoid(x, y, 10.0, -5.0, "ring_bf16"),
                 distill.alignment_kl(x, y, x, y, 5.0, 10.0, "ring_bf16")):
        assert np.isfinite(loss)
    assert contrastive.softmax(x, y, 10.0, "ring_bf16") != contrastive.softmax(x, y, 10.0, "ring")
    alone = rows(1)[:1]    # one pair: the loss is 0, if the positive is rounded as the logits are
    np.testing.assert_allclose(contrastive.softmax(alone, alone, 100.0, "ring_bf16"), 0.0, atol=2e-5)


def rounded(x):
    return np.asarray(jnp.asarray(x, jnp.bfloat16), np.float64)


def dense_nt_xent(a, b, temperature):
    """NT-Xent in float64 of keys that are rounded, in positives and sums alike."""
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    result = []
    positives = np.sum(a * rounded(b), 1)
    for own, across in ((a, a @ rounded(b).T), (b, rounded(b) @ a.T)):
        within = own @ rounded(own).T
        np.fill_diagonal(within, -np.inf)
        logits = np.concatenate([across, within], 1) / temperature
        top = logits.max(1, keepdims=True)
        result.append(np.log(np.exp(logits - top).sum(1)) + top[:, 0] - positives / temperature)
    return np.mean(result)


@pytest.mark.parametrize("temperature", [0.01, 0.001])
def test_rounding_keys_does_not_bias_a_loss_at_a_low_temperature(temperature):
    """Views that are close: the loss is near 0. Positives that were not rounded as the sums are moved it by .02 and 3 nats."""
    x, y = rows(1), unit(rows(1) + 0.05 * rows(2))
    for loss, want in ((partial(ssl.nt_xent, temperature=temperature), dense_nt_xent(ssl.unit(x), ssl.unit(y), temperature)),
                       (lambda x, y, implementation: contrastive.softmax(x, y, 1 / temperature, implementation), None)):
        found, exact = (float(jax.jit(partial(loss, implementation=name))(x, y)) for name in ("ring_bf16", "gather"))
        assert abs(found - exact) < 2e-3
        if want is not None:
            np.testing.assert_allclose(found, want, rtol=1e-3, atol=5e-4)


def test_keys_that_the_functions_read_travel_once():
    mesh, (x, y) = on("2 data", rows(1), rows(2))

    def sums(x, y, implementation="ring", **how):
        return contrastive.sums(x, y, 5.0, None, x, **how, columns=False, implementation=implementation, target=_by_keys)

    @partial(jax.jit, static_argnums=2)
    def loss(x, y, once):
        how = dict(key_aux={}, own="y") if once else dict(key_aux={"y": y})
        return jax.value_and_grad(lambda x: jnp.sum(sums(x, y, **how).row_target))(x)
    with jax.set_mesh(mesh):
        once, twice = (hlo.collectives(loss.lower(x, y, one).compile().as_text())["collective-permute"]["bytes"]
                       for one in (True, False))
        close(loss(x, y, True), loss(x, y, False))
    close(sums(x, y, key_aux={}, own="y").row_target, sums(x, y, "gather", key_aux={}, own="y").row_target)
    keys = B // 2 * D * 4
    assert twice - once == 2 * 2 * keys   # two passes of two hops


def _by_keys(row, keys, i, j):
    weights = row @ keys["y"].astype(jnp.float32).T
    return weights, jnp.zeros_like(weights)


def test_the_rule_and_its_refusals():
    picks, limit = contrastive.picks_ring, contrastive.GATHER_BYTES
    size = int((limit / 4) ** 0.5)
    assert not picks(size, size, "auto") and picks(2 * size, size, "auto") and picks(2, 2, "ring")
    assert not picks(2 * size, size, "gather")
    mesh, (x,) = on("2 data", rows(1))
    with jax.set_mesh(mesh):
        assert not picks(2 * size, size, "auto") and picks(4 * size, size, "auto")
        with pytest.raises(ValueError, match="23 rows do not divide into 2 devices"):
            ring.lse(x[:23], x, 1.0)
    with pytest.raises(ValueError, match=r"implementation='rings'.*auto, gather, ring, ring_bf16"):
        contrastive.softmax(x, x, 1.0, "rings")
