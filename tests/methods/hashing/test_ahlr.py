"""AHLR-R, our reconstruction: its degenerate settings are known baselines, its mask and weights are what they say."""
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
import tiny_hashing

from mcd_jax import config as config_lib
from mcd_jax import step as step_lib
from mcd_jax.losses import contrastive
from mcd_jax.methods.hashing import ahlr, code_losses
from mcd_jax.methods.hashing import code_heads as code_heads_lib

OFF = dict(auxiliary=0.0, guide=0.0)


def built(weights=None, **changes):
    """(objective, state, batch) of a tiny AHLR-R over stored embeddings: heads alone, which compile fast."""
    objective, _, _, state, batch = tiny_hashing.stored("ahlr", weights, **changes)
    return objective, state, batch


def forward(objective, params, batch, step=0):
    return objective.forward(params, {}, batch, jax.random.key(1), jnp.int32(step))


def loss(objective, weights, params, batch, step=0):
    out = forward(objective, params, batch, step)
    return sum(weight * objective.terms[name](out) for name, weight in weights.items() if weight)


def test_ahlr_without_mask_and_auxiliary_is_the_linear_baseline_bit_for_bit():
    """rho_min = 1, p forced to 1 and lam_a = lam_g = 0, against an independent CLIP + linear hash + contrastive loss."""
    objective, state, batch = built(OFF, keep_share=1.0)
    weights = dict(hash=1.0, quantise=0.1)
    params = jax.tree.map(jnp.copy, state.params)
    for name in ("image", "text"):
        out = params["hash"][name]["gate"]["out"]
        params["hash"][name]["gate"]["out"] = {"kernel": jnp.zeros_like(out["kernel"]), "bias": jnp.full_like(out["bias"], 100.0)}
    assert "auxiliary" not in params

    def baseline(params):
        codes = {}
        for name in ("image", "text"):
            dense = params["hash"][name]["main"]["out"]
            codes[name] = jnp.tanh(batch[name] @ dense["kernel"] + dense["bias"][None])
        unit = lambda u: u / jnp.sqrt(jnp.maximum(jnp.sum(u * u, axis=-1, keepdims=True), 1e-12))
        logits = 5.0 * jnp.einsum("bk,ck->bc", unit(codes["image"]), unit(codes["text"]), precision="highest")
        labels = np.asarray(batch["label"])
        alike = jnp.asarray(((labels @ labels.T > 0) | np.eye(len(labels), dtype=bool)).astype(np.float32))
        rows = [jax.nn.logsumexp(logits, axis=a) - jnp.sum(alike * logits, axis=a) / jnp.sum(alike, axis=1) for a in (0, 1)]
        signs = {name: jax.lax.stop_gradient(jnp.where(u >= 0, 1.0, -1.0)) for name, u in codes.items()}
        return 0.5 * (jnp.mean(rows[0]) + jnp.mean(rows[1])) + 0.1 * sum(jnp.mean((codes[n] - signs[n]) ** 2) for n in codes)

    plain, _, _ = built(OFF, mask=False)
    got, slopes = jax.jit(jax.value_and_grad(lambda p: loss(objective, weights, p, batch, step=9)))(params)
    without = {**params, "hash": {name: {"main": params["hash"][name]["main"]} for name in ("image", "text")}}
    switched, same = jax.jit(jax.value_and_grad(lambda p: loss(plain, weights, p, batch)))(without)
    want, slow = jax.jit(jax.value_and_grad(baseline))(without)
    assert float(got) == float(switched)                                    # the two settings, bit for bit
    assert float(switched) == pytest.approx(float(want), rel=1e-6)          # an independent baseline, in its own order of sums
    for name in ("image", "text"):
        main = lambda tree: tree["hash"][name]["main"]["out"]["kernel"]
        np.testing.assert_array_equal(main(slopes), main(same))
        np.testing.assert_allclose(main(same), main(slow), rtol=1e-4, atol=1e-7)


def test_ahlr_mask_keeps_exactly_the_largest_channels():
    p = jax.nn.sigmoid(jax.random.normal(jax.random.key(0), (6, 10)))
    for share in (1.0, 0.71, 0.7, 0.5, 0.05):
        mask = np.asarray(jax.jit(code_heads_lib.keep_largest)(p, jnp.float32(share)))
        count = math.ceil(round(share * 10, 6))                             # 0.7 * 10 is 7, though float32 says 7.0000002
        assert (mask.sum(axis=1) == count).all(), (share, mask.sum(axis=1))
        for row, own in zip(np.asarray(p), mask):
            assert set(np.flatnonzero(own)) == set(np.argsort(-row)[:count])
    assert np.asarray(code_heads_lib.keep_largest(jnp.ones((2, 8)), 0.5)).sum(axis=1).tolist() == [4, 4]      # ties too
    one = np.asarray(code_heads_lib.keep_largest(p, 0.5, whole_batch=True))
    assert (one == one[:1]).all() and set(np.flatnonzero(one[0])) == set(np.argsort(-np.asarray(p).mean(axis=0))[:5])


