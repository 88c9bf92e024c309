"""FILIP: the whole method beside the formula, word by word; what padding, selected tokens and weights of 0 do to it."""
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from mcd_jax import step as step_lib
from mcd_jax.methods import filip

PADDED = {"text": np.array([[5, 6, 7, 8, tiny.EOT, 0], [9, 4, tiny.EOT, 0, 0, 0], [3, tiny.EOT, 0, 0, 0, 0],
                            [8, 7, 6, 5, 4, tiny.EOT]] * 2, np.int32)}


def forward(rows=PADDED, **options):
    """(objective, state, batch, out) of the tiny method on texts with padding."""
    objective, _, _, state, batch = tiny.build("filip", rows=rows, **options)
    return objective, state, batch, jax.jit(objective.forward)(state.params, state.memory, batch, state.key, 0)


def slow(state, config, batch, pads, select=0):
    """The loss from the towers' tokens, by loops over Python lists in float64."""
    towers = filip.two_tower.towers_of(config)
    tokens = {}
    for kind in ("image", "text"):
        raw = np.asarray(getattr(towers, kind)(state.params, batch[kind])["tokens"], np.float64)
        raw = raw @ np.asarray(state.params["filip"][kind]["kernel"], np.float64)
        tokens[kind] = raw / np.linalg.norm(raw, axis=-1, keepdims=True)
    lengths = [tiny.CONTEXT if pads == "counted" else int(np.sum(row != 0)) for row in np.asarray(batch["text"])]
    size = len(lengths)
    patches = [list(image) for image in tokens["image"]]
    words = [list(text[:n]) for text, n in zip(tokens["text"], lengths)]
    found = [own + [np.zeros(8)] * (tiny.CONTEXT - len(own)) for own in words] if pads == "zero" else words
    seen_patches, seen_words = patches, found
    if select:
        best = lambda own, other: sorted(own, key=lambda a: -sum(a @ b for b in other))[:select]
        seen_patches = [best(patches[i], found[i]) for i in range(size)]
        seen_words = [best(found[i], patches[i]) for i in range(size)]
    scale = float(np.exp(state.params["filip"]["logit_scale"]))
    to_text, to_image = np.zeros((2, size, size))
    for i, j in itertools.product(range(size), repeat=2):
        to_text[i, j] = scale * np.mean([max(v @ w for w in seen_words[j]) for v in patches[i]])
        to_image[j, i] = scale * np.mean([max(v @ w for v in seen_patches[i]) for w in words[j]])
    return sum(np.mean([np.log(np.sum(np.exp(row))) - row[i] for i, row in enumerate(m)]) for m in (to_text, to_image)) / 2


@pytest.mark.parametrize("pads, select", [("masked", 0), ("zero", 0), ("counted", 0), ("masked", 2), ("counted", 2)])
def test_the_whole_method(pads, select):
    objective, state, batch, out = forward(pads=pads, select=select)
    config = tiny.config("filip", pads=pads, select=select)
    want = slow(state, config, batch, pads, select)
    assert float(objective.terms["filip"](out)) == pytest.approx(want, rel=1e-5)
    tokens = objective.heads["token_wise"](state.params, state.memory, {"text": batch["text"]})
    np.testing.assert_allclose(tokens["text_tokens"], out["text_tokens"], atol=1e-6)
    assert set(tokens) == {"text_tokens", "text_weight", "text_found"}


def test_the_end_of_a_text_that_is_padding_as_well_is_a_word_once():
    inputs = tiny.config("filip").model.inputs.to_dict()
    valid = lambda rows, **more: filip._valid(jnp.array(rows), type("Inputs", (dict,), {"eot": 2})({**inputs, **more}))
    np.testing.assert_array_equal(valid([[5, 2, 2, 2]], pad=2), [[True, True, False, False]])
    np.testing.assert_array_equal(valid([[5, 2, 0, 0]]), [[True, True, False, False]])


def test_tokens_train_and_the_pooled_embeddings_do_not_unless_they_are_weighed():
    def moved(weights):
        objective, tx, w, state, batch = tiny.build("filip", weights)
        after, report = jax.jit(step_lib.make_step(objective, tx, w))(state, batch)
        changed = jax.tree.map(lambda a, b: bool(np.any(a != b)), state.params, after.params)
        return objective, changed, report
    objective, changed, report = moved({"clip": 0})
    assert changed["filip"]["logit_scale"] and changed["filip"]["text"]["kernel"] and changed["image"]["stem"]["kernel"]
    assert not changed["logit_scale"] and not objective.pooled   # projections decay all the same
    assert report["token_scale"] == pytest.approx(1 / 0.07) and "accuracy" not in report
    objective, changed, report = moved({"clip": 0.5})
    assert changed["logit_scale"] and objective.pooled and report["accuracy"] >= 0
    objective, changed, _ = moved({"clip": 1.0, "filip": 0})
    assert "filip" not in changed and "token_wise" not in objective.heads and objective.pooled


def test_composed_with_clip_the_pooled_embeddings_are_trained():
    objective, _, _, state, batch = tiny.build("filip+clip", {"filip/clip": 0})
    alone, _, _, _, _ = tiny.build("filip", {"clip": 0})
    assert objective.pooled and not alone.pooled and {"token_wise", "embed"} <= set(objective.heads)
    out = jax.jit(objective.forward)(state.params, state.memory, batch, state.key, 0)
    for method in ("filip", "clip"):
        want = tiny.CASES[method].formulas[method](out[method])
        assert float(objective.terms[f"{method}/{method}"](out)) == pytest.approx(want, rel=1e-5)


@pytest.mark.parametrize("wrong, message", [
    (dict(pads="none"), "config.objective.pads='none' must be one of masked, zero, counted"),
    (dict(select=-1), "select=-1 at least 0"), (dict(token_width=0), "token_width=0 must be at least 1"),
    (dict(implementation="rings"), "implementation='rings' must be one of")])
def test_what_does_not_fit(wrong, message):
    with pytest.raises(ValueError, match=message):
        filip.make(tiny.config("filip", **wrong))


def test_stored_embeddings_have_no_tokens():
    config = tiny.config("filip")
    config.model.image = dict(name="stored", width=8, proj="none")
    with pytest.raises(ValueError, match=r"config.model.image.name='stored' has one embedding of each image and no tokens"):
        filip.make(config)
