"""Imported open_clip and OpenAI models give the peer's features; exported ones are loaded by the peer and give ours.

Every model here has random weights. Small ones are real model configs of open_clip with fewer blocks and narrower; timm's SigLIP
towers have fixed sizes, so small ones are registered with timm (and with our table) for the test.
"""
import copy
import json
import re

import jax
import numpy as np
import open_clip as package
from open_clip.model import CLIP, CustomTextCLIP
import pytest
from safetensors.torch import save_file
import timm
from timm.models.vision_transformer import VisionTransformer
import torch

from mcd_jax.convert import __main__ as cli
from mcd_jax.convert import files, hf_tokenizer, open_clip, open_clip_config, openai, peers, runs, tables
from mcd_jax.data import tokenizers

TOLERANCE = 1e-4   # of a feature row, relative to its norm, float32


def shrink(name, vision=None, text=None, **more):
    config = copy.deepcopy(package.get_model_config(name))
    config["vision_cfg"] |= vision or {}
    config["text_cfg"] |= text or {}
    return config | more


_SMALL = dict(width=128, heads=2, layers=2, context_length=12)
_EMOJI = dict(vocab_size=8192, hf_tokenizer_name="x", context_length=12)   # read with the embedded tokenizer
_SMALL_VIT = dict(width=128, layers=2, image_size=64)


def register(name, **options):
    """A small SigLIP tower under a name of its own, in timm and in our table."""
    sizes = dict(patch_size=16, embed_dim=96, depth=2, num_heads=3, mlp_ratio=4.0, img_size=64, act_layer="gelu") | options

    def make(pretrained=False, pretrained_cfg=None, pretrained_cfg_overlay=None, **given):
        assert given["global_pool"] == "map"
        return VisionTransformer(class_token=False, global_pool="map", num_classes=given["num_classes"], **sizes)
    make.__name__ = name
    make.__module__ = "timm.models.vision_transformer"
    timm.models._registry._model_entrypoints[name] = make
    open_clip_config.SIGLIP[name] = open_clip_config.Timm(
        sizes["embed_dim"], sizes["depth"], sizes["num_heads"], int(sizes["embed_dim"] * sizes["mlp_ratio"]), sizes["patch_size"],
        sizes["img_size"], sizes["act_layer"])


register("vit_small_siglip_test")
register("vit_odd_siglip_test", patch_size=8, embed_dim=64, num_heads=4, depth=3, mlp_ratio=3.7362, act_layer="gelu_tanh",
         img_size=32)
_TIMM = dict(timm_model_name="vit_small_siglip_test", image_size=64)
_ODD = dict(timm_model_name="vit_odd_siglip_test", image_size=32)
_SIGLIP = dict(width=96, heads=3, layers=2, **_EMOJI)
_SIGLIP_ODD = dict(width=64, heads=4, layers=2, mlp_ratio=3.7362, **_EMOJI)

SMALL = {
    "ViT-B-32": shrink("ViT-B-32", _SMALL_VIT, _SMALL, embed_dim=64),
    "ViT-B-16": shrink("ViT-B-16", dict(_SMALL_VIT, layers=3, width=192), dict(_SMALL, layers=1), embed_dim=48),
    "ViT-B-16-quickgelu": shrink("ViT-B-16-quickgelu", _SMALL_VIT, _SMALL, embed_dim=64),
    "ViT-H-14": shrink("ViT-H-14", dict(width=160, layers=2, image_size=56), _SMALL, embed_dim=64),
    "ViT-bigG-14": shrink("ViT-bigG-14", dict(width=208, layers=2, image_size=56), _SMALL, embed_dim=64),
    "ViT-L-14-CLIPA": shrink("ViT-L-14-CLIPA", dict(width=128, layers=2, image_size=56),
                             dict(_SMALL, **_EMOJI), embed_dim=64),
    "ViT-H-14-worldwide": shrink("ViT-H-14-worldwide", dict(width=160, layers=2, image_size=56), dict(_SMALL, **_EMOJI, eos_id=1),
                                 embed_dim=64),
    "RN50": shrink("RN50", dict(width=16, layers=[1, 2, 1, 1], image_size=64, head_width=64), _SMALL, embed_dim=64),
    "RN101": shrink("RN101", dict(width=32, layers=[1, 1, 3, 2], image_size=96), _SMALL, embed_dim=32),
    "ViT-B-16-SigLIP": shrink("ViT-B-16-SigLIP", _TIMM, _SIGLIP, embed_dim=96),
    "ViT-SO400M-14-SigLIP": shrink("ViT-SO400M-14-SigLIP", _ODD, _SIGLIP_ODD, embed_dim=64),
    "ViT-B-16-SigLIP2": shrink("ViT-B-16-SigLIP2", _TIMM, _SIGLIP, embed_dim=96),
    "ViT-gopt-16-SigLIP2-256": shrink("ViT-gopt-16-SigLIP2-256", _ODD, dict(_SIGLIP_ODD, width=128), embed_dim=64),
}


