"""Every loss against a slow float64 loop, its gradient against finite differences of that loop, and closed forms."""
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mcd_jax.losses import contrastive, distill, ssl
from mcd_jax.sharding import mesh as mesh_lib

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


CASES = {
    "softmax": (contrastive.softmax, slow_softmax, (rows(1), rows(2), 12.0)),
    "sigmoid": (contrastive.sigmoid, slow_sigmoid, (rows(1), rows(2), 8.0, -3.0)),
    "row_lse": (lambda x, y, s: jnp.sum(contrastive.lse(x, y, s)[0]),
                lambda x, y, s: sum(lse([s * np.dot(p, q) for q in y]) for p in x), (rows(1), rows(2, 4), 7.0)),
    "nt_xent": (ssl.nt_xent, slow_nt_xent, (rows(1, unit=False), rows(2, unit=False))),
    "alignment_kl": (lambda x, y, s: distill.alignment_kl(rows(3), rows(4), x, y, 9.0, s),
                     lambda x, y, s: slow_kl(rows(3), rows(4), x, y, 9.0, s), (rows(1), rows(2), 6.0)),
}


@pytest.mark.parametrize("name", CASES)
def test_value_and_gradient(name):
    value_and_gradient(*CASES[name])


def value_and_gradient(fast, slow, args):
    """The loss `fast` against the loop `slow`, its gradient against differences of that loop in two directions."""
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


@pytest.mark.parametrize("name", ["softmax", "sigmoid", "nt_xent", "alignment_kl"])
def test_same_on_four_devices(name):
    fast, _, args = CASES[name]
    if name == "alignment_kl":
        def fast(x, y, z):
            return distill.alignment_kl(jnp.roll(x, 1, axis=0), jnp.roll(y, 2, axis=0), x, y, 9.0, z)
    same_on_four_devices(fast, args)


def same_on_four_devices(fast, args):
    """Value and gradient of the first two of `args`, whose rows are made eight."""
    args = [jnp.asarray(np.tile(a, (2, 1))[:8] if np.ndim(a) else a, jnp.float32) for a in args]
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


def test_golden_values():
    """Float64 figures of the slow loops, written down: neither side may drift."""
    x, y, z = [v / np.linalg.norm(v, axis=1, keepdims=True) for v in np.sin(1.0 + np.arange(60.0) ** 1.5).reshape(3, 4, 5)]
    slow = [slow_softmax(x, y, 12.0), slow_sigmoid(x, y, 8.0, -3.0), slow_nt_xent(x, y), slow_kl(x, y, y, z, 9.0, 6.0)]
    x, y, z = [jnp.asarray(v, jnp.float32) for v in (x, y, z)]
    fast = [contrastive.softmax(x, y, 12.0), contrastive.sigmoid(x, y, 8.0, -3.0), ssl.nt_xent(x, y),
            distill.alignment_kl(x, y, y, z, 9.0, 6.0)]
    np.testing.assert_allclose(slow, GOLDEN, rtol=1e-6)
    np.testing.assert_allclose(fast, GOLDEN, rtol=1e-5)


GOLDEN = [2.680815621, 3.048257706, 4.373032227, 2.658947314]


def test_accuracy():
    x = jnp.eye(4)
    assert contrastive.accuracy(x, x) == 1.0
    assert contrastive.accuracy(x, x[jnp.array([0, 1, 3, 2])]) == 0.5
    assert contrastive.accuracy(jnp.ones((4, 2)), jnp.ones((4, 2))) == 0.25  # a collapse is not a success


def test_teacher_gets_no_gradient():
    w, a, u = [jnp.asarray(rows(s), jnp.float32) for s in (1, 2, 3)]
    grads = jax.grad(lambda t: distill.alignment_kl(*t[:2], u, a, t[2], 5.0))((w, a, jnp.float32(3.0)))
    assert all(not np.any(g) for g in grads)


def test_finite_gradients_where_embeddings_coincide():
    x = jnp.tile(jnp.asarray(rows(1)[:1], jnp.float32), (B, 1))
    for f in (lambda x, y: contrastive.softmax(x, y, 100.0), lambda x, y: contrastive.sigmoid(x, y, 100.0, -10.0),
              ssl.nt_xent, lambda x, y: distill.alignment_kl(x, y, x, y, 100.0, 100.0)):
        both = jax.jit(jax.value_and_grad(f, argnums=(0, 1)))
        for pair in ((x, x), (x, -x), (0 * x, 0 * x), (x[:2], x[:2])):
            value, grads = both(*pair)
            assert np.isfinite(value) and all(np.all(np.isfinite(g)) for g in grads)


def test_float32_inside_for_bfloat16_inputs():
    x, y, z = [jnp.asarray(rows(s), jnp.bfloat16) for s in (1, 2, 3)]
    for f in (lambda x, y, z: contrastive.softmax(x, y, 100.0), lambda x, y, z: contrastive.sigmoid(x, y, 100.0, -10.0),
              lambda x, y, z: ssl.nt_xent(x, y), lambda x, y, z: distill.alignment_kl(x, y, x, z, 50.0, 50.0)):
        low, high = f(x, y, z), f(*[v.astype(jnp.float32) for v in (x, y, z)])
        assert low.dtype == jnp.float32
        np.testing.assert_array_equal(low, high)


def test_every_matrix_product_is_of_the_highest_precision():
    x, y = [jnp.asarray(rows(s), jnp.float32) for s in (1, 2)]
    for f in (lambda x, y: contrastive.softmax(x, y, 9.0), lambda x, y: contrastive.sigmoid(x, y, 9.0, 0.0), ssl.nt_xent,
              lambda x, y: distill.alignment_kl(y, x, x, y, 9.0, 9.0)):
        products_are_precise(f, x, y)


def products_are_precise(f, x, y):
    text = str(jax.make_jaxpr(jax.grad(f, argnums=(0, 1)))(x, y))
    assert text.count("dot_general[") == text.count("precision=(Precision.HIGHEST, Precision.HIGHEST)") > 2
