"""Hugging Face models in and out: features, ranking, the weights bit for bit, tokens, pixels and refusals, beside transformers."""
import io
import json

from converting import CAPTIONS, CLIP, SIGLIP, as_run, our_run, trained, unrolled
import numpy as np
import PIL.Image
import pytest
from safetensors.numpy import load_file, save_file
import sentencepiece
from test_tokenizers import HOSTILE
import torch
import transformers
from transformers import AutoTokenizer, CLIPConfig, CLIPModel, CLIPProcessor, SiglipConfig, SiglipModel, SiglipProcessor

from mcd_jax.convert import __main__ as command
from mcd_jax.convert import hf, hf_autotokenizer, peers, runs, tables
from mcd_jax.data import tokenizers
from mcd_jax.data.emoji import names as emoji_names
from mcd_jax.data.sources import emoji

torch.set_num_threads(1)



def sizes(width, mlp, layers, heads):
    return dict(hidden_size=width, intermediate_size=mlp, num_hidden_layers=layers, num_attention_heads=heads)


# two sizes of each family; every activation and norm that the class has
SIZES = {
    "clip small": (CLIPModel, CLIPConfig(
        text_config=dict(sizes(32, 64, 2, 4), hidden_act="quick_gelu"),
        vision_config=dict(sizes(48, 96, 2, 3), image_size=32, patch_size=8, hidden_act="quick_gelu"), projection_dim=24)),
    "clip larger": (CLIPModel, CLIPConfig(
        text_config=dict(sizes(64, 200, 3, 2), hidden_act="gelu", layer_norm_eps=1e-3, vocab_size=8192, max_position_embeddings=12,
                         eos_token_id=1, bos_token_id=None, pad_token_id=0),
        vision_config=dict(sizes(96, 128, 4, 6), image_size=42, patch_size=14, hidden_act="gelu_pytorch_tanh", layer_norm_eps=1e-4),
        projection_dim=40)),
    "siglip small": (SiglipModel, SiglipConfig(
        text_config=dict(sizes(32, 64, 2, 4), vocab_size=8192, max_position_embeddings=12, projection_size=48),
        vision_config=dict(sizes(48, 96, 2, 3), image_size=32, patch_size=8))),
    "siglip larger": (SiglipModel, SiglipConfig(
        text_config=dict(sizes(64, 130, 3, 2), vocab_size=8192, max_position_embeddings=16, hidden_act="gelu", layer_norm_eps=1e-4),
        vision_config=dict(sizes(64, 200, 4, 4), image_size=42, patch_size=14, hidden_act="gelu"))),
}


