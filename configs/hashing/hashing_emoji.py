"""What every hashing config on the embedded data set shares: heads over a trained run's embeddings. Not a config by itself.

    RUN=runs/clip_emoji
    for split in train validation test openmoji_train; do
      mcd-jax embed --workdir=$RUN --source split=$split captions=label --out=$RUN/$split.array_record
    done
    mcd-jax train --config=ahlr_emoji:run=runs/clip_emoji,bits=64 --workdir=runs/ahlr_emoji

    run=FOLDER   where these files are, or with towers=1 the run itself, whose towers are then locked in memory
    bits=32      16 to 128
    lr=2e-2      of the heads; the default is each method's own
    label=group  what makes two rows alike in training: group (9 in use) or subgroup (99); figures are of both

The retrieval set is what trains, 4,725 drawings with their labels, three of each concept; concepts of the validation and of the
test split ask, drawn by the same vendors, and a fourth vendor's drawings of the training concepts. Recipe: DCHMT's and DSPH's
BertAdam, half their epochs. The rate of each method is the best of 1e-3, 5e-3, 2e-2, 6e-2 and 2e-1 by mAP of groups on the
validation concepts, at 32 bits and one seed.
"""
from mcd_jax import config as config_lib
from mcd_jax.configs import emoji, pretrain
from mcd_jax.data.emoji import names
from mcd_jax.sweep import grid

CLASSES = dict(group=len(names.GROUPS), subgroup=len(names.SUBGROUPS))
BITS = (16, 32, 64, 128)
WIDTH = 192
ASKS = dict(validation="validation", heldout_concepts="test", heldout_vendor="openmoji_train")


def base(arguments, objective, rate=2e-2, **changes):
    """The config of `objective` with `changes`; arguments: as above, "run=...,bits=64". rate: of learning, if they have none."""
    given = pretrain.arguments(arguments, run="runs/clip_emoji", bits=32, label="group", towers=0, lr=rate)
    if given["label"] not in CLASSES:
        raise ValueError(f"label={given['label']} must be one of {', '.join(CLASSES)}")
    config = emoji.base("50 epochs", dict(image=f"decode|resize({emoji.SIZE})"))
    config.objective = config_lib.objective(objective, bits=given["bits"], classes=CLASSES[given["label"]], **changes)
    if given["towers"]:
        emoji.on_towers(config, given["run"])
        config.evals = evaluations(emoji.source)
    else:
        emoji.on_embeddings(config, given["run"], WIDTH)
        config.evals = evaluations(lambda split: emoji.stored(split, given["run"]))
    config.data.views.label = f"column({given['label']!r})"
    config.optimizer.update(optimizers=((".*", dict(name="bertadam")),), lr=given["lr"], weight_decay=0.2,
                            decay_mask=((".*", True),), clip_norm=1.0, clip_per="tensor",
                            schedule=((".*", dict(name="bert_cosine", warmup="10 percent")),))
    config.checkpoint = dict(every="50 percent", keep=1, best="")
    return config


def evaluations(source):
    """source: split -> a source's spec."""
    labels = dict(group="group", subgroup="subgroup")
    return dict(hashing={name: dict(queries=source(split), source=source("train"), labels=labels, ks=(50,))
                         for name, split in ASKS.items()})


def runs(add, *variants):
    """Three seeds of every code length and variant (overrides), for a config's sweep(add)."""
    for run in grid({"seed": range(3), "objective.bits": BITS}):
        for variant in variants:
            add({**variant, **run})
