"""config.sharding is what the program does: which parameters a layer gathers, and how many collectives a step has."""
import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P
import numpy as np
import pytest
import tiny

from mcd_jax import job
from mcd_jax import step as step_lib
from mcd_jax.costs import hlo
from mcd_jax.models import moe, transformer
from mcd_jax.optim import optimizer
from mcd_jax.sharding import constrain
from mcd_jax.sharding import mesh as mesh_lib
from mcd_jax.sharding import rules as rules_lib

VIT = dict(name="vit", width=16, depth=2, num_heads=2, mlp_dim=32, patch_size=4)
SWIN = dict(name="swin", width=8, depths=(2,), heads=(2,), window=2, mask_patch=4)
RULES = {"replicate": ((".*", "replicate"),), "fsdp": ((".*", "fsdp"),), "mixed": (("image/.*", "fsdp"), (".*", "replicate"))}


def setup(rules, axes, **tower):
    """(mesh, jitted step of CLIP with plain SGD, state, batch) placed by `rules`."""
    config = tiny.config("clip", implementation="gather")
    config.model.image, config.sharding = {**VIT, **tower}, rules
    config.optimizer.optimizers = ((".*", dict(name="sgd", momentum=0.0)),)
    objective, batch = job.objective_of(config), jax.tree.map(jnp.asarray, tiny.batch())
    shapes = jax.eval_shape(objective.init, jax.random.key(0), batch)
    tx, _ = optimizer.make(config.optimizer, shapes, total_steps=10, batch_size=tiny.BATCH, examples=80)
    mesh = mesh_lib.make(axes, jax.devices()[:int(np.prod(list(axes.values())))])
    state = jax.eval_shape(lambda: step_lib.init_state(objective, tx, jax.random.key(0), batch))
    places = mesh_lib.shardings(state, rules, mesh)
    step = jax.jit(step_lib.make_step(objective, tx, tiny.weights(config)), out_shardings=(places, None))
    state = jax.jit(lambda: step_lib.init_state(objective, tx, jax.random.key(0), batch), out_shardings=places)()
    return mesh, step, state, jax.device_put(batch, mesh_lib.batch_sharding(mesh))


def gathers(rules, **tower):
    mesh, step, state, batch = setup(RULES[rules], {"fsdp": 4}, **tower)
    with jax.set_mesh(mesh):
        return hlo.collectives(step.lower(state, batch).compile().as_text())["all-gather"]["count"]


def test_a_step_gathers_what_the_rules_split_and_nothing_else():
    """Three are the loss's own, which it has under any rules. Then the arrays of the image tower, then those of both."""
    counts = {rules: gathers(rules) for rules in RULES}
    assert counts == {"replicate": 3, "fsdp": 66, "mixed": 44}


# ---- what a layer asks for: read off the traced program, nothing is compiled ----


class Layer(nn.Module):
    """A dense layer in place of a block."""
    num_heads: int = 1
    mlp_dim: int = 1
    depth: int = 1
    act: str = ""
    eps: float = 0.0
    dtype: object = jnp.float32

    @nn.compact
    def __call__(self, x, gain, mask):
        x = x + nn.Dense(8, name="dense")(x)
        return x, x


class Net(nn.Module):
    """Three such blocks."""
    scan: bool

    @nn.compact
    def __call__(self, x):
        return transformer.run_blocks(x, owner=self, depth=3, num_heads=1, mlp_dim=1, act="", eps=0.0, dtype=jnp.bfloat16,
                                      scan=self.scan, remat="full", layer=Layer)[0]


def constraints(rules, axes, scan=False, at="image"):
    """[(shape, spec, dtype)] of what the gradient of the network constrains to places, but for activations."""
    net, x = Net(scan), jnp.zeros((4, 2, 8))
    params = net.init(jax.random.key(0), x)

    def apply(params):
        with constrain.params_at(at):
            return jnp.sum(net.apply(params, x))
    with jax.set_mesh(mesh_lib.make(axes)):
        jaxpr = jax.make_jaxpr(jax.grad(constrain.under_rules(rules, apply)))(params)
    found = []

    def walk(jaxpr):
        for eqn in jaxpr.eqns:
            if eqn.primitive.name == "sharding_constraint":
                aval = eqn.outvars[0].aval
                found.append((aval.shape, eqn.params["sharding"].spec, str(aval.dtype)))
            for value in jax.tree.leaves(list(eqn.params.values()), is_leaf=lambda v: hasattr(v, "eqns") or hasattr(v, "jaxpr")):
                inner = getattr(value, "jaxpr", value)
                if hasattr(inner, "eqns"):
                    walk(inner)
    walk(jaxpr.jaxpr)
    return sorted(set(found), key=str)


@pytest.mark.parametrize("scan", [False, True])
def test_a_layer_gathers_over_the_axes_of_its_rules(scan):
    kernel = (None, None, "fsdp") if scan else (None, "fsdp")   # a stack's first axis counts layers
    whole, back = ((8, 8), P(), "bfloat16"), ((8, 8), P(None, "fsdp"), "bfloat16")
    assert constraints([(".*kernel", kernel), (".*", "replicate")], {"fsdp": 4}, scan) == [whole, back]
    assert constraints([(".*", "replicate")], {"fsdp": 4}, scan) == []
    assert constraints([("text/.*", "fsdp"), (".*", "replicate")], {"fsdp": 4}, scan) == []
    assert constraints([("text/.*", "fsdp"), (".*", "replicate")], {"fsdp": 4}, scan, at="text") != []
    assert constraints([(".*", "fsdp")], {"data": 4}, scan) == []