def test_ahlr_gradients_reach_p_and_not_the_mask_and_guide_leaves_the_auxiliary_branch_alone():
    objective, state, batch = built()
    moved = lambda term, **how: jax.jit(jax.grad(lambda p: objective.terms[term](forward(objective, p, batch, 9))))(state.params)
    largest = lambda tree: max(float(jnp.max(jnp.abs(g))) for g in jax.tree.leaves(tree))
    found = moved("hash")
    for name in ("image", "text"):
        assert largest(found["hash"][name]["gate"]) > 0 and largest(found["hash"][name]["main"]) > 0
    assert largest(found["auxiliary"]) == 0
    guided = moved("guide")
    assert largest(guided["auxiliary"]) == 0 and largest(guided["hash"]) > 0
    assert largest(moved("auxiliary")["auxiliary"]) > 0
    p = jnp.linspace(0.1, 0.9, 8)[None]
    kept = lambda p: jnp.sum(code_heads_lib.keep_largest(p, 0.5) * jnp.arange(8.0)[None])
    assert float(kept(p)) == 4 + 5 + 6 + 7 and largest(jax.grad(kept)(p)) == 0


def test_ahlr_share_of_the_channels_falls_and_codes_of_evaluations_see_the_last():
    """10 steps, of which the first 30 % thin the mask: 1, .9, .8, then .7; the head doesn't change with the step."""
    objective, state, batch = built()
    shares = [float(forward(objective, state.params, batch, s)["share"]) for s in (0, 1, 2, 3, 9)]
    np.testing.assert_allclose(shares, [1, 0.9, 0.8, 0.7, 0.7], rtol=1e-6)
    head = objective.heads["hash"](state.params, {}, {k: batch[k] for k in ("image", "text")})
    late = forward(objective, state.params, batch, 9)
    for name in ("image", "text"):
        np.testing.assert_allclose(head[name], late[name], rtol=1e-5, atol=1e-6)
        again = objective.heads["hash"](state.params, {}, {name: batch[name][::-1]})[name]      # any batch: row by row
        np.testing.assert_allclose(head[name], again[::-1], rtol=1e-5, atol=1e-6)


def test_ahlr_channel_weights_start_at_one_and_sum_to_the_width():
    channels = code_heads_lib.channels(12)
    params, x = channels.init(jax.random.key(0)), jax.random.normal(jax.random.key(1), (5, 12))
    np.testing.assert_allclose(channels.apply(params, x), 1.0, rtol=1e-6)
    params = jax.tree.map(lambda w: w + jax.random.normal(jax.random.key(2), w.shape), params)
    weights = np.asarray(channels.apply(params, x))
    np.testing.assert_allclose(weights.sum(axis=1), 12, rtol=1e-5)
    assert weights.std() > 0.1
    p = code_heads_lib.gate(64).apply(code_heads_lib.gate(64).init(jax.random.key(0)), jax.random.normal(jax.random.key(1),
                                                                                                         (5, 64)))
    assert abs(float(jnp.mean(p)) - 0.98) < 0.01


def test_ahlr_contrastive_loss_in_its_limits():
    x, y = (jax.random.normal(jax.random.key(i), (8, 6)) for i in (0, 1))
    same = jnp.ones((8, 6))
    everyone, own = jnp.ones((8, 3), jnp.int32), jnp.eye(8, dtype=jnp.int32)
    value = lambda *a, implementation="gather": float(code_losses.supervised(*a, 0.2, implementation))
    assert value(same, same, everyone) == pytest.approx(math.log(8))                 # S all ones: its minimum is log N
    assert value(x, y, everyone) >= math.log(8)
    assert value(same, same, own) == pytest.approx(math.log(8))                      # identical codes, one-hot labels
    unit = lambda a: a / jnp.linalg.norm(a, axis=1, keepdims=True)
    assert value(x, y, own) == pytest.approx(float(contrastive.softmax(unit(x), unit(y), 5.0, "gather")), rel=1e-6)
    assert value(x, y, None) == pytest.approx(value(x, y, own), rel=1e-6)            # S = identity: InfoNCE
    assert value(x, y, jnp.zeros((8, 3), jnp.int32)) == pytest.approx(value(x, y, own), rel=1e-6)   # a row is its own positive
    labels, order = jnp.asarray(tiny.batch()["label"]), np.random.default_rng(0).permutation(8)
    assert value(x[order], y[order], labels[order]) == pytest.approx(value(x, y, labels), rel=1e-5)


