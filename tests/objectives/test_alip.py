"""ALIP: weights and losses of the released code on numbers of its own (numpy's generator, 0; scale 10), and its averages."""
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from mcd_jax import step as step_lib
from mcd_jax.losses import contrastive
from mcd_jax.methods import alip


def drawn():
    """Unit rows (4, 8) of image, text and caption, behind the draws that other methods' figures of that script take."""
    draw = np.random.default_rng(0)
    unit = lambda x: x / np.linalg.norm(x, axis=-1, keepdims=True)
    draw.standard_normal((4, 4, 8)), draw.standard_normal((6, 8)), draw.standard_normal((4, 4, 8))
    draw.standard_normal((3, 5, 8)), draw.standard_normal((3, 6, 8))
    return jnp.asarray(unit(draw.standard_normal((3, 4, 8))), jnp.float32)


def test_weights_and_losses_are_those_of_the_released_code():
    image, text, caption = drawn()
    fit = alip.fits(image, text, caption)
    after = lambda start: [0.99 * h + 0.01 * float(jnp.mean(fit[name])) for name, h in zip(alip.FITS, start)]
    np.testing.assert_allclose(after((1, 1, 1)), (0.991056, 0.990907, 0.989173), atol=1e-6)
    mean = after((.3, .2, .1))
    np.testing.assert_allclose(mean, (0.298056, 0.198907, 0.098173), atol=1e-6)
    mean = dict(zip(alip.FITS, mean))
    together = (0.669728, 1.790490, 0.614544, 0.291080)
    np.testing.assert_allclose(jnp.exp(fit["text_caption"] - mean["text_caption"]) ** 2, together, rtol=1e-5)
    of_text, of_caption = alip.pair_weights(fit, mean)
    sample = np.minimum(1, together)
    np.testing.assert_allclose(of_text, sample * (0.586237, 1, 0.415496, 1.659410), rtol=1e-5)
    np.testing.assert_allclose(of_caption, sample * (1.555775, 1, 0.266143, 0.356139), rtol=1e-5)
    bounded, _ = alip.pair_weights(fit, mean, most=1.0)
    np.testing.assert_allclose(bounded, sample * (0.586237, 1, 0.415496, 1), rtol=1e-5)
    objective = alip.make(tiny.config("alip"))
    out = {"image": image, "text": text, "caption": caption, "scale": 10.0, "weight": of_text, "caption_weight": of_caption}
    losses = [float(objective.terms[name](out)) for name in ("clip", "clip_caption")]
    np.testing.assert_allclose(losses, (1.245940, 0.611474), rtol=1e-5)
    even = float(objective.terms["clip"]({**out, "weight": jnp.ones(4)}))
    assert even == pytest.approx(float(contrastive.softmax(image, text, 10.0)), rel=1e-6)


def test_the_averages_are_of_the_whole_batch_and_remembered():
    objective, tx, weights, state, batch = tiny.build("alip")
    assert {name: float(x) for name, x in state.memory["fit"].items()} == dict.fromkeys(alip.FITS, 1.0)
    new, first = jax.jit(step_lib.make_step(objective, tx, weights))(state, batch)
    for name in alip.FITS:
        assert float(new.memory["fit"][name]) == pytest.approx(0.99 + 0.01 * float(first[f"fit/{name}"]), rel=1e-6)


@pytest.mark.parametrize("wrong, message", [(dict(momentum=1.5), "momentum=1.5 must lie in"),
                                            (dict(most=0.0), "must be above 0, or None")])
def test_what_does_not_fit(wrong, message):
    with pytest.raises(ValueError, match=message):
        alip.make(tiny.config("alip", **wrong))
