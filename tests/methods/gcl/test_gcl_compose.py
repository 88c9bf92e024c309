"""Methods composed on one pair of towers: what is shared, what stays apart, and that nothing but cost changes."""
import jax
import jax.numpy as jnp
from ml_collections import ConfigDict
import numpy as np
import pytest
import tiny

from mcd_jax import config as config_lib
from mcd_jax import job, plugins
from mcd_jax import step as step_lib
from mcd_jax.costs import count_flops
from mcd_jax.evals import building, embedder
from mcd_jax.objectives import compose, two_tower
from mcd_jax.run import checkpoint, fingerprint
from mcd_jax.sweep import plan

DENOMINATORS = 2 * (3 * tiny.BATCH) ** 2 * 8   # FLOPs of the products of all embeddings of a batch


def forward_flops(method, weights=None, microbatches=1, **changes):
    cfg = tiny.config(method, **changes)
    cfg.microbatches = microbatches
    tiny.weigh(cfg, weights or {})
    objective = compose.objective(cfg)
    batch = jax.tree.map(jnp.asarray, tiny.batch())
    params = jax.eval_shape(objective.init, jax.random.key(0), batch)
    memory = jax.eval_shape(objective.init_memory, jax.random.key(0), params, batch)
    return count_flops.count(objective.forward, params, memory, batch, jax.random.key(0), jnp.int32(0))


@pytest.mark.parametrize("microbatches", [1, 2])
def test_mcd_with_gcl_costs_no_pass_of_a_tower_more_than_mcd(microbatches):
    alone = forward_flops("mcd", microbatches=microbatches)
    assert forward_flops("mcd+gcl", microbatches=microbatches) == alone + DENOMINATORS
    assert forward_flops("gcl+mcd", microbatches=microbatches) == alone + DENOMINATORS
    assert forward_flops("mcd+gcl", {"gcl/gcl": 0}, microbatches=microbatches) == alone


def test_any_methods_share_what_they_encode():
    """The clean view and the caption once; SLIP's two views and its head beside them; the fusion tower's own pass."""
    clip, slip, gcl = (forward_flops(method) for method in ("clip", "slip", "gcl"))
    assert forward_flops("clip+siglip") == clip
    assert forward_flops("clip+siglip+slip+gcl") == slip + gcl - clip == slip + DENOMINATORS
    reading = forward_flops("gcl", fusion="tower")
    assert reading > gcl and forward_flops("mcd+gcl", fusion="tower") == forward_flops("mcd") + reading - clip


def test_views_of_another_key_or_share_are_encoded_apart():
    views = [two_tower.TowerPass("image", "image"), two_tower.TowerPass("image", "augmented"), two_tower.TowerPass("image", "image",
                                                                                                                   0.5),
             two_tower.TowerPass("image", "image", network="teacher"), two_tower.TowerPass("text", "image")]
    assert len(set(views)) == 5
    batch = {**tiny.batch()}
    clip = forward_flops("clip")
    cfg = tiny.config("clip+gcl")
    cfg.objective.gcl.image = "augmented"
    objective = compose.objective(cfg)
    params = jax.eval_shape(objective.init, jax.random.key(0), batch)
    got = count_flops.count(objective.forward, params, {}, batch, jax.random.key(0), jnp.int32(0))
    assert clip + DENOMINATORS < got < 2 * clip + DENOMINATORS and objective.needs == ("image", "text", "augmented")


def test_terms_and_gradients_are_those_of_the_methods_alone():
    """Every term on the same parameters, memory and key, and the gradient of their sum; masks are those that MCD draws alone."""
    both, _, weights, state, batch = tiny.build("mcd+gcl")
    memory = {"mcd": jax.tree.map(lambda x: 1.05 * x + 0.01, state.memory["mcd"])}
    key = jax.random.key(5)

    def loss(objective, memory, weights):
        def value(params):
            out = objective.forward(params, memory, batch, key, state.step)
            terms = {name: fn(out) for name, fn in objective.terms.items() if weights.get(name)}
            return sum(weights[name] * v for name, v in terms.items()), terms
        (_, terms), grads = jax.jit(jax.value_and_grad(value, has_aux=True))(state.params)
        return terms, grads

    terms, grads = loss(both, memory, weights)
    parts = {}
    for name in ("mcd", "gcl"):
        alone, _, own, _, _ = tiny.build(name)
        parts[name] = loss(alone, memory.get(name, {}), own)
        for term, value in parts[name][0].items():
            np.testing.assert_allclose(terms[f"{name}/{term}"], value, rtol=1e-5, err_msg=term)
    assert set(terms) == {f"{name}/{term}" for name in parts for term in parts[name][0]}
    total = jax.tree.map(jnp.add, parts["mcd"][1], parts["gcl"][1])
    for path, want in fingerprint.flat(total).items():
        np.testing.assert_allclose(fingerprint.flat(grads)[path], want, rtol=1e-3, atol=1e-5, err_msg=path)


