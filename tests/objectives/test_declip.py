"""DeCLIP: its losses on known numbers (numpy's generator, 0; scale 10), its bank, masked words, what is computed for whom."""
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from mcd_jax import config as config_lib
from mcd_jax import job
from mcd_jax import step as step_lib
from mcd_jax.losses import contrastive, ssl
from mcd_jax.methods import declip
from mcd_jax.models import projector
from mcd_jax.objectives import bank as bank_lib
from mcd_jax.optim import schedule
from mcd_jax.run import checkpoint
from mcd_jax.sharding import mesh as mesh_lib


def drawn():
    """(views of a batch of 4, bank of 6, predictions, projections) of the generator."""
    draw, unit = np.random.default_rng(0), lambda x: x / np.linalg.norm(x, axis=-1, keepdims=True)
    views, bank = unit(draw.standard_normal((4, 4, 8))), unit(draw.standard_normal((6, 8)))
    heads = jnp.asarray(draw.standard_normal((4, 4, 8)), jnp.float32)
    names = ("image", "augmented", "text", "augmented_text")
    return dict(zip(names, jnp.asarray(views, jnp.float32))), jnp.asarray(bank, jnp.float32), heads[:2], heads[2:]


@pytest.mark.parametrize("implementation", ["gather", "ring"])
def test_pairs_and_neighbours_are_those_of_the_released_code(implementation):
    views, rows, _, _ = drawn()
    bank = {"rows": rows, "at": jnp.int32(0)}
    near = {text: bank_lib.nearest(bank, views[text], implementation) for text in declip.TEXTS}
    for text, want in (("text", (5, 5, 2, 1)), ("augmented_text", (3, 2, 5, 3))):
        np.testing.assert_array_equal(contrastive.nearest(views[text], rows, implementation), want)
        np.testing.assert_allclose(near[text], rows[jnp.asarray(want)], atol=1e-6)
    pairs = [float(contrastive.softmax(views[a], views[b], 10.0, implementation)) for a, b in declip.PAIRS]
    np.testing.assert_allclose(pairs, (4.836310, 3.239199, 3.461412, 6.691582), rtol=1e-6)
    one_way = [float(contrastive.one_way(views[a], near[b], 10.0, implementation)) for a, b in declip.PAIRS]
    np.testing.assert_allclose(one_way, (4.071988, 3.997569, 1.935441, 4.610541), rtol=1e-6)
    objective = declip.make(tiny.config("declip", implementation=implementation))
    out = {**views, "scale": 10.0, **{f"nn/{text}": x for text, x in near.items()}}
    for name, want in (("clip", 4.557126), ("nn", 3.653885), ("first_pair", pairs[0]), ("other_pairs", np.mean(pairs[1:]))):
        assert float(objective.terms[name](out)) == pytest.approx(want, rel=1e-6), name
    both = declip.make(tiny.config("declip", nn_direction="both", implementation=implementation)).terms["nn"](out)
    assert float(both) == pytest.approx(np.mean([contrastive.softmax(views[a], near[b], 10.0) for a, b in declip.PAIRS]), rel=1e-6)


def test_simsiam_is_that_of_the_released_code():
    _, _, predicted, projected = drawn()
    assert float(ssl.simsiam(predicted, projected)) == pytest.approx(-0.069191, abs=1e-6)
    assert not jax.grad(lambda z: ssl.simsiam(predicted, z))(projected).any()
    assert float(ssl.spread(jnp.ones((5, 3)))) == pytest.approx(0, abs=1e-6)
    assert float(ssl.spread(jnp.asarray([[1.0, 0], [-2, 0], [0, 3], [0, -4]]))) == pytest.approx(1)


def test_the_ring_is_full_and_goes_round():
    views, rows, _, _ = drawn()
    bank = bank_lib.push({"rows": rows, "at": jnp.int32(0)}, views["augmented_text"])
    bank = bank_lib.push(bank, views["text"])
    np.testing.assert_allclose(bank["rows"].sum(1), (-0.284079, 0.833832, 1.763776, -0.725543, 0.671558, 0.936141), atol=1e-6)
    assert int(bank["at"]) == 2


