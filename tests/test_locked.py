"""Locked towers: any method trains beside them, they never move, cost one forward pass, and no optimizer state."""
import contextlib
import io
import json
import math
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from mcd_jax import config as config_lib
from mcd_jax import evaluate, trained
from mcd_jax import job as job_lib
from mcd_jax import step as step_lib
from mcd_jax import train as train_lib
from mcd_jax.convert import runs as convert_runs
from mcd_jax.costs import count_flops, hlo
from mcd_jax.models import towers
from mcd_jax.objectives import two_tower
from mcd_jax.optim import optimizer
from mcd_jax.run import checkpoint
from mcd_jax.sharding import mesh as mesh_lib
from mcd_jax.sharding import rules

CONFIG = __file__.rpartition("/")[0] + "/configs/locked.py"
CASES = [("clip", ("text",)), ("clip", ("image", "text")), pytest.param("siglip", ("image",), marks=pytest.mark.full),
         pytest.param("slip", ("text", "text/proj"), marks=pytest.mark.full)]
METHODS = [pytest.param(name, marks=[] if case.quick else pytest.mark.full) for name, case in tiny.CASES.items() if case.lockable]


def steps(method, names, count=1, **how):
    objective, tx, weights, state, batch = tiny.build(method, model=dict(locked=names), **how)
    step, before = jax.jit(step_lib.make_step(objective, tx, weights)), state
    for _ in range(count):
        state, report = step(state, batch)
    return before, state, report


@pytest.mark.parametrize("method, names", CASES, ids=str)
def test_a_locked_tower_stays_and_all_else_moves(method, names):
    before, after, report = steps(method, names, 2)
    kinds = [name for name in names if "/" not in name]
    assert sorted(after.memory["locked"]) == sorted(kinds) and float(report["grad_norm"]) > 0
    jax.tree.map(np.testing.assert_array_equal, before.memory["locked"], after.memory["locked"])
    moved = {path: bool(jnp.any(a != b)) for (path, a), b in zip(rules.paths(before.params).items(), jax.tree.leaves(after.params))}
    assert all(moved.values()), moved
    left = {path for path in moved if path.startswith(tuple(f"{kind}/" for kind in kinds))}
    assert left == {f"{kind}/proj/kernel" for kind in kinds if f"{kind}/proj" not in names}
    if "teacher" in after.memory:    # nor is a locked tower kept a second time, as a teacher
        assert {p for p in rules.paths(after.memory["teacher"]) if p.startswith(tuple(f"{k}/" for k in kinds))} == left


@pytest.mark.parametrize("method, names", CASES, ids=str)
def test_a_locked_tower_has_no_optimizer_state(method, names):
    _, _, _, state, _ = tiny.build(method, model=dict(locked=names))
    trained, moments = rules.paths(state.params), rules.paths(state.opt)
    ends = lambda path: any(path.endswith(f"/{name}") for name in trained)
    assert all(ends(path) for path, x in moments.items() if x.ndim)
    assert sum(x.size for path, x in moments.items() if ends(path)) == 2 * sum(x.size for x in trained.values())


@pytest.mark.parametrize("method", METHODS)
def test_the_trained_part_gets_the_gradient_it_gets_unlocked(method):
    names = ("text",)
    free, _, weights, state, batch = tiny.build(method)
    locked, _, _, _, _ = tiny.build(method, model=dict(locked=names))
    trained, rest = towers.split(state.params, names)
    start = lambda objective, params: objective.init_memory(jax.random.key(1), params, batch)

    def loss(objective, params, memory):
        out = objective.forward(params, memory, batch, jax.random.key(2), jnp.int32(0))
        return sum(weight * objective.terms[term](out) for term, weight in weights.items() if weight)

    memory = {**start(locked, trained), "locked": rest}
    want = jax.jit(jax.grad(lambda p: loss(free, p, start(free, p))))(state.params)
    got, to_memory = jax.jit(jax.grad(lambda p, m: loss(locked, p, m), argnums=(0, 1), allow_int=True))(trained, memory)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), got, towers.split(want, names)[0])
    assert not any(np.asarray(g).any() for g in jax.tree.leaves(to_memory) if g.dtype != jax.dtypes.float0)
    jax.tree.map(np.testing.assert_array_equal, two_tower.merge_locked(trained, memory), state.params)
    head = [objective.heads["embed"](p, m, {k: batch[k] for k in ("image", "text")})
            for objective, p, m in ((free, state.params, start(free, state.params)), (locked, trained, memory))]
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), *head)


