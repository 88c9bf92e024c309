"""Every loss against a slow float64 loop, its gradient against finite differences of that loop, and closed forms."""
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mcd_jax import mesh as mesh_lib
from mcd_jax.losses import contrastive, distill, log_ratio, ssl

B, D = 6, 5


def rows(seed, n=B, d=D, unit=True):
    x = np.random.default_rng(seed).normal(size=(n, d))
    return x / np.linalg.norm(x, axis=1, keepdims=True) if unit else x


# ---- the slow loops: no JAX, no matrix product, one pair at a time

def lse(values):
    top = max(values)
    return top + np.log(sum(np.exp(v - top) for v in values))


def slow_softmax(x, y, scale):
    total = 0.0
    for i in range(len(x)):
        total += lse([scale * np.dot(x[i], y[j]) for j in range(len(y))]) - scale * np.dot(x[i], y[i])
        total += lse([scale * np.dot(x[j], y[i]) for j in range(len(x))]) - scale * np.dot(x[i], y[i])
    return total / (2 * len(x))


def slow_sigmoid(x, y, scale, bias):
    total = 0.0
    for i in range(len(x)):
        for j in range(len(y)):
            logit = (scale * np.dot(x[i], y[j]) + bias) * (1 if i == j else -1)
            total += np.log1p(np.exp(-logit))
    return total / len(x)


def slow_nt_xent(a, b, temperature=0.1):
    both = [v / np.linalg.norm(v) for v in [*a, *b]]
    n, total = len(a), 0.0
    for i in range(2 * n):
        logits = [np.dot(both[i], both[j]) / temperature for j in range(2 * n) if j != i]
        total += lse(logits) - np.dot(both[i], both[(i + n) % (2 * n)]) / temperature
    return total / (2 * n)


def slow_kl(teacher_x, teacher_y, x, y, teacher_scale, scale):
    def one(tx, ty, sx, sy):
        total = 0.0
        for i in range(len(tx)):
            t = np.array([teacher_scale * np.dot(tx[i], ty[j]) for j in range(len(ty))])
            s = np.array([scale * np.dot(sx[i], sy[j]) for j in range(len(sy))])
            t, s = t - lse(t), s - lse(s)
            total += sum(np.exp(t[j]) * (t[j] - s[j]) for j in range(len(t)))
        return total / len(tx)
    return 0.5 * (one(teacher_x, teacher_y, x, y) + one(teacher_y, teacher_x, y, x))


def slow_distance(a, b):
    return sum((p - q) ** 2 for p, q in zip(a, b, strict=True))


def slow_ratio(w, aug, org, measure, pairs, scale=1.0, eps=1e-6):
    out = np.zeros((len(aug), len(w)))
    for i in range(len(aug)):
        for j in range(len(w)):
            if measure == "sqdist":
                out[i, j] = np.log(slow_distance(w[j], aug[i]) + eps) - np.log(slow_distance(w[j], org[i]) + eps)
            else:
                out[i, j] = scale * (np.dot(org[i], w[j]) - np.dot(aug[i], w[j]))
    return np.diagonal(out) if pairs == "diag" else out


def slow_regression(r, target, kind):
    total = 0.0
    for d in np.ravel(r) - np.ravel(target):
        total += d * d if kind == "logratio" else 0.5 * d * d if abs(d) < 1 else abs(d) - 0.5
    return total / np.size(r)


def log_ratio_case(measure, pairs, kind):
    target = 0.7 * np.random.default_rng(9).normal(size=(B,) if pairs == "diag" else (B, B))

    def fast(w, a, u):
        return log_ratio.loss(log_ratio.log_ratio(w, a, u, measure, pairs, 3.0), jnp.asarray(target, jnp.float32), kind)

    def slow(w, a, u):
        return slow_regression(slow_ratio(w, a, u, measure, pairs, 3.0), target, kind)
    return fast, slow, (rows(1), rows(2), rows(3))


