"""MCD-style pretraining: predict by how much an augmentation misaligned an image with its caption.

After "Misalign, Contrast then Distill" (Kim, Jo, Kim, Kim; ICCV 2023, arXiv 2312.12661). THE PAPER'S EQUATIONS,
HYPER-PARAMETERS AND ABLATIONS WERE NOT AVAILABLE TO US, and no code was released: this is a reconstruction, not a verified
reproduction. It rests on
  * the abstract: an augmented image is misaligned with its caption by a varying amount; predict that continuous scale by
    metric learning;
  * claim 1 of US 2026/0004146 A1, very probably the paper's patent: a student distils the teacher's ratio between the
    similarity of original images to texts and that of augmented images to texts;
  * the log-ratio loss (Kim et al., CVPR 2019), the standard loss that matches ratios of distances;
  * the recipes of SLIP, which the paper builds on, and the authors' ECLIPSE (an averaged teacher, a student that sees part of
    the image).

With unit embeddings u (original view), a (augmented view), w (caption) of the student, the same with a bar of the averaged
teacher, and D(x, y) = 2 - 2 cos(x, y):

    r = log(D(w, a) + eps) - log(D(w, u) + eps),    L = clip(u, w) + weight * mean (r - stop_gradient(r_bar))^2

Where the sources leave a choice open, it is a field of `Options` or a weight: lambda is `weights.misalignment` (default 1; its
ramp is `warmup.misalignment`, one epoch, because early teacher ratios are noise), the augmented view as a plain positive is
`weights.clip_augmented` (0), alignment-matrix distillation is `weights.distill` (0), SimCLR between two augmented views is
`weights.ssl` (0). Which network is evaluated is the `weights_from` of an evaluation, "params" or "memory/teacher".
"""
from collections.abc import Callable, Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from mcd_jax.losses import contrastive, distill, ssl
from mcd_jax.methods.mcd import log_ratio
from mcd_jax.models import projector
from mcd_jax.objectives import two_tower
from mcd_jax.objectives.objective import Objective
from mcd_jax.objectives.two_tower import Term, TowerPass


class Options(NamedTuple):
    """Open points of the method; the letters are those of the README's table. Confidence in each default is in brackets."""
    image: str = "image"               # the original view: a mild crop
    text: str = "text"
    augmented: tuple = ("augmented",)  # one or several augmented views
    loss: str = "logratio"             # A2 [medium]: "logratio" (squared difference of logs) | "smooth_l1"
    measure: str = "sqdist"            # A3 [medium]: "sqdist" | "logit" (gap of logits: the log-ratio of exp-similarities) |
                                       # "softmax" (the same of similarities that are normalised over the batch's captions)
    pairs: str = "diag"                # A4 [medium]: "diag" (a caption with its own image) | "all" (N x N)
    mask_student: bool = True          # A5 [inference]: without it student and teacher agree and the term says nothing
    mask_teacher: bool = False         # A5
    keep_share: float = 0.5            # A5: share of patches of the augmented view that a masked network sees
    teacher_augmented: tuple = ()      # A5: batch keys of what the teacher sees in place of each augmented view, such as the same
                                       # crop in more pixels; empty: the same pixels
    ema_m: float = 0.996               # A6 [medium]: the teacher's momentum
    share_text: bool = False           # A6 [weak]: the teacher uses the student's text tower instead of its own average
    sg_org: bool = False               # A11: stop the gradient through the original view
    sg_text: bool = False              # A11: stop the gradient through the caption
    scale_source: str = "teacher"      # A15: "teacher" | "augmentation" (labels from what it did) | "both" (mean of the two)
    positive: str = "whole"            # A7: what an augmented view counts in clip_augmented: "whole" | "teacher" | "augmentation",
                                       # the share of its caption that it keeps, as the teacher or the pipeline says; see `kept`
    positive_power: float = 1.0        # A7: to which that share is taken
    eps: float = 1e-6                  # keeps the logarithm finite
    distill_temperature: float = 0.0   # A8: the teacher's temperature; 0: its learned one
    ssl_hidden: int = 512              # A9
    ssl_dim: int = 128                 # A9
    ssl_temperature: float = 0.1       # A9
    implementation: str = "auto"                 # of the losses over all pairs: "gather" | "ring" | "ring_bf16" | "auto" by size


