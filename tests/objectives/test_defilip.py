"""DeFILIP: its terms are those of DeCLIP and FILIP on the same parameters, and its weights the released ones."""
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from mcd_jax.methods import declip, defilip, filip


def test_the_terms_are_those_of_its_two_methods():
    objective, _, weights, state, batch = tiny.build("defilip")
    assert {term: w for term, w in weights.items() if w} == dict(clip=0.4, nn=0.2, simsiam=0.2, mlm=0.2, filip=0.2)
    assert objective.pooled and set(state.memory) == {"declip"} and {"declip", "filip"} <= set(state.params)
    key = jax.random.key(7)
    out = objective.forward(state.params, state.memory, batch, key, state.step)
    alone_of = declip.make(tiny.config("declip"))
    alone = alone_of.forward(state.params, state.memory["declip"], batch, key, state.step)
    for term in ("clip", "nn", "simsiam", "mlm"):
        assert float(objective.terms[term](out)) == pytest.approx(float(alone_of.terms[term](alone)), rel=1e-5)
    config = tiny.config("filip", token_width=8, weights=dict(filip=1.0, clip=0.0))
    config.model.text.spare_ids = 1
    tokens = filip.make(config)
    assert float(objective.terms["filip"](out)) == pytest.approx(float(tokens.terms["filip"](out["filip"])), rel=1e-6)
    of_all_words = tokens.forward(state.params, {}, batch, key, state.step)["text_tokens"]
    assert of_all_words.shape == out["filip"]["text_tokens"].shape
    changed = jnp.any(of_all_words != out["filip"]["text_tokens"], axis=(1, 2))
    np.testing.assert_array_equal(changed, jnp.any(alone["mlm/count"][:, None] > 0, axis=1))   # tokens are of masked words


def test_options_are_those_of_the_two():
    both = set(declip.Options._fields) | set(filip.Options._fields)
    assert set(defilip.Options._fields) == both
    with pytest.raises(ValueError, match="mask_id=-1 must be the id of the mask"):
        defilip.make(tiny.config("defilip", mask_id=-1))
