"""LOUPE: losses and labels against slow formulas, the hybrid rule, what has a gradient and what doesn't, switches and heads."""
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from mcd_jax.methods.loupe import estimator, game, hybrid, interaction, loupe, regions
from mcd_jax.models import towers

# ---- losses ----


def test_the_token_loss_is_least_where_confidence_is_the_label():
    labels, valid = jnp.asarray([[0.2, 0.7, 0.5]]), jnp.ones((1, 3), bool)
    slope = jax.grad(interaction.token)(jnp.log(labels / (1 - labels)), labels, valid)
    np.testing.assert_allclose(slope, 0, atol=1e-7)
    slope = np.asarray(jax.grad(interaction.token)(jnp.zeros((1, 3)), labels, valid))
    assert slope[0, 0] > 0 > slope[0, 1]
    with_full_cover = interaction.token(jnp.asarray([[0.3, -1.0, 2.0]]), labels, valid, jnp.ones((1, 3)))
    np.testing.assert_allclose(with_full_cover, interaction.token(jnp.asarray([[0.3, -1.0, 2.0]]), labels, valid), rtol=1e-6)


def test_regions_without_a_label_count_for_nothing():
    logits, labels = jnp.asarray([[1.0, -2.0], [0.5, 3.0]]), jnp.asarray([[0.0, 1.0], [0.5, 0.5]])
    known = jnp.asarray([[True, False], [False, False]])
    np.testing.assert_allclose(interaction.token(logits, labels, known), np.log1p(np.exp(1.0)), rtol=1e-6)
    assert float(interaction.token(logits, labels, jnp.zeros((2, 2), bool))) == 0


def test_interactions_become_labels():
    values, valid = jnp.asarray([[3.0, 1.0, 9.0], [2.0, 2.0, 2.0]]), jnp.asarray([[True, True, False], [True] * 3])
    np.testing.assert_allclose(interaction.bounded(values, valid), [[1, 0, 0.5], [0.5] * 3])
    want = 1 / (1 + np.exp(-np.asarray(values) / 2))
    np.testing.assert_allclose(interaction.bounded(values, valid, "sigmoid", 2.0), want, rtol=1e-6)
    phrases = jnp.asarray([[True, True, False]])
    weights = interaction.distributed(jnp.asarray([[[0.0, np.log(3.0), 50.0]]]), phrases)
    np.testing.assert_allclose(weights, [[[0.25, 0.75, 0]]], rtol=1e-6)
    np.testing.assert_allclose(interaction.distributed(jnp.asarray([[[1.0, 2.0, 9.0], [3.0, 5.0, 9.0]]]), phrases, "minmax"),
                               [[[0, .25, 0], [.5, 1, 0]]])


def test_zero_masked_pairs_that_match_interact_and_dropped_ones_blur():
    """Three orthogonal pairs: each completed pair adds 2/9 to the worth, so that is its interaction, and others have none.

    With whoever takes no part dropped instead of zeroed, the contrast is lost: others interact nearly half as much.
    """
    weights, masks, scores = game.pair_weights(3, 3), np.asarray(game.subsets(6)), np.eye(3) / 0.1
    found = weights @ np.asarray(interaction.alignment_worth(jnp.asarray(scores), jnp.ones(3, bool), jnp.asarray(masks)), float)
    np.testing.assert_allclose(found, np.eye(3) * 2 / 9, atol=3e-4)

    def dropped(mask):
        rows, columns = np.flatnonzero(mask[:3]), np.flatnonzero(mask[3:])
        whole = np.ones(len(rows) + len(columns), bool)
        return slow_worth(scores[np.ix_(rows, columns)], whole) if len(rows) and len(columns) else 0.0
    blurred = weights @ np.array([dropped(mask) for mask in masks])
    assert blurred[0, 1] > 0.4 * blurred[0, 0] > 0


def slow_worth(scores, mask):
    """The semantics-level game of one subset, in numpy."""
    m, p = scores.shape
    a = np.array([[scores[i, j] * mask[i] * mask[m + j] for j in range(p)] for i in range(m)])
    rows = np.exp(a) / np.exp(a).sum(1, keepdims=True)
    columns = np.exp(a) / np.exp(a).sum(0, keepdims=True)
    return (np.mean([max(row) for row in rows]) + np.mean([max(columns[:, j]) for j in range(p)])) / 2


