"""Every method on every mesh: one step is the same on 1, 2 and 4 devices, in slices or whole, gathered or as a ring."""
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from mcd_jax import job
from mcd_jax import step as step_lib
from mcd_jax.costs import hlo
from mcd_jax.optim import optimizer
from mcd_jax.sharding import mesh as mesh_lib

MESHES = {"1": ({}, 1), "2 data": ({"data": 2}, 2), "4 data": ({"data": 4}, 4), "2 data x 2 fsdp": ({"data": 2, "fsdp": 2}, 4),
          "2 slices x 2 fsdp": ({"slice": 2, "fsdp": 2}, 4), "2 data x 2 tensor": ({"data": 2, "tensor": 2}, 4),
          "2 expert": ({"expert": 2}, 2), "4 expert": ({"expert": 4}, 4), "2 fsdp x 2 expert": ({"fsdp": 2, "expert": 2}, 4)}
NO_EXPERTS = [name for name in MESHES if "expert" not in name]
VIT = dict(name="vit", width=16, depth=2, num_heads=2, mlp_dim=32, patch_size=4, scan=True, remat="full")
WAYS = [(1, "ring"), (2, "gather")]   # microbatches, implementation


def setup(method, mesh, microbatches=1, implementation="gather", tower=tiny.IMAGE, remat="none"):
    """(mesh, jitted step, state on it, batch on it) with plain SGD, so that the update is the gradient."""
    has_choice = "+" in method or "implementation" in tiny.options(method)
    config = tiny.config(method, **({"implementation": implementation} if has_choice else {}))
    config.microbatches = microbatches
    if "shared" in config.model:
        config.model.shared.remat = remat
    else:
        config.model.image = tower
    tiny.weigh(config, tiny.CASES[method].weights)
    config.optimizer.optimizers = ((".*", dict(name="sgd", momentum=0.0)),)
    config.optimizer.lr, config.optimizer.weight_decay, config.optimizer.clip_norm = 1.0, 0.0, 0.0
    objective = job.objective_of(config)
    batch = jax.tree.map(jnp.asarray, tiny.batch())
    shapes = jax.eval_shape(objective.init, jax.random.key(0), batch)
    tx, _ = optimizer.make(config.optimizer, shapes, total_steps=10, batch_size=tiny.BATCH, examples=80)
    sizes, devices = MESHES[mesh]
    mesh = mesh_lib.make(sizes, jax.devices()[:devices])
    state = step_lib.init_state(objective, tx, jax.random.key(0), batch)
    places = mesh_lib.shardings(state, config.sharding, mesh)
    step = jax.jit(step_lib.make_step(objective, tx, tiny.weights(config)), out_shardings=(places, None))
    return mesh, step, jax.device_put(state, places), jax.device_put(batch, mesh_lib.batch_sharding(mesh))


def one_step(method, mesh, *how):
    """({term: loss}, gradient) of the first step."""
    mesh, step, state, batch = setup(method, mesh, *how)
    with jax.set_mesh(mesh):
        after, report = jax.block_until_ready(step(state, batch))
    gradient = jax.tree.map(lambda a, b: np.asarray(a) - np.asarray(b), state.params, after.params)
    return {k: float(v) for k, v in report.items() if k.startswith("loss")}, gradient


_PLAIN = {}


def compare(method, mesh, microbatches, implementation, tower=tiny.IMAGE):
    key = method, tower["name"]
    if key not in _PLAIN:
        _PLAIN[key] = one_step(method, "1", 1, "gather", tower)
    losses, gradient = _PLAIN[key]
    got_losses, got = one_step(method, mesh, microbatches, implementation, tower)
    assert got_losses.keys() == losses.keys()
    for term, value in losses.items():
        np.testing.assert_allclose(got_losses[term], value, rtol=tiny.CASES[method].rtol, atol=2e-6, err_msg=term)
    largest = max(float(np.max(np.abs(g))) for g in jax.tree.leaves(gradient))
    for (path, a), b in zip(jax.tree_util.tree_leaves_with_path(gradient), jax.tree.leaves(got), strict=True):
        np.testing.assert_allclose(b, a, rtol=1e-3, atol=1e-5 * largest, err_msg=jax.tree_util.keystr(path))


@pytest.mark.parametrize("method", [pytest.param(name, marks=() if case.quick else pytest.mark.full)
                                    for name, case in tiny.CASES.items()])
def test_split_sliced_and_as_a_ring(method):
    compare(method, tiny.CASES[method].mesh, 2, "ring")


@pytest.mark.full
def test_a_transformer_whose_layers_are_gathered_one_by_one():
    compare("clip", "2 data x 2 fsdp", 1, "ring", VIT)


@pytest.mark.full
@pytest.mark.parametrize("method, mesh", [(name, mesh) for name, case in tiny.CASES.items() if case.every_mesh for mesh in MESHES
                                          if "expert" not in mesh or name == "clip" or "expert" in case.mesh])   # else an axis
def test_every_mesh(method, mesh):
    """In one way and then in the other."""
    compare(method, mesh, *WAYS[list(MESHES).index(mesh) % 2])


@pytest.mark.full
@pytest.mark.parametrize("number, method", list(enumerate(name for name, case in tiny.CASES.items() if not case.every_mesh)))
def test_every_axis(number, method):
    """What is left of the meshes once `test_split_sliced_and_as_a_ring` has had data and fsdp: one of them for each method."""
    compare(method, *[("2 slices x 2 fsdp", 1, "ring"), ("2 data x 2 tensor", 2, "gather")][number % 2])


@pytest.mark.full
@pytest.mark.parametrize("mesh", ["4 data", "2 data x 2 tensor"])
def test_transformers_on_a_mesh(mesh):
    transformers("slip", mesh)


def transformers(method, mesh):
    compare(method, mesh, *[(1, "gather"), (2, "ring")][list(MESHES).index(mesh) % 2], VIT)


def test_collectives_of_the_step():
    """Sliced on a data x fsdp mesh: parameters are gathered before the loop and gradients reduced after it, nothing inside."""
    collectives("clip")


def collectives(method):
    mesh, step, state, batch = setup(method, "2 data x 2 fsdp", 2, "gather", VIT)
    with jax.set_mesh(mesh):
        text = step.lower(state, batch).compile().as_text()
    assert "all-reduce" not in hlo.collectives(text, loops_only=True)
    assert hlo.collectives(text)["all-gather"]["count"] > 0 and "all-reduce" in hlo.collectives(text)