def test_the_first_method_starts_as_alone_and_the_others_add_to_it():
    both, _, _, state, batch = tiny.build("mcd+gcl", fusion="tower")
    alone = tiny.build("mcd")[3]
    for path, want in fingerprint.flat(alone.params).items():
        np.testing.assert_array_equal(fingerprint.flat(state.params)[path], want, err_msg=path)
    assert set(state.params) - set(alone.params) == {"fusion"}
    assert jax.tree.structure(state.memory) == jax.tree.structure({"mcd": alone.memory})
    assert embedder.parameters(state, "memory/mcd/teacher")["image"] is state.memory["mcd"]["teacher"]["image"]
    averaged = step_lib.with_average(both, 0.9)
    memory = averaged.init_memory(jax.random.key(0), state.params, batch)
    out = jax.eval_shape(averaged.forward, state.params, memory, batch, jax.random.key(0), state.step)
    assert set(jax.eval_shape(averaged.update_memory, memory, state.params, out["for_memory"], state.step)) == {"mcd", "ema"}


def test_the_embedding_head_gives_what_any_gives_at_the_cost_of_one():
    both, _, _, state, batch = tiny.build("mcd+gcl")
    alone = tiny.build("gcl")[0]
    head = {name: jax.jit(one.heads["embed"])(state.params, {}, batch) for name, one in (("both", both), ("alone", alone))}
    assert jax.tree.structure(head["both"]) == jax.tree.structure(head["alone"]) and "fused" in head["both"]
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), head["both"], head["alone"])
    cost = [count_flops.count(one.heads["embed"], state.params, {}, batch) for one in (both, alone)]
    assert cost[0] == cost[1]


def test_collisions_are_refused_by_name():
    with pytest.raises(ValueError, match=r"'slip' and 'mcd' both make params/ssl"):
        tiny.build("slip+mcd", {"mcd/ssl": 1.0}, augmented=("augmented", "augmented2"))
    tiny.build("slip+mcd", {"slip/ssl": 0.0})
    for names, words in ((("clip", "clip"), "last parts differ"), (("clip",), "two or more")):
        with pytest.raises(ValueError, match=words):
            config_lib.objective(names)
    with pytest.raises(ValueError, match=r"unknown composed method: 'glc'; did you mean 'gcl'"):
        config_lib.objective(("mcd", "gcl"), glc={})
    with pytest.raises(ValueError, match=r"unknown option of objective 'gcl': 'fusio'; did you mean 'fusion'"):
        config_lib.objective(("mcd", "gcl"), gcl=dict(fusio="tower"))
    with pytest.raises(ValueError, match=r"belong to one of the composed methods: write mcd=dict"):
        config_lib.objective(("mcd", "gcl"), weights=dict(gcl=1.0))
    broken = ConfigDict(dict(name=("mcd", "gcl"), mcd=config_lib.objective("mcd")))
    with pytest.raises(ValueError, match=r"config\.objective\.gcl is missing"):
        config_lib.methods(broken)


def test_two_heads_of_one_name_and_a_method_without_parts_are_refused(monkeypatch):
    module = plugins.load("objective", "clip")
    made = module.make
    monkeypatch.setattr(module, "make", lambda config: made(config)._replace(parts=None))
    with pytest.raises(ValueError, match=r"'clip' can't be composed, because its Objective has no parts"):
        tiny.build("gcl+clip")
    with_head = lambda config: (one := made(config))._replace(heads={**one.heads, "match": one.heads["embed"]})
    monkeypatch.setattr(module, "make", with_head)
    other = plugins.load("objective", "siglip")
    siglip = other.make
    monkeypatch.setattr(other, "make", lambda config: (one := siglip(config))._replace(heads={"match": one.heads["embed"]}))
    with pytest.raises(ValueError, match=r"'clip' and 'siglip' both have a head 'match'"):
        tiny.build("clip+siglip")
    assert set(tiny.build("clip+gcl")[0].heads) == {"embed", "dense", "pooled", "match"}


