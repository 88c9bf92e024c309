"""ECLIPSE: who learns from what."""
import jax
import numpy as np
import pytest
import tiny

from mcd_jax import step as step_lib
from mcd_jax.methods import eclipse


def test_the_divergence_teaches_the_image_tower_alone():
    objective, tx, weights, state, batch = tiny.build("eclipse", {"clip": 0}, keep_share=0.5)
    assert set(weights) - {"distill"} <= {"clip"} and list(state.memory["teacher"]) == ["image"]
    new, first = jax.jit(step_lib.make_step(objective, tx, weights))(state, batch)
    loss = lambda params: objective.terms["distill"](objective.forward(params, state.memory, batch, state.key, 0))
    grads = jax.jit(jax.grad(loss))(state.params)
    assert not any(np.any(x) for x in jax.tree.leaves(grads["text"])) and any(np.any(x) for x in jax.tree.leaves(grads["image"]))
    assert float(first["loss/distill"]) > 0.1   # half of the patches give other embeddings than all
    expected = jax.tree.map(lambda a, b: 0.994 * a + 0.006 * b, state.params["image"], new.params["image"])
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), new.memory["teacher"]["image"], expected)


def test_a_student_that_sees_all_agrees_with_its_teacher():
    objective, _, _, state, batch = tiny.build("eclipse", keep_share=1.0)
    out = jax.jit(objective.forward)(state.params, state.memory, batch, state.key, 0)
    assert float(objective.terms["distill"](out)) == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("wrong, message", [(dict(keep_share=0.0), "keep_share=0.0 must lie in"),
                                            (dict(ema_m=2.0), "ema_m=2.0 must lie")])
def test_what_does_not_fit(wrong, message):
    with pytest.raises(ValueError, match=message):
        eclipse.make(tiny.config("eclipse", **wrong))
