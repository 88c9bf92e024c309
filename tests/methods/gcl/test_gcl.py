"""The generalized contrastive loss and the separation inside a modality: written-down values, slow loops, limits, the objective."""
from functools import partial
from itertools import permutations

import jax
import jax.numpy as jnp
import key_uses
import numpy as np
import pytest
import tiny

from mcd_jax import job
from mcd_jax import step as step_lib
from mcd_jax.costs import count_flops, hlo
from mcd_jax.losses import contrastive, ssl
from mcd_jax.methods.gcl import fusion, gcl, modalities
from mcd_jax.models import towers
from mcd_jax.run import fingerprint
from mcd_jax.sharding import mesh as mesh_lib
from mcd_jax.sharding import ring

NAMES = ("i", "t", "it")
TERMS = [("i", "t"), ("i", "it"), ("t", "i"), ("t", "it"), ("it", "t"), ("it", "i")]
FORMS = ("gather", "ring")

# float64 figures of an implementation that shares nothing with this one: temperature, fusion, loss, the same with the anchor in its
# own denominator, and the six terms in the order of TERMS
GOLDEN = [
    (0.07, "raw_sum", 10.03391561, 11.41479179, (16.818098, 11.321873, 17.718328, 0.741649, 1.061546, 12.541999)),
    (0.07, "unit_sum", 9.17922038, 10.79562523, (16.779460, 4.714261, 17.247605, 5.182406, 5.575795, 5.575795)),
    (1.0, "raw_sum", 2.50198655, 2.66912455, (2.873613, 2.488878, 3.057546, 1.869178, 1.959536, 2.763168)),
    (1.0, "unit_sum", 2.44607197, 2.61516193, (2.870072, 2.025508, 3.048105, 2.203541, 2.264603, 2.264603)),
]


def normal(x):
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def raw_golden():
    at = 6.0 * np.arange(4)[:, None] + np.arange(6)[None]
    return jnp.asarray(np.sin(0.7 * at + 0.3), jnp.float32), jnp.asarray(2 * np.sin(0.9 * at + 1.1), jnp.float32)


def three(image, text, kind):
    """Unit image, text and fused embeddings of raw ones."""
    return {"i": towers.unit(image), "t": towers.unit(text), "it": towers.unit(fusion.add(image, text, kind))}


def rows(seed, n=6, d=5):
    return normal(np.random.default_rng(seed).normal(size=(n, d)))


def some(n=6, count=3):
    return {name: rows(seed, n) for seed, name in enumerate(NAMES[:count])}


def f32(tree):
    return jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), tree)


generalized = jax.jit(modalities.generalized, static_argnames=("mask_self", "implementation"))


@partial(jax.jit, static_argnames=("kind", "implementation"))
def all_values(image, text, scale, kind, implementation):
    """(loss, the same unmasked, the six terms) of raw embeddings."""
    z = three(image, text, kind)
    below = modalities.denominators(z, scale, implementation=implementation)
    return (modalities.generalized(z, scale, implementation=implementation), modalities.generalized(z, scale, mask_self=False,
                                                                                                    implementation=implementation),
            [modalities.term(z[a], z[b], below[a], scale, implementation) for a, b in TERMS])


@pytest.mark.parametrize("implementation", FORMS)
@pytest.mark.parametrize("temperature, kind, loss, unmasked, terms", GOLDEN)
def test_written_down_values(temperature, kind, loss, unmasked, terms, implementation):
    got = all_values(*raw_golden(), 1 / temperature, kind, implementation)
    np.testing.assert_allclose(got[0], loss, rtol=2e-5)
    np.testing.assert_allclose(got[1], unmasked, rtol=2e-5)
    np.testing.assert_allclose(got[2], terms, rtol=3e-5)


