"""Tables read in both directions, and what they refuse, without PyTorch; `tests/peers` has the peers' own models."""
import json

from foreign import INPUTS, MODELS, SIZE, TEXT, VIT, drawn, equal, table
import jax
import jax.numpy as jnp
from ml_collections import ConfigDict
import numpy as np
import pytest

from mcd_jax import config as config_lib
from mcd_jax.convert import clip_rows, files, hf_tokenizer, open_clip, open_clip_config, openai, positions, runs, tables
from mcd_jax.data import tokenizers
from mcd_jax.models import towers, transformer

# ---- tables ----------------------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("name", MODELS)
def test_a_table_is_read_and_written_without_a_loss(name):
    rows, params, model, inputs = table(name)
    theirs = tables.write(rows, params)
    back = tables.read(rows, theirs, runs.abstract(model, inputs))
    equal(back, params)
    equal(tables.write(rows, back), theirs)
    assert all(x.flags.c_contiguous for x in theirs.values())


@pytest.mark.parametrize("name", ["vit", "siglip"])
def test_stacked_blocks_are_the_same_arrays(name):
    rows, params, model, inputs = table(name)
    theirs = tables.write(rows, params)
    scan = {**model, **{kind: {**model[kind], "scan": True} for kind in ("image", "text")}}
    back = tables.read(rows, theirs, runs.abstract(scan, inputs))
    for kind in ("image", "text"):
        equal(back[kind], jax.tree.map(np.asarray, transformer.stacked(params[kind])))
        equal(back[kind], tables.stacked(params[kind]))
    equal(tables.write(rows, back), theirs)


# names of state dicts as the peers write them: mlfoundations/open_clip 89fb801, src/open_clip/transformer.py, modified_resnet.py,
# timm_model.py; huggingface/pytorch-image-models, timm/models/vision_transformer.py, timm/layers/attention_pool.py
THEIRS = {
    "vit": {"visual.conv1.weight": (16, 3, 8, 8), "visual.class_embedding": (16,), "visual.positional_embedding": (5, 16),
            "visual.ln_pre.weight": (16,), "visual.transformer.resblocks.1.attn.in_proj_weight": (48, 16),
            "visual.transformer.resblocks.0.attn.in_proj_bias": (48,),
            "visual.transformer.resblocks.0.attn.out_proj.weight": (16, 16),
            "visual.transformer.resblocks.0.mlp.c_fc.weight": (32, 16),
            "visual.transformer.resblocks.0.mlp.c_proj.weight": (16, 32),
            "visual.transformer.resblocks.0.ln_1.weight": (16,), "visual.ln_post.bias": (16,), "visual.proj": (16, 8),
            "token_embedding.weight": (8192, 16), "positional_embedding": (7, 16), "transformer.resblocks.1.ln_2.bias": (16,),
            "ln_final.weight": (16,), "text_projection": (16, 8), "logit_scale": ()},
    "siglip": {"visual.trunk.patch_embed.proj.weight": (16, 3, 8, 8), "visual.trunk.patch_embed.proj.bias": (16,),
               "visual.trunk.pos_embed": (1, 4, 16), "visual.trunk.blocks.1.attn.qkv.weight": (48, 16),
               "visual.trunk.blocks.0.attn.proj.bias": (16,), "visual.trunk.blocks.0.mlp.fc1.weight": (32, 16),
               "visual.trunk.norm.weight": (16,), "visual.trunk.attn_pool.latent": (1, 1, 16),
               "visual.trunk.attn_pool.kv.weight": (32, 16), "visual.trunk.attn_pool.q.weight": (16, 16),
               "visual.trunk.attn_pool.mlp.fc2.weight": (16, 32), "visual.trunk.attn_pool.norm.bias": (16,),
               "text.text_projection.weight": (16, 16), "text.text_projection.bias": (16,),
               "text.token_embedding.weight": (8192, 16),
               "text.transformer.resblocks.0.attn.in_proj_weight": (48, 16), "logit_bias": ()},
    "resnet": {"visual.conv1.weight": (4, 3, 3, 3), "visual.bn3.running_mean": (8,), "visual.bn1.num_batches_tracked": (),
               "visual.layer2.1.conv2.weight": (16, 16, 3, 3), "visual.layer2.0.downsample.0.weight": (64, 32, 1, 1),
               "visual.layer2.0.downsample.1.running_var": (64,), "visual.attnpool.positional_embedding": (2, 256),
               "visual.attnpool.q_proj.weight": (256, 256), "visual.attnpool.c_proj.weight": (8, 256),
               "visual.attnpool.c_proj.bias": (8,)},
}