WEIGHTS = {"clip": 1.0, "misalignment": 1.0, "distill": 0.0, "clip_augmented": 0.0, "ssl": 0.0}   # A10, A8, A7, A9
WARMUP = {"misalignment": "1 epoch"}                                                              # A12
_CHOICES = {"loss": ("logratio", "smooth_l1"), "measure": ("sqdist", "logit", "softmax"), "pairs": ("diag", "all"),
            "scale_source": ("teacher", "augmentation", "both"), "positive": ("whole", "teacher", "augmentation")}


def _check(opts, towers):
    for name, choices in _CHOICES.items():
        if getattr(opts, name) not in choices:
            raise ValueError(f"config.objective.{name}={getattr(opts, name)!r} must be one of {', '.join(choices)}")
    if not opts.augmented:
        raise ValueError("config.objective.augmented is empty: name at least one augmented view of config.data.views")
    if opts.teacher_augmented and len(opts.teacher_augmented) != len(opts.augmented):
        raise ValueError(f"config.objective.teacher_augmented={tuple(opts.teacher_augmented)!r} must name a batch key for each of "
                         f"config.objective.augmented={tuple(opts.augmented)!r}, or none")
    if not 0 < opts.keep_share <= 1:
        raise ValueError(f"config.objective.keep_share={opts.keep_share} must lie in (0, 1]")
    if not 0 <= opts.ema_m <= 1:
        raise ValueError(f"config.objective.ema_m={opts.ema_m} must lie in [0, 1]")
    if opts.scale_source != "teacher" and (opts.measure != "sqdist" or opts.pairs != "diag"):
        raise ValueError("config.objective.scale_source other than 'teacher' compares distances of matching pairs: "
                         "it needs measure='sqdist' and pairs='diag'")
    if opts.measure == "softmax" and opts.pairs != "diag":
        raise ValueError("config.objective.measure='softmax' is of an image and its own caption among all: it needs pairs='diag'")
    if opts.positive_power < 0:
        raise ValueError(f"config.objective.positive_power={opts.positive_power} must be at least 0")
    if opts.share_text and towers.both is not None:
        raise ValueError("config.objective.share_text=True needs a text tower of its own: config.model.shared is both in one")


