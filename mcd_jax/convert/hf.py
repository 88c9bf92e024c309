"""Hugging Face: folders of `CLIPModel` and `SiglipModel` (SigLIP; SigLIP 2 at a fixed resolution), both ways (transformers 5.23).

A folder is config.json, model.safetensors, preprocessor_config.json and the tokenizer's files: `from_pretrained(folder)` of
CLIPModel, SiglipModel, CLIPProcessor, SiglipProcessor, AutoTokenizer and AutoImageProcessor read it without code of ours. Which
class it is follows from the image tower: a class token is CLIP's, attention pooling (pool="map") SigLIP's.
"""
import pathlib

import numpy as np

from mcd_jax.convert import files, hf_autotokenizer, hf_config, hf_rows, hf_tokenizer, runs, tables
from mcd_jax.data import tokenizers
from mcd_jax.run import small_files

EXPORTS = IMPORTS = True
REQUIRES = "pip install torch 'transformers>=5,<6' pillow"
CONFIG, PREPROCESS, WEIGHTS = "config.json", "preprocessor_config.json", "model.safetensors"
PROBES = ("a photo of a cat", "Two dogs & 3 birds, (one) flying!", "eine Katze \u732b \u043a\u043e\u0442")
_ROWS = {"clip": hf_rows.clip_rows, "siglip": hf_rows.siglip_rows}
_BUFFERS = ("text_model.embeddings.position_ids", "vision_model.embeddings.position_ids")
_COUNTED = "the numbers 0, 1, 2, ... of positions, which older releases stored"


def names():
    """The classes, by the model_type of config.json."""
    return [("clip", "CLIPModel of any size: class token, causal text"), ("siglip", "SiglipModel of any size: SigLIP, SigLIP 2")]


def fits(path):
    """Whether a file or folder is of this format: config.json names a model_type."""
    file = (path if path.is_dir() else path.parent) / CONFIG
    return file.is_file() and small_files.read(file).get("model_type") in _ROWS


# ---- import ----------------------------------------------------------------------------------------------------------------------

def load(checkpoint, name="", tokenizer=""):
    """A folder of theirs as `runs.Imported`.

    Args:
      checkpoint: a folder with config.json, the weights (model.safetensors, also in several files, or pytorch_model.bin), and
        usually preprocessor_config.json and the tokenizer; or a file of weights in such a folder.
      name: "clip" or "siglip", to be sure of what it is; "": either.
      tokenizer: path of a tokenizer.json or sentencepiece model; "": the folder's.

    Raises:
      FileNotFoundError: no such file. ValueError: another model_type, an option that we don't have, weights that don't fit, or no
        tokenizer that we read as they do.
    """
    path = pathlib.Path(checkpoint)
    folder = path if path.is_dir() else path.parent
    config = small_files.read(files.find(folder, (CONFIG,)))
    family, model, inputs, view = hf_config.to_ours(config, _preprocessing(folder))
    if name and name != family:
        raise ValueError(f"--model={name}, but {folder / CONFIG} has model_type={family!r}")
    arrays, left_out = _weights(path), []
    for buffer in _BUFFERS:
        if arrays.pop(buffer, None) is not None:
            left_out.append((buffer, _COUNTED))
    model = runs.patched(model, inputs["image_size"])
    tokens = _tokens(folder, family, inputs, tokenizer)
    inputs.setdefault("eot", tokens.make().eot)
    if tokens.pad:
        inputs["pad"] = tokens.pad
    params = tables.read(_ROWS[family](), arrays, runs.abstract(model, inputs), str(path))
    return runs.Imported(model, inputs, params, tokens, runs.View(*view), left_out, str(path), positions="bicubic")


def _preprocessing(folder):
    """preprocessor_config.json; of a folder that a processor of transformers 5 wrote, that part of processor_config.json."""
    for name, part in ((PREPROCESS, None), ("processor_config.json", "image_processor")):
        if (folder / name).is_file():
            stored = small_files.read(folder / name)
            return stored if part is None else stored.get(part) or {}
    return {}


def _weights(path):
    if not path.is_dir():
        return files.load(path)
    index = path / f"{WEIGHTS}.index.json"
    if index.is_file():
        parts = sorted(set(small_files.read(index)["weight_map"].values()))
        return {name: x for part in parts for name, x in files.load(path / pathlib.Path(part).name).items()}
    return files.load(files.find(path, (WEIGHTS, "pytorch_model.bin")))


def _tokens(folder, family, inputs, given):
    """The `runs.Tokens` of a folder; see `load`."""
    context = inputs["context"]
    found = hf_tokenizer.read(folder)
    if given:
        sentences = pathlib.Path(given).suffix in (".model", ".spm")
        pad = found[1] if found else 1 if sentences else 0   # SigLIP's vocabulary pads with its end of text
        return runs.Tokens(context, str(given), "canonical" if sentences else "", pad)
    stored = folder / "tokenizer_config.json"
    written = small_files.read(stored).get(hf_autotokenizer.NOTE) if stored.is_file() else None
    if written and written["name"] in ("clip", "emoji"):
        return runs.Tokens(context, **written)
    if family == "clip" and inputs["vocab_size"] == hf_config.CLIP_VOCABULARY:
        return runs.Tokens(context, "clip")
    if family == "siglip" and (folder / "spiece.model").is_file():
        path = str((folder / "spiece.model").resolve())
        return runs.Tokens(context, path, "canonical", tokenizers.make(path, "canonical", 1).eot)
    if found is None:
        raise ValueError(f"{folder} holds no tokenizer.json (and no spiece.model of a SigLIP model): give the tokenizer as "
                         "--tokenizer=FILE")
    tokens = runs.Tokens(context, str(found[0].resolve()), "", found[1])
    _refuse_other_rows(tokens, found[0])
    return tokens


