"""Small models of every kind that a foreign format has, with random numpy parameters: for the tests of `convert`."""
import jax
import numpy as np

from mcd_jax.convert import clip_rows, runs, tables

SIZE = 16
VIT = dict(name="vit", width=16, depth=2, mlp_dim=32, num_heads=2, patch_size=8, pool="class", patch_bias=False, ln_pre=True)
TEXT = dict(name="text", width=16, depth=2, mlp_dim=32, num_heads=2)
SIGLIP_TEXT = dict(TEXT, causal=False, pad_mask=False, pool="last", proj="biased", eps=1e-6)
RESNET = dict(name="resnet", stem="clip", stem_width=8, widths=(32, 64, 128, 256), depths=(1, 2, 1, 1), block="bottleneck",
              norm="frozen", pool="attention", proj="biased", num_heads=4, act="relu", mask_patch=32)
INPUTS = dict(vocab_size=8192, context=7, eot=1, image_size=SIZE)
MODELS = {
    "vit": (dict(image=VIT, text=TEXT, embed_dim=8), INPUTS),
    "clipa": (dict(image=dict(VIT, pool="mean", spare_token=True, norm_pooled=True, ln_pre=False),
                   text=dict(SIGLIP_TEXT, proj="linear"), embed_dim=8), INPUTS),
    "siglip": (dict(image=dict(VIT, pool="map", patch_bias=True, ln_pre=False, eps=1e-6, proj="none", act="gelu_tanh"),
                    text=dict(SIGLIP_TEXT, act="gelu_tanh"), embed_dim=16, logit_bias=-10.0), INPUTS),
    "resnet": (dict(image=RESNET, text=TEXT, embed_dim=8), {**INPUTS, "image_size": 32}),
}


def drawn(model, inputs, seed=0):
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda x: rng.standard_normal(x.shape).astype(np.float32), runs.abstract(model, inputs))


def table(name):
    model, inputs = MODELS[name]
    timm = name == "siglip"
    return clip_rows.rows(model, "text." if timm else "", timm), drawn(model, inputs), model, inputs


def equal(a, b):
    a, b = tables.flat(a), tables.flat(b)
    assert a.keys() == b.keys()
    for key in a:
        assert a[key].dtype == b[key].dtype and np.array_equal(a[key], b[key]), key
