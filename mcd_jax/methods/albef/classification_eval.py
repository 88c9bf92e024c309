"""Accuracy of the classes that a head gives to a text and its image, or images.

What an instance may say is KEYS.

Figures: accuracy, mean_per_class, accuracy_<class> of those whose true class it is, chance (the share of the commonest class),
queries and, with `together`, accuracy_together.
"""
import numpy as np

from mcd_jax.config.keys import NEEDED, Key
from mcd_jax.evals import rows

KEYS = {
    "source": Key("source", NEEDED, "rows with an integer column `label`"),
    "views": Key("map of str", {}, "pipes of image and text, and whatever else the head reads, such as a second image; left "
                 "out: as in training, without randomness"),
    "label": Key("str", "label", "that column"),
    "head": Key("str", "judge", "the objective's head, which returns logits (n, classes)"),
    "classes": Key("tuple", (), "names, label 0 first; left out: numbers"),
    "together": Key("str | None", "", "integer column: rows with one value count as one, right if all of them are (NLVR2's "
                    "consistency)"),
    "blank": Key("tuple", (), "views whose images are shown as zeros: what the text alone gives away"),
}


def make(config, name):
    """fn(embed, state) -> figures; `config`: see the module.

    Raises:
      ValueError: a column or view that isn't there.
    """
    instance = f"verdicts.{name}"
    label, together = config.get("label", "label"), config.get("together", "")
    source = rows.open_source(config["source"], tuple(filter(None, (label, together))), instance)
    keys, blank, size = list(config["views"]), tuple(config.get("blank", ())), config.get("batch_size", 256)
    views, names = rows.pick(config["views"], keys, instance), list(config.get("classes", ()))
    for key in blank:
        if key not in views.images:
            raise ValueError(f"config.evals.{instance}.blank: {key!r} is no image view: there are {', '.join(views.images)}")

    def fn(embed, state):
        head = embed.head(config.get("head", "judge"))

        def shown(state, batch):
            return {"logits": head(state, {k: np.zeros_like(v) if k in blank else v for k, v in batch.items()})["logits"]}
        table = rows.columns(source, tuple(filter(None, (label, together))))
        found, good = rows.encode(rows.like(shown, embed), state, source, views, keys, size, together=True)
        own = figures(found["logits"][good], table[label][good], names, table[together][good] if together else None, instance)
        return rows.with_bad(own, good)

    return fn


def figures(logits, labels, names=(), together=None, instance="verdicts"):
    """The figures of logits (n, classes) and labels int (n,); see the module.

    Raises:
      ValueError: a label that is no class, or names that aren't as many.
    """
    classes = logits.shape[1]
    if len(labels) and not 0 <= labels.min() <= labels.max() < classes:
        raise ValueError(f"config.evals.{instance}: labels run from {labels.min()} to {labels.max()}, and the head has {classes} "
                         "classes")
    if names and len(names) != classes:
        raise ValueError(f"config.evals.{instance}.classes names {len(names)} classes, and the head has {classes}")
    right = np.argmax(logits, axis=1) == labels
    own = {number: float(right[labels == number].mean()) for number in np.unique(labels)}
    found = {"accuracy": float(right.mean()), "mean_per_class": float(np.mean(list(own.values()))),
             **{f"accuracy_{names[number] if names else number}": value for number, value in own.items()},
             "chance": float(np.bincount(labels).max() / len(labels)), "queries": float(len(labels))}
    if together is not None:
        _, number = np.unique(together, return_inverse=True)
        found["accuracy_together"] = float(np.mean(np.bincount(number, weights=~right) == 0))
    return found