@pytest.mark.parametrize("implementation", FORMS)
def test_written_down_ablations_and_neighbours(implementation):
    """What an ablation leaves keeps all modalities in its denominators; without the fused one it is NT-Xent, which is not CLIP."""
    without = lambda *out: {pair: 0.0 if pair in out else 1 / 6 for pair in TERMS}

    @jax.jit
    def values(image, text):
        z = three(image, text, "raw_sum")
        both = {"i": z["i"], "t": z["t"]}
        ablated = [modalities.generalized(z, 1 / 0.07, without(*gone), implementation=implementation) for gone in (
            (("i", "t"), ("t", "i")), (("i", "it"), ("t", "it")), (("it", "i"), ("it", "t")))]
        return [*ablated, modalities.generalized(both, 1 / 0.07, implementation=implementation), ssl.nt_xent(z["i"], z["t"], 0.07,
                                                                                                             implementation),
                *(contrastive.softmax(z["i"], z["t"], 1 / temperature, implementation) for temperature in (0.07, 1.0))]
    want = [4.27784456, 8.02332849, 7.76665817, 16.27517543, 16.27517543, 15.68889894, 1.97171394]
    np.testing.assert_allclose(values(*raw_golden()), want, rtol=2e-5)


# ---- slow loops: one pair at a time, float64

def lse(values):
    return max(values) + np.log(np.sum(np.exp(np.array(values) - max(values))))


def slow_generalized(z, scale, weights, mask_self):
    total = 0.0
    for (a, b), weight in weights.items():
        for j in range(len(z[a])):
            below = [scale * z[a][j] @ z[m][k] for m in z for k in range(len(z[m])) if not (mask_self and m == a and k == j)]
            total += weight * (lse(below) - scale * z[a][j] @ z[b][j]) / len(z[a])
    return total


def slow_supcon(z, scale):
    """L_out of Khosla et al. 2020 over all rows: every positive has its own logarithm, the mean of them is an anchor's loss."""
    every = [(k, v) for rows_of in z.values() for k, v in enumerate(rows_of)]
    total = 0.0
    for i, (label, anchor) in enumerate(every):
        others = [(k, scale * anchor @ v) for j, (k, v) in enumerate(every) if j != i]
        positives = [v for k, v in others if k == label]
        total += sum(lse([v for _, v in others]) - v for v in positives) / len(positives)
    return total / len(every)


def slow_separation(x, y, scale, alike):
    total = 0.0
    for i in range(len(x)):
        logits = [scale * (x[i] @ y[i] if i == j else x[i] @ x[j] * (1 - alike[i][j])) for j in range(len(x))]
        total += lse(logits) - logits[i]
    return total / len(x)


def check(fast, slow, args, tolerance=2e-5):
    """Values, and gradients in two random directions against differences of the slow loop."""
    value, grads = jax.jit(jax.value_and_grad(fast, argnums=tuple(range(len(args)))))(*f32(args))
    np.testing.assert_allclose(value, slow(*args), rtol=tolerance)
    rng = np.random.default_rng(7)
    for _ in range(2):
        h, direction = 1e-5, jax.tree.map(lambda x: rng.normal(size=np.shape(x)), args)
        ahead, behind = (slow(*jax.tree.map(lambda x, d: x + s * h * d, args, direction)) for s in (1, -1))
        along = sum(np.sum(g * d) for g, d in zip(jax.tree.leaves(grads), jax.tree.leaves(direction), strict=True))
        np.testing.assert_allclose(along, (ahead - behind) / (2 * h), rtol=2e-3, atol=2e-4)


@pytest.mark.parametrize("implementation", FORMS)
@pytest.mark.parametrize("mask_self", [True, False])
def test_equals_a_slow_loop_for_any_weights(mask_self, implementation):
    weights = {pair: w for w, pair in zip((0.5, 0.0, 2.0, -1.0, 0.25, 1.0), TERMS)}
    check(lambda z, s: modalities.generalized(z, s, weights, mask_self, implementation),
          lambda z, s: slow_generalized(z, s, weights, mask_self), (some(), 7.0))


@pytest.mark.parametrize("count", [2, 3])
def test_is_supcon_over_all_embeddings(count):
    z = some(7, count)
    check(modalities.generalized, slow_supcon, (z, 9.0))
    if count == 2:
        np.testing.assert_allclose(ssl.nt_xent(*f32(list(z.values())), 1 / 9.0), slow_supcon(z, 9.0), rtol=2e-5)


