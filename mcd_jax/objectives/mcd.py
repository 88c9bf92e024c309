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
`weights.ssl` (0). Which network is evaluated is the `read` of an evaluation, "params" or "memory/teacher".
"""
from typing import NamedTuple

import jax
import jax.numpy as jnp

from mcd_jax import config as config_lib
from mcd_jax.losses import contrastive, distill, log_ratio, ssl
from mcd_jax.models import projector
from mcd_jax.objectives import pair


class Options(NamedTuple):
    """Open points of the method; the letters are those of the README's table. Confidence in each default is in brackets."""
    image: str = "image"               # the original view: a mild crop
    text: str = "text"
    augmented: tuple = ("augmented",)  # one or several augmented views
    loss: str = "logratio"             # A2 [medium]: "logratio" (squared difference of logs) | "smooth_l1"
    measure: str = "sqdist"            # A3 [medium]: "sqdist" | "logit" (gap of logits: the log-ratio of exp-similarities)
    pairs: str = "diag"                # A4 [medium]: "diag" (a caption with its own image) | "all" (N x N)
    mask_student: bool = True          # A5 [inference]: without it student and teacher agree and the term says nothing
    mask_teacher: bool = False         # A5
    keep: float = 0.5                  # A5: share of patches of the augmented view that a masked network sees
    ema_m: float = 0.996               # A6 [medium]: the teacher's momentum
    share_text: bool = False           # A6 [weak]: the teacher uses the student's text tower instead of its own average
    sg_org: bool = False               # A11: stop the gradient through the original view
    sg_text: bool = False              # A11: stop the gradient through the caption
    scale_source: str = "teacher"      # A15: "teacher" | "augmentation" (labels from what it did) | "both" (mean of the two)
    eps: float = 1e-6                  # keeps the logarithm finite
    distill_temperature: float = 0.0   # A8: the teacher's temperature; 0: its learned one
    ssl_hidden: int = 512              # A9
    ssl_dim: int = 128                 # A9
    ssl_temperature: float = 0.1       # A9
    form: str = "auto"                 # of the losses over all pairs: "gather" | "ring" | "ring_bf16" | "auto" by size


WEIGHTS = {"clip": 1.0, "misalignment": 1.0, "distill": 0.0, "clip_augmented": 0.0, "ssl": 0.0}   # A10, A8, A7, A9
WARMUP = {"misalignment": "1 epoch"}                                                              # A12
_CHOICES = {"loss": ("logratio", "smooth_l1"), "measure": ("sqdist", "logit"), "pairs": ("diag", "all"),
            "scale_source": ("teacher", "augmentation", "both")}


def _check(opts, config):
    for name, choices in _CHOICES.items():
        if getattr(opts, name) not in choices:
            raise ValueError(f"config.objective.{name}={getattr(opts, name)!r} must be one of {', '.join(choices)}")
    if not opts.augmented:
        raise ValueError("config.objective.augmented is empty: name at least one augmented view of config.data.views")
    if not 0 < opts.keep <= 1:
        raise ValueError(f"config.objective.keep={opts.keep} must lie in (0, 1]")
    if not 0 <= opts.ema_m <= 1:
        raise ValueError(f"config.objective.ema_m={opts.ema_m} must lie in [0, 1]")
    if opts.scale_source != "teacher" and (opts.measure != "sqdist" or opts.pairs != "diag"):
        raise ValueError("config.objective.scale_source other than 'teacher' compares distances of matching pairs: "
                         "it needs measure='sqdist' and pairs='diag'")
    if pair.live(config, "ssl") and len(opts.augmented) < 2:
        raise ValueError("config.objective.weights.ssl compares two augmented views: name two in config.objective.augmented")


