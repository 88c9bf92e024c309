"""What every config on generated scenes shares (`data.sources.scenes`): data, model, evaluations. Not a config by itself.

Three vendors' drawings of the training concepts make the scenes of training; captions never name two concepts of a pair that is
kept apart. Held out are a fourth vendor, the test concepts, and those pairs. For choosing, `left_out` keeps one of the three
training vendors out and evaluates on scenes of its drawings, and nothing else is looked at.
"""
from mcd_jax.configs import emoji

SIZE = 64
CONTEXT = 32
TEXT = f"caption('first')|tokenize({CONTEXT}, 'emoji')"
ORIGINAL = f"decode|crop({SIZE}, 0.6)"
AUGMENTED = "decode|crop(48, 0.15, 0.5)|flip(0.5)"   # keeps or loses what the caption names
CUT = f"decode(content='said')|crop({SIZE}, 0.3, 0.3, ratio=(1, 1))"   # of the evaluation: one area, one shape
VENDORS = ("google", "twitter", "fluent")
GROUPS = ("animals-nature", "food-drink", "activities")   # things, of which a scene can be: 315 concepts of training


def source(split, examples, seed=0, vendors=(*VENDORS, "openmoji"), groups=GROUPS, **more):
    """The source of scenes whose drawings are of a split of the embedded data set."""
    drawings = emoji.source(split, vendors=vendors, groups=groups)
    return dict(name="scenes", source=drawings, examples=examples, seed=seed, **{"size": 96, **more})


def base(steps, views, left_out="", pixels=SIZE, examples=20_000, **more):
    """The config of scenes without an objective.

    Args:
      steps, views: as `emoji.base` has them. pixels: of the whole image in evaluations. left_out: a vendor, for choosing, or "".
      examples: scenes of training.
      more: keys of `source` for all scenes.
    """
    if left_out and left_out not in VENDORS:
        raise ValueError(f"left_out={left_out!r} is no training vendor: choose from {', '.join(VENDORS)}")
    config = emoji.base(steps, views, pixels)
    config.data.source = source("train", examples, vendors=tuple(v for v in VENDORS if v != left_out), together="seen", **more)
    config.data.views.text = TEXT
    config.model.text = dict(name="text", width=192, depth=1, num_heads=3, causal=False, pool="mean")
    config.optimizer.lr = 2e-3
    with config.unlocked():
        config.evals = evaluations("params", pixels, left_out=left_out, **more)
    first = next(iter(config.evals.retrieval.values()))
    first.every = "20 percent"
    return config


def evaluations(weights_from="params", pixels=SIZE, images=1000, left_out="", **more):
    """`config.evals`: captions find their scene among `images`, and what crops lose of their captions, on what is held out."""
    if left_out:
        parts = dict(validation=source("train", images, 1, vendors=(left_out,), **more))
    else:
        parts = dict(heldout_vendor=source("openmoji_train", images, 1, **more),
                     heldout_concepts=source("test", images, 2, vendors=VENDORS, **more),
                     unseen_pairs=source("train", images, 3, vendors=VENDORS, together="unseen", named=(2, 3), **more))
    views = dict(image=f"decode|resize({pixels})", text=TEXT)
    lost = dict(views=views, n=250, looks=8, cut=CUT.replace(f"crop({SIZE},", f"crop({pixels},"))
    found = dict(
        retrieval={name: dict(source=part, views=views, weights_from=weights_from) for name, part in parts.items()},
        lost_content={name: dict(lost, source=part, weights_from=weights_from) for name, part in parts.items()})
    first = next(iter(parts.values()))
    found["lost_content"]["untrained"] = dict(lost, source=first, weights_from="init")
    return found
