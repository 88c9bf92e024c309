"""ALBEF's published checkpoints (salesforce/ALBEF at b9727e4: models/model_pretrain.py, models/xbert.py, models/vit.py), read only.

A file holds {"model": {...}} or the arrays themselves: `visual_encoder.*`, `text_encoder.bert.*`, `text_encoder.cls.*`, the two
projections, `itm_head` and `temp`. Sizes follow from the arrays; heads have 64 numbers each, as in ViT-B and BERT-base. The
momentum copies (`*_m.*`) and the queues are left out: a new run's teacher starts from the loaded weights, and its queue anew. The
tokenizer is BERT's (uncased), which the file doesn't have: give its tokenizer.json.
"""
import pathlib
import re

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict
import numpy as np

from mcd_jax import config as config_lib
from mcd_jax.convert import bert, files, runs, tables
from mcd_jax.convert.tables import constant, first, fused, fused_bias, patch_oihw, row, transpose
from mcd_jax.methods.albef import albef

EXPORTS, IMPORTS = False, True
CONTEXT = 26   # 25 tokens, as its configs, and one of padding
HEAD = 64
PIXELS = dict(mean=(0.48145466, 0.4578275, 0.40821073), std=(0.26862954, 0.26130258, 0.27577711))
MOMENTUM = re.compile(r"(visual_encoder|vision_proj|text_encoder|text_proj)_m\..*")
QUEUES = ("image_queue", "text_queue", "queue_ptr", "idx_queue")
TIED = "the word table again, which the last matrix of the masked words' head is"


def names():
    """What a file may hold."""
    return [("ALBEF.pth", "pre-trained or fine-tuned for retrieval: image, text and fusion layers, matching and word heads")]


def rows(text_depth, fusion_depth, options):
    """The table, for layers split after `text_depth`; `options` are those of the text tower."""
    image, theirs = "image/block_{i}", "visual_encoder.blocks.{i}"
    return (
        row("image/patch/kernel", "visual_encoder.patch_embed.proj.weight", patch_oihw),
        row("image/patch/bias", "visual_encoder.patch_embed.proj.bias"),
        row("image/class_token", "visual_encoder.cls_token", _only_row), row("image/position", "visual_encoder.pos_embed", first),
        *_norm(f"{image}/ln1", f"{theirs}.norm1"), *_norm(f"{image}/ln2", f"{theirs}.norm2"),
        row([f"{image}/attn/{name}/kernel" for name in "qkv"], f"{theirs}.attn.qkv.weight", fused(3)),
        row([f"{image}/attn/{name}/bias" for name in "qkv"], f"{theirs}.attn.qkv.bias", fused_bias(3)),
        *_dense(f"{image}/attn/out", f"{theirs}.attn.proj"), *_dense(f"{image}/mlp/in", f"{theirs}.mlp.fc1"),
        *_dense(f"{image}/mlp/out", f"{theirs}.mlp.fc2"), *_norm("image/ln_post", "visual_encoder.norm"),
        *_dense("image/proj", "vision_proj"), *_dense("text/proj", "text_proj"),
        *bert.rows(options, "text_encoder.bert."),
        *(line for j in range(fusion_depth)
          for line in _fusion(f"fusion/block_{j}", f"text_encoder.bert.encoder.layer.{text_depth + j}")),
        *_dense("mlm/dense", "text_encoder.cls.predictions.transform.dense"),
        *_norm("mlm/ln", "text_encoder.cls.predictions.transform.LayerNorm"),
        row("mlm/bias", "text_encoder.cls.predictions.bias"),
        constant("text/token", "text_encoder.cls.predictions.decoder.weight", 0.0, TIED),
        constant("text/token", "text_encoder.cls.predictions.decoder.bias", 0.0, "its bias again"),
        *_dense("itm", "itm_head"), row("temperature", "temp"),
    )


def load(checkpoint, name="", tokenizer=""):
    """A file as `runs.Imported`.

    Args:
      checkpoint: the .pth file. name: unused. tokenizer: path of BERT's tokenizer.json.

    Raises:
      ValueError: no tokenizer, arrays of another model, or a head that isn't tied to the word table.
    """
    if not tokenizer:
        raise ValueError(f"{checkpoint} holds no tokenizer: give bert-base-uncased's as --tokenizer=tokenizer.json")
    return imported(files.load(pathlib.Path(checkpoint)), str(tokenizer), str(checkpoint))


