"""Geodesic mixup: golden values, slow loops, limits, and gradients where the plain formula has none."""
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from mcd_jax.costs import hlo
from mcd_jax.losses import contrastive
from mcd_jax.methods.gap import gap_eval
from mcd_jax.methods.m2mix import mixup
from mcd_jax.sharding import mesh as mesh_lib
from mcd_jax.sharding import ring


def unit(x):
    return x / jnp.linalg.norm(x, axis=-1, keepdims=True)


slerp = jax.jit(mixup.slerp)


@functools.cache
def _jitted(loss, more):
    return jax.jit(functools.partial(loss, **dict(more)))


def jitted(loss, **more):
    return _jitted(loss, tuple(sorted(more.items())))


def rows(seed, size=6, dim=5):
    return jnp.asarray(unit(np.random.default_rng(seed).normal(size=(size, dim))), jnp.float32)


# ---- golden values: computed in float64 by an independent implementation and handed to us, inputs by formula

def inputs():
    """Four unit images and texts of six dimensions."""
    n, d = np.indices((4, 6))
    raw = np.sin(0.7 * (6 * n + d) + 0.3), 2 * np.sin(0.9 * (6 * n + d) + 1.1)
    return [jnp.asarray(x / np.linalg.norm(x, axis=1, keepdims=True), jnp.float32) for x in raw]


SCALE = 10.0   # temperature 0.1, of all golden values
CLIP = 11.08126213
M2 = {0.0: (11.11928180, 9.57791637, 10.34859909), 0.25: (9.80977017, 9.40785594, 9.60881306),
      0.5: (7.82689235, 11.47030044, 9.64859640), 1.0: (6.12888054, 11.04324246, 8.58606150)}


def test_golden_values_of_clip():
    image, text = inputs()
    by_row, by_column = contrastive.lse(image, text, SCALE)
    positive = SCALE * contrastive.matching(image, text)
    halves = jnp.mean(by_row - positive), jnp.mean(by_column - positive)
    np.testing.assert_allclose([*halves, contrastive.softmax(image, text, SCALE)], [11.11928180, 11.04324246, CLIP], rtol=1e-6)


@pytest.mark.parametrize("lam", M2)
@pytest.mark.parametrize("implementation", ["gather", "ring"])
def test_golden_values_of_m2(lam, implementation):
    image, text = inputs()
    mixed = slerp(image, text, lam)
    halves = [jnp.mean(ell) for ell in jitted(mixup.m2_anchors, implementation=implementation)(image, text, mixed, SCALE)]
    mean, both = (jitted(mixup.m2, reduce=reduce, implementation=implementation)(image, text, mixed, SCALE) for reduce in ("mean",
                                                                                                                           "sum"))
    np.testing.assert_allclose([*halves, mean, both / 2], [*M2[lam], M2[lam][2]], rtol=1e-6)


@pytest.mark.parametrize("implementation", ["gather", "ring"])
def test_golden_values_of_the_other_mixes(implementation):
    image, text = inputs()

    def four(lam):
        return [jitted(loss, implementation=implementation, **more)(image, text, lam, SCALE) for loss, more in (
            (mixup.v_mix, {}), (mixup.l_mix, {}), (mixup.vl_mix, {}), (mixup.vl_mix, dict(target="both")))]
    np.testing.assert_allclose(four(0.3), [8.99869345, 5.77082864, 6.40636485, 11.99625091], rtol=1e-6)
    for lam in (0.0, 1.0):
        np.testing.assert_allclose(four(lam), [CLIP, CLIP, CLIP, 18.03760382], rtol=1e-6)


def test_golden_values_of_alignment_and_uniformity():
    image, text = (np.asarray(x, np.float64) for x in inputs())
    np.testing.assert_allclose(
        [gap_eval.uniformity(np.concatenate([image, text])), gap_eval.uniformity(np.concatenate([image, image])),
         gap_eval.uniformity(image)],
        [-1.80544058, -1.24632791, -1.77893050], rtol=1e-6)
    relative = gap_eval.relative_alignment(text, image), gap_eval.relative_alignment(image, text)
    np.testing.assert_allclose([*relative, gap_eval.alignment(image, text)], [2.14213744, 2.19824672, 2.58208012], rtol=1e-6)


# ---- slow loops, one pair at a time, in float64

def slow_slerp(a, b, lam):
    theta = np.arccos(np.clip(np.dot(a, b), -1, 1))
    return (a * np.sin(lam * theta) + b * np.sin((1 - lam) * theta)) / np.sin(theta) if theta > 1e-6 else a


