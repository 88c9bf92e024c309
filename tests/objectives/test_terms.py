"""What terms need decides what is computed: views, heads, the teacher; and terms of one's own beside a method's."""
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from mcd_jax import step as step_lib
from mcd_jax.costs import count_flops
from mcd_jax.methods import clip, slip
from mcd_jax.objectives import two_tower
from mcd_jax.objectives.two_tower import Term

TERMS = {"plain": lambda out: out["x"], "of_view": Term(lambda out: out["x"], views=("crop",)),
         "taught": Term(lambda out: out["x"], views=("crop",), teacher=True),
         "taught_images": Term(lambda out: out["x"], views=("crop",), teacher=("image",), heads=("projector",))}


@pytest.mark.parametrize("weights, views, heads", [
    ({}, set(), set()), ({"plain": 1}, set(), set()), ({"of_view": 0}, set(), set()),
    ({"of_view": -1, "plain": 1}, {"crop"}, set()),
    ({"taught": 0.5}, {"crop", "teacher/image", "teacher/text", "teacher/crop"}, set()),
    ({"taught_images": 2, "taught": 0}, {"crop", "teacher/image"}, {"projector"}),
])
def test_what_is_live_follows_from_the_weights(weights, views, heads):
    config = tiny.config("clip")
    config.objective.weights = weights
    live = two_tower.live(config, TERMS)
    assert live.views == views | {"image", "text"} and live.heads == heads and live.terms == {n for n, w in weights.items() if w}
    assert live.teacher == any(name.startswith("teacher/") for name in views)
    assert [name for name, term in TERMS.items() if live.has(term)] == [
        name for name, need in (("plain", set()), ("of_view", {"crop"}), ("taught", {"crop", "teacher/crop"}),
                                ("taught_images", {"crop", "teacher/image"}))
        if need <= views and (name != "taught_images" or heads)]


def with_term(method, term, weight, off=()):
    """(objective, config) of a tiny method with a term "mine"."""
    config = tiny.config(method.__name__.rpartition(".")[2])
    config.objective.weights = {**config.objective.weights, **dict.fromkeys(off, 0.0), "mine": weight}
    return method.make(config, {"mine": term}), config


def first_steps(objective):
    data = jax.tree.map(jnp.asarray, tiny.batch())
    params = objective.init(jax.random.key(0), data)
    return lambda p: objective.forward(p, objective.init_memory(jax.random.key(1), p, data), data, jax.random.key(2),
                                       jnp.int32(0)), params


def test_a_plain_function_is_a_term_and_needs_image_and_text_only():
    objective, _ = with_term(clip, lambda out: jnp.mean(out["image"] * out["text"]), 1.0)
    forward, params = first_steps(objective)
    out = forward(params)
    assert np.isfinite(objective.terms["mine"](out)) and objective.needs == ("image", "text")


def test_a_view_is_encoded_for_the_term_that_reads_it_alone():
    """SLIP's first strong view without SLIP's own term: no second view, no projector, and nothing at all at a weight of 0."""
    term = Term(lambda out: jnp.mean(out["view1"] * out["text"]), views=("view1",))
    one, none, whole = (with_term(slip, term, weight, off)[0] for weight, off in ((1.0, ("ssl",)), (0.0, ("ssl",)), (0.0, ())))
    assert one.needs == ("image", "text", "view1") and none.needs == ("image", "text") and len(whole.needs) == 4
    forward, params = first_steps(one)
    assert "ssl" not in params and "view2" not in forward(params)
    cost = [count_flops.count(*first_steps(objective)) for objective in (none, one, whole)]
    assert cost[0] == count_flops.count(*first_steps(clip.make(tiny.config("clip")))) < cost[1] < cost[2]


def test_a_view_that_a_method_does_not_have_is_named():
    with pytest.raises(ValueError, match=r"term 'mine' needs the view 'crop', .* doesn't encode: it has image, text"):
        with_term(clip, Term(lambda out: 0.0, views=("crop",)), 1.0)
    with_term(clip, Term(lambda out: 0.0, views=("crop",)), 0.0)


def test_a_metric_whose_needs_are_not_met_is_left_out():
    config = tiny.config("slip")
    towers, metric = two_tower.towers_of(config), Term(lambda out: jnp.mean(out["view1"]), views=("view1",))
    parts = two_tower.ForwardPass({"image": two_tower.TowerPass("image", "image"), "text": two_tower.TowerPass("text", "text")},
                                  optional={"view1": two_tower.TowerPass("image", "view1")})
    for term, there in ((TERMS["plain"], False), (Term(lambda out: 0.0, views=("view1",)), True)):
        objective = two_tower.objective(config, towers, parts, terms={"clip": term}, metrics={"mean": metric})
        assert ("mean" in objective.metrics) == there == ("view1" in objective.needs)


def test_an_own_term_trains():
    objective, config = with_term(clip, lambda out: jnp.mean(out["image"] ** 4), 2.0)
    tx, data = tiny.build("clip")[1], jax.tree.map(jnp.asarray, tiny.batch())
    state = step_lib.init_state(objective, tx, jax.random.key(0), data)
    _, report = jax.jit(step_lib.make_step(objective, tx, tiny.weights(config)))(state, data)
    np.testing.assert_allclose(report["loss"], report["loss/clip"] + 2 * report["loss/mine"], rtol=1e-6)