ALIKE = {"nothing": None, "sentences": np.random.default_rng(5).normal(size=(6, 3)), "labels": np.array([0, 1, 0, 2, 3, 1])}


def alike_matrix(name):
    given = ALIKE[name]
    if given is None:
        return np.zeros((6, 6))
    return normal(given) @ normal(given).T if given.ndim == 2 else (given[:, None] == given[None]).astype(float)


@pytest.mark.parametrize("implementation", FORMS)
@pytest.mark.parametrize("name", ALIKE)
def test_separation_equals_a_slow_loop(name, implementation):
    given = None if ALIKE[name] is None else jnp.asarray(ALIKE[name], jnp.float32 if name == "sentences" else jnp.int32)
    check(lambda x, y, s: modalities.separation(x, y, s, given, implementation), lambda x, y, s: slow_separation(x, y, s,
                                                                                                                 alike_matrix(name)),
          (rows(1), rows(2), 6.0))


def test_separation_spares_the_gradient_of_what_is_given_frozen():
    x, y, sentences = f32((rows(1), rows(2), ALIKE["sentences"]))
    for implementation in FORMS:
        assert not np.any(jax.jit(jax.grad(lambda s: modalities.separation(x, y, 5.0, s, implementation)))(sentences))


# ---- limits and invariants

def test_floors():
    """Matching embeddings, orthogonal between pairs, at a low temperature: log 2, and log 3 with the anchor in its denominator."""
    z = dict.fromkeys(NAMES, np.eye(5, dtype=np.float32))
    np.testing.assert_allclose(generalized(z, 200.0), np.log(2), rtol=1e-5)
    np.testing.assert_allclose(generalized(z, 200.0, mask_self=False), np.log(3), rtol=1e-5)
    for seed in range(20):
        random = {name: rows(3 * seed + m, 5).astype(np.float32) for m, name in enumerate(NAMES)}
        assert float(generalized(random, 20.0)) > np.log(2)
    one = np.tile(rows(1, 1), (5, 1)).astype(np.float32)
    for scale in (1.0, 100.0):
        same = dict.fromkeys(NAMES, one)
        np.testing.assert_allclose(generalized(same, scale), np.log(14), rtol=1e-5)
        np.testing.assert_allclose(generalized(same, scale, mask_self=False), np.log(15), rtol=1e-5)


def test_invariant_to_order_rotation_and_the_roles_of_the_modalities():
    image, text = 3 * rows(1), rows(2)
    value = lambda image, text: all_values(*f32((image, text)), 10.0, "raw_sum", "gather")[0]
    order, turn = np.random.default_rng(3).permutation(6), np.linalg.qr(np.random.default_rng(4).normal(size=(5, 5)))[0]
    for other in ((image[order], text[order]), (image @ turn, text @ turn), (text, image)):
        np.testing.assert_allclose(value(*other), value(image, text), rtol=2e-5)


def test_fusions():
    """Unit sums lie between both, and don't see lengths; raw sums do. A term of the fused embedding reaches both encoders."""
    image, text = f32((3 * rows(1), rows(2)))
    z = three(image, text, "unit_sum")
    cosine = contrastive.matching(z["i"], z["t"])
    for other in ("i", "t"):
        np.testing.assert_allclose(contrastive.matching(z["it"], z[other]), np.sqrt((1 + cosine) / 2), rtol=1e-5)
    terms = all_values(image, text, 10.0, "unit_sum", "gather")[2]
    np.testing.assert_allclose(terms[4], terms[5], rtol=1e-6)
    loss = lambda text, kind: all_values(image, text, 10.0, kind, "gather")[0]
    np.testing.assert_allclose(loss(100 * text, "unit_sum"), loss(text, "unit_sum"), rtol=1e-5)
    assert abs(loss(100 * text, "raw_sum") / loss(text, "raw_sum") - 1) > 0.01
    grads = jax.jit(jax.grad(lambda t: modalities.generalized(three(image, t, "raw_sum"), 10.0, {("i", "it"): 1.0})))(text)
    assert float(jnp.max(jnp.abs(grads))) > 1e-3


