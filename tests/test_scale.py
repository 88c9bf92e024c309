"""Every method on every mesh: one step is the same on 1, 2 and 4 devices, in slices or whole, gathered or as a ring."""
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from mcd_jax import hlo, job, optim
from mcd_jax import mesh as mesh_lib
from mcd_jax import step as step_lib

MESHES = {"1": ({}, 1), "2 data": ({"data": 2}, 2), "4 data": ({"data": 4}, 4), "2 data x 2 fsdp": ({"data": 2, "fsdp": 2}, 4),
          "2 slices x 2 fsdp": ({"slice": 2, "fsdp": 2}, 4), "2 data x 2 tensor": ({"data": 2, "tensor": 2}, 4),
          "2 expert": ({"expert": 2}, 2), "4 expert": ({"expert": 4}, 4), "2 fsdp x 2 expert": ({"fsdp": 2, "expert": 2}, 4)}
NO_EXPERTS = [name for name in MESHES if "expert" not in name]
VIT = dict(name="vit", width=16, depth=2, num_heads=2, mlp_dim=32, patch_size=4, scan=True, remat="full")
LOOSE = {"dchmt": 1e-4}   # its losses have square roots of distances that are nearly zero at the start
QUICK = ("clip", "mcd", "vl_sae")   # to compile, or the core; the others' first case runs in make test-all
EVERY_MESH = ("clip", "mcd", "albef", "limoe")   # their parts are what the others are made of
WAYS = [(1, "ring"), (2, "gather")]   # microbatches, form
EXTRA = {"mcd": dict(distill=0.5, clip_augmented=0.5), "gcl": dict(separate_image=0.5, separate_text=0.5, clip=0.5),
         "albef": dict(itc_distill=0.5, mlm_distill=0.5), "answering": dict(answer_distill=0.5),
         "judging": dict(label_distill=0.5), "m2mix": dict(m2=0.5, v=0.5, l=0.5, vl=0.5), "ahlr": dict(balance=0.5),
         "mcd+gcl": {"mcd/distill": 0.5}}   # every term that a mesh could break


def setup(method, mesh, microbatches=1, form="gather", tower=tiny.IMAGE, remat="none"):
    """(mesh, jitted step, state on it, batch on it) with plain SGD, so that the update is the gradient."""
    has_form = "+" in method or "form" in tiny.options(method)
    config = tiny.config(method, **({"form": form} if has_form else {}))
    config.microbatches = microbatches
    if "shared" in config.model:
        config.model.shared.remat = remat
    else:
        config.model.image = tower
    tiny.weigh(config, EXTRA.get(method, {}))
    config.optimizer.optimizers = ((".*", dict(name="sgd", momentum=0.0)),)
    config.optimizer.lr, config.optimizer.weight_decay, config.optimizer.clip_norm = 1.0, 0.0, 0.0
    objective = job.objective_of(config)
    batch = jax.tree.map(jnp.asarray, tiny.batch())
    shapes = jax.eval_shape(objective.init, jax.random.key(0), batch)
    tx, _ = optim.make(config.optimizer, shapes, total_steps=10, batch_size=tiny.BATCH, examples=80)
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


def compare(method, mesh, microbatches, form, tower=tiny.IMAGE):
    key = method, tower["name"]
    if key not in _PLAIN:
        _PLAIN[key] = one_step(method, "1", 1, "gather", tower)
    losses, gradient = _PLAIN[key]
    got_losses, got = one_step(method, mesh, microbatches, form, tower)
    assert got_losses.keys() == losses.keys()
    for term, value in losses.items():
        np.testing.assert_allclose(got_losses[term], value, rtol=LOOSE.get(method, 2e-5), atol=2e-6, err_msg=term)
    largest = max(float(np.max(np.abs(g))) for g in jax.tree.leaves(gradient))
    for (path, a), b in zip(jax.tree_util.tree_leaves_with_path(gradient), jax.tree.leaves(got), strict=True):
        np.testing.assert_allclose(b, a, rtol=1e-3, atol=1e-5 * largest, err_msg=jax.tree_util.keystr(path))


@pytest.mark.parametrize("method", [pytest.param(name, marks=() if name in QUICK else pytest.mark.full) for name in tiny.METHODS])
def test_split_sliced_and_as_a_ring(method):
    compare(method, "2 fsdp x 2 expert" if method == "limoe" else "2 data x 2 fsdp", 2, "ring")


@pytest.mark.full
def test_a_transformer_whose_layers_are_gathered_one_by_one():
    compare("clip", "2 data x 2 fsdp", 1, "ring", VIT)


@pytest.mark.full
@pytest.mark.parametrize("method, mesh", [(method, mesh) for method in EVERY_MESH for mesh in MESHES
                                          if "expert" not in mesh or method in ("clip", "limoe")])   # elsewhere one axis more
def test_every_mesh(method, mesh):
    """In both ways, or where a step takes long to compile in one and then in the other."""
    first = list(MESHES).index(mesh) % 2
    for way in WAYS if method in ("clip", "mcd") else WAYS[first:first + 1]:
        compare(method, mesh, *way)


@pytest.mark.full
@pytest.mark.parametrize("method", [name for name in tiny.METHODS if name not in EVERY_MESH])
def test_every_axis(method):
    """What is left of the meshes once `test_split_sliced_and_as_a_ring` has had data and fsdp."""
    compare(method, "2 slices x 2 fsdp", 1, "ring")
    compare(method, "2 data x 2 tensor", 2, "gather")


@pytest.mark.full
@pytest.mark.parametrize("mesh", NO_EXPERTS)
def test_every_mesh_the_other_way_round(mesh):
    compare("mcd", mesh, 1, "gather")
    compare("mcd", mesh, 2, "ring")


@pytest.mark.full
@pytest.mark.parametrize("method, mesh", [*(("mcd", mesh) for mesh in NO_EXPERTS), ("slip", "4 data"),
                                          ("slip", "2 data x 2 tensor")])
def test_transformers_on_every_mesh(method, mesh):
    compare(method, mesh, *[(1, "gather"), (2, "ring")][list(MESHES).index(mesh) % 2], VIT)


@pytest.mark.parametrize("method", ["clip", pytest.param("mcd", marks=pytest.mark.full)])
def test_collectives_of_the_step(method):
    """Sliced on a data x fsdp mesh: parameters are gathered before the loop and gradients reduced after it, nothing inside."""
    mesh, step, state, batch = setup(method, "2 data x 2 fsdp", 2, "gather", VIT)
    with jax.set_mesh(mesh):
        text = step.lower(state, batch).compile().as_text()
    assert "all-reduce" not in hlo.collectives(text, loops_only=True)
    assert hlo.collectives(text)["all-gather"]["count"] > 0 and "all-reduce" in hlo.collectives(text)