@pytest.mark.full
def test_padding_and_order_of_phrases_and_regions():
    draw = np.random.default_rng(0)
    scores = draw.normal(size=(3, 2)).astype(np.float32)
    masks = np.asarray(game.subsets(5))
    want = [slow_worth(scores, mask) for mask in masks]
    found = interaction.alignment_worth(jnp.asarray(scores), jnp.ones(2, bool), jnp.asarray(masks))
    np.testing.assert_allclose(found, want, rtol=1e-5)

    def both(scores, phrases):
        n = sum(scores.shape)
        worths = interaction.alignment_worth(scores, phrases, jnp.asarray(game.subsets(n)))
        values = (jnp.asarray(game.pair_weights(*scores.shape), jnp.float32) @ worths)[None]
        labels = interaction.distributed(values, phrases[None], temperature=0.1)
        return values[0], interaction.semantics(scores[None], labels, phrases[None], jnp.ones((1, len(scores)), bool))

    values, loss = both(jnp.asarray(scores), jnp.ones(2, bool))
    padded = np.concatenate([scores[:, :1], np.full((3, 1), 7.0, np.float32), scores[:, 1:]], axis=1)
    there = jnp.asarray([True, False, True])
    more, same = both(jnp.asarray(padded), there)
    np.testing.assert_allclose(more[:, [0, 2]], values, atol=1e-6)
    np.testing.assert_allclose(same, loss, rtol=1e-5)
    slope = np.asarray(jax.grad(lambda x: both(x, there)[1])(jnp.asarray(padded)))
    assert (slope[:, 1] == 0).all() and np.abs(slope[:, [0, 2]]).max() > 0
    turned, still = both(jnp.asarray(scores[::-1, ::-1]), jnp.ones(2, bool))
    np.testing.assert_allclose(turned[::-1, ::-1], values, atol=1e-6)
    np.testing.assert_allclose(still, loss, rtol=1e-5)


@pytest.mark.parametrize("beta", [0.25, 1.0])
def test_the_best_uncertainty_is_the_error_over_the_root_of_beta(beta):
    errors = jnp.asarray([0.05, 0.1, 0.3, 2.0])
    sigma = jnp.linspace(0.001, 1, 4000)
    loss = jax.vmap(lambda s: jax.vmap(lambda e: interaction.estimator(e, s, 0.0, jnp.bool_(True), beta))(errors))(sigma)
    np.testing.assert_allclose(sigma[jnp.argmin(loss, 0)], np.minimum(1, np.asarray(errors) / np.sqrt(beta)), atol=1e-3)


# ---- the hybrid rule ----


def play(sigma, quota=0, group=1, warm=False, microbatches=1, samples=8):
    """Labels of 4 rows with 3 coalitions each in a game of random worths; the estimate is 7 everywhere."""
    table = jnp.asarray(np.random.default_rng(0).normal(size=(4, 32)), jnp.float32)
    coalition = jnp.asarray(np.random.default_rng(1).random((4, 3, 5)) < 0.6)

    def worth(params, rows, masks):
        return jnp.take_along_axis(rows["table"], masks.astype(jnp.int32) @ (2 ** jnp.arange(5)), axis=1)
    rule = hybrid.Rule(samples, False, 0, quota, group, microbatches)
    given = (jnp.full((4, 3), 7.0), jnp.full((4, 3), sigma)) if sigma is not None else (None, None)
    return coalition, table, hybrid.labels(rule, worth, {}, {"table": table}, coalition, jnp.ones((4, 3), bool), *given,
                                           jax.random.key(3), warm)


def test_sure_never_plays_unsure_always_and_labels_are_what_they_come_from():
    _, _, never = play(0.0)
    assert not never.played.any() and never.known.all() and (np.asarray(never.label) == 7).all()
    coalition, table, always = play(1.0)
    assert always.played.all() and always.known.all()
    np.testing.assert_array_equal(always.label, always.value)
    _, _, many = play(None, samples=4000)
    for row in range(4):
        for i in range(3):
            members = np.flatnonzero(coalition[row, i])
            want = game.interaction_weights(5, members) @ np.asarray(table[row], float) if len(members) else 0.0
            assert abs(float(many.label[row, i]) - want) < 0.35


