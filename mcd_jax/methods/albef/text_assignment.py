"""Text assignment: a text and two images, of which one is its own, or neither: which is it? ALBEF's preparation for NLVR2.

Li et al. 2021, section 4.4. The data are image-text pairs; the fusion layers are there twice, a copy for each image (`twin.py`).
With probability 2/3 a text gets its own image and one of its group, in random order (class 0: the first is its own, 1: the
second), else two others (class 2). Others are drawn by the softmax of the images' similarity. One linear layer on the fused [CLS]
gives the three classes. No teacher, as in the published code (salesforce/ALBEF at b9727e4, models/model_pretrain_nlvr.py).
`entailment.py` goes on from there.

From a run of ALBEF: config.init_fresh = FRESH and config.init_copies = COPIES.
"""
from collections.abc import Callable, Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from mcd_jax.methods.albef import albef, entailment, matching
from mcd_jax.methods.albef import twin as twin_lib
from mcd_jax.objectives import two_tower
from mcd_jax.objectives.objective import Objective
from mcd_jax.sharding.microbatch import microbatched


class Options(NamedTuple):
    """Defaults are those of the published code, which all were seen there."""
    image: str = "image"
    text: str = "text"
    fusion_layers: int = 6              # on top of the text tower's layers
    temperature: float = 0.07   # of the similarity by which other images are drawn
    own: float = 2 / 3          # share of texts that get their own image


WEIGHTS = {"assign": 1.0}
FRESH, COPIES = ("assign/.*", *entailment.BEHIND), entailment.COPIES


def make(config: ConfigDict, extra_terms: Mapping[str, Callable] = {}) -> Objective:
    """The `Objective`; term: assign. No memory.

    Raises:
      ValueError: an option outside its range, groups of fewer than 3 rows, or a text tower that isn't a BERT.
    """
    opts, towers = two_tower.prepare(config, Options)
    cross, tower = albef.cross_of(config, towers, opts.fusion_layers)
    layers = twin_lib.make(tower, opts.fusion_layers)
    group = config.get("group_size", 0) or config.batch_size
    if group < 3:
        raise ValueError(f"config.group_size={group}: a text may get two images of others, so a group needs at least 3 rows")
    if opts.temperature <= 0 or not 0 <= opts.own <= 1:
        raise ValueError(f"config.objective: temperature={opts.temperature} must be above 0 and own={opts.own} in [0, 1]")

    def init(key, batch):
        k_towers, k_cross, k_second, k_assign = jax.random.split(key, 4)
        params = {k: v for k, v in towers.init(k_towers).items() if k not in ("logit_scale", "logit_bias")}
        return {**params, "fusion": cross.init(k_cross)["fusion"], "second": layers.init(cross.init(k_second)["fusion"]),
                "assign": entailment.linear(k_assign, tower.width, 3)}

    def rows(params, encoded):
        return {"image": encoded["image"]["z"], "states/image": albef.image_states(encoded["image"]),
                "states/text": encoded["text"]["tokens"]}

    def on_batch(out, params, memory, batch, key, step):
        size = len(out["image"])
        k_draw, k_noise = jax.random.split(key)
        x = jax.lax.stop_gradient(out["image"]).reshape(-1, group, out["image"].shape[-1])
        alike = jnp.einsum("gid,gjd->gij", x, x, precision="highest") / opts.temperature
        first, second, label = matching.assignments(k_draw, alike, opts.own)
        slices = {"text": out["states/text"], "seen": batch[opts.text] != tower.pad,
                  "first": matching.take(out["states/image"], first), "second": matching.take(out["states/image"], second)}
        if layers.noise_depth:
            slices["noise"] = jax.random.uniform(k_noise, (size, layers.noise_depth))
        trained = {k: params[k] for k in ("fusion", "second", "assign")}
        logits = microbatched(fused, config.microbatches)(trained, {}, slices)["rows"]["logits"]
        return {"logits": logits, "label": label.reshape(-1), "first": first, "second": second}

    def fused(params, _, x, __):
        pooled = layers.fuse(params["fusion"], params["second"], x["text"], x["seen"], (x["first"], x["second"]), x.get("noise"))
        return {"rows": {"logits": entailment.apply(params["assign"], pooled["pooled"].astype(jnp.float32))}}

    def assign(out):
        return -jnp.mean(jnp.take_along_axis(jax.nn.log_softmax(out["logits"]), out["label"][:, None], axis=1))

    return two_tower.objective(
        config, towers, two_tower.ForwardPass({"image": two_tower.TowerPass("image", opts.image),
                                               "text": two_tower.TowerPass("text", opts.text)}, rows, on_batch),
        needs=(opts.image, opts.text),
        init=init,
        terms={"assign": assign, **extra_terms},
        metrics={"accuracy": lambda out: jnp.mean((jnp.argmax(out["logits"], axis=1) == out["label"]).astype(jnp.float32))})
