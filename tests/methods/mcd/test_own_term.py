"""A term added to MCD from outside of the package: one module of one's own, that of the documentation, and a weight."""
import pathlib
import re

import jax
import jax.numpy as jnp
import numpy as np
import tiny

from mcd_jax import config as config_lib
from mcd_jax import step as step_lib
from mcd_jax.costs import count_flops

PAGE = pathlib.Path(__file__).resolve().parents[3] / "docs" / "add_a_term.md"


def test_a_term_of_ones_own_beside_mcds(tmp_path, monkeypatch):
    (tmp_path / "lab_of_terms").mkdir()
    (tmp_path / "lab_of_terms" / "margin.py").write_text(re.search(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)[1])
    monkeypatch.syspath_prepend(tmp_path)
    assert config_lib.objective("lab_of_terms.margin").weights.margin == 0.5
    objective, tx, weights, state, batch = tiny.build("lab_of_terms.margin", {"misalignment": 0})
    assert "augmented" in objective.needs and "misalignment/student" in objective.metrics
    assert "misalignment/teacher" not in objective.metrics           # nobody reads the teacher, so it encodes nothing
    _, report = jax.jit(step_lib.make_step(objective, tx, weights))(state, batch)
    np.testing.assert_allclose(report["loss"], report["loss/clip"] + 0.5 * report["loss/margin"], rtol=1e-6)
    out = objective.forward(state.params, state.memory, batch, jax.random.key(1), jnp.int32(0))
    assert not [name for name in out if name.startswith("teacher/")]

    def cost(method, weights):
        objective, tx, weights, state, batch = tiny.build(method, weights)
        return count_flops.count(step_lib.make_step(objective, tx, weights), state, batch)
    assert cost("lab_of_terms.margin", {"misalignment": 0, "margin": 0}) == cost("mcd", {"misalignment": 0})
    assert cost("lab_of_terms.margin", {"margin": 0}) == cost("mcd", {})
