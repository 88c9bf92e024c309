"""OpenAI's CLIP: state dicts with its own names, QuickGELU, fixed preprocessing (openai/CLIP d05afc4, clip/model.py, clip/clip.py).

The architecture follows from the arrays' shapes, as in its `build_model`. The files that OpenAI publishes are TorchScript programs,
which are not opened here: `torch.save(clip.load("ViT-B/32", jit=False)[0].state_dict(), "vit_b32.pt")` makes a plain state dict.
Its loader rounds the weights of layers to half precision whatever they come in, so `check` shows differences of that size.
"""
import pathlib

import numpy as np

from mcd_jax.convert import files, open_clip, open_clip_config, runs

EXPORTS = IMPORTS = True
REQUIRES = open_clip.REQUIRES
WEIGHTS, PICKLE = "model.safetensors", "model.pt"
_SCALARS = ("input_resolution", "context_length", "vocab_size")   # of the published programs; `build_model` drops them too


def names():
    """The models that OpenAI published. Their sizes are read off the arrays, so `--model` isn't needed."""
    return [(name, "QuickGELU, 77 tokens") for name in
            ("RN50", "RN101", "RN50x4", "RN50x16", "RN50x64", "ViT-B/32", "ViT-B/16", "ViT-L/14", "ViT-L/14@336px")]


def fits(path):
    """Whether a file or folder is of this format: a state dict with CLIP's names and no config beside it."""
    folder = path if path.is_dir() else path.parent
    if any((folder / name).is_file() for name in (open_clip.CONFIG, "config.json")):
        return False
    file = next((folder / name for name in (WEIGHTS, PICKLE) if (folder / name).is_file()), path) if path.is_dir() else path
    return file.suffix == ".pt" or (file.suffix == ".safetensors" and "visual.conv1.weight" in files.load(file))


def load(checkpoint, name="", tokenizer=""):
    """A state dict as `runs.Imported`; name and tokenizer are not needed.

    Raises:
      FileNotFoundError: no such file. ValueError: it isn't CLIP's, or arrays that don't fit each other.
    """
    path = pathlib.Path(checkpoint)
    path = files.find(path, (WEIGHTS, PICKLE)) if path.is_dir() else path
    arrays = {k: x for k, x in files.load(path).items() if k not in _SCALARS}
    model, inputs = open_clip_config.to_ours(config_of(arrays, path))
    return open_clip.imported(model, inputs, arrays, runs.Tokens(inputs["context"]), runs.View(), str(path))


def config_of(arrays, where):
    """open_clip's model config of a state dict, by the shapes that `build_model` reads.

    Raises:
      ValueError: one of these arrays is missing or has another number of axes.
    """
    def shape(name, rank):
        if name not in arrays or np.ndim(arrays[name]) != rank:
            what = f"has {np.ndim(arrays[name])} axes, not {rank}" if name in arrays else "is missing"
            raise ValueError(f"{where} is no state dict of OpenAI's CLIP: {name} {what}")
        return arrays[name].shape

    def count(prefix, part):
        return len({name.split(".")[part] for name in arrays if name.startswith(prefix)})

    if "visual.proj" in arrays:
        width, _, _, patch = shape("visual.conv1.weight", 4)
        size = patch * round((shape("visual.positional_embedding", 2)[0] - 1) ** 0.5)
        vision = dict(width=width, layers=count("visual.transformer.resblocks.", 3), patch_size=patch, image_size=size)
    else:
        size = 32 * round((shape("visual.attnpool.positional_embedding", 2)[0] - 1) ** 0.5)
        vision = dict(width=shape("visual.layer1.0.conv1.weight", 4)[0], patch_size=None, image_size=size,
                      layers=[count(f"visual.layer{i}.", 2) for i in (1, 2, 3, 4)])
    context, width = shape("positional_embedding", 2)
    text = dict(context_length=context, vocab_size=shape("token_embedding.weight", 2)[0], width=width, heads=width // 64,
                layers=count("transformer.resblocks.", 2))
    return dict(embed_dim=shape("text_projection", 2)[1], vision_cfg=vision, text_cfg=text, quick_gelu=True)


