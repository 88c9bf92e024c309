"""Log-sum-exps of two functions of each pair, and their matrices: values, gradients, devices, uneven tiles, more keys than rows."""
from functools import partial

import jax
import jax.numpy as jnp
import pytest
from test_ring import B, close, on, rows

from mcd_jax.sharding import ring_logits

C = 2 * B


def two(row, key, shared, row_aux, key_aux):
    product = jnp.einsum("rd,kd->rk", row["a"], key["b"], precision=jax.lax.Precision.HIGHEST)
    return shared["scale"] * product * row_aux[:, None], jnp.sin(3 * product + shared["shift"]) * key_aux["c"][None, :]


def lse_of_matrices(*args, tile):
    of_rows, of_keys = ring_logits.matrices(two, *args, tile=tile)
    return jax.nn.logsumexp(of_rows, axis=1), jax.nn.logsumexp(of_keys, axis=0)


@pytest.mark.parametrize("mesh", ["1", "2 data x 2 fsdp"])
@pytest.mark.parametrize("fn", [partial(ring_logits.lse, two), lse_of_matrices])
def test_two_logits_of_a_pair(fn, mesh):
    """Every row and key is weighed by itself: what one collects doesn't stand in for what another does."""
    args = ({"a": rows(1)}, {"b": rows(2, C)}, {"scale": jnp.float32(4.0), "shift": jnp.float32(0.3)}, jnp.linspace(0.5, 2.0, B),
            {"c": jnp.linspace(3.0, -1.0, C)})
    weights = jnp.sin(jnp.arange(B, dtype=jnp.float32)), jnp.cos(jnp.arange(C, dtype=jnp.float32))

    def dense(*args):
        of_rows, of_keys = two(*args)
        return jax.nn.logsumexp(of_rows, axis=1), jax.nn.logsumexp(of_keys, axis=0)

    def value(sums, *args):
        return sum(jnp.sum(a * b) for a, b in zip(sums(*args), weights, strict=True))
    want = dense(*args), jax.grad(partial(value, dense), argnums=(0, 1, 2))(*args)
    sums = partial(fn, tile=5)
    mesh, (row, key, row_aux, key_aux) = on(mesh, args[0], args[1], args[3], args[4])
    with jax.set_mesh(mesh):
        split = row, key, args[2], row_aux, key_aux
        close((jax.jit(sums)(*split), jax.jit(jax.grad(partial(value, sums), argnums=(0, 1, 2)))(*split)), want)


def test_rows_that_devices_cannot_share_are_refused():
    mesh, (x,) = on("2 data", rows(1))
    with jax.set_mesh(mesh), pytest.raises(ValueError, match="23 rows do not divide into 2 devices"):
        ring_logits.lse(two, {"a": x[:23]}, {"b": x}, (), x[:23, 0], {"c": x[:, 0]}, tile=5)