def slow_lse(values):
    top = max(values)
    return top + np.log(sum(np.exp(v - top) for v in values))


def slow_m2(image, text, lam, scale, reduce="mean", negative_scale=None):
    size, total = len(image), 0.0
    mixed = [slow_slerp(image[j], text[j], lam) for j in range(size)]
    for i in range(size):
        for anchor in (image[i], text[i]):
            positive = scale * np.dot(image[i], text[i])
            negatives = [(negative_scale or scale) * np.dot(anchor, mixed[j]) for j in range(size) if j != i]
            total += slow_lse([positive, *negatives]) - positive
    return total / size / (2 if reduce == "mean" else 1)


def slow_mix(image, text, lam, scale, which, target="own", unmixed_negatives=False):
    size = len(image)
    mix = lambda x: [slow_slerp(x[j], x[size - 1 - j], lam) for j in range(size)]
    x, y = mix(image) if "v" in which else image, mix(text) if "l" in which else text
    logits, wanted = np.zeros((size, size)), np.zeros((size, size))
    for i in range(size):
        for j in range(size):
            plain = unmixed_negatives and j not in (i, size - 1 - i)
            logits[i, j] = scale * (np.dot(image[i], text[j]) if plain else np.dot(x[i], y[j]))
        own, other = {"vl": (1, 0) if target == "own" else (1, 1)}.get(which, (lam, 1 - lam))
        wanted[i, i] += own
        wanted[i, size - 1 - i] += other
    total = 0.0
    for table, weights in ((logits, wanted), (logits.T, wanted.T)):
        for i in range(size):
            total -= sum(weights[i, j] * (table[i, j] - slow_lse(list(table[i]))) for j in range(size))
    return total / (2 * size)


def case(name, **more):
    """(fast, slow) of a loss over (image, text, lam, scale)."""
    if name == "m2":
        return (lambda x, y, lam, scale: mixup.m2(x, y, mixup.slerp(x, y, lam), scale, **more),
                lambda x, y, lam, scale: slow_m2(x, y, lam, scale, **more))
    fast = {"v": mixup.v_mix, "l": mixup.l_mix, "vl": mixup.vl_mix}[name]
    return (lambda *args: fast(*args, **more), lambda *args: slow_mix(*args, which=name, **more))


CASES = [("m2", {}), ("m2", dict(reduce="sum")), ("m2", dict(negative_scale=0.01)), ("v", {}), ("l", {}), ("vl", {}),
         ("vl", dict(target="both")), ("v", dict(unmixed_negatives=True)), ("l", dict(unmixed_negatives=True)),
         ("vl", dict(target="both", unmixed_negatives=True))]


@pytest.mark.parametrize("name, more, size", [(*case, size) for case in CASES for size in (6, 5) if case[0] != "m2" or size == 6],
                         ids=str)
def test_value_and_gradient(name, more, size):
    """Against the loop and its finite differences along the sphere; in an odd batch the middle row is its own partner."""
    fast, slow = case(name, **more)
    args = np.asarray(rows(1, size), np.float64), np.asarray(rows(2, size), np.float64), 0.3, 7.0
    value, grads = jax.jit(jax.value_and_grad(lambda x, y, lam, scale: fast(unit(x), unit(y), lam, scale), (0, 1, 2, 3)))(
        *[jnp.asarray(a, jnp.float32) for a in args])
    normal = lambda a: a / np.linalg.norm(a, axis=1, keepdims=True) if np.ndim(a) == 2 else a
    assert value.dtype == jnp.float32 and value.shape == ()
    np.testing.assert_allclose(value, slow(*args), rtol=2e-5)
    rng = np.random.default_rng(7)
    for i, arg in enumerate(args):
        direction, h = rng.normal(size=np.shape(arg)), 1e-5
        ahead, behind = [slow(*[normal(a) for a in (*args[:i], arg + s * h * direction, *args[i + 1:])]) for s in (1, -1)]
        np.testing.assert_allclose(np.sum(grads[i] * direction), (ahead - behind) / (2 * h), rtol=2e-3, atol=2e-4)


