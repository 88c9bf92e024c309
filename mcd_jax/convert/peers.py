"""Both sides of a conversion fed with the same images and captions, and how far apart they are."""
from collections.abc import Callable
import io
import sys
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from mcd_jax.convert import runs
from mcd_jax.data import pipeline, sources
from mcd_jax.models import towers as towers_lib


class Peer(NamedTuple):
    """Another library's model. B examples, D features, L tokens.

    pixels: (list of bytes, encoded images) -> float32 (B, 3, H, W), by its own preprocessing.
    tokens: (list of str) -> int (B, L), by its own tokenizer.
    image: (pixels) -> float32 (B, D), before normalisation. text: (tokens) -> the same.
    scale, bias: of its logits.
    """
    pixels: Callable
    tokens: Callable
    image: Callable
    text: Callable
    scale: float
    bias: float = 0.0
    takes_levels: bool = False   # pixels are uint8 (B, H, W, 3) there, normalised inside


def of_open_clip(model, preprocess, tokenizer):
    """The Peer of an open_clip model, or of any with encode_image, encode_text and logit_scale."""
    import PIL.Image
    import torch

    from mcd_jax.convert import snippets
    model = model.eval()

    def run(method, array):
        with torch.no_grad():
            return method(array).float().numpy()

    return Peer(
        pixels=lambda images: torch.stack([preprocess(snippets.on_white(PIL.Image.open(io.BytesIO(data))))
                                           for data in images]).numpy(),
        tokens=lambda texts: np.asarray(tokenizer(list(texts))),
        image=lambda pixels: run(model.encode_image, torch.as_tensor(np.ascontiguousarray(pixels))),
        text=lambda tokens: run(model.encode_text, torch.as_tensor(np.asarray(tokens, np.int64))),
        scale=float(model.logit_scale.detach().exp().reshape(())),
        bias=float(0 if getattr(model, "logit_bias", None) is None else model.logit_bias.detach().reshape(())))


class Ours(NamedTuple):
    """The same of a run: pixels are uint8 (B, H, W, 3) by its evaluation view."""
    pixels: Callable
    tokens: Callable
    image: Callable
    text: Callable
    scale: float
    bias: float
    normalised: Callable   # (uint8 pixels) -> float32 (B, 3, H, W), what the tower sees


def of_run(run):
    """`Ours` of a `runs.Run`."""
    towers = towers_lib.make(run.model, **run.inputs)
    params = jax.tree.map(jnp.asarray, run.params)
    image, text = jax.jit(lambda p, x: towers.image(p, x)["raw"]), jax.jit(lambda p, x: towers.text(p, x)["raw"])
    views = pipeline.Views({"image": run.view.pipe(run.inputs["image_size"])})
    tokenizer = run.tokens.make()
    mean, std = (np.broadcast_to(np.float32(run.model.get(key, 0.5)), 3) for key in ("mean", "std"))

    def pixels(images):
        source = _Images(images)
        return next(pipeline.sequential(source, views, len(images)))["image"]

    return Ours(pixels, lambda texts: tokenizer.encode(list(texts), run.inputs["context"]),
                lambda x: np.asarray(image(params, jnp.asarray(x))), lambda x: np.asarray(text(params, jnp.asarray(x))),
                float(towers.scale(params)), float(towers.bias(params)),
                lambda x: ((x.astype(np.float32) / 255 - mean) / std).transpose(0, 3, 1, 2))


class _Images:
    def __init__(self, images):
        self._images = images

    def __len__(self):
        return len(self._images)

    def __getitem__(self, index):
        return {"image": self._images[index], "key": str(index)}


def examples(count):
    """`count` (encoded images, captions) of the embedded test set, evenly spaced."""
    source = sources.open(dict(name="emoji", split="test", captions=("label",), languages=("en",)))
    rows = [source[int(i)] for i in np.linspace(0, len(source) - 1, count).round()]
    return [row["image"] for row in rows], [row["text"][0] if isinstance(row["text"], list) else row["text"] for row in rows]


def compare(ours, theirs, images, captions):
    """The largest differences between both sides on the same images and captions, name -> number; 0 is equal.

    "pixels" in units of the 256 levels is not computed where the sizes differ; "tokens" is the share of captions with other ids;
    "image" and "text" are relative to each row's norm, for the same pixels and ids; "logits" are between normalised features, with
    each side's own preprocessing and tokenizer; "other top 1" is the share of images whose best caption is another.
    """
    mine, yours = ours.pixels(images), theirs.pixels(images)
    seen, ids, their_ids = ours.normalised(mine), ours.tokens(captions), theirs.tokens(captions)
    result = {"pixels": float(np.abs(seen - yours).max()) if seen.shape == yours.shape else float("nan"),
              "tokens": float(np.mean([not np.array_equal(a, b) for a, b in zip(ids, their_ids)])) if ids.shape == their_ids.shape
              else 1.0}
    image, text = ours.image(mine), ours.text(ids)
    result["image"], result["text"] = relative(image, theirs.image(seen)), relative(text, theirs.text(ids))
    one = logits(image, text, ours.scale, ours.bias)
    other = logits(theirs.image(yours), theirs.text(their_ids), theirs.scale, theirs.bias)
    result["logits"] = float(np.abs(one - other).max())
    result["other top 1"] = float(np.mean(one.argmax(1) != other.argmax(1)))
    return result


def relative(a, b):
    """The largest distance of a row of a from that of b (B, D), relative to the norm of the latter."""
    return float((np.linalg.norm(a - b, axis=1) / np.linalg.norm(b, axis=1)).max())


def logits(image, text, scale, bias):
    """(B, B') logits of raw features."""
    image, text = (np.asarray(towers_lib.unit(jnp.asarray(x))) for x in (image, text))
    return scale * image @ text.T + bias


_DECLARED = []


def declare_operators():
    """Lets torchvision be imported where its compiled operators don't load beside this torch: peers need its transforms only."""
    try:
        import torchvision  # noqa: F401
    except ImportError:
        pass
    except RuntimeError:
        import torch
        _DECLARED.append(torch.library.Library("torchvision", "DEF"))
        for name in ("nms", "qnms"):
            _DECLARED[-1].define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        for name in [name for name in sys.modules if name.split(".")[0] == "torchvision"]:
            del sys.modules[name]


def check(workdir, module, checkpoint, name="", weights_from="params", step=None, count=16):
    """`compare` of a run and a peer's checkpoint, on the embedded test set."""
    declare_operators()
    run = runs.open_run(workdir, weights_from, step)
    return compare(of_run(run), module.peer(checkpoint, name), *examples(count))
