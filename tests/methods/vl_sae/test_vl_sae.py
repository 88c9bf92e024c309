"""VL-SAE: the encoder by distance against slow formulas and the published properties, the models, schedule and objective."""
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tiny

from mcd_jax import job
from mcd_jax import step as step_lib
from mcd_jax.methods.vl_sae import sae as sae_lib
from mcd_jax.methods.vl_sae import sparse
from mcd_jax.optim import optimizer


@functools.cache
def made(*given, **how):
    """`tiny.build` once for the same arguments, with the raw embeddings of its batch."""
    parts = tiny.build("vl_sae", dict(given), **how)
    raw = jax.device_get(jax.jit(parts[0].heads["embed"])(parts[3].params, parts[3].memory, parts[4]))
    return *parts, raw


def unit(x):
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def slow_codes(x, weights, k):
    """2 - distance of unit vectors, row by row in float64, and the k largest."""
    codes = np.zeros((len(x), len(weights)))
    for i, row in enumerate(unit(np.asarray(x, np.float64))):
        a = np.array([2 - np.sqrt(np.sum((row - w) ** 2)) for w in unit(np.asarray(weights, np.float64))])
        kept = np.argsort(-a)[:k]
        codes[i, kept] = a[kept]
    return codes


@pytest.fixture(scope="module")
def drawn():
    rng = np.random.default_rng(0)
    return rng.normal(size=(6, 12)).astype(np.float32), rng.normal(size=(40, 12)).astype(np.float32)


def test_codes_equal_a_slow_formula(drawn):
    x, w = drawn
    np.testing.assert_allclose(sparse.top(sparse.closeness(x, w), 7), slow_codes(x, w, 7), atol=2e-6)


def test_properties_of_the_activations(drawn):
    x, w = drawn
    a = np.asarray(sparse.closeness(x, w))
    assert a.min() >= 0 and a.max() <= 2
    np.testing.assert_allclose(sparse.closeness(3.5 * x, 0.2 * w), a, atol=1e-6)           # no length matters
    np.testing.assert_allclose(np.diag(sparse.closeness(x, 2 * x)), 2, atol=1e-3)           # parallel, and only then
    np.testing.assert_allclose(np.diag(sparse.closeness(x, -x)), 0, atol=1e-3)
    cosine = unit(x) @ unit(w).T
    assert all((np.argsort(row) == np.argsort(c)).all() for row, c in zip(a, cosine))       # monotone in the cosine
    codes = np.asarray(sparse.top(a, 5))
    assert ((codes > 0).sum(1) == 5).all() and all(set(np.flatnonzero(h)) == set(np.argsort(-c)[:5]) for h, c in zip(codes, cosine))
    np.testing.assert_array_equal(sparse.top(jnp.asarray(a), a.shape[1]), a)                # k = H keeps all
    for y in (x[::-1], x + 0.1, -x):   # |a(x) - a(y)| <= ||n(x) - n(y)||
        bound = np.linalg.norm(unit(x) - unit(y), axis=1)[:, None]
        assert (np.abs(a - np.asarray(sparse.closeness(y, w))) <= bound + 1e-5).all()


def test_a_tie_keeps_exactly_k():
    """Three equal maxima, k = 2: the released threshold keeps none, and says so here in its own words (strictly above)."""
    a = np.array([[1.0, 1.0, 1.0, 0.5, 0.2]], np.float32)
    threshold = np.sort(a[0])[len(a[0]) - 2 - 1]
    assert np.sum(a > threshold) == 0
    np.testing.assert_array_equal(sparse.top(jnp.asarray(a), 2), [[1, 1, 0, 0, 0]])


def test_gradients_reach_the_kept_units_and_stay_finite(drawn):
    x, w = drawn

    @jax.jit
    @functools.partial(jax.grad, argnums=(0, 1))
    def grad(w, x):
        return jnp.sum(jnp.square(sparse.top(sparse.closeness(x, w), 3)) * jnp.arange(1.0, 1 + len(w))[None])

    at = w.copy()
    at[4] = 2 * x[0]                                 # a row lies on a unit
    by_w, by_x = grad(jnp.asarray(at), jnp.asarray(x))
    assert np.isfinite(by_w).all() and np.isfinite(by_x).all()
    used = (slow_codes(x, at, 3) > 0).any(0)
    assert not np.asarray(by_w)[~used].any() and np.asarray(by_w)[used & (np.arange(len(w)) != 4)].any(1).all()
    small = 1e-3
    moved = at.astype(np.float64).copy()
    row = int(np.flatnonzero(used & (np.arange(len(w)) != 4))[0])
    moved[row, 0] += small
    slow = [np.sum(slow_codes(x, m, 3) ** 2 * np.arange(1.0, 1 + len(w))) for m in (moved, at)]
    np.testing.assert_allclose((slow[0] - slow[1]) / small, by_w[row, 0], rtol=0.02, atol=1e-3)