def test_refuses_a_weight_of_no_term():
    with pytest.raises(ValueError, match=r"\('i', 'i'\), and the modalities are i, it, t"):
        modalities.generalized(f32(some()), 1.0, {("i", "i"): 1.0})


def test_closes_the_gap_where_clip_does_not():
    """Two linear maps on frozen features of two cones, 300 Adam steps: GCL ends at its floor without a gap, CLIP at 0 with it."""
    import optax
    n, d = 32, 48
    rng = np.random.default_rng(0)
    shared = rng.normal(size=(n, d))
    cones = [normal(shared + 0.1 * rng.normal(size=(n, d))) + 2 * normal(rng.normal(size=(1, d))) for _ in range(2)]
    features = f32([normal(x) for x in cones])

    def embed(params):
        return [towers.unit(x @ w) for x, w in zip(features, params)]

    def generalized(params):
        image, text = embed(params)
        return modalities.generalized(three(image, text, "unit_sum"), 1 / 0.07)

    def clip(params):
        return contrastive.softmax(*embed(params), 1 / 0.01)

    def train(loss):
        tx = optax.adam(1e-2)
        params = [jnp.eye(d)] * 2

        def update(carry, _):
            params, state = carry
            value, grads = jax.value_and_grad(loss)(params)
            updates, state = tx.update(grads, state)
            return (optax.apply_updates(params, updates), state), value
        (params, _), losses = jax.jit(lambda: jax.lax.scan(update, (params, tx.init(params)), length=300))()
        image, text = embed(params)
        return float(losses[-1]), float(jnp.linalg.norm(jnp.mean(image, 0) - jnp.mean(text, 0)))

    image, text = embed([jnp.eye(d)] * 2)
    before = float(jnp.linalg.norm(jnp.mean(image, 0) - jnp.mean(text, 0)))
    (loss, gap), (clip_loss, clip_gap) = train(generalized), train(clip)
    assert before > 0.8 and loss < np.log(2) + 0.03 and gap < 0.1, (before, loss, gap)
    assert clip_loss < 0.05 and clip_gap > 0.5, (clip_loss, clip_gap)


# ---- on several devices

def compiled(implementation, size, devices=4):
    mesh = mesh_lib.make({"data": devices}, jax.devices()[:devices])
    x = jax.ShapeDtypeStruct((size, 8), jnp.float32, sharding=mesh_lib.batch_sharding(mesh))
    z = dict.fromkeys(NAMES, x)
    with jax.set_mesh(mesh):
        return jax.jit(jax.value_and_grad(lambda z: modalities.generalized(z, 10.0, implementation=implementation))).lower(
                                                                                                                           z).compile()


def test_memory_grows_with_the_pairs_of_a_device(monkeypatch):
    monkeypatch.setattr(ring, "TILE", 64)
    small, large = (compiled("ring", n).memory_analysis().temp_size_in_bytes for n in (1024, 2048))
    dense = [compiled("gather", n).memory_analysis().temp_size_in_bytes for n in (1024, 2048)]
    assert large < 2.2 * small and large < dense[1] / 50 and dense[1] > 3.5 * dense[0]


def test_the_three_embeddings_of_a_pair_travel_together():
    """One ring for all three: keys go from device to device, nothing is gathered or laid out anew, nothing reduced but scalars."""
    found = hlo.collectives(compiled("ring", 256).as_text())
    assert set(found) == {"collective-permute", "all-reduce"} and found["all-reduce"]["bytes"] <= 32, found


# ---- the objective

def forward_of(method, **changes):
    """(objective, out, terms, metrics) of one compiled forward pass."""
    objective, _, _, state, data = tiny.build(method, **changes)

    def forward(params):
        out = objective.forward(params, state.memory, data, jax.random.key(0), state.step)
        return out, {n: f(out) for n, f in objective.terms.items()}, {n: f(out) for n, f in objective.metrics.items()}
    return objective, *jax.jit(forward)(state.params)