def test_sections_are_set_from_the_command_line_and_survive_the_file(tmp_path):
    path = "configs/mcd_gcl_emoji.py"
    config = plan.read(path, ("--config.objective.gcl.weights.gcl=0.2", "--config.objective.mcd.weights.misalignment=5",
                              "--config.objective.gcl.fusion=tower"))
    config_lib.check(config)
    config_lib.save(config, tmp_path / "config.json")
    config = config_lib.read(tmp_path / "config.json")
    assert config_lib.title(config.objective) == "mcd + gcl" and config.objective.gcl.fusion == "tower"
    weights = job.term_weights(config, lambda name, value: {"objective.mcd.warmup.misalignment": 10}.get(name, 0))
    assert weights["gcl/gcl"] == 0.2 and weights["mcd/clip"] == 1.0
    np.testing.assert_allclose(weights["mcd/misalignment"](jnp.int32(5)), 2.5)
    with pytest.raises(ValueError, match="gc"):
        plan.read(path, ("--config.objective.gcl.weights.gc=1",))


def composed_run():
    config = config_lib.from_file("tests/configs/toy.py")
    with config.unlocked():
        config.objective = config_lib.objective(("mcd", "gcl"), mcd=dict(ema_m=0.9), gcl=dict(fusion="tower"))
        config.data.views.augmented, config.ema = "decode|crop(16, 0.08)|gray(0.2)|flip(0.5)", 0.0
    config.evals.retrieval.validation.weights_from = "memory/mcd/teacher"
    return job.build(config)


REPORTED = {"loss/mcd/clip", "loss/mcd/misalignment", "loss/gcl/gcl", "gcl/centroid_cosine/i2it", "weight/mcd/misalignment"}


def test_a_composed_run_is_built():
    """From a config file: batch keys, weights with their ramps, evaluations by the teacher of a method."""
    built = composed_run()
    evals = building.build(built.config, built.objective, built.durations, built.abstract)
    built.pipeline.close()
    _, report = jax.eval_shape(built.step, built.abstract, built.batch)
    assert set(report) >= REPORTED and [e.weights_from for e in evals] == ["memory/mcd/teacher"]
    assert "text/position" in built.placement and "fusion/proj/kernel" in built.placement


@pytest.mark.full
def test_a_composed_run_trains_and_its_teacher_embeds():
    built = composed_run()
    with jax.set_mesh(built.mesh):
        state = built.init(jax.random.key(0))
        batch = built.pipeline.batch(0)
        state, report = built.step(state, batch)
        found = embedder.make_embed(built.objective, "memory/mcd/teacher", 16)(state, {k: batch[k] for k in ("image", "text")})
    built.pipeline.close()
    assert np.isfinite(float(report["loss"])) and found["fused"].shape == (16, 16) and set(report) >= REPORTED


def test_mixtures_compose_with_the_others():
    """Coefficients are drawn once for the batch by the method itself, another number than any other's; no pass of a tower more."""
    assert forward_flops("clip+m2mix") == forward_flops("clip")
    objective, _, _, state, batch = tiny.build("mcd+gcl+m2mix")
    assert set(state.params) == {"image", "text", "logit_scale", "m2"}
    out = jax.jit(objective.forward)(state.params, state.memory, batch, jax.random.key(0), state.step)
    np.testing.assert_array_equal(out["mcd"]["image"], out["m2mix"]["image"])
    assert 0 < float(out["m2mix"]["mix/m2"]) < 1 and np.isfinite(float(objective.terms["m2mix/m2"](out)))


def test_a_run_without_fusion_starts_one_with_it(tmp_path):
    """config.init_from: what the other run lacks is named in config.init_fresh, else it is refused by name."""
    _, _, _, state, batch = tiny.build("clip")
    saver = checkpoint.Checkpoints(tmp_path)
    saver.save(0, state)
    saver.wait()
    objective, tx, _, fresh, _ = tiny.build("gcl", fusion="tower")
    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), fresh.params)
    with pytest.raises(checkpoint.MismatchError, match=r"params/fusion/position is absent .*config\.init_fresh"):
        checkpoint.restore_from(tmp_path, shapes, "params")
    loaded = checkpoint.restore_from(tmp_path, shapes, "params", ("fusion/.*",))
    started = jax.jit(lambda: step_lib.init_state(objective, tx, jax.random.key(3), batch, loaded))().params
    assert set(started) == set(fresh.params)
    for path, want in fingerprint.flat(state.params).items():
        np.testing.assert_array_equal(fingerprint.flat(started)[path], want, err_msg=path)
    assert np.any(started["fusion"]["proj"]["kernel"])
