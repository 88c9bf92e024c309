"""The tables of Hugging Face's `CLIPModel` and `SiglipModel`.

Names are those of transformers 5.23: `models/clip/modeling_clip.py`, `models/siglip/modeling_siglip.py`.
"""
from mcd_jax.convert.tables import fused, fused_bias, patch_oihw, row, same, scalar, transpose

ACTS = {"gelu": "gelu", "quick_gelu": "quick_gelu", "gelu_tanh": "gelu_pytorch_tanh", "relu": "relu"}   # ours: theirs


# ---- tables ----------------------------------------------------------------------------------------------------------------------

def clip_rows():
    """Rows between our parameters and a `CLIPModel`'s state dict."""
    vision, text = "vision_model", "text_model"
    return [
        row("image/class_token", f"{vision}.embeddings.class_embedding"),
        row("image/patch/kernel", f"{vision}.embeddings.patch_embedding.weight", patch_oihw),
        row("image/position", f"{vision}.embeddings.position_embedding.weight"),
        *_norm("image/ln_pre", f"{vision}.pre_layrnorm"),
        *_blocks("image", vision),
        *_norm("image/ln_post", f"{vision}.post_layernorm"),
        row("image/proj/kernel", "visual_projection.weight", transpose),
        *_text(text),
        row("text/proj/kernel", "text_projection.weight", transpose),
        row("logit_scale", "logit_scale"),
    ]


def siglip_rows():
    """Rows between our parameters and a `SiglipModel`'s state dict."""
    vision, text = "vision_model", "text_model"
    head = f"{vision}.head"
    return [
        row("image/patch/kernel", f"{vision}.embeddings.patch_embedding.weight", patch_oihw),
        row("image/patch/bias", f"{vision}.embeddings.patch_embedding.bias"),
        row("image/position", f"{vision}.embeddings.position_embedding.weight"),
        *_blocks("image", vision),
        *_norm("image/ln_post", f"{vision}.post_layernorm"),
        row("image/pool/probe", f"{head}.probe"),
        row(tuple(f"image/pool/attn/{name}/kernel" for name in "qkv"), f"{head}.attention.in_proj_weight", fused(3)),
        row(tuple(f"image/pool/attn/{name}/bias" for name in "qkv"), f"{head}.attention.in_proj_bias", fused_bias(3)),
        *_dense("image/pool/attn/out", f"{head}.attention.out_proj"),
        *_norm("image/pool/ln", f"{head}.layernorm"),
        *_dense("image/pool/mlp/in", f"{head}.mlp.fc1"),
        *_dense("image/pool/mlp/out", f"{head}.mlp.fc2"),
        *_text(text),
        *_dense("text/proj", f"{text}.head"),
        row("logit_scale", "logit_scale", scalar),
        row("logit_bias", "logit_bias", scalar),
    ]


def _text(theirs):
    return [
        row("text/token", f"{theirs}.embeddings.token_embedding.weight"),
        row("text/position", f"{theirs}.embeddings.position_embedding.weight"),
        *_blocks("text", theirs),
        *_norm("text/ln_final", f"{theirs}.final_layer_norm"),
    ]


def _blocks(ours, theirs):
    block, layer = f"{ours}/block_{{i}}", f"{theirs}.encoder.layers.{{i}}"
    rows = [*_norm(f"{block}/ln1", f"{layer}.layer_norm1"), *_norm(f"{block}/ln2", f"{layer}.layer_norm2"),
            *_dense(f"{block}/mlp/in", f"{layer}.mlp.fc1"), *_dense(f"{block}/mlp/out", f"{layer}.mlp.fc2")]
    for name in ("q", "k", "v", "out"):
        rows += _dense(f"{block}/attn/{name}", f"{layer}.self_attn.{name}_proj")
    return rows


def _norm(ours, theirs):
    return [row(f"{ours}/scale", f"{theirs}.weight", same), row(f"{ours}/bias", f"{theirs}.bias", same)]


def _dense(ours, theirs):
    return [row(f"{ours}/kernel", f"{theirs}.weight", transpose), row(f"{ours}/bias", f"{theirs}.bias", same)]