@pytest.mark.parametrize("microbatches", [1, 2])
@pytest.mark.parametrize("method", [one for one in METHODS if "text" not in tiny.CASES[one.values[0]].model])   # BERT: read twice
def test_a_locked_tower_is_computed_once_forward_and_never_backward(method, microbatches):
    """FLOPs of the step's trace by the depth of the locked tower: one forward pass (and one by a teacher of its own), no more."""
    def flops(depth):
        text = dict(tiny.TEXT, depth=depth, scan=True, remat="full")
        cfg = tiny.config(method)
        cfg.model.text, cfg.model.locked, cfg.microbatches = text, ("text",), microbatches
        objective, tx, state, batch = setup(cfg, jax.eval_shape)
        return count_flops.count(step_lib.make_step(objective, tx, tiny.weights(cfg)), state, batch)

    width, tokens = tiny.TEXT["width"], tiny.CONTEXT
    layer = tokens * (8 * width ** 2 + 4 * tokens * width + 4 * width * tiny.TEXT["mlp_dim"])
    assert flops(5) - flops(2) == 3 * layer * tiny.BATCH * tiny.CASES[method].text_passes


def setup(cfg, run=lambda fn, *args: fn(*args)):
    objective, batch = job_lib.objective_of(cfg), jax.tree.map(jnp.asarray, tiny.batch())
    shapes = jax.eval_shape(objective.init, jax.random.key(0), batch)
    tx, _ = optimizer.make(cfg.optimizer, shapes, total_steps=10, batch_size=tiny.BATCH, examples=80)
    return objective, tx, run(lambda key: step_lib.init_state(objective, tx, key, batch), jax.random.key(0)), batch


def test_on_a_mesh_it_is_split_as_parameters_are_and_nothing_of_it_is_reduced():
    cfg = tiny.config("clip")
    cfg.model.locked, cfg.microbatches = ("text",), 2
    cfg.model.text = dict(tiny.TEXT, mlp_dim=40)   # a shape that nothing else has
    objective, tx, state, batch = setup(cfg)
    mesh = mesh_lib.make({"data": 2, "fsdp": 2}, jax.devices()[:4])
    places = mesh_lib.shardings(state, ((".*", "fsdp"),), mesh)
    assert places.memory["locked"]["text"]["block_0"]["mlp"]["in"]["kernel"].spec == mesh_lib.spec("fsdp", (8, 40), mesh)
    step = step_lib.make_step(objective, tx, tiny.weights(cfg))
    plain, report = jax.jit(step)(state, batch)
    with jax.set_mesh(mesh):
        state, batch = jax.device_put(state, places), jax.device_put(batch, mesh_lib.batch_sharding(mesh))
        compiled = jax.jit(step, out_shardings=(places, None)).lower(state, batch).compile()
        split, got = jax.block_until_ready(compiled(state, batch))
    np.testing.assert_allclose(got["loss"], report["loss"], rtol=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5), plain.params, split.params)
    jax.tree.map(np.testing.assert_array_equal, plain.memory["locked"], split.memory["locked"])
    reduced = [line for line in compiled.as_text().splitlines() if " all-reduce(" in line or " reduce-scatter(" in line]
    assert reduced and not [line for line in reduced if "[8,40]" in line.split(" all-reduce(")[0] or "[40,8]" in line]
    assert "all-reduce" not in hlo.collectives(compiled.as_text(), loops_only=True)


def test_an_average_of_the_parameters_leaves_it_out():
    cfg = tiny.config("clip")
    cfg.model.locked = ("text",)
    objective, tx, _, batch = setup(cfg)
    averaged = step_lib.with_average(objective, 0.5)
    state = step_lib.init_state(averaged, tx, jax.random.key(0), batch)
    state, _ = jax.jit(step_lib.make_step(averaged, tx, {"clip": 1.0}))(state, batch)
    assert rules.paths(state.memory["ema"]).keys() == rules.paths(state.params).keys()
    z = averaged.heads["embed"]({**state.params, **state.memory["ema"]}, state.memory, {"text": batch["text"]})["text"]
    assert z.shape == (tiny.BATCH, 8)


def test_split_and_whole_are_inverse():
    params = {"image": {"a": 1, "proj": {"kernel": 2}}, "text": {"b": 3}, "logit_scale": 4}
    for names in ((), ("image",), ("image", "image/proj"), ("text",), ("image", "text")):
        trained, locked = towers.split(params, names)
        assert towers.merge_locked({**trained, "locked": locked}) == params
    assert towers.split(params, ("image",)) == ({"image": {"proj": {"kernel": 2}}, "text": {"b": 3}, "logit_scale": 4},
                                                {"image": {"a": 1}})
    assert towers.split(params, ("text",))[0]["text"] == {}


@pytest.mark.parametrize("names", [("texts",), ("text/proj",), "text", ("text", "image/proj")])
def test_names_that_lock_nothing_are_refused(names):
    with pytest.raises(ValueError, match=r"config\.model\.locked=.* must be a tuple out of 'image', 'text', 'image/proj', "):
        tiny.build("clip", model=dict(locked=names))


