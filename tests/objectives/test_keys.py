"""No two random numbers of a method come from one key, neither its initial values nor what a step draws."""
import jax
import key_uses
import pytest
import tiny

VIT = dict(name="vit", width=8, depth=2, num_heads=2, mlp_dim=16, patch_size=8, drop_path=0.1)
OTHERS = {"clip": dict(model=dict(image=VIT, text=tiny.BERT)), "slip": dict(model=dict(locked=("text", "text/proj"))),
          "clip+slip": {}}


@pytest.mark.parametrize("method", tiny.METHODS)
def test_every_method(method):
    objective, _, _, state, batch = tiny.build(method, tiny.CASES[method].weights)
    assert not key_uses.of_a_method(objective, state, batch)


@pytest.mark.parametrize("method", OTHERS)
def test_other_towers_and_composed_methods(method):
    objective, _, _, state, batch = tiny.build(method, **OTHERS[method])
    assert not key_uses.of_a_method(objective, state, batch)


def test_what_is_wrong_is_seen():
    def drawn(key, derive):
        mine, other = derive(key)
        return jax.random.normal(mine, (2, 3)), jax.lax.map(lambda k: jax.random.uniform(k, (4,)), other[None])
    wrong = lambda derive: key_uses.twice(key_uses.uses(lambda key: drawn(key, derive), jax.random.key(1)))
    assert not wrong(jax.random.split)
    assert "drawn from one key" in wrong(lambda key: (jax.random.split(key)[1], jax.random.fold_in(key, 1)))[0]   # the same in JAX
    assert "others are derived from" in wrong(lambda key: (key, jax.random.fold_in(key, 1)))[0]