def test_support_overlap_of_random_weights():
    """cos(h, h') of random weights, d = 512, H = 4096, k = 256: the measured table; the support carries the information."""
    table = {1.0: 1.0, 0.9: 0.659, 0.7: 0.418, 0.5: 0.268, 0.3: 0.163, 0.2: 0.123, 0.1: 0.090, 0.0: 0.062, -0.3: 0.0125}
    rng = np.random.default_rng(1)
    x, noise = unit(rng.normal(size=(48, 512))), rng.normal(size=(48, 512))
    noise = unit(noise - np.sum(noise * x, 1, keepdims=True) * x)
    w = jnp.asarray(rng.normal(size=(4096, 512)), jnp.float32)
    fn = jax.jit(lambda x: sparse.top(sparse.closeness(x, w), 256))
    own = fn(jnp.asarray(x, jnp.float32))
    assert float(jnp.min(sparse.closeness(jnp.asarray(x), w))) > 0.40 and 0.60 < float(jnp.min(own[own > 0])) < 0.66
    for cosine, want in table.items():
        other = fn(jnp.asarray(cosine * x + (1 - cosine ** 2) ** 0.5 * noise, jnp.float32))
        found = float(jnp.mean(sparse.cosine(own, other)))
        assert abs(found - want) < 0.01, (cosine, found)


VARIANTS = [dict(), dict(shared_decoder=True), dict(encoder="linear"), dict(encoder="linear", shared_encoder=False),
            dict(encoder="linear", shared_decoder=True)]


@pytest.mark.parametrize("options", VARIANTS, ids=str)
def test_models(options):
    """Parameter counts, and what each modality's path depends on."""
    d, h = 6, 24
    sae = sae_lib.make(d, h, 4, **options)
    params = sae.init(jax.random.key(0))
    linear, own, one = options.get("encoder") == "linear", not options.get("shared_encoder", True), options.get("shared_decoder")
    count = (2 if own else 1) * (h * d + (h if linear else 0)) + (1 if one else 2) * (h * d + d)
    assert sum(x.size for x in jax.tree.leaves(params)) == count
    if not options:
        assert count == 3 * h * d + 2 * d
    x = jnp.asarray(np.random.default_rng(0).normal(size=(5, d)), jnp.float32)
    image, text = (sae.encode(params, kind, x) for kind in ("image", "text"))
    assert bool(jnp.all(image == text)) == (not own)
    decoded = [sae.decode(params, kind, image) for kind in ("image", "text")]
    assert bool(jnp.all(decoded[0] == decoded[1])) == bool(one)
    bounds = {"kernel": d ** -0.5, "bias": d ** -0.5}
    for path, leaf in jax.tree_util.tree_leaves_with_path(params["encoder"]):
        assert 0.7 * bounds[path[-1].key] < float(jnp.max(jnp.abs(leaf))) <= bounds[path[-1].key]
    for leaf in jax.tree.leaves(params["decoder"]):
        assert float(jnp.max(jnp.abs(leaf))) <= h ** -0.5


def test_what_the_objective_refuses():
    with pytest.raises(ValueError, match=r"text tower would be trained: set config.model.locked="):
        tiny.build("vl_sae", model=dict(locked=("image", "image/proj")))
    with pytest.raises(ValueError, match=r"k=33 must lie between 1 and the 32 units"):
        tiny.build("vl_sae", k=33)
    with pytest.raises(ValueError, match="auxiliary=True"):
        tiny.build("vl_sae", dict(align=1.0))
    with pytest.raises(ValueError, match="encoder='square' must be one of distance, linear"):
        tiny.build("vl_sae", encoder="square")