def build(config, seed=0):
    """Their model with every parameter and statistic random, so that no row of a table can be mistaken for another."""
    config = copy.deepcopy(config)
    custom = config.pop("custom_text", False)
    model = (CustomTextCLIP if custom else CLIP)(**config)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, x in model.state_dict().items():
            if x.is_floating_point():
                noise = torch.randn(x.shape, generator=generator)
                around = float(x.ndim == 1 and not name.endswith("bias"))   # scales and variances about 1
                small = 0.1 * noise if x.ndim <= 1 else noise * (x[0].numel() if x.ndim > 1 else 1) ** -0.5
                x.copy_((around + small).abs() if name.endswith("var") else around + small if name.endswith("weight") else small)
        model.logit_scale.fill_(2.5)
    return model.eval()


def save(model, config, folder):
    folder.mkdir()
    files.save_json(folder / open_clip.CONFIG, {"model_cfg": config, "preprocess_cfg": {}})
    save_file({k: x.contiguous() for k, x in model.state_dict().items()}, folder / open_clip.WEIGHTS)
    if "hf_tokenizer_name" in config["text_cfg"]:
        end = not config["text_cfg"].get("tokenizer_kwargs", {}).get("strip_sep_token", False)
        hf_tokenizer.write(runs.Tokens(12, "emoji", "whitespace", end=end), folder)
    return folder


def inputs(model, config, count=5):
    size = config["vision_cfg"]["image_size"]
    rng = np.random.default_rng(3)
    pixels = rng.integers(0, 256, (count, size, size, 3), np.uint8)
    captions = ["grinning face", "a red apple", "flag: France", "dog", "woman running in the park at night"]
    name = "emoji" if "hf_tokenizer_name" in config["text_cfg"] else "clip"
    return pixels, tokenizers.make(name).encode(captions[:count], config["text_cfg"]["context_length"])


def same(params, model_config, sizes, theirs, pixels, tokens):
    """Features within the tolerance, and the same ranking of captions for each image and of images for each caption."""
    run = runs.Run("", None, model_config, sizes, params, runs.Tokens(12), runs.View(), 0, "params", {}, [])
    ours, peer = peers.of_run(run), peers.of_open_clip(theirs, None, None)
    image, text, seen = ours.image(pixels), ours.text(tokens), ours.normalised(pixels)
    their_image, their_text = peer.image(seen), peer.text(tokens)
    assert peers.relative(image, their_image) < TOLERANCE and peers.relative(text, their_text) < TOLERANCE
    one = peers.logits(image, text, ours.scale, ours.bias)
    other = peers.logits(their_image, their_text, peer.scale, peer.bias)
    assert np.array_equal(one.argsort(1), other.argsort(1)) and np.array_equal(one.argsort(0), other.argsort(0))
    np.testing.assert_allclose(one, other, atol=1e-3)


def exact(a, b):
    a, b = ({k: x.numpy() for k, x in m.state_dict().items()} if hasattr(m, "state_dict") else m for m in (a, b))
    assert a.keys() == b.keys()
    for key in a:
        assert a[key].dtype == b[key].dtype and a[key].tobytes() == b[key].tobytes() and a[key].shape == b[key].shape, key


