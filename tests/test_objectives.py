"""Every method on the one step: gradients, memory, weights, switches."""
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from mcd_jax import config as config_lib
from mcd_jax import step as step_lib
from mcd_jax.losses import log_ratio


def one_step(method, steps=1, weights=None, **changes):
    objective, tx, w, state, batch = tiny.build(method, weights, **changes)
    step = jax.jit(step_lib.make_step(objective, tx, w))
    for _ in range(steps):
        before, (state, report) = state, step(state, batch)
    return before, state, {k: float(v) for k, v in report.items()}


SECOND = {"ahlr": 2}   # behind a layer that starts at 0 nothing moves before the second step


@pytest.mark.parametrize("method", tiny.MOST)
def test_step_moves_every_parameter_and_reports_its_terms(method):
    before, after, report = one_step(method, SECOND.get(method, 1))
    moved = jax.tree.map(lambda a, b: bool(jnp.any(a != b)), before.params, after.params)
    still = [jax.tree_util.keystr(path) for path, m in jax.tree_util.tree_leaves_with_path(moved) if not m]
    assert not still
    assert int(after.step) == SECOND.get(method, 1) and np.isfinite(report["loss"]) and report["grad_norm"] > 0
    weights = tiny.weights(tiny.config(method))
    total = sum(weights[k.removeprefix("loss/")] * v for k, v in report.items() if k.startswith("loss/"))
    np.testing.assert_allclose(report["loss"], total, rtol=1e-5)


def test_memory_gets_no_gradient_and_follows_by_its_momentum():
    objective, tx, weights, state, batch = tiny.build("mcd", ema_m=0.75)

    def loss(memory):
        out = objective.forward(state.params, memory, batch, jax.random.key(1), state.step)
        return sum(objective.terms[name](out) for name in ("clip", "misalignment"))

    assert all(float(jnp.max(jnp.abs(g))) == 0 for g in jax.tree.leaves(jax.grad(loss)(state.memory)))
    new, _ = jax.jit(step_lib.make_step(objective, tx, weights))(state, batch)
    want = jax.tree.map(lambda old, p: 0.75 * old + 0.25 * p, state.memory["teacher"],
                        {k: new.params[k] for k in state.memory["teacher"]})
    for a, b in zip(jax.tree.leaves(want), jax.tree.leaves(new.memory["teacher"])):
        np.testing.assert_allclose(a, b, rtol=1e-6)


def test_teacher_starts_as_a_copy_and_without_a_mask_the_misalignment_term_vanishes():
    objective, _, _, state, batch = tiny.build("mcd", mask_student=False)

    def term(params):
        return objective.terms["misalignment"](objective.forward(params, state.memory, batch, jax.random.key(1), state.step))

    value, grads = jax.value_and_grad(term)(state.params)
    assert float(value) == 0 and all(float(jnp.max(jnp.abs(g))) == 0 for g in jax.tree.leaves(grads))
    masked, _, _, state, batch = tiny.build("mcd", mask_student=True)
    out = masked.forward(state.params, state.memory, batch, jax.random.key(1), state.step)
    assert float(masked.terms["misalignment"](out)) > 1e-6


def test_ratio_is_zero_when_the_augmented_view_is_the_original():
    objective, _, _, state, batch = tiny.build("mcd", mask_student=False)
    batch = {**batch, "augmented": batch["image"]}
    out = objective.forward(state.params, state.memory, batch, jax.random.key(1), state.step)
    assert float(objective.metrics["misalignment/student"](out)) == 0


@pytest.mark.parametrize("method", ("slip", "mcd", "m2mix"))
def test_a_zero_weight_leaves_no_trace_in_the_compiled_step(method):
    off = {"slip": {"ssl": 0}, "mcd": {"misalignment": 0}, "m2mix": {"m2": 0}}[method]

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
    objective, tx, weights, state, batch = tiny.build("mcd")
    step = jax.jit(step_lib.make_step(objective, tx, weights))
    state, _ = step(state, batch)
    bad = state._replace(params={**state.params, "logit_scale": jnp.float32(jnp.nan)})
    after, report = step(bad, batch)
    assert int(report["skipped_updates"]) == 1 and int(report["skipped_in_row"]) == 1 and int(after.step) == 2
    for a, b in zip(jax.tree.leaves((bad.params, bad.memory)), jax.tree.leaves((after.params, after.memory))):
        np.testing.assert_array_equal(a, b)
    good, report = step(after._replace(params=state.params), batch)
    assert int(report["skipped_in_row"]) == 0 and int(report["skipped_updates"]) == 1
    assert not np.array_equal(good.params["image"]["proj"]["kernel"], state.params["image"]["proj"]["kernel"])


SWITCHES = [
    dict(loss="smooth_l1"), dict(measure="logit"), dict(pairs="all"), dict(measure="logit", pairs="all"), dict(mask_teacher=True),
    dict(mask_student=False), dict(keep=0.25), dict(share_text=True), dict(sg_org=True), dict(sg_text=True),
    dict(scale_source="augmentation"), dict(scale_source="both"), dict(augmented=("augmented", "augmented2")),
    dict(weights=dict(distill=1.0)), dict(weights=dict(clip_augmented=1.0)),
    dict(weights=dict(ssl=1.0), augmented=("augmented", "augmented2")),
]


