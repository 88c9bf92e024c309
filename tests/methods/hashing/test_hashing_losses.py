"""Losses of DCHMT and DSPH and what they share with AHLR-R, against slow formulas, in their limits, and as a ring."""
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import slow_hashing
import tiny_hashing

from mcd_jax import step as step_lib
from mcd_jax.methods.hashing import code_heads as code_heads_lib
from mcd_jax.methods.hashing import code_losses

B, K, C = 7, 6, 5
RNG = np.random.default_rng(0)
X, Y = (RNG.normal(size=(B, K)).astype(np.float32) for _ in range(2))
LABELS = (RNG.random((B, C)) < 0.35).astype(np.int32)
LABELS[1] = LABELS[2] = [1, 1, 0, 0, 0]
LABELS[3] = [0, 0, 1, 1, 0]      # several, and none in common with the two above


PAIRS = {"supervised": (code_losses.supervised, slow_hashing.supervised, 0.2),
         "distances": (code_losses.distances, slow_hashing.distances, 0.5),
         "apart": (code_losses.apart, slow_hashing.apart, 0.1)}


@pytest.mark.parametrize("name", PAIRS)
def test_hashing_losses_over_pairs_against_slow_formulas_gathered_and_as_a_ring(name):
    fn, slow, number = PAIRS[name]
    x, y = (jax.nn.softmax(jnp.asarray(a)) for a in (X, Y)) if name == "distances" else (jnp.asarray(X), jnp.asarray(Y))
    found = {implementation: jax.jit(jax.value_and_grad(lambda x, y: fn(x, y, jnp.asarray(LABELS), number, implementation),
                                                        argnums=(0, 1)))(x, y)
             for implementation in ("gather", "ring")}
    want = slow(np.asarray(x), np.asarray(y), LABELS, number)
    assert want > 1e-3
    for value, _ in found.values():
        assert float(value) == pytest.approx(want, rel=2e-5)
    for a, b in zip(found["gather"][1], found["ring"][1]):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)
        assert float(jnp.max(jnp.abs(a))) > 1e-4


def test_hashing_proxies_against_a_slow_formula():
    points = RNG.normal(size=(C, K)).astype(np.float32)
    got = code_losses.proxies(jnp.asarray(X), jnp.asarray(points), jnp.asarray(LABELS), 0.1)
    assert float(got) == pytest.approx(slow_hashing.proxies(X, points, LABELS, 0.1), rel=1e-5)
    none = code_losses.proxies(jnp.asarray(X), jnp.asarray(points), jnp.zeros((B, C), jnp.int32), 2.0)
    assert float(none) == 0 and np.isfinite(float(none))          # no label at all: no mean, and no NaN


def test_hashing_dchmt_is_zero_where_alike_rows_coincide_and_others_are_far():
    """4 bits, theta .5: c = 2; two codes that differ in two bits or more are sqrt(2 * 2) = 2 apart. Gradients stay finite."""
    codes = np.array([[1, 1, 1, 1], [1, 1, 1, 1], [0, 0, 1, 1], [1, 1, 0, 0]])
    selected = jnp.asarray(np.stack([1 - codes, codes], axis=-1).reshape(4, 8), jnp.float32)
    labels = jnp.asarray([[1, 0, 0], [1, 0, 0], [0, 1, 0], [0, 0, 1]])
    fn = lambda x: code_losses.distances(x, x, labels, 0.5, "gather")
    value, slope = jax.value_and_grad(fn)(selected)
    assert float(value) == 0 and float(jnp.max(jnp.abs(slope))) == 0
    assert float(code_losses.distances(selected, selected, labels, 0.75, "gather")) > 0       # 3 bits are asked for then
    same = jnp.full((4, 8), 0.5)
    value, slope = jax.value_and_grad(fn)(same)
    assert float(value) == pytest.approx(10 / 16 * 4) and np.isfinite(np.asarray(slope)).all()    # 10 unlike pairs, D = 0, c = 2


def test_hashing_dsph_is_zero_at_orthogonal_proxies():
    points = jnp.eye(4, 8)
    labels = jnp.eye(4, dtype=jnp.int32)
    assert float(code_losses.proxies(3 * points, points, labels, 0.0)) == pytest.approx(0, abs=1e-6)
    assert float(code_losses.apart(points, points, labels, 0.0, "gather")) == 0                # no row has several labels