def test_neighbours_are_looked_up_before_this_step_s_texts_come_in():
    objective, tx, weights, state, batch = tiny.build("declip")
    before = state.memory["bank"]
    np.testing.assert_allclose(np.linalg.norm(before["rows"], axis=1), 1, rtol=1e-5)
    out = jax.jit(objective.forward)(state.params, state.memory, batch, jax.random.fold_in(state.key, 0), jnp.int32(0))
    step = jax.jit(step_lib.make_step(objective, tx, weights))
    after, report = step(state, batch)
    held = jnp.concatenate([out["text"][4:], out["augmented_text"][4:], out["text"][:4]])   # 8 and then 8, which go round
    np.testing.assert_allclose(after.memory["bank"]["rows"], held, atol=1e-5)
    assert int(after.memory["bank"]["at"]) == 4
    assert float(report["nn/cosine"]) < 0.99   # of directions that are random; a text's own embedding would have 1
    last, _ = step(after, batch)
    assert int(last.memory["bank"]["at"]) == 8
    still = jax.grad(lambda m: objective.terms["nn"](objective.forward(state.params, m, batch, state.key, 0)), allow_int=True)(
        state.memory)
    assert not still["bank"]["rows"].any()
    grad = jax.grad(lambda p: objective.terms["nn"](objective.forward(p, state.memory, batch, state.key, 0)))(state.params)
    moved = {tower: any(bool(x.any()) for x in jax.tree.leaves(grad[tower])) for tower in ("image", "text")}
    assert moved == {"image": True, "text": False}   # as from image to text alone


def test_a_run_goes_on_from_its_checkpoint_as_if_it_had_not_ended(tmp_path):
    """The bank comes back with its place: the second step looks for neighbours in what the first one left."""
    objective, tx, weights, state, batch = tiny.build("declip")
    step = jax.jit(step_lib.make_step(objective, tx, weights))
    first, _ = step(state, batch)
    saver = checkpoint.Checkpoints(tmp_path)
    saver.save(1, first)
    saver.close()
    abstract = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), first)
    restored = checkpoint.Checkpoints(tmp_path, read_only=True).restore(abstract)
    straight, resumed = (step(state, batch)[0] for state in (first, restored))
    jax.tree.map(np.testing.assert_array_equal, (straight.params, straight.memory), (resumed.params, resumed.memory))