@pytest.mark.full
@pytest.mark.parametrize("changes", SWITCHES, ids=str)
def test_every_switch_runs_and_changes_the_update(changes, plain):
    """The first loss or gradient differs from the default's; a shared text tower, a copy at first, is not in the teacher."""
    changes = dict(changes)
    weights = changes.pop("weights", None)
    _, state, report = one_step("mcd", weights=weights, **changes)
    assert np.isfinite(list(report.values())).all()
    if changes.get("share_text"):
        assert set(state.memory["teacher"]) == {"image", "logit_scale"} and set(plain[0].memory["teacher"]) > {"text"}
    else:
        moved = [abs(report[k] / plain[1][k] - 1) for k in ("loss", "grad_norm")]
        assert max(moved) > 1e-6, moved


@pytest.fixture(scope="module")
def plain():
    """(state, report) after one step of the defaults."""
    return one_step("mcd")[1:]


@pytest.mark.parametrize("source, check", [("augmentation", lambda t, a: a), ("both", lambda t, a: (t + a) / 2)])
def test_scale_source_against_a_slow_formula(source, check):
    """The misalignment term recomputed in numpy, pair by pair, from the embeddings."""
    objective, _, _, state, batch = tiny.build("mcd", scale_source=source, mask_student=False)
    memory = {"teacher": jax.tree.map(lambda x: x * 1.1 + 0.01, state.memory["teacher"])}
    out = jax.device_get(objective.forward(state.params, memory, batch, jax.random.key(1), state.step))

    def ratio(text, augmented, original):
        distance = lambda a, b: float(np.sum((a.astype(np.float64) - b) ** 2))
        return np.array([np.log(distance(t, a) + 1e-6) - np.log(distance(t, o) + 1e-6)
                         for t, a, o in zip(text, augmented, original)])

    student = ratio(out["text"], out["augmented"], out["image"])
    labels = np.log(batch["augmented/misalignment"]) - np.log(batch["image/misalignment"])
    teacher = 0.0
    if source == "both":
        teacher = np.mean((student - ratio(out["teacher/text"], out["teacher/augmented"], out["teacher/image"])) ** 2)
    want = check(teacher, np.mean((student - labels) ** 2))
    np.testing.assert_allclose(objective.terms["misalignment"](out), want, rtol=2e-4)


def test_the_term_is_float32_under_bfloat16_towers():
    cfg = tiny.config("mcd")
    cfg.model.dtype = "bfloat16"
    from mcd_jax.objectives import mcd
    objective = mcd.make(cfg)
    batch = jax.tree.map(jnp.asarray, tiny.batch())
    params = objective.init(jax.random.key(0), batch)
    memory = objective.start(jax.random.key(1), params, batch)
    out = objective.forward(params, memory, batch, jax.random.key(2), jnp.int32(0))
    assert {v.dtype for v in out.values()} == {jnp.dtype("float32")}
    assert objective.terms["misalignment"](out).dtype == jnp.float32


@pytest.mark.parametrize("changes, words", [
    (dict(loss="l2"), "config.objective.loss='l2' must be one of logratio, smooth_l1"),
    (dict(keep=0.0), "config.objective.keep=0.0 must lie in"),
    (dict(augmented=()), "config.objective.augmented is empty"),
    (dict(scale_source="augmentation", pairs="all"), "needs measure='sqdist' and pairs='diag'"),
])
def test_options_that_do_not_fit_are_refused(changes, words):
    with pytest.raises(ValueError, match=words.replace("(", r"\(").replace("[", r"\[")):
        tiny.build("mcd", **changes)


def test_misspelt_options_and_terms_are_refused_with_the_nearest_name():
    with pytest.raises(ValueError, match=r"unknown option of objective 'mcd': 'emam'; did you mean 'ema_m'"):
        config_lib.objective("mcd", emam=0.9)
    with pytest.raises(ValueError, match=r"unknown term of objective 'mcd': 'misaligment'; did you mean 'misalignment'"):
        config_lib.objective("mcd", weights=dict(misaligment=1.0))
    with pytest.raises(ValueError, match=r"no objectives module 'mdc': the package has ahlr, albef, .*, mcd, siglip, slip, "):
        config_lib.objective("mdc")


def test_sigmoid_needs_a_bias():
    cfg = tiny.config("siglip")
    cfg.model.logit_bias = None
    from mcd_jax.objectives import siglip
    with pytest.raises(ValueError, match=r"config\.model\.logit_bias"):
        siglip.make(cfg)


def test_warmup_ramps_a_weight_from_zero():
    from mcd_jax import job
    cfg = tiny.config("mcd")
    weights = job.term_weights(cfg, lambda name, value: {"0": 0, "1 epoch": 4}[value])
    assert weights["clip"] == 1.0
    np.testing.assert_allclose([float(weights["misalignment"](jnp.int32(s))) for s in (0, 1, 4, 9)], [0, 0.25, 1, 1])


def test_log_ratio_grows_with_distance():
    anchor = jnp.array([[1.0, 0.0]])
    near, far = jnp.array([[0.8, 0.6]]), jnp.array([[0.0, 1.0]])
    assert float(log_ratio.log_ratio(anchor, far, near)[0]) > 0
