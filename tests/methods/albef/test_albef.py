"""ALBEF: counts and rates of the published model, the order of a step, the queue, losses by slow loops, negatives, words."""
from functools import partial
import math

import jax
import jax.numpy as jnp
from mcd_jax.configs.albef import albef_b16
from ml_collections import ConfigDict
import numpy as np
import pytest
import tiny

from mcd_jax import job
from mcd_jax import step as step_lib
from mcd_jax.methods.albef import matching, queue
from mcd_jax.models import bert
from mcd_jax.optim import optimizer


def size_of(tree, without=()):
    return sum(math.prod(x.shape) for name, part in tree.items() if name not in without for x in jax.tree.leaves(part))


def published(size=256):
    """(objective of the paper's size, shapes of its params and memory); nothing is computed."""
    config = albef_b16.get_config()
    config.model.inputs = dict(vocab_size=30522, context=26, eot=102, image_size=size)
    objective = job.objective_of(ConfigDict(config.to_dict()))
    batch = {"image": jax.ShapeDtypeStruct((512, size, size, 3), jnp.uint8), "text": jax.ShapeDtypeStruct((512, 26), jnp.int32)}
    params = jax.eval_shape(objective.init, jax.random.key(0), batch)
    return objective, params, jax.eval_shape(objective.init_memory, jax.random.key(0), params, batch)


def test_parameter_counts_of_the_published_model():
    """The paper's 123.7M and 85.8M; to the last number, those of the published code's modules."""
    _, params, memory = published()
    assert size_of(params["text"], ("proj",)) + size_of(params["fusion"]) + size_of(params["mlm"]) == 123_697_722
    assert size_of(params["image"], ("proj",)) == 85_844_736
    assert size_of({k: params[k]["proj"] for k in ("image", "text")}) == 393_728
    assert size_of(params["itm"]) == 1_538 and set(params) == {"image", "text", "fusion", "mlm", "itm", "temperature"}
    assert set(memory["teacher"]) == {"image", "text", "fusion", "mlm"}
    assert memory["queue"]["image"].shape == memory["queue"]["text"].shape == (128, 512, 256)
    assert size_of(published(384)[1]["image"], ("proj",)) == 86_090_496