def randomise(model, seed=0):
    """Every parameter random: biases and scales of a fresh model are zeros and ones, which would hide a swapped row."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, x in model.named_parameters():
            if name not in ("logit_scale", "logit_bias"):
                x.add_(torch.randn(x.shape, generator=generator) * (0.1 if x.ndim == 1 else 0.05))
    if hasattr(model, "logit_bias"):
        model.logit_scale.data.fill_(2.3)
        model.logit_bias.data.fill_(-9.5)
    return model.eval()


@pytest.fixture(scope="module", params=SIZES)
def theirs(request, tmp_path_factory):
    """(folder with the weights of a random peer model, the model, the tokenizer we read it with)."""
    cls, config = SIZES[request.param]
    torch.manual_seed(0)
    model = randomise(cls(config))
    folder = tmp_path_factory.mktemp("theirs")
    model.save_pretrained(folder)
    return folder, model, "" if config.text_config.vocab_size == 49408 else str(tokenizers.EMOJI)


def features(module, images, ids):
    with torch.no_grad():
        image = module.get_image_features(torch.as_tensor(images)).pooler_output.numpy()
        return image, module.get_text_features(torch.as_tensor(ids.astype(np.int64))).pooler_output.numpy()


def test_random_weights_give_the_same_features_and_ranking(theirs):
    folder, model, tokenizer = theirs
    imported = hf.load(folder, "", tokenizer)
    ours = peers.of_run(as_run(imported))
    size = imported.inputs["image_size"]
    pixels = np.random.default_rng(0).integers(0, 256, (9, size, size, 3), np.uint8)
    ids = ours.tokens(CAPTIONS)
    image, text = ours.image(pixels), ours.text(ids)
    want_image, want_text = features(model, ours.normalised(pixels), ids)
    assert peers.relative(image, want_image) <= 1e-4 and peers.relative(text, want_text) <= 1e-4
    with torch.no_grad():
        out = model(input_ids=torch.as_tensor(ids.astype(np.int64)), pixel_values=torch.as_tensor(ours.normalised(pixels)))
    logits = peers.logits(image, text, ours.scale, ours.bias)
    np.testing.assert_allclose(logits, out.logits_per_image.numpy(), atol=2e-4)
    np.testing.assert_array_equal(np.argsort(logits, axis=1), np.argsort(out.logits_per_image.numpy(), axis=1))


def test_export_of_import_is_theirs_bit_for_bit(theirs, tmp_path):
    folder, model, tokenizer = theirs
    hf.save(as_run(hf.load(folder, "", tokenizer)), tmp_path)
    before, after = load_file(folder / hf.WEIGHTS), load_file(tmp_path / hf.WEIGHTS)
    assert before.keys() == after.keys() == model.state_dict().keys()
    for name, x in before.items():
        assert x.dtype == after[name].dtype == np.float32 and x.shape == after[name].shape
        assert x.tobytes() == after[name].tobytes(), name
    again = type(model).from_pretrained(tmp_path)   # by its own config.json
    for part in ("text_config", "vision_config"):
        old, new = (getattr(m.config, part).to_dict() for m in (model, again))
        ids = ("bos_token_id", "pad_token_id", *(("eos_token_id",) if isinstance(model, SiglipModel) else ()))
        skip = {"dtype", "architectures", "transformers_version", "_name_or_path", "projection_dim", *ids}
        assert {k: v for k, v in old.items() if k not in skip} == {k: v for k, v in new.items() if k not in skip}


@pytest.mark.parametrize("model, tokens, scan", [(CLIP, runs.Tokens(12, "emoji"), False), (CLIP, runs.Tokens(20), True),
                                                 (SIGLIP, runs.Tokens(12, "emoji"), True)], ids=["clip emoji", "clip", "siglip"])
def test_import_of_export_is_ours(tmp_path, model, tokens, scan):
    run = our_run(model, tokens, scan=scan)
    hf.save(run, tmp_path)
    back = hf.load(tmp_path)
    before, after = tables.flat(unrolled(run.params)), tables.flat(back.params)
    assert before.keys() == after.keys()
    for path, x in after.items():
        assert np.asarray(before[path]).tobytes() == x.tobytes(), path
    assert (back.tokens, back.view, back.inputs) == (run.tokens, run.view, run.inputs)
    for key in ("mean", "std"):
        np.testing.assert_array_equal(back.model[key], np.broadcast_to(run.model.get(key, 0.5), 3))
    pixels = np.random.default_rng(0).integers(0, 256, (3, 32, 32, 3), np.uint8)
    one, two = peers.of_run(run), peers.of_run(as_run(back))
    np.testing.assert_allclose(one.image(pixels), two.image(pixels), atol=1e-5)
    np.testing.assert_allclose(one.text(one.tokens(CAPTIONS)), two.text(two.tokens(CAPTIONS)), atol=1e-5)


# ---- a trained run, by the peer's own processor and tokenizer --------------------------------------------------------------------


def photos():
    """Image files of other shapes than the embedded ones: wide, tall, larger, grey, transparent, and a JPEG."""
    rng = np.random.default_rng(3)
    found = []
    shapes = ((40, 70, 3), (91, 64, 3), (200, 160, 3), (33, 31), (50, 50, 4))
    for shape, kind in zip(shapes, ("PNG", "PNG", "JPEG", "PNG", "PNG"), strict=True):
        small = rng.integers(0, 256, (8, 8, *shape[2:]), np.uint8)
        picture = PIL.Image.fromarray(small).resize(shape[1::-1], PIL.Image.Resampling.BICUBIC)
        file = io.BytesIO()
        picture.save(file, kind)
        found.append(file.getvalue())
    return found


@pytest.mark.parametrize("method, model, op", [("clip", CLIP, "center"), ("siglip", SIGLIP, "resize")])
def test_a_trained_run_answers_alike_from_the_same_files_and_captions(tmp_path, method, model, op):
    workdir = trained(tmp_path / "run", model, method, view=f"decode|{op}(32, 'bicubic')")
    out = tmp_path / "exported"
    command.main(["export", f"--workdir={workdir}", "--to=hf", f"--out={out}"])
    images, captions = peers.examples(24)
    run = runs.open_run(workdir)
    assert (run.view.op, run.view.method) == (op, "bicubic")
    ours, theirs = peers.of_run(run), hf.peer(out)
    found = peers.compare(ours, theirs, images + photos(), captions)
    assert found["pixels"] <= 1e-6 and found["tokens"] == 0, found
    assert max(found["image"], found["text"]) <= 1e-4 and found["logits"] <= 1e-3 and found["other top 1"] == 0, found

    # one call of the peer's processor, without any code of ours
    cls, processor = ((CLIPModel, CLIPProcessor) if method == "clip" else (SiglipModel, SiglipProcessor))
    network, processor = cls.from_pretrained(out).eval(), processor.from_pretrained(out)
    pictures = [PIL.Image.open(io.BytesIO(data)) for data in images]
    batch = processor(text=captions, images=pictures, return_tensors="pt", padding="max_length", truncation=True)
    with torch.no_grad():
        logits = network(**batch).logits_per_image.numpy()
    mine = peers.logits(ours.image(ours.pixels(images)), ours.text(ours.tokens(captions)), ours.scale, ours.bias)
    # its default backend, torchvision, rounds a bicubic pixel to another of 256 levels now and then
    assert np.abs(logits - mine).max() <= 0.02 * np.abs(mine - mine.mean()).max()
    card = (out / "README.md").read_text()
    assert "from_pretrained" in card and "4 of 16 examples" in card


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_weights_are_the_nearest(tmp_path, dtype):
    run = our_run(CLIP, runs.Tokens(12, "emoji"))
    hf.save(run, tmp_path, dtype)
    model = CLIPModel.from_pretrained(tmp_path)
    assert model.dtype == getattr(torch, dtype)
    want = torch.tensor(run.params["text"]["token"]).to(model.dtype)
    assert torch.equal(model.text_model.embeddings.token_embedding.weight.data, want)


# ---- tokens ----------------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def captions():
    """Every third label and tag of the embedded set, in 28 languages, and hostile strings."""
    found = sorted({text for row in emoji.concepts() for text in emoji.texts(row, ("label", "tags"), emoji_names.LANGUAGES)})
    texts = [*found[::31], *(text for text in HOSTILE if text.isprintable() or "\ud800" not in text)]
    return [text for text in texts if not any(0xd800 <= ord(c) < 0xe000 for c in text)]   # lone surrogates are no text for it


MOJIBAKE = ["na\u00c3\u00afve\ncaf\u00e9", "\u00e2\u20ac\u0153hi\n\u00c2\u00a0ho"]   # text decoded by the wrong table
ENTITIES = ["&#0;", "&#x110000;", "&#xD800;"]
SPELLED = ["<end_of_text>", "a<END_OF_TEXT>b", "<start_of_text> hi <|startoftext|>", "&amp;lt;end_of_text&amp;gt;"]


@pytest.mark.parametrize("tokens, differ", [
    (runs.Tokens(12, "emoji"), []), (runs.Tokens(77), [*MOJIBAKE, *ENTITIES, *SPELLED]),
    (runs.Tokens(30, "clip", pad=49407), [*MOJIBAKE, *ENTITIES, *SPELLED]),
    (runs.Tokens(9, "emoji", "canonical"), [*MOJIBAKE, *ENTITIES])], ids=["emoji", "clip", "clip padded by its end", "cleaned"])
def test_autotokenizer_gives_our_ids(tmp_path, captions, tokens, differ):
    hf_autotokenizer.write(tmp_path, tokens, masked=True)
    ours, theirs = tokenizers.make(tokens.name, tokens.clean, tokens.pad), AutoTokenizer.from_pretrained(tmp_path)
    want = ours.encode(captions, tokens.context)
    got = theirs(captions, padding="max_length", truncation=True, return_tensors="np")
    other = [text for text, a, b in zip(captions, want, got["input_ids"], strict=True) if not np.array_equal(a, b)]
    assert sorted(other) == sorted(differ)   # what the module's docstring names, and nothing else
    seen = np.arange(tokens.context)[None] <= (want == ours.eot).argmax(1)[:, None]
    same = [text not in differ for text in captions]
    np.testing.assert_array_equal(got["attention_mask"][same], seen[same])
    assert theirs.decode(theirs("a red heart")["input_ids"], skip_special_tokens=True).strip() == "a red heart"


def test_clips_vocabulary_is_the_published_one():
    import gzip
    import pathlib

    import open_clip
    vocab, merges = hf_autotokenizer.clip_vocabulary()
    file = pathlib.Path(open_clip.__file__).parent / "bpe_simple_vocab_16e6.txt.gz"
    stored = gzip.decompress(file.read_bytes()).decode().split("\n")
    assert merges == [tuple(line.split()) for line in stored[1:49152 - 256 - 2 + 1]]
    assert list(vocab.values()) == list(range(49408)) and vocab["!"] == 0 and vocab["!</w>"] == 256


def test_a_sentencepiece_vocabulary_stays_one(tmp_path, captions):
    small = captions[:400]
    (tmp_path / "texts").write_text("\n".join(small))
    sentencepiece.SentencePieceTrainer.train(input=str(tmp_path / "texts"), model_prefix=str(tmp_path / "own"), vocab_size=900,
                                             character_coverage=1.0, bos_id=-1, pad_id=-1, eos_id=1, unk_id=2,
                                             hard_vocab_limit=False, minloglevel=2)
    tokens = runs.Tokens(16, str(tmp_path / "own.model"), "canonical", 1)
    folder = tmp_path / "siglip"
    folder.mkdir()
    run = our_run(SIGLIP, tokens)
    hf.save(run, folder)
    theirs = AutoTokenizer.from_pretrained(folder)
    plain = [text for text in small if "_" not in text and text == tokenizers.whitespace(text)]   # it repairs nothing
    assert len(plain) > 350
    got = theirs(plain, padding="max_length", truncation=True, return_tensors="np")
    assert type(theirs).__name__ == "SiglipTokenizer" and "attention_mask" not in got
    want = tokenizers.make(tokens.name, tokens.clean, tokens.pad).encode(plain, 16)
    assert [t for t, a, b in zip(plain, want, got["input_ids"], strict=True) if not np.array_equal(a, b)] == []
    back = hf.load(folder)
    assert (back.tokens.clean, back.tokens.pad, back.inputs) == ("canonical", 1, run.inputs)
    with pytest.raises(ValueError, match="SiglipTokenizer"):
        hf_autotokenizer.write(tmp_path, runs.Tokens(16, tokens.name, "lower", 1), masked=False)


# ---- refusals --------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("change, words", [
    (dict(image=dict(CLIP["image"], ln_pre=False)), "image.ln_pre=False, not True"),
    (dict(image=dict(CLIP["image"], pool="mean")), "image.pool='mean', not 'class'"),
    (dict(text=dict(CLIP["text"], causal=False)), "text.causal=False"),
    (dict(logit_bias=-1.0), "logit_bias=-1.0"),
    (dict(image=dict(name="resnet", widths=(8, 8), depths=(1, 1), stem_patch=4, norm="layer")), "image.name='resnet'")])
def test_towers_without_a_class_are_refused_by_name(tmp_path, change, words):
    run = our_run({**CLIP, **change}, runs.Tokens(12, "emoji"))
    with pytest.raises(ValueError, match="transformers has no class for this model") as error:
        hf.save(run, tmp_path)
    assert words in str(error.value) and not any(tmp_path.iterdir())


def test_wrong_checkpoints_are_refused_with_the_list(tmp_path):
    run = our_run(CLIP, runs.Tokens(12, "emoji"))
    hf.save(run, tmp_path)
    file, config = tmp_path / hf.WEIGHTS, tmp_path / hf.CONFIG
    good, stored = load_file(file), config.read_text()
    first = "text_model.encoder.layers.1.mlp.fc1.weight"

    def refused(arrays, *words):
        save_file(arrays, file)
        with pytest.raises(ValueError) as error:
            hf.load(tmp_path)
        assert all(word in str(error.value) for word in words), error.value

    less = {k: v for k, v in good.items() if k not in (first, "logit_scale")}
    refused(less, "2 mismatches", f"missing: {first}", "missing: logit_scale")
    refused({**good, first: good[first][:, 1:].copy()}, f"wrong shape: {first} is (40, 23), this model needs (40, 24)")
    refused({**good, first: good[first].astype(np.int32)}, f"wrong dtype: {first} is int32")
    refused({**good, "extra.weight": good[first]}, "unexpected: extra.weight float32 (40, 24)")
    save_file(good, file)
    file.write_bytes(file.read_bytes()[:-1000])
    with pytest.raises(ValueError, match="no whole safetensors file"):
        hf.load(tmp_path)
    save_file({**good, "text_model.embeddings.position_ids": np.arange(12)[None]}, file)   # of releases before 4.31
    assert [name for name, _ in hf.load(tmp_path).left_out] == ["text_model.embeddings.position_ids"]
    config.write_text(stored.replace('"num_hidden_layers": 2', '"num_hidden_layers": 3'))
    with pytest.raises(ValueError, match=r"missing: (text|vision)_model.encoder.layers.2.*; and \d+ more"):
        hf.load(tmp_path)
    config.write_text(stored.replace('"clip"', '"siglip2"'))
    with pytest.raises(ValueError, match="NaFlex"):
        hf.load(tmp_path)
    config.write_text(stored)
    preprocess = json.loads((tmp_path / hf.PREPROCESS).read_text())
    (tmp_path / hf.PREPROCESS).write_text(json.dumps({**preprocess, "size": {"height": 36, "width": 36}}))
    with pytest.raises(ValueError, match="image_size=32"):
        hf.load(tmp_path)


def test_a_processor_of_theirs_is_understood(tmp_path):
    """What transformers itself saves today (processor_config.json) says the same as what we write."""
    run = our_run(CLIP, runs.Tokens(12, "emoji"), runs.View("center"))
    hf.save(run, tmp_path)
    CLIPProcessor.from_pretrained(tmp_path).save_pretrained(tmp_path)
    (tmp_path / hf.PREPROCESS).unlink()
    back = hf.load(tmp_path)
    assert back.view == run.view and back.tokens.name in ("emoji", str(tmp_path / "tokenizer.json"))
    np.testing.assert_allclose(back.model["mean"], run.model["mean"])


def test_old_configs_pool_at_the_highest_id(tmp_path):
    """OpenAI's files on the hub say eos_token_id=2, which is a sign (modeling_clip.py, transformers 5.23)."""
    config = CLIPConfig(text_config=dict(sizes(16, 32, 1, 2), eos_token_id=2), projection_dim=8,
                        vision_config=dict(sizes(16, 32, 1, 2), image_size=16, patch_size=8))
    model = randomise(CLIPModel(config))
    model.save_pretrained(tmp_path)
    imported = hf.load(tmp_path)
    assert imported.inputs["eot"] == 49407
    ours = peers.of_run(as_run(imported))
    ids = ours.tokens(CAPTIONS)
    _, want = features(model, np.zeros((1, 3, 16, 16), np.float32), ids)
    assert peers.relative(ours.text(ids), want) <= 1e-4
    assert transformers.__version__.split(".")[0] == "5"
