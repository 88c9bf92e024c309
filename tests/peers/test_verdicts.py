"""`convert check`, the code on the cards, VALID patches and positions, each beside the library that it speaks of."""
import contextlib
import io
import json

from converting import CLIP, SIGLIP, as_run, our_run
import numpy as np
import PIL.Image
import pytest
from safetensors.numpy import load_file, save_file
from test_convert_bv import SIZES, Slow, published, stored
from test_convert_hf import features, randomise, sizes
import torch
import torch.nn.functional as F
from transformers import SiglipConfig, SiglipModel

from mcd_jax.convert import __main__ as cli
from mcd_jax.convert import big_vision, hf, odd_files, onnx, open_clip, peers, positions, runs, verdicts
from mcd_jax.data import tokenizers

MODEL = {**CLIP, "text": dict(CLIP["text"], act="quick_gelu")}   # one that all three have
TOKENS = runs.Tokens(12, "emoji", "whitespace")


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    run, out = our_run(MODEL, TOKENS, runs.View("resize", "bicubic")), tmp_path_factory.mktemp("verdicts") / "run"
    runs.write_workdir(runs.Imported(run.model, run.inputs, run.params, run.tokens, run.view, [], "x"), out)
    return out


@pytest.fixture(scope="module")
def found(workdir):
    return verdicts.check(workdir, count=4)


def test_every_kind_of_file_has_a_verdict_for_every_library(found):
    table = {(v.target, v.input): v for v in found}
    kinds = [*odd_files.made(), "4 drawings", "4 captions", "logit scale, bias"]
    assert table.keys() == {(target, kind) for target in verdicts.TARGETS for kind in kinds}
    for (_, kind), verdict in table.items():
        assert verdict.verdict == (verdicts.EXPLAINED if kind in verdicts.DECODING else verdicts.EQUAL), verdict
    assert verdicts.status(found) == 0 and "equal" in verdicts.table(found)


def test_a_broken_export_differs(workdir, tmp_path, capsys):
    cli.export(workdir, "open_clip", tmp_path / "out")
    file = tmp_path / "out" / open_clip.WEIGHTS
    arrays = load_file(file)
    save_file({**arrays, "visual.proj": arrays["visual.proj"][:, ::-1].copy()}, file)
    capsys.readouterr()
    with pytest.raises(SystemExit) as ended:
        cli.main(["check", f"--workdir={workdir}", "--with=open_clip", f"--checkpoint={tmp_path / 'out'}", "--count=2", "--json"])
    rows = json.loads(capsys.readouterr().out)
    assert ended.value.code == 1 and {row["verdict"] for row in rows if row["input"] == "RGB"} == {"DIFFERS"}
    assert all("tower" in row["why"] for row in rows if row["embedding"] is not None and "captions" not in row["input"])


def test_a_library_that_is_not_there_is_named(workdir, monkeypatch):
    def absent(*_):
        raise ModuleNotFoundError("No module named 'onnxruntime'", name="onnxruntime")
    monkeypatch.setattr(onnx, "save", absent)
    verdict, = verdicts.check(workdir, ["onnx"])
    assert verdict.verdict == verdicts.UNCHECKED and "pip install" in verdict.why and verdicts.status([verdict]) == 1


@pytest.mark.parametrize("module", [open_clip, hf, onnx], ids=["open_clip", "hf", "onnx"])
def test_the_code_on_the_card_runs(module, workdir, tmp_path, monkeypatch):
    module.save(runs.open_run(workdir), tmp_path)
    monkeypatch.chdir(tmp_path)
    PIL.Image.open(io.BytesIO(odd_files.made()["RGBA"])).save("image.png")
    code = tmp_path / "card.py"
    code.write_text(module.usage(tmp_path))
    with contextlib.redirect_stdout(io.StringIO()) as out:   # a file, so that inspect and errors see its lines
        exec(compile(code.read_text(), str(code), "exec"), {"__name__": "card"})
    assert out.getvalue().strip()


# ---- patches that leave pixels over ----------------------------------------------------------------------------------------------