def test_six_terms_add_up_and_ablations_need_weights_only():
    _, out, terms, metrics = forward_of("gcl", temperature=0.07)
    value = lambda **weights: sum(w * float(terms[name]) for name, w in weights.items())
    names = [f"{a}2{b}" for a, b in permutations(NAMES, 2)]
    assert set(gcl.PAIRS) == set(names)
    z = {name: np.asarray(out[gcl.NAMES[name]], np.float64) for name in NAMES}
    slow = lambda *gone: slow_generalized(z, 1 / 0.07, {p: 1 / 6 for p in TERMS if p not in gone}, True)
    np.testing.assert_allclose(value(gcl=1), slow(), rtol=1e-4)
    np.testing.assert_allclose(value(**dict.fromkeys(names, 1)), slow(), rtol=1e-4)
    np.testing.assert_allclose(value(gcl=1, i2it=-1, t2it=-1), slow(("i", "it"), ("t", "it")), rtol=1e-4)
    for a, b in TERMS:
        want = slow_generalized(z, 1 / 0.07, {(a, b): 1}, True)
        np.testing.assert_allclose(metrics[f"term/{a}2{b}"], want, rtol=1e-4)
    align = value(clip=2, separate_image=0.5, separate_text=0.5)
    logits = z["i"] @ z["t"].T / 0.07
    clip = sum(lse(list(m[j])) - m[j, j] for m in (logits, logits.T) for j in range(len(m))) / len(logits)
    zeros = np.zeros((tiny.BATCH, tiny.BATCH))
    want = clip + 0.5 * (slow_separation(z["i"], z["t"], 1 / 0.07, zeros) + slow_separation(z["t"], z["i"], 1 / 0.07, zeros))
    np.testing.assert_allclose(align, want, rtol=1e-4)


def test_metrics_of_the_modalities():
    _, out, _, metrics = forward_of("gcl")
    z = {name: np.asarray(out[gcl.NAMES[name]], np.float64) for name in NAMES}
    for name, a, b in (("i2t", "i", "t"), ("i2it", "i", "it"), ("t2it", "t", "it")):
        want = normal(z[a].mean(0)) @ normal(z[b].mean(0))
        np.testing.assert_allclose(metrics[f"centroid_cosine/{name}"], want, rtol=1e-4)
        own = np.mean(np.argmax(z[a] @ z[b].T, axis=1) == np.arange(tiny.BATCH))
        assert float(metrics["accuracy" if name == "i2t" else f"accuracy/{name}"]) == pytest.approx(own)