CASES = {
    "softmax": (contrastive.softmax, slow_softmax, (rows(1), rows(2), 12.0)),
    "sigmoid": (contrastive.sigmoid, slow_sigmoid, (rows(1), rows(2), 8.0, -3.0)),
    "row_lse": (lambda x, y, s: jnp.sum(contrastive.lse(x, y, s)[0]),
                lambda x, y, s: sum(lse([s * np.dot(p, q) for q in y]) for p in x), (rows(1), rows(2, 4), 7.0)),
    "nt_xent": (ssl.nt_xent, slow_nt_xent, (rows(1, unit=False), rows(2, unit=False))),
    "alignment_kl": (lambda x, y, s: distill.alignment_kl(rows(3), rows(4), x, y, 9.0, s),
                     lambda x, y, s: slow_kl(rows(3), rows(4), x, y, 9.0, s), (rows(1), rows(2), 6.0)),
    **{f"log_ratio {m} {p} {k}": log_ratio_case(m, p, k)
       for m in log_ratio.MEASURES for p in log_ratio.PAIRS for k in log_ratio.KINDS},
}


@pytest.mark.parametrize("name", CASES)
def test_value_and_gradient(name):
    fast, slow, args = CASES[name]
    inputs = [jnp.asarray(a, jnp.float32) for a in args]
    value, grads = jax.jit(jax.value_and_grad(fast, argnums=tuple(range(len(args)))))(*inputs)
    assert value.dtype == jnp.float32 and value.shape == ()
    np.testing.assert_allclose(value, slow(*args), rtol=2e-5)
    rng = np.random.default_rng(7)
    for i, arg in enumerate(args):
        for _ in range(2):
            direction, h = rng.normal(size=np.shape(arg)), 1e-5
            ahead, behind = [slow(*args[:i], arg + s * h * direction, *args[i + 1:]) for s in (1, -1)]
            np.testing.assert_allclose(np.sum(grads[i] * direction), (ahead - behind) / (2 * h), rtol=2e-3, atol=2e-4)


@pytest.mark.parametrize("name", ["softmax", "sigmoid", "nt_xent", "alignment_kl", "log_ratio sqdist all logratio"])
def test_same_on_four_devices(name):
    fast, _, args = CASES[name]
    args = [jnp.asarray(np.tile(a, (2, 1))[:8] if np.ndim(a) else a, jnp.float32) for a in args]
    if name in ("alignment_kl", "log_ratio sqdist all logratio"):
        def fast(x, y, z):
            teacher = jnp.roll(x, 1, axis=0), jnp.roll(y, 2, axis=0)
            if name == "alignment_kl":
                return distill.alignment_kl(*teacher, x, y, 9.0, z)
            return log_ratio.loss(log_ratio.log_ratio(x, y, z, pairs="all"), jnp.zeros((8, 8)))
    mesh = mesh_lib.make({"data": 2, "fsdp": 2})
    both = jax.jit(jax.value_and_grad(fast, argnums=(0, 1)))
    value, grads = both(*args)
    with jax.set_mesh(mesh):
        split = [jax.device_put(a, mesh_lib.batch_sharding(mesh)) if a.ndim else a for a in args]
        value4, grads4 = both(*split)
    np.testing.assert_allclose(value, value4, rtol=1e-5)
    for g, g4 in zip(grads, grads4, strict=True):
        np.testing.assert_allclose(g, g4, rtol=1e-4, atol=1e-5)


def test_closed_forms():
    same = jnp.tile(rows(1)[:1], (B, 1))
    eye = jnp.eye(4)
    np.testing.assert_allclose(contrastive.softmax(same, same, 50.0), np.log(B), rtol=1e-5)
    np.testing.assert_allclose(contrastive.softmax(eye, eye, 5.0), np.log(np.exp(5) + 3) - 5, rtol=1e-5)
    np.testing.assert_allclose(contrastive.sigmoid(same, same, 0.0, 0.0), B * np.log(2), rtol=1e-6)
    np.testing.assert_allclose(ssl.nt_xent(3 * eye, 7 * eye), np.log(np.exp(10) + 6) - 10, rtol=2e-3)
    assert abs(distill.alignment_kl(eye, eye, eye, eye, 5.0, 5.0)) < 1e-6
    # text e0, original at 60 degrees (D = 1), augmented at 90 degrees (D = 2)
    w, u, a = jnp.array([[1.0, 0]]), jnp.array([[0.5, 0.75 ** 0.5]]), jnp.array([[0.0, 1]])
    np.testing.assert_allclose(log_ratio.log_ratio(w, a, u), [np.log(2)], rtol=1e-5)
    np.testing.assert_allclose(log_ratio.log_ratio(w, a, u, measure="logit", scale=10.0), [5.0], rtol=1e-5)
    np.testing.assert_allclose(log_ratio.squared_distance(w, a), [2.0], rtol=1e-6)
    np.testing.assert_allclose(log_ratio.label_log_ratio(jnp.array([3.0]), jnp.array([1.0])), [np.log(3)], rtol=1e-5)
    for difference, want in ((0.5, 0.125), (3.0, 2.5), (-3.0, 2.5)):
        got = log_ratio.loss(jnp.array([difference]), jnp.zeros(1), "smooth_l1")
        np.testing.assert_allclose(got, want, rtol=1e-6)
    np.testing.assert_allclose(log_ratio.loss(jnp.array([2.0]), jnp.zeros(1), "smooth_l1", beta=4.0), 0.5, rtol=1e-6)