def test_quotas_bind_and_the_first_steps_leave_the_rest_without_a_label():
    _, _, found = play(1.0, quota=2, group=2)
    assert np.asarray(found.played).reshape(2, 6).sum(1).tolist() == [2, 2] and found.known.all()
    assert (np.asarray(found.label)[~np.asarray(found.played)] == 7).all()
    _, _, warm = play(0.0, quota=3, group=2, warm=True)
    np.testing.assert_array_equal(warm.known, warm.played)
    assert sorted(np.asarray(warm.played).sum(1).tolist()) == [0, 0, 3, 3]   # whole rows, so that their labels can be compared
    _, _, sliced = play(1.0, quota=2, group=2, microbatches=2)
    np.testing.assert_allclose(sliced.label, found.label, rtol=1e-6)
    assert wanted_shares() == pytest.approx(0.3, abs=0.02)


def wanted_shares():
    noise = jax.random.uniform(jax.random.key(0), (10_000,))
    return float(jnp.mean(hybrid.wanted(jnp.full((10_000,), 0.3), noise)))


# ---- regions ----


def test_covers_hold_the_cells_whose_middle_lies_in_the_box():
    box = jnp.asarray([[0.2, 0.0, 0.8, 0.55]])
    want = np.zeros((4, 4), bool)
    want[:2, 1:3] = True
    np.testing.assert_array_equal(regions.cover(box, 4)[0].reshape(4, 4), want)
    soft = np.asarray(regions.soft_cover(box, 4, 0.05)[0]).reshape(4, 4)
    assert (soft[want] > 0.95).all() and (soft[~want] < 0.05).all()


def test_kept_cells_stay_and_the_others_are_grey():
    pixels = jnp.asarray(np.random.default_rng(0).integers(0, 256, (1, 8, 8, 3), np.uint8))
    masks = jnp.asarray([[[True, False, False, True], [False] * 4]])
    found = np.asarray(regions.keep_cells(pixels, masks, 0.5))
    np.testing.assert_array_equal(found[0, 0, :4, :4], pixels[0, :4, :4])
    assert (found[0, 0, :4, 4:] == 127.5).all() and (found[0, 1] == 127.5).all()


@pytest.mark.full
def test_geometry_learns_by_the_soft_cover_alone():
    tokens = jax.random.normal(jax.random.key(0), (2, 16, 8))
    for moved in (False, True):
        head = regions.make((16, 8), 8, ((0.45, 0.45), (0.7, 0.4)), 3, moved)   # no edge on a centre
        params = head.init(jax.random.key(1))
        found = head.apply(params, tokens)
        assert found["cover"].any(2).all() and ("soft" in found) == moved and ("box" in params) == moved
        assert (np.diff(np.asarray(found["logit"]), axis=1) <= 0).all()   # the most confident, the first before the next

        def loss(params, label):
            found = head.apply(params, tokens)
            valid = jnp.ones(found["logit"].shape, bool)
            return interaction.token(found["logit"], jnp.full(valid.shape, label), valid, found.get("soft"))
        if moved:
            slopes = [jax.grad(loss)(params, label)["box"]["kernel"] for label in (0.0, 1.0)]
            assert all(float(jnp.abs(slope).max()) > 0 for slope in slopes)
            for label in (0.0, 1.0):   # the boxes alone lower the loss: a wanted region covers itself better, an unwanted one less
                better = jax.tree.map(lambda p, g: p - 1e-2 * g, params["box"], jax.grad(loss)(params, label)["box"])
                assert float(loss({**params, "box": better}, label)) < float(loss(params, label))
                slope = jax.grad(lambda soft, label=label: interaction.token(
                    found["logit"], jnp.full(soft.shape, label), jnp.ones(soft.shape, bool), soft))(found["soft"])
                assert (np.sign(np.asarray(slope)) == 1 - 2 * label).all()


# ---- the objective ----


@pytest.fixture(scope="module")
def made():
    return tiny.build("loupe")


