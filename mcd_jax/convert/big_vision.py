"""big_vision's two towers (SigLIP; SigLIP 2 at a fixed resolution) as it publishes them: one npz of plain arrays, named by paths.

Names and shapes: google-research/big_vision, models/vit.py (5f95305), models/proj/image_text/text_transformer.py (642c086) and
two_towers.py (0e17d73), utils.py (11eea57). Blocks are one array each (SigLIP) or stacked on a leading axis (scan=True there
and here: SigLIP 2). A folder is model.npz and model.json, which holds what arrays don't tell: the tokenizer, and big_vision's
own config.
"""
import pathlib

import ml_dtypes
import numpy as np

from mcd_jax.convert import files, hf_config, runs, tables
from mcd_jax.convert.tables import first, heads_in, heads_out, patch_hwio, row, same, scalar
from mcd_jax.run import small_files

EXPORTS = IMPORTS = True
WEIGHTS, CONFIG = "model.npz", "model.json"
GEMMA = 256_000   # ids of SigLIP 2's vocabulary; SigLIP's C4 vocabulary has 32,000
SO400M, SIGLIP_384 = (14, 378), 384   # patch and pixels of its grid; what it was trained on (configs/proj/image_text/siglip)
_EXTRA = "params/txt/Encoder_0/pos_embedding"   # of older files, which add positions twice: text_transformer.load sums the two
MUST = dict(image=dict(name="vit", pool="map", position="learned", ln_pre=False, patch_bias=True, act="gelu_tanh", eps=1e-6),
            text=dict(name="text", causal=False, pool="last", pad_mask=False, act="gelu_tanh", eps=1e-6))


def names():
    """What is read and written."""
    return [("two_towers", "vit with a MAP head and text_transformer of any size: SigLIP, SigLIP 2 (not NaFlex)")]


def fits(path):
    """Whether a file or folder is of this format: an npz."""
    return (path / WEIGHTS).is_file() if path.is_dir() else path.suffix == ".npz"


# ---- import ----------------------------------------------------------------------------------------------------------------------

def load(checkpoint, name="", tokenizer=""):
    """An npz as `runs.Imported`.

    Args:
      checkpoint: the npz, or a folder with model.npz.
      name: not needed: sizes are read off the arrays.
      tokenizer: path of the sentencepiece model (or tokenizer.json); "": what model.json beside the npz says.

    Raises:
      FileNotFoundError: no such file. ValueError: another architecture, arrays that don't fit each other, or no tokenizer.
    """
    path = pathlib.Path(checkpoint)
    path = files.find(path, (WEIGHTS,)) if path.is_dir() else path
    arrays, left_out = _params(files.load(path))
    model, inputs = _model(arrays, path)
    inputs["image_size"], notes = _image_size(path.parent, model, inputs["image_size"])
    model = runs.patched(model, inputs["image_size"])
    tokens = _tokens(path.parent, inputs, tokenizer)
    inputs["eot"] = tokens.make().eot
    if tokens.pad:
        inputs["pad"] = tokens.pad
    params = tables.read(_rows(model), arrays, runs.abstract(model, inputs), str(path))
    return runs.Imported(model, inputs, params, tokens, runs.View("resize", "bicubic"), left_out, str(path), positions="linear",
                         notes=notes)


def _params(stored):
    """The arrays under "params/", and what of the file is left out."""
    if not any(name.startswith("params/") for name in stored):   # "when open-sourcing, we often shared only the params" (utils.py)
        stored = {f"params/{name}": x for name, x in stored.items()}
    left_out = [(name, "of the optimizer or the training loop") for name in stored if not name.startswith("params/")]
    arrays = {name: x.view(ml_dtypes.bfloat16) if x.dtype.kind == "V" and x.dtype.itemsize == 2 else x   # as utils.recover_dtype
              for name, x in stored.items() if name.startswith("params/")}
    if _EXTRA in arrays:
        arrays["params/txt/pos_embedding"] = arrays["params/txt/pos_embedding"] + arrays.pop(_EXTRA)
        left_out.append((_EXTRA, "added to params/txt/pos_embedding, as big_vision does"))
    return arrays, left_out


