"""ALBEF's checkpoint layout: random weights under the published names give the same features, matching and word logits in PyTorch.

Names: salesforce/ALBEF at b9727e43c3040491774d1b22cc27718aa7772fac, models/model_pretrain.py (visual_encoder, text_encoder,
vision_proj, text_proj, temp, itm_head, the same with _m, image_queue, text_queue, queue_ptr), models/xbert.py (BertForMaskedLM:
bert, cls.predictions; layers from fusion_layer on have crossattention) and models/vit.py (patch_embed.proj, cls_token, pos_embed,
blocks, norm). The forward pass below is written from them with torch.nn.functional.
"""
import jax
import jax.numpy as jnp
from ml_collections import ConfigDict
import numpy as np
import pytest
import tokenizers as huggingface
import torch
import torch.nn.functional as F

from mcd_jax import config as config_lib
from mcd_jax.methods.albef import albef, albef_format

W, V, D, VOCAB, POSITIONS, SIZE, PATCH, DEPTH, SPLIT = 128, 64, 16, 30, 26, 32, 16, 3, 2
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]


def shapes():
    linear = lambda name, out, into: {f"{name}.weight": (out, into), f"{name}.bias": (out,)}
    norm = lambda name, width: {f"{name}.weight": (width,), f"{name}.bias": (width,)}
    found = {"visual_encoder.patch_embed.proj.weight": (V, 3, PATCH, PATCH), "visual_encoder.patch_embed.proj.bias": (V,),
             "visual_encoder.cls_token": (1, 1, V), "visual_encoder.pos_embed": (1, 1 + (SIZE // PATCH) ** 2, V),
             **norm("visual_encoder.norm", V), **linear("vision_proj", D, V), **linear("text_proj", D, W),
             **linear("itm_head", 2, W), "temp": ()}
    for i in range(2):
        block = f"visual_encoder.blocks.{i}"
        found |= {**norm(f"{block}.norm1", V), **norm(f"{block}.norm2", V), **linear(f"{block}.attn.qkv", 3 * V, V),
                  **linear(f"{block}.attn.proj", V, V), **linear(f"{block}.mlp.fc1", 2 * V, V),
                  **linear(f"{block}.mlp.fc2", V, 2 * V)}
    bert = "text_encoder.bert"
    found |= {f"{bert}.embeddings.{kind}_embeddings.weight": (rows, W) for kind, rows in (
        ("word", VOCAB), ("position", POSITIONS), ("token_type", 2))} | norm(f"{bert}.embeddings.LayerNorm", W)
    for i in range(DEPTH):
        layer = f"{bert}.encoder.layer.{i}"
        for name, width in (("attention", W), *((("crossattention", V),) if i >= SPLIT else ())):
            found |= {**linear(f"{layer}.{name}.self.query", W, W), **linear(f"{layer}.{name}.self.key", W, width),
                      **linear(f"{layer}.{name}.self.value", W, width), **linear(f"{layer}.{name}.output.dense", W, W),
                      **norm(f"{layer}.{name}.output.LayerNorm", W)}
        found |= {**linear(f"{layer}.intermediate.dense", 3 * W, W), **linear(f"{layer}.output.dense", W, 3 * W),
                  **norm(f"{layer}.output.LayerNorm", W)}
    head = "text_encoder.cls.predictions"
    return found | {f"{head}.bias": (VOCAB,), **linear(f"{head}.transform.dense", W, W), **norm(f"{head}.transform.LayerNorm", W)}


@pytest.fixture(scope="module")
def weights():
    generator = torch.Generator().manual_seed(0)
    found = {name: 0.2 * torch.randn(shape, generator=generator) + (name.endswith(("norm1.weight", "norm2.weight", "norm.weight")))
             for name, shape in shapes().items()}
    found["temp"] = torch.tensor(0.05)
    table = found["text_encoder.bert.embeddings.word_embeddings.weight"]
    return found | {"text_encoder.cls.predictions.decoder.weight": table,
                    "text_encoder.cls.predictions.decoder.bias": found["text_encoder.cls.predictions.bias"],
                    "text_encoder.bert.embeddings.position_ids": torch.arange(POSITIONS)[None],
                    "vision_proj_m.weight": found["vision_proj.weight"], "image_queue": torch.zeros(D, 8),
                    "text_queue": torch.zeros(D, 8), "queue_ptr": torch.zeros(1, dtype=torch.long)}


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    words = {word: i for i, word in enumerate([*SPECIAL, *(f"w{i}" for i in range(VOCAB - len(SPECIAL)))])}
    model = huggingface.Tokenizer(huggingface.models.WordLevel(words, unk_token="[UNK]"))
    model.pre_tokenizer = huggingface.pre_tokenizers.Whitespace()
    model.post_processor = huggingface.processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)])
    path = tmp_path_factory.mktemp("albef") / "tokenizer.json"
    model.save(str(path))
    return str(path)


