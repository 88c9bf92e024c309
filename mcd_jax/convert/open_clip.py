"""open_clip: its ViT CLIP, CLIPA and SigLIP models and CLIP's ResNets (mlfoundations/open_clip 89fb801, src/open_clip).

A folder is open_clip_config.json ("model_cfg", "preprocess_cfg") and open_clip_model.safetensors, as its factory.py reads with
"local-dir:" or "hf-hub:", and the tokenizer's files where it isn't CLIP's.
"""
import importlib.util
import pathlib

import numpy as np

from mcd_jax.convert import clip_rows, files, hf_tokenizer, open_clip_config, runs, tables
from mcd_jax.convert.open_clip_config import MEAN, STD
from mcd_jax.run import small_files

EXPORTS = IMPORTS = True
REQUIRES = "pip install torch torchvision open_clip_torch"
CONFIG, WEIGHTS = "open_clip_config.json", "open_clip_model.safetensors"
_CLEAN = {"lower": "lower", "whitespace": "whitespace", "canonical": "canonicalize"}   # ours: theirs
_PREPROCESS = {   # of the weights that open_clip lists for such names (pretrained.py); a folder states its own
    "SigLIP": dict(mean=(0.5,) * 3, std=(0.5,) * 3, resize_mode="squash"),
    "CLIPA": dict(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225), interpolation="bilinear", resize_mode="squash")}
_BUFFERS = ("attn_mask", "text.attn_mask")   # older releases stored the causal mask


def names():
    """The model names whose config our towers can express, out of the installed package's; without it, how to name one."""
    folder = _package_configs()
    if folder is None:
        return [("(open_clip is not installed)", "give a folder with open_clip_config.json, or install open_clip for its names")]
    result = []
    for path in sorted(folder.glob("*.json")):
        try:
            model, _ = open_clip_config.to_ours(small_files.read(path))
        except ValueError:
            continue
        image = model["image"]
        size = (f"ViT width {image['width']} depth {image['depth']} patch {image['patch_size']}, pool {image['pool']}"
                if image["name"] == "vit" else f"ResNet {'-'.join(map(str, image['depths']))} width {image['stem_width']}")
        result.append((path.stem, f"{size}, {model['text']['act']}"))
    return result


def fits(path):
    """Whether a file or folder is of this format: its config says so."""
    return ((path if path.is_dir() else path.parent) / CONFIG).is_file()


# ---- import ----------------------------------------------------------------------------------------------------------------------

def load(checkpoint, name="", tokenizer=""):
    """An open_clip model as `runs.Imported`.

    Args:
      checkpoint: a folder with open_clip_config.json and the weights, or a file of weights for the model `name`.
      name: one of `names()`, where the weights have no config beside them.
      tokenizer: path of a tokenizer.json or sentencepiece model; "": CLIP's, or tokenizer.json of the folder.

    Raises:
      FileNotFoundError: no such file. ValueError: no config, a model that our towers can't express, or weights that don't fit it.
    """
    path = pathlib.Path(checkpoint)
    folder = path if path.is_dir() else path.parent
    config, preprocess = _config(path, folder, name)
    model, inputs = open_clip_config.to_ours(config, preprocess.get("mean", MEAN), preprocess.get("std", STD))
    weights = files.find(path, (WEIGHTS, "open_clip_pytorch_model.safetensors", "open_clip_pytorch_model.bin",
                                "model.safetensors")) if path.is_dir() else path
    tokens = _tokens(config["text_cfg"], folder if path.is_dir() else None, tokenizer)
    inputs["pad"] = tokens.pad
    inputs.setdefault("eot", tokens.make().eot)
    view, notes = _view(preprocess)
    arrays = {k: x for k, x in files.load(weights).items() if k not in _BUFFERS}
    result = imported(model, {k: v for k, v in inputs.items() if v or k != "pad"}, arrays, tokens, view, str(weights))
    fixed = config["vision_cfg"].get("pos_embed_type") == "sin_cos_2d"
    return result._replace(left_out=[*result.left_out, *notes], notes=(*result.notes, *([_FIXED] if fixed else [])))


_FIXED = ("open_clip never trains this model's image positions (pos_embed_type=sin_cos_2d): training on from here does, unless "
          "config.optimizer.schedule begins with ('image/position', None)")