@pytest.mark.parametrize("name", SMALL)
def test_small_models_both_ways(name, tmp_path):
    config = SMALL[name]
    theirs = build(config)
    imported = open_clip.load(save(theirs, config, tmp_path / "theirs"))
    trained = {key for key, x in theirs.named_parameters() if x.requires_grad}
    assert len(imported.notes) == ("visual.positional_embedding" not in trained and "visual.positional_embedding" in
                                   theirs.state_dict())                       # positions that they never train are said
    pixels, tokens = inputs(theirs, config)
    same(imported.params, imported.model, imported.inputs, theirs, pixels, tokens)
    out = tmp_path / "out"
    out.mkdir()
    assert not open_clip.save(run_of(imported), out)
    exact(theirs, files.load(out / open_clip.WEIGHTS))                        # export(import(x)) is x
    loaded = package.create_model_and_transforms(f"local-dir:{out}")[0].eval()    # strict: every name is theirs
    exact(theirs, loaded)
    with torch.no_grad():
        feed = torch.as_tensor(pixels).permute(0, 3, 1, 2) / 255
        assert torch.equal(theirs.encode_image(feed), loaded.encode_image(feed))
        assert torch.equal(theirs.encode_text(torch.as_tensor(tokens)), loaded.encode_text(torch.as_tensor(tokens)))
    back = open_clip.load(out)                                                # import(export(y)) is y
    assert back.model == imported.model and back.inputs == imported.inputs
    jax.tree.map(np.testing.assert_array_equal, back.params, imported.params)


@pytest.mark.parametrize("name", ["ViT-B-32", "RN50", "ViT-B-16-SigLIP", "ViT-L-14-CLIPA"])
def test_the_commands_both_ways(name, tmp_path):
    config = SMALL[name]
    theirs = build(config)
    folder = save(theirs, config, tmp_path / "theirs")
    work, out = tmp_path / "run", tmp_path / "out"
    cli.main(["import", "--from=open_clip", f"--checkpoint={folder}", f"--out={work}"])
    cli.main(["export", f"--workdir={work}", "--to=open_clip", f"--out={out}"])
    exact(theirs, files.load(out / open_clip.WEIGHTS))
    found = peers.check(work, open_clip, out)
    assert found["tokens"] == 0 and found["pixels"] < 1e-5 and found["other top 1"] == 0
    assert max(found["image"], found["text"]) < TOLERANCE and found["logits"] < 1e-3


def run_of(imported):
    return runs.Run("", None, imported.model, imported.inputs, imported.params, imported.tokens, imported.view, 0, "params", {}, [])


@pytest.mark.parametrize("name", ["ViT-B-32", "RN50", "ViT-B-16-SigLIP-256"])
def test_real_sizes(name, tmp_path):
    config = package.get_model_config(name)
    if "SigLIP" in name:
        config["text_cfg"]["vocab_size"] = 8192   # the embedded tokenizer's
    theirs = build(config)
    weights = tmp_path / "weights.safetensors"
    save_file({k: x.contiguous() for k, x in theirs.state_dict().items()}, weights)
    arrays = files.load(weights)
    model, sizes = open_clip_config.to_ours(config, (0.5,) * 3, (0.5,) * 3)
    sizes.setdefault("eot", 1)
    got = open_clip.imported(model, sizes, arrays, None, None, str(weights))
    pixels, tokens = inputs(theirs, config, 4)
    same(got.params, model, sizes, theirs, pixels, tokens)
    exact(theirs, open_clip.state_dict(run_of(got), open_clip_config.to_theirs(model, sizes), [], "float32"))


@pytest.mark.parametrize("name, half", [("ViT-B-16-quickgelu", False), ("ViT-B-16-quickgelu", True), ("RN50", True),
                                        ("RN101", True)])
