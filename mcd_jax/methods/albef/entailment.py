"""Which of a few classes a text has of an image, or of two: visual entailment and NLVR2 (Li et al. 2021, ALBEF, section 4.4).

The text tower and fusion layers read the text together with the image; a small network on top of the fused [CLS] (the pooled text)
gives the classes. With the option `second` there are two images, and every fusion layer is there twice (`twin.py`).

Momentum distillation mixes the teacher's distribution over the classes into the targets with a share alpha, which is the weight of
the term `label_distill`, soft - hard, as in `albef.py`; its ramp is the term's `warmup`. For entailment the published
code has no ramp (warmup 0), for NLVR2 one of an epoch. There the teacher of NLVR2 starts from weights that were never loaded; here
it starts as a copy of the loaded ones. A weight of 0 leaves the teacher out.

From a run of ALBEF: config.init_fresh = FRESH, and with two images config.init_copies = COPIES. The evaluation is
`classification_eval.py`.
"""
from collections.abc import Callable, Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from mcd_jax.methods.albef import albef
from mcd_jax.methods.albef import fusion_layers as fusion_layers_lib
from mcd_jax.methods.albef import twin as twin_lib
from mcd_jax.models import bert
from mcd_jax.models.towers import Towers
from mcd_jax.objectives import two_tower
from mcd_jax.objectives.objective import Objective, Tree
from mcd_jax.objectives.two_tower import Term, TowerPass
from mcd_jax.sharding.microbatch import microbatched


class Options(NamedTuple):
    """Defaults are those of the published code for entailment, which all were seen there."""
    image: str = "image"
    second: str = ""                    # batch key of the other image, or none
    text: str = "text"
    label: str = "label"                # batch key of the class, int (B,) from 0
    classes: int = 3                    # of labels
    fusion_layers: int = 6              # on top of the text tower's layers
    ema_m: float = 0.995                # the teacher's momentum
    teacher_dropout: bool = True        # the teacher drops units too (the code); the rate is config.model.text.dropout


WEIGHTS = {"label": 1.0, "label_distill": 0.4}
AVERAGED = ("image", "text", "fusion", "second", "judge")
BEHIND = ("mlm/.*", "itm/.*", "temperature")   # what a run of ALBEF has and this hasn't
FRESH = ("judge/.*", *BEHIND)
COPIES = (("second/(.*)", r"fusion/\1"),)


class Pieces(NamedTuple):
    """What the parts of the forward pass are made of."""
    config: ConfigDict
    opts: Options
    towers: Towers
    layers: fusion_layers_lib.Cross   # the fusion layers
    twins: twin_lib.Twin | None       # the same, each there twice, for two images
    tower: bert.Bert                  # the text tower, below them
    with_soft: bool                   # whether the teacher's distributions are needed

    @property
    def noise_depth(self) -> int:
        return (self.twins or self.layers).noise_depth

    @property
    def images(self) -> Mapping[str, str]:
        """"image" and, of two images, "second" -> batch key."""
        return {"image": self.opts.image, **({"second": self.opts.second} if self.opts.second else {})}


def make(config: ConfigDict, extra_terms: Mapping[str, Callable] = {}) -> Objective:
    """The `Objective`; terms: label, label_distill. memory: teacher. Heads: also `judge`.

    Raises:
      ValueError: an option outside its range, or a text tower that isn't a BERT.
    """
    opts, towers = two_tower.prepare(config, Options)
    layers, tower = albef.cross_of(config, towers, opts.fusion_layers)
    twins = twin_lib.make(tower, opts.fusion_layers) if opts.second else None
    if not 0 <= opts.ema_m <= 1 or opts.classes < 2:
        raise ValueError(f"config.objective: ema_m={opts.ema_m} must lie in [0, 1] and classes={opts.classes} be at least 2")
    shown = ("image", "second", "text") if opts.second else ("image", "text")
    terms = {"label": _hard, "label_distill": Term(lambda out: _soft(out) - _hard(out), teacher=shown, heads=("soft",)),
             **extra_terms}
    live = two_tower.live(config, terms)
    teacher = two_tower.teacher(AVERAGED, opts.ema_m) if live.teacher else two_tower.NO_TEACHER
    pieces = Pieces(config, opts, towers, layers, twins, tower, "soft" in live.heads)

    def init(key, batch):
        if batch[opts.label].ndim != 1:
            raise ValueError(f"config.data.views.{opts.label} gives {batch[opts.label].shape}: there must be one class of each row")
        k_towers, k_layers, k_second, k_in, k_out = jax.random.split(key, 5)
        params = {k: v for k, v in towers.init(k_towers).items() if k not in ("logit_scale", "logit_bias")}
        params["fusion"] = layers.init(k_layers)["fusion"]
        if twins:
            params["second"] = twins.init(layers.init(k_second)["fusion"])
        return {**params, "judge": {"in": linear(k_in, tower.width, tower.width), "out": linear(k_out, tower.width, opts.classes)}}

    def on_batch(out, params, memory, batch, key, step):
        return _on_batch(pieces, out, params, memory, batch, key)

    views = {**{name: TowerPass("image", key) for name, key in pieces.images.items()}, "text": TowerPass("text", opts.text)}
    taught = {**{f"teacher/{name}": TowerPass("image", key, network="teacher") for name, key in pieces.images.items()},
              "teacher/text": TowerPass("text", opts.text, network="teacher", noisy=opts.teacher_dropout)}
    return two_tower.objective(
        config, towers, two_tower.ForwardPass(views, _rows, on_batch, {"teacher": teacher.of}, optional=taught),
        needs=(*pieces.images.values(), opts.text, opts.label),
        init=init,
        init_memory=teacher.init_memory,
        terms=terms,
        metrics={"accuracy": lambda out: jnp.mean((jnp.argmax(out["logits"], axis=1) == out["label"]).astype(jnp.float32))},
        heads={"judge": _judge_head(pieces)},
        update_memory=teacher.update_memory,
    )