def test_the_bank_is_one_on_every_mesh():
    """Its rows are split over four devices, the batch too; neighbours and what is remembered are those of one device."""
    def after(devices):
        objective, tx, weights, state, batch = tiny.build("declip", implementation="ring")
        mesh = mesh_lib.make({"data": devices}, jax.devices()[:devices])
        places = mesh_lib.shardings(state, (("bank/rows", (("data",),)), (".*", "replicate")), mesh)
        state, batch = jax.device_put(state, places), jax.device_put(batch, mesh_lib.batch_sharding(mesh))
        step = jax.jit(step_lib.make_step(objective, tx, weights), out_shardings=(places, None))
        with jax.set_mesh(mesh):
            for _ in range(2):
                state, report = jax.block_until_ready(step(state, batch))
        assert state.memory["bank"]["rows"].addressable_shards[0].data.shape == (12 // devices, 8)
        return jax.device_get(state.memory["bank"]["rows"]), float(report["nn/cosine"])
    one, four = after(1), after(4)
    np.testing.assert_allclose(one[0], four[0], atol=1e-3)
    assert one[1] == pytest.approx(four[1], abs=1e-3)


def test_the_caption_is_embedded_from_masked_words_or_from_all():
    feeds, _, _, state, batch = tiny.build("declip")
    clean, _, _, _, _ = tiny.build("declip", mlm_feeds_clip=False)
    embedded = feeds.heads["embed"](state.params, state.memory, batch)["text"]
    key = jax.random.key(3)
    by_masked, by_all = (jax.jit(o.forward)(state.params, state.memory, batch, key, 0) for o in (feeds, clean))
    np.testing.assert_allclose(by_all["text"], embedded, atol=1e-6)
    assert np.abs(by_masked["text"] - embedded).max() > 1e-3
    np.testing.assert_allclose(by_masked["mlm/hard"], by_all["mlm/hard"], rtol=1e-5)


def test_ends_and_starts_of_texts_are_neither_masked_nor_drawn():
    objective, _, _, _, batch = tiny.build("declip", start_id=3, mask_rate=1.0)
    text = jnp.asarray(batch["text"]).at[:, 0].set(3).at[:4, 4:].set(0).at[:4, 3].set(tiny.EOT)
    text = jnp.tile(text, (50, 1))
    found = objective.parts.draw({**batch, "text": text}, jax.random.key(0))
    closed = (text == 3) | (text == tiny.EOT) | (text == 0)
    np.testing.assert_array_equal(found["text/chosen"], ~closed)
    np.testing.assert_array_equal(found["text/masked"][closed], text[closed])
    assert not np.isin(found["text/masked"][~closed], (0, 3, tiny.EOT)).any()
    assert np.mean(found["text/masked"][~closed] == tiny.VOCAB) == pytest.approx(0.8, abs=0.05)


def test_what_no_term_needs_is_not_there():
    """With the first pair alone it is CLIP; each other term brings its own views, heads and memory."""
    off = dict.fromkeys(declip.WEIGHTS, 0.0)
    parts = {"first_pair": (set(), set(), False), "other_pairs": ({"augmented", "caption"}, set(), False),
             "nn": ({"augmented", "caption"}, set(), True), "simsiam": ({"augmented"}, {"projector", "predictor"}, False),
             "mlm": (set(), {"mlm"}, False)}
    for term, (views, heads, bank) in parts.items():
        config = tiny.config("declip")
        tiny.weigh(config, {**off, term: 1.0})
        objective = job.objective_of(config)
        batch = jax.tree.map(jnp.asarray, tiny.batch())
        params = jax.eval_shape(objective.init, jax.random.key(0), batch)
        memory = jax.eval_shape(objective.init_memory, jax.random.key(0), params, batch)
        assert set(objective.needs) == {"image", "text"} | views and set(params.get("declip", {})) == heads, term
        assert bool(memory) == bank and ("text/masked" in objective.parts.drawn_keys) == (term == "mlm")
    assert config_lib.objective("declip", mask_id=1, weights=declip.PAPER).weights["clip"] == 0


def test_a_composed_method_reads_the_masked_caption():
    """As one on the tokens of view and caption would that goes beside: the passes are shared."""
    cfg = tiny.config("declip")
    cfg.objective = config_lib.objective(("declip", "clip"), declip={**tiny.CASES["declip"].options, "text": "text"},
                                         clip=dict(text=declip.MASKED))
    objective, batch = job.objective_of(cfg), jax.tree.map(jnp.asarray, tiny.batch())
    assert set(objective.needs) == {"image", "augmented", "text", "caption"}
    params = objective.init(jax.random.key(0), batch)
    out = jax.jit(objective.forward)(params, objective.init_memory(jax.random.key(1), params, batch), batch, jax.random.key(2), 0)
    np.testing.assert_allclose(out["clip"]["text"], out["declip"]["text"], atol=1e-6)


def test_batch_normalisation_is_that_of_the_batch_and_the_linear_head_is_linear():
    x = jax.random.normal(jax.random.key(0), (64, 5)) * 3 + 1
    head = projector.make(5, 7, 4, norm="batch", last_norm=True)
    y = head.apply(head.init(jax.random.key(1)), x)
    np.testing.assert_allclose(y.mean(0), 0, atol=1e-5)
    np.testing.assert_allclose(y.std(0), 1, atol=1e-3)
    head = projector.make(5, 0, 4, 1, last_bias=True)
    params = head.init(jax.random.key(1))
    np.testing.assert_allclose(head.apply(params, x), x @ params["dense_0"]["kernel"], rtol=1e-5, atol=1e-6)
    assert params["dense_0"]["bias"].shape == (4,)


def test_the_released_learning_rate_can_be_written():
    """Its first update has exactly the start, ours a 2,500th of the way more."""
    rate = schedule.make(dict(name="cosine", warmup="2500 steps", start=0.1), 1e-3, 128_001, 4096, 15_388_848)
    got = [float(rate(count)) for count in (0, 1249, 2499, 65000, 128_000)]
    np.testing.assert_allclose(got, (1.000000e-4, 5.498199e-4, 1.000000e-3, 5.031353e-4, 1.566554e-13), rtol=4e-3, atol=1e-9)


@pytest.mark.parametrize("wrong, message", [
    (dict(mask_id=-1), r"mask_id=-1 must be the id of the mask, one of the 33 ids .*spare_ids=1 and mask_id=32"),
    (dict(mask_id=tiny.EOT), "neither padding nor end of text"), (dict(mask_rate=1.5), r"mask_rate=1.5 must lie in \[0, 1\]"),
    (dict(bank=7), "bank=7 must hold a batch, config.batch_size=8"), (dict(norm="group"), "must be 'layer' or 'batch'"),
    (dict(nn_direction="text"), "must be 'image' or 'both'")])
def test_what_does_not_fit(wrong, message):
    with pytest.raises(ValueError, match=message):
        declip.make(tiny.config("declip", **wrong))
