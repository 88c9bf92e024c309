"""UniCLIP: its loss on known numbers and row by row, and what its head is told."""
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from mcd_jax.data.ops.augmented import PARAMS, Augmented
from mcd_jax.losses import mp_nce
from mcd_jax.methods import uniclip
from mcd_jax.models import augmentation_head

DOMAIN = uniclip.domain


@pytest.mark.parametrize("denominator, value", [("apart", 0.909261), ("mil", 0.412078), ("supcon", 1.363492)])
def test_two_positives_and_three_negatives(denominator, value):
    positives, negatives = [jnp.float32([2]), jnp.float32([.5])], jax.nn.logsumexp(jnp.float32([[1, -.5, .25]]), axis=1)
    assert float(mp_nce.of_anchor(positives, negatives, denominator=denominator)[0]) == pytest.approx(value, abs=1e-6)


@pytest.mark.parametrize("implementation", ["gather", "ring"])
@pytest.mark.parametrize("denominator", mp_nce.DENOMINATORS)
def test_row_by_row(denominator, implementation):
    draw = np.random.default_rng(0)
    views = {name: draw.normal(size=(5, 4)).astype(np.float32) for name in ("image", "one", "two", "text")}
    views = {name: x / np.linalg.norm(x, axis=1, keepdims=True) for name, x in views.items()}
    scales = dict(zip(uniclip.DOMAINS, (5.0, 9.0, 3.0)))
    biases, weights = dict(zip(uniclip.DOMAINS, (0.1, -0.2, 0.3))), {"image_image": 0.5, "image_text": 2.0}
    total = []
    for a in views:
        for i in range(5):
            s = lambda b, j, a=a, i=i: scales[DOMAIN(a, b)] * (views[a][i] @ views[b][j] - biases[DOMAIN(a, b)])
            positive = {b: s(b, i) for b in views if b != a}
            negatives = sum(np.exp(s(b, j)) for b in views for j in range(5) if j != i)
            every = sum(np.exp(p) for p in positive.values())
            if denominator == "mil":
                total.append(-np.log(every / (every + negatives)))
            else:
                total.append(np.mean([-weights[DOMAIN(a, b)] * np.log(np.exp(p) / (negatives + (
                    np.exp(p) if denominator == "apart" else every))) for b, p in positive.items()]))
    found = mp_nce.loss(views, DOMAIN, scales, biases, weights, denominator, implementation)
    assert float(found) == pytest.approx(np.mean(total), rel=1e-5)


def test_the_head_is_told_what_was_done_and_nothing_of_untouched_images():
    assert len(PARAMS) == len(augmentation_head.UNTOUCHED)
    np.testing.assert_array_equal(Augmented(np.zeros((4, 4, 3), np.uint8)).params(), augmentation_head.UNTOUCHED)
    objective, _, _, state, batch = tiny.build("uniclip")
    out = jax.jit(objective.forward)(state.params, state.memory, batch, state.key, 0)
    seen = jax.jit(objective.heads["embed"])(state.params, state.memory, {"image": batch["image"], "text": batch["text"]})
    np.testing.assert_allclose(out["image"], seen["image"], atol=1e-6)   # the first view is untouched here
    np.testing.assert_allclose(out["text"], seen["text"], atol=1e-6)
    other = {**batch, "augmented/params": batch["augmented/params"] + 0.5}
    moved = jax.jit(objective.forward)(state.params, state.memory, other, state.key, 0)
    assert np.abs(moved["augmented"] - out["augmented"]).max() > 1e-3
    plain, _, _, state, batch = tiny.build("uniclip", aware=False)
    assert "augmented/params" not in plain.needs and "head" not in state.params["uniclip"]


@pytest.mark.parametrize("wrong, message", [(dict(augmented=()), "name at least one augmented view"),
                                            (dict(denominator="all"), "must be one of apart, supcon, mil")])
def test_what_does_not_fit(wrong, message):
    with pytest.raises(ValueError, match=message):
        uniclip.make(tiny.config("uniclip", **wrong))
