"""The table of CLIP's own parameter names, which OpenAI's and open_clip's checkpoints share, with timm's ViT for SigLIP."""
import numpy as np

from mcd_jax.convert.tables import constant, conv, first, fused, fused_bias, patch_oihw, row, same, transpose

NO_COUNTER = "batch normalisation's count of training batches; its statistics are frozen here"


def rows(model, text="", timm=False):
    """The rows for a `config.model`.

    Args:
      model: plain dict of `config.model`.
      text: what stands before the text tower's names: "" in CLIP, "text." in open_clip's CustomTextCLIP.
      timm: whether the image tower is timm's ViT (`visual.trunk.*`).
    """
    image = _resnet() if model["image"]["name"] == "resnet" else _timm_vit() if timm else _vit()
    return (*image, *_text(text, model["text"].get("proj", "linear")), row("logit_scale", "logit_scale"),
            row("logit_bias", "logit_bias"))


def _norm(ours, theirs):
    return row(f"{ours}/scale", f"{theirs}.weight"), row(f"{ours}/bias", f"{theirs}.bias")


def _dense(ours, theirs):
    return row(f"{ours}/kernel", f"{theirs}.weight", transpose), row(f"{ours}/bias", f"{theirs}.bias")


def _many(ours, theirs, *names):
    """Several dense layers of ours that are one of theirs."""
    return (row([f"{ours}/{name}/kernel" for name in names], f"{theirs}weight", fused(len(names))),
            row([f"{ours}/{name}/bias" for name in names], f"{theirs}bias", fused_bias(len(names))))


def _blocks(ours, theirs):
    """torch's nn.MultiheadAttention and CLIP's names for the rest."""
    ours, theirs = f"{ours}/block_{{i}}", f"{theirs}.{{i}}"
    return (*_norm(f"{ours}/ln1", f"{theirs}.ln_1"), *_many(f"{ours}/attn", f"{theirs}.attn.in_proj_", "q", "k", "v"),
            *_dense(f"{ours}/attn/out", f"{theirs}.attn.out_proj"), *_norm(f"{ours}/ln2", f"{theirs}.ln_2"),
            *_dense(f"{ours}/mlp/in", f"{theirs}.mlp.c_fc"), *_dense(f"{ours}/mlp/out", f"{theirs}.mlp.c_proj"))


def _vit():
    return (row("image/patch/kernel", "visual.conv1.weight", patch_oihw),
            row("image/class_token", "visual.class_embedding"), row("image/position", "visual.positional_embedding"),
            *_norm("image/ln_pre", "visual.ln_pre"), *_blocks("image", "visual.transformer.resblocks"),
            *_norm("image/ln_post", "visual.ln_post"), row("image/proj/kernel", "visual.proj"))


def _timm_vit():
    block, theirs, pool = "image/block_{i}", "visual.trunk.blocks.{i}", "visual.trunk.attn_pool"
    return (row("image/patch/kernel", "visual.trunk.patch_embed.proj.weight", patch_oihw),
            row("image/patch/bias", "visual.trunk.patch_embed.proj.bias"), row("image/position", "visual.trunk.pos_embed", first),
            *_norm(f"{block}/ln1", f"{theirs}.norm1"), *_many(f"{block}/attn", f"{theirs}.attn.qkv.", "q", "k", "v"),
            *_dense(f"{block}/attn/out", f"{theirs}.attn.proj"), *_norm(f"{block}/ln2", f"{theirs}.norm2"),
            *_dense(f"{block}/mlp/in", f"{theirs}.mlp.fc1"), *_dense(f"{block}/mlp/out", f"{theirs}.mlp.fc2"),
            *_norm("image/ln_post", "visual.trunk.norm"),
            row("image/pool/probe", f"{pool}.latent"), *_dense("image/pool/attn/q", f"{pool}.q"),
            *_many("image/pool/attn", f"{pool}.kv.", "k", "v"), *_dense("image/pool/attn/out", f"{pool}.proj"),
            *_norm("image/pool/ln", f"{pool}.norm"), *_dense("image/pool/mlp/in", f"{pool}.mlp.fc1"),
            *_dense("image/pool/mlp/out", f"{pool}.mlp.fc2"), *_dense("image/proj", "visual.head.proj"))


def _batch_norm(ours, theirs):
    return (*_norm(ours, theirs), row(f"{ours}/mean", f"{theirs}.running_mean"), row(f"{ours}/var", f"{theirs}.running_var"),
            constant(f"{ours}/mean", f"{theirs}.num_batches_tracked", np.int64(0), NO_COUNTER))


def _resnet():
    result = []
    for i in range(3):
        result += [row(f"image/stem{i}/kernel", f"visual.conv{i + 1}.weight", conv),
                   *_batch_norm(f"image/stem_norm{i}", f"visual.bn{i + 1}")]
    for stage in range(4):
        ours, theirs = f"image/stage_{stage}_block_{{i}}", f"visual.layer{stage + 1}.{{i}}"
        for j in (1, 2, 3):
            result += [row(f"{ours}/conv{j}/kernel", f"{theirs}.conv{j}.weight", conv),
                       *_batch_norm(f"{ours}/norm{j}", f"{theirs}.bn{j}")]
        result += [row(f"{ours}/shortcut/kernel", f"{theirs}.downsample.0.weight", conv),
                   *_batch_norm(f"{ours}/shortcut_norm", f"{theirs}.downsample.1")]
    pool = "visual.attnpool"
    return (*result, row("image/pool/position", f"{pool}.positional_embedding"),
            *(line for name in "qkv" for line in _dense(f"image/pool/attn/{name}", f"{pool}.{name}_proj")),
            *_dense("image/proj", f"{pool}.c_proj"))


def _text(prefix, proj):
    """With proj="biased" their projection is a linear layer, else a matrix as ours."""
    name = f"{prefix}text_projection"
    projection = _dense("text/proj", name) if proj == "biased" else (row("text/proj/kernel", name, same),)
    return (row("text/token", f"{prefix}token_embedding.weight"), row("text/position", f"{prefix}positional_embedding"),
            *_blocks("text", f"{prefix}transformer.resblocks"), *_norm("text/ln_final", f"{prefix}ln_final"), *projection)
