"""LIMoE: one tower for both modalities, groups that compete for experts, terms that keep them in balance."""
import jax
from jax.interpreters import partial_eval
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tiny
from tiny_limoe import SHARED

from mcd_jax import config as config_lib
from mcd_jax import job
from mcd_jax import step as step_lib
from mcd_jax.configs import limoe as paper
from mcd_jax.configs import limoe_emoji
from mcd_jax.costs import hlo
from mcd_jax.losses import routing
from mcd_jax.models import moe, towers
from mcd_jax.objectives import two_tower
from mcd_jax.run import checkpoint
from mcd_jax.sharding import mesh as mesh_lib
from tests.objectives import test_scale

INPUTS = dict(vocab_size=tiny.VOCAB, context=tiny.CONTEXT, eot=tiny.EOT, image_size=tiny.SIZE)


def tower(group_size=0, **experts):
    """(Towers, params, pixels, tokens) of a tiny shared tower whose routers are decided."""
    shared = {**SHARED, "experts": {**SHARED["experts"], **experts}}
    built = towers.make(dict(shared=shared, embed_dim=8), **INPUTS, group_size=group_size)
    batch = tiny.batch()
    params = built.init(jax.random.key(0))
    params["shared"]["block_1"]["moe"]["router"] *= 5
    return built, params, jnp.asarray(batch["image"]), jnp.asarray(batch["text"])


def keys(groups):
    return jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(7), jnp.arange(groups))


# ---- the tower ----


@pytest.mark.full
def test_evaluations_see_rows_alone_and_modalities_alone():
    built, params, pixels, tokens = tower()
    both = jax.jit(lambda p, x, t: built.both(p, x, t))(params, pixels, tokens)
    image, text = jax.jit(built.image)(params, pixels[:3]), jax.jit(built.text)(params, tokens[5:])
    np.testing.assert_allclose(image["z"], both["image"]["z"][:3], atol=1e-5)
    np.testing.assert_allclose(text["z"], both["text"]["z"][5:], atol=1e-5)
    assert float(both["text"]["routing"]["kept"].sum()) == tokens.size


def test_in_training_texts_change_images_only_by_the_places_they_take():
    def images(capacity, tokens):
        built, params, pixels, _ = tower(8, capacity=capacity, noise=0.0)
        out = jax.jit(lambda t: built.both(params, pixels, t, None, keys(1))["image"])(tokens)
        return np.asarray(out["tokens"]), float(out["routing"]["kept"].sum())

    tokens = jnp.asarray(tiny.batch()["text"])
    other = jnp.asarray(tiny.batch(seed=1)["text"])
    (a, kept), (b, _) = images(4.0, tokens), images(4.0, other)
    np.testing.assert_array_equal(a, b)
    assert kept == 8 * 4   # patches
    (a, kept), (b, _) = images(0.3, tokens), images(0.3, other)
    assert np.abs(a - b).max() > 1e-3 and kept < 8 * 4


@pytest.mark.full
def test_capacity_in_evaluation_is_a_setting_and_routes_say_who_was_dropped():
    built, params, pixels, tokens = tower(eval_capacity=0.4, group_size=4)
    routes = jax.jit(lambda p, x: built.routes(p, "image", x))(params, pixels)
    assert {k: v.shape for k, v in routes.items()} == dict.fromkeys(("expert", "gate", "kept"), (1, 8, 4, 1))
    out = jax.jit(built.image)(params, pixels)
    np.testing.assert_array_equal(routes["kept"][0].sum((1, 2)), out["routing"]["kept"][:, 0])
    places = moe.capacity(4 * 4, built.experts["image"], 0.4)
    for group in range(2):   # an expert keeps as many as it has places for
        chosen = np.asarray(routes["expert"][0, 4 * group:4 * group + 4])
        kept = np.asarray(routes["kept"][0, 4 * group:4 * group + 4])
        for e in range(4):
            assert kept[chosen == e].sum() == min(places, (chosen == e).sum())
    assert not routes["kept"].all()
    free, *_ = tower()
    text = jax.jit(lambda p, x: free.routes(p, "text", x))(params, tokens)
    assert text["expert"].shape == (1, 8, 6, 1) and bool(text["kept"].all())