def _rows(params, encoded):
    return {f"states/{name}": outputs["tokens"] if name.endswith("text") else albef.image_states(outputs)
            for name, outputs in encoded.items()}


def _logits(pieces, of, states, seen, noise=None):
    """Logits float32 (b, classes); `states` has "text", "image" and, of two images, "second"."""
    if pieces.twins:
        shown = states["image"], states["second"]
        fused = pieces.twins.fuse(of["fusion"], of["second"], states["text"], seen, shown, noise)
    else:
        fused = pieces.layers.fuse(of["fusion"], states["text"], seen, states["image"], noise)
    hidden = jax.nn.relu(apply(of["judge"]["in"], fused["pooled"].astype(jnp.float32)))
    return apply(of["judge"]["out"], hidden)


def _on_batch(pieces, out, params, memory, batch, key):
    """"label" (B,), "logits" (B, classes) and, with a teacher, its "soft" distributions."""
    opts = pieces.opts
    slices = {"seen": batch[opts.text] != pieces.tower.pad,
              **{name.removeprefix("states/"): value for name, value in out.items()}}
    if pieces.noise_depth:
        slices["noise"] = jax.random.uniform(key, (len(batch[opts.label]), 2, pieces.noise_depth))

    def both(student, averaged, x, _):
        def logits(of, prefix, number):
            noise = x["noise"][:, number] if "noise" in x and (number == 0 or opts.teacher_dropout) else None
            return _logits(pieces, of, {name: x[prefix + name] for name in ("text", *pieces.images)}, x["seen"], noise)
        rows = {"logits": logits(student, "", 0)}
        if pieces.with_soft:
            rows["soft"] = jax.lax.stop_gradient(jax.nn.softmax(logits(averaged, "teacher/", 1)))
        return {"rows": rows}

    student = {k: params[k] for k in ("fusion", "second", "judge") if k in params}
    averaged = {k: memory["teacher"][k] for k in student} if pieces.with_soft else {}
    return {"label": batch[opts.label], **microbatched(both, pieces.config.microbatches)(student, averaged, slices)["rows"]}


def _judge_head(pieces):
    def judge(params, memory, batch):
        """"image", "text" and, of two images, the batch key of the second -> "logits", "probability", each float32 (b, classes)."""
        pixels = {"image": batch["image"], **({"second": batch[pieces.opts.second]} if pieces.twins else {})}
        states = {name: albef.image_states(pieces.towers.image(params, x)) for name, x in pixels.items()}
        states["text"] = pieces.towers.text(params, batch["text"])["tokens"]
        logits = _logits(pieces, params, states, batch["text"] != pieces.tower.pad)
        return {"logits": logits, "probability": jax.nn.softmax(logits)}
    return judge


def _hard(out):
    return -jnp.mean(jnp.take_along_axis(jax.nn.log_softmax(out["logits"]), out["label"][:, None], axis=1))


def _soft(out):
    return -jnp.mean(jnp.sum(out["soft"] * jax.nn.log_softmax(out["logits"]), axis=1))


def linear(key: jax.Array, width: int, out: int) -> Tree:
    """Parameters of a dense layer, started as BERT's."""
    return {"kernel": jax.random.normal(key, (width, out)) * bert.STD, "bias": jnp.zeros((out,))}


def apply(params: Tree, x: jax.Array) -> jax.Array:
    """The dense layer on x (b, width): (b, out)."""
    return jnp.matmul(x, params["kernel"], precision="highest") + params["bias"][None]
