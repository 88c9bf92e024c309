"""Losses of DCHMT and DSPH and what they share with AHLR-R, against slow formulas, in their limits, and as a ring."""
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import slow_hashing
import tiny

from mcd_jax import step as step_lib
from mcd_jax.losses import hashing
from mcd_jax.models import hashing as heads_lib

B, K, C = 7, 6, 5
RNG = np.random.default_rng(0)
X, Y = (RNG.normal(size=(B, K)).astype(np.float32) for _ in range(2))
LABELS = (RNG.random((B, C)) < 0.35).astype(np.int32)
LABELS[1] = LABELS[2] = [1, 1, 0, 0, 0]
LABELS[3] = [0, 0, 1, 1, 0]      # several, and none in common with the two above


PAIRS = {"supervised": (hashing.supervised, slow_hashing.supervised, 0.2),
         "distances": (hashing.distances, slow_hashing.distances, 0.5),
         "apart": (hashing.apart, slow_hashing.apart, 0.1)}


@pytest.mark.parametrize("name", PAIRS)
def test_hashing_losses_over_pairs_against_slow_formulas_gathered_and_as_a_ring(name):
    fn, slow, number = PAIRS[name]
    x, y = (jax.nn.softmax(jnp.asarray(a)) for a in (X, Y)) if name == "distances" else (jnp.asarray(X), jnp.asarray(Y))
    found = {form: jax.jit(jax.value_and_grad(lambda x, y: fn(x, y, jnp.asarray(LABELS), number, form), argnums=(0, 1)))(x, y)
             for form in ("gather", "ring")}
    want = slow(np.asarray(x), np.asarray(y), LABELS, number)
    assert want > 1e-3
    for value, _ in found.values():
        assert float(value) == pytest.approx(want, rel=2e-5)
    for a, b in zip(found["gather"][1], found["ring"][1]):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)
        assert float(jnp.max(jnp.abs(a))) > 1e-4


def test_hashing_proxies_against_a_slow_formula():
    points = RNG.normal(size=(C, K)).astype(np.float32)
    got = hashing.proxies(jnp.asarray(X), jnp.asarray(points), jnp.asarray(LABELS), 0.1)
    assert float(got) == pytest.approx(slow_hashing.proxies(X, points, LABELS, 0.1), rel=1e-5)
    none = hashing.proxies(jnp.asarray(X), jnp.asarray(points), jnp.zeros((B, C), jnp.int32), 2.0)
    assert float(none) == 0 and np.isfinite(float(none))          # no label at all: no mean, and no NaN


def test_hashing_dchmt_is_zero_where_alike_rows_coincide_and_others_are_far():
    """4 bits, theta .5: c = 2; two codes that differ in two bits or more are sqrt(2 * 2) = 2 apart. Gradients stay finite."""
    codes = np.array([[1, 1, 1, 1], [1, 1, 1, 1], [0, 0, 1, 1], [1, 1, 0, 0]])
    selected = jnp.asarray(np.stack([1 - codes, codes], axis=-1).reshape(4, 8), jnp.float32)
    labels = jnp.asarray([[1, 0, 0], [1, 0, 0], [0, 1, 0], [0, 0, 1]])
    fn = lambda x: hashing.distances(x, x, labels, 0.5, "gather")
    value, slope = jax.value_and_grad(fn)(selected)
    assert float(value) == 0 and float(jnp.max(jnp.abs(slope))) == 0
    assert float(hashing.distances(selected, selected, labels, 0.75, "gather")) > 0       # 3 bits are asked for then
    same = jnp.full((4, 8), 0.5)
    value, slope = jax.value_and_grad(fn)(same)
    assert float(value) == pytest.approx(10 / 16 * 4) and np.isfinite(np.asarray(slope)).all()    # 10 unlike pairs, D = 0, c = 2


def test_hashing_dsph_is_zero_at_orthogonal_proxies():
    points = jnp.eye(4, 8)
    labels = jnp.eye(4, dtype=jnp.int32)
    assert float(hashing.proxies(3 * points, points, labels, 0.0)) == pytest.approx(0, abs=1e-6)
    assert float(hashing.apart(points, points, labels, 0.0, "gather")) == 0                # no row has several labels


