"""Masked words: how many, by what, and never what must not be drawn; sums over them by a slow loop."""
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mcd_jax.losses import mlm


def test_masking_is_80_10_10_of_the_open_tokens():
    tokens = jax.random.randint(jax.random.key(0), (4000, 10), 4, 50)
    open_ = jnp.broadcast_to((jnp.arange(10) > 0) & (jnp.arange(10) < 8), tokens.shape)
    ids, chosen = map(np.asarray, jax.jit(partial(mlm.mask, rate=0.15, mask_id=103, vocab_size=50))(
        jax.random.key(1), tokens, open_))
    tokens = np.asarray(tokens)
    assert not chosen[:, 0].any() and not chosen[:, 8:].any()
    assert chosen[:, 1:8].mean() == pytest.approx(0.15, abs=0.008)
    np.testing.assert_array_equal(ids[~chosen], tokens[~chosen])
    masked, kept = np.mean(ids[chosen] == 103), np.mean(ids[chosen] == tokens[chosen])
    assert masked == pytest.approx(0.8, abs=0.03) and kept == pytest.approx(0.1 + 0.1 / 49, abs=0.02)
    assert set(np.unique(ids[chosen])) == {*range(1, 50), 103}   # never the padding


def test_masked_word_sums_equal_a_slow_loop():
    rng = np.random.default_rng(0)
    logits, teacher = rng.normal(size=(2, 4, 3, 7))
    labels, chosen = rng.integers(0, 7, (4, 3)), rng.random((4, 3)) < 0.5
    chosen[2:] = False
    got = mlm.row_sums(*map(jnp.asarray, (logits, labels, chosen, teacher)))
    hard, soft = np.zeros(4), np.zeros(4)
    for b, t in zip(*np.nonzero(chosen)):
        p, q = (np.exp(x[b, t]) / np.exp(x[b, t]).sum() for x in (logits, teacher))
        hard[b] -= np.log(p[labels[b, t]])
        soft[b] -= np.sum(q * np.log(p))
    np.testing.assert_allclose(got["hard"], hard, rtol=1e-5)
    np.testing.assert_allclose(got["soft"], soft, rtol=1e-5)
    count = chosen.sum(1)
    np.testing.assert_allclose(mlm.mean(got["hard"], got["count"], 4), hard.sum() / count.sum(), rtol=1e-5)
    np.testing.assert_allclose(mlm.mean(got["hard"], got["count"], 2), hard[:2].sum() / count[:2].sum() / 2, rtol=1e-5)


def test_what_must_not_be_drawn_never_is_and_all_else_alike():
    """An end of the text that is drawn would be where a causal tower pools."""
    tokens, never = jnp.full((3000, 8), 7), (0, 11, 10, 12, 40)   # 12 is beyond the vocabulary
    ids, _ = mlm.mask(jax.random.key(0), tokens, tokens > 0, 1.0, 12, 12, never)
    count = np.bincount(np.asarray(ids).ravel(), minlength=13)
    assert not count[[0, 10, 11]].any()
    others = count[[1, 2, 3, 4, 5, 6, 8, 9]]
    assert others.sum() == pytest.approx(0.1 * 24000 * 8 / 9, rel=0.1) and others.min() > 0.7 * others.mean()
    assert count[12] == pytest.approx(0.8 * 24000, rel=0.05)