def test_learning_rates_of_the_published_code():
    config, steps = albef_b16.get_config(), 7800   # steps of an epoch of 4.0M images
    assert dict(config.optimizer.optimizers)[".*"] == dict(name="adamw", b1=0.9, b2=0.999, eps=1e-8)   # torch's AdamW
    _, found = optimizer.make(config.optimizer.to_dict() | {"bounds": (), "decay_mask": ()}, {"w": jnp.zeros((2, 2))},
                          total_steps=30 * steps, batch_size=512, examples=512 * steps)
    rate = lambda step: float(found["lr"](jnp.int32(step)))
    want = {0: 1e-5, 99: 1e-5, 100: 1.45e-5, 1000: 5.5e-5, 2000: 1e-4, steps - 1: 1e-4, steps: 9.9753e-5, 2 * steps - 1: 9.9753e-5,
            5 * steps: 9.3971e-5, 10 * steps: 7.75e-5, 15 * steps: 5.5e-5, 20 * steps: 3.25e-5, 29 * steps: 1.0247e-5}
    for step, value in want.items():
        assert rate(step) == pytest.approx(value, abs=5.1e-10), step   # written down with five digits
    weights = job.term_weights(config, lambda name, value: steps if value == "1 epoch" else 0)
    assert [float(weights["mlm_distill"](jnp.int32(s))) for s in (0, steps // 2, 2 * steps)] == pytest.approx([0, 0.2, 0.4])


def test_what_decays_and_what_is_bound():
    """Positions, class token and temperature decay, as in the published code; biases and norms don't."""
    params = {"image": {"position": jnp.ones((3, 2)), "class_token": jnp.ones(2), "ln_post": {"scale": jnp.ones(2)},
                        "proj": {"kernel": jnp.ones((2, 2)), "bias": jnp.ones(2)}}, "temperature": jnp.float32(0.4999)}
    spec = albef_b16.get_config().optimizer.to_dict() | {"optimizers": {"name": "sgd"}, "schedule": {"name": "constant"}, "lr": 1.0}
    tx, _ = optimizer.make(spec, params, total_steps=10, batch_size=1, examples=1)
    grads = jax.tree.map(jnp.zeros_like, params)
    updates, state = tx.update(grads, tx.init(params), params)
    moves = lambda x: float(jnp.max(jnp.abs(x))) > 0
    of_image = updates["image"]
    assert moves(of_image["position"]) and moves(of_image["class_token"]) and moves(of_image["proj"]["kernel"])
    assert not moves(of_image["ln_post"]["scale"]) and not moves(of_image["proj"]["bias"]) and float(updates["temperature"]) < 0
    for pull, end in ((-5.0, 0.5), (5.0, 0.001)):
        updates, _ = tx.update({**grads, "temperature": jnp.float32(pull)}, state, params)
        assert float(params["temperature"] + updates["temperature"]) == pytest.approx(end, abs=1e-6)


# ---- the step --------------------------------------------------------------------------------------------------------------------

@pytest.fixture(scope="module")
def built():
    objective, tx, weights, state, batch = tiny.build("albef", ema_m=0.75)
    return objective, jax.jit(step_lib.make_step(objective, tx, weights)), jax.jit(objective.forward), state, batch


@pytest.mark.full
def test_the_teacher_is_averaged_before_the_forward_pass(built):
    """At step 0 it is the student; at step 1 it is m theta_0 + (1 - m) theta_1, the published code's order."""
    objective, step, forward, first, batch = built
    out = forward(first.params, first.memory, batch, jax.random.key(1), first.step)
    for name in ("image", "text"):
        np.testing.assert_allclose(out["for_memory"][name], out[name], atol=1e-6)
    np.testing.assert_allclose(objective.metrics["mlm/kl"](out), 0, atol=1e-5)
    second, _ = step(first, batch)
    third, _ = step(second, batch)
    names = ("image", "text", "fusion", "mlm")
    mix = lambda old, new: jax.tree.map(lambda a, b: 0.75 * a + 0.25 * b, *({k: tree[k] for k in names} for tree in (old, new)))
    for state, want in ((first, {k: first.params[k] for k in names}), (second, mix(first.params, second.params))):
        jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-6, atol=1e-7), state.memory["teacher"], want)
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-6, atol=1e-7),
                 third.memory["teacher"], mix(second.memory["teacher"], third.params))
    # written after the loss: step 0 sees two random slots, step 1 the teacher's rows of step 0 in the first
    np.testing.assert_allclose(second.memory["queue"]["text"][0], out["for_memory"]["text"], atol=1e-6)
    np.testing.assert_array_equal(second.memory["queue"]["text"][1], first.memory["queue"]["text"][1])
    assert [int(s.memory["queue"]["at"]) for s in (first, second, third)] == [0, 1, 0]


def test_nothing_flows_into_teacher_queue_and_targets(built):
    objective, _, _, state, batch = built

    def loss(params, memory):
        float_memory = {"teacher": memory["teacher"], "queue": {**memory["queue"], "at": jnp.int32(0)}}
        out = objective.forward(params, float_memory, batch, jax.random.key(1), state.step)
        return sum(objective.terms[name](out) for name in ("itc", "mlm", "itc_distill", "mlm_distill"))

    memory = {"teacher": state.memory["teacher"], "queue": {k: state.memory["queue"][k] for k in ("image", "text")}}
    params, memory = jax.jit(jax.grad(loss, argnums=(0, 1)))(state.params, memory)
    assert all(float(jnp.max(jnp.abs(g))) == 0 for g in jax.tree.leaves(memory))
    assert abs(float(params["temperature"])) > 0


@pytest.mark.parametrize("changes, words", [
    (dict(mask_id=-1), r"config\.objective\.mask_id=-1 must be the id of \[MASK\].*spare_ids=1 and mask_id=32"),
    (dict(mask_id=33), r"mask_id=33 must be the id of \[MASK\], one of the 33 ids"),
    (dict(queue=12), r"config\.objective\.queue=12 must be a multiple of config\.batch_size=8"),
    (dict(keys="shard"), r"config\.objective\.keys='shard' must be 'group' or 'batch'"),
    (dict(temperature=0.9), r"temperature=0\.9 must lie in temperature_range"),
    (dict(fusion_layers=0), r"config\.objective\.fusion_layers=0 must be a whole number of at least 1"),
])
def test_options_that_do_not_fit_are_refused(changes, words):
    with pytest.raises(ValueError, match=words):
        tiny.build("albef", **changes)