def test_openai_state_dicts(name, half, tmp_path):
    """As OpenAI's files: torch pickles, half precision where theirs is; the program finds the sizes in the arrays.

    Both OpenAI's loader and open_clip's round to half precision whatever they are given, so weights that are wider come near only.
    """
    config = shrink(name, SMALL[name]["vision_cfg"], dict(SMALL[name]["text_cfg"]), embed_dim=64, quick_gelu=True)
    theirs = build(config)
    if half:
        package.model.convert_weights_to_fp16(theirs)
    path, out = tmp_path / "weights.pt", tmp_path / "out"
    torch.save({"state_dict": theirs.state_dict() | {"input_resolution": torch.tensor(64)}}, path)
    imported, theirs = openai.load(path), theirs.float()
    assert imported.model["image"]["act"] in ("quick_gelu", "relu") and imported.model["text"]["act"] == "quick_gelu"
    pixels, tokens = inputs(theirs, config)
    same(imported.params, imported.model, imported.inputs, theirs, pixels, tokens)
    out.mkdir()
    assert [note[:20] for note in openai.save(run_of(imported), out)] == ["texts have 12 tokens"]
    exact(theirs, files.load(out / "model.safetensors"))
    loaded = package.load_openai_model(str(out / "model.pt"), precision="fp32", device="cpu").state_dict()
    for key, x in theirs.state_dict().items():
        assert torch.allclose(loaded[key], x, rtol=0 if half else 1e-3, atol=0 if half else 1e-6), key


def test_positions_are_interpolated_as_theirs(tmp_path):
    config = SMALL["ViT-B-16"]
    theirs = build(config)
    folder, work = save(theirs, config, tmp_path / "theirs"), tmp_path / "run"
    for size in (96, 32):
        resized = package.create_model(f"local-dir:{folder}", force_image_size=size).eval()
        imported = runs.resized(open_clip.load(folder), size)
        big = copy.deepcopy(config)
        big["vision_cfg"]["image_size"] = size
        pixels, tokens = inputs(resized, big)
        same(imported.params, imported.model, imported.inputs, resized, pixels, tokens)
    cli.main(["import", "--from=open_clip", f"--checkpoint={folder}", f"--out={work}", "--image_size=96"])
    assert runs.open_run(work).inputs["image_size"] == 96


def test_bfloat16_weights_load(tmp_path):
    config = SMALL["ViT-B-32"]
    folder, work, out = save(build(config), config, tmp_path / "theirs"), tmp_path / "run", tmp_path / "out"
    cli.main(["import", "--from=open_clip", f"--checkpoint={folder}", f"--out={work}"])
    cli.main(["export", f"--workdir={work}", "--to=open_clip", f"--out={out}", "--dtype=bfloat16"])
    found = peers.check(work, open_clip, out)
    assert found["pixels"] < 1e-5 and found["tokens"] == 0 and 1e-4 < found["image"] < 3e-2


