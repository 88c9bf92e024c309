"""Single towers in: tables cover everything both ways, the workdir feeds a locked run, and what doesn't fit is listed.

That the names and the features are those of the peers is shown beside them, in tests/peers/test_locked.py.
"""
import json
import re

import jax
import numpy as np
import pytest

from mcd_jax import config as config_lib
from mcd_jax import job as job_lib
from mcd_jax.convert import __main__ as command
from mcd_jax.convert import bert, efficientnet_lite, tables, tower
from mcd_jax.data import tokenizers
from mcd_jax.models import towers

VOCAB = tokenizers.make("emoji").vocab_size
CONFIG = dict(model_type="bert", vocab_size=VOCAB, hidden_size=12, num_hidden_layers=2, num_attention_heads=3, intermediate_size=20,
              max_position_embeddings=10, type_vocab_size=2, layer_norm_eps=1e-12, hidden_act="gelu", pad_token_id=0)
OTHER = {"image": {"name": "resnet", "widths": (8,), "depths": (1,)},
         "text": {"name": "text", "width": 8, "depth": 1, "num_heads": 2}}


def random_tower(kind, options, **inputs):
    """Random numbers in the shapes of a tower, without a projection."""
    _, module, _ = towers.tower({**OTHER, kind: options, "embed_dim": 4}, kind, **inputs)
    dummy = np.zeros((1, 6), np.int32) if kind == "text" else np.zeros((1, 32, 32, 3), np.float32)
    shapes = jax.eval_shape(lambda: module.init(jax.random.key(0), dummy))["params"]
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda x: rng.standard_normal(x.shape).astype(np.float32), shapes)


@pytest.fixture
def folder(tmp_path):
    """(folder of a small BERT with Hugging Face's names, as npz; our parameters of it)."""
    options = bert.options_of(CONFIG)
    params = random_tower("text", options, vocab_size=VOCAB, context=6, eot=1)
    save(tmp_path, tables.write(bert.rows(options), {"text": params}))
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    (tmp_path / "tokenizer.json").write_bytes(tokenizers.EMOJI.read_bytes())
    return tmp_path, params


def save(folder, arrays):
    np.savez(folder / "model.npz", **arrays)


def change(folder, **changes):
    with np.load(folder / "model.npz") as stored:
        arrays = {**{name: stored[name] for name in stored.files}, **changes}
    save(folder, {name: x for name, x in arrays.items() if x is not None})


@pytest.mark.parametrize("before", ["", "bert."])
def test_bert_read_after_written_is_the_same(folder, before):
    path, params = folder
    if before:
        save(path, {**tables.write(bert.rows(bert.options_of(CONFIG), before), {"text": params}), "cls.bias": np.zeros(3)})
    got = bert.load(path / "model.npz")
    jax.tree.map(np.testing.assert_array_equal, got.params, params)
    assert got.options["pool"] == "first" and got.tokenizer.endswith("tokenizer.json")
    assert {name.removeprefix("bert.") for name, _ in got.left_out} >= {"pooler.dense.weight", "pooler.dense.bias"}


def test_a_folder_of_sentence_transformers_says_how_it_pools(folder):
    path, _ = folder
    (path / "1_Pooling").mkdir()
    (path / "1_Pooling" / "config.json").write_text('{"pooling_mode_cls_token": false, "pooling_mode_mean_tokens": true}')
    assert bert.load(path / "model.npz").options["pool"] == "mean"


def test_lite0_read_after_written_is_the_same(tmp_path):
    params = random_tower("image", {"name": "efficientnet", "variant": "lite0"}, image_size=32)
    arrays = tables.write(efficientnet_lite.rows(), {"image": params})
    save(tmp_path, arrays)
    got = efficientnet_lite.load(tmp_path / "model.npz")
    jax.tree.map(np.testing.assert_array_equal, got.params, params)
    assert arrays["_blocks.3._depthwise_conv.weight"].shape == (144, 1, 5, 5) and arrays["_fc.weight"].shape == (1000, 1280)
    assert sum(name.endswith("num_batches_tracked") for name in arrays) == 2 + 3 * 16 - 1


def test_an_imported_tower_starts_a_locked_run(folder, capsys):
    path, params = folder
    command.main(["import", "--from=bert", f"--checkpoint={path}/model.npz", f"--out={path}/run"])
    printed = capsys.readouterr().out
    assert "left out: pooler.dense.weight" in printed and f"tokenize(CONTEXT, \'{path}/run/tokenizer.json\')" in printed
    config = config_lib.from_file(__file__.rpartition("/")[0] + "/../configs/locked.py:")
    stored = json.loads((path / "run" / "config.json").read_text())["model"]["text"]
    for line in printed.splitlines()[printed.splitlines().index("") + 1:]:      # as a user would paste it
        assert re.match(r"config\.(model|init_locked|data)\.[\w.]+ = .", line), line
    with config.unlocked():
        config.model.text = stored
        config.data.views.text = f"caption('first')|tokenize(6, '{path}/run/tokenizer.json')"
        config.init_locked.text = f"{path}/run"
    job = job_lib.build(config)
    _, locked = job_lib.initial(job.config, job.abstract)
    jax.tree.map(np.testing.assert_array_equal, locked["text"], params)
    with pytest.raises(ValueError, match="holds checkpoints already: name a new folder"):
        tower.write_workdir(bert.load(path / "model.npz"), path / "run")


@pytest.mark.parametrize("changes, words", [
    ({"embeddings.LayerNorm.weight": None}, "missing: embeddings.LayerNorm.weight"),
    ({"encoder.layer.2.output.dense.bias": np.zeros(12, np.float32)}, "unexpected: encoder.layer.2.output.dense.bias"),
    ({"embeddings.position_embeddings.weight": np.zeros((9, 12), np.float32)}, "wrong shape: embeddings.position_embeddings.w"),
    ({"encoder.layer.1.intermediate.dense.bias": np.zeros(20, np.int64)}, "wrong dtype: encoder.layer.1.intermediate.dense.b"),
])
def test_weights_that_do_not_fit_are_listed(folder, changes, words):
    change(folder[0], **changes)
    with pytest.raises(ValueError, match=words):
        bert.load(folder[0] / "model.npz")


@pytest.mark.parametrize("changes", [dict(model_type="roberta"), dict(position_embedding_type="relative_key"),
                                     dict(is_decoder=True), dict(hidden_act="silu"), dict(pad_token_id=1)], ids=str)
def test_other_models_are_refused(changes):
    with pytest.raises(ValueError, match="this format reads model_type='bert' encoders with absolute positions, padding 0"):
        bert.options_of({**CONFIG, **changes})


def test_other_sizes_of_efficientnet_are_refused(tmp_path):
    with pytest.raises(ValueError, match="--model=efficientnet-lite4: there are efficientnet-lite0"):
        efficientnet_lite.load(tmp_path, "efficientnet-lite4")
    with pytest.raises(ValueError, match="holds 0 files"):
        efficientnet_lite.load(tmp_path)