def imported(arrays, tokenizer, where):
    """`load` for arrays, name -> numpy, and a tokenizer.json that has [MASK]."""
    import tokenizers as package
    arrays = {k.removeprefix("model."): x for k, x in arrays.items()}
    left_out = [(k, "the momentum copy: a teacher starts from the loaded weights") for k in arrays if MOMENTUM.fullmatch(k)]
    left_out += [(k, "the queue of training: it starts anew") for k in QUEUES if k in arrays]
    arrays = {k: x for k, x in arrays.items() if k not in dict(left_out)}
    table, head = "text_encoder.bert.embeddings.word_embeddings.weight", "text_encoder.cls.predictions.decoder.weight"
    patch = arrays.get("visual_encoder.patch_embed.proj.weight")
    if table not in arrays or patch is None:
        raise ValueError(f"{where} is no ALBEF checkpoint: it has neither {table} nor a visual_encoder")
    if head in arrays and not np.array_equal(arrays[head], arrays[table]):
        raise ValueError(f"{where}: {head} differs from the word table, to which ours is tied")
    layers = {int(m[1]) for m in map(re.compile(r"text_encoder\.bert\.encoder\.layer\.(\d+)\..*").fullmatch, arrays) if m}
    fused_layers = {i for i in layers if f"text_encoder.bert.encoder.layer.{i}.crossattention.self.query.weight" in arrays}
    depth, fusion = len(layers) - len(fused_layers), len(fused_layers)
    vocabulary, width = arrays[table].shape
    positions, types = (len(arrays[table.replace("word", kind)]) for kind in ("position", "token_type"))
    mlp = len(arrays["text_encoder.bert.encoder.layer.0.intermediate.dense.weight"])
    text = dict(name="bert", width=width, depth=depth, mlp_dim=mlp, num_heads=max(1, width // HEAD), positions=positions,
                types=types, pool="first", eps=1e-12, dropout=0.1, proj="biased")
    grid, side = arrays["visual_encoder.pos_embed"].shape[1] - 1, patch.shape[-1]
    blocks = len([k for k in arrays if re.fullmatch(r"visual_encoder\.blocks\.\d+\.norm1\.weight", k)])
    image = dict(name="vit", width=patch.shape[0], depth=blocks, mlp_dim=len(arrays["visual_encoder.blocks.0.mlp.fc1.weight"]),
                 num_heads=max(1, patch.shape[0] // HEAD), patch_size=side, pool="class", eps=1e-6, proj="biased")
    tokens = runs.Tokens(min(CONTEXT, positions), tokenizer, "", 0, False)
    made, mask_id = tokens.make(), package.Tokenizer.from_file(tokenizer).token_to_id("[MASK]")
    if mask_id is None or made.vocab_size != vocabulary:
        raise ValueError(f"{tokenizer} has {made.vocab_size} tokens and [MASK] at {mask_id}: {where} was trained with {vocabulary}")
    model = dict(image=image, text=text, embed_dim=len(arrays["vision_proj.bias"]), **PIXELS)
    inputs = dict(vocab_size=vocabulary, context=tokens.context, eot=made.eot, image_size=side * round(grid ** 0.5))
    objective = config_lib.objective("albef", fusion_layers=fusion, mask_id=mask_id, queue=0)
    shapes = _shapes(model, inputs, objective)
    params = tables.read(rows(depth, fusion, text), arrays, shapes, where)
    left_out += [(k, TIED) for k in (head,) if k in arrays]
    return runs.Imported(model, inputs, params, tokens, runs.View("resize", "bicubic"), left_out, where, objective, "bicubic")


def _shapes(model, inputs, objective):
    config = config_lib.default()
    config.objective, config.model = objective, ConfigDict({**model, "inputs": inputs})
    init = albef.make(ConfigDict(config.to_dict())).init
    return jax.eval_shape(lambda: init(jax.random.key(0), {"image": jnp.zeros((1,))}))


def _fusion(ours, theirs):
    """One layer with cross-attention."""
    return (
        *(line for kind, name in (("attn", "attention"), ("cross", "crossattention"))
          for line in (*(part for q, query in (("q", "query"), ("k", "key"), ("v", "value"))
                         for part in _dense(f"{ours}/{kind}/{q}", f"{theirs}.{name}.self.{query}")),
                       *_dense(f"{ours}/{kind}/out", f"{theirs}.{name}.output.dense"),
                       *_norm(f"{ours}/ln_{kind}", f"{theirs}.{name}.output.LayerNorm"))),
        *_dense(f"{ours}/mlp/in", f"{theirs}.intermediate.dense"), *_dense(f"{ours}/mlp/out", f"{theirs}.output.dense"),
        *_norm(f"{ours}/ln_mlp", f"{theirs}.output.LayerNorm"))


def _norm(ours, theirs):
    return row(f"{ours}/scale", f"{theirs}.weight"), row(f"{ours}/bias", f"{theirs}.bias")


def _dense(ours, theirs):
    return row(f"{ours}/kernel", f"{theirs}.weight", transpose), row(f"{ours}/bias", f"{theirs}.bias")


_only_row = tables.Transform("only row", lambda x: [x.reshape(-1)], lambda x: [x[None, None]])
