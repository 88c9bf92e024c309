"""What every config on generated scenes shares (`data.sources.scenes`): data, model, evaluations. Not a config by itself.

Scenes of two to four animals on 72 pixels, shown at 40; captions name one or two. Three vendors' drawings of the training
concepts make those of training; captions never name two concepts of a pair that is kept apart. Held out are a fourth vendor, the
test concepts, and those pairs. For choosing, `left_out` keeps one of the three training vendors out and evaluates on scenes of its
drawings, and nothing else is looked at.

A run takes some 2 to 8 minutes on 2 cores.
"""
from mcd_jax.configs import emoji

STEPS = "2000 steps"   # 13 epochs of 10,000 scenes
BATCH = 64             # learns more of 133 concepts from as many examples than 256 does, which has most of them twice
SIZE, SMALL = 40, 32   # pixels of the whole scene, and of a crop, which shows its things no smaller
CONTEXT = 32
TEXT = f"caption('first')|tokenize({CONTEXT}, 'emoji')"
ORIGINAL = f"decode(content='said')|crop({SIZE}, 0.6)"
COLOURS = "jitter(0.4, 0.4, 0.4, 0.1, 0.8)|gray(0.2)|flip(0.5)"   # SLIP's
AUGMENTED = f"decode(content='said')|crop({SMALL}, 0.15, 0.4)|{COLOURS}"   # keeps or loses what the caption names
CUT = "decode(content='said')|crop({}, 0.3, 0.3, ratio=(1, 1))"   # of the evaluation: one area, one shape
VENDORS = ("google", "twitter", "fluent")
HELD_OUT = ("openmoji",)
GROUPS = "animals-nature"   # of drawings: animals and plants, 133 concepts of training
SCENE = dict(size=72, objects=(2, 4), named=(1, 2), scale=(0.6, 0.9))


def source(split, examples, seed=0, vendors=VENDORS, groups=GROUPS, **more):
    """The source of scenes whose drawings are of a split of the embedded data set; more: of its keys."""
    drawings = emoji.source(split, vendors=vendors, groups=groups)
    return dict(name="scenes", source=drawings, examples=examples, seed=seed, **{**SCENE, **more})


def base(views, left_out="", steps=STEPS, examples=10_000):
    """The config of scenes without an objective.

    Args:
      views: image views of the batch beside the caption, name -> pipe string.
      left_out: a vendor, for choosing, or "".
      steps: a duration. examples: scenes of training.
    """
    if left_out and left_out not in VENDORS:
        raise ValueError(f"left_out={left_out!r} is no training vendor: choose from {', '.join(VENDORS)}")
    config = emoji.base(steps, views, SIZE)
    config.data.source = source("train", examples, vendors=tuple(v for v in VENDORS if v != left_out), together="seen")
    config.data.views.text = TEXT
    config.model.image.widths = (32, 96)
    config.model.text = dict(name="text", width=96, depth=1, num_heads=3, causal=False, pool="mean")
    config.model.embed_dim = 96
    config.batch_size, config.optimizer.lr = BATCH, 1e-3
    with config.unlocked():
        config.evals = evaluations(left_out=left_out)
    return config


def evaluations(weights_from="params", pixels=SIZE, images=1000, left_out="", **more):
    """`config.evals` on what is held out: captions find their scene among `images`, what crops lose of their captions, and names
    find single drawings. more: keys of `source`."""
    parts = {"validation": source("train", images, 1, (left_out,), **more)} if left_out else {
        "heldout_vendor": source("openmoji_train", images, 1, HELD_OUT, **more),
        "heldout_concepts": source("test", images, 2, **more),
        "unseen_pairs": source("train", images, 3, **{**more, "together": "unseen", "named": (2, 3)})}
    views = dict(image=f"decode|resize({pixels})", text=TEXT)
    lost = dict(views=views, n=250, looks=8, cut=CUT.format(pixels))
    first = next(iter(parts))
    return dict(
        retrieval={name: dict(source=part, views=views, weights_from=weights_from) for name, part in parts.items()},
        lost_content={**{name: dict(lost, source=part, weights_from=weights_from) for name, part in parts.items()},
                      "untrained": dict(lost, source=parts[first], weights_from="init")},
        zeroshot={name: single(parts[name]["source"], pixels, weights_from) for name in parts if name != "unseen_pairs"})


def single(drawings, pixels=SIZE, weights_from="params"):
    """An instance of `zeroshot`: single drawings by their names."""
    return dict(source=drawings, views=dict(image=f"decode|resize({pixels})"), label="concept_id", names=drawings,
                templates=("{}", "a {}"), tokenizer="emoji", context=CONTEXT, weights_from=weights_from)