@pytest.mark.parametrize("kind", fusion.KINDS)
def test_every_fusion_reaches_all_parameters_and_its_head_gives_what_training_saw(kind):
    objective, _, _, state, batch = tiny.build("gcl", fusion=kind)

    @jax.jit
    def both(params):
        def loss(params):
            out = objective.forward(params, {}, batch, jax.random.key(0), state.step)
            return objective.terms["gcl"](out), out
        return jax.grad(loss, has_aux=True)(params), objective.heads["embed"](params, {}, batch)
    (grads, out), found = both(state.params)
    still = [path for path, g in fingerprint.flat(grads).items() if not np.any(g)]
    assert not still and (kind == "tower") == ("fusion" in grads)
    assert set(found) == {"image", "image_raw", "text", "text_raw", "fused", "fused_raw"}
    np.testing.assert_allclose(found["fused"], out["fused"], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(found["fused"], normal(np.asarray(found["fused_raw"])), rtol=1e-5, atol=1e-6)
    if kind != "tower":
        of = lambda name: np.asarray(found[name if kind == "unit_sum" else f"{name}_raw"])
        np.testing.assert_allclose(found["fused_raw"], of("image") + of("text"), rtol=1e-5)
    assert set(jax.eval_shape(objective.heads["embed"], state.params, {}, {"text": batch["text"]})) == {"text", "text_raw"}


def test_plain_contrastive_loss_costs_what_clip_costs():
    """With weights gcl 0, clip 1 no fused embedding, no denominators and no parameters of a fusion are left."""
    def step_of(method, weights=None, **changes):
        objective, tx, w, state, batch = tiny.build(method, weights, **changes)
        return count_flops.count(step_lib.make_step(objective, tx, w), state, batch), state
    base, plain = step_of("clip")
    control, state = step_of("gcl", {"gcl": 0, "clip": 1}, fusion="tower")
    assert control == base and jax.tree.structure(state.params) == jax.tree.structure(plain.params)
    assert step_of("gcl")[0] > base


def test_fixed_and_learned_temperature():
    for temperature, moves in ((0.05, False), (0.0, True)):
        objective, _, _, state, batch = tiny.build("gcl", temperature=temperature)

        def loss(logit_scale):
            params = {**state.params, "logit_scale": logit_scale}
            out = objective.forward(params, {}, batch, jax.random.key(0), jnp.int32(0))
            return objective.terms["gcl"](out), out["scale"]
        grad, scale = jax.jit(jax.grad(loss, has_aux=True))(state.params["logit_scale"])
        assert bool(grad != 0) is moves
        np.testing.assert_allclose(scale, 1 / (temperature or 0.07), rtol=1e-5)


def test_separation_reads_its_batch_key_only_when_it_is_on():
    objective, *_ = tiny.build("gcl", alike="sentence")
    assert objective.needs == ("image", "text")
    cfg = tiny.config("gcl", alike="sentence")
    tiny.weigh(cfg, {"separate_image": 0.5})
    objective = gcl.make(cfg)
    assert objective.needs == ("image", "text", "sentence")
    sentences = np.random.default_rng(1).normal(size=(tiny.BATCH, 4))
    batch = jax.tree.map(jnp.asarray, {**tiny.batch(), "sentence": sentences.astype(np.float32)})
    out = jax.jit(lambda: objective.forward(objective.init(jax.random.key(0), batch), {}, batch, jax.random.key(0), 0))()
    image, text = (np.asarray(out[name], np.float64) for name in ("image", "text"))
    want = slow_separation(image, text, float(out["scale"]), normal(sentences) @ normal(sentences).T)
    np.testing.assert_allclose(objective.terms["separate_image"](out), want, rtol=1e-4)


@pytest.mark.parametrize("changes, words", [
    (dict(fusion="sum"), r"config\.objective\.fusion='sum' must be one of raw_sum, unit_sum, tower"),
    (dict(temperature=-1.0), r"config\.objective\.temperature=-1\.0 must be positive"),
    (dict(implementation="rings"), r"implementation='rings'"),
])
def test_options_that_do_not_fit_are_refused(changes, words):
    with pytest.raises(ValueError, match=words):
        gcl.make(tiny.config("gcl", **changes))


def test_the_projection_of_an_images_tokens_has_numbers_of_its_own():
    """They were the text projection's: a key was split, and folded with 1, which is the second of its splits."""
    objective, _, _, state, batch = tiny.build("gcl", fusion="tower")
    assert not key_uses.of_a_method(objective, state, batch)
    table, other = state.params["fusion"]["position"], state.params["text"]["proj"]["kernel"]
    n = min(table.size, other.size)
    assert abs(np.corrcoef(table.ravel()[:n], other.ravel()[:n])[0, 1]) < 0.6


def test_a_tower_that_reads_no_image_is_refused(monkeypatch):
    made = towers.make
    monkeypatch.setattr(towers, "make", lambda *args, **kwargs: made(*args, **kwargs)._replace(reads_image=False))
    with pytest.raises(ValueError, match=r"fusion='tower' needs a text tower .* config\.model\.text\.name='text' doesn't"):
        gcl.make(tiny.config("gcl", fusion="tower"))


# ---- the text tower reading an image

def text_tower(**changes):
    return towers.make({"image": tiny.IMAGE, "text": {**tiny.TEXT, **changes}, "embed_dim": 8}, tiny.VOCAB, tiny.CONTEXT, tiny.EOT,
                       tiny.SIZE)


def layer_norm(x):
    return (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5)


def test_image_tokens_stand_behind_the_first_one_and_positions_go_on():
    """A bag of words and image tokens against a loop: first token at position 0, the image at 1 to P, the other words after it."""
    built = text_tower(depth=0, pool="mean", causal=False)
    params = jax.jit(built.init)(jax.random.key(0))
    rng = np.random.default_rng(0)
    tokens = np.array([[3, 4, 5, 2, 0, 0], [7, 8, 9, 10, 11, 2]], np.int32)
    image = f32({"tokens": rng.normal(size=(2, 4, 8)), "position": rng.normal(size=(4, 8))})
    got = jax.jit(built.text)(params, tokens, image=image)
    table, position = (np.asarray(params["text"][name], np.float64) for name in ("token", "position"))
    position = np.concatenate([position, image["position"]])
    for row, ids in enumerate(tokens):
        sequence = [table[ids[0]], *np.asarray(image["tokens"][row], np.float64), *table[ids[1:]]]
        seen = [True] * 5 + [bool(i) for i in ids[1:]]
        kept = [layer_norm(x + position[at]) for at, (x, ok) in enumerate(zip(sequence, seen, strict=True)) if ok]
        np.testing.assert_allclose(got["pooled"][row], np.mean(kept, axis=0), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("pool, causal", [("eot", True), ("last", False), ("first", False), ("class", False)])
def test_every_pooling_reads_the_image(pool, causal):
    """The embedding moves with any image token, and the pooled position is that of the word, not of an image token."""
    built = text_tower(depth=2, pool=pool, causal=causal)
    tokens = jnp.asarray([[3, 4, 5, 2, 0, 0], [7, 8, 9, 10, 11, 2]], jnp.int32)
    rng = np.random.default_rng(0)
    image, position = f32([rng.normal(size=(2, 4, 8)), 0.1 * rng.normal(size=(4, 8))])

    @jax.jit
    def embed(image):
        params = built.init(jax.random.key(0))
        out, pull = jax.vjp(lambda x: built.text(params, tokens, image={"tokens": x, "position": position}), image)
        along = jax.tree.map(jnp.zeros_like, out) | {"raw": jnp.ones_like(out["raw"])}
        return out, pull(along)[0]
    out, moved = embed(image)
    if pool in ("eot", "last"):
        ends = np.array([3, 5]) + 4
        np.testing.assert_array_equal(out["pooled"], out["tokens"][np.arange(2), ends])
    assert np.all(np.any(np.asarray(moved), axis=2))


def test_drop_path_of_the_fused_pass_is_that_of_the_text():
    cfg = tiny.config("gcl", fusion="tower")
    cfg.model.text = dict(tiny.TEXT, depth=2, drop_path=0.5)
    objective = gcl.make(cfg)
    batch = jax.tree.map(jnp.asarray, tiny.batch())
    params = jax.jit(objective.init)(jax.random.key(0), batch)
    forward = jax.jit(objective.forward)
    runs = [forward(params, {}, batch, jax.random.key(k), 0) for k in (0, 0, 1)]
    np.testing.assert_array_equal(runs[0]["fused"], runs[1]["fused"])
    moved = np.any(np.asarray(runs[0]["fused"] != runs[2]["fused"]), axis=1)
    np.testing.assert_array_equal(moved, np.any(np.asarray(runs[0]["text"] != runs[2]["text"]), axis=1))
    assert moved.any() and not moved.all()


def test_the_sweep_is_the_papers_ablation():
    from mcd_jax.sweep import plan
    found = plan.plan("configs/gcl_emoji.py", "runs/ablation")
    assert len(found) == 24
    weights = job.term_weights(plan.read("configs/gcl_emoji.py", found[3].flags), lambda name, value: 0)
    assert {k: v for k, v in weights.items() if v} == {"gcl": 1.0, "i2t": -1.0, "t2i": -1.0}
