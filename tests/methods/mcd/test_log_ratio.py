"""Log-ratios of distances: against a slow float64 loop, its gradient against finite differences of that loop, closed forms."""
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mcd_jax.methods.mcd import log_ratio
from tests.losses.test_losses import B, products_are_precise, rows, same_on_four_devices, value_and_gradient
from tests.sharding import test_ring as ring


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


@pytest.mark.parametrize("measure", log_ratio.MEASURES)
@pytest.mark.parametrize("pairs", log_ratio.PAIRS)
@pytest.mark.parametrize("kind", log_ratio.KINDS)
def test_value_and_gradient(measure, pairs, kind):
    value_and_gradient(*log_ratio_case(measure, pairs, kind))


def test_same_on_four_devices():
    same_on_four_devices(lambda x, y, z: log_ratio.loss(log_ratio.log_ratio(x, y, z, pairs="all"), jnp.zeros((8, 8))),
                         (rows(1), rows(2), rows(3)))


def all_pairs(x, y, scale, implementation, kind, measure):
    """MCD's misalignment term over all pairs, with the texts y, the original views x and other augmented views."""
    student, teacher = (y, ring.unit(x + ring.rows(5)), x), (ring.rows(4), ring.rows(6), ring.rows(3))
    if implementation == "ring":
        return log_ratio.ring_loss(student, teacher, kind, measure, (scale, 5.0))
    ours = log_ratio.log_ratio(*student, measure, "all", scale)
    return log_ratio.loss(ours, log_ratio.log_ratio(*teacher, measure, "all", 5.0), kind)


@pytest.mark.parametrize("mesh", ring.MESHES)
@pytest.mark.parametrize("kind, measure", [("logratio", "sqdist"), ("smooth_l1", "logit")])
def test_the_ring_equals_the_gather_form(kind, measure, mesh, monkeypatch):
    ring.equals_the_gather_form(lambda x, y, scale, bias, implementation: all_pairs(x, y, scale, implementation, kind, measure),
                                mesh, monkeypatch)


def slow_softmax_ratio(w, aug, org, scale):
    def share(image, i):
        values = [np.exp(scale * np.dot(image, text)) for text in w]
        return values[i] / sum(values)
    return np.array([np.log(share(o, i)) - np.log(share(a, i)) for i, (a, o) in enumerate(zip(aug, org, strict=True))])


@pytest.mark.parametrize("implementation", ["gather", "ring"])
def test_softmax_value_and_gradient(implementation):
    target = 0.7 * np.random.default_rng(9).normal(size=B)
    value_and_gradient(
        lambda w, a, u: log_ratio.loss(log_ratio.softmax_log_ratio(w, a, u, 3.0, implementation), jnp.asarray(target, jnp.float32)),
        lambda w, a, u: slow_regression(slow_softmax_ratio(w, a, u, 3.0), target, "logratio"), (rows(1), rows(2), rows(3)))


def test_what_moves_all_similarities_alike_is_no_misalignment_of_softmax():
    """The captions differ in two axes; what an augmented view gains in the third, which they share, changes the logits alone."""
    w = jnp.array([[0.6, 0, 0.8], [0, 0.6, 0.8]])
    u, a = jnp.array([[0.5, 0, 0.75 ** 0.5]] * 2), jnp.array([[0.5, 0, 0.1]] * 2)
    np.testing.assert_allclose(log_ratio.softmax_log_ratio(w, a, u, 10.0), 0, atol=1e-5)
    assert np.all(log_ratio.log_ratio(w, a, u, "logit", scale=10.0) > 1)


def test_closed_forms():
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


def test_golden_value():
    """A float64 figure of the slow loop, written down: neither side may drift."""
    x, y, z = [v / np.linalg.norm(v, axis=1, keepdims=True) for v in np.sin(1.0 + np.arange(60.0) ** 1.5).reshape(3, 4, 5)]
    slow = np.mean(slow_ratio(x, y, z, "sqdist", "diag"))
    fast = jnp.mean(log_ratio.log_ratio(*(jnp.asarray(v, jnp.float32) for v in (x, y, z))))
    np.testing.assert_allclose([slow, fast], -0.281041459, rtol=1e-5)


def test_ratio_is_zero_without_augmentation():
    w, u = rows(1), rows(2)
    for measure in log_ratio.MEASURES:
        for pairs in log_ratio.PAIRS:
            assert not np.any(log_ratio.log_ratio(w, u, u, measure, pairs))
    assert not np.any(log_ratio.softmax_log_ratio(w, u, u, 10.0))


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


def test_stop_gradient_switches():
    w, a, u = [jnp.asarray(rows(s), jnp.float32) for s in (1, 2, 3)]

    def grads(**switches):
        return jax.grad(lambda t: jnp.sum(log_ratio.log_ratio(*t, **switches) ** 2))((w, a, u))
    moved = [[bool(np.any(g)) for g in grads(**s)] for s in ({}, {"sg_org": True}, {"sg_text": True})]
    assert moved == [[True, True, True], [True, True, False], [False, True, True]]
    np.testing.assert_array_equal(grads()[1], grads(sg_org=True)[1])


def test_float32_inside_for_bfloat16_inputs():
    x, y, z = [jnp.asarray(rows(s), jnp.bfloat16) for s in (1, 2, 3)]
    for f in (log_ratio.log_ratio, lambda x, y, z: log_ratio.log_ratio(x, y, z, "logit", "all", 100.0)):
        low, high = f(x, y, z), f(*[v.astype(jnp.float32) for v in (x, y, z)])
        assert low.dtype == jnp.float32
        np.testing.assert_array_equal(low, high)


def test_every_matrix_product_is_of_the_highest_precision():
    x, y = [jnp.asarray(rows(s), jnp.float32) for s in (1, 2)]
    products_are_precise(lambda x, y: jnp.sum(log_ratio.log_ratio(x, y, -y, pairs="all")), x, y)


def test_refusals():
    r = jnp.zeros(3)
    with pytest.raises(ValueError, match=r"student \(3,\) and target \(3, 3\)"):
        log_ratio.loss(r, jnp.zeros((3, 3)))
    with pytest.raises(ValueError, match="kind='huber'"):
        log_ratio.loss(r, r, "huber")
    with pytest.raises(ValueError, match="measure='cos'"):
        log_ratio.log_ratio(rows(1), rows(2), rows(3), measure="cos")