def siglip(folder, size):
    model = randomise(SiglipModel(SiglipConfig(
        text_config=dict(sizes(32, 64, 2, 4), vocab_size=8192, max_position_embeddings=12, projection_size=48),
        vision_config=dict(sizes(48, 96, 2, 3), image_size=size, patch_size=14))))
    model.save_pretrained(folder)
    return model


def test_patches_of_14_at_48_px_are_hugging_faces(tmp_path):
    model = siglip(tmp_path, 48)
    imported = hf.load(tmp_path, "", str(tokenizers.EMOJI))
    assert imported.inputs["image_size"] == 48 and imported.model["image"]["cut_rest"]
    assert len(imported.params["image"]["position"]) == 9
    ours = peers.of_run(as_run(imported))
    pixels, ids = np.random.default_rng(0).integers(0, 256, (3, 48, 48, 3), np.uint8), ours.tokens(["a", "b"])
    assert peers.relative(ours.image(pixels), features(model, ours.normalised(pixels), ids)[0]) <= 1e-4


def test_patches_of_14_at_48_px_are_big_visions(tmp_path):
    arrays = published("larger")   # 3 x 3 patches of 14: an npz doesn't say of how many pixels
    path = stored(tmp_path, arrays)
    imported = runs.resized(big_vision.load(path, "", str(tokenizers.EMOJI)), 48)
    assert np.array_equal(imported.params["image"]["position"], arrays["params/img/pos_embedding"][0])
    pixels = np.random.default_rng(0).integers(0, 256, (2, 48, 48, 3), np.uint8)
    assert peers.relative(peers.of_run(as_run(imported)).image(pixels), Slow(arrays).image(pixels)) <= 1e-4
    assert SIZES["larger"][2] == 14 and any("fill no patch" in note for note in imported.notes)
    size, notes = big_vision._image_size(tmp_path, dict(image=dict(patch_size=14)), 378)
    assert size == 384 and "--image_size=378" in notes[0]


# ---- positions at another size ---------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("new", [84, 28, 48])
def test_positions_at_another_size_are_hugging_faces(tmp_path, new):
    model = siglip(tmp_path, 56)
    imported = runs.resized(hf.load(tmp_path, "", str(tokenizers.EMOJI)), new)
    ours = peers.of_run(as_run(imported))
    pixels = np.random.default_rng(0).integers(0, 256, (2, new, new, 3), np.uint8)
    with torch.no_grad():
        want = model.vision_model(torch.as_tensor(np.ascontiguousarray(ours.normalised(pixels))), interpolate_pos_encoding=True)
    assert peers.relative(ours.image(pixels), want.pooler_output.numpy()) <= 1e-4
    assert any("Hugging Face" in note for note in imported.notes)


@pytest.mark.parametrize("old, new", [(4, 7), (6, 3), (16, 24)])
def test_positions_are_interpolated_by_each_recipe(old, new):
    position = np.random.default_rng(0).standard_normal((1 + old * old, 5)).astype(np.float32)
    grid = position[1:].reshape(old, old, 5)
    planes = torch.as_tensor(grid).permute(2, 0, 1)[None]   # salesforce/ALBEF, models/vit.py, interpolate_pos_embed
    albef = F.interpolate(planes, size=(new, new), mode="bicubic", align_corners=False)[0].permute(1, 2, 0).reshape(-1, 5).numpy()
    got = positions.interpolated(position, 1 + new * new, "bicubic")
    np.testing.assert_allclose(got[1:], albef, atol=1e-5)
    assert np.array_equal(got[:1], position[:1])
    from scipy import ndimage  # google-research/big_vision, models/vit.py, resample_posemb
    zoomed = ndimage.zoom(grid, (new / old, new / old, 1), order=1).reshape(-1, 5)
    np.testing.assert_array_equal(positions.interpolated(position[1:], new * new, "linear"), zoomed)


def test_siglip_has_verdicts_too(tmp_path):
    run = our_run(SIGLIP, runs.Tokens(12, "emoji"), runs.View("resize", "area"))
    hf.save(run, tmp_path)
    found = verdicts.compared("hf", run, hf.peer(tmp_path), tmp_path, 2)
    assert verdicts.status(found) == 0 and any("average areas" in v.why for v in found)   # explained by the filter
