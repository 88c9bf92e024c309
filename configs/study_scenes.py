"""MCD for choosing, on scenes: two of the three training vendors train, scenes of the third are searched.

mcd-jax train --config=study_scenes:twitter --workdir=runs/study [--config.objective.weights.misalignment=10]
mcd-jax sweep --config=study_scenes --workdir=runs/study_scenes     (every form, one seed; some 4 minutes each on 2 cores)

After the colon: the vendor left out (google, twitter, fluent). The held-out vendor is not looked at. Figures named "known" are of
new scenes of the vendors that train. Views beside "augmented": "large" has the same crop in more pixels, for a teacher;
"augmented2" is another crop. Every crop reports what its caption truly lost, and forms whose labels are that truth
(`scale_source` or `positive` is "augmentation") bound what the others can gain.
"""
from mcd_jax import config as config_lib
from mcd_jax.configs import scenes

ONE, TWO = (scenes.AUGMENTED.replace("|crop", f"|stream('{name}')|crop") for name in ("one", "two"))
VIEWS = dict(image=scenes.ORIGINAL, augmented=ONE, large=ONE.replace(f"crop({scenes.SMALL}", f"crop({scenes.SIZE}"), augmented2=TWO)
TERM, POSITIVE = "objective.weights.misalignment", "objective.weights.clip_augmented"


def get_config(left_out="twitter"):
    config = scenes.base(VIEWS, left_out, "1600 steps")
    config.objective = config_lib.objective("mcd", ema_m=0.997, mask_student=False)
    train = tuple(v for v in scenes.VENDORS if v != left_out)
    known = scenes.source("train", 1000, 4, train)
    with config.unlocked():
        evals = config.evals
        evals.retrieval.validation.every = ""
        evals.retrieval.known = dict(evals.retrieval.validation, source=known)
        evals.lost_content.known = dict(evals.lost_content.validation, source=known)
        evals.zeroshot.known = scenes.single(known["source"])
        del evals.lost_content["untrained"]
    return config


def sweep(add):
    """The open points of the method one by one; with both weights 0 it is CLIP, also with the colours of the augmented view."""
    off = {TERM: 0.0, POSITIVE: 0.0}
    add(off)
    add({**off, "data.views.image": f"{scenes.ORIGINAL}|{scenes.COLOURS}"})
    for changes in ({"positive": "whole"}, {"positive": "teacher", "measure": "softmax"}, {"positive": "augmentation"},
                    {"positive": "augmentation", "positive_power": 4.0}, {"positive": "teacher"},
                    {"positive": "teacher", "measure": "softmax", "positive_power": 4.0}):
        add({**off, POSITIVE: 1.0, **_of(changes)})
    for source, weights in (("teacher", (1.0, 10.0, 100.0)), ("augmentation", (10.0, 100.0))):
        for weight in weights:
            add({**off, TERM: weight, "objective.scale_source": source})
    ten = {**off, TERM: 10.0}
    for changes in ({"measure": "softmax"}, {"measure": "logit"}, {"pairs": "all"}, {"mask_student": True},
                    {"teacher_augmented": ("large",)}, {"teacher_augmented": ("large",), "mask_student": True}, {"ema_m": 0.9},
                    {"ema_m": 0.9999}, {"augmented": ("augmented", "augmented2")}, {"sg_org": True}):
        add({**ten, **_of(changes)})
    add({**ten, "objective.warmup.misalignment": "800 steps"})
    for weight in (0.1, 0.3):
        add({**off, "objective.weights.distill": weight})
    add({**ten, POSITIVE: 1.0})
    add({**off, TERM: 1.0, POSITIVE: 1.0, **_of({"positive": "teacher", "measure": "softmax"})})


def _of(changes):
    return {f"objective.{key}": value for key, value in changes.items()}