# ---- as a user runs it -----------------------------------------------------------------------------------------------------------

def train(workdir, locked=None):
    """Runs the toy config, with the text tower of the workdir `locked`; returns what it printed."""
    config = config_lib.from_file(CONFIG if locked is None else f"{CONFIG}:{locked}")
    if locked is None:
        config.model.locked = ()
    config.steps, config.checkpoint.every = "6 steps", "3 steps"
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        assert train_lib.train(config, str(workdir)) == 0
    return printed.getvalue()


def last_state(workdir):
    """(Trained, newest state) of a workdir."""
    return trained.open_run(workdir)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """(workdir of a plain run, workdir of a run with that one's text tower locked, what that printed)."""
    plain, locked = tmp_path_factory.mktemp("plain"), tmp_path_factory.mktemp("locked")
    train(plain)
    return plain, locked, train(locked, plain)


def test_it_starts_as_the_other_run_ended_and_stays(runs):
    plain, locked, stdout = runs
    theirs, (run, state) = last_state(plain)[1].params["text"], last_state(locked)
    assert f"the text tower is locked, as {plain} has it" in stdout and "memory/locked/text: 20 arrays, " in stdout
    jax.tree.map(np.testing.assert_array_equal, state.memory["locked"]["text"], {k: v for k, v in theirs.items() if k != "proj"})
    assert not np.array_equal(state.params["text"]["proj"]["kernel"], theirs["proj"]["kernel"])
    assert json.loads((locked / "evals.json").read_text())["retrieval/validation/text_to_image/R@1"] >= 0
    assert job_lib.build(run.config).flops() < job_lib.build(last_state(plain)[0].config).flops()
    jax.tree.map(np.testing.assert_array_equal, convert_runs.open_run(str(locked)).params, two_tower.merge_locked(state.params,
                                                                                                                  state.memory))


def test_it_resumes_without_the_other_run_and_evaluates_the_same(runs, tmp_path):
    """The weights come from the checkpoint: the folder that they were read from is no longer needed."""
    _, locked, stdout = runs
    shutil.copytree(locked, tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "checkpoints" / "6")
    printed = train(tmp_path / "run", "/nowhere")
    assert "resuming at step 3" in printed and "params_checksum=" in printed
    assert printed.splitlines()[-1] == stdout.splitlines()[-1]
    want = json.loads((locked / "evals.json").read_text())
    assert json.loads((tmp_path / "run" / "evals.json").read_text()) == want
    with contextlib.redirect_stdout(io.StringIO()):
        got = evaluate.evaluate(tmp_path / "run")
    assert got and all(math.isclose(got[k], want[k], abs_tol=1e-6) for k in got)


def test_a_whole_model_gives_locked_towers_too(runs):
    plain, locked, _ = runs
    config = config_lib.from_file(f"{CONFIG}:")
    config.init_from = str(plain)
    job = job_lib.build(config)
    params, towers_ = job_lib.initial(job.config, job.abstract)
    theirs = last_state(plain)[1].params
    jax.tree.map(np.testing.assert_array_equal, two_tower.merge_locked(params, {"locked": towers_}), theirs)
    config.init_locked.text, config.init_from = str(plain), str(locked)   # the rest from a run whose text tower is locked
    params, towers_ = job_lib.initial(job_lib.build(config).config, job.abstract)
    jax.tree.map(np.testing.assert_array_equal, params, last_state(locked)[1].params)
    state = job.init(jax.random.key(0), params, towers_)
    jax.tree.map(np.testing.assert_array_equal, two_tower.merge_locked(state.params, state.memory)["text"]["token"],
                 theirs["text"]["token"])


@pytest.mark.parametrize("changes, error, words", [
    ({}, ValueError, r"the locked text tower needs trained weights, and there are none: set config\.init_locked\.text"),
    ({"init_locked.text": "/nowhere"}, FileNotFoundError, "/nowhere"),
    ({"init_locked.text": "PLAIN", "model.text.depth": 2}, checkpoint.MismatchError, r"params/text/block_1/.* is absent in the"),
    ({"init_locked.text": "PLAIN", "model.text.depth": 0, "model.text.causal": False, "model.text.pool": "mean"},
     checkpoint.MismatchError, r"params/text/block_0/.* and absent in this config"),
    ({"init_locked.image": "PLAIN"}, ValueError, r"config\.init_locked\.image='.*', but config\.model\.locked=.* does not lock"),
])
def test_weights_that_do_not_fit_are_refused_before_the_first_compile(runs, changes, error, words):
    config = config_lib.from_file(f"{CONFIG}:")
    with config.unlocked():
        config.update_from_flattened_dict({k: str(runs[0]) if v == "PLAIN" else v for k, v in changes.items()})
    with pytest.raises(error, match=words):
        job = job_lib.build(config)
        job_lib.initial(job.config, job.abstract)
