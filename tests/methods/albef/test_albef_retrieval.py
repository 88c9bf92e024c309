"""Fine-tuning for retrieval: several positives by loops, negatives that share no image, the queue's ids, the published schedule."""
from functools import partial

import jax
import jax.numpy as jnp
from mcd_jax.configs.albef import albef_retrieval_b16, albef_retrieval_emoji
import numpy as np
import pytest
import test_albef as basis
import tiny

from mcd_jax import step as step_lib
from mcd_jax.methods.albef import matching, queue
from mcd_jax.optim import optimizer

B, SLOTS, SCALE = basis.B, basis.SLOTS, basis.SCALE
IDS = np.array([7, 7, 3, 4, 3, 7])
HELD = np.array([[7, 1, 3, 2, 9, 7], [-100] * 6, [5, 5, 5, 4, 4, 4]])


def slow(x, group):
    """Per row: the target over the keys that it reaches, its cross-entropy, softmax over the keys, and the keys."""
    result = []
    for i in range(B):
        others = [j for j in range(B) if j // group == i // group]
        keys = np.concatenate([basis.OWN[others], basis.QUEUE.reshape(-1, basis.D)])
        names = np.concatenate([IDS[others], HELD.reshape(-1)])
        p = np.exp(SCALE * keys @ x[i]) / np.sum(np.exp(SCALE * keys @ x[i]))
        y = (names == IDS[i]) / np.sum(names == IDS[i])
        result.append((y, -np.sum(y * np.log(p)), p, keys))
    return result


@pytest.mark.parametrize("implementation, group", [("gather", 2), pytest.param("ring", 6, marks=pytest.mark.full)])
def test_targets_are_spread_over_all_keys_of_one_image(implementation, group):
    f32 = partial(jnp.asarray, dtype=jnp.float32)

    @jax.jit
    def run(x, own, held):
        def loss(x):
            found = queue.cross_entropies(x, f32(basis.TEACHER), f32(basis.OWN), f32(basis.QUEUE), SCALE, group, implementation,
                                          (own, held))
            return jnp.mean(found.hard), found.hard
        return jax.grad(loss, has_aux=True)(x)

    gradient, hard = run(f32(basis.X), jnp.asarray(IDS), jnp.asarray(HELD))
    want = slow(basis.X, group)
    assert all(abs(y.sum() - 1) < 1e-12 for y, *_ in want) and max((y > 0).sum() for y, *_ in want) > 3
    np.testing.assert_allclose(hard, [h for _, h, _, _ in want], rtol=2e-4)
    np.testing.assert_allclose(gradient, [SCALE * (p - y) @ keys / B for y, _, p, keys in want], rtol=1e-3, atol=2e-5)
    alone, nobody = jnp.arange(B), jnp.full((SLOTS, B), queue.NOBODY)   # ids that differ: the plain loss
    np.testing.assert_allclose(run(f32(basis.X), alone, nobody)[1], basis.slow(basis.X, group)[0], rtol=2e-4)


def test_negatives_never_share_the_image():
    logits = jnp.asarray(np.random.default_rng(0).normal(size=(3, 4, 4)), jnp.float32)
    ids = jnp.asarray([[1, 1, 2, 3], [4, 4, 5, 4], [6, 6, 6, 6]])
    draw = jax.jit(jax.vmap(lambda key: matching.hard_negatives(key, logits, ids)))
    found = np.asarray(draw(jax.random.split(jax.random.key(0), 2000)))
    of = np.take_along_axis(np.asarray(ids)[None].repeat(2000, 0), found, 2)
    assert not (of[:, :2] == np.asarray(ids)[:2]).any() and not (found == np.arange(4)).any()
    for g, i in ((0, 0), (0, 3)):
        want = np.exp(np.asarray(logits)[g, i]) * (np.asarray(ids)[g] != ids[g, i])
        np.testing.assert_allclose(np.bincount(found[:, g, i], minlength=4) / 2000, want / want.sum(), atol=0.05)
    np.testing.assert_array_equal(matching.alone(ids), [False, False, True])


def test_pairs_without_a_negative_do_not_count():
    logits = np.random.default_rng(1).normal(size=(3, 3, 2))
    counted = np.array([True, False, True])
    pairs = [(row[k], int(k == 0)) for row, use in zip(logits, counted) for k in range(3) if use or k == 0]
    want = np.mean([-np.log(np.exp(z[label]) / np.exp(z).sum()) for z, label in pairs])
    np.testing.assert_allclose(matching.loss(jnp.asarray(logits), jnp.asarray(counted)), want, rtol=1e-5)
    right = np.mean([(z[1] > z[0]) == bool(label) for z, label in pairs])
    np.testing.assert_allclose(matching.accuracy(jnp.asarray(logits), jnp.asarray(counted)), right, rtol=1e-5)


@pytest.mark.full
def test_a_step_by_image_ids():
    """The queue's ids start where nobody is and are written after the loss; no masked words; the temperature isn't bound."""
    ids = jnp.asarray([0, 0, 1, 2, 3, 3, 4, 5])
    given = {"mlm": 0.0, "mlm_distill": 0.0}
    objective, tx, weights, state, batch = tiny.build("albef", given, rows={"ids": ids}, ids="ids", temperature_range=())
    assert objective.needs == ("image", "text", "ids") and set(np.unique(state.memory["queue"]["ids"])) == {-100}
    state = state._replace(params={**state.params, "temperature": jnp.float32(0.6)})
    after, report = jax.jit(step_lib.make_step(objective, tx, weights))(state, batch)
    np.testing.assert_array_equal(after.memory["queue"]["ids"], [ids, [-100] * 8])
    assert float(report["temperature"]) == pytest.approx(0.6) and "loss/mlm" not in report
    assert np.isfinite(float(report["loss"]))


def test_the_configs_of_fine_tuning():
    """Rates of salesforce/ALBEF configs/Retrieval_coco.yaml at 91de3c1: 1e-6 + 9e-6 (1 + cos(pi e / 5)) / 2."""
    config, steps = albef_retrieval_b16.get_config(), 400   # steps of an epoch of images
    _, found = optimizer.make(config.optimizer.to_dict() | {"decay_mask": ()}, {"w": jnp.zeros((2, 2))}, total_steps=25 * steps,
                          batch_size=256, examples=256 * steps)
    for epoch, rate in ((0, 1e-5), (1, 9.1406e-6), (2, 6.8906e-6), (4, 1.8594e-6)):
        for step in (5 * steps * epoch, 5 * steps * (epoch + 1) - 1):
            assert float(found["lr"](jnp.int32(step))) == pytest.approx(rate, rel=1e-4)
    assert (config.batch_size, config.group_size, config.steps, config.evals.rerank.test.k) == (256, 32, "25 epochs", 256)
    flickr = albef_retrieval_b16.get_config("set=flickr")
    assert flickr.steps == "50 epochs" and flickr.evals.rerank.test.k == 128
    small = albef_retrieval_emoji.get_config("run=runs/x")
    assert small.init_from == "runs/x" and small.objective.weights.mlm == 0 and small.objective.ids in small.data.views
    with pytest.raises(ValueError, match="set=imagenet: it is one of coco, flickr"):
        albef_retrieval_b16.get_config("set=imagenet")