def test_golden_values():
    """Float64 figures of the slow loops, written down: neither side may drift."""
    x, y, z = [v / np.linalg.norm(v, axis=1, keepdims=True) for v in np.sin(1.0 + np.arange(60.0) ** 1.5).reshape(3, 4, 5)]
    slow = [slow_softmax(x, y, 12.0), slow_sigmoid(x, y, 8.0, -3.0), slow_nt_xent(x, y), slow_kl(x, y, y, z, 9.0, 6.0),
            np.mean(slow_ratio(x, y, z, "sqdist", "diag"))]
    x, y, z = [jnp.asarray(v, jnp.float32) for v in (x, y, z)]
    fast = [contrastive.softmax(x, y, 12.0), contrastive.sigmoid(x, y, 8.0, -3.0), ssl.nt_xent(x, y),
            distill.alignment_kl(x, y, y, z, 9.0, 6.0), jnp.mean(log_ratio.log_ratio(x, y, z))]
    np.testing.assert_allclose(slow, GOLDEN, rtol=1e-6)
    np.testing.assert_allclose(fast, GOLDEN, rtol=1e-5)


GOLDEN = [2.680815621, 3.048257706, 4.373032227, 2.658947314, -0.281041459]


def test_accuracy():
    x = jnp.eye(4)
    assert contrastive.accuracy(x, x) == 1.0
    assert contrastive.accuracy(x, x[jnp.array([0, 1, 3, 2])]) == 0.5
    assert contrastive.accuracy(jnp.ones((4, 2)), jnp.ones((4, 2))) == 0.25  # a collapse is not a success


# ---- the misalignment ratio

def test_ratio_is_zero_without_augmentation():
    w, u = rows(1), rows(2)
    for measure in log_ratio.MEASURES:
        for pairs in log_ratio.PAIRS:
            assert not np.any(log_ratio.log_ratio(w, u, u, measure, pairs))


def test_equal_student_and_teacher_teach_nothing():
    w, a, u = [jnp.asarray(rows(s), jnp.float32) for s in (1, 2, 3)]

    def loss(student):
        return log_ratio.loss(log_ratio.log_ratio(*student), log_ratio.log_ratio(w, a, u))
    value, grads = jax.value_and_grad(loss)((w, a, u))
    assert value == 0 and all(not np.any(g) for g in grads)


def test_teacher_gets_no_gradient():
    w, a, u = [jnp.asarray(rows(s), jnp.float32) for s in (1, 2, 3)]
    student = log_ratio.log_ratio(u, w, a)
    for kind in log_ratio.KINDS:
        grads = jax.grad(lambda t, kind=kind: log_ratio.loss(student, log_ratio.log_ratio(*t), kind))((w, a, u))
        assert all(not np.any(g) for g in grads)
    grads = jax.grad(lambda t: distill.alignment_kl(*t[:2], u, a, t[2], 5.0))((w, a, jnp.float32(3.0)))
    assert all(not np.any(g) for g in grads)


def test_common_scale_of_distances_cancels():
    w, a, u = [jnp.asarray(rows(s), jnp.float32) for s in (1, 2, 3)]
    for pairs in log_ratio.PAIRS:
        once, thrice = [log_ratio.log_ratio(c * w, c * a, c * u, pairs=pairs, eps=0.0) for c in (1.0, 3.0)]
        np.testing.assert_allclose(once, thrice, rtol=1e-4, atol=1e-5)
    y = jnp.abs(w[:, 0]) + 1, jnp.abs(a[:, 0]) + 1
    np.testing.assert_allclose(log_ratio.label_log_ratio(*y, eps=0.0),
                               log_ratio.label_log_ratio(5 * y[0], 5 * y[1], eps=0.0), atol=1e-6)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("pairs", log_ratio.PAIRS)
