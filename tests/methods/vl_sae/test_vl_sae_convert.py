"""Sparse autoencoders in the released names: both directions, refusals, and a workdir that a run starts from."""
import jax
import numpy as np
import pytest

from mcd_jax.convert import __main__ as cli
from mcd_jax.convert import files, tables
from mcd_jax.methods.vl_sae import sae as sae_lib
from mcd_jax.methods.vl_sae import vl_sae_format
from mcd_jax.run import checkpoint

# ssfgunner/VL-SAE at 2d4a6754a5ee1769899870cc8edad8d7a7ab4b5d: the parameters of the modules of cvlms/sae_trainer/sae_model.py
# (VL_SAE: `self.encoder` a Parameter (hidden, input), `self.vision_decoder`, `self.text_decoder` nn.Linear; SAE_D:
# `self.v_encoder`, `self.t_encoder`, decoders in nn.Sequential; SAE_V: `self.encoder`, `self.decoder`) and of
# lvlms/sae_trainer/sae_model.py
# (AuxiliaryAE: `self.vision_projection`, `self.text_projection`, `self.vision_decoder`, `self.text_decoder`)
D, H = 6, 24
RELEASED = {
    "VL_SAE": {"encoder": (H, D), "vision_decoder.weight": (D, H), "vision_decoder.bias": (D,), "text_decoder.weight": (D, H),
               "text_decoder.bias": (D,)},
    "SAE_D": {"v_encoder.weight": (H, D), "v_encoder.bias": (H,), "t_encoder.weight": (H, D), "t_encoder.bias": (H,),
              "vision_decoder.0.weight": (D, H), "vision_decoder.0.bias": (D,), "text_decoder.0.weight": (D, H),
              "text_decoder.0.bias": (D,)},
    "SAE_V": {"encoder.weight": (H, D), "encoder.bias": (H,), "decoder.0.weight": (D, H), "decoder.0.bias": (D,)},
    "AuxiliaryAE": {"vision_projection.weight": (D, D), "vision_projection.bias": (D,), "text_projection.weight": (D, D),
                    "text_projection.bias": (D,), "vision_decoder.weight": (D, D), "vision_decoder.bias": (D,),
                    "text_decoder.weight": (D, D), "text_decoder.bias": (D,)},
}


def released(kind, seed=0):
    rng = np.random.default_rng(seed)
    return {name: rng.normal(size=shape).astype(np.float32) for name, shape in RELEASED[kind].items()}


@pytest.mark.parametrize("kind", RELEASED)
def test_there_and_back(kind):
    arrays = released(kind)
    found, params = vl_sae_format.to_ours(arrays)
    assert found == kind
    if kind in vl_sae_format.MODELS:      # the tree that the model itself makes
        like = jax.eval_shape(sae_lib.make(D, H, 4, **vl_sae_format.MODELS[kind]).init, jax.random.key(0))
        assert jax.tree.map(np.shape, params["sae"]) == jax.tree.map(lambda x: x.shape, like)
    else:
        like = jax.eval_shape(sae_lib.make_aligner(D, D).init, jax.random.key(0))
        assert jax.tree.map(np.shape, params["aux"]) == jax.tree.map(lambda x: x.shape, like)
    again, back = vl_sae_format.to_theirs(params)
    assert again == kind and back.keys() == arrays.keys()
    for name, x in arrays.items():
        np.testing.assert_array_equal(back[name], x)


def test_what_does_not_fit_is_refused():
    arrays = released("VL_SAE")
    with pytest.raises(ValueError, match=r"is none of VL_SAE, SAE_D, SAE_V, AuxiliaryAE: it holds encoder, text_decoder\.bias"):
        vl_sae_format.to_ours({k: v for k, v in arrays.items() if k != "vision_decoder.weight"})
    with pytest.raises(ValueError, match="differ in size"):
        vl_sae_format.to_ours({**arrays, "text_decoder.weight": np.zeros((D, H + 1), np.float32)})
    one = jax.device_get(sae_lib.make(D, H, 4, shared_decoder=True).init(jax.random.key(0)))
    with pytest.raises(ValueError, match="is none of"):    # a distance encoder with one decoder was never released
        vl_sae_format.to_theirs({"sae": one})
    with pytest.raises(ValueError, match="holds no sparse autoencoder"):
        vl_sae_format.to_theirs({"image": {}})


@pytest.mark.parametrize("kind", ["VL_SAE", "AuxiliaryAE"])
def test_a_file_becomes_a_workdir_and_a_file_again(kind, tmp_path, capsys):
    pytest.importorskip("safetensors")
    arrays = released(kind)
    files.save(tmp_path / "model.safetensors", arrays)
    cli.main(["import", "--from=vl_sae", f"--checkpoint={tmp_path}/model.safetensors", f"--out={tmp_path}/run"])
    said = capsys.readouterr().out
    assert "config.init_from" in said and ("ratio=4" if kind == "VL_SAE" else "auxiliary=True") in said
    like = tables.nested({path: jax.ShapeDtypeStruct(shape, np.dtype(dtype)) for path, (shape, dtype) in
                          checkpoint.Checkpoints(tmp_path / "run", read_only=True).leaves(0).items()})
    stored = checkpoint.restore_from(tmp_path / "run", like)
    assert set(stored["params"]) == {"sae" if kind == "VL_SAE" else "aux"}
    cli.main(["export", f"--workdir={tmp_path}/run", "--to=vl_sae", f"--out={tmp_path}/out"])
    back = files.load(tmp_path / "out" / "model.safetensors")
    for name, x in arrays.items():
        np.testing.assert_array_equal(back[name], x)
    with pytest.raises(SystemExit, match="holds checkpoints already"):
        cli.main(["import", "--from=vl_sae", f"--checkpoint={tmp_path}/model.safetensors", f"--out={tmp_path}/run"])
