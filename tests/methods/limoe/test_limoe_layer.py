"""Mixtures of experts: routing beside a slow one, experts on one device and on several, losses at their limits."""
import functools

import jax
from jax.extend import core
import jax.numpy as jnp
import numpy as np
import pytest

from mcd_jax.losses import routing
from mcd_jax.models import moe
from mcd_jax.models.transformer import Mlp
from mcd_jax.sharding import mesh as mesh_lib
from mcd_jax.sharding.microbatch import microbatched

WIDTH, HIDDEN, EXPERTS = 8, 12, 4
SIZES = (3, 2)   # tokens of two modalities


def slow_places(gates, k, size, priority):
    """The rule token by token, with loops."""
    tokens, experts = gates.shape
    chosen = [sorted(range(experts), key=lambda e: (-gates[t, e], e))[:k] for t in range(tokens)]
    order = sorted(range(tokens), key=lambda t: -gates[t, chosen[t][0]]) if priority else range(tokens)
    free, place = [0] * experts, np.full((tokens, k), experts * size)
    for choice in range(k):
        for t in order:
            e = chosen[t][choice]
            if free[e] < size:
                place[t, choice] = e * size + free[e]
            free[e] += 1
    return np.array(chosen), place


@pytest.mark.parametrize("k, size, priority", [(1, 4, True), (1, 4, False), (2, 4, True), (2, 8, False), (1, 40, True)])
@pytest.mark.parametrize("ties", [False, True])
def test_places_are_those_of_a_slow_rule(k, size, priority, ties):
    rng = np.random.default_rng(k + size)
    for _ in range(5):
        gates = rng.dirichlet(np.full(EXPERTS, 0.5), 40).astype(np.float32)
        gates = np.round(gates, 1) if ties else gates
        gate, expert, place = moe.places(jnp.asarray(gates), k, size, priority)
        chosen, expected = slow_places(gates, k, size, priority)
        np.testing.assert_array_equal(expert, chosen)
        np.testing.assert_array_equal(place, expected)
        np.testing.assert_array_equal(gate, np.take_along_axis(gates, chosen, 1))
        if priority and k == 1:   # every token that an expert keeps is at least as sure as every one that it drops
            for e in range(EXPERTS):
                here = chosen[:, 0] == e
                kept = np.asarray(place)[:, 0] < EXPERTS * size
                if (here & ~kept).any():
                    assert gates[here & kept, e].min() >= gates[here & ~kept, e].max()


def promised(jaxpr, consts, args):
    """(results, index arrays of the scatters that promise unique ones) of a jaxpr, operation by operation."""
    values, seen = dict(zip([*jaxpr.constvars, *jaxpr.invars], [*consts, *args])), []
    read = lambda atom: atom.val if isinstance(atom, core.Literal) else values[atom]
    for eqn in jaxpr.eqns:
        given = [read(atom) for atom in eqn.invars]
        if eqn.params.get("unique_indices") and eqn.primitive.name.startswith("scatter"):
            seen.append(np.asarray(given[1]))
        if "jaxpr" in eqn.params:
            out, more = promised(eqn.params["jaxpr"].jaxpr, eqn.params["jaxpr"].consts, given)
            seen += more
        else:
            out = eqn.primitive.bind(*given, **eqn.params)
            out = out if eqn.primitive.multiple_results else [out]
        values.update(zip(eqn.outvars, out))
    return [read(atom) for atom in jaxpr.outvars], seen


def test_places_that_are_promised_to_be_different_are():
    """A scatter with unique_indices may do anything where two are equal: tokens without room, which have no place, were."""
    x = jnp.asarray(np.random.default_rng(0).normal(size=(1, 40, WIDTH)), jnp.float32)
    gate, _, place = moe.places(jax.nn.softmax(x[0, :, :EXPERTS]), 2, 4, True)
    assert np.sum(np.asarray(place) == EXPERTS * 4) > 40
    params = {"in": {"kernel": jnp.ones((EXPERTS, WIDTH, HIDDEN)), "bias": jnp.zeros((EXPERTS, HIDDEN))},
              "out": {"kernel": jnp.ones((EXPERTS, HIDDEN, WIDTH)), "bias": jnp.zeros((EXPERTS, WIDTH))}}
    closed = jax.make_jaxpr(lambda place: moe.apply_experts(params, x, gate[None], place[None], EXPERTS, 4, "gelu"))(place)
    _, seen = promised(closed.jaxpr, closed.consts, [place])
    assert seen and all(len(np.unique(rows, axis=0)) == len(rows) for rows in (a.reshape(-1, a.shape[-1]) for a in seen))