def test_share_of_hard_negatives_against_a_loop():
    x, y = rows(1), rows(2)
    z = mixup.slerp(x, y, 0.4)
    hard = [float(np.dot(a[i], z[j]) > np.dot(x[i], y[i])) for a in (x, y) for i in range(6) for j in range(6) if j != i]
    assert 0.2 < np.mean(hard) < 0.9
    for implementation in ("gather", "ring"):
        share, grads = jax.jit(jax.value_and_grad(lambda x: mixup.hard_share(x, y, z, implementation)))(x)
        np.testing.assert_allclose(share, np.mean(hard), rtol=1e-6)
        assert jitted(mixup.hard_share, implementation=implementation)(x[:1], y[:1], z[:1]) == 0
        assert not np.any(grads)


# ---- the path on the sphere

@pytest.mark.parametrize("lam", [0.0, 0.1, 0.5, 0.8, 1.0])
def test_mixture_has_length_one_and_divides_the_angle(lam):
    a, b = rows(1, 50), rows(2, 50)
    m = np.asarray(slerp(a, b, lam), np.float64)
    angle = lambda x, y: np.arccos(np.clip(np.sum(np.asarray(x, np.float64) * y, axis=1), -1, 1))
    np.testing.assert_allclose(np.linalg.norm(m, axis=1), 1.0, atol=2e-6)
    np.testing.assert_allclose(angle(m, b), lam * angle(a, np.asarray(b)), atol=1e-3)
    np.testing.assert_allclose(m, slerp(b, a, 1 - lam), atol=2e-6)
    np.testing.assert_allclose(m, [slow_slerp(*pair, lam) for pair in zip(np.asarray(a, np.float64), np.asarray(b, np.float64))],
                               atol=5e-6)
    each = slerp(a, b, jnp.full(50, lam))
    np.testing.assert_array_equal(each, slerp(a, b, lam))


tangent_derivatives = jax.jit(jax.jacobian(lambda a, b, lam: mixup.slerp(unit(a[None]), unit(b[None]), lam)[0], (0, 1)))


@pytest.mark.parametrize("angle", [0.0, 1e-7, 1e-5, 0.9e-3, 1.1e-3, 1e-2])
@pytest.mark.parametrize("lam", [0.0, 0.3, 0.5, 1.0])
def test_where_the_two_vectors_coincide(lam, angle):
    """Value and gradient of the limit: the share lam of a move of a, 1 - lam of a move of b; on both sides of the rule."""
    a, aside = jnp.eye(5)[1], jnp.eye(5)[3]
    b = math.cos(angle) * a + math.sin(angle) * aside
    m = slerp(a[None], b[None], lam)[0]
    np.testing.assert_allclose(m, math.cos((1 - lam) * angle) * a + math.sin((1 - lam) * angle) * aside, atol=2e-7)
    across = jnp.eye(5) - jnp.outer(a, a)
    for got, share in zip(tangent_derivatives(a, b, lam), (lam, 1 - lam)):
        np.testing.assert_allclose(got @ across, share * across, atol=2e-4 + 2 * angle)


@pytest.mark.parametrize("lam", [0.0, 0.3, 0.5, 1.0])
def test_where_the_two_vectors_are_opposite(lam):
    """On the unit sphere, at the right angle from both, the same from either end, and the limit of the arcs in that plane."""
    a = rows(3, 20)
    b = -a
    m = slerp(a, b, lam)
    np.testing.assert_allclose(jnp.linalg.norm(m, axis=1), 1.0, atol=1e-6)
    np.testing.assert_allclose(jnp.sum(m * b, axis=1), math.cos(lam * math.pi), atol=1e-6)
    np.testing.assert_allclose(m, slerp(b, a, 1 - lam), atol=1e-6)
    aside = slerp(a, b, 0.5)
    near = slerp(a, unit(-a + 3e-3 * aside), lam)
    np.testing.assert_allclose(m, near, atol=4e-3)
    for da, db in [tangent_derivatives(a[0], b[0], lam)]:
        assert np.all(np.isfinite(da)) and np.all(np.isfinite(db)) and max(np.abs(da).max(), np.abs(db).max()) <= 1.0 + 1e-6
        across = jnp.eye(5) - jnp.outer(a[0], a[0])
        if lam in (0.0, 1.0):
            np.testing.assert_allclose(da @ across, lam * across, atol=1e-6)
            np.testing.assert_allclose(db @ across, (1 - lam) * across, atol=1e-6)