def test_views_of_one_network_share_a_pass_and_further_ones_have_their_own():
    built = tower()[0]
    image, text, more = two_tower.TowerPass("image", "image"), two_tower.TowerPass("text", "text"), two_tower.TowerPass("image",
                                                                                                                        "augmented",
                                                                                                                        0.5)
    teacher = [two_tower.TowerPass(kind, kind, network="teacher") for kind in ("text", "image")]
    assert two_tower._together(built, [text, image, more, *teacher]) == [(image, text), (more,), tuple(reversed(teacher))]
    two = two_tower.towers_of(tiny.config("clip"))
    assert two_tower._together(two, [image, text]) == [(image,), (text,)]


def test_what_does_not_fit_is_refused():
    def made(**changes):
        return towers.make({"embed_dim": 8, "shared": {**SHARED, **changes}}, **INPUTS)

    for changes, words in (
            (dict(experts=dict(nums=4)), "config.model.shared.experts has no key 'nums'"),
            (dict(experts=dict(num=4, k=5)), r"config.model.shared.experts.k=5 is out of range: there are 4"),
            (dict(experts=dict(layers=(2,))), r"the mixtures are blocks \(2,\) of 2"),
            (dict(patch_size=5), "can't be cut into patches"), (dict(proj="none", width=16), "needs the tower's width 16")):
        with pytest.raises(ValueError, match=words):
            built = made(**changes)
            built.init(jax.random.key(0))
    with pytest.raises(ValueError, match="shared is both towers in one"):
        towers.make(dict(embed_dim=8, shared=SHARED, image=tiny.IMAGE), **INPUTS)
    with pytest.raises(ValueError, match="set scan=False and drop_path=0"):
        towers.make(dict(embed_dim=8, image=dict(test_scale.VIT, experts=dict(num=4)), text=tiny.TEXT), **INPUTS)
    config = tiny.config("limoe")
    config.model.shared.experts.noise = 0.0
    with pytest.raises(ValueError, match=r"weights.load needs noise"):
        job.objective_of(config)
    config = tiny.config("limoe", least_text=9.0)
    with pytest.raises(ValueError, match=r"least_text=9.0 must lie in \[1, 4\]"):
        job.objective_of(config)
    config = tiny.config("limoe")
    del config.model.shared["experts"]
    with pytest.raises(ValueError, match="the model has none to train"):
        job.objective_of(config)
    with pytest.raises(ValueError, match="needs a text tower of its own"):
        config = tiny.config("mcd", share_text=True)
        config.model = dict(shared=SHARED, embed_dim=8, inputs=INPUTS)
        job.objective_of(config)


def test_groups_of_the_experts_bind_devices_and_microbatches():
    config = limoe_emoji.get_config()
    assert two_tower.group_size(config) == 32 and two_tower.group_size(limoe_emoji.get_config("kind=dense")) == 1
    config.microbatches = 16
    with pytest.raises(ValueError, match="1 batch devices x 16 microbatches x groups of 32 = 512"):
        job.build(config, devices=jax.devices()[:1])


# ---- the terms ----


def test_a_collapse_of_texts_is_seen_by_their_entropy_and_hardly_by_the_classic_losses():
    """49 patches spread over 32 experts, 16 tokens of text all at one: the paper's point."""
    rng = np.random.default_rng(0)
    image = rng.dirichlet(np.full(32, 5.0), 32 * 49).sum(0)
    text = 32 * 16 * np.asarray(jax.nn.one_hot(3, 32))
    assert routing.hinge(jnp.asarray(text), 9) == pytest.approx(np.log(9), abs=1e-5)
    assert routing.hinge(jnp.asarray(image), 20) == 0
    alone, mixed = (float(routing.variation(jnp.asarray(x))) for x in (text, image + text))
    assert alone == pytest.approx(31, abs=1e-3) and mixed < 0.07 * alone