@pytest.mark.parametrize("tokens, factor, expected", [
    (8 * (196 + 16), 1.05, 56), (8 * (49 + 16), 1.05, 20), (8 * (256 + 16), 1.05, 72), (32, 1.0, 4), (128, 1.0, 4)])
def test_capacity_of_v_moe(tokens, factor, expected):
    assert moe.capacity(tokens, moe.Options(capacity=factor)) == expected


def layer(**options):
    o = moe.Options(**{"num": EXPERTS, "capacity": 0.6, "noise": 0.0, **options})
    mixture = moe.Mixture(o, HIDDEN)
    x = jax.random.normal(jax.random.key(1), (8, sum(SIZES), WIDTH))
    return mixture, mixture.init(jax.random.key(0), x, SIZES)["params"], x


def keys(groups):
    return jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(7), jnp.arange(groups))


def one_expert(params, e):
    return {name: {leaf: value[e] for leaf, value in dense.items()} for name, dense in params["experts"].items()}


def slow_layer(params, x, groups, o):
    """Token by token: the output and the sums of each row and modality."""
    batch, count, _ = x.shape
    gates = np.asarray(jax.nn.softmax(jnp.einsum("bnd,de->bne", x, params["router"], precision="highest"), axis=-1))
    y, kept = np.zeros(x.shape), np.zeros((batch, count))
    per = batch // groups
    size = moe.capacity(per * count, o)
    for g in range(groups):
        flat = gates[g * per:(g + 1) * per].reshape(-1, o.num)
        chosen, place = slow_places(flat, o.k, size, o.priority)
        for t in range(len(flat)):
            b, n = g * per + t // count, t % count
            for c in range(o.k):
                if place[t, c] < o.num * size:
                    e = chosen[t, c]
                    y[b, n] += flat[t, e] * np.asarray(Mlp(HIDDEN).apply({"params": one_expert(params, e)}, x[b, n]))
                    kept[b, n] += 1 / o.k
    return y, gates, kept


@pytest.mark.parametrize("k, priority, groups", [(1, True, 2), (2, False, 4)])
def test_the_layer_is_the_sum_of_its_experts_and_reports_what_it_did(k, priority, groups):
    mixture, params, x = layer(k=k, priority=priority)
    y, sums = jax.jit(lambda p, x: mixture.apply({"params": p}, x, SIZES, keys(groups)))(params, x)
    expected, gates, kept = slow_layer(params, x, groups, mixture.options)
    assert 0 < kept.mean() < 1   # some are dropped
    np.testing.assert_allclose(y, expected, atol=1e-5)
    assert np.all(np.asarray(y)[kept == 0] == 0)
    for m, part in enumerate((slice(0, 3), slice(3, 5))):
        np.testing.assert_allclose(sums["probability"][:, m], gates[:, part].sum(1), rtol=1e-5)
        np.testing.assert_allclose(sums["kept"][:, m], kept[:, part].sum(1), rtol=1e-6)
        np.testing.assert_allclose(sums["entropy"][:, m], -(gates * np.log(gates)).sum(2)[:, part].sum(1), rtol=1e-4)
        np.testing.assert_allclose(sums["chosen"][:, m].sum(1), k * (part.stop - part.start))
    assert "win" not in sums


def test_with_room_for_all_nothing_depends_on_order_groups_or_capacity():
    mixture, params, x = layer(capacity=float(EXPERTS))
    apply = lambda groups, o=mixture.options, x=x: jax.jit(lambda p, x: moe.Mixture(o, HIDDEN).apply(
        {"params": p}, x, SIZES, None if groups is None else keys(groups))[0])(params, x)
    free = apply(None)
    for other in (apply(1), apply(8), apply(2, mixture.options._replace(priority=False))):
        np.testing.assert_allclose(other, free, atol=1e-6)
    np.testing.assert_allclose(apply(1, x=x[::-1]), free[::-1], atol=1e-6)