def imported(model, inputs, arrays, tokens, view, where):
    """`runs.Imported` of a state dict with CLIP's names."""
    arrays = dict(arrays)
    for key in ("logit_scale", "logit_bias"):   # () or (1,), by their option nonscalar_logit_scale
        if key in arrays and arrays[key].shape == (1,):
            arrays[key] = arrays[key].reshape(())
    prefix = "text." if "text.token_embedding.weight" in arrays else ""
    rows = clip_rows.rows(model, prefix, _timm(model))
    params = tables.read(rows, arrays, runs.abstract(model, inputs), where)
    left_out = [(name, why) for name, why in tables.left_out(rows) if model["image"]["name"] == "resnet"]
    return runs.Imported(model, inputs, params, tokens, view, left_out, where)


def _view(preprocess):
    """(`runs.View`, notes) of their preprocess_cfg."""
    modes = {"shortest": "center", "squash": "resize"}
    mode, interpolation = preprocess.get("resize_mode", "shortest"), preprocess.get("interpolation", "bicubic")
    if mode not in modes:
        raise ValueError(f"preprocess_cfg.resize_mode={mode!r} has no view here: there are {', '.join(modes)}")
    if interpolation == "bicubic":
        return runs.View(modes[mode]), []
    return runs.View(modes[mode], "area"), [("preprocess_cfg.interpolation", f"{interpolation!r}: images are shrunk by averaging "
                                             "areas here, so pixels differ a little")]


def _timm(model):
    return model["image"].get("pool") == "map"


def _config(path, folder, name):
    if name:
        known = _package_configs()
        if known is None:
            raise ValueError(f"--model={name}: its config comes with the open_clip package, which isn't installed; install it, or "
                             f"give a folder with {CONFIG}")
        if not (known / f"{name}.json").is_file():
            raise ValueError(f"--model={name}: open_clip has no model of this name; `formats` lists those that have towers here")
        stored = small_files.read(known / f"{name}.json")
        return stored, next((p for part, p in _PREPROCESS.items() if part in name), {})
    if not (folder / CONFIG).is_file():
        raise ValueError(f"{path}: there is no {CONFIG} beside the weights; say which model it is with --model=NAME")
    stored = small_files.read(folder / CONFIG)
    return stored.get("model_cfg", stored), stored.get("preprocess_cfg") or {}


def _package_configs():
    """The folder of the installed package's model configs, found without importing it (and torch), or None."""
    spec = importlib.util.find_spec("open_clip")
    return pathlib.Path(spec.origin).parent / "model_configs" if spec and spec.origin else None


def _tokens(text_cfg, folder, tokenizer):
    kwargs = dict(text_cfg.get("tokenizer_kwargs") or {})
    hf = text_cfg.get("hf_tokenizer_name", "")
    end = not kwargs.get("strip_sep_token", False)
    if set(kwargs) - {"clean", "strip_sep_token"} or text_cfg.get("tokenizer_mode"):
        raise ValueError(f"text_cfg.tokenizer_kwargs={kwargs}, tokenizer_mode={text_cfg.get('tokenizer_mode')!r}: our tokenizers "
                         "have no such option, so captions would be read differently")
    clean = {theirs: ours for ours, theirs in _CLEAN.items()}[kwargs.get("clean", "whitespace" if hf else "lower")]
    context = text_cfg.get("context_length", 77)
    if not hf and not tokenizer:
        return runs.Tokens(context, "clip", "" if clean == "lower" else clean)
    found = hf_tokenizer.read(folder) if folder else None
    if tokenizer:
        pad = found[1] if found else 1 if clean == "canonical" else 0   # SigLIP's vocabularies pad with their end of text
        return runs.Tokens(context, str(tokenizer), clean, pad, end)
    if found is None:
        raise ValueError(f"this model reads texts with the tokenizer {hf!r}, which isn't beside the weights: give its "
                         "tokenizer.json or sentencepiece model as --tokenizer=FILE")
    return runs.Tokens(context, str(found[0].resolve()), clean, found[1], end)


# ---- export ----------------------------------------------------------------------------------------------------------------------

