"""MCD: the misalignment term, its teacher, every switch."""
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from mcd_jax import job
from mcd_jax import step as step_lib
from mcd_jax.methods.mcd import log_ratio, mcd
from tests import test_locked as locked
from tests.objectives.test_objectives import leaves_no_trace, one_step


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


def test_a_zero_weight_leaves_no_trace_in_the_compiled_step():
    leaves_no_trace("mcd", {"misalignment": 0})


SWITCHES = [
    dict(loss="smooth_l1"), dict(measure="logit"), dict(measure="softmax"), dict(pairs="all"), dict(measure="logit", pairs="all"),
    dict(mask_teacher=True), dict(mask_student=False), dict(keep_share=0.25), dict(share_text=True), dict(sg_org=True),
    dict(sg_text=True), dict(scale_source="augmentation"), dict(scale_source="both"), dict(augmented=("augmented", "augmented2")),
    dict(weights=dict(distill=1.0)), dict(weights=dict(clip_augmented=1.0)),
    dict(weights=dict(clip_augmented=1.0), positive="teacher"), dict(weights=dict(ssl=1.0), augmented=("augmented", "augmented2")),
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


def test_the_teacher_may_see_another_view():
    options = dict(mask_student=False, teacher_augmented=("augmented2",))
    objective, _, _, state, batch = tiny.build("mcd", **options)
    assert "augmented2" in objective.needs and "augmented2/misalignment" not in objective.needs
    memory = {"teacher": jax.tree.map(lambda x: x + 0.01, state.memory["teacher"])}
    forward = lambda method, batch: method.forward(state.params, memory, batch, jax.random.key(1), state.step)
    out, same = forward(objective, batch), forward(tiny.build("mcd", mask_student=False)[0], batch)
    np.testing.assert_array_equal(out["augmented"], same["augmented"])
    assert not np.allclose(out["teacher/augmented"], same["teacher/augmented"])
    moved = forward(objective, {**batch, "augmented": batch["augmented2"]})
    np.testing.assert_array_equal(moved["teacher/augmented"], out["teacher/augmented"])


@pytest.mark.parametrize("positive, how", [("teacher", {}), ("teacher", dict(measure="logit", pairs="all")),
                                           ("teacher", dict(measure="softmax")), ("augmentation", {})])
def test_what_an_augmented_positive_counts(positive, how):
    """Each pair's cross-entropies times the share of its caption that the view keeps, pair by pair in numpy."""
    objective, _, _, state, batch = tiny.build("mcd", positive=positive, positive_power=2.0, mask_student=False,
                                               weights=dict(clip_augmented=1.0), **how)
    memory = {"teacher": jax.tree.map(lambda x: x * 1.1 + 0.01, state.memory["teacher"])}
    batch = {**batch, "augmented/misalignment": 1 + np.linspace(0, 1.2, len(batch["text"]), dtype=np.float32)}
    out = jax.device_get(objective.forward(state.params, memory, batch, jax.random.key(1), state.step))
    if positive == "teacher":
        texts, scale = out["teacher/text"], out["teacher/scale"]

        def share(image, text):
            total = sum(np.exp(scale * image @ other) for other in texts) if how.get("measure") == "softmax" else 1.0
            return np.exp(scale * image @ text) / total
        kept = [min(1.0, share(a, t) / share(o, t)) for t, a, o in zip(texts, out["teacher/augmented"], out["teacher/image"])]
    else:
        targets = (np.asarray(batch[f"{view}/misalignment"]) for view in ("augmented", "image"))
        kept = [min(max(0.0, 1 + o - a), 1.0) for a, o in zip(*targets)]
    assert min(kept) < 0.9 * max(kept)
    logits = out["scale"] * out["augmented"].astype(np.float64) @ out["text"].T
    losses = [np.log(np.exp(logits[i]).sum()) + np.log(np.exp(logits[:, i]).sum()) - 2 * logits[i, i] for i in range(len(logits))]
    np.testing.assert_allclose(objective.terms["clip_augmented"](out), np.mean(np.square(kept) * losses) / 2, rtol=1e-4)


def test_the_term_is_float32_under_bfloat16_towers():
    cfg = tiny.config("mcd")
    cfg.model.dtype = "bfloat16"
    objective = mcd.make(cfg)
    batch = jax.tree.map(jnp.asarray, tiny.batch())
    params = objective.init(jax.random.key(0), batch)
    memory = objective.init_memory(jax.random.key(1), params, batch)
    out = objective.forward(params, memory, batch, jax.random.key(2), jnp.int32(0))
    assert {v.dtype for v in out.values()} == {jnp.dtype("float32")}
    assert objective.terms["misalignment"](out).dtype == jnp.float32


@pytest.mark.parametrize("changes, words", [
    (dict(loss="l2"), "config.objective.loss='l2' must be one of logratio, smooth_l1"),
    (dict(keep_share=0.0), "config.objective.keep_share=0.0 must lie in"),
    (dict(augmented=()), "config.objective.augmented is empty"),
    (dict(teacher_augmented=("a", "b")), "must name a batch key for each of config.objective.augmented="),
    (dict(positive="truth"), "config.objective.positive='truth' must be one of whole, teacher, augmentation"),
    (dict(positive_power=-1.0), "config.objective.positive_power=-1.0 must be at least 0"),
    (dict(scale_source="augmentation", pairs="all"), "needs measure='sqdist' and pairs='diag'"),
])
def test_options_that_do_not_fit_are_refused(changes, words):
    with pytest.raises(ValueError, match=words.replace("(", r"\(").replace("[", r"\[")):
        tiny.build("mcd", **changes)


def test_warmup_ramps_a_weight_from_zero():
    cfg = tiny.config("mcd")
    weights = job.term_weights(cfg, lambda name, value: {"0": 0, "1 epoch": 4}[value])
    assert weights["clip"] == 1.0
    np.testing.assert_allclose([float(weights["misalignment"](jnp.int32(s))) for s in (0, 1, 4, 9)], [0, 0.25, 1, 1])


def test_log_ratio_grows_with_distance():
    anchor = jnp.array([[1.0, 0.0]])
    near, far = jnp.array([[0.8, 0.6]]), jnp.array([[0.0, 1.0]])
    assert float(log_ratio.log_ratio(anchor, far, near)[0]) > 0


LOCKED = [("text",), ("image", "text")]


@pytest.mark.parametrize("names", LOCKED, ids=str)
def test_a_locked_tower_stays_and_is_not_in_the_teacher(names):
    locked.test_a_locked_tower_stays_and_all_else_moves("mcd", names)
    locked.test_a_locked_tower_has_no_optimizer_state("mcd", names)