def _model(arrays, where):
    """(`config.model`, inputs less eot and pad) by the arrays' shapes."""
    def shape(name, rank):
        if name not in arrays or arrays[name].ndim != rank:
            what = f"has {arrays[name].ndim} axes, not {rank}" if name in arrays else "is missing"
            raise ValueError(f"{where} is no two_towers checkpoint with a MAP head (SigLIP): {name} {what}")
        return arrays[name].shape

    def tower(prefix):
        scan = f"{prefix}/encoderblock/LayerNorm_0/scale" in arrays
        block = f"{prefix}/encoderblock" + ("" if scan else "_0")
        depth = shape(f"{block}/LayerNorm_0/scale", 2)[0] if scan else len(
            {name[len(prefix):].split("/")[1] for name in arrays if name.startswith(f"{prefix}/encoderblock_")})
        width, heads, _ = shape(f"{block}/MultiHeadDotProductAttention_0/query/kernel", 3 + scan)[scan:]
        mlp = shape(f"{block}/MlpBlock_0/Dense_0/kernel", 2 + scan)[-1]
        return dict(width=width, depth=depth, mlp_dim=mlp, num_heads=heads, **(dict(scan=True) if scan else {}))

    def proj(name):
        return "biased" if f"params/{name}/head/kernel" in arrays else "none"

    shape("params/img/MAPHead_0/probe", 3)
    patch, _, _, width = shape("params/img/embedding/kernel", 4)
    grid = round(shape("params/img/pos_embedding", 3)[1] ** 0.5)
    vocab, _ = shape("params/txt/Embed_0/embedding", 2)
    model = dict(image=dict(MUST["image"], patch_size=patch, proj=proj("img"), **tower("params/img/Transformer")),
                 text=dict(MUST["text"], proj=proj("txt"), **tower("params/txt/Encoder_0")),
                 embed_dim=shape("params/img/head/kernel", 2)[1] if proj("img") == "biased" else width)
    if "params/b" in arrays:
        model["logit_bias"] = 0.0   # its start; the checkpoint's own is read
    return model, dict(vocab_size=vocab, context=shape("params/txt/pos_embedding", 3)[1], image_size=patch * grid)


def _image_size(folder, model, size):
    """(pixels of an image's side, notes): model.json's; of a bare npz `size`, that of the grid, unless it is So400m/14's."""
    patch, stored = model["image"]["patch_size"], folder / CONFIG
    given = small_files.read(stored).get("image_size", size) if stored.is_file() else size
    if given // patch == size // patch:
        size = given
    if stored.is_file() or (patch, size) != SO400M:
        return size, ()
    return SIGLIP_384, ("an npz doesn't say the size of images: a grid of 27 x 27 patches of 14 px is "
                        f"So400m/14's, trained on {SIGLIP_384} px; --image_size={size} if yours was trained on {size}",)


def _tokens(folder, inputs, given):
    stored = folder / CONFIG
    if not given and stored.is_file():
        return runs.Tokens(inputs["context"], **small_files.read(stored)["tokenizer"])
    if not given:
        raise ValueError(f"an npz of big_vision has no tokenizer: give the sentencepiece model as --tokenizer=FILE (SigLIP: its "
                         f"C4 vocabulary of 32,000 ids, SigLIP 2: Gemma's; this one has {inputs['vocab_size']:,})")
    if pathlib.Path(given).suffix not in (".model", ".spm"):
        return runs.Tokens(inputs["context"], str(given))
    # SigLIP pads with its end of text, 1; SigLIP 2 lower-cases only, and pads with 0 ("sticky" ends are cut as ours)
    return runs.Tokens(inputs["context"], str(given), *(("lower", 0) if inputs["vocab_size"] == GEMMA else ("canonical", 1)))


# ---- export ----------------------------------------------------------------------------------------------------------------------

def save(run, folder, dtype="float32"):
    """Writes a run's folder; see the package's docstring. Returns notes.

    Raises:
      ValueError: towers that big_vision's two_towers doesn't have, by name.
    """
    folder = pathlib.Path(folder)
    towers = {kind: hf_config.options(run.model, kind, run.inputs) for kind in ("image", "text")}
    wrong = [f"config.model.{kind}.{key}={towers[kind].get(key)!r}, not {value!r}"
             for kind, must in MUST.items() for key, value in must.items() if towers[kind].get(key) != value]
    wrong += [f"config.model.image.{key}={value!r}, not False" for key, value in towers["image"].items()
              if key in ("spare_token", "norm_pooled") and value]
    wrong += [f"config.model.{kind}.proj='linear', not 'biased' or 'none'" for kind in MUST if towers[kind].get("proj") == "linear"]
    wrong += [f"config.model.{key}={run.model.get(key)}, not 0.5" for key in ("mean", "std")
              if np.any(np.asarray(run.model.get(key, 0.5)) != 0.5)]
    if wrong:
        raise ValueError("big_vision's two_towers has no class for this model: " + "; ".join(wrong))
    arrays = tables.write(_rows(run.model), run.params, dtype)
    heads = {kind: run.model["embed_dim"] if tower["proj"] == "biased" else None for kind, tower in towers.items()}
    keys = ("width", "depth", "mlp_dim", "num_heads", "scan")
    sizes = {kind: {key: tower[key] for key in keys} for kind, tower in towers.items()}
    image = dict(sizes["image"], patch_size=[towers["image"]["patch_size"]] * 2, pool_type="map")
    text = dict(sizes["text"], vocab_size=run.inputs["vocab_size"], pool_type="last")
    bias = {"bias_init": run.model["logit_bias"]} if run.model.get("logit_bias") is not None else {}
    files.save_json(folder / CONFIG, {
        "model_name": "proj.image_text.two_towers",
        "model": dict(image=image, text=text, out_dim=[heads["image"], heads["text"]], **bias),
        "image_size": run.inputs["image_size"], "context": run.inputs["context"],
        "tokenizer": {key: value for key, value in run.tokens._asdict().items() if key != "context"}})
    np.savez(folder / WEIGHTS, **arrays)
    return ["the file holds parameters, not the pipeline: big_vision's own 'resize' is bilinear without antialiasing, ours is "
            f"{run.view.op} {run.view.method}; pixels go in as value_range(-1, 1)"]