@pytest.mark.parametrize("name", THEIRS)
def test_names_and_shapes_are_theirs(name):
    rows, params, _, _ = table(name)
    theirs = {key: x.shape for key, x in tables.write(rows, params).items()}
    assert {key: theirs.get(key) for key in THEIRS[name]} == THEIRS[name]


def test_fused_matrices_lie_as_torch_has_them():
    """in_proj_weight: rows of q, then k, then v, each (out, in); conv1: (out, channel, y, x)."""
    rows, params, _, _ = table("vit")
    theirs = tables.write(rows, params)
    attn, fused = params["image"]["block_1"]["attn"], theirs["visual.transformer.resblocks.1.attn.in_proj_weight"]
    for part, name in enumerate("qkv"):
        for i in range(16):
            for j in range(16):
                assert fused[16 * part + i, j] == attn[name]["kernel"][j, i]
    for y, x, channel in ((0, 0, 0), (3, 5, 2), (7, 1, 1)):
        row = params["image"]["patch"]["kernel"][(y * 8 + x) * 3 + channel]
        assert np.array_equal(theirs["visual.conv1.weight"][:, channel, y, x], row)


def test_their_stacked_blocks_and_heads():
    """A name of theirs without {i} holds all blocks; flax's attention keeps heads apart (big_vision's layout)."""
    rows = [tables.row("t/block_{i}/q/kernel", "q/kernel", tables.heads_out(2)),
            tables.row("t/block_{i}/q/bias", "q/bias", tables.heads_out(2)),
            tables.row("t/block_{i}/out/kernel", "out/kernel", tables.heads_in(2)),
            tables.filled("t/extra", 0.0, "they have none"), tables.constant("t/extra", "version", np.int64(3), "of the file")]
    rng = np.random.default_rng(0)
    params = {"t": {f"block_{i}": {"q": {"kernel": rng.random((4, 4), np.float32), "bias": rng.random(4, np.float32)},
                                   "out": {"kernel": rng.random((4, 4), np.float32)}} for i in range(11)}}
    params["t"]["extra"] = np.zeros(3, np.float32)
    theirs = tables.write(rows, params)
    assert {k: x.shape for k, x in theirs.items()} == {"q/kernel": (11, 4, 2, 2), "q/bias": (11, 2, 2), "out/kernel": (11, 2, 2, 4),
                                                       "version": ()}
    assert np.array_equal(theirs["q/kernel"][10, :, 1, 0], params["t"]["block_10"]["q"]["kernel"][:, 2])
    equal(tables.read(rows, theirs, params), params)
    params["t"]["extra"] = np.ones(3, np.float32)
    with pytest.raises(ValueError, match=r"our t/extra is not 0\.0 everywhere, and they have none"):
        tables.write(rows, params)
    assert tables.left_out(rows) == [("t/extra", "they have none"), ("version", "of the file")]