def test_hashing_code_table_as_far_as_it_is_known():
    known = {(16, 21): 0, (32, 24): 0, (64, 21): 0, (128, 24): 0, (16, 80): 0.25, (32, 80): 0.125, (64, 80): 0, (128, 80): 0}
    assert {place: hashing.threshold(*place) for place in known} == known
    with pytest.raises(ValueError, match=r"for 10 labels with 16 bits set config\.objective\.threshold"):
        hashing.threshold(16, 10)
    with pytest.raises(ValueError, match="for 5 labels with 16 bits"):
        tiny.hashing("dsph", threshold=-1.0)


def test_hashing_of_one_modality():
    u = np.array([[0.5, -0.2], [0.0, 0.9]])
    assert float(hashing.quantise(jnp.asarray(u))) == pytest.approx(np.mean([0.25, 0.64, 1.0, 0.01]))
    assert float(hashing.balance(jnp.asarray(u))) == pytest.approx((0.25 ** 2 + 0.35 ** 2) / 2)
    assert float(hashing.toward(jnp.asarray(u), jnp.zeros((2, 2)))) == pytest.approx(np.mean(u ** 2))
    slope = jax.grad(lambda q: hashing.toward(jnp.asarray(u, jnp.float32), q))(jnp.zeros((2, 2)))
    assert not np.asarray(slope).any()
    np.testing.assert_allclose(jax.grad(hashing.quantise)(jnp.asarray(u)), 2 * (u - [[1, -1], [1, 1]]) / 4, rtol=1e-6)


def test_hashing_select_layer_gives_two_probabilities_for_each_bit():
    head = heads_lib.select(8, 16)
    params = head.init(jax.random.key(0))
    both = np.asarray(head.apply(params, jax.random.normal(jax.random.key(1), (3, 8))))
    assert both.shape == (3, 16, 2) and params["in"]["kernel"].shape == (8, 128) and params["out"]["kernel"].shape == (128, 32)
    np.testing.assert_allclose(both.sum(axis=-1), 1, rtol=1e-5)


@pytest.mark.parametrize("method", ["dchmt", "dsph"])
def test_hashing_baselines_train_and_their_heads_give_the_codes_they_train(method):
    objective, tx, weights, state, batch = tiny.hashing(method)
    step = jax.jit(step_lib.make_step(objective, tx, weights))
    losses = []
    for _ in range(30):
        state, report = step(state, batch)
        losses.append(float(report["loss"]))
    assert losses[-1] < losses[0] and np.isfinite(losses).all()
    out = objective.forward(state.params, {}, batch, jax.random.key(0), state.step)
    codes = objective.heads["hash"](state.params, {}, {"image": batch["image"]})
    assert set(codes) == {"image"} and codes["image"].shape == (8, 16) and float(jnp.max(jnp.abs(codes["image"]))) <= 1
    if method == "dchmt":     # "on" minus "off", whose sign is the published argmax
        chosen = np.asarray(out["image"]).reshape(8, 16, 2)
        np.testing.assert_array_equal(np.where(np.asarray(codes["image"]) >= 0, 1, 0), np.argmax(chosen, axis=-1))
    else:
        kept = np.asarray(out["image"]) != 0                       # dropout: a fifth of the codes, never in evaluations
        assert 0.6 < kept.mean() < 0.95 and np.asarray(codes["image"]).all()
        exported = {k: v for k, v in state.params.items() if k != "proxies"}
        np.testing.assert_array_equal(objective.heads["hash"](exported, {}, batch)["image"], codes["image"])


@pytest.mark.parametrize("method, changes, words", [
    ("dchmt", dict(theta=0.0), r"config\.objective\.theta=0\.0 must lie in \(0, 1\]"),
    ("dsph", dict(dropout=1.0), r"config\.objective\.dropout=1\.0 must lie in \[0, 1\)"),
    ("dchmt", dict(bits="32"), r"config\.objective\.bits='32' must be a whole number"),
])
def test_hashing_options_that_do_not_fit_are_refused(method, changes, words):
    with pytest.raises(ValueError, match=words):
        tiny.hashing(method, **changes)


def test_hashing_labels_may_be_integers():
    objective, _, _, state, batch = tiny.hashing("dsph", rows=dict(label=np.array([0, 1, 2, 2, 7, 0, 1, 1])), classes=3)
    assert state.params["proxies"].shape == (3, 16)
    out = objective.forward(state.params, {}, batch, jax.random.key(0), 0)
    assert np.asarray(out["labels"]).tolist()[3:5] == [[0, 0, 1], [0, 0, 0]]     # 7 is no label