def test_labels_and_estimators_have_their_own_gradients(made):
    """The estimator's loss reaches its parameters alone, and nothing of the method's labels reaches anything."""
    objective, _, _, state, batch = made

    def loss(params, term):
        return objective.terms[term](objective.forward(params, state.memory, batch, jax.random.key(1), state.step))
    grads = jax.jit(lambda p: {term: jax.grad(loss)(p, term) for term in ("unsil", "token", "semantics")})(state.params)
    largest = lambda tree: max(float(jnp.max(jnp.abs(g))) for g in jax.tree.leaves(tree))
    for part in state.params:
        if part == "estimator":
            assert largest(grads["unsil"][part]["token"]) > 0 and largest(grads["unsil"][part]["pair"]) > 0
            assert largest(grads["token"][part]) == largest(grads["semantics"][part]) == 0
        else:
            assert largest(grads["unsil"][part]) == 0, part
    assert largest(grads["token"]["regions"]) > 0 and largest(grads["token"]["text"]) == 0   # the caption only labels
    assert largest(grads["semantics"]["text"]) > 0 and largest(grads["semantics"]["regions"]) == 0   # covers are hard


def test_statistics_follow_what_was_played(made):
    objective, _, _, state, batch = made
    out = jax.jit(objective.forward)(state.params, state.memory, batch, jax.random.key(1), state.step)
    after = objective.update_memory(state.memory, state.params, out["for_memory"], state.step)["statistics"]["token"]
    played = np.asarray(out["token/value"], float)[np.asarray(out["token/played"])]     # the first step's units are raw
    np.testing.assert_allclose([after["mean"], after["square"]], [played.mean(), (played ** 2).mean()], rtol=1e-5)
    again = loupe._followed(after, {"count": jnp.float32(0), "mean": jnp.float32(9), "square": jnp.float32(9)}, 0.9)
    assert float(again["mean"]) == float(after["mean"]) and float(again["steps"]) == 1


def test_the_model_that_is_used_is_the_two_towers(made):
    """Embeddings and what is exported read neither the regions' network nor the estimators."""
    objective, _, _, state, batch = made
    bare = {k: v for k, v in state.params.items() if k in ("image", "text", "logit_scale")}
    whole, plain = (objective.heads["embed"](params, {}, batch) for params in (state.params, bare))
    for name, value in whole.items():
        np.testing.assert_array_equal(value, plain[name])
    assert set(bare) == set(tiny.build("clip")[3].params)


def test_the_head_gives_regions_and_texts(made):
    objective, _, _, state, batch = made
    found = objective.heads["regions"](state.params, state.memory, batch)
    assert found["boxes"].shape == (8, 2, 4) and found["features"].shape == (8, 2, 8) and found["text"].shape == (8, 8)
    np.testing.assert_allclose(jnp.linalg.norm(found["features"], axis=-1), 1, rtol=1e-5)
    assert (found["boxes"] >= 0).all() and (found["boxes"] <= 1).all() and (found["boxes"][..., 2:] > found["boxes"][..., :2]).all()
    twice = jnp.repeat(jnp.repeat(batch["image"], 2, axis=1), 2, axis=2)
    larger = objective.heads["regions"](state.params, state.memory, {"image": twice})
    assert larger["boxes"].shape == (8, 2, 4) and larger["features"].shape == (8, 2, 8)   # more cells, as many regions
    dense = objective.heads["dense"](state.params, state.memory, batch)
    assert dense["tokens"].shape == (8, 4, 8)
    pooled = towers.unit(towers.project(state.params, "image", objective_tokens(state, batch).mean(1)))
    np.testing.assert_allclose(pooled, objective.heads["embed"](state.params, {}, batch)["image"], rtol=1e-4, atol=1e-5)


def objective_tokens(state, batch):
    return loupe.two_tower.towers_of(tiny.config("loupe")).image(state.params, batch["image"])["tokens"]