def test_one_expert_is_the_dense_layer_and_equal_experts_are_it_times_the_gate():
    mixture, params, x = layer(num=1, capacity=1.0)
    dense = Mlp(HIDDEN).apply({"params": one_expert(params, 0)}, x)
    run = lambda: jax.jit(lambda p, x: mixture.apply({"params": p}, x, SIZES, keys(2))[0])(params, x)
    np.testing.assert_allclose(run(), dense, atol=1e-6)
    mixture, params, x = layer(capacity=float(EXPERTS))
    params = {**params, "experts": jax.tree.map(lambda leaf: jnp.broadcast_to(leaf[:1], leaf.shape), params["experts"])}
    gate = jax.nn.softmax(x @ params["router"]).max(-1)
    dense = Mlp(HIDDEN).apply({"params": one_expert(params, 0)}, x)
    np.testing.assert_allclose(run(), gate[..., None] * dense, atol=1e-5)


def test_noise_jitter_and_dropout_belong_to_the_group_and_are_off_in_evaluation():
    mixture, params, x = layer(noise=5.0, jitter=0.2, dropout=0.3, capacity=float(EXPERTS))
    apply = jax.jit(lambda x, k: mixture.apply({"params": params}, x, SIZES, k))
    y, sums = apply(x, keys(4))
    again, _ = apply(x[2:4], keys(4)[1:2])
    np.testing.assert_allclose(y[2:4], again, atol=1e-6)
    assert np.mean(np.asarray(y) == 0) == pytest.approx(0.3, abs=0.1)
    calm = moe.Mixture(mixture.options._replace(noise=0.0, jitter=0.0, dropout=0.0), HIDDEN)
    free = jax.jit(lambda p, x: (mixture.apply({"params": p}, x, SIZES)[0], calm.apply({"params": p}, x, SIZES)[0]))
    np.testing.assert_array_equal(*free(params, x))
    assert 0.5 < float(sums["win"].sum()) / x[..., 0].size < 1.5   # about one winner for each token


MESHES = [dict(expert=2), dict(expert=4), dict(data=2, expert=2), dict(fsdp=2, expert=2), dict(data=4)]


@functools.cache
def everywhere(microbatches, k, axes=()):
    """Loss, sums and gradients of a layer on a mesh; axes: pairs."""
    mixture, params, x = layer(k=k, noise=2.0)
    weights = jax.random.normal(jax.random.key(3), x.shape)

    def encode(params, memory, rows, key):
        y, sums = mixture.apply({"params": params}, rows["x"], SIZES, key)
        return {"rows": {"y": y, "probability": sums["probability"], "kept": sums["kept"]}}

    def loss(params, x):
        out = microbatched(encode, microbatches, group_size=1)(params, {}, {"x": x}, jax.random.key(7))["rows"]
        spread = routing.hinge(out["probability"].sum(0), 4.0).sum()
        return jnp.sum(weights * out["y"]) + spread, (out["kept"].sum(), out["probability"].sum(0))

    step = jax.value_and_grad(loss, argnums=(0, 1), has_aux=True)
    if not axes:
        return jax.tree.map(np.asarray, jax.jit(step)(params, x)), None
    count = int(np.prod([size for _, size in axes]))
    mesh = mesh_lib.make(dict(axes), jax.devices()[:count])
    with jax.set_mesh(mesh):
        place = lambda path, leaf: jax.device_put(leaf, jax.NamedSharding(mesh, mesh_lib.spec(
            "expert" if "experts" in jax.tree_util.keystr(path) else "fsdp", leaf.shape, mesh)))
        params = jax.tree_util.tree_map_with_path(place, params)
        compiled = jax.jit(step).lower(params, jax.device_put(x, mesh_lib.batch_sharding(mesh))).compile()
        out = jax.block_until_ready(compiled(params, jax.device_put(x, mesh_lib.batch_sharding(mesh))))
        return jax.tree.map(np.asarray, out), compiled.as_text()