@pytest.mark.parametrize("name, more", CASES, ids=str)
def test_finite_gradients_of_every_loss(name, more):
    """Equal, opposite and zero embeddings, all rows alike, one pair, exact coefficients 0 and 1, bfloat16."""
    fast, _ = case(name, **more)
    run = jax.jit(jax.value_and_grad(fast, (0, 1, 2, 3)))
    x, same = rows(1), jnp.tile(rows(1)[:1], (6, 1))
    low = [(x.astype(jnp.bfloat16), x)] if CASES.index((name, more)) in (0, 9) else []
    for pair in ((x, x), (x, -x), (0 * x, 0 * x), (same, same), (same, x), (x, mixup.partner(x)), *low):
        for lam in (0.0, 0.3, 1.0):
            value, grads = run(*pair, lam, 100.0)
            assert np.isfinite(value) and all(np.all(np.isfinite(np.asarray(g, np.float32))) for g in grads), (name, lam)
    value, grads = run(x[:1], -x[:1], 0.3, 100.0)
    assert np.isfinite(value) and all(np.all(np.isfinite(g)) for g in grads)


# ---- limits

@pytest.mark.parametrize("size", [6, 5])
@pytest.mark.parametrize("unmixed", [False, True])
def test_the_unimodal_mixes_and_vl_are_clip_at_both_ends(size, unmixed):
    image, text = rows(1, size), rows(2, size)
    want = contrastive.softmax(image, text, 9.0)
    for loss in (mixup.v_mix, mixup.l_mix, mixup.vl_mix):
        ends = {lam: float(jitted(loss, unmixed_negatives=unmixed)(image, text, lam, 9.0)) for lam in (0.0, 0.5, 1.0)}
        # with the negatives left plain, a row at 0 has its partner's positive among its own negatives
        for lam in (1.0,) if unmixed else (0.0, 1.0):
            np.testing.assert_allclose(ends[lam], want, rtol=1e-6, err_msg=f"{loss.__name__} {lam}")
        assert abs(ends[0.5] - want) > 1e-2


def test_what_m2_is_at_the_ends_and_where_the_pairs_coincide():
    image, text = rows(1), rows(2)
    by_row, by_column = contrastive.lse(image, text, 9.0)
    positive = 9.0 * contrastive.matching(image, text)
    m2, anchors, clip = jitted(mixup.m2), jitted(mixup.m2_anchors), jitted(contrastive.softmax)
    np.testing.assert_allclose(anchors(image, text, slerp(image, text, 0.0), 9.0)[0], by_row - positive, atol=1e-5)
    np.testing.assert_allclose(anchors(image, text, slerp(image, text, 1.0), 9.0)[1], by_column - positive, atol=1e-5)
    for lam in (0.0, 0.3, 1.0):
        np.testing.assert_allclose(m2(image, image, slerp(image, image, lam), 9.0), clip(image, image, 9.0), rtol=1e-4)
        assert m2(image[:1], text[:1], slerp(image[:1], text[:1], lam), 9.0) == 0
        assert abs(m2(image, text, slerp(image, text, lam), 9.0) - clip(image, text, 9.0)) > 1e-2


def test_floors():
    eye = jnp.eye(6)
    np.testing.assert_allclose(mixup.vl_mix(eye, eye, 0.5, 200.0), math.log(2), rtol=1e-4)   # partners mix to the same
    np.testing.assert_allclose(mixup.vl_mix(eye, eye, 0.5, 200.0, "both"), 2 * math.log(2), rtol=1e-4)
    np.testing.assert_allclose(mixup.vl_mix(eye, eye, 0.3, 2000.0), 0, atol=1e-4)
    # negatives with a temperature of 100 act as one constant, log(B - 1)
    constant = mixup.m2(eye, eye, eye, 5.0, negative_scale=0.0)
    np.testing.assert_allclose(constant, math.log(math.exp(5) + 5) - 5, rtol=1e-5)


def test_limits_of_the_temperature():
    """Cold: the largest violation by a negative. Hot: how far the mean of the row exceeds the positive."""
    image, text = rows(1, 20, 8), rows(2, 20, 8)
    s = np.asarray(image, np.float64) @ np.asarray(text, np.float64).T
    own = np.diag(s)
    hardest = np.max(np.where(np.eye(20), -np.inf, s), axis=1)
    for tau, want in ((1e-3, np.mean(np.maximum(0, hardest - own))), (1e3, np.mean(np.mean(s, axis=1) - own))):
        ce = np.mean(np.asarray(contrastive.lse(image, text, 1 / tau)[0], np.float64) - own / tau)
        got = tau * ce if tau < 1 else tau * (ce - math.log(20))
        np.testing.assert_allclose(got, want, rtol=1e-3 if tau < 1 else 2e-2)


