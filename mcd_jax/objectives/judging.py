"""Which of a few classes a text has of an image, or of two: visual entailment and NLVR2 (Li et al. 2021, ALBEF, section 4.4).

The text tower and fusion layers read the text together with the image; a small network on top of the fused [CLS] (the pooled text)
gives the classes. With the option `second` there are two images, and every fusion layer is there twice (`models/twin.py`).

Momentum distillation mixes the teacher's distribution over the classes into the targets with a share alpha, which is the weight of
the term `label_distill`, soft - hard, as in `objectives/albef.py`; its ramp is the term's `warmup`. For entailment the published
code has no ramp (warmup 0), for NLVR2 one of an epoch. There the teacher of NLVR2 starts from weights that were never loaded; here
it starts as a copy of the loaded ones. A weight of 0 leaves the teacher out.

From a run of ALBEF: config.init_fresh = FRESH, and with two images config.init_copies = COPIES. Evaluation: `evals/verdicts.py`.
"""
from typing import NamedTuple

import jax
import jax.numpy as jnp

from mcd_jax import config as config_lib
from mcd_jax.microbatch import microbatched
from mcd_jax.models import twin as twin_lib
from mcd_jax.models.bert import STD
from mcd_jax.objectives import albef, pair


class Options(NamedTuple):
    """Defaults are those of the published code for entailment, which all were seen there."""
    image: str = "image"
    second: str = ""                    # batch key of the other image, or none
    text: str = "text"
    label: str = "label"                # batch key of the class, int (B,) from 0
    classes: int = 3
    fusion_layers: int = 6
    ema_m: float = 0.995                # the teacher's momentum
    teacher_dropout: bool = True        # the teacher drops units too (the code); the rate is config.model.text.dropout


WEIGHTS = {"label": 1.0, "label_distill": 0.4}
AVERAGED = ("image", "text", "fusion", "second", "judge")
BEHIND = ("mlm/.*", "itm/.*", "temperature")   # what a run of ALBEF has and this hasn't
FRESH = ("judge/.*", *BEHIND)
COPIES = (("second/(.*)", r"fusion/\1"),)


def make(config):
    """The `Objective`; terms: label, label_distill. memory: teacher. Heads: also `judge`.

    Raises:
      ValueError: an option outside its range, or a text tower that isn't a BERT.
    """
    opts = config_lib.options(Options, config.objective)
    towers = pair.towers_of(config)
    cross, tower = albef.cross_of(config, towers, opts.fusion_layers)
    layers = twin_lib.make(tower, opts.fusion_layers) if opts.second else None
    if not 0 <= opts.ema_m <= 1 or opts.classes < 2:
        raise ValueError(f"config.objective: ema_m={opts.ema_m} must lie in [0, 1] and classes={opts.classes} be at least 2")
    from_teacher = pair.live(config, "label_distill")
    teacher = pair.teacher(AVERAGED, opts.ema_m) if from_teacher else pair.NO_TEACHER
    noise_depth = layers.noise_depth if layers else cross.noise_depth
    images = {"image": opts.image, **({"second": opts.second} if opts.second else {})}

    def init(key, batch):
        if batch[opts.label].ndim != 1:
            raise ValueError(f"config.data.views.{opts.label} gives {batch[opts.label].shape}: there must be one class of each row")
        k_towers, k_cross, k_second, k_in, k_out = jax.random.split(key, 5)
        params = {k: v for k, v in towers.init(k_towers).items() if k not in ("logit_scale", "logit_bias")}
        params["fusion"] = cross.init(k_cross)["fusion"]
        if layers:
            params["second"] = layers.init(cross.init(k_second)["fusion"])
        return {**params, "judge": {"in": linear(k_in, tower.width, tower.width), "out": linear(k_out, tower.width, opts.classes)}}

    def rows(params, encoded):
        return {f"states/{name}": found["tokens"] if name.endswith("text") else albef.image_states(found)
                for name, found in encoded.items()}

    def judged(of, states, seen, noise=None):
        """Logits float32 (b, classes); `states` has "text", "image" and, of two images, "second"."""
        if layers:
            shown = states["image"], states["second"]
            fused = layers.fuse(of["fusion"], of["second"], states["text"], seen, shown, noise)
        else:
            fused = cross.fuse(of["fusion"], states["text"], seen, states["image"], noise)
        hidden = jax.nn.relu(apply(of["judge"]["in"], fused["pooled"].astype(jnp.float32)))
        return apply(of["judge"]["out"], hidden)

    def finish(out, params, memory, batch, key, step):
        slices = {"seen": batch[opts.text] != tower.pad, **{name.removeprefix("states/"): value for name, value in out.items()}}
        if noise_depth:
            slices["noise"] = jax.random.uniform(key, (len(batch[opts.label]), 2, noise_depth))
        own = {k: params[k] for k in ("fusion", "second", "judge") if k in params}
        averaged = {k: memory["teacher"][k] for k in own} if from_teacher else {}
        return {"label": batch[opts.label], **microbatched(both, config.microbatches)(own, averaged, slices)["rows"]}

    def both(params, averaged, x, _):
        def logits(of, prefix, number):
            noise = x["noise"][:, number] if "noise" in x and (number == 0 or opts.teacher_dropout) else None
            return judged(of, {name: x[prefix + name] for name in ("text", *images)}, x["seen"], noise)
        found = {"logits": logits(params, "", 0)}
        if from_teacher:
            found["soft"] = jax.lax.stop_gradient(jax.nn.softmax(logits(averaged, "teacher/", 1)))
        return {"rows": found}

    def judge(params, memory, batch):
        """"image", "text" and, of two images, the batch key of the second -> "logits", "probability", each float32 (b, classes)."""
        pixels = {"image": batch["image"], **({"second": batch[opts.second]} if layers else {})}
        states = {name: albef.image_states(towers.image(params, x)) for name, x in pixels.items()}
        states["text"] = towers.text(params, batch["text"])["tokens"]
        logits = judged(params, states, batch["text"] != tower.pad)
        return {"logits": logits, "probability": jax.nn.softmax(logits)}

    def hard(out):
        return -jnp.mean(jnp.take_along_axis(jax.nn.log_softmax(out["logits"]), out["label"][:, None], axis=1))

    def soft(out):
        return -jnp.mean(jnp.sum(out["soft"] * jax.nn.log_softmax(out["logits"]), axis=1))

    views = {name: pair.View("image", key) for name, key in images.items()}
    views["text"] = pair.View("text", opts.text)
    if from_teacher:
        views |= {f"teacher/{name}": pair.View("image", key, network="teacher") for name, key in images.items()}
        views["teacher/text"] = pair.View("text", opts.text, network="teacher", noisy=opts.teacher_dropout)
    return pair.objective(
        config, towers, pair.Parts(views, rows, finish, {"teacher": teacher.of}),
        needs=(*images.values(), opts.text, opts.label),
        init=init,
        start=teacher.start,
        terms={"label": hard, "label_distill": lambda out: soft(out) - hard(out)},
        metrics={"accuracy": lambda out: jnp.mean((jnp.argmax(out["logits"], axis=1) == out["label"]).astype(jnp.float32))},
        heads={"judge": judge},
        remember=teacher.remember,
    )


def linear(key, width, out):
    """Parameters of a dense layer, started as BERT's."""
    return {"kernel": jax.random.normal(key, (width, out)) * STD, "bias": jnp.zeros((out,))}


def apply(params, x):
    return jnp.matmul(x, params["kernel"], precision="highest") + params["bias"][None]