def test_everything_that_does_not_fit_is_listed():
    rows, params, model, inputs = table("vit")
    theirs = tables.write(rows, params)
    del theirs["visual.ln_post.bias"]
    theirs["visual.proj"] = theirs["visual.proj"][:, :4]
    theirs["transformer.resblocks.0.attn.in_proj_bias"] = theirs["transformer.resblocks.0.attn.in_proj_bias"].astype(np.float64)
    theirs["visual.conv1.weight"] = theirs["visual.conv1.weight"][0]
    theirs["text_projection"] = theirs["text_projection"].astype(np.int32)
    theirs["visual.transformer.resblocks.2.ln_1.weight"] = np.zeros(16, np.float32)
    with pytest.raises(ValueError) as error:
        tables.read(rows, theirs, runs.abstract(model, inputs), "x.safetensors")
    head, _, rest = str(error.value).partition(": ")
    assert head == "x.safetensors does not fit this model (6 mismatches)"
    assert sorted(rest.split("; ")) == sorted([
        "missing: visual.ln_post.bias (for image/ln_post/bias)",
        "wrong shape: visual.proj is (16, 4), this model needs (16, 8)",
        "wrong shape: visual.conv1.weight is (3, 8, 8), this model needs (16, 3, 8, 8)",
        "wrong dtype: transformer.resblocks.0.attn.in_proj_bias is float64, it should be one of float32, float16, bfloat16",
        "wrong dtype: text_projection is int32, it should be one of float32, float16, bfloat16",
        "unexpected: visual.transformer.resblocks.2.ln_1.weight float32 (16,)"])
    with pytest.raises(ValueError, match=r"not in the table: our other \(3,\)"):
        tables.write(rows, {**params, "other": np.zeros(3, np.float32)})
    with pytest.raises(ValueError, match=r"not in the table: our text/position"):
        tables.read([r for r in rows if r.ours != ("text/position",)], tables.write(rows, params), params)
    with pytest.raises(ValueError, match="written twice: logit_scale"):
        tables.write([*rows, tables.row("logit_scale", "logit_scale")], params)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_narrow_floats_are_kept(dtype, tmp_path):
    rows, params, model, inputs = table("vit")
    files.save(tmp_path / "x.safetensors", tables.write(rows, params, dtype))
    theirs = files.load(tmp_path / "x.safetensors")
    assert {x.dtype.name for x in theirs.values()} == {dtype}
    back = tables.read(rows, theirs, runs.abstract(model, inputs))
    equal(tables.write(rows, back, dtype), theirs)
    with pytest.raises(ValueError, match="dtype 'float64' is not one of"):
        tables.write(rows, params, "float64")


# ---- files -----------------------------------------------------------------------------------------------------------------------

def test_damaged_files_are_refused(tmp_path):
    whole = tmp_path / "a.safetensors"
    files.save(whole, {"module.x": np.arange(6.0, dtype=np.float32)})
    assert np.array_equal(files.load(whole)["x"], np.arange(6))
    for name, data in (("b.safetensors", whole.read_bytes()[:-4]), ("c.npz", b"PK\x03\x04"), ("d.safetensors", b"")):
        (tmp_path / name).write_bytes(data)
        with pytest.raises(ValueError, match=f"{name} is no whole"):
            files.load(tmp_path / name)
    np.savez(tmp_path / "e.npz", x=np.array([{}], object))
    with pytest.raises(ValueError, match="no whole npz file of plain arrays"):
        files.load(tmp_path / "e.npz")
    with pytest.raises(ValueError, match=r"ends in \.safetensors, \.npz"):
        (tmp_path / "f.ckpt").write_bytes(b"")
        files.load(tmp_path / "f.ckpt")
    with pytest.raises(FileNotFoundError):
        files.load(tmp_path / "none.npz")


# ---- configs ---------------------------------------------------------------------------------------------------------------------

# mlfoundations/open_clip 89fb801, src/open_clip/model_configs: ViT-B-32-quickgelu, ViT-L-14-CLIPA, ViT-B-32-SigLIP2-256, RN101
CONFIGS = {
    "ViT-B-32-quickgelu": (dict(embed_dim=512, quick_gelu=True,
                                vision_cfg=dict(image_size=224, layers=12, width=768, patch_size=32),
                                text_cfg=dict(context_length=77, vocab_size=49408, width=512, heads=8, layers=12)), 151_277_313),
    "ViT-H-14": (dict(embed_dim=1024, vision_cfg=dict(image_size=224, layers=32, width=1280, head_width=80, patch_size=14),
                      text_cfg=dict(context_length=77, vocab_size=49408, width=1024, heads=16, layers=24)), 986_109_441),
    "ViT-L-14-CLIPA": (dict(embed_dim=768, vision_cfg=dict(image_size=224, layers=24, width=1024, patch_size=14, no_ln_pre=True,
                                                           pool_type="avg", final_ln_after_pool=True),
                            text_cfg=dict(context_length=32, vocab_size=32000, width=768, heads=12, layers=12, pool_type="last",
                                          no_causal_mask=True)), None),
    "ViT-B-32-SigLIP2-256": (
        dict(embed_dim=768, init_logit_bias=-10, custom_text=True,
             vision_cfg=dict(image_size=256, timm_model_name="vit_base_patch32_siglip_256", timm_model_pretrained=False,
                             timm_pool="map", timm_proj="none"),
             text_cfg=dict(context_length=64, vocab_size=256000, width=768, heads=12, layers=12, no_causal_mask=True,
                           proj_bias=True, pool_type="last", norm_kwargs=dict(eps=1e-6),
                           act_kwargs=dict(approximate="tanh"))), None),
    "RN101": (dict(embed_dim=512, vision_cfg=dict(image_size=224, layers=[3, 4, 23, 3], width=64, patch_size=None),
                   text_cfg=dict(context_length=77, vocab_size=49408, width=512, heads=8, layers=12)), None),
}


