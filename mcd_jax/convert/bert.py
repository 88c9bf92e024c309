"""BERT text towers with Hugging Face's names (transformers, models/bert/modeling_bert.py, BertModel), sentence-transformers' too.

A folder is config.json, model.safetensors (or pytorch_model.bin) and tokenizer.json; 1_Pooling/config.json of a
sentence-transformers model says how its tokens become one vector.
"""
import pathlib

import numpy as np

from mcd_jax.convert import files, tower
from mcd_jax.convert.tables import constant, row, transpose
from mcd_jax.run import small_files

EXPORTS, IMPORTS = False, True
_ACT = {"gelu": "gelu", "gelu_new": "gelu_tanh", "gelu_pytorch_tanh": "gelu_tanh", "relu": "relu"}
NO_POOLER = "the pooler of BERT's next-sentence task, which no tower of ours reads"
NO_INDEX = "the row numbers of the position table"


def names():
    """What a folder may hold."""
    return [("BertModel", "any folder of it with absolute positions, all-MiniLM-L6-v2 among them: a text tower alone")]


def rows(options, before=""):
    """The table; `before` stands before their names ("bert." in models with a head)."""
    block, theirs, width = "text/block_{i}", f"{before}encoder.layer.{{i}}", options["width"]
    return (
        *(row(f"text/{ours}", f"{before}embeddings.{name}.weight") for ours, name in (
            ("token", "word_embeddings"), ("position", "position_embeddings"), ("type", "token_type_embeddings"))),
        *_norm("text/ln_embed", f"{before}embeddings.LayerNorm"),
        *(line for ours, name in (("q", "query"), ("k", "key"), ("v", "value"))
          for line in _dense(f"{block}/attn/{ours}", f"{theirs}.attention.self.{name}")),
        *_dense(f"{block}/attn/out", f"{theirs}.attention.output.dense"),
        *_norm(f"{block}/ln_attn", f"{theirs}.attention.output.LayerNorm"),
        *_dense(f"{block}/mlp/in", f"{theirs}.intermediate.dense"), *_dense(f"{block}/mlp/out", f"{theirs}.output.dense"),
        *_norm(f"{block}/ln_mlp", f"{theirs}.output.LayerNorm"),
        constant("text/token", f"{before}pooler.dense.weight", np.eye(width, dtype=np.float32), NO_POOLER),
        constant("text/token", f"{before}pooler.dense.bias", np.zeros(width, np.float32), NO_POOLER),
        constant("text/token", f"{before}embeddings.position_ids", np.arange(options["positions"])[None], NO_INDEX),
    )


def load(checkpoint, name="", tokenizer=""):
    """A folder as a `tower.Tower`.

    Args:
      checkpoint: the folder, or its file of weights. name: unused. tokenizer: path of a tokenizer.json; "": that of the folder.

    Raises:
      FileNotFoundError: a file is missing. ValueError: another model than BERT, an option that we lack, weights that don't fit.
    """
    path = pathlib.Path(checkpoint)
    folder = path if path.is_dir() else path.parent
    weights = files.find(folder, ("model.safetensors", "pytorch_model.bin")) if path.is_dir() else path
    config = small_files.read(files.find(folder, ("config.json",)))
    options = options_of(config, folder)
    arrays = files.load(weights)
    before = "bert." if "bert.embeddings.word_embeddings.weight" in arrays else ""
    if before:
        arrays = {k: x for k, x in arrays.items() if k.startswith(before)}
    table = rows(options, before)
    inputs = dict(vocab_size=config["vocab_size"], context=options["positions"], eot=1)
    params = tower.read(table, arrays, "text", options, str(weights), **inputs)
    found = tokenizer or str(files.find(folder, ("tokenizer.json",)))
    dropped = [(line.theirs[0], line.why) for line in table if line.kind == "constant" and line.theirs[0] in arrays]
    if before:
        dropped.append(("all names without bert.", "heads of another task"))
    return tower.Tower("text", options, params, {}, found, dropped, str(weights))


def options_of(config, folder=None):
    """The options of config.model.text for their config.json.

    Raises:
      ValueError: the config asks for what the tower can't do.
    """
    kind, positions = config.get("model_type"), config.get("position_embedding_type", "absolute")
    act = config.get("hidden_act", "gelu")
    if kind != "bert" or positions != "absolute" or act not in _ACT or config.get("is_decoder") or config.get("pad_token_id", 0):
        raise ValueError(f"config.json: model_type={kind!r}, position_embedding_type={positions!r}, hidden_act={act!r}, "
                         f"pad_token_id={config.get('pad_token_id', 0)}; this format reads model_type='bert' encoders with "
                         f"absolute positions, padding 0 and one of {', '.join(_ACT)}")
    pooling = folder / "1_Pooling" / "config.json" if folder else None
    stored = small_files.read(pooling) if pooling and pooling.is_file() else {}
    mean = stored.get("pooling_mode_mean_tokens", False)
    return dict(name="bert", width=config["hidden_size"], depth=config["num_hidden_layers"], mlp_dim=config["intermediate_size"],
                num_heads=config["num_attention_heads"], positions=config["max_position_embeddings"],
                types=config["type_vocab_size"], pool="mean" if mean else "first", act=_ACT[act], eps=config["layer_norm_eps"])


def _norm(ours, theirs):
    return row(f"{ours}/scale", f"{theirs}.weight"), row(f"{ours}/bias", f"{theirs}.bias")


def _dense(ours, theirs):
    return row(f"{ours}/kernel", f"{theirs}.weight", transpose), row(f"{ours}/bias", f"{theirs}.bias")