def test_finite_gradient_where_embeddings_coincide(pairs, dtype):
    x = jnp.asarray(rows(1), dtype)
    for other in ((x, x, x), (x, x, -x), (x, -x, x)):
        r = log_ratio.log_ratio(*other, pairs=pairs)
        grads = jax.grad(lambda o: log_ratio.loss(log_ratio.log_ratio(*o, pairs=pairs), jnp.ones_like(r)))(other)
        assert np.all(np.isfinite(r)) and all(np.all(np.isfinite(g.astype(jnp.float32))) for g in grads)


def test_finite_gradients_of_the_others_where_embeddings_coincide():
    x = jnp.tile(jnp.asarray(rows(1)[:1], jnp.float32), (B, 1))
    for f in (lambda x, y: contrastive.softmax(x, y, 100.0), lambda x, y: contrastive.sigmoid(x, y, 100.0, -10.0),
              ssl.nt_xent, lambda x, y: distill.alignment_kl(x, y, x, y, 100.0, 100.0)):
        both = jax.jit(jax.value_and_grad(f, argnums=(0, 1)))
        for pair in ((x, x), (x, -x), (0 * x, 0 * x), (x[:1], x[:1])):
            value, grads = both(*pair)
            assert np.isfinite(value) and all(np.all(np.isfinite(g)) for g in grads)


def test_stop_gradient_switches():
    w, a, u = [jnp.asarray(rows(s), jnp.float32) for s in (1, 2, 3)]

    def grads(**switches):
        return jax.grad(lambda t: jnp.sum(log_ratio.log_ratio(*t, **switches) ** 2))((w, a, u))
    moved = [[bool(np.any(g)) for g in grads(**s)] for s in ({}, {"sg_org": True}, {"sg_text": True})]
    assert moved == [[True, True, True], [True, True, False], [False, True, True]]
    np.testing.assert_array_equal(grads()[1], grads(sg_org=True)[1])


def test_float32_inside_for_bfloat16_inputs():
    x, y, z = [jnp.asarray(rows(s), jnp.bfloat16) for s in (1, 2, 3)]
    for f in (lambda x, y, z: contrastive.softmax(x, y, 100.0), lambda x, y, z: contrastive.sigmoid(x, y, 100.0, -10.0),
              lambda x, y, z: ssl.nt_xent(x, y), lambda x, y, z: distill.alignment_kl(x, y, x, z, 50.0, 50.0),
              log_ratio.log_ratio, lambda x, y, z: log_ratio.log_ratio(x, y, z, "logit", "all", 100.0)):
        low, high = f(x, y, z), f(*[v.astype(jnp.float32) for v in (x, y, z)])
        assert low.dtype == jnp.float32
        np.testing.assert_array_equal(low, high)


def test_every_matrix_product_is_of_the_highest_precision():
    x, y = [jnp.asarray(rows(s), jnp.float32) for s in (1, 2)]
    for f in (lambda x, y: contrastive.softmax(x, y, 9.0), lambda x, y: contrastive.sigmoid(x, y, 9.0, 0.0), ssl.nt_xent,
              lambda x, y: distill.alignment_kl(y, x, x, y, 9.0, 9.0),
              lambda x, y: jnp.sum(log_ratio.log_ratio(x, y, -y, pairs="all"))):
        text = str(jax.make_jaxpr(jax.grad(f, argnums=(0, 1)))(x, y))
        assert text.count("dot_general[") == text.count("precision=(Precision.HIGHEST, Precision.HIGHEST)") > 2


def test_refusals():
    r = jnp.zeros(3)
    with pytest.raises(ValueError, match=r"student \(3,\) and target \(3, 3\)"):
        log_ratio.loss(r, jnp.zeros((3, 3)))
    with pytest.raises(ValueError, match="kind='huber'"):
        log_ratio.loss(r, r, "huber")
    with pytest.raises(ValueError, match="measure='cos'"):
        log_ratio.log_ratio(rows(1), rows(2), rows(3), measure="cos")