def outcome(statistics, microbatches=1, group_size=2):
    """The terms of a step's forward pass."""
    config = tiny.config("limoe", statistics=statistics)
    config.group_size, config.microbatches = group_size, microbatches
    objective = job.objective_of(config)
    batch = jax.tree.map(jnp.asarray, tiny.batch())

    def forward(key):
        out = objective.forward(objective.init(jax.random.key(0), batch), {}, batch, key, 0)
        return {n: f(out) for n, f in objective.terms.items()}, {n: f(out) for n, f in objective.metrics.items()}, out
    return jax.jit(forward)(jax.random.key(1))


@pytest.mark.full
def test_statistics_of_groups_and_of_the_batch_are_exact_in_microbatches():
    (grouped, metrics, out), (pooled, _, _) = outcome("group"), outcome("batch", 2)
    for name in ("clip", "local_text", "local_image", "z"):
        np.testing.assert_allclose(pooled[name], grouped[name], rtol=1e-5)
    text = np.asarray(out["text/probability"], np.float64)
    both = text + np.asarray(out["image/probability"])

    def spread(total):
        p = total / total.sum()
        return -np.sum(p * np.log(p))

    want = np.mean([max(0, np.log(4) - spread(text[2 * g:2 * g + 2, 0].sum(0))) for g in range(4)])
    assert float(grouped["global_text"]) == pytest.approx(want, rel=1e-4)
    assert float(pooled["global_text"]) == pytest.approx(np.log(4) - spread(text[:, 0].sum(0)), rel=1e-4)
    want = np.mean([np.var(s) / np.mean(s) ** 2 for s in (both[2 * g:2 * g + 2, 0].sum(0) for g in range(4))])
    assert float(grouped["importance"]) == pytest.approx(want, rel=1e-4)
    for name, tokens in (("image", 4), ("text", 6)):
        kept = float(np.asarray(out[f"{name}/kept"]).sum() / (8 * tokens))
        assert float(metrics[f"routing/{name}/success"]) == pytest.approx(kept, rel=1e-6)
        assert float(metrics[f"routing/{name}/dropped"]) == pytest.approx(1 - kept, abs=1e-6)
        np.testing.assert_allclose(np.asarray(out[f"{name}/chosen"]).sum(-1), tokens)


def test_a_zero_weight_leaves_no_trace():
    """With relu in the networks only the load loss has an error function."""
    def primitives(**weights):
        config = tiny.config("limoe")
        config.model.shared.act = "relu"
        tiny.weigh(config, weights)
        objective, batch = job.objective_of(config), jax.tree.map(jnp.asarray, tiny.batch())
        params = objective.init(jax.random.key(0), batch)
        live = [name for name, weight in tiny.weights(config).items() if weight]

        def loss(params):
            out = objective.forward(params, {}, batch, jax.random.key(1), 0)
            return sum(objective.terms[name](out) for name in live)
        jaxpr = jax.make_jaxpr(jax.grad(loss))(params).jaxpr
        return str(partial_eval.dce_jaxpr(jaxpr, [True] * len(jaxpr.outvars))[0])

    aux = [name for name in config_lib.objective("limoe").weights if name != "clip"]
    full, without, none = primitives(), primitives(load=0), primitives(**dict.fromkeys(aux, 0))
    assert " erf " in full and " erf " not in without
    assert len(none) < len(without) < len(full)


def test_every_expert_can_be_logged():
    config = tiny.config("limoe", every_expert=True)
    names = job.objective_of(config).metrics
    assert {f"routing/{m}/mixture_0/expert_{e}" for m in ("image", "text") for e in range(4)} <= set(names)


