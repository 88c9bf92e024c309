import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mcd_jax.costs import hlo
from mcd_jax.losses import contrastive
from mcd_jax.sharding import mesh as mesh_lib
from mcd_jax.sharding.microbatch import microbatched

B, D, GROUP = 32, 8, 2
MESHES = {"1": ({}, 1), "2 data": ({"data": 2}, 2), "4 data": ({"data": 4}, 4), "2 data x 2 fsdp": ({"data": 2, "fsdp": 2}, 4),
          "2 fsdp x 2 tensor": ({"fsdp": 2, "tensor": 2}, 4)}


def encode(params, memory, rows, keys):
    """A scanned tower for student and teacher, noise for each group, attention inside a group, and pooled statistics."""
    noise = jax.vmap(lambda key: jax.random.normal(key, (GROUP, D)))(keys).reshape(-1, D)
    x = rows["x"] + 0.1 * noise

    def tower(p):
        z = jax.lax.scan(lambda x, w: (jnp.tanh(x @ w), None), x, p["layers"])[0]
        groups = z.reshape(-1, GROUP, D)
        return (groups + jnp.mean(groups, axis=1, keepdims=True)).reshape(-1, D)
    z = tower(params)
    return {"rows": {"z": z, "teacher": jax.lax.stop_gradient(tower(memory)), "label": rows["label"]},
            "sums": {"mean": jnp.sum(z, axis=0), "n": jnp.float32(len(z))}}


def loss(params, memory, rows, k, key):
    out = microbatched(encode, k, GROUP)(params, memory, rows, key)
    z, teacher = out["rows"]["z"], out["rows"]["teacher"]
    pooled = out["sums"]["mean"] / out["sums"]["n"]
    away = jnp.sum((z - jnp.roll(z, 1, axis=0)) ** 2, axis=1) - jnp.sum((teacher - z) ** 2, axis=1)
    value = contrastive.softmax(z, rows["x"], params["scale"]) + jnp.mean(away ** 2) + jnp.sum(pooled ** 2)
    return value, out


def inputs():
    k = jax.random.split(jax.random.key(0), 3)
    params = {"layers": jax.random.normal(k[0], (2, D, D)) / 2, "scale": jnp.float32(2.0)}
    memory = {"layers": jax.random.normal(k[1], (2, D, D)) / 2}
    return params, memory, {"x": jax.random.normal(k[2], (B, D)), "label": jnp.arange(B)}


def placed(name):
    """(mesh, params, memory, rows) with parameters split over fsdp and tensor, rows over the batch axes."""
    config, devices = MESHES[name]
    mesh = mesh_lib.make(config, jax.devices()[:devices])
    params, memory, rows = inputs()
    where = {"layers": (None, "fsdp", "tensor"), "scale": "replicate"}

    def place(tree):
        specs = {key: mesh_lib.spec(where[key], x.shape, mesh) for key, x in tree.items()}
        return jax.device_put(tree, {key: jax.NamedSharding(mesh, spec) for key, spec in specs.items()})
    return mesh, place(params), place(memory), jax.device_put(rows, mesh_lib.batch_sharding(mesh))


step = jax.jit(jax.value_and_grad(loss, has_aux=True), static_argnums=3)


@pytest.fixture(scope="module")
def reference():
    return step(*inputs(), 1, jax.random.key(5))


@pytest.mark.parametrize("k", [1, 4])
@pytest.mark.parametrize("name", MESHES)
def test_same_values_and_gradients_for_any_slices_and_mesh(name, k, reference):
    (value, out), grads = reference
    mesh, *args = placed(name)
    with jax.set_mesh(mesh):
        (value2, out2), grads2 = step(*args, k, jax.random.key(5))
    np.testing.assert_allclose(value, value2, rtol=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), (out, grads), (out2, grads2))
    np.testing.assert_array_equal(out2["rows"]["label"], np.arange(B))
    assert out2["sums"]["n"] == B


def test_without_a_mesh(reference):
    (value, _), grads = step(*inputs(), 4, jax.random.key(5))
    np.testing.assert_allclose(value, reference[0][0], rtol=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), grads, reference[1])


def test_every_group_has_its_own_key():
    draw = lambda params, memory, rows, keys: {"rows": jnp.repeat(jax.vmap(jax.random.uniform)(keys), GROUP)}
    rows = inputs()[2]
    for k in (1, 4):
        drawn = np.asarray(microbatched(draw, k, GROUP)({}, {}, rows, jax.random.key(1))["rows"])
        assert len(set(drawn.tolist())) == B // GROUP
        want = jax.random.uniform(jax.random.fold_in(jax.random.key(1), 5))
        np.testing.assert_array_equal(drawn[5 * GROUP:6 * GROUP], [want, want])


@pytest.mark.parametrize("name", ["4 data", "2 data x 2 fsdp"])
def test_no_collective_inside_the_loop(name):
    mesh, *args = placed(name)
    with jax.set_mesh(mesh):
        text = step.lower(*args, 4, jax.random.key(5)).compile().as_text()
    assert "all-reduce" in hlo.collectives(text) and not hlo.collectives(text, loops_only=True)


def test_only_what_f_returns_is_stored():
    """Memory of the backward pass: with slices, the activations of one slice at a time."""
    def deep(params, memory, rows, keys):
        x = rows["x"]
        for _ in range(24):
            x = jnp.tanh(x @ params["w"])
        return {"rows": x[:, :1]}

    def temporary(k):
        f = lambda p, r: jnp.sum(microbatched(deep, k)(p, {}, r)["rows"] ** 2)
        args = {"w": jnp.zeros((16, 16))}, {"x": jnp.zeros((4096, 16))}
        return jax.jit(jax.grad(f)).lower(*args).compile().memory_analysis().temp_size_in_bytes
    assert temporary(8) < temporary(1) / 3


def test_refusals():
    params, memory, rows = inputs()
    with pytest.raises(ValueError, match="32 rows on 1 devices does not divide into 3 microbatches"):
        microbatched(encode, 3)(params, memory, rows)
    with pytest.raises(ValueError, match="whole groups of 16"):
        microbatched(encode, 4, 16)(params, memory, rows)
    with pytest.raises(ValueError, match="'rows' and 'sums'"):
        microbatched(lambda *_: {"z": rows["x"]}, 1)(params, memory, rows)