@pytest.mark.parametrize("name", CONFIGS)
def test_model_configs_there_and_back(name):
    """The number of parameters is that of open_clip's docs/model_profile.csv, where it is short to state."""
    config, count = CONFIGS[name]
    model, inputs = open_clip_config.to_ours(json.loads(json.dumps(config)))
    inputs.setdefault("eot", 1)
    if count:
        assert sum(int(np.prod(x.shape)) for x in jax.tree.leaves(runs.abstract(model, inputs))) == count
    back = open_clip_config.to_theirs(model, inputs)
    again, more = open_clip_config.to_ours(back)
    assert again == model and {"eot": 1, **more} == inputs


def test_what_has_no_class_there_is_refused_by_name():
    emoji_image = dict(name="resnet", widths=(48, 128), depths=(1, 1), stem_patch=4, mask_patch=8)
    emoji_text = dict(name="text", width=192, depth=0, num_heads=3, causal=False, pool="mean")
    with pytest.raises(ValueError) as error:
        open_clip_config.to_theirs(dict(image=emoji_image, text=emoji_text, embed_dim=192), {**INPUTS, "image_size": 48})
    for part in ("image.stem='patch'", "image.norm='layer'", "image.block='basic'", "text.depth=0", "text.pool='mean'",
                 "text.pad_mask"):
        assert f"config.model.{part}" in str(error.value)
    mixed = dict(image=VIT, text=dict(TEXT, act="quick_gelu"), embed_dim=8)
    with pytest.raises(ValueError, match="quick_gelu is one switch for both towers"):
        open_clip_config.to_theirs(mixed, INPUTS)
    with pytest.raises(ValueError, match="open_clip takes attention pooling from timm"):
        open_clip_config.to_theirs(dict(image=dict(VIT, pool="map"), text=TEXT, embed_dim=16), INPUTS)
    with pytest.raises(ValueError, match=r"config\.model\.image\.name='my_lab\.tower'"):
        open_clip_config.to_theirs(dict(image=dict(name="my_lab.tower"), text=TEXT, embed_dim=16), INPUTS)
    for key, options in (("ls_init_value", dict(vision_cfg=dict(ls_init_value=1e-4))),
                         ("embed_cls", dict(text_cfg=dict(embed_cls=True))), ("multimodal_cfg", dict(multimodal_cfg={1: 2})),
                         ("hf_model_name", dict(text_cfg=dict(hf_model_name="roberta-base"))),
                         ("timm_model_name='eva", dict(vision_cfg=dict(timm_model_name="eva_giant_patch14_224")))):
        with pytest.raises(ValueError, match=key):
            open_clip_config.to_ours(dict(dict(embed_dim=8, vision_cfg={}, text_cfg={}), **options))


# ---- positions -------------------------------------------------------------------------------------------------------------------

def slow_bicubic(values, new):
    """One axis of values (n, ...) at `new` places: Keys' cubic with a = -0.5, widened where it shrinks, weights summing to one."""
    old, result = len(values), []
    scale = old / new
    width = max(scale, 1.0)
    for i in range(new):
        centre, weights = (i + 0.5) * scale - 0.5, np.zeros(old)
        for j in range(old):
            t = abs(j - centre) / width
            weights[j] = (1.5 * t ** 3 - 2.5 * t ** 2 + 1 if t < 1 else -0.5 * t ** 3 + 2.5 * t ** 2 - 4 * t + 2 if t < 2 else 0)
        result.append(np.tensordot(weights / weights.sum(), values, 1))
    return np.stack(result)