# ---- on a mesh ----


def test_the_step_on_a_mesh_of_experts_moves_tokens_twice_each_way():
    losses, gradient = test_scale.one_step("limoe", "1")
    mesh, step, state, batch = test_scale.setup("limoe", "4 expert")
    with jax.set_mesh(mesh):
        compiled = step.lower(state, batch).compile()
        after, report = jax.block_until_ready(compiled(state, batch))
    assert hlo.collectives(compiled.as_text())["all-to-all"]["count"] == 4   # two forward, two backward, of one mixture
    for name, value in losses.items():
        np.testing.assert_allclose(float(report[name]), value, rtol=2e-5, err_msg=name)
    moved = jax.tree.map(lambda a, b: np.asarray(a) - np.asarray(b), state.params, after.params)
    for a, b in zip(jax.tree.leaves(gradient), jax.tree.leaves(moved), strict=True):
        np.testing.assert_allclose(b, a, rtol=1e-3, atol=1e-4)


@pytest.mark.full
def test_rematerialisation_repeats_the_two_of_the_forward_pass():
    mesh, step, state, batch = test_scale.setup("limoe", "2 expert", remat="full")
    with jax.set_mesh(mesh):
        text = step.lower(state, batch).compile().as_text()
    assert hlo.collectives(text)["all-to-all"]["count"] == 6


@pytest.mark.full
def test_a_checkpoint_moves_between_meshes_of_experts(tmp_path):
    state = tiny.build("limoe")[3]

    def placed(size):
        mesh = mesh_lib.make(dict(expert=size), jax.devices()[:size])
        places = mesh_lib.shardings(state, config_lib.default().sharding, mesh)
        return jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), state, places), places

    saver = checkpoint.Checkpoints(tmp_path)
    on_four = jax.device_put(state, placed(4)[1])
    kernel = on_four.params["shared"]["block_1"]["moe"]["experts"]["in"]["kernel"]
    assert kernel.sharding.shard_shape(kernel.shape)[0] == 1
    saver.save(0, on_four)
    for size in (1, 2):
        back = saver.restore(placed(size)[0])
        jax.tree.map(lambda a, b: np.testing.assert_array_equal(jax.random.key_data(a) if a.dtype == state.key.dtype else a,
                                                                jax.random.key_data(b) if b.dtype == state.key.dtype else b),
                     back, state)
        kernel = back.params["shared"]["block_1"]["moe"]["experts"]["in"]["kernel"]
        assert kernel.sharding.shard_shape(kernel.shape)[0] == 4 // size
    saver.close()


# ---- other methods, other towers ----


@pytest.mark.full
@pytest.mark.parametrize("method", ["clip", "siglip", "slip", "mcd", "gcl", "m2mix"])
def test_every_method_trains_on_the_shared_tower_and_composes(method):
    config = tiny.config(f"{method}+limoe")
    config.group_size = 2
    objective = job.objective_of(config)
    batch = jax.tree.map(jnp.asarray, tiny.batch())
    state = step_lib.init_state(objective, optax.identity(), jax.random.key(0), batch)
    out, grads = jax.jit(lambda p: _terms(objective, tiny.weights(config), p, state, batch))(state.params)
    assert np.isfinite(float(out)) and all(np.isfinite(g).all() for g in jax.tree.leaves(grads))
    alone = tiny.config(method)
    alone.model, alone.group_size = config.model, config.group_size
    one = jax.jit(lambda p: job.objective_of(alone).forward(p, state.memory.get(method, {}), batch, jax.random.key(1), 0))
    both = jax.jit(lambda p: objective.forward(p, state.memory, batch, jax.random.key(1), 0))
    np.testing.assert_allclose(both(state.params)[method]["image"], one(state.params)["image"], atol=1e-5)