@pytest.mark.parametrize("axes", MESHES, ids=lambda axes: "-".join(f"{k}{v}" for k, v in axes.items()))
@pytest.mark.parametrize("microbatches", [1, 2])
def test_every_mesh_and_microbatch_gives_the_same_and_two_all_to_alls_each_way(axes, microbatches):
    expected, _ = everywhere(1, 1)
    got, text = everywhere(microbatches, 1, tuple(axes.items()))
    for a, b in zip(jax.tree.leaves(expected), jax.tree.leaves(got), strict=True):
        np.testing.assert_allclose(a, b, rtol=2e-5, atol=2e-5)
    if microbatches == 1:
        assert text.count(" all-to-all(") == (4 if axes.get("expert", 1) > 1 else 0)


def test_an_evaluation_on_a_mesh_of_experts_is_that_of_one_device():
    mixture, params, x = layer()
    expected = mixture.apply({"params": params}, x, SIZES)[0]
    with jax.set_mesh(mesh_lib.make(dict(expert=4))):
        got = jax.jit(lambda p, x: mixture.apply({"params": p}, x, SIZES)[0])(params, x)
    np.testing.assert_allclose(got, expected, atol=1e-6)


def test_groups_that_devices_can_not_share_are_refused():
    mixture, params, x = layer()
    with jax.set_mesh(mesh_lib.make(dict(expert=4))), pytest.raises(ValueError, match="2 groups of experts can't be shared by 4"):
        jax.jit(lambda p, x: mixture.apply({"params": p}, x, SIZES, keys(2))[0])(params, x)


# ---- losses ----


def test_losses_at_their_limits():
    num = 32
    uniform, one = jnp.full(num, 1 / num), jax.nn.one_hot(3, num)
    assert routing.entropy(uniform) == pytest.approx(3.4657, abs=1e-4) and routing.entropy(one) == 0
    assert routing.spread(7 * uniform) == pytest.approx(3.4657, abs=1e-4) and routing.spread(one) == 0
    assert np.isfinite(jax.grad(lambda p: routing.entropy(p))(one)).all()
    few = jnp.where(jnp.arange(num) < 9, 1.0, 0.0)
    assert routing.hinge(few, 9) == pytest.approx(0, abs=1e-6)
    assert np.all(np.asarray(jax.grad(lambda t: routing.hinge(t, 9))(few + 0.1)) == 0)
    assert routing.hinge(one, 9) == pytest.approx(np.log(9), abs=1e-6)
    assert routing.variation(one) == pytest.approx(31, abs=1e-4) and routing.variation(uniform) == pytest.approx(0, abs=1e-6)
    assert routing.squared_lse(jnp.zeros(num)) == pytest.approx(np.log(num) ** 2, rel=1e-5)


def test_local_and_global_entropy_make_the_mutual_information():
    p = np.random.default_rng(0).dirichlet(np.ones(5), 20)
    joint = p / 20
    mutual = (joint * np.log(joint / (joint.sum(1, keepdims=True) * joint.sum(0, keepdims=True)))).sum()
    local, spread = jnp.mean(routing.entropy(jnp.asarray(p))), routing.spread(jnp.asarray(p.sum(0)))
    assert float(local - spread) == pytest.approx(-mutual, abs=1e-5)


def test_two_groups_that_collapse_on_different_experts():
    total = jnp.eye(2)
    assert routing.spread(total).mean() == 0                                            # each by itself
    assert routing.spread(total.sum(0)) == pytest.approx(np.log(2), abs=1e-6)           # both together


def test_win_is_the_share_of_draws_that_an_expert_wins():
    rng = np.random.default_rng(0)
    logits, noise = rng.normal(size=4), 0.7
    noisy = logits + noise * rng.normal(size=4)
    threshold = np.sort(noisy)[-2]
    drawn = logits[None] + noise * rng.normal(size=(200_000, 4))
    win = routing.win(jnp.asarray(logits), jnp.asarray(noisy), noise, 2)
    np.testing.assert_allclose(win, (drawn > threshold).mean(0), atol=5e-3)


def test_options_that_name_layers():
    assert moe.mixture_layers(moe.Options(), 6) == (1, 3, 5)
    assert moe.mixture_layers(moe.Options(layers=(2, 5)), 6) == (2, 5)
    for layers in ((6,), (2, 1), (-1,)):
        with pytest.raises(ValueError, match="of 6, counted from 0"):
            moe.mixture_layers(moe.Options(layers=layers), 6)