def save(run, folder, dtype="float32"):
    """Writes a run's folder; see the package's docstring. Returns notes.

    Raises:
      ValueError: a tower, an option or a tokenizer that open_clip doesn't have, by name.
    """
    folder, notes = pathlib.Path(folder), []
    config = open_clip_config.to_theirs(run.model, run.inputs)
    arrays = state_dict(run, config, notes, dtype)
    config["text_cfg"] |= _their_tokenizer(run.tokens, folder, notes)
    if run.view.method != "bicubic":
        notes.append("the run's evaluations shrink images by averaging areas, open_clip's by bicubic interpolation: pixels, and so "
                     "figures, differ a little. The view "
                     f"decode|{run.view.op}({run.inputs['image_size']}, 'bicubic') is open_clip's")
    mean, std = (np.broadcast_to(np.float64(run.model.get(key, 0.5)), 3).tolist() for key in ("mean", "std"))
    files.save_json(folder / CONFIG, {"model_cfg": config, "preprocess_cfg": {
        "mean": mean, "std": std, "interpolation": "bicubic",
        "resize_mode": "squash" if run.view.op == "resize" else "shortest"}})
    files.save(folder / WEIGHTS, arrays)
    return notes


def state_dict(run, config, notes, dtype):
    """The arrays with CLIP's names; a patch bias, which open_clip's own ViT doesn't have, is folded into the positions."""
    params, timm = run.params, _timm(run.model)
    bias = run.params["image"].get("patch", {}).get("bias")
    if bias is not None and not timm:
        image = dict(params["image"])
        position = np.array(image["position"])
        position[-(len(position) - 1):] += bias[None]
        image |= {"position": position, "patch": {"kernel": image["patch"]["kernel"]}}
        params = {**params, "image": image}
        notes.append("config.model.image.patch_bias was added to the position embeddings: open_clip's patch embedding has no bias. "
                     "The function is the same; imported again, the run has patch_bias=False")
    return tables.write(clip_rows.rows(run.model, "text." if config.get("custom_text") else "", timm), params, dtype)


def _their_tokenizer(tokens, folder, notes):
    """Additions to text_cfg; writes the tokenizer's files."""
    cleaning = _CLEAN.get(tokens.cleaning)
    if cleaning is None:
        cleaning = "whitespace"
        notes.append("captions were tokenized as they are (clean='plain'); open_clip repairs every text with ftfy and resolves "
                     "HTML entities first, so those with such signs (as curly quotes) get other tokens. Train with "
                     "clean='whitespace' to have the same")
    if tokens.name == "clip":
        if tokens.pad or not tokens.end:
            raise ValueError(f"config.data.views: {tokens.pipe()}, but open_clip pads CLIP's texts with 0 and ends them")
        return {} if cleaning == "lower" else dict(tokenizer_kwargs=dict(clean=cleaning))
    if not tokens.end and tokens.pad:
        raise ValueError(f"config.data.views: {tokens.pipe()} puts {tokens.pad} where the text ends; open_clip would put 0 there")
    hf_tokenizer.write(tokens, folder)
    return dict(hf_tokenizer_name="this folder",
                tokenizer_kwargs=dict(clean=cleaning, **({} if tokens.end else dict(strip_sep_token=True))))


def usage(folder):
    """Lines of Python that load a folder."""
    from mcd_jax.convert import snippets
    return (f'import open_clip\nimport PIL.Image\nimport torch\n\n\n{snippets.source(snippets.on_white)}\n\n'
            f'model, _, preprocess = open_clip.create_model_and_transforms("local-dir:{folder}")\n'
            f'tokenizer = open_clip.get_tokenizer("local-dir:{folder}")\n'
            'image = on_white(PIL.Image.open("image.png"))   # open_clip itself would drop the transparency\n'
            'with torch.no_grad():\n'
            '    image_features = model.eval().encode_image(preprocess(image)[None], normalize=True)\n'
            '    text_features = model.encode_text(tokenizer(["a caption"]), normalize=True)\n'
            'print(image_features @ text_features.T)\n')


def peer(checkpoint, name=""):
    """The `peers.Peer` of a folder, or of a file of weights for the model `name`, by open_clip itself."""
    import open_clip

    from mcd_jax.convert import peers
    which = name or f"local-dir:{checkpoint}"
    model, _, preprocess = open_clip.create_model_and_transforms(which, pretrained=str(checkpoint) if name else None)
    return peers.of_open_clip(model, preprocess, open_clip.get_tokenizer(which))
