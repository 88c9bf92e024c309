"""ONNX files run by onnxruntime and StableHLO programs run without our model code give our embeddings, for any batch."""
import json
import subprocess
import sys

from converting import CAPTIONS, CLIP, SIGLIP, our_run
import numpy as np
import onnxruntime
import pytest
import tokenizers as package

from mcd_jax.convert import onnx, peers, runs, stablehlo
from mcd_jax.data import tokenizers
from mcd_jax.models import towers as towers_lib

EMOJI = runs.Tokens(12, "emoji")
MODELS = {   # the sizes of a test; every tower and pooling
    "clip": CLIP,
    "siglip, stacked": {**SIGLIP, "image": dict(SIGLIP["image"], scan=True)},
    "emoji config": dict(image=dict(name="resnet", widths=(16, 24), depths=(1, 1), stem_patch=4, mask_patch=8, grad_rows=32),
                         text=dict(name="text", width=24, depth=0, num_heads=3, causal=False, pool="mean"), embed_dim=24),
    "larger": dict(dtype="bfloat16", image=dict(name="vit", width=64, depth=4, num_heads=4, patch_size=8, pool="mean",
                                                 position="sincos2d", remat="full"),
                   text=dict(name="text", width=48, depth=3, num_heads=3, causal=False, pool="map"), embed_dim=32),
}


def ours(run, batch):
    """(pixels, ids, unit embeddings) of a run for a batch, computed in float32."""
    mine = peers.of_run(run._replace(model={**run.model, "dtype": "float32"}))
    pixels = np.random.default_rng(batch).integers(0, 256, (batch, 32, 32, 3), np.uint8)
    ids = mine.tokens((CAPTIONS * 3)[:batch])
    return pixels, ids, *(np.asarray(towers_lib.unit(x)) for x in (mine.image(pixels), mine.text(ids)))


@pytest.mark.parametrize("model", MODELS)
def test_onnxruntime_gives_our_embeddings_for_any_batch(tmp_path, model):
    run = our_run(MODELS[model], EMOJI)
    onnx.save(run, tmp_path)
    image, text = (onnxruntime.InferenceSession(tmp_path / f"{name}.onnx") for name in ("image", "text"))
    assert [(x.name, x.shape, x.type) for x in image.get_inputs()] == [("pixels", ["batch", 32, 32, 3], "tensor(uint8)")]
    assert [(x.name, x.shape, x.type) for x in text.get_inputs()] == [("tokens", ["batch", 12], "tensor(int32)")]
    for batch in (1, 7, 4):
        pixels, ids, want_image, want_text = ours(run, batch)
        got_image, = image.run(None, {"pixels": pixels})
        got_text, = text.run(None, {"tokens": ids})
        np.testing.assert_allclose(got_image, want_image, atol=1e-5)
        np.testing.assert_allclose(got_text, want_text, atol=1e-5)
    rows = package.Tokenizer.from_file(str(tmp_path / "tokenizer.json")).encode_batch(list(CAPTIONS))
    np.testing.assert_array_equal([row.ids for row in rows], tokenizers.make("emoji").encode(CAPTIONS, 12))
    with pytest.raises(ValueError, match="float32"):
        onnx.save(run, tmp_path, "bfloat16")


ALONE = """
import sys
import jax, jax.export, numpy
from safetensors.numpy import load_file
folder = sys.argv[1]
weights = load_file(f"{folder}/weights.safetensors")
data = numpy.load(f"{folder}/data.npz")
for batch in (1, 7, 4):
    for name in ("image", "text"):
        program = jax.export.deserialize(open(f"{folder}/{name}.stablehlo", "rb").read())
        out = numpy.asarray(program.call(weights, data[f"{name}{batch}"]))
        assert numpy.abs(out - data[f"{name}_out{batch}"]).max() < float(sys.argv[2]), (name, batch)
assert set(program.platforms) == {"cpu", "tpu", "cuda"}
assert not any(name.startswith(("mcd_jax", "flax")) for name in sys.modules)
print("equal")
"""


@pytest.mark.parametrize("model, dtype, tolerance", [("clip", "float32", 1e-5), ("siglip, stacked", "bfloat16", 0.05),
                                                     ("emoji config", "float32", 1e-5)])
def test_stablehlo_runs_without_our_code(tmp_path, model, dtype, tolerance):
    run = our_run(MODELS[model], EMOJI)
    stablehlo.save(run, tmp_path, dtype)
    data = {}
    for batch in (1, 7, 4):
        data |= zip([f"{name}{batch}" for name in ("image", "text", "image_out", "text_out")], ours(run, batch), strict=True)
    np.savez(tmp_path / "data.npz", **data)
    command = [sys.executable, "-c", ALONE, str(tmp_path), str(tolerance)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert done.stdout == "equal\n", done.stderr
    stored = json.loads((tmp_path / "encoder.json").read_text())
    assert stored["text"] == {"context": 12, "end": 1, "pad": 0, "tokenizer": "emoji", "clean": "plain"}
    assert stored["logit_scale"] == pytest.approx(float(np.exp(run.params["logit_scale"])))