def test_ahlr_retrieval_model_has_no_auxiliary_parameters():
    objective, state, batch = built()
    assert set(state.params) == {"image", "text", "hash", "auxiliary"}
    exported = {k: v for k, v in state.params.items() if k != "auxiliary"}
    views = {k: batch[k] for k in ("image", "text")}
    for name in ("hash", "embed"):
        jax.tree.map(np.testing.assert_array_equal, objective.heads[name](exported, {}, views),
                     objective.heads[name](state.params, {}, views))
    summed, own, _ = built(test="sum")
    with pytest.raises(KeyError, match="auxiliary"):
        summed.heads["hash"](exported, {}, views)
    plain = objective.heads["hash"](own.params, {}, views)["image"]
    other = summed.heads["hash"](own.params, {}, views)["image"]
    assert other.shape == plain.shape and float(jnp.max(jnp.abs(other - plain))) > 1e-3


def test_ahlr_bits_are_never_zero_and_codes_come_by_their_names():
    assert code_losses.sign(jnp.array([-0.1, -0.0, 0.0, 2.0])).tolist() == [-1, 1, 1, 1]
    objective, state, batch = built()
    codes = objective.heads["hash"](state.params, {}, {"text": batch["text"]})
    assert set(codes) == {"text"} and codes["text"].shape == (8, 16)
    assert set(np.unique(code_losses.sign(codes["text"]))) <= {-1.0, 1.0}
    assert {"image_hash", "text_hash", "image", "text_raw"} <= set(objective.heads["embed"](state.params, {}, batch))


@pytest.mark.full
@pytest.mark.parametrize("changes", [dict(mask_of="batch"), dict(gate="straight_through"), dict(mask=False), dict(keep_share=0.3),
                                     dict(auxiliary_bits=24, weights=dict(guide=0.0)), dict(test="sum"), dict(positives="pair"),
                                     dict(weights=dict(OFF, balance=1.0)), dict(temperature=0.1), dict(bits=128)], ids=str)
def test_ahlr_every_switch_runs_and_changes_the_update(changes):
    changes = dict(changes)
    given = changes.pop("weights", None)
    reports = []
    for how in ((None, {}), (given, changes)):
        objective, tx, weights, state, batch = tiny_hashing.stored("ahlr", how[0], **how[1])
        step = jax.jit(step_lib.make_step(objective, tx, weights))
        for _ in range(5):     # the mask thins from the second step on
            state, report = step(state, batch)
        reports.append({k: float(report[k]) for k in ("loss", "grad_norm")})
    assert np.isfinite(list(reports[1].values())).all()
    assert changes == dict(test="sum") or abs(reports[1]["loss"] / reports[0]["loss"] - 1) > 1e-6


@pytest.mark.parametrize("changes, words", [
    (dict(keep_share=0.0), r"config\.objective\.keep_share=0\.0 must lie in \(0, 1\]"),
    (dict(mask_of="token"), r"config\.objective\.mask_of='token' must be one of sample, batch"),
    (dict(auxiliary_bits=8), r"config\.objective\.auxiliary_bits=8 differs from bits=16: the term guide"),
    (dict(bits=0), r"config\.objective\.bits=0 must be a whole number of at least 1"),
    (dict(classes=5), r"config\.objective\.classes=5, and batch key 'label' has rows of shape \(5,\)"),
    (dict(temperature=-1.0), "temperature=-1.0 be positive"),
])
def test_ahlr_options_that_do_not_fit_are_refused(changes, words):
    with pytest.raises(ValueError, match=words):
        objective, state, batch = built(**changes)
        forward(objective, state.params, batch)


def test_ahlr_says_that_it_is_a_reconstruction():
    assert "RECONSTRUCTION" in ahlr.__doc__ and "AHLR-R" in ahlr.__doc__
    options = config_lib.objective("ahlr")
    assert (options.keep_share, options.keep_until, options.temperature) == (0.7, 0.3, 0.2)
    assert options.weights.to_dict() == dict(hash=1.0, auxiliary=0.5, guide=0.1, quantise=0.1, balance=0.0)