def _terms(objective, weights, params, state, batch):
    def loss(params):
        out = objective.forward(params, state.memory, batch, jax.random.key(1), state.step)
        return sum(w * objective.terms[n](out) for n, w in weights.items() if w)
    return jax.value_and_grad(loss)(params)


@pytest.mark.full
def test_experts_in_two_towers_are_kept_in_balance_each_by_itself():
    config = tiny.config("siglip+limoe")
    vit = {k: v for k, v in test_scale.VIT.items() if k != "scan"}
    config.model = dict(image=dict(vit, experts=dict(num=4, group_size=2, layers=(1,))), embed_dim=8, logit_bias=-10.0,
                        text=dict(tiny.TEXT, experts=dict(num=2, every=1, group_size=2)), inputs=INPUTS)
    config.objective.limoe.least_text = 2.0
    tiny.weigh(config, {"limoe/clip": 0.0, "limoe/local_image": 0.1})
    objective = job.objective_of(config)
    batch = jax.tree.map(jnp.asarray, tiny.batch())
    params = objective.init(jax.random.key(0), batch)
    assert params["image"]["block_1"]["moe"]["router"].shape == (16, 4) and "mlp" in params["image"]["block_0"]
    state = step_lib.init_state(objective, optax.identity(), jax.random.key(0), batch)
    loss, grads = jax.jit(lambda p: _terms(objective, tiny.weights(config), p, state, batch))(params)
    assert np.isfinite(float(loss)) and all(np.any(g != 0) for g in jax.tree.leaves(grads))


# ---- the paper's sizes ----


@pytest.mark.parametrize("variant, total, active", [   # of a vocabulary of 32,000, in millions
    ("H/14", 5550, 675.0), ("B/16", 990, 110), ("B/32", 990, 110), ("L/16", 3460, 340)])
def test_sizes_of_the_paper(variant, total, active):
    config = paper.get_config(f"variant={variant}")
    built = towers.make(config.model.to_dict(), vocab_size=32_000, context=16, eot=1, image_size=224, pad=1)
    shapes = jax.eval_shape(built.init, jax.random.key(0))
    sizes = [(jax.tree_util.keystr(path), x.size) for path, x in jax.tree_util.tree_leaves_with_path(shapes)]
    every, used = sum(n for _, n in sizes), sum(n // 32 if "experts" in path else n for path, n in sizes)
    assert every / 1e6 == pytest.approx(total, rel=0.01)
    assert used / 1e6 == pytest.approx(active, rel=0.04 if active < 600 else 3e-3)


def test_configs_of_the_paper():
    config = paper.get_config("variant=H/14,optimizer=adamw,batch_size=64,expert=4")
    assert config.steps == "781250 steps" and config.mesh.expert == 4 and config.model.shared.experts.layers[-1] == 31
    assert paper.get_config("setting=ablation").batch_size == 8192 and paper.get_config().batch_size == 16384
    assert "experts" not in paper.get_config("kind=dense").model.shared
    with pytest.raises(ValueError, match="variant is one of S/32"):
        paper.get_config("variant=B/8")


def test_controls_of_the_embedded_data():
    for arguments, check in (
            ("entropy=off", lambda c: c.objective.weights.global_text == 0 and c.objective.weights.importance > 0),
            ("priority=off,capacity=0.5", lambda c: not c.model.shared.experts.priority and c.model.shared.experts.capacity == 0.5),
            ("kind=dense", lambda c: c.objective.name == "clip" and "experts" not in c.model.shared),
            ("kind=collapse", lambda c: c.objective.weights.global_text < 0 and c.objective.least_text == 8),
            ("mcd=on", lambda c: c.objective.name == ("mcd", "limoe") and c.objective.limoe.weights.clip == 0)):
        assert check(limoe_emoji.get_config(arguments)), arguments
    with pytest.raises(ValueError, match="kind is one of"):
        limoe_emoji.get_config("kind=moe")
