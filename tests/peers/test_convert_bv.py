"""big_vision's npz in and out, beside an independent forward pass of its published architecture, in numpy loops.

big_vision can't be installed from a registry. What is written here was read in google-research/big_vision:
  models/vit.py (5f95305)           Conv "embedding" VALID with stride = patch, + "pos_embedding" (1, N, W); Encoder "Transformer"
                                    of "encoderblock_<i>" (or "encoderblock", stacked, where scan=True), LayerNorm "encoder_norm";
                                    block: x + MHA(LN(x)), then + Mlp(LN(.)), flax's nn.gelu (tanh), LayerNorm of epsilon 1e-6;
                                    MAPHead: probe attends to the tokens, then x + Mlp(LN(x)), row 0; "head" if num_classes is set
  models/proj/image_text/text_transformer.py (642c086)
                                    "Embed_0" + "pos_embedding" (1, L, W), "Encoder_0", pool_type="last": x[:, -1], Dense "head"
  models/proj/image_text/two_towers.py (0e17d73)
                                    towers "img" and "txt"; z / (norm + 1e-8); temperature exp("t"), bias "b", both of shape (1,)
  trainers/proj/image_text/siglip.py  logits = zimg @ ztxt.T * t + b
  utils.py (11eea57)                npz keys are paths under "params/"; bfloat16 is stored as void of two bytes
"""
import math

from converting import CAPTIONS, CLIP, SIGLIP, as_run, our_run
import ml_dtypes
import numpy as np
import pytest

from mcd_jax.convert import big_vision, peers, runs, tables
from mcd_jax.data import tokenizers

SIZES = {   # width, depth, mlp_dim, num_heads of the image and the text tower, patch, image side, context, stacked
    "small": ((24, 2, 40, 3), (24, 2, 48, 4), 8, 24, 10, False),
    "larger": ((48, 3, 100, 4), (32, 4, 64, 2), 14, 42, 16, False),
    "stacked": ((32, 3, 64, 2), (32, 2, 56, 4), 8, 32, 12, True),
}
VOCAB = 8192


