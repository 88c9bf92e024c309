"""Losses and tokens equal open_clip's: values and gradients of ClipLoss and SigLipLoss, and token ids of every embedded caption."""
import jax
import jax.numpy as jnp
import numpy as np
import open_clip
import pytest
import torch

from mcd_jax.data import tokenizers
from mcd_jax.data.sources import emoji
from mcd_jax.losses import contrastive


def embeddings(size=96, dim=48):
    rng = np.random.default_rng(0)
    x = rng.standard_normal((size, dim))
    y = x + 2 * rng.standard_normal((size, dim))
    return [(a / np.linalg.norm(a, axis=1, keepdims=True)).astype(np.float32) for a in (x, y)]


def theirs(loss, *arrays):
    tensors = [torch.tensor(a, requires_grad=True) for a in arrays]
    value = loss(*tensors)
    value.backward()
    return value.item(), [t.grad.numpy() for t in tensors]


def same(ours, arrays, value, gradients):
    got, grads = jax.value_and_grad(ours, argnums=tuple(range(len(arrays))))(*map(jnp.asarray, arrays))
    np.testing.assert_allclose(got, value, rtol=1e-5)
    for a, b in zip(grads, gradients, strict=True):
        assert np.linalg.norm(a - b) <= 1e-5 * np.linalg.norm(b), (np.linalg.norm(a - b), np.linalg.norm(b))


@pytest.mark.parametrize("implementation", ["gather", "ring"])
def test_softmax_is_clip_loss(implementation):
    arrays = [*embeddings(), np.float32(14.3)]
    value, gradients = theirs(open_clip.loss.ClipLoss(), *arrays)
    same(lambda x, y, s: contrastive.softmax(x, y, s, implementation), arrays, value, gradients)


@pytest.mark.parametrize("implementation", ["gather", "ring"])
def test_sigmoid_is_siglip_loss(implementation):
    arrays = [*embeddings(), np.float32(10.0), np.float32(-10.0)]
    value, gradients = theirs(open_clip.loss.SigLipLoss(), *arrays)
    same(lambda x, y, s, b: contrastive.sigmoid(x, y, s, b, implementation), arrays, value, gradients)


ODD = ("", " ", "A  photo of\ta cat.\n", "caf\u00e9 na\u00efve \u2014 &amp;amp; <b>x</b>", "\U0001f600\u200d\U0001f525",
       "\u00dcn\u00efc\u00f6d\u00e9 \ufb01 \u00bd", "don't  can't we'll", "1234567890" * 20, "word " * 300,
       "\u0441\u043e\u0431\u0430\u043a\u0430 \u72ac \u0643\u0644\u0628")


def test_token_ids_are_theirs():
    labels = sorted({label for row in emoji.concepts() for label in row["labels"].values()})
    captions = [*labels[::17], *ODD]
    got = tokenizers.make("clip").encode(captions, 77)
    want = open_clip.get_tokenizer("ViT-B-32")(captions).numpy()
    wrong = [c for c, a, b in zip(captions, got, want) if not np.array_equal(a, b)]
    assert len(captions) > 1000 and not wrong, wrong[:5]