def test_reconstructions_are_those_of_a_slow_autoencoder():
    """From the parameters alone: embeddings by the head, codes and decoders by numpy. The pairing plays no part."""
    objective, _, _, state, batch, raw = made()
    fn = jax.jit(lambda params, batch: objective.forward(params, state.memory, batch, jax.random.key(1), 0))
    out = fn(state.params, batch)
    sae = jax.device_get(state.params["sae"])
    for kind in ("image", "text"):
        codes = slow_codes(raw[f"{kind}_raw"], sae["encoder"]["kernel"], 8)
        decoded = codes @ sae["decoder"][kind]["kernel"].astype(np.float64) + sae["decoder"][kind]["bias"]
        want = np.mean((decoded - np.asarray(raw[f"{kind}_raw"], np.float64)) ** 2)
        np.testing.assert_allclose(float(objective.terms[kind](out)), want, rtol=1e-4)
    turned = fn(state.params, {**batch, "text": batch["text"][::-1]})
    np.testing.assert_allclose(objective.terms["text"](turned), objective.terms["text"](out), rtol=1e-5)
    head = jax.jit(objective.heads["concepts"])
    codes = head(state.params, state.memory, batch)
    again = head(state.params, state.memory, {k: raw[k] for k in ("image_raw", "text_raw")})
    for key, value in codes.items():   # the same from views and from embeddings that are there
        np.testing.assert_allclose(again[key], value, atol=1e-5)
    np.testing.assert_allclose(codes["image_codes"], out["image/codes"], atol=1e-6)


def test_nothing_but_the_autoencoder_is_trained_and_the_towers_stay_in_memory():
    objective, tx, weights, state, batch, _ = made()
    assert {k for k, v in state.params.items() if jax.tree.leaves(v)} == {"sae"} and "locked" in state.memory
    after, report = jax.jit(step_lib.make_step(objective, tx, weights))(state, batch)
    jax.tree.map(np.testing.assert_array_equal, state.memory, after.memory)
    assert float(report["active"]) == 8 and 0 < float(report["used/image"]) <= 1


@pytest.mark.parametrize("normalize", [False, pytest.param(True, marks=pytest.mark.full)])
def test_the_auxiliary_autoencoder(normalize):
    """Its losses against numpy, raw inner products or cosines."""
    weights = dict(image=0.0, text=0.0, align=1.0, align_image=1.0, align_text=1.0)
    objective, _, _, state, batch, raw = made(*weights.items(), auxiliary=True, aux_normalize=normalize)
    assert "sae" not in state.params and "concepts" not in objective.heads
    out = jax.device_get(jax.jit(objective.forward)(state.params, state.memory, batch, jax.random.key(1), 0))
    encoded = {k: np.asarray(out[f"aux/{k}"], np.float64) for k in ("image", "text")}
    pair = {k: unit(v) if normalize else v for k, v in encoded.items()}
    logits = pair["image"] @ pair["text"].T / 0.07

    def entropy(table):
        return np.mean([np.log(np.sum(np.exp(row - row.max()))) + row.max() - row[i] for i, row in enumerate(table)])

    np.testing.assert_allclose(objective.terms["align"](out), (entropy(logits) + entropy(logits.T)) / 2, rtol=1e-4)
    for kind in ("image", "text"):
        own = jax.device_get(state.params["aux"][kind])
        want = encoded[kind] @ own["decode"]["kernel"] + own["decode"]["bias"] - raw[f"{kind}_raw"].astype(np.float64)
        np.testing.assert_allclose(objective.terms[f"align_{kind}"](out), np.mean(want ** 2), rtol=1e-4)


def test_the_sparse_autoencoder_sends_the_auxiliary_one_no_gradient():
    objective, _, _, state, batch = tiny.build("vl_sae", auxiliary=True)
    grads = jax.jit(jax.grad(lambda p: sum(objective.terms[k](objective.forward(p, state.memory, batch, jax.random.key(1), 0))
                                           for k in ("image", "text"))))(state.params)
    assert all(not np.asarray(g).any() for g in jax.tree.leaves(grads["aux"]))
    assert any(np.asarray(g).any() for g in jax.tree.leaves(grads["sae"]))


@pytest.mark.full
def test_centring_follows_the_mean_of_the_batches():
    objective, tx, weights, state, batch = tiny.build("vl_sae", center=True)
    step, embed = jax.jit(step_lib.make_step(objective, tx, weights)), made()[0].heads["embed"]
    other, embed = {**batch, "image": batch["image"][:, ::-1]}, jax.jit(embed)
    first, second = (np.asarray(embed(state.params, state.memory, rows)["image_raw"]).mean(0) for rows in (batch, other))
    state, _ = step(state, batch)
    np.testing.assert_allclose(state.memory["mean"]["image"], first, atol=1e-5)
    state, _ = step(state, other)
    np.testing.assert_allclose(state.memory["mean"]["image"], (first + second) / 2, atol=1e-5)


RATES = (5.00e-4, 1.00e-3, 9.619e-4, 8.536e-4, 6.913e-4, 5.00e-4, 3.087e-4, 1.464e-4, 3.81e-5, 0.0)