def published(size, seed=0, dtype=np.float32):
    """A random checkpoint by their names and shapes."""
    image, text, patch, side, context, stacked = SIZES[size]
    rng, result = np.random.default_rng(seed), {}

    def add(name, *shape, around=0.0):
        std = 0.1 if len(shape) < 2 else shape[-2] ** -0.5
        result[f"params/{name}"] = (around + std * rng.standard_normal(shape)).astype(dtype)

    def norm(name, width, lead=()):
        add(f"{name}/scale", *lead, width, around=1.0)
        add(f"{name}/bias", *lead, width)

    def block(name, width, mlp, heads, lead=()):
        norm(f"{name}/LayerNorm_0", width, lead)
        attention(f"{name}/MultiHeadDotProductAttention_0", width, heads, lead)
        norm(f"{name}/LayerNorm_1", width, lead)
        mlp_block(f"{name}/MlpBlock_0", width, mlp, lead)

    def attention(name, width, heads, lead=()):
        for part in ("query", "key", "value"):
            add(f"{name}/{part}/kernel", *lead, width, heads, width // heads)
            add(f"{name}/{part}/bias", *lead, heads, width // heads)
        add(f"{name}/out/kernel", *lead, heads, width // heads, width)
        add(f"{name}/out/bias", *lead, width)

    def mlp_block(name, width, mlp, lead=()):
        for i, (a, b) in enumerate(((width, mlp), (mlp, width))):
            add(f"{name}/Dense_{i}/kernel", *lead, a, b)
            add(f"{name}/Dense_{i}/bias", *lead, b)

    def encoder(name, width, depth, mlp, heads):
        if stacked:
            block(f"{name}/encoderblock", width, mlp, heads, (depth,))
        for i in range(0 if stacked else depth):
            block(f"{name}/encoderblock_{i}", width, mlp, heads)
        norm(f"{name}/encoder_norm", width)

    width, depth, mlp, heads = image
    add("img/embedding/kernel", patch, patch, 3, width)
    add("img/embedding/bias", width)
    add("img/pos_embedding", 1, (side // patch) ** 2, width)
    encoder("img/Transformer", width, depth, mlp, heads)
    add("img/MAPHead_0/probe", 1, 1, width)
    attention("img/MAPHead_0/MultiHeadDotProductAttention_0", width, heads)
    norm("img/MAPHead_0/LayerNorm_0", width)
    mlp_block("img/MAPHead_0/MlpBlock_0", width, mlp)
    out, (width, depth, mlp, heads) = width, text
    add("txt/Embed_0/embedding", VOCAB, width)
    result["params/txt/Embed_0/embedding"] *= np.asarray(10, dtype)
    add("txt/pos_embedding", 1, context, width)
    encoder("txt/Encoder_0", width, depth, mlp, heads)
    add("txt/head/kernel", width, out)
    add("txt/head/bias", out)
    result["params/t"], result["params/b"] = np.asarray([2.31], dtype), np.asarray([-9.7], dtype)
    return result


class Slow:
    """The forward pass, example by example and head by head, in float64."""

    def __init__(self, arrays):
        self.arrays = {name: np.asarray(x, np.float64) for name, x in arrays.items()}

    def image(self, pixels):
        """uint8 (B, H, W, 3) -> (B, D) before normalisation."""
        kernel, result = self.arrays["params/img/embedding/kernel"], []
        patch, width = kernel.shape[0], kernel.shape[3]
        for picture in pixels:
            x = picture.astype(np.float64) / 127.5 - 1   # value_range(-1, 1)
            rows = []
            for top in range(0, len(x) - patch + 1, patch):
                for left in range(0, len(x) - patch + 1, patch):
                    cut = x[top:top + patch, left:left + patch]
                    rows.append([np.sum(cut * kernel[..., c]) for c in range(width)] + self.arrays["params/img/embedding/bias"])
            x = self.encoder("img/Transformer", np.array(rows) + self.arrays["params/img/pos_embedding"][0])
            head = "img/MAPHead_0"
            y = self.attend(f"{head}/MultiHeadDotProductAttention_0", self.arrays[f"params/{head}/probe"][0], x, None)
            y = y + self.mlp(f"{head}/MlpBlock_0", self.norm(f"{head}/LayerNorm_0", y), None)
            result.append(y[0])
        return np.array(result)

    def text(self, tokens):
        """int (B, L) -> (B, D) before normalisation."""
        table, position = self.arrays["params/txt/Embed_0/embedding"], self.arrays["params/txt/pos_embedding"][0]
        last = [self.encoder("txt/Encoder_0", np.array([table[i] for i in row]) + position)[-1] for row in tokens]
        return np.array([x @ self.arrays["params/txt/head/kernel"] + self.arrays["params/txt/head/bias"] for x in last])

    def get(self, name, i):
        return self.arrays[f"params/{name}"] if i is None else self.arrays[f"params/{name}"][i]

    def encoder(self, name, x):
        stacked = f"params/{name}/encoderblock/LayerNorm_0/scale" in self.arrays
        depth = len(self.arrays[f"params/{name}/encoderblock/LayerNorm_0/scale"]) if stacked else sum(
            f"params/{name}/encoderblock_{i}/LayerNorm_0/scale" in self.arrays for i in range(99))
        for layer in range(depth):
            block, i = (f"{name}/encoderblock", layer) if stacked else (f"{name}/encoderblock_{layer}", None)
            y = self.norm(f"{block}/LayerNorm_0", x, i)
            x = x + self.attend(f"{block}/MultiHeadDotProductAttention_0", y, y, i)
            x = x + self.mlp(f"{block}/MlpBlock_0", self.norm(f"{block}/LayerNorm_1", x, i), i)
        return self.norm(f"{name}/encoder_norm", x)

    def norm(self, name, x, i=None):
        centred = x - x.mean(1, keepdims=True)
        scaled = centred / np.sqrt((centred ** 2).mean(1, keepdims=True) + 1e-6)
        return scaled * self.get(f"{name}/scale", i) + self.get(f"{name}/bias", i)

    def attend(self, name, queries, keys, i):
        result = np.zeros(queries.shape)
        heads = self.get(f"{name}/query/bias", i).shape[0]
        for head in range(heads):
            q, k, v = (x @ self.get(f"{name}/{part}/kernel", i)[:, head] + self.get(f"{name}/{part}/bias", i)[head]
                       for x, part in ((queries, "query"), (keys, "key"), (keys, "value")))
            for row in range(len(q)):
                scores = np.array([q[row] @ k[column] for column in range(len(k))]) / math.sqrt(q.shape[1])
                weights = np.exp(scores - scores.max())
                result[row] += (weights / weights.sum()) @ v @ self.get(f"{name}/out/kernel", i)[head]
        return result + self.get(f"{name}/out/bias", i)

    def mlp(self, name, x, i):
        x = x @ self.get(f"{name}/Dense_0/kernel", i) + self.get(f"{name}/Dense_0/bias", i)
        x = 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x ** 3)))
        return x @ self.get(f"{name}/Dense_1/kernel", i) + self.get(f"{name}/Dense_1/bias", i)


def stored(folder, arrays):
    np.savez(folder / "theirs.npz", **arrays)
    return folder / "theirs.npz"


@pytest.mark.parametrize("size", SIZES)
def test_random_weights_give_the_same_features_and_ranking(tmp_path, size):
    arrays = published(size)
    imported = big_vision.load(stored(tmp_path, arrays), "", str(tokenizers.EMOJI))
    assert bool(imported.model["image"].get("scan")) == (size == "stacked")
    ours, slow = peers.of_run(as_run(imported)), Slow(arrays)
    side = imported.inputs["image_size"]
    pixels = np.random.default_rng(1).integers(0, 256, (5, side, side, 3), np.uint8)
    ids = ours.tokens(CAPTIONS)
    image, text = ours.image(pixels), ours.text(ids)
    want_image, want_text = slow.image(pixels), slow.text(ids)
    assert peers.relative(image, want_image) <= 1e-4 and peers.relative(text, want_text) <= 1e-4
    zi, zt = (x / (np.linalg.norm(x, axis=1, keepdims=True) + 1e-8) for x in (want_image, want_text))
    want = zi @ zt.T * np.exp(arrays["params/t"]) + arrays["params/b"]
    logits = peers.logits(image, text, ours.scale, ours.bias)
    np.testing.assert_allclose(logits, want, atol=2e-4)
    np.testing.assert_array_equal(np.argsort(logits, axis=1), np.argsort(want, axis=1))


@pytest.mark.parametrize("size", SIZES)
def test_export_of_import_is_theirs_bit_for_bit(tmp_path, size):
    arrays = published(size)
    big_vision.save(as_run(big_vision.load(stored(tmp_path, arrays), "", str(tokenizers.EMOJI))), tmp_path)
    with np.load(tmp_path / big_vision.WEIGHTS, allow_pickle=False) as back:
        assert set(back.files) == arrays.keys()
        for name, x in arrays.items():
            assert back[name].shape == x.shape and back[name].dtype == x.dtype and back[name].tobytes() == x.tobytes(), name


@pytest.mark.parametrize("scan", [False, True])
def test_import_of_export_is_ours(tmp_path, scan):
    run = our_run(SIGLIP, runs.Tokens(12, "emoji"), scan=scan)
    big_vision.save(run, tmp_path)
    back = big_vision.load(tmp_path)
    before, after = tables.flat(run.params), tables.flat(back.params)
    assert before.keys() == after.keys() and all(np.asarray(before[k]).tobytes() == x.tobytes() for k, x in after.items())
    assert (back.tokens, back.inputs, back.view) == (run.tokens, run.inputs, runs.View("resize", "bicubic"))


def test_what_published_files_also_hold(tmp_path):
    """The optimizer's state, bfloat16 as two void bytes, positions twice, or no "params/" before the names."""
    arrays = published("small", dtype=ml_dtypes.bfloat16)
    extra = np.full((1, 10, 24), 0.25, np.float32)
    path = stored(tmp_path, {**arrays, "opt/0/count": np.zeros((), np.int32), "params/txt/Encoder_0/pos_embedding": extra})
    found = big_vision.load(path, "", str(tokenizers.EMOJI))
    assert {name for name, _ in found.left_out} == {"opt/0/count", "params/txt/Encoder_0/pos_embedding"}
    np.testing.assert_array_equal(found.params["text"]["position"], arrays["params/txt/pos_embedding"][0].astype(np.float32) + 0.25)
    np.testing.assert_array_equal(found.params["image"]["pool"]["probe"], arrays["params/img/MAPHead_0/probe"].astype(np.float32))
    bare = {name.removeprefix("params/"): x for name, x in published("small").items()}
    assert big_vision.load(stored(tmp_path, bare), "", str(tokenizers.EMOJI)).model["embed_dim"] == 24


def test_wrong_checkpoints_and_towers_are_refused_by_name(tmp_path):
    arrays, emoji = published("small"), str(tokenizers.EMOJI)
    name = "params/img/Transformer/encoderblock_1/MlpBlock_0/Dense_1/kernel"
    cases = {
        "missing: " + name: {k: v for k, v in arrays.items() if k != name},
        f"wrong shape: {name} is (39, 24), this model needs (40, 24)": {**arrays, name: arrays[name][1:]},
        "unexpected: params/img/cls": {**arrays, "params/img/cls": np.zeros((1, 1, 24), np.float32)},
        "wrong dtype: params/t is float64": {**arrays, "params/t": np.zeros(1)},
        "params/img/MAPHead_0/probe is missing": {k: v for k, v in arrays.items() if "MAPHead" not in k},
    }
    for words, changed in cases.items():
        with pytest.raises(ValueError) as error:
            big_vision.load(stored(tmp_path, changed), "", emoji)
        assert words in str(error.value), error.value
    path = stored(tmp_path, arrays)
    with pytest.raises(ValueError, match="--tokenizer=FILE"):
        big_vision.load(path)
    path.write_bytes(path.read_bytes()[:-2000])
    with pytest.raises(ValueError, match="no whole npz file"):
        big_vision.load(path, "", emoji)
    with pytest.raises(ValueError, match="two_towers has no class") as error:
        big_vision.save(our_run(CLIP, runs.Tokens(12, "emoji")), tmp_path)
    for words in ("image.pool='class', not 'map'", "image.act='quick_gelu'", "text.causal=True, not False", "config.model.mean="):
        assert words in str(error.value)