def test_wrong_checkpoints_are_refused(tmp_path):
    config, other = SMALL["ViT-B-32"], SMALL["ViT-B-16"]
    theirs = build(other)
    folder, out = save(theirs, config, tmp_path / "theirs"), tmp_path / "run"
    arguments = ["import", "--from=open_clip", f"--checkpoint={folder}", f"--out={out}"]
    with pytest.raises(SystemExit) as error:
        cli.main(arguments)
    assert "wrong shape: visual.conv1.weight is (192, 3, 16, 16), this model needs (128, 3, 32, 32)" in str(error.value)
    assert re.search(r"; and \d+ more", str(error.value))
    whole = build(config).state_dict()
    save_file({k: x for k, x in whole.items() if k != "visual.proj"} | {"text_projection": whole["text_projection"].double()},
              folder / open_clip.WEIGHTS)
    with pytest.raises(SystemExit, match=r"(?s)2 mismatches.*missing: visual\.proj.*wrong dtype: text_projection is float64"):
        cli.main(arguments)
    data = (folder / open_clip.WEIGHTS).read_bytes()
    (folder / open_clip.WEIGHTS).write_bytes(data[:len(data) // 2])
    with pytest.raises(SystemExit, match="no whole safetensors file"):
        cli.main(arguments)
    bad = tmp_path / "bad.pt"
    torch.save({"state_dict": {"x": torch.zeros(2)}, "run_me": Foreign()}, bad)
    with pytest.raises(SystemExit, match="weights_only=True"):
        cli.main(["import", "--from=openai", f"--checkpoint={bad}", f"--out={out}"])
    assert not out.exists()


class Foreign:
    """An object whose unpickling would run code."""
    def __reduce__(self):
        return (print, ("unpickled foreign code",))


def test_every_listed_name_builds_in_both():
    """Names and number of parameters of every supported model, by open_clip on the meta device; of like ones the first only."""
    listed = [name for name, _ in open_clip.names()]
    assert len(listed) > 60
    assert {"ViT-B-32", "ViT-L-14-336-quickgelu", "RN50x64", "ViT-gopt-16-SigLIP2-384", "ViT-H-14-CLIPA"} <= {*listed}
    seen = set()
    for name in listed:
        config = package.get_model_config(name)
        like = json.dumps({**config, "quick_gelu": 0, "vision_cfg": {k: v for k, v in config["vision_cfg"].items()
                                                                     if k not in ("image_size", "patch_size")}})
        if like in seen:
            continue
        seen.add(like)
        model, sizes = open_clip_config.to_ours(config)
        sizes.setdefault("eot", 1)
        custom = config.pop("custom_text", False)
        with torch.device("meta"):
            theirs = (CustomTextCLIP if custom else CLIP)(**config)
        for kind in ("image", "text"):
            if model[kind]["name"] != "resnet":
                model[kind]["scan"] = True   # traced in a moment
        shapes = tables._unstacked(tables.flat(runs.abstract(model, sizes)), lambda x: np.broadcast_to(np.int8(0), x.shape))
        rows = open_clip.clip_rows.rows(model, "text." if custom else "", open_clip._timm(model))
        lines = list(tables._lines(rows, {path: x.shape for path, x in shapes.items()}))
        assert {n for line in lines for n in line.theirs} == {*theirs.state_dict()}, name
        assert sum(x.numel() for x in theirs.parameters()) == sum(
            x.size for path, x in shapes.items() if not path.endswith(("/mean", "/var"))), name


def test_the_view_is_open_clips_to_the_last_bit(tmp_path):
    """Bicubic center and resize against open_clip's transforms, on odd sizes and both ways of resize_mode."""
    import io

    import PIL.Image

    from mcd_jax.data import pipeline
    rng = np.random.default_rng(0)
    images = []
    for h, w in ((50, 91), (64, 64), (33, 20), (48, 48), (200, 127), (301, 640)):
        smooth = PIL.Image.fromarray(rng.integers(0, 256, (h // 8 + 1, w // 8 + 1, 3), np.uint8)).resize((w, h), PIL.Image.BICUBIC)
        for kind in ("PNG", "JPEG"):
            data = io.BytesIO()
            smooth.save(data, kind)
            images.append(data.getvalue())
    for mode, op in (("shortest", "center"), ("squash", "resize")):
        transform = package.image_transform(48, is_train=False, mean=(0.0,) * 3, std=(1.0,) * 3, resize_mode=mode)
        views = pipeline.Views({"image": f"decode|{op}(48, 'bicubic')"})
        ours = next(pipeline.sequential(peers._Images(images), views, len(images)))["image"]
        want = torch.stack([transform(PIL.Image.open(io.BytesIO(x))) for x in images]).permute(0, 2, 3, 1).numpy() * 255
        assert np.abs(ours - want).max() < 1e-3


def test_a_name_of_the_package_and_a_bare_file(tmp_path):
    """--model with a file of weights of that model; refused for another model's weights by the whole list."""
    theirs = build(shrink("ViT-S-32", dict(layers=12)))
    weights = tmp_path / "weights.safetensors"
    save_file({k: x.contiguous() for k, x in theirs.state_dict().items()}, weights)
    imported = open_clip.load(weights, "ViT-S-32")
    assert imported.view == runs.View("center", "bicubic") and imported.tokens == runs.Tokens(77)
    with pytest.raises(ValueError, match=r"wrong shape: visual.conv1.weight is \(384, 3, 32, 32\), this model needs"):
        open_clip.load(weights, "ViT-S-16")
    assert json.loads((open_clip._package_configs() / "ViT-S-32.json").read_text())["embed_dim"] == imported.model["embed_dim"]
