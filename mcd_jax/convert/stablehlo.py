"""StableHLO: both encoders as serialised `jax.export` programs for CPU, TPU and CUDA, which run without this package.

A folder is image.stablehlo, text.stablehlo, weights.safetensors (our parameters by path, an argument of both programs),
encoder.json and the tokenizer. The batch is symbolic. jax reads a program for six months of releases after it was written (its
stated guarantee), so the weights, not the programs, are what to archive.
"""
import pathlib

from mcd_jax.convert import encoders, files, tables

EXPORTS, IMPORTS = True, False
PLATFORMS = ("cpu", "tpu", "cuda")
WEIGHTS = "weights.safetensors"


def names():
    """What can be exported."""
    return [("(every model)", "image and text encoder, for " + ", ".join(PLATFORMS))]


def save(run, folder, dtype="float32"):
    """Writes a run's folder; see the package's docstring. Returns notes. `dtype` is that of the stored weights."""
    import jax
    import jax.numpy as jnp
    run, folder = encoders.plain(run), pathlib.Path(folder)
    weights = encoders.weights(run, dtype)
    shapes = {path: jax.ShapeDtypeStruct(x.shape, x.dtype) for path, x in weights.items()}
    for name, encoder in encoders.encoders(run).items():
        def program(stored, data, apply=encoder.apply):
            return apply(tables.nested({path: x.astype(jnp.float32) for path, x in stored.items()}), data)
        batch, = jax.export.symbolic_shape("batch")
        data = jax.ShapeDtypeStruct((batch, *encoder.shape), encoder.dtype)
        exported = jax.export.export(jax.jit(program), platforms=PLATFORMS)(shapes, data)
        (folder / f"{name}.stablehlo").write_bytes(exported.serialize())
    files.save(folder / WEIGHTS, weights)
    return encoders.write_rest(run, folder, {"platforms": list(PLATFORMS)})


def usage(folder):
    """Lines of Python that run a folder."""
    from mcd_jax.convert import snippets
    return ("import json\n\nimport jax.export\nimport numpy\nimport PIL.Image\n"
            "from safetensors.numpy import load_file\nimport tokenizers\n\n\n"
            f"{snippets.source(snippets.on_white, snippets.pixels_of)}\n\n"
            f'weights = load_file("{folder}/{WEIGHTS}")\n'
            f'image, text = (jax.export.deserialize(open(f"{folder}/{{name}}.stablehlo", "rb").read())\n'
            '               for name in ("image", "text"))\n'
            f'tokenizer = tokenizers.Tokenizer.from_file("{folder}/{encoders.TOKENIZER}")\n'
            f'how = json.load(open("{folder}/{encoders.CONFIG}"))["image"]\n'
            'pixels = pixels_of(PIL.Image.open("image.png"), how)\n'
            'ids = numpy.array([row.ids for row in tokenizer.encode_batch(["a caption"])], "int32")\n'
            'print(image.call(weights, pixels) @ text.call(weights, ids).T)\n')
