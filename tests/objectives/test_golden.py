"""One step of every method, pinned: a change of any figure must be meant.

The pinned figures are this code's own, so they only show that nothing moved; that the losses are right is shown beside them by slow
formulas in numpy, on the same embeddings. Both stand in the method's `Case`. When a change is meant, the message has the
new row.
"""
import jax
import numpy as np
import pytest
import tiny

from mcd_jax import step as step_lib


@pytest.mark.parametrize("method", tiny.MOST)
def test_one_step_is_pinned(method):
    objective, tx, weights, state, batch = tiny.build(method)
    state, first = jax.jit(step_lib.make_step(objective, tx, weights))(state, batch)
    got = tuple(round(float(first[k]), 5) for k in ("loss", "grad_norm", "update_norm", "param_norm"))
    np.testing.assert_allclose(got, tiny.CASES[method].golden, rtol=2e-3, err_msg=f"{method}: {got}")


@pytest.mark.parametrize("method", tiny.MOST)
def test_every_term_equals_a_slow_formula(method):
    objective, _, weights, state, batch = tiny.build(method)
    memory = jax.tree.map(lambda x: 1.05 * x + 0.01, state.memory)   # a teacher that differs from its student
    out = jax.jit(objective.forward)(state.params, memory, batch, jax.random.key(3), state.step)
    live = [name for name, weight in weights.items() if weight]
    assert live
    for name in live:
        composed, _, term = name.rpartition("/")
        of_method = {**(out[composed] if composed else out), "memory": memory}
        slow = tiny.CASES[composed or method].formulas[term]
        np.testing.assert_allclose(float(objective.terms[name](out)), slow(of_method), rtol=2e-4, atol=2e-7, err_msg=name)