def usage(folder):
    """Lines of Python that load a folder, in a clone of big_vision."""
    return ("import json\n\nfrom big_vision import utils\nfrom big_vision.models.proj.image_text import two_towers\n\n"
            f'model = two_towers.Model(**json.load(open("{folder}/{CONFIG}"))["model"])\n'
            f'params = utils.load_params("{folder}/{WEIGHTS}")\n'
            "# image: float32 (batch, height, width, 3) in [-1, 1], transparency on white; text: int32 (batch, context)\n"
            'image_features, text_features, out = model.apply({"params": params}, image, text)\n')


def peer(checkpoint, name=""):
    """big_vision is no installable package."""
    raise ValueError("big_vision can't be installed from a registry, so there is nothing to check against; "
                     "tests/peers/test_convert_bv.py compares with an independent forward pass")


# ---- the table -------------------------------------------------------------------------------------------------------------------

def _rows(model):
    return rows(model["image"]["num_heads"], model["text"]["num_heads"], *(bool(model[k].get("scan")) for k in ("image", "text")))


def rows(image_heads, text_heads, image_stacked=False, text_stacked=False):
    """Rows between our parameters and big_vision's, for that many attention heads; stacked: blocks on a leading axis."""
    image, text = "params/img", "params/txt"
    return [
        row("image/patch/kernel", f"{image}/embedding/kernel", patch_hwio),
        row("image/patch/bias", f"{image}/embedding/bias"),
        row("image/position", f"{image}/pos_embedding", first),
        *_encoder("image", f"{image}/Transformer", image_heads, image_stacked),
        *_norm("image/ln_post", f"{image}/Transformer/encoder_norm"),
        row("image/pool/probe", f"{image}/MAPHead_0/probe"),
        *_attention("image/pool/attn", f"{image}/MAPHead_0/MultiHeadDotProductAttention_0", image_heads),
        *_norm("image/pool/ln", f"{image}/MAPHead_0/LayerNorm_0"),
        *_mlp("image/pool/mlp", f"{image}/MAPHead_0/MlpBlock_0"),
        *_dense("image/proj", f"{image}/head"),
        row("text/token", f"{text}/Embed_0/embedding"),
        row("text/position", f"{text}/pos_embedding", first),
        *_encoder("text", f"{text}/Encoder_0", text_heads, text_stacked),
        *_norm("text/ln_final", f"{text}/Encoder_0/encoder_norm"),
        *_dense("text/proj", f"{text}/head"),
        row("logit_scale", "params/t", scalar),
        row("logit_bias", "params/b", scalar),
    ]


def _encoder(ours, theirs, heads, stacked):
    block, layer = f"{ours}/block_{{i}}", f"{theirs}/encoderblock" + ("" if stacked else "_{i}")
    return [*_norm(f"{block}/ln1", f"{layer}/LayerNorm_0"), *_norm(f"{block}/ln2", f"{layer}/LayerNorm_1"),
            *_attention(f"{block}/attn", f"{layer}/MultiHeadDotProductAttention_0", heads),
            *_mlp(f"{block}/mlp", f"{layer}/MlpBlock_0")]


def _attention(ours, theirs, heads):
    rows = []
    for name, their_name in (("q", "query"), ("k", "key"), ("v", "value")):
        rows += [row(f"{ours}/{name}/kernel", f"{theirs}/{their_name}/kernel", heads_out(heads)),
                 row(f"{ours}/{name}/bias", f"{theirs}/{their_name}/bias", heads_out(heads))]
    return [*rows, row(f"{ours}/out/kernel", f"{theirs}/out/kernel", heads_in(heads)),
            row(f"{ours}/out/bias", f"{theirs}/out/bias")]


def _mlp(ours, theirs):
    return [*_dense(f"{ours}/in", f"{theirs}/Dense_0"), *_dense(f"{ours}/out", f"{theirs}/Dense_1")]


def _norm(ours, theirs):
    return [row(f"{ours}/scale", f"{theirs}/scale", same), row(f"{ours}/bias", f"{theirs}/bias", same)]


def _dense(ours, theirs):
    return [row(f"{ours}/kernel", f"{theirs}/kernel", same), row(f"{ours}/bias", f"{theirs}/bias", same)]
