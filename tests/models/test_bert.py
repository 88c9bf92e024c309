"""BERT's tower against loops in numpy: post-normalised blocks, the mask, poolings, cross-attention for fusion layers."""
import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_models import CONTEXT, DIM, EOT, SIZE, VOCAB, close, init, paths, shapes

from mcd_jax.models import bert, towers, transformer

IMAGE = {"name": "resnet", "widths": (8,), "depths": (1,)}
TEXT = {"name": "bert", "width": 12, "depth": 2, "num_heads": 3, "mlp_dim": 20, "positions": 9}
WORDS = np.asarray([[1, 5, 6, 7, EOT, 0], [1, 9, EOT, 0, 0, 0], [1, 4, 5, 6, 7, EOT]], np.int32)


def make(pad=0, **options):
    return towers.make({"image": IMAGE, "text": {**TEXT, **options}, "embed_dim": DIM}, VOCAB, CONTEXT, EOT, SIZE, pad)


# ---- the slow form: one row, one head, one number after another ------------------------------------------------------------------

def dense(p, x):
    return np.asarray([[sum(a * k for a, k in zip(row, column)) + b for column, b in zip(p["kernel"].T, p["bias"])] for row in x])


def norm(p, x, eps=1e-12):
    rows = []
    for row in x:
        mean = sum(row) / len(row)
        var = sum((a - mean) ** 2 for a in row) / len(row)
        rows.append([(a - mean) / math.sqrt(var + eps) * s + b for a, s, b in zip(row, p["scale"], p["bias"])])
    return np.asarray(rows)


def attention(p, x, keys, seen, heads):
    q, k, v = dense(p["q"], x), dense(p["k"], keys), dense(p["v"], keys)
    size, out = q.shape[1] // heads, np.zeros_like(q)
    for h in range(heads):
        part = slice(h * size, (h + 1) * size)
        for i in range(len(x)):
            scores = [math.exp(q[i, part] @ k[j, part] / math.sqrt(size)) if seen[j] else 0.0 for j in range(len(keys))]
            weights = np.asarray(scores)
            out[i, part] = (weights / weights.sum()) @ v[:, part]
    return dense(p["out"], out)


def gelu(x):
    return np.asarray([[0.5 * a * (1 + math.erf(a / math.sqrt(2))) for a in row] for row in x])


def block(p, x, seen, heads, cross=None, cross_seen=None):
    x = norm(p["ln_attn"], x + attention(p["attn"], x, x, seen, heads))
    if cross is not None:
        x = norm(p["ln_cross"], x + attention(p["cross"], x, cross, cross_seen, heads))
    return norm(p["ln_mlp"], x + dense(p["mlp"]["out"], gelu(dense(p["mlp"]["in"], x))))


def slow(params, words):
    """(states, mean over tokens that aren't padding) of one row, in float64."""
    p = jax.tree.map(lambda x: np.asarray(x, np.float64), params)
    x = norm(p["ln_embed"], np.stack([p["token"][word] + p["position"][i] + p["type"][0] for i, word in enumerate(words)]))
    for i in range(TEXT["depth"]):
        x = block(p[f"block_{i}"], x, words != 0, TEXT["num_heads"])
    return x, x[words != 0].mean(0)


def test_a_text_may_be_longer_than_in_training():
    """As long as the table of positions: questions aren't cut in evaluation."""
    built = make()
    params = init(built)
    longer = jnp.pad(WORDS, ((0, 0), (0, 3)))
    np.testing.assert_allclose(built.text(params, longer)["z"], built.text(params, jnp.asarray(WORDS))["z"], rtol=1e-5, atol=1e-6)
    with pytest.raises(ValueError, match=r"text has 10 tokens and the tower has positions for 9 \(config\.model\.text\.posit"):
        built.text(params, jnp.pad(longer, ((0, 0), (0, 1))))


def test_states_and_pooling_equal_the_slow_form():
    built = make()
    params = init(built)
    out = jax.jit(built.text)(params, jnp.asarray(WORDS))
    for i, words in enumerate(WORDS):
        states, mean = slow(params["text"], words)
        np.testing.assert_allclose(out["tokens"][i], states, rtol=2e-5, atol=2e-5)
        np.testing.assert_allclose(out["pooled"][i], mean, rtol=2e-5, atol=2e-5)
    close(out["block_1"], out["tokens"])
    first = jax.jit(make(pool="first").text)(params, jnp.asarray(WORDS))
    close(first["pooled"], out["tokens"][:, 0])


