"""Runs of ours for the tests of the convert formats: random ones, and one of a few steps on the embedded data."""
import jax
import numpy as np

from mcd_jax import config as config_lib
from mcd_jax import job
from mcd_jax.convert import runs, tables
from mcd_jax.data.emoji import names as emoji_names
from mcd_jax.models import towers as towers_lib
from mcd_jax.models import transformer
from mcd_jax.run import checkpoint
from mcd_jax.sharding import mesh as mesh_lib

CAPTIONS = ("cat face", "a red heart", "flag: Wales", "two men, holding hands", "Katze", "\u732b\u306e\u9854", "\u043a\u043e\u0442")
CLIP = dict(image=dict(name="vit", width=32, depth=2, num_heads=4, patch_size=8, ln_pre=True, patch_bias=False, act="quick_gelu"),
            text=dict(name="text", width=24, depth=2, num_heads=3, mlp_dim=40, act="gelu_tanh", pad_mask=False),
            embed_dim=16, mean=(0.4, 0.5, 0.6), std=(0.2, 0.3, 0.25))
SIGLIP = dict(image=dict(name="vit", width=32, depth=2, num_heads=4, patch_size=8, pool="map", proj="none", act="gelu_tanh",
                         eps=1e-6),
              text=dict(name="text", width=24, depth=2, num_heads=3, causal=False, pool="last", pad_mask=False, proj="biased",
                        act="gelu_tanh", eps=1e-6), embed_dim=32, logit_bias=-10.0)


def as_run(imported):
    """A `runs.Imported` as what `save` takes."""
    return runs.Run("x", runs.config_of(imported), imported.model, imported.inputs, imported.params, imported.tokens, imported.view,
                    0, "params", {}, [])


def our_run(model, tokens, view=None, seed=1, scan=False, image_size=32):
    """A `runs.Run` with random parameters, biases and scales too; scan=True: its towers are stacked."""
    made = tokens.make()
    inputs = dict(vocab_size=made.vocab_size, context=tokens.context, eot=made.eot, image_size=image_size)
    if made.pad:
        inputs["pad"] = made.pad
    if scan:
        model = {**model, **{kind: dict(model[kind], scan=True) for kind in ("image", "text")}}
    rng = np.random.default_rng(seed)
    params = {}
    for path, like in tables.flat(runs.abstract(model, inputs)).items():
        around, std = (float(path.endswith("scale")), 0.1 if like.ndim < 2 or "position" in path else like.shape[-2] ** -0.5)
        params[path] = (around + std * rng.standard_normal(like.shape)).astype(np.float32)
    params["text/token"] *= 50
    params = tables.nested(params)
    return as_run(runs.Imported(towers_lib.plain(model), inputs, params, tokens, view or runs.View("resize"), [], "x"))


def unrolled(params):
    """Parameters with stacked blocks cut apart."""
    return {k: transformer.unstacked(v) if hasattr(v, "keys") and "blocks" in v else v for k, v in params.items()}


def trained(folder, model, method, size=32, view="decode|resize(32, 'bicubic')", steps=4):
    """The workdir of a run of a few steps on the embedded data, captions in all languages."""
    config = config_lib.default()
    config.batch_size, config.steps = 16, f"{steps} steps"
    config.objective = config_lib.objective(method)
    config.model = model
    config.data.source = dict(name="emoji", split="train", captions=("label",), languages=emoji_names.LANGUAGES)
    config.data.views = dict(image=f"decode|crop({size}, 0.5)", text="caption('random')|tokenize(12, 'emoji')")
    config.data.workers = 1
    test = dict(name="emoji", split="test", captions=("label",), languages=("en",))
    config.evals = dict(retrieval=dict(test=dict(source=test, views=dict(image=view, text=config.data.views["text"]))))
    made = job.build(config)
    with jax.set_mesh(made.mesh):
        state = made.init(jax.random.key(0))
        for step in range(steps):
            state, metrics = made.step(state, mesh_lib.to_global(made.pipeline.batch(step), made.mesh))
            jax.block_until_ready(metrics)
        saver = checkpoint.Checkpoints(folder)
        saver.save(steps, state)
        saver.close()
    made.pipeline.close()
    config_lib.save(made.config, folder / "config.json")
    return folder