def make(config):
    """The `Objective`; terms: clip, misalignment, distill, clip_augmented, ssl. memory: teacher.

    Raises:
      ValueError: an option outside its choices, or options that exclude one another.
    """
    opts = config_lib.options(Options, config.objective)
    _check(opts, config)
    contrastive.check_form(opts.form)
    towers = pair.towers_of(config)
    size = config.model.inputs.image_size
    with_ssl, with_distill = pair.live(config, "ssl"), pair.live(config, "distill")
    from_teacher = pair.live(config, "misalignment") and opts.scale_source in ("teacher", "both")
    from_labels = pair.live(config, "misalignment") and opts.scale_source in ("augmentation", "both")
    with_teacher = from_teacher or with_distill
    views = opts.augmented if with_teacher or from_labels or with_ssl or pair.live(config, "clip_augmented") else ()
    if opts.share_text and towers.both is not None:
        raise ValueError("config.objective.share_text=True needs a text tower of its own: config.model.shared is both in one")
    teacher = pair.teacher([name for name in pair.TOWERS if name != "logit_bias" and not (opts.share_text and name == "text")],
                           opts.ema_m)

    def head_for(params):
        return projector.make(projector.width_of(towers.image, params, (1, size, size, 3)), opts.ssl_hidden, opts.ssl_dim)

    def init(key, batch):
        k_towers, k_head = jax.random.split(key)
        params = towers.init(k_towers)
        return {**params, "ssl": head_for(params).init(k_head)} if with_ssl else params

    def rows(params, encoded):
        """Unit embeddings f32 (b, D) of every view by the student and, named teacher/*, by the teacher."""
        out = pair.embeddings(params, encoded)
        for view in views if with_ssl else ():
            out[f"ssl/{view}"] = head_for(params).apply(params["ssl"], encoded[view]["pooled"])
        return out

    def finish(out, params, memory, batch, key, step):
        out = {**out, "scale": towers.scale(params)}
        if with_teacher:
            out["teacher/scale"] = towers.scale(teacher.of(params, memory))
        targets = {f"target/{view}": batch[f"{view}/misalignment"] for view in (opts.image, *views) if views}
        return {**out, **targets}

    encoded_views = {"image": pair.View("image", opts.image), "text": pair.View("text", opts.text)}
    for view in views:
        encoded_views[view] = pair.View("image", view, opts.keep if opts.mask_student else 1.0)
    if with_teacher:
        encoded_views |= {"teacher/image": pair.View("image", opts.image, network="teacher"),
                          "teacher/text": pair.View("text", opts.text, network="teacher")}
    for view in views if from_teacher else ():
        encoded_views[f"teacher/{view}"] = pair.View("image", view, opts.keep if opts.mask_teacher else 1.0, "teacher")

    def student_ratio(out, view):
        return log_ratio.log_ratio(out["text"], out[view], out["image"], opts.measure, opts.pairs, out["scale"], opts.eps,
                                   opts.sg_org, opts.sg_text)

    def teacher_ratio(out, view):
        return log_ratio.log_ratio(out["teacher/text"], out[f"teacher/{view}"], out["teacher/image"], opts.measure, opts.pairs,
                                   out["teacher/scale"], opts.eps)

    def label_ratio(out, view):
        return log_ratio.label_log_ratio(out[f"target/{view}"], out[f"target/{opts.image}"], opts.eps)

    def ring_loss(out, view):
        student, taught = ((out[f"{who}text"], out[f"{who}{view}"], out[f"{who}image"]) for who in ("", "teacher/"))
        return log_ratio.ring_loss(student, taught, opts.loss, opts.measure, (out["scale"], out["teacher/scale"]), opts.eps,
                                   opts.sg_org, opts.sg_text)

    def misalignment(out):
        if opts.pairs == "all" and contrastive.picks_ring(len(out["image"]), len(out["text"]), opts.form):
            return pair.mean_over_views(lambda view: ring_loss(out, view), views)
        sources = [f for f, on in ((teacher_ratio, from_teacher), (label_ratio, from_labels)) if on]
        return pair.mean_over_views(lambda view: sum(
            log_ratio.loss(student_ratio(out, view), source(out, view), opts.loss)
            for source in sources) / len(sources), views)

    def distilled(out):
        temperature = opts.distill_temperature or 1.0 / out["teacher/scale"]
        return pair.mean_over_views(lambda view: distill.alignment_kl(
            out["teacher/image"], out["teacher/text"], out[view], jax.lax.stop_gradient(out["text"]),
            1.0 / temperature, out["scale"], opts.form), views)

    metrics = pair.metrics(opts.form)
    if from_teacher and opts.pairs == "diag":
        metrics |= {
            "misalignment/teacher": lambda out: pair.mean_over_views(lambda v: jnp.mean(teacher_ratio(out, v)), views),
            "misalignment/agreement": lambda out: pair.mean_over_views(
                lambda v: _correlation(student_ratio(out, v), teacher_ratio(out, v)), views),
            "misalignment/teacher_vs_augmentation": lambda out: pair.mean_over_views(
                lambda v: _correlation(teacher_ratio(out, v), label_ratio(out, v)), views),
        }
    if views and opts.pairs == "diag":
        metrics["misalignment/student"] = lambda out: pair.mean_over_views(lambda v: jnp.mean(student_ratio(out, v)), views)

    return pair.objective(
        config, towers, pair.Parts(encoded_views, rows, finish, {"teacher": teacher.of}),
        needs=(opts.image, opts.text, *views, *(f"{v}/misalignment" for v in (opts.image, *views) if views)),
        init=init,
        start=teacher.start,
        terms={"clip": lambda out: contrastive.softmax(out["image"], out["text"], out["scale"], opts.form),
               "misalignment": misalignment,
               "distill": distilled,
               "clip_augmented": lambda out: pair.mean_over_views(
                   lambda view: contrastive.softmax(out[view], out["text"], out["scale"], opts.form), views),
               "ssl": lambda out: ssl.nt_xent(out[f"ssl/{views[0]}"], out[f"ssl/{views[1]}"], opts.ssl_temperature, opts.form)},
        metrics=metrics,
        remember=teacher.remember,
    )


def _correlation(x, y):
    """Pearson correlation of two (B,) arrays, 0 where one is constant."""
    x, y = x - jnp.mean(x), y - jnp.mean(y)
    return jnp.sum(x * y) / jnp.maximum(jnp.sqrt(jnp.sum(x * x) * jnp.sum(y * y)), 1e-12)