def _refuse_other_rows(tokens, path):
    """A tokenizer.json may put other tokens round a text than ours, as a start token that its model never saw."""
    import tokenizers as package
    theirs = package.Tokenizer.from_file(str(path))
    theirs.no_padding()
    theirs.no_truncation()
    for text in PROBES:
        ids = theirs.encode(text).ids
        row = tokens.make().encode([text], len(ids) + 8)[0]
        if row[:len(ids)].tolist() != ids or set(row[len(ids):].tolist()) - {tokens.pad}:
            raise ValueError(f"{path} makes {ids} of {text!r}, our reader {row[:len(ids) + 2].tolist()}: this model's texts can't "
                             "be read from that file; give its sentencepiece model as --tokenizer=FILE")


# ---- export ----------------------------------------------------------------------------------------------------------------------

def save(run, folder, dtype="float32"):
    """Writes a run's folder; see the package's docstring. Returns notes.

    Raises:
      ValueError: towers or a tokenizer that transformers has no class for, by name.
    """
    folder, notes = pathlib.Path(folder), []
    tokenizer = run.tokens.make()
    ids = dict(bos_token_id=tokenizer.sot, eos_token_id=tokenizer.eot, pad_token_id=tokenizer.pad)
    family, config = hf_config.to_theirs(run.model, run.inputs, ids, run.tokens.end)
    arrays = tables.write(_ROWS[family](), run.params, dtype)
    notes += hf_autotokenizer.write(folder, run.tokens, masked=family == "clip")
    if run.view.method != "bicubic":
        notes.append("the run's evaluations shrink images by averaging areas; this folder says bicubic, which all processors have. "
                     f"Pixels, and so figures, differ a little: evaluate with decode|{run.view.op}({run.inputs['image_size']}, "
                     "'bicubic') to see theirs")
    if run.view.op == "center":
        notes.append("of images whose longer side is an odd number of pixels too long, CLIPImageProcessor cuts out the middle one "
                     "pixel further up or left than torchvision, open_clip and mcd_jax")
    if family == "siglip":
        notes.append('the text tower reads its padding: call the tokenizer with padding="max_length", truncation=True')
    files.save_json(folder / CONFIG, {**config, "dtype": dtype})
    files.save_json(folder / PREPROCESS, hf_config.preprocessing(family, run.model, run.view, run.inputs["image_size"]))
    files.save(folder / WEIGHTS, arrays)
    return notes


def usage(folder):
    """Lines of Python that load a folder."""
    return ("import PIL.Image\nimport torch\nfrom transformers import AutoImageProcessor, AutoModel, AutoTokenizer\n\n"
            f'model, tokenizer = AutoModel.from_pretrained("{folder}").eval(), AutoTokenizer.from_pretrained("{folder}")\n'
            f'processor = AutoImageProcessor.from_pretrained("{folder}", backend="pil")\n'
            'texts = tokenizer(["a caption"], padding="max_length", truncation=True, return_tensors="pt")\n'
            'image = PIL.Image.open("image.png")   # the processor puts transparency on white itself\n'
            'with torch.no_grad():\n'
            '    out = model(**texts, **processor(images=[image], return_tensors="pt"))\n'
            'print(out.logits_per_image, out.image_embeds.shape, out.text_embeds.shape)\n')


def peer(checkpoint, name=""):
    """The `peers.Peer` of a folder, by transformers itself."""
    import io

    import PIL.Image
    import torch
    from transformers import AutoImageProcessor, AutoModel, AutoTokenizer

    from mcd_jax.convert import peers
    model = AutoModel.from_pretrained(checkpoint, dtype=torch.float32).eval()
    tokenizer, processor = AutoTokenizer.from_pretrained(checkpoint), AutoImageProcessor.from_pretrained(checkpoint, backend="pil")
    bias = getattr(model, "logit_bias", None)

    def run(method, array):
        with torch.no_grad():
            return method(torch.as_tensor(np.ascontiguousarray(array))).pooler_output.float().numpy()

    return peers.Peer(
        pixels=lambda images: processor([PIL.Image.open(io.BytesIO(data)) for data in images], return_tensors="np")["pixel_values"],
        tokens=lambda texts: tokenizer(list(texts), padding="max_length", truncation=True, return_tensors="np")["input_ids"],
        image=lambda pixels: run(model.get_image_features, pixels),
        text=lambda tokens: run(model.get_text_features, np.asarray(tokens, np.int64)),
        scale=float(model.logit_scale.detach().exp().reshape(())), bias=0.0 if bias is None else float(bias.detach().reshape(())))