def linear(w, name, x):
    return F.linear(x, w[f"{name}.weight"], w[f"{name}.bias"])


def norm(w, name, x, eps=1e-12):
    return F.layer_norm(x, x.shape[-1:], w[f"{name}.weight"], w[f"{name}.bias"], eps)


def attend(q, k, v, heads, mask=None):
    split = lambda x: x.reshape(len(x), -1, heads, x.shape[-1] // heads).transpose(1, 2)
    return F.scaled_dot_product_attention(*map(split, (q, k, v)), attn_mask=mask).transpose(1, 2).reshape(len(q), -1, q.shape[-1])


def vit(w, pixels):
    x = F.conv2d(pixels, w["visual_encoder.patch_embed.proj.weight"], w["visual_encoder.patch_embed.proj.bias"], stride=PATCH)
    x = torch.cat([w["visual_encoder.cls_token"].expand(len(x), -1, -1), x.flatten(2).transpose(1, 2)], 1)
    x = x + w["visual_encoder.pos_embed"]
    for i in range(2):
        block = f"visual_encoder.blocks.{i}"
        q, k, v = linear(w, f"{block}.attn.qkv", norm(w, f"{block}.norm1", x, 1e-6)).chunk(3, -1)
        x = x + linear(w, f"{block}.attn.proj", attend(q, k, v, V // 64))
        x = x + linear(w, f"{block}.mlp.fc2", F.gelu(linear(w, f"{block}.mlp.fc1", norm(w, f"{block}.norm2", x, 1e-6))))
    return norm(w, "visual_encoder.norm", x, 1e-6)


def layers(w, x, mask, which, image=None):
    for i in which:
        layer = f"text_encoder.bert.encoder.layer.{i}"
        for name in ("attention", *(() if image is None else ("crossattention",))):
            keys = x if name == "attention" else image
            q, k, v = (linear(w, f"{layer}.{name}.self.{part}", y) for part, y in (("query", x), ("key", keys), ("value", keys)))
            y = linear(w, f"{layer}.{name}.output.dense", attend(q, k, v, W // 64, mask if name == "attention" else None))
            x = norm(w, f"{layer}.{name}.output.LayerNorm", x + y)
        y = linear(w, f"{layer}.output.dense", F.gelu(linear(w, f"{layer}.intermediate.dense", x)))
        x = norm(w, f"{layer}.output.LayerNorm", x + y)
    return x


def theirs(w, pixels, words):
    """Image and text features, states, matching logits, word logits."""
    image, table = vit(w, pixels), "text_encoder.bert.embeddings"
    mask = (words != 0)[:, None, None]
    x = w[f"{table}.word_embeddings.weight"][words] + w[f"{table}.position_embeddings.weight"][:words.shape[1]]
    text = layers(w, norm(w, f"{table}.LayerNorm", x + w[f"{table}.token_type_embeddings.weight"][0]), mask, range(SPLIT))
    fused = layers(w, text, mask, range(SPLIT, DEPTH), image)
    head = "text_encoder.cls.predictions"
    y = norm(w, f"{head}.transform.LayerNorm", F.gelu(linear(w, f"{head}.transform.dense", fused)))
    return dict(image=F.normalize(linear(w, "vision_proj", image[:, 0]), dim=-1),
                text=F.normalize(linear(w, "text_proj", text[:, 0]), dim=-1), score=linear(w, "itm_head", fused[:, 0])[:, 1],
                words=F.linear(y, w[f"{head}.decoder.weight"], w[f"{head}.bias"]))


def test_an_imported_checkpoint_computes_what_pytorch_does(weights, tokenizer):
    arrays = {name: x.numpy() for name, x in weights.items()}
    found = albef_format.imported(arrays, tokenizer, "ALBEF.pth")
    assert {name for name, _ in found.left_out} == {"vision_proj_m.weight", "image_queue", "text_queue", "queue_ptr",
                                                    "text_encoder.cls.predictions.decoder.weight"}
    assert found.inputs == dict(vocab_size=VOCAB, context=26, eot=3, image_size=SIZE) and found.objective.mask_id == 4
    config = config_lib.default()
    config.objective, config.model = found.objective, ConfigDict({**found.model, "inputs": found.inputs})
    objective = albef.make(ConfigDict(config.to_dict()))
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (3, SIZE, SIZE, 3), np.uint8)
    words = np.zeros((3, 26), np.int32)
    words[:, 0] = 2
    words[:, 1:6] = rng.integers(5, VOCAB, (3, 5))
    words[0, 4:] = 0
    params = jax.tree.map(jnp.asarray, found.params)
    batch = {"image": jnp.asarray(pixels), "text": jnp.asarray(words)}
    ours = {**objective.heads["embed"](params, {}, batch), **objective.heads["match"](params, {}, batch)}
    mean, std = (torch.tensor(albef_format.PIXELS[k])[None, :, None, None] for k in ("mean", "std"))
    with torch.no_grad():
        want = theirs(weights, (torch.tensor(pixels).permute(0, 3, 1, 2) / 255 - mean) / std, torch.tensor(words, dtype=torch.long))
    for name in ("image", "text", "score"):
        np.testing.assert_allclose(ours[name], want[name].numpy(), rtol=1e-4, atol=1e-4, err_msg=name)
    assert float(params["temperature"]) == pytest.approx(0.05)

    from mcd_jax.methods.albef import fusion_layers
    from mcd_jax.models import towers as towers_lib
    _, tower, _ = towers_lib.tower(found.model, "text", vocab_size=VOCAB, context=26, eot=3)
    built, states = fusion_layers.make(tower, DEPTH - SPLIT, V), objective.heads["states"](params, {}, batch)
    fused = built.fuse(params["fusion"], states["text_states"], batch["text"] != 0, states["image_states"])["tokens"]
    logits = built.words(params["mlm"], params["text"]["token"], fused)
    seen = words != 0
    np.testing.assert_allclose(np.asarray(logits)[seen], want["words"].numpy()[seen], rtol=1e-4, atol=1e-3)


def test_what_does_not_fit_is_refused(weights, tokenizer):
    arrays = {name: x.numpy() for name, x in weights.items()}
    with pytest.raises(ValueError, match="differs from the word table"):
        albef_format.imported({**arrays, "text_encoder.cls.predictions.decoder.weight": np.ones((VOCAB, W), np.float32)}, tokenizer,
                              "x")
    with pytest.raises(ValueError, match=r"missing.*|itm_head"):
        albef_format.imported({k: x for k, x in arrays.items() if k != "itm_head.weight"}, tokenizer, "x")
    with pytest.raises(ValueError, match="is no ALBEF checkpoint"):
        albef_format.imported({"a": np.ones(1)}, tokenizer, "x")
    with pytest.raises(ValueError, match="give bert-base-uncased's"):
        albef_format.load("ALBEF.pth")