@pytest.mark.parametrize("prefix, old, new", [(1, 4, 7), (0, 6, 3)])
def test_positions_are_interpolated(prefix, old, new):
    position = np.random.default_rng(0).standard_normal((prefix + old * old, 5)).astype(np.float32)
    got = positions.interpolated(position, prefix + new * new)
    grid = slow_bicubic(position[prefix:].astype(np.float64).reshape(old, old, 5), new)
    want = slow_bicubic(grid.swapaxes(0, 1), new).swapaxes(0, 1).reshape(new * new, 5)
    np.testing.assert_allclose(got[prefix:], want, atol=1e-5)
    assert np.array_equal(got[:prefix], position[:prefix])


# ---- tokenizers ------------------------------------------------------------------------------------------------------------------

def test_tokenizer_files(tmp_path):
    """The file that AutoTokenizer reads gives the same rows through the tokenizers package alone."""
    import tokenizers as package
    tokens = runs.Tokens(12, "emoji", "whitespace")
    hf_tokenizer.write(tokens, tmp_path)
    theirs = package.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    theirs.enable_truncation(12)
    theirs.enable_padding(length=12, pad_id=0, pad_token="<pad>")
    ours = tokenizers.make("emoji", "whitespace")
    texts = ["grinning face with big eyes", "flag: C\u00f4te d\u2019Ivoire", "a " * 40, "\u72ac"]
    assert [row.ids for row in theirs.encode_batch([tokenizers.whitespace(t) for t in texts])] == ours.encode(texts, 12).tolist()
    config = json.loads((tmp_path / "tokenizer_config.json").read_text())
    assert (config["pad_token"], config["eos_token"], config["model_max_length"]) == ("<pad>", "<eot>", 12)
    assert hf_tokenizer.read(tmp_path) == (tmp_path / "tokenizer.json", 0)
    assert hf_tokenizer.read(tmp_path / "none") is None
    hf_tokenizer.write(runs.Tokens(12, "emoji", "whitespace", end=False), tmp_path)
    assert json.loads((tmp_path / "tokenizer_config.json").read_text())["sep_token"] == "<eot>"
    with pytest.raises(ValueError, match="pad is id 5"):
        hf_tokenizer.write(runs.Tokens(12, "emoji", "", 5), tmp_path)
    with pytest.raises(ValueError, match=r"no tokenizer\.json"):
        hf_tokenizer.write(runs.Tokens(12, "clip"), tmp_path)


def test_start_and_end_as_a_file_has_them(tmp_path):
    """A vocabulary with a start token that its post-processor doesn't put (Gemma's), and rows without their end (CLIPA's)."""
    hf_tokenizer.write(runs.Tokens(6, "emoji"), tmp_path)
    stored = json.loads((tmp_path / "tokenizer.json").read_text())
    stored["added_tokens"].append({**stored["added_tokens"][1], "id": 8192, "content": "<bos>"})
    path = tmp_path / "gemma.json"
    path.write_text(json.dumps(stored))
    plain = tokenizers.make("emoji").encode(["dog", "dog face with a long name"], 6)
    assert np.array_equal(tokenizers.make(str(path)).encode(["dog", "dog face with a long name"], 6), plain)
    assert tokenizers.make(str(path)).vocab_size == 8193 and tokenizers.make(str(path)).sot is None
    path = tmp_path / "started.json"
    path.write_text(json.dumps({**stored, "post_processor": None}))
    assert tokenizers.make(str(path)).encode(["dog"], 6)[0, 0] == 8192
    open_end = tokenizers.make("emoji", end=False)
    assert np.array_equal(open_end.encode(["dog", "dog face with a long name"], 6), np.where(plain == 1, 0, plain))
    assert open_end.eot == 1


# ---- models ----------------------------------------------------------------------------------------------------------------------