def test_gradient_reaches_both_towers_through_the_mixture_of_others():
    image, text = rows(1), rows(2)
    first = lambda x, y: mixup.m2_anchors(x, y, mixup.slerp(x, y, 0.5), 9.0)[0][0]
    for g in jax.jit(jax.grad(first, (0, 1)))(image, text):
        assert np.all(np.linalg.norm(g, axis=1) > 1e-5)


def test_mixtures_are_harder_than_plain_negatives_where_the_modalities_are_apart():
    """Two cones, as contrastive training leaves them: every anchor is nearer to a half-way mixture than to a plain negative."""
    apart = jnp.zeros(16).at[0].set(1.5)
    image, text = unit(rows(1, 64, 16) + apart[None]), unit(rows(2, 64, 16) - apart[None])
    mixed = mixup.slerp(image, text, 0.5)
    others = ~np.eye(64, dtype=bool)
    for anchor, plain in ((image, text), (text, image)):
        rise = np.asarray(anchor @ mixed.T - anchor @ plain.T)[others]
        assert np.mean(rise > 0) == 1 and np.mean(rise) > 0.3


@jax.jit
def fit(weight):
    """(images, texts) (48, 16) of two linear maps fitted to features that share their contents but not their cone."""
    rng = np.random.default_rng(0)
    content = rng.normal(size=(48, 12))
    features = [unit(unit(jnp.asarray(content @ rng.normal(size=(12, 24)), jnp.float32))
                     + 2.0 * unit(jnp.asarray(rng.normal(size=(1, 24)), jnp.float32))) for _ in range(2)]
    params = [jnp.asarray(rng.normal(size=(24, 16)) / 24 ** 0.5, jnp.float32) for _ in range(2)]
    tx, embed = optax.adam(3e-2), lambda params: [unit(f @ p) for f, p in zip(features, params)]

    def loss(params, key):
        image, text = embed(params)
        mixed = mixup.slerp(image, text, jax.random.beta(key, 0.5, 0.5))
        return contrastive.softmax(image, text, 100.0) + weight * mixup.m2(image, text, mixed, 1 / 0.07, "sum")

    def update(carry, key):
        params, state = carry
        updates, state = tx.update(jax.grad(loss)(params, key), state, params)
        return (optax.apply_updates(params, updates), state), None
    (params, _), _ = jax.lax.scan(update, (params, tx.init(params)), jax.random.split(jax.random.key(0), 200))
    return embed(params)


def test_mixed_negatives_close_the_gap_that_a_cold_temperature_leaves():
    """The terms of the released scripts: temperature 0.01, and 0.01 m2 at 0.07. Both fits find every pair."""
    cold, mixed = fit(0.0), fit(0.01)
    wide, narrow = (gap_eval.figures(*pair)["distance"] for pair in (cold, mixed))
    assert wide > 0.5 and narrow < wide / 5 and gap_eval.figures(*mixed)["pair_cosine"] > 0.7, (wide, narrow)
    assert contrastive.accuracy(*cold) == contrastive.accuracy(*mixed) == 1


# ---- at scale (values on 1, 2 and 4 devices: test_ring.py; the whole step: test_scale.py)

def test_memory_grows_with_the_rows_of_a_device_and_partners_are_sent_not_gathered(monkeypatch):
    monkeypatch.setattr(ring, "TILE", 64)
    mesh = mesh_lib.make({"data": 4}, jax.devices()[:4])

    def total(x, y):
        return (mixup.m2(x, y, mixup.slerp(x, y, 0.3), 9.0, implementation="ring")
                + mixup.vl_mix(x, y, 0.3, 9.0, "both", unmixed_negatives=True, implementation="ring"))

    def compiled(size):
        x = jax.ShapeDtypeStruct((size, 8), jnp.float32, sharding=mesh_lib.batch_sharding(mesh))
        with jax.set_mesh(mesh):
            return jax.jit(jax.value_and_grad(total, (0, 1))).lower(x, x).compile()
    small, large = compiled(4096), compiled(8192)
    sizes = [c.memory_analysis().temp_size_in_bytes for c in (small, large)]
    assert sizes[1] < 2.2 * sizes[0] and sizes[1] < 4 * 8192 * 8192 / 4 / 20, sizes   # a twentieth of one matrix of logits
    found = hlo.collectives(large.as_text())
    assert set(found) == {"collective-permute", "all-reduce"} and found["all-reduce"]["bytes"] <= 64, found