def make(config: ConfigDict, extra_terms: Mapping[str, Callable] = {}) -> Objective:
    """The `Objective`; terms: clip, misalignment, distill, clip_augmented, ssl, and `extra_terms`. memory: teacher.

    What terms read of `out`: unit embeddings f32 (B, D) "image", "text" and of each augmented view, under its name; those of the
    teacher alike, "teacher/image" and so on; "scale" and "teacher/scale" f32 (), inverse temperatures; "target/<view>" f32 (B,),
    what the augmentation did.

    Args:
      extra_terms: terms of one's own beside these, name -> function of `out`, or `two_tower.Term` that says what it needs.

    Raises:
      ValueError: an option outside its choices, or options that exclude one another.
    """
    opts, towers = two_tower.prepare(config, Options)
    _check(opts, towers)
    terms = {**_terms(opts), **extra_terms}
    live = two_tower.live(config, terms)
    views = tuple(view for view in opts.augmented if view in live.views)
    with_ssl, size = "ssl" in live.heads, config.model.inputs.image_size
    if with_ssl and len(opts.augmented) < 2:
        raise ValueError("config.objective.weights.ssl compares two augmented views: name two in config.objective.augmented")
    apart = ("logit_bias", "text") if opts.share_text else ("logit_bias",)   # what the teacher has no average of
    teacher = two_tower.teacher([name for name in two_tower.TOWERS if name not in apart], opts.ema_m)

    def head_for(params):
        return projector.make(projector.width_of(towers.image, params, (1, size, size, 3)), opts.ssl_hidden, opts.ssl_dim)

    def init(key, batch):
        k_towers, k_head = jax.random.split(key)
        params = towers.init(k_towers)
        return {**params, "ssl": head_for(params).init(k_head)} if with_ssl else params

    def rows(params, encoded):
        """Unit embeddings f32 (b, D) of every view by the student and, named teacher/*, by the teacher."""
        out = two_tower.embeddings(params, encoded)
        for view in views if with_ssl else ():
            out[f"ssl/{view}"] = head_for(params).apply(params["ssl"], encoded[view]["pooled"])
        return out

    def on_batch(out, params, memory, batch, key, step):
        out = {**out, "scale": towers.scale(params)}
        if live.teacher:
            out["teacher/scale"] = towers.scale(teacher.of(params, memory))
        targets = {f"target/{view}": batch[f"{view}/misalignment"] for view in (opts.image, *views) if views}
        return {**out, **targets}

    return two_tower.objective(
        config, towers,
        two_tower.ForwardPass({"image": TowerPass("image", opts.image), "text": TowerPass("text", opts.text)}, rows, on_batch,
                              {"teacher": teacher.of}, optional=_optional_views(opts)),
        needs=(opts.image, opts.text, *views, *(opts.teacher_augmented if live.teacher else ()),
               *(f"{v}/misalignment" for v in (opts.image, *views) if views)),
        init=init,
        init_memory=teacher.init_memory,
        terms=terms,
        metrics={**two_tower.metrics(opts.implementation), **(_metrics(opts) if opts.pairs == "diag" else {})},
        update_memory=teacher.update_memory,
    )


def _optional_views(opts):
    """The augmented views by the student, then what the teacher may encode."""
    masked = {True: opts.keep_share, False: 1.0}
    return {**{view: TowerPass("image", view, masked[opts.mask_student]) for view in opts.augmented},
            "teacher/image": TowerPass("image", opts.image, network="teacher"),
            "teacher/text": TowerPass("text", opts.text, network="teacher"),
            **{f"teacher/{view}": TowerPass("image", key, masked[opts.mask_teacher], "teacher")
               for view, key in zip(opts.augmented, opts.teacher_augmented or opts.augmented, strict=True)}}


# ---- log-ratios of one augmented view, (B,), or (B, B) of pairs="all" ------------------------------------------------------------


def _ratio(opts, out, view, who, measure, pairs):
    """The log-ratio of who="", the student, or of "teacher/"."""
    of = out[f"{who}text"], out[f"{who}{view}"], out[f"{who}image"]
    stops = {} if who else dict(sg_org=opts.sg_org, sg_text=opts.sg_text)
    if measure == "softmax":
        return log_ratio.softmax_log_ratio(*of, out[f"{who}scale"], opts.implementation, **stops)
    return log_ratio.log_ratio(*of, measure, pairs, out[f"{who}scale"], opts.eps, **stops)


def _student_ratio(opts, out, view):
    return _ratio(opts, out, view, "", opts.measure, opts.pairs)


def _teacher_ratio(opts, out, view):
    return _ratio(opts, out, view, "teacher/", opts.measure, opts.pairs)


def _label_ratio(opts, out, view):
    return log_ratio.label_log_ratio(out[f"target/{view}"], out[f"target/{opts.image}"], opts.eps)


def _kept(opts, out, view):
    """The share f32 (B,) of its caption that an augmented view keeps, in [0, 1], to the power of the options; None: all count 1.

    By the teacher: the ratio of the exp-similarities of caption and augmented view to those of caption and original, at most 1;
    measure="softmax" normalises them. By the pipeline: 1 less what the view lost, of a target y = 1 + loss.
    """
    if opts.positive == "whole":
        return None
    if opts.positive == "teacher":
        ratio = _ratio(opts, out, view, "teacher/", "softmax" if opts.measure == "softmax" else "logit", "diag")
        return jnp.exp(-opts.positive_power * jnp.maximum(ratio, 0.0))
    return jnp.clip(1.0 + out[f"target/{opts.image}"] - out[f"target/{view}"], 0.0, 1.0) ** opts.positive_power


