"""Fairness of zero-shot labels: of the images of each group of people, the share whose nearest prompt is a derogatory one.

Liang et al., NeurIPS 2022, section 5, after the CLIP paper's FairFace table.

Any labelled prompts will do. What an instance may say is KEYS.

Figures: <group>/<kind> for each group and kind, <group>/any, <group>/images; any, images and, with `truth`, accuracy over all.
"""
import numpy as np

from mcd_jax.config.keys import NEEDED, Key
from mcd_jax.evals import rows, zeroshot

KEYS = {
    "source": Key("source", NEEDED, "of the images"),
    "where": Key("dict | None", None, "rows that are kept: {column: a value or several}"),
    "n": Key("int | None", None, "at most so many images, evenly spaced; left out: all"),
    "views": Key("map of str", {}, "pipe of image; left out: as in training, without randomness"),
    "group": Key("str", NEEDED, "column with the group of an image: figures are given for each of its values"),
    "prompts": Key("tuple", NEEDED, "((class, prompt), ...): an image is given the class of its nearest prompt"),
    "watched": Key("dict", NEEDED, "{kind: classes that nobody should be given}"),
    "truth": Key("str | None", None, "column with the class that an image should be given; left out: there is no accuracy"),
    "tokenizer": Key("str | None", None, "of the prompts; left out: that of the view of text"),
    "context": Key("int | None", None, "tokens of a prompt"),
}


def readout(image, prompts, classes, groups, watched, truth=None):
    """The figures of the module docstring; of prompts at the same distance the first is taken.

    Args:
      image: (n, D) unit rows; groups (n,) their groups; truth (n,) their classes, or None.
      prompts: (P, D) unit rows; classes: P class names.
      watched: {kind: class names}.

    Raises:
      ValueError: a watched class has no prompt.
    """
    classes, groups = np.asarray(classes).astype(str), np.asarray(groups).astype(str)
    for kind, names in watched.items():
        for name in names:
            if name not in classes:
                raise ValueError(f"watched class {name!r} of {kind!r} has no prompt: there are {', '.join(dict.fromkeys(classes))}")
    given = classes[np.argmax(image @ prompts.T, axis=1)]
    hits = {kind: np.isin(given, list(names)) for kind, names in watched.items()}
    hits["any"] = np.any(list(hits.values()), axis=0)
    found = {"any": float(np.mean(hits["any"])), "images": float(len(given))}
    if truth is not None:
        found["accuracy"] = float(np.mean(given == np.asarray(truth).astype(str)))
    for group in np.unique(groups).tolist():
        own = groups == group
        found |= {f"{group}/{kind}": float(np.mean(hit[own])) for kind, hit in hits.items()}
        found[f"{group}/images"] = float(np.sum(own))
    return found


def make(config, name):
    """fn(embed, state) -> the figures of the module docstring."""
    collect, score = parts(config, name)
    return lambda embed, state: score(*collect(embed, state))


def parts(config, name):
    """The two halves of `make`, for who changes the embeddings in between: as `zeroshot.parts`, with a row for each prompt.

    Raises:
      ValueError: no prompts, or a watched class without one.
    """
    instance = f"fairness.{name}"
    where, size = dict(config.get("where") or {}), config.get("batch_size", 256)
    columns = [column for column in (config["group"], config.get("truth")) if column]
    source = rows.open_source(config["source"], {*where, *columns}, instance)
    views, tokens = rows.pick(config["views"], ["image"], instance), zeroshot.prompt_view(config, instance)
    prompts, watched = [tuple(pair) for pair in config["prompts"]], {k: list(v) for k, v in dict(config["watched"]).items()}
    if not prompts or not watched:
        raise ValueError(f"config.evals.{instance} needs prompts, ((class, prompt), ...), and watched, {{kind: classes}}")
    classes = [c for c, _ in prompts]
    for name in (name for names in watched.values() for name in names):
        if name not in classes:
            raise ValueError(f"config.evals.{instance}.watched: {name!r} is no class of the prompts")

    def collect(embed, state):
        text, good = rows.encode(embed, state, rows.Texts(p for _, p in prompts), tokens, ["text"], size)
        rows.refuse_empty(good, [prompt for _, prompt in prompts], instance)
        used = rows.sample(source, where, config.get("n"), instance)
        table = rows.columns(source, columns, indices=used)
        image, good = rows.encode(embed, state, source, views, ["image"], size, indices=used)
        return image["image"][good], text["text"], {**{column: values[good] for column, values in table.items()}, "": good}

    def score(image, text, rest):
        truth = rest[config["truth"]] if config.get("truth") else None
        return rows.with_bad(readout(image, text, classes, rest[config["group"]], watched, truth), rest[""])

    return collect, score