def test_fusion_layers_equal_the_slow_form():
    """Layers with cross-attention to tokens of another width: those that a fusion method puts on top of the text's."""
    class Fusion(nn.Module):
        @nn.compact
        def __call__(self, x, seen, cross, cross_seen):
            return bert.layers(x, seen, cross=cross, cross_seen=cross_seen, depth=1, num_heads=3, mlp_dim=20, act="gelu", eps=1e-12,
                               dtype=jnp.float32, scan=False, remat="none", owner=self)[0]

    rng = np.random.default_rng(0)
    x, cross = rng.standard_normal((2, 4, 12)).astype(np.float32), rng.standard_normal((2, 5, 7)).astype(np.float32)
    seen = np.asarray([[1, 1, 1, 0], [1, 1, 1, 1]], bool)
    for cross_seen in (np.asarray([[1, 1, 0, 1, 1], [1, 0, 0, 0, 0]], bool), None):
        cross_mask = None if cross_seen is None else jnp.asarray(cross_seen)
        params = Fusion().init(jax.random.key(0), x, jnp.asarray(seen), cross, cross_mask)
        params = jax.tree.map(lambda p: p + 0.3 * rng.standard_normal(p.shape).astype(np.float32), params)
        got = jax.jit(Fusion().apply)(params, x, jnp.asarray(seen), cross, cross_mask)
        p = jax.tree.map(lambda x: np.asarray(x, np.float64), params["params"]["block_0"])
        for i in range(2):
            want = block(p, x[i], seen[i], 3, cross[i], np.ones(5, bool) if cross_seen is None else cross_seen[i])
            np.testing.assert_allclose(got[i], want, rtol=2e-5, atol=2e-5)


def test_padding_has_no_influence_and_an_empty_row_is_finite():
    built = make()
    params = init(built)
    text = jax.jit(built.text)
    close(text(params, jnp.asarray(WORDS[1:2, :3]))["z"], text(params, jnp.asarray(WORDS[1:2]))["z"])
    empty = text(params, jnp.zeros((1, CONTEXT), jnp.int32))
    assert np.isfinite(empty["tokens"]).all() and not np.asarray(empty["pooled"]).any()
    other = make(pad=3)
    close(jax.jit(other.text)(params, jnp.asarray(np.where(WORDS == 0, 3, WORDS)))["z"], text(params, jnp.asarray(WORDS))["z"])


def test_scan_and_remat_equal_the_unrolled_tower():
    built = make()
    params = init(built)
    stacked = {**params, "text": transformer.stacked(params["text"])}
    loss = lambda built: jax.jit(jax.value_and_grad(lambda p: (built.text(p, jnp.asarray(WORDS))["z"][:, 0] ** 2).sum()))
    value, grads = loss(built)(params)
    scanned, scanned_grads = loss(make(scan=True, remat="full"))(stacked)
    close(value, scanned)
    close(transformer.stacked(grads["text"]), scanned_grads["text"])


def test_parameter_paths_are_public():
    found = {path: shape for path, shape in paths(shapes(make())).items() if path.startswith("text/")}
    linear = lambda name, a, b: {f"{name}/kernel": (a, b), f"{name}/bias": (b,)}
    layer_norm = lambda name: {f"{name}/scale": (12,), f"{name}/bias": (12,)}
    want = {"text/token": (VOCAB, 12), "text/position": (9, 12), "text/type": (2, 12), "text/proj/kernel": (12, DIM),
            **layer_norm("text/ln_embed")}
    for i in range(2):
        for name in "qkv":
            want |= linear(f"text/block_{i}/attn/{name}", 12, 12)
        want |= {**linear(f"text/block_{i}/attn/out", 12, 12), **linear(f"text/block_{i}/mlp/in", 12, 20),
                 **linear(f"text/block_{i}/mlp/out", 20, 12), **layer_norm(f"text/block_{i}/ln_attn"),
                 **layer_norm(f"text/block_{i}/ln_mlp")}
    assert found == want


def test_a_named_size_has_the_published_parameter_count():
    """Those of transformers' BertModel without its pooler: BertConfig() and all-MiniLM-L6-v2's (tests/peers/test_locked.py)."""
    for variant, count in (("Base", 108_891_648), ("MiniLM-L6", 22_565_376)):
        built = towers.make({"image": IMAGE, "text": {"name": "bert", "variant": variant}, "embed_dim": 8}, 30522, 16, 102, SIZE)
        tower = {k: v for k, v in shapes(built)["text"].items() if k != "proj"}
        assert sum(math.prod(x.shape) for x in jax.tree.leaves(tower)) == count


@pytest.mark.parametrize("options, words", [
    (dict(pool="eot"), r"config\.model\.text\.pool='eot' is not one of 'mean', 'first'"),
    (dict(positions=4), r"config\.model\.text\.positions=4: texts have 6 tokens"),
    (dict(num_heads=5), r"width=12 must be a multiple of num_heads=5"),
    (dict(drop_path=0.1), r"config\.model\.text has no key 'drop_path'"),
    (dict(variant="Huge"), r"bert variant='Huge' is unknown; there are Tiny"),
])
def test_what_does_not_fit_is_refused(options, words):
    with pytest.raises(ValueError, match=words):
        make(**options)


def test_it_is_no_image_tower():
    with pytest.raises(ValueError, match="no image tower; images have efficientnet, resnet, swin and vit"):
        towers.make({"image": TEXT, "text": TEXT, "embed_dim": DIM}, VOCAB, CONTEXT, EOT, SIZE)
