"""Every method on the one step: gradients, memory, weights, switches."""
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from mcd_jax import config as config_lib
from mcd_jax import step as step_lib


def one_step(method, steps=1, weights=None, **changes):
    objective, tx, w, state, batch = tiny.build(method, weights, **changes)
    step = jax.jit(step_lib.make_step(objective, tx, w))
    for _ in range(steps):
        before, (state, report) = state, step(state, batch)
    return before, state, {k: float(v) for k, v in report.items()}


@pytest.mark.parametrize("method", tiny.MOST)
def test_step_moves_every_parameter_and_reports_its_terms(method):
    before, after, report = one_step(method, tiny.CASES[method].steps)
    moved = jax.tree.map(lambda a, b: bool(jnp.any(a != b)), before.params, after.params)
    still = [jax.tree_util.keystr(path) for path, m in jax.tree_util.tree_leaves_with_path(moved) if not m]
    assert not still
    assert int(after.step) == tiny.CASES[method].steps and np.isfinite(report["loss"]) and report["grad_norm"] > 0
    weights = tiny.weights(tiny.config(method))
    total = sum(weights[k.removeprefix("loss/")] * v for k, v in report.items() if k.startswith("loss/"))
    np.testing.assert_allclose(report["loss"], total, rtol=1e-5)


@pytest.mark.parametrize("method", ["clip", "clip+siglip"])
def test_the_head_pooled_is_what_the_projections_read(method):
    objective, _, _, state, batch = tiny.build(method)
    pooled, embedded = (objective.heads[name](state.params, state.memory, batch) for name in ("pooled", "embed"))
    for tower in ("image", "text"):
        read = pooled[f"{tower}_pooled"]
        np.testing.assert_allclose(read @ state.params[tower]["proj"]["kernel"], embedded[f"{tower}_raw"], rtol=1e-5, atol=1e-6)
        assert read.dtype == jnp.float32 and not np.allclose(read, embedded[f"{tower}_raw"], atol=0.01)


def test_a_zero_weight_leaves_no_trace_in_the_compiled_step():
    leaves_no_trace("slip", {"ssl": 0})


def leaves_no_trace(method, off):
    """Without the terms `off` a method's step is CLIP's, and a teacher's average."""
    def flops(method, weights):
        objective, tx, w, state, batch = tiny.build(method, weights)
        lowered = jax.jit(step_lib.make_step(objective, tx, w)).lower(state, batch)
        compiled = lowered.compile()
        return compiled.cost_analysis()["flops"], compiled.as_text(), state

    base, _, plain = flops("clip", {})
    without, text, state = flops(method, off)
    with_term, _, _ = flops(method, {})
    average = 4 * sum(x.size for x in jax.tree.leaves(state.memory))    # the teacher is still averaged
    assert base <= without <= base + average + 1000 < with_term
    assert jax.tree.structure(plain.params) == jax.tree.structure(state.params)
    assert "ssl" not in text


def test_a_weight_that_names_no_term_is_refused():
    objective, tx, _, _, _ = tiny.build("clip")
    with pytest.raises(ValueError, match=r"weights\.klip names no term: there are clip"):
        step_lib.make_step(objective, tx, {"klip": 1.0})


def test_a_non_finite_update_keeps_params_optimizer_and_memory():
    objective, tx, weights, _, batch = tiny.build("clip")
    objective = step_lib.with_average(objective, 0.5)
    step = jax.jit(step_lib.make_step(objective, tx, weights))
    state, _ = step(step_lib.init_state(objective, tx, jax.random.key(0), batch), batch)
    bad = state._replace(params={**state.params, "logit_scale": jnp.float32(jnp.nan)})
    after, report = step(bad, batch)
    assert int(report["skipped_updates"]) == 1 and int(report["skipped_in_row"]) == 1 and int(after.step) == 2
    for a, b in zip(jax.tree.leaves((bad.params, bad.memory)), jax.tree.leaves((after.params, after.memory))):
        np.testing.assert_array_equal(a, b)
    good, report = step(after._replace(params=state.params), batch)
    assert int(report["skipped_in_row"]) == 0 and int(report["skipped_updates"]) == 1
    assert not np.array_equal(good.params["image"]["proj"]["kernel"], state.params["image"]["proj"]["kernel"])


def test_misspelt_options_and_terms_are_refused_with_the_nearest_name():
    with pytest.raises(ValueError, match=r"unknown option of objective 'slip': 'hiden'; did you mean 'hidden'"):
        config_lib.objective("slip", hiden=9)
    with pytest.raises(ValueError, match=r"unknown term of objective 'slip': 'clipp'; did you mean 'clip'"):
        config_lib.objective("slip", weights=dict(clipp=1.0))
    with pytest.raises(ValueError, match=r"there is no method 'slpi'; did you mean 'slip'\?"):
        config_lib.objective("slpi")


def test_sigmoid_needs_a_bias():
    cfg = tiny.config("siglip")
    cfg.model.logit_bias = None
    from mcd_jax.methods import siglip
    with pytest.raises(ValueError, match=r"config\.model\.logit_bias"):
        siglip.make(cfg)
