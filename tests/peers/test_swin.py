"""The Swin transformer against timm's, with random weights carried over by hand."""
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from mcd_jax.models import swin

timm = pytest.importorskip("timm")


def arrays(module):
    return {name: value.detach().numpy() for name, value in module.state_dict().items()}


def dense(w, name):
    return {"kernel": w[f"{name}.weight"].T, **({"bias": w[f"{name}.bias"]} if f"{name}.bias" in w else {})}


def norm(w, name):
    return {"scale": w[f"{name}.weight"], "bias": w[f"{name}.bias"]}


def block(w, name):
    qkv = dense(w, f"{name}.attn.qkv")
    parts = [{"kernel": k, "bias": b} for k, b in zip(np.split(qkv["kernel"], 3, 1), np.split(qkv["bias"], 3))]
    return {"ln1": norm(w, f"{name}.norm1"), "ln2": norm(w, f"{name}.norm2"),
            "attn": {**dict(zip("qkv", parts)), "out": dense(w, f"{name}.attn.proj"),
                     "position": w[f"{name}.attn.relative_position_bias_table"]},
            "mlp": {"in": dense(w, f"{name}.mlp.fc1"), "out": dense(w, f"{name}.mlp.fc2")}}


def carried(theirs, depths):
    w = arrays(theirs)
    params = {"patch": {"kernel": w["patch_embed.proj.weight"].transpose(2, 3, 1, 0)}, "patch_bias": w["patch_embed.proj.bias"],
              "ln_patch": norm(w, "patch_embed.norm"), "ln_post": norm(w, "norm")}
    for i, depth in enumerate(depths):
        if i:
            params[f"merge_{i}_ln"] = norm(w, f"layers.{i}.downsample.norm")
            params[f"merge_{i}"] = dense(w, f"layers.{i}.downsample.reduction")
        for j in range(depth // 2):
            params[f"stage_{i}_pair_{j}"] = {"plain": block(w, f"layers.{i}.blocks.{2 * j}"),
                                             "shifted": block(w, f"layers.{i}.blocks.{2 * j + 1}")}
    return params


def test_tokens_equal_those_of_timm():
    torch.manual_seed(0)
    depths, heads = (2, 4, 2), (2, 4, 8)
    theirs = timm.models.swin_transformer.SwinTransformer(img_size=64, patch_size=2, embed_dim=16, depths=depths, num_heads=heads,
                                                          window_size=4, num_classes=0).eval()
    for name, p in theirs.named_parameters():   # biases and norms start at 0 and 1, which would hide a mistake
        torch.nn.init.normal_(p, std=0.3 if p.ndim > 1 or "bias" in name else 0.2)
    options = dict(width=16, depths=depths, heads=heads, window=4, patch_size=2, pool="mean")
    net = swin.make(options, image_size=64, dtype=jnp.float32)
    x = np.random.default_rng(0).normal(size=(2, 64, 64, 3)).astype(np.float32)
    with torch.no_grad():
        want = theirs.forward_features(torch.from_numpy(x.transpose(0, 3, 1, 2))).numpy()
    got = net.apply({"params": carried(theirs, depths)}, jnp.asarray(x))
    np.testing.assert_allclose(got["tokens"].reshape(want.shape), want, rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(got["pooled"], want.mean((1, 2)), rtol=1e-3, atol=1e-4)


def test_swin_l_has_the_published_number_of_parameters():
    with torch.device("meta"):
        theirs = timm.create_model("swin_large_patch4_window7_224", num_classes=0)
    assert sum(p.numel() for p in theirs.parameters()) == 194_995_476   # tests/test_loupe_swin.py holds ours to it