def test_another_text_tower_is_refused():
    with pytest.raises(ValueError, match=r"config\.model\.text\.name must be 'bert'"):
        tiny.build("albef", model=dict(text=tiny.TEXT))


# ---- contrast with a queue -------------------------------------------------------------------------------------------------------

B, D, SLOTS, SCALE = 6, 5, 3, 1 / 0.07


def rows(seed, *shape):
    x = np.random.default_rng(seed).normal(size=(*shape, D))
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


X, TEACHER, OWN, QUEUE = rows(0, B), rows(1, B), rows(2, B), rows(3, SLOTS, B)


def slow(x, group, scale=SCALE, seen=lambda keys: keys):
    """(hard, soft, kl) per row: the teacher's and the student's distribution over the same keys, one row at a time, float64."""
    result = []
    for i in range(B):
        others = [j for j in range(B) if j // group == i // group]
        keys = seen(np.concatenate([OWN[others], QUEUE.reshape(-1, D)]))
        p, q = (np.exp(scale * keys @ z) / np.sum(np.exp(scale * keys @ z)) for z in (x[i], TEACHER[i]))
        result.append((-np.log(p[others.index(i)]), -np.sum(q * np.log(p)), np.sum(q * np.log(q / p))))
    return np.asarray(result).T


@pytest.mark.parametrize("implementation", ["gather", "ring"])
@pytest.mark.parametrize("group", [2, 6])
def test_contrast_with_a_queue_equals_a_slow_loop(group, implementation):
    """Values, and the gradient (p - Y) / b of the mixed loss, for alpha 0, 0.4 and 1."""
    @jax.jit
    def run(x, scale):
        def loss(x, scale, alpha):
            found = queue.cross_entropies(x, f32(TEACHER), f32(OWN), f32(QUEUE), scale, group, implementation)
            return jnp.mean(found.hard + alpha * (found.soft - found.hard)), found
        return [jax.grad(loss, argnums=(0, 1), has_aux=True)(x, scale, alpha) for alpha in (0.0, 0.4, 1.0)]

    f32 = partial(jnp.asarray, dtype=jnp.float32)
    for alpha, ((grad, of_scale), found) in zip((0.0, 0.4, 1.0), run(f32(X), jnp.float32(SCALE)), strict=True):
        hard, soft, kl = slow(X, group)
        for got, want in zip(found, (hard, soft, kl), strict=True):
            np.testing.assert_allclose(got, want, rtol=2e-4, atol=2e-5)
        want, by_scale = np.zeros((B, D)), 0.0
        for i in range(B):
            others = [j for j in range(B) if j // group == i // group]
            keys = np.concatenate([OWN[others], QUEUE.reshape(-1, D)])
            p, q = (np.exp(SCALE * keys @ z) / np.sum(np.exp(SCALE * keys @ z)) for z in (X[i], TEACHER[i]))
            y = alpha * q + (1 - alpha) * (np.arange(len(keys)) == others.index(i))
            want[i] = SCALE * (p - y) @ keys / B
            by_scale += (p - y) @ keys @ X[i] / B
        np.testing.assert_allclose(grad, want, rtol=1e-3, atol=2e-5)
        np.testing.assert_allclose(of_scale, by_scale, rtol=1e-3, atol=1e-5)


def test_rounded_keys_are_rounded_everywhere():
    """In the sums, the positive and the teacher's logits: each that is not moves the loss by tenths of nats."""
    f32 = partial(jnp.asarray, dtype=jnp.float32)
    run = jax.jit(partial(queue.cross_entropies, group=B, implementation="ring_bf16"))
    found = run(f32(X), f32(TEACHER), f32(OWN), f32(QUEUE), jnp.float32(100.0))
    want = slow(X, B, 100.0, lambda keys: np.asarray(f32(keys).astype(jnp.bfloat16), np.float64))
    for got, own in zip(found, want, strict=True):
        np.testing.assert_allclose(got, own, rtol=1e-4, atol=2e-3)


def test_a_student_that_is_its_teacher_has_no_gradient_from_soft_targets():
    x = jnp.asarray(TEACHER, jnp.float32)
    loss = lambda x: jnp.mean(queue.cross_entropies(x, x, jnp.asarray(OWN, jnp.float32), None, SCALE, B, "gather").soft)
    assert float(jnp.max(jnp.abs(jax.grad(loss)(x)))) < 1e-5


def test_the_queue_is_a_ring():
    """7 writes of 16 rows into 64 slots leave the blocks 5, 6, 7, 4 and the pointer at 48: written down, not computed here."""
    held, at = jnp.zeros((4, 16, 2)), 0
    for block in range(1, 8):
        held, at = queue.write(held, jnp.full((16, 2), float(block)), at), (at + 1) % 4
    np.testing.assert_array_equal(held[:, :, 0], np.repeat([[5], [6], [7], [4]], 16, axis=1))
    assert 16 * at == 48
    begun = queue.start(jax.random.key(0), 64, 16, 32)
    assert begun.shape == (4, 16, 32)
    np.testing.assert_allclose(np.linalg.norm(begun, axis=-1), 1, rtol=1e-5)


# ---- matching --------------------------------------------------------------------------------------------------------------------

def test_hard_negatives_are_others_of_the_group_by_the_masked_softmax():
    logits = np.random.default_rng(0).normal(size=(2, 5, 5)) * 1.5
    draw = jax.jit(jax.vmap(lambda key: matching.hard_negatives(key, jnp.asarray(logits, jnp.float32))))
    found = np.asarray(draw(jax.random.split(jax.random.key(0), 4000)))
    assert not (found == np.arange(5)).any()
    for g in range(2):
        for i in range(5):
            want = np.exp(logits[g, i]) * (np.arange(5) != i)
            counts, want = np.bincount(found[:, g, i], minlength=5), 4000 * want / want.sum()
            other = want > 0
            assert np.sum((counts - want)[other] ** 2 / want[other]) < 21.1   # chi squared, 3 degrees of freedom: p = 1e-4
    sure = jnp.where(jnp.eye(5, dtype=bool), 200.0, -200.0)[None]
    assert not (np.asarray(matching.hard_negatives(jax.random.key(1), sure)) == np.arange(5)).any()
    taken = matching.take(jnp.arange(10), jnp.asarray([[1, 0, 0, 0, 3], [4, 4, 4, 4, 0]]))
    np.testing.assert_array_equal(taken, [1, 0, 0, 0, 3, 9, 9, 9, 9, 5])


@pytest.mark.parametrize("group", [2, 4])
def test_negatives_of_a_step_come_from_its_group(group):
    config = tiny.config("albef")
    config.group_size = group
    objective = job.objective_of(config)
    batch = jax.tree.map(jnp.asarray, tiny.batch())
    params = objective.init(jax.random.key(0), batch)
    memory = objective.init_memory(jax.random.key(1), params, batch)
    shapes = jax.eval_shape(objective.forward, params, memory, batch, jax.random.key(2), 0)
    assert shapes["negative/image"].shape == shapes["negative/text"].shape == (8 // group, group)


def test_matching_loss_weighs_one_positive_and_two_negatives_alike():
    logits = np.random.default_rng(1).normal(size=(4, 3, 2))
    want = [-np.log(np.exp(row[label]) / np.exp(row).sum()) for rows in logits for row, label in zip(rows, (1, 0, 0))]
    np.testing.assert_allclose(matching.loss(jnp.asarray(logits)), np.mean(want), rtol=1e-5)


@pytest.mark.full
def test_matching_is_learned_where_image_and_text_agree():
    """Planted: the brightness of an image is its text's word. After 900 steps the matching head tells pairs from hard negatives."""
    objective, tx, weights, state, _ = tiny.build("albef", {"mlm": 1, "mlm_distill": 0.0, "itc_distill": 0.0}, queue=0,
                                                  model=dict(text=dict(tiny.BERT, width=32, num_heads=4, mlp_dim=64)))
    step, rng = jax.jit(step_lib.make_step(objective, tx, weights)), np.random.default_rng(0)
    for _ in range(900):
        words = rng.permutation(8)
        images = (30 * words[:, None, None, None] + rng.integers(0, 8, (8, tiny.SIZE, tiny.SIZE, 3))).astype(np.uint8)
        text = np.zeros((8, tiny.CONTEXT), np.int32)
        text[:, 0], text[:, 1], text[:, 2] = 4 + words, 20, tiny.EOT
        batch = {"image": jnp.asarray(images), "text": jnp.asarray(text)}
        state, report = step(state, batch)
    assert float(report["itm/accuracy"]) > 0.9 and float(report["loss/itm"]) < 0.4
    right = objective.heads["match"](state.params, state.memory, batch)
    wrong = objective.heads["match"](state.params, state.memory, {**batch, "image": batch["image"][::-1]})
    assert float(jnp.mean(right["probability"])) > 0.8 > 0.3 > float(jnp.mean(wrong["probability"]))
    stored = objective.heads["states"](state.params, state.memory, batch)
    again = objective.heads["match"](state.params, state.memory, {**stored, "text": batch["text"]})
    np.testing.assert_allclose(again["score"], right["score"], atol=1e-5)


def test_padding_and_the_other_modality_matter_where_they_should():
    """Fused scores depend on the image and not on padding; the states of a text do on neither."""
    objective, _, _, state, batch = tiny.build("albef")
    params = jax.tree.map(lambda x: 5 * x, state.params)   # at the start a fused text hardly depends on the image
    states, match = (jax.jit(lambda batch, head=objective.heads[name]: head(params, state.memory, batch))
                     for name in ("states", "match"))
    text = batch["text"].at[:, 3:].set(jnp.asarray([tiny.EOT, 0, 0])[None])
    two = {"image": batch["image"][:2], "text": text[:2]}
    score = match(two)["score"]
    np.testing.assert_allclose(match({**two, "text": text[:2, :4]})["score"], score, atol=1e-5)
    assert float(jnp.max(jnp.abs(match({**two, "image": two["image"][::-1]})["score"] - score))) > 1e-3
    np.testing.assert_allclose(states(two)["text_states"][:, :4], states({"text": text[:2, :4]})["text_states"], atol=1e-5)


# ---- dropout ---------------------------------------------------------------------------------------------------------------------

def test_what_is_dropped_of_a_row_follows_from_its_seed_alone():
    x, seeds = jnp.ones((6, 40, 50)), bert.seeds(jax.random.uniform(jax.random.key(0), (6,)))
    whole = np.asarray(bert.drop(x, seeds, 3, 0.1))
    np.testing.assert_array_equal(bert.drop(x[4:], seeds[4:], 3, 0.1), whole[4:])
    assert set(np.unique(whole)) == {0.0, np.float32(1 / 0.9)} and np.mean(whole == 0) == pytest.approx(0.1, abs=0.01)
    assert (whole[0] != whole[1]).any() and (np.asarray(bert.drop(x, seeds, 4, 0.1)) != whole).any()


@pytest.mark.full
def test_dropout_does_not_depend_on_slices():
    """One step with dropout in one slice and in four: the same losses. Without the teacher's dropout others."""
    def losses(microbatches, **changes):
        config = tiny.config("albef", **changes)
        config.model.text.dropout, config.microbatches = 0.2, microbatches
        objective, batch = job.objective_of(config), jax.tree.map(jnp.asarray, tiny.batch())
        params = objective.init(jax.random.key(0), batch)
        memory = objective.init_memory(jax.random.key(1), params, batch)
        out = jax.jit(objective.forward)(params, memory, batch, jax.random.key(2), jnp.int32(0))
        return np.asarray([objective.terms[name](out) for name in ("itc", "itm", "mlm", "itc_distill", "mlm_distill")])

    whole = losses(1)
    np.testing.assert_allclose(losses(4), whole, rtol=1e-4, atol=1e-5)
    assert np.abs(losses(1, teacher_dropout=False) - whole)[[0, 3, 4]].min() > 1e-6