def test_a_patch_bias_moves_into_the_positions():
    model = dict(MODELS["vit"][0], image=dict(VIT, patch_bias=True))
    params, notes = drawn(model, INPUTS), []
    run = runs.Run("", None, model, INPUTS, params, None, None, 0, "params", {}, [])
    theirs = open_clip.state_dict(run, {}, notes, "float32")
    back = tables.read(clip_rows.rows(MODELS["vit"][0]), theirs, runs.abstract(*MODELS["vit"]))
    pixels = np.random.default_rng(1).integers(0, 256, (2, SIZE, SIZE, 3), np.uint8)
    one, other = (np.asarray(towers.make(m, **INPUTS).image(p, pixels)["raw"])
                  for m, p in ((model, params), (MODELS["vit"][0], back)))
    np.testing.assert_allclose(one, other, rtol=2e-4, atol=2e-4)
    assert len(notes) == 1 and "patch_bias" in notes[0]


def test_openai_reads_its_sizes_off_the_arrays():
    sizes = dict(width=64, mlp_dim=256, num_heads=1, act="quick_gelu")
    model = dict(image=dict(VIT, **sizes), text=dict(TEXT, **sizes, pad_mask=False), embed_dim=8)
    inputs = dict(vocab_size=300, context=5, eot=299, image_size=SIZE)
    params = drawn(model, inputs)
    theirs = tables.write(clip_rows.rows(model), params)
    found, sizes = open_clip_config.to_ours(openai.config_of(theirs, "x"))
    assert sizes == inputs
    theirs["logit_scale"] = theirs["logit_scale"].reshape(1)
    equal(open_clip.imported(found, sizes, theirs, None, None, "x").params, params)
    for missing in ("visual.conv1.weight", "text_projection", "positional_embedding"):
        with pytest.raises(ValueError, match=f"x is no state dict of OpenAI's CLIP: {missing} is missing"):
            openai.config_of({k: x for k, x in theirs.items() if k != missing}, "x")


def test_what_a_config_says_about_texts_and_images():
    config = config_lib.default()
    config.model = ConfigDict(dict(inputs=dict(image_size=32)))
    config.data.views = ConfigDict(dict(image="decode|crop(32, 0.5)",
                                        text="caption('random')|tokenize(9, 'emoji', clean='whitespace')"))
    assert runs.tokens_of(config) == runs.Tokens(9, "emoji", "whitespace", 0)
    assert runs.view_of(config) == runs.View("center", "area")
    config.evals.retrieval = ConfigDict(dict(test=dict(views=dict(image="decode|resize(32, 'bicubic')"))))
    assert runs.view_of(config) == runs.View("resize", "bicubic")
    assert runs.Tokens(77).cleaning == "lower" and runs.Tokens(77, "emoji").cleaning == "plain"


@pytest.mark.parametrize("options", [dict(pool="mean", spare_token=True), dict(pool="class", norm_pooled=True),
                                     dict(pool="mean", spare_token=True, norm_pooled=True)])
def test_clipa_pooling(options):
    """Against the last block's output, normalised and averaged by numpy."""
    model = dict(MODELS["vit"][0], image=dict(VIT, **options))
    params = drawn(model, INPUTS)
    pixels = np.random.default_rng(1).integers(0, 256, (2, SIZE, SIZE, 3), np.uint8)
    out = jax.tree.map(np.asarray, towers.make(model, **INPUTS).image(jax.tree.map(jnp.asarray, params), pixels))
    norm = params["image"]["ln_post"]

    def normed(x):
        x = x - x.mean(-1, keepdims=True)
        return x / np.sqrt((x * x).mean(-1, keepdims=True) + 1e-5) * norm["scale"] + norm["bias"]

    block = out["block_1"].astype(np.float64)
    pool = (lambda x: x[:, 1:].mean(1)) if options["pool"] == "mean" else (lambda x: x[:, 0])
    want = normed(pool(block)) if options.get("norm_pooled") else pool(normed(block))
    np.testing.assert_allclose(out["pooled"], want, atol=1e-4)
    np.testing.assert_allclose(out["tokens"], normed(block[:, 1:]), atol=1e-4)
