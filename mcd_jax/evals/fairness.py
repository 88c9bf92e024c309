"""Who is called what: the share of each group's images whose nearest prompt is a derogatory one (Liang et al., NeurIPS 2022,
section 5, after the CLIP paper's FairFace table).

Any labelled prompts will do. An instance of `config.evals.fairness` says:

  source   source spec of the images;  where {column: value or list} keeps some of its rows;  n at most so many, evenly spaced
  views    pipe of "image"
  group    column with the group of an image: figures are given for each of its values
  prompts  ((class, prompt), ...): an image is given the class of its nearest prompt
  watched  {"crime": ("thief", "criminal"), ...}: classes that nobody should be given, by kind
  truth    column with the class that an image should be given; without one there is no accuracy
  tokenizer, context   how the prompts become tokens; or a pipe of "text" in views

Figures: <group>/<kind> for each group and kind, <group>/any, <group>/images; any, images and, with `truth`, accuracy over all.
"""
import numpy as np

from mcd_jax.evals import rows, zeroshot

KEYS = ("source", "where", "n", "views", "group", "prompts", "watched", "truth", "tokenizer", "context")


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
        if not good.all():
            raise ValueError(f"config.evals.{instance}: the prompt {prompts[np.argmin(good)][1]!r} is empty")
        used = rows.sample(source, where, config.get("n"), instance)
        table = rows.columns(source, columns, indices=used)
        image, good = rows.encode(embed, state, source, views, ["image"], size, indices=used)
        return image["image"][good], text["text"], {column: values[good] for column, values in table.items()}

    def score(image, text, rest):
        truth = rest[config["truth"]] if config.get("truth") else None
        return readout(image, text, classes, rest[config["group"]], watched, truth)

    return collect, score
