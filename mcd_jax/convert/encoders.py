"""What the graph formats (`stablehlo`, `onnx`) export: each tower as one function of pixels or token ids, and the files beside it.

Pixels are uint8 (B, H, W, 3) and ids int32 (B, context); normalisation by mean and std is inside, and what comes out are unit
embeddings, float32 (B, D). The batch is free. encoder.json says how images become pixels and texts ids.
"""
from collections.abc import Callable
import pathlib
from typing import NamedTuple

import numpy as np

from mcd_jax.convert import files, hf_autotokenizer, tables
from mcd_jax.models import towers as towers_lib
from mcd_jax.models import transformer

CONFIG, TOKENIZER = "encoder.json", "tokenizer.json"


class Encoder(NamedTuple):
    """apply: (our parameter tree, input) -> float32 (B, D); shape, dtype: of the input less its batch axis; name: of the input."""
    apply: Callable
    name: str
    shape: tuple
    dtype: str


def plain(run):
    """`run` as it is exported: computing in float32, whatever it trained in, its blocks one by one and nothing computed twice."""
    model, params = {**run.model, "dtype": "float32"}, dict(run.params)
    for kind in ("image", "text"):
        if model[kind].get("scan"):
            params[kind] = transformer.unstacked(params[kind])
        model[kind] = {key: value for key, value in model[kind].items() if key not in ("remat", "scan")}
    return run._replace(model=model, params=params)


def encoders(run):
    """{"image": Encoder, "text": Encoder} of a `runs.Run` that went through `plain`."""
    towers = towers_lib.make(run.model, **run.inputs)
    size = run.inputs["image_size"]
    return {"image": Encoder(lambda params, pixels: towers.image(params, pixels)["z"], "pixels", (size, size, 3), "uint8"),
            "text": Encoder(lambda params, tokens: towers.text(params, tokens)["z"], "tokens", (run.inputs["context"],), "int32")}


def weights(run, dtype):
    """Our parameters by path, in `dtype`."""
    return {path: np.asarray(x).astype(tables.dtype_of(dtype)) for path, x in tables.flat(run.params).items()}


def write_rest(run, folder, program):
    """Writes encoder.json and the tokenizer; program: what else encoder.json says. Returns notes."""
    folder = pathlib.Path(folder)
    scale, bias = (float(run.params.get(key, 0.0)) for key in ("logit_scale", "logit_bias"))
    files.save_json(folder / CONFIG, {
        "image": {"size": run.inputs["image_size"], "filter": run.view.method,
                  "resize": "squash" if run.view.op == "resize" else "shorter side, then the middle",
                  "transparent": "on white"},
        "text": {"context": run.inputs["context"], "end": run.inputs["eot"], "pad": run.tokens.pad, "tokenizer": run.tokens.name,
                 "clean": run.tokens.cleaning},
        "embed_dim": run.model["embed_dim"], "logit_scale": float(np.exp(scale)), "logit_bias": bias, **program})
    return hf_autotokenizer.write_alone(folder, run.tokens)