def save(run, folder, dtype="float32"):
    """Writes model.safetensors, and model.pt, which `clip.load` takes, where torch is installed. Returns notes.

    Raises:
      ValueError: a tower, size, tokenizer or preprocessing that OpenAI's program doesn't have, by name.
    """
    notes, folder = [], pathlib.Path(folder)
    theirs = open_clip_config.to_theirs(run.model, run.inputs)
    arrays = open_clip.state_dict(run, theirs, notes, dtype)
    wrong = _different(theirs, config_of(arrays, "this model"))
    for key, want in (("mean", open_clip_config.MEAN), ("std", open_clip_config.STD)):
        if not np.allclose(run.model.get(key, 0.5), want, rtol=0, atol=1e-6):
            wrong.append(f"config.model.{key}={run.model.get(key, 0.5)}: OpenAI's preprocessing has {want}")
    if run.tokens.name != "clip" or run.tokens.cleaning != "lower" or run.tokens.pad or not run.tokens.end:
        wrong.append(f"the tokenizer {run.tokens.pipe()}: OpenAI's program has CLIP's alone")
    if wrong:
        raise ValueError("OpenAI's CLIP has no class for this model: " + "; ".join(wrong))
    if (run.view.op, run.view.method) != ("center", "bicubic"):
        notes.append(f"the run's evaluations see images by {run.view.op} and {run.view.method}; OpenAI's by center and bicubic")
    if run.inputs["context"] != 77:
        notes.append(f"texts have {run.inputs['context']} tokens: clip.tokenize(texts, {run.inputs['context']}, truncate=True)")
    files.save(folder / WEIGHTS, arrays)
    try:
        from safetensors.torch import load_file
        import torch
    except ModuleNotFoundError:
        notes.append(f"torch is not installed, so there is no {PICKLE} for clip.load: torch.save(safetensors.torch.load_file("
                     f"{WEIGHTS!r}), {PICKLE!r}) makes it")
    else:
        torch.save(load_file(folder / WEIGHTS), folder / PICKLE)
    return notes


def _different(theirs, read_back):
    """What `build_model` would make of the arrays that isn't so in this model."""
    wrong = []
    if theirs.get("custom_text") or "init_logit_bias" in theirs or not theirs.get("quick_gelu"):
        wrong.append("its models have QuickGELU in both towers, no logit bias and no attention pooling of patches "
                     "(config.model.*.act, logit_bias, image.pool)")
    heads = read_back["vision_cfg"]["width"] * (32 if read_back["vision_cfg"]["patch_size"] is None else 1) // 64
    want = dict(vision_cfg=dict(read_back["vision_cfg"], mlp_ratio=4.0, head_width=64),
                text_cfg=dict(read_back["text_cfg"], mlp_ratio=4.0))
    for part, options in want.items():
        wrong += [f"{part}.{key}={theirs[part][key]}, its program would take {value} (heads are width / 64 = {heads})"
                  for key, value in options.items() if key in theirs[part] and theirs[part][key] != value]
        known = {**options, "act_kwargs": 0, "patch_size": 0}
        wrong += [f"{part}.{key}={value!r}, which its program doesn't have" for key, value in theirs[part].items()
                  if key not in known]
    return wrong


def usage(folder):
    """Lines of Python that load a folder."""
    from mcd_jax.convert import snippets
    return (f'import clip\nimport PIL.Image\nimport torch\n\n\n{snippets.source(snippets.on_white)}\n\n'
            f'model, preprocess = clip.load("{folder}/{PICKLE}", device="cpu")\n'
            'image = on_white(PIL.Image.open("image.png"))   # its preprocessing would drop the transparency\n'
            'with torch.no_grad():\n'
            '    image_features = model.encode_image(preprocess(image)[None])\n'
            '    text_features = model.encode_text(clip.tokenize(["a caption"]))\n')


def peer(checkpoint, name=""):
    """The `peers.Peer` of a state dict, by open_clip's own loader of OpenAI's files."""
    import open_clip as package

    from mcd_jax.convert import peers
    path = pathlib.Path(checkpoint)
    path = path / PICKLE if path.is_dir() else path
    model = package.load_openai_model(str(path), precision="fp32", device="cpu")
    preprocess = package.image_transform(model.visual.image_size, is_train=False)
    return peers.of_open_clip(model, preprocess, package.get_tokenizer("ViT-B-32"))