@pytest.mark.parametrize("scan", [False, True])
def test_what_lies_on_the_axis_tensor_stays_there(scan):
    first = (None,) if scan else ()
    found = constraints([(".*kernel", (*first, "fsdp", "tensor")), (".*", "replicate")], {"fsdp": 2, "tensor": 2}, scan)
    assert found == [((8, 8), P("fsdp", "tensor"), "bfloat16"), ((8, 8), P(None, "tensor"), "bfloat16")]
    assert constraints([(".*kernel", (*first, None, "tensor")), (".*", "replicate")], {"fsdp": 2, "tensor": 2}, scan) == []
    both = constraints([(".*kernel", (*first, None, ("data", "fsdp"))), (".*", "replicate")], {"data": 2, "fsdp": 2}, scan)
    assert [spec for _, spec, _ in both] == [P(), P(None, ("data", "fsdp"))]


def test_a_stack_that_is_split_by_layers_is_gathered_without_them():
    assert constraints([(".*", ("fsdp",))], {"fsdp": 3 - 2, "data": 4}, True) == []
    found = constraints([(".*kernel", ("data", None, "fsdp")), (".*", "replicate")], {"data": 1, "fsdp": 4}, True)
    assert [spec for _, spec, _ in found] == [P(), P(None, "fsdp")]


def test_without_a_mesh_nothing_is_split():
    for rule in ("expert", "fsdp", ("tensor", "data")):
        assert constrain.under_rules([(".*", rule)], lambda: constrain.placement("image/experts/in/kernel", (4, 8)))() == (P(), P())


@pytest.mark.parametrize("rule, travels", [("expert", 2), ("replicate", 0), ("fsdp", 0)])
def test_tokens_travel_to_experts_that_the_rules_have_split(rule, travels):
    options = moe.Options(num=4, group_size=1)
    mixture, x = moe.Mixture(options, 16), jnp.zeros((4, 6, 8))
    keys = jax.random.split(jax.random.key(1), 4)
    params = mixture.init(jax.random.key(0), x, (6,), keys)
    apply = constrain.under_rules([(".*experts/.*", rule), (".*", "replicate")], lambda p: mixture.apply(p, x, (6,), keys)[0])
    with jax.set_mesh(mesh_lib.make({"expert": 4})):
        assert str(jax.make_jaxpr(apply)(params)).count("all_to_all[") == travels


@pytest.mark.full
def test_the_paths_that_networks_ask_with_are_those_of_the_parameters(monkeypatch):
    """A prefix that is not the parameters' own would silently leave a layer to the compiler."""
    asked = set()
    monkeypatch.setattr(constrain, "placement", lambda path, shape, ends=False: asked.add((path, tuple(shape))) or (P(), P()))
    for method, case in ((name, case) for name, case in tiny.CASES.items() if case.every_mesh or case.layers):
        roots = {"shared"} if "shared" in case.model else {"image", "text", *case.layers}
        for scan in (False, True):
            config = tiny.config(method)
            if "image" in config.model:
                config.model.image = {**VIT, "scan": True} if scan else SWIN
                config.model.text.scan = scan
            objective, batch = job.objective_of(config), jax.tree.map(jnp.asarray, tiny.batch())
            params = jax.eval_shape(objective.init, jax.random.key(0), batch)
            state = jax.eval_shape(lambda: step_lib.init_state(objective, optimizer.make(
                config.optimizer, params, total_steps=10, batch_size=tiny.BATCH, examples=80)[0], jax.random.key(0), batch))
            asked.clear()
            with jax.set_mesh(mesh_lib.make({"data": 4})):
                jax.eval_shape(lambda s: objective.forward(s.params, s.memory, batch, jax.random.key(0), s.step), state)
            known = {(path, leaf.shape) for path, leaf in rules_lib.paths(params).items()}
            assert asked <= known, (method, sorted(asked - known)[:5])
            assert {path.partition("/")[0] for path, _ in asked} == roots, method


# ---- values ----


@pytest.mark.full
@pytest.mark.parametrize("rules, axes, tower", [
    (RULES["mixed"], {"fsdp": 4}, {}), (RULES["replicate"], {"fsdp": 4}, dict(scan=True, remat="full")),
    (((".*/(in|q|k|v)/kernel", ("fsdp", "tensor")), (".*", "fsdp")), {"fsdp": 2, "tensor": 2}, {}),
    (((".*/(in|q|k|v)/kernel", (None, ("fsdp", "data"))), (".*", "fsdp")), {"data": 2, "fsdp": 2}, dict(remat="full"))])
def test_one_step_is_the_same_under_any_rules(rules, axes, tower):
    results = []
    for how in ((RULES["replicate"], {"data": 1}), (rules, axes)):
        mesh, step, state, batch = setup(*how, **tower)
        with jax.set_mesh(mesh):
            after, report = jax.block_until_ready(step(state, batch))
        results.append((float(report["loss"]), jax.tree.map(np.asarray, after.params)))
    (loss, params), (other, others) = results
    assert other == pytest.approx(loss, rel=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), params, others)