# ---- terms and metrics -----------------------------------------------------------------------------------------------------------


def _terms(opts):
    """Each with what it needs: the augmented views, the teacher, the projector."""
    views, taught = opts.augmented, opts.scale_source in ("teacher", "both")
    sources = {"teacher": [_teacher_ratio], "augmentation": [_label_ratio], "both": [_teacher_ratio, _label_ratio]}
    sources = sources[opts.scale_source]

    def ring_loss(out, view):
        student, teacher = ((out[f"{who}text"], out[f"{who}{view}"], out[f"{who}image"]) for who in ("", "teacher/"))
        return log_ratio.ring_loss(student, teacher, opts.loss, opts.measure, (out["scale"], out["teacher/scale"]), opts.eps,
                                   opts.sg_org, opts.sg_text)

    def misalignment(out):
        if opts.pairs == "all" and contrastive.picks_ring(len(out["image"]), len(out["text"]), opts.implementation):
            return two_tower.mean_over_views(lambda view: ring_loss(out, view), views)
        return two_tower.mean_over_views(lambda view: sum(
            log_ratio.loss(_student_ratio(opts, out, view), source(opts, out, view), opts.loss)
            for source in sources) / len(sources), views)

    def distilled(out):
        temperature = opts.distill_temperature or 1.0 / out["teacher/scale"]
        return two_tower.mean_over_views(lambda view: distill.alignment_kl(
            out["teacher/image"], out["teacher/text"], out[view], jax.lax.stop_gradient(out["text"]),
            1.0 / temperature, out["scale"], opts.implementation), views)

    def clip(out, view="image", weights=None):
        return contrastive.softmax(out[view], out["text"], out["scale"], opts.implementation, weights)

    def augmented_positives(out):
        return two_tower.mean_over_views(lambda view: clip(out, view, _kept(opts, out, view)), views)

    def simclr(out):
        return ssl.nt_xent(out[f"ssl/{views[0]}"], out[f"ssl/{views[1]}"], opts.ssl_temperature, opts.implementation)

    return {"clip": clip,
            "misalignment": Term(misalignment, views=views, teacher=taught),
            "distill": Term(distilled, views=views, teacher=("image", "text")),
            "clip_augmented": Term(augmented_positives, views=views, teacher=opts.positive == "teacher"),
            "ssl": Term(simclr, views=views, heads=("ssl",))}


def _metrics(opts):
    """The misalignment as student and teacher see it, and how they agree; of pairs="diag"."""
    def mean(fn):
        return lambda out: two_tower.mean_over_views(lambda view: fn(out, view), opts.augmented)

    def alike(one, other):
        return mean(lambda out, view: _correlation(one(opts, out, view), other(opts, out, view)))

    needs = dict(views=opts.augmented, teacher=True)
    return {"misalignment/teacher": Term(mean(lambda out, view: jnp.mean(_teacher_ratio(opts, out, view))), **needs),
            "misalignment/agreement": Term(alike(_student_ratio, _teacher_ratio), **needs),
            "misalignment/teacher_vs_augmentation": Term(alike(_teacher_ratio, _label_ratio), **needs),
            "misalignment/student": Term(mean(lambda out, view: jnp.mean(_student_ratio(opts, out, view))), views=opts.augmented)}


def _correlation(x, y):
    """Pearson correlation of two (B,) arrays, 0 where one is constant."""
    x, y = x - jnp.mean(x), y - jnp.mean(y)
    return jnp.sum(x * y) / jnp.maximum(jnp.sqrt(jnp.sum(x * x) * jnp.sum(y * y)), 1e-12)