def test_the_learning_rates_of_the_released_schedule():
    """Ten epochs of 7 steps: the rates of a replica of the released scheduler; one more stair leaves none at 0."""
    def rates(**more):
        schedule = dict(name="stairs", every="1 epoch", warmup="2 epochs", **more)
        _, fns = optimizer.make(dict(lr=1e-3, schedule=schedule), {"w": jax.ShapeDtypeStruct((2,), np.float32)}, total_steps=70,
                            batch_size=512, examples=7 * 512)
        return np.array([float(fns["lr"](jnp.int32(s))) for s in range(70)]).reshape(10, 7)

    found = rates()
    np.testing.assert_allclose(found, np.repeat(np.array(RATES)[:, None], 7, 1), atol=5e-8)
    fixed = rates(fix_last_epoch=True)
    np.testing.assert_allclose(fixed[:2], found[:2], atol=1e-9)
    np.testing.assert_allclose(fixed[9, 0], 1e-3 * (1 + np.cos(np.pi * 8 / 9)) / 2, rtol=1e-4)
    with pytest.raises(ValueError, match="needs every=<duration>"):
        optimizer.make(dict(schedule=dict(name="stairs")), {"w": jax.ShapeDtypeStruct((2,), np.float32)}, 70, 512, 3584)
    with pytest.raises(ValueError, match="every belongs to name='stairs'"):
        optimizer.make(dict(schedule=dict(name="cosine", every=3)), {"w": jax.ShapeDtypeStruct((2,), np.float32)}, 70, 512, 3584)


def test_a_job_of_stored_rows(tmp_path):
    """`inputs` of a view of rows: no pixels, no tokens."""
    class Pipeline:
        shapes, vocab_size, context, eot, pad = {"image": ((8, 5), np.float32)}, None, None, None, None
    assert job.inputs(tiny.config("clip"), Pipeline) == dict(vocab_size=None, context=None, eot=None, image_size=0)


# ---- planted concepts ----


@pytest.mark.full
def test_one_encoder_finds_planted_concepts_in_both_modalities():
    """Pairs are sums of the same few of 64 directions, beside an offset of norm 0.5 of each modality. Bounds: half of those seen.

    One encoder for both gives a pair alike codes, whichever way it is made; two encoders, each trained alone, give it codes that
    have nothing in common; the encoder by distance leaves fewer units dead than the linear one.
    """
    rng, width, seen = np.random.default_rng(0), 32, 4096
    words = unit(rng.normal(size=(64, width)))
    chosen = np.stack([rng.permutation(64)[:4] for _ in range(seen + 1000)])
    meant = np.einsum("nk,nkd->nd", rng.uniform(0.5, 1.5, chosen.shape), words[chosen])
    rows = {kind: jnp.asarray(unit(meant) + 0.5 * unit(rng.normal(size=width)) + 0.02 * rng.normal(size=meant.shape), jnp.float32)
            for kind in ("image", "text")}

    def trained(encoder, shared_encoder=True):
        sae = sae_lib.make(width, 256, 16, encoder, shared_encoder, False)

        def loss(params, batch):
            return sum(sparse.reconstruction(sae.decode(params, kind, sae.encode(params, kind, x)), x) for kind, x in batch.items())

        @jax.jit
        def epoch(params, state, order):
            def step(carry, index):
                params, state = carry
                update, state = tx.update(jax.grad(loss)(params, {kind: x[index] for kind, x in rows.items()}), state)
                return (optax.apply_updates(params, update), state), None
            return jax.lax.scan(step, (params, state), order)[0]
        tx = optax.adam(1e-3)
        params = sae.init(jax.random.key(0))
        state = tx.init(params)
        for _ in range(8):
            params, state = epoch(params, state, jnp.asarray(rng.permutation(seen).reshape(-1, 32)))
        codes = {kind: np.asarray(sae.encode(params, kind, x[seen:])) for kind, x in rows.items()}
        alike = unit(codes["image"]) @ unit(codes["text"]).T
        dead = np.mean(~((codes["image"] > 0).any(0) | (codes["text"] > 0).any(0)))
        return np.mean(alike.argmax(1) == np.arange(len(alike))), np.mean(np.diag(alike)), dead

    (found, alike, dead), (linear_found, _, linear_dead), (apart_found, _, _) = (
        trained("distance"), trained("linear"), trained("linear", False))
    assert found > 0.3 and linear_found > 0.3 and alike > 0.4
    assert apart_found < 0.02
    assert dead <= linear_dead