@pytest.mark.full
def test_both_maskings_leave_nothing_of_an_image_whose_cells_are_all_left_out():
    """The worth of nobody is the same for all images; of all players, the embeddings' cosine."""
    for masking in ("input", "tokens"):
        config = tiny.config("loupe", masking=masking, samples=1, token_labels="sampled", token_quota=0, every=True,
                             weights=dict(semantics=0.0))
        seen = {}
        true = hybrid.labels

        def spy(rule, worth, params, rows, *rest, **more):
            masks = jnp.stack([jnp.zeros((8, 4), bool), jnp.ones((8, 4), bool)], axis=1)
            seen["worths"], seen["rows"] = worth(params, rows, masks), rows
            return true(rule, worth, params, rows, *rest, **more)
        objective = loupe.make(config)
        batch = jax.tree.map(jnp.asarray, tiny.batch())
        batch = {**batch, "text": jnp.broadcast_to(batch["text"][:1], batch["text"].shape)}
        params = jax.tree.map(lambda p: p + 0.05, objective.init(jax.random.key(0), batch))   # biases: nothing is not nothing
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(hybrid, "labels", spy)
            objective.forward(params, objective.init_memory(jax.random.key(0), params, batch), batch, jax.random.key(1),
                              jnp.int32(0))
        unit = objective.heads["embed"](params, {}, batch)
        np.testing.assert_allclose(seen["worths"][:, 0], seen["worths"][0, 0], atol=1e-6)
        assert masking == "tokens" or abs(float(seen["worths"][0, 0])) > 1e-4     # the real worth, not 0
        np.testing.assert_allclose(seen["worths"][:, 1], jnp.sum(unit["image"] * unit["text"], axis=1), atol=1e-5)


PLAYED = dict(token_labels="sampled", token_scale="sigmoid", anchors=((0.6, 0.6), (1.2, 1.2)))   # all regions, some of many cells,
# with labels that are more than their order
SWITCHES = [dict(geometry="soft_cover"), dict(project="shared"), {**PLAYED, "masking": "input"}, {**PLAYED, "worth": "softmax"},
            dict(every=True), dict(token_labels="sampled"), dict(pair_labels="sampled"), dict(pair_labels="exact"),
            dict(token_scale="sigmoid"), dict(pair_scale="minmax"), dict(temperature=0.0), dict(beta=0.25),
            dict(samples=4, chunk=2), dict(first=5)]


@pytest.mark.full
@pytest.mark.parametrize("changes", SWITCHES, ids=str)
def test_every_switch_runs_and_changes_the_loss(changes, plain):
    out = terms(**changes)
    assert np.isfinite(list(out.values())).all()
    plain = plain(**(PLAYED if PLAYED.items() < changes.items() else {}))
    if "chunk" in changes:
        np.testing.assert_allclose(list(out.values()), list(plain.values()), rtol=1e-5)
    else:
        assert max(abs(out[k] - plain[k]) for k in plain) > 1e-6


@pytest.fixture(scope="module")
def plain():
    return functools.cache(terms)


def terms(**changes):
    objective, _, _, state, batch = tiny.build("loupe", **changes)

    def all_terms(params):
        out = objective.forward(params, state.memory, batch, jax.random.key(1), state.step)
        return {name: fn(out) for name, fn in objective.terms.items()}
    return {k: float(v) for k, v in jax.jit(all_terms)(state.params).items()}


@pytest.mark.parametrize("changes, words", [
    (dict(masking="output"), "config.objective.masking='output' must be one of input, tokens"),
    (dict(samples=6, chunk=4), "config.objective.chunk=4 must divide config.objective.samples=6"),
    (dict(regions=9), "config.objective.regions=9: a grid of 4 cells with 2 anchors has 8 boxes"),
    (dict(estimator_width=9), "estimator_width=9 must be a multiple of estimator_heads=2"),
    (dict(beta=0.0), "config.objective.beta=0.0 must be positive"),
])
def test_options_that_do_not_fit_are_refused(changes, words):
    with pytest.raises(ValueError, match=words):
        loupe.make(tiny.config("loupe", **changes))


@pytest.mark.full
def test_the_estimator_sees_the_coalition_and_calibrates_within_bounds():
    net = estimator.of_regions((4, 8), 8, 8, 1, 2)
    params = net.init(jax.random.key(0))
    tokens, text = jax.random.normal(jax.random.key(1), (2, 4, 8)), jax.random.normal(jax.random.key(2), (2, 8))
    masks = jnp.asarray([[[True, True, False, False], [False, True, True, True]]] * 2)
    value, sigma = net.apply(params, tokens, text, masks)
    assert value.shape == sigma.shape == (2, 2) and (sigma >= 1e-3).all() and (sigma <= 1 - 1e-3).all()
    assert abs(float(value[0, 0] - value[0, 1])) > 1e-5