def test_hashing_code_table_is_the_published_one():
    """Cells of QinLab-WFU/DSPH, utils/codetable.xlsx, by row K and column ceil(log2 C)."""
    known = {(16, 21): 0, (32, 24): 0, (64, 21): 0, (128, 24): 0, (16, 80): 0.25, (32, 80): 0.125, (64, 80): 0, (128, 80): 0,
             (16, 10): 0, (32, 16): 0, (64, 9): -0.03125, (64, 16): -0.03125, (128, 10): -0.0625, (16, 5): 0, (16, 3): -0.25,
             (64, 8): -0.125, (64, 17): 0, (64, 256): 0.09375, (32, 1000): 0.25, (48, 10): 0, (8, 2): -1}
    assert {place: code_losses.threshold(*place) for place in known} == known
    with pytest.raises(ValueError, match=r"we have 8, 12, .* 128 bits; for 10 labels with 20 bits set config\.objective\.thre"):
        code_losses.threshold(20, 10)
    with pytest.raises(ValueError, match="we have up to 256 labels; for 300 labels with 8 bits"):
        code_losses.threshold(8, 300)


@pytest.mark.parametrize("threshold, used", [(-1.0, -0.125), (-0.5, -0.5), (0.0, 0.0)])   # 5 labels
def test_hashing_thresholds_below_0_are_taken(threshold, used):
    objective, _, _, state, batch = tiny_hashing.stored("dsph", threshold=threshold, bits=64)
    out = objective.forward(state.params, state.memory, batch, jax.random.key(0), 0)
    want = sum(code_losses.proxies(out[name], out["proxies"], out["labels"], used) for name in ("image", "text"))
    np.testing.assert_allclose(objective.terms["proxy"](out), want, rtol=1e-6)


def test_hashing_layers_start_as_in_the_published_code():
    """DCHMT's are kaiming_uniform_(mode="fan_out") with biases of 0, DSPH's torch.nn.Linear: bounds and shares inside them."""
    select = code_heads_lib.select(64, 512).init(jax.random.key(0))
    linear = code_heads_lib.tanh(64, 512, "torch").init(jax.random.key(1))["out"]
    for values, bound in ((select["in"]["kernel"], (6 / 128) ** 0.5), (select["out"]["kernel"], (6 / 2) ** 0.5),
                          (linear["kernel"], 1 / 8), (linear["bias"], 1 / 8)):
        values = np.asarray(values) / bound
        assert 0.98 < np.abs(values).max() <= 1 and abs(np.mean(np.abs(values) < 0.5) - 0.5) < 0.07
    assert not np.any(select["in"]["bias"]) and not np.any(select["out"]["bias"])


def test_hashing_of_one_modality():
    u = np.array([[0.5, -0.2], [0.0, 0.9]])
    assert float(code_losses.quantise(jnp.asarray(u))) == pytest.approx(np.mean([0.25, 0.64, 1.0, 0.01]))
    assert float(code_losses.balance(jnp.asarray(u))) == pytest.approx((0.25 ** 2 + 0.35 ** 2) / 2)
    assert float(code_losses.toward(jnp.asarray(u), jnp.zeros((2, 2)))) == pytest.approx(np.mean(u ** 2))
    slope = jax.grad(lambda q: code_losses.toward(jnp.asarray(u, jnp.float32), q))(jnp.zeros((2, 2)))
    assert not np.asarray(slope).any()
    np.testing.assert_allclose(jax.grad(code_losses.quantise)(jnp.asarray(u)), 2 * (u - [[1, -1], [1, 1]]) / 4, rtol=1e-6)


def test_hashing_select_layer_gives_two_probabilities_for_each_bit():
    head = code_heads_lib.select(8, 16)
    params = head.init(jax.random.key(0))
    both = np.asarray(head.apply(params, jax.random.normal(jax.random.key(1), (3, 8))))
    assert both.shape == (3, 16, 2) and params["in"]["kernel"].shape == (8, 128) and params["out"]["kernel"].shape == (128, 32)
    np.testing.assert_allclose(both.sum(axis=-1), 1, rtol=1e-5)


@pytest.mark.parametrize("method", ["dchmt", "dsph"])
def test_hashing_baselines_train_and_their_heads_give_the_codes_they_train(method):
    objective, tx, weights, state, batch = tiny_hashing.stored(method)
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
        tiny_hashing.stored(method, **changes)


def test_hashing_labels_may_be_integers():
    objective, _, _, state, batch = tiny_hashing.stored("dsph", rows=dict(label=np.array([0, 1, 2, 2, 7, 0, 1, 1])), classes=3)
    assert state.params["proxies"].shape == (3, 16)
    out = objective.forward(state.params, {}, batch, jax.random.key(0), 0)
    assert np.asarray(out["labels"]).tolist()[3:5] == [[0, 0, 1], [0, 0, 0]]     # 7 is no label
