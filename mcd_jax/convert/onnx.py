"""ONNX: image.onnx and text.onnx by jax2onnx, for onnxruntime and whatever else reads the format.

jax2onnx traces our towers, whatever they are made of. Its releases pin an older orbax-checkpoint than ours, for a part that isn't
used here: install it with --no-deps, then what the message of `save` names. Weights are float32: onnxruntime has few operators for
others. Those of a large model stand in a file of their own beside it (*.onnx.data).
"""
import logging
import pathlib
import warnings

from mcd_jax.convert import encoders

EXPORTS, IMPORTS = True, False
PACKAGES = ("pip install --no-deps 'jax2onnx>=0.17.1,<0.18' && pip install onnx onnxruntime onnx-ir einops equinox dm-pix "
            "huggingface_hub")
REQUIRES = f"{PACKAGES} pillow tokenizers"


def names():
    """What can be exported."""
    return [("(every model)", "image and text encoder, float32")]


def save(run, folder, dtype="float32"):
    """Writes a run's folder; see the package's docstring. Returns notes.

    Raises:
      ValueError: another dtype than float32, or no jax2onnx, with the command that installs it.
    """
    if dtype != "float32":
        raise ValueError(f"--dtype={dtype}: ONNX files are written as float32, as onnxruntime has few operators for others; "
                         "quantise or convert them with its own tools")
    try:
        import jax2onnx
    except ModuleNotFoundError as error:
        raise ValueError(f"writing ONNX needs {error.name}: {PACKAGES}") from error
    import jax
    import jax.numpy as jnp
    run, folder = encoders.plain(run), pathlib.Path(folder)
    params = jax.tree.map(jnp.asarray, run.params)
    serde = logging.getLogger("onnx_ir.serde")   # warns of every constant whose type it leaves to be inferred
    level = serde.level
    serde.setLevel(logging.ERROR)
    try:
        for name, encoder in encoders.encoders(run).items():
            batch, = jax.export.symbolic_shape("batch")
            data = jax.ShapeDtypeStruct((batch, *encoder.shape), encoder.dtype)
            with warnings.catch_warnings():   # jax2onnx asks for float64 in places, and gets float32, which is meant
                warnings.filterwarnings("ignore", "Explicitly requested dtype float64", UserWarning)
                jax2onnx.to_onnx(lambda x, encoder=encoder: encoder.apply(params, x), [data], model_name=name, return_mode="file",
                                 output_path=str(folder / f"{name}.onnx"), input_names=[encoder.name], output_names=["embedding"])
    finally:
        serde.setLevel(level)
    return encoders.write_rest(run, folder, {"input": {name: e.name for name, e in encoders.encoders(run).items()},
                                             "output": "embedding"})


def usage(folder):
    """Lines of Python that run a folder."""
    from mcd_jax.convert import snippets
    return ("import json\n\nimport numpy\nimport onnxruntime\nimport PIL.Image\nimport tokenizers\n\n\n"
            f"{snippets.source(snippets.on_white, snippets.pixels_of)}\n\n"
            f'image, text = (onnxruntime.InferenceSession(f"{folder}/{{name}}.onnx") for name in ("image", "text"))\n'
            f'tokenizer = tokenizers.Tokenizer.from_file("{folder}/{encoders.TOKENIZER}")\n'
            f'how = json.load(open("{folder}/{encoders.CONFIG}"))["image"]\n'
            'pixels = pixels_of(PIL.Image.open("image.png"), how)\n'
            'ids = numpy.array([row.ids for row in tokenizer.encode_batch(["a caption"])], "int32")\n'
            'x, = image.run(None, {"pixels": pixels})\n'
            'y, = text.run(None, {"tokens": ids})\nprint(x @ y.T)\n')


def peer(checkpoint, name=""):
    """The `peers.Peer` of a folder, by onnxruntime, with the preprocessing of its card."""
    import io
    import json

    import numpy as np
    import onnxruntime
    import PIL.Image
    import tokenizers

    from mcd_jax.convert import peers, snippets
    folder = pathlib.Path(checkpoint)
    stored = json.loads((folder / encoders.CONFIG).read_text())
    image, text = (onnxruntime.InferenceSession(folder / f"{name}.onnx") for name in ("image", "text"))
    tokenizer = tokenizers.Tokenizer.from_file(str(folder / encoders.TOKENIZER))
    return peers.Peer(
        pixels=lambda images: np.concatenate([snippets.pixels_of(PIL.Image.open(io.BytesIO(data)), stored["image"])
                                              for data in images]),
        tokens=lambda texts: np.array([row.ids for row in tokenizer.encode_batch(list(texts))], np.int32),
        image=lambda pixels: image.run(None, {"pixels": np.asarray(pixels, np.uint8)})[0],
        text=lambda tokens: text.run(None, {"tokens": np.asarray(tokens, np.int32)})[0],
        scale=stored["logit_scale"], bias=stored["logit_bias"], takes_levels=True)
