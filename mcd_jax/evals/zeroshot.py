"""Zero-shot classification with prompt ensembles: an image's class is the nearest class embedding.

A class has one or more names (several languages, synonyms); every name goes into every template. The unit embeddings of these
prompts are averaged and the mean made unit again, as SLIP's eval_zeroshot.py does. An instance of `config.evals.zeroshot` says:

  source     source spec of the images;  where {column: value or list} keeps some of its rows;  n at most so many, evenly spaced
  views      pipe of "image"
  label      integer column with the class of an image
  names      list of names, class 0 first, each a string or a list of strings; or a source spec: every text of every row that
             `names_where` keeps is a name of the class in that row's `label` column
  templates  ("{}", "a drawing of {}"): "{}" is where the name goes
  tokenizer, context   how the prompts become tokens, as in the pipe op tokenize(context, tokenizer)
  without    {"no_flags": "flag"}: once more without the images whose column is true, and without the classes for which it always is
             (in the rows that give the names, else in the images)

Figures: top1, top5, mean_per_class (top-1 recall averaged over the classes that occur), chance_top1, images, classes.
"""
import numpy as np

from mcd_jax.data import tokenizers
from mcd_jax.evals import rows

KEYS = ("source", "where", "n", "views", "label", "names", "names_where", "templates", "tokenizer", "context", "without")


def class_embeddings(prompt_embeddings, prompt_class, n_classes):
    """Per-prompt unit rows (P, D) with their class (P,) -> unit class rows (n_classes, D): mean, then made unit."""
    prompts = prompt_embeddings / np.maximum(np.linalg.norm(prompt_embeddings, axis=1, keepdims=True), 1e-12)
    total = np.zeros((n_classes, prompts.shape[1]), np.float32)
    np.add.at(total, prompt_class, prompts)
    total /= np.bincount(prompt_class, minlength=n_classes)[:, None]
    return total / np.maximum(np.linalg.norm(total, axis=1, keepdims=True), 1e-12)


def accuracy(image, classes, labels, class_ids):
    """Figures for image rows (n, D) with `labels` (n,) against class rows (C, D) that stand for `class_ids` (C,).

    A class that ties with the true one counts as nearer.

    Raises:
      ValueError: an image's label is not among `class_ids`.
    """
    order = np.argsort(class_ids)
    place = np.searchsorted(class_ids[order], labels)
    found = order[np.minimum(place, len(order) - 1)]
    if not np.array_equal(class_ids[found], labels):
        raise ValueError(f"label {labels[class_ids[found] != labels][0]} of an image has no class name")
    scores = image @ classes.T
    own = scores[np.arange(len(image)), found][:, None]
    rank = np.sum(~(scores < own), axis=1)  # counts the true class itself: 1 = nearest
    per_class = [np.mean(rank[labels == c] <= 1) for c in np.unique(labels)]
    return {"top1": float(np.mean(rank <= 1)), "top5": float(np.mean(rank <= 5)), "mean_per_class": float(np.mean(per_class)),
            "chance_top1": 1.0 / len(class_ids), "images": float(len(image)), "classes": float(len(class_ids))}


def named(source, label, where, columns, instance):
    """Class names out of a source of texts.

    Returns:
      {class id: [name, ...]} sorted, each name once; {column: ids of the classes for which the column is always true}.
    """
    table = rows.columns(source, {*where, label, *columns, "text"}, ragged=("text",))
    texts = table.pop("text")
    keep = rows.select(table, where, instance)
    names = {}
    for index in np.flatnonzero(keep):
        text = [texts[index]] if isinstance(texts[index], (str, bytes)) else texts[index]
        bucket = names.setdefault(int(table[label][index]), {})
        bucket.update((t.decode() if isinstance(t, bytes) else t, None) for t in text)
    return ({c: list(bucket) for c, bucket in sorted(names.items())},
            {column: always(table[label][keep], table[column][keep]) for column in columns})


def always(labels, column):
    """The classes that occur and whose rows all have a true `column`, sorted."""
    column = np.asarray(column, bool)
    return np.setdiff1d(labels[column], labels[~column])


def make(config, name):
    """fn(embed, state) -> {"top1": ..., "no_flags/top1": ...}; `config`: see the module.

    Raises:
      ValueError: a template without "{}", or a class without a name.
    """
    instance, label = f"zeroshot.{name}", config["label"]
    without, where = dict(config.get("without") or {}), dict(config.get("where") or {})
    templates, size = list(config.get("templates", ("{}",))), config.get("batch_size", 256)
    for template in templates:
        if "{}" not in template:
            raise ValueError(f"config.evals.{instance}.templates: {template!r} has no '{{}}' where the name goes")
    if hasattr(config["names"], "items"):
        names_where = dict(config.get("names_where") or {})
        texts = rows.open_source(config["names"], {*names_where, label, *without.values()}, instance)
        names, gone = named(texts, label, names_where, without.values(), instance)
    else:
        names, gone = {i: [n] if isinstance(n, str) else list(n) for i, n in enumerate(config["names"])}, None
    for c, own in names.items():
        if not own:
            raise ValueError(f"config.evals.{instance}.names: class {c} has no name")
    source = rows.open_source(config["source"], {*where, label, *without.values()}, instance)
    views, tokenizer = rows.pick(config["views"], ["image"], instance), tokenizers.make(config["tokenizer"])
    class_ids = np.array(sorted(names))
    prompts = [(i, t.replace("{}", n)) for i, c in enumerate(class_ids) for n in names[c] for t in templates]

    def evaluate(embed, state):
        parts = []
        for start in range(0, len(prompts), size):
            tokens = tokenizer.encode([p for _, p in prompts[start:start + size]], config["context"])
            parts.append(embed(state, {"text": tokens})["text"])
        classes = class_embeddings(np.concatenate(parts), np.array([i for i, _ in prompts]), len(class_ids))

        chosen = rows.sample(source, where, config.get("n"), instance)
        table = rows.columns(source, {label, *without.values()}, indices=chosen)
        image, good = rows.encode(embed, state, source, views, ["image"], size, indices=chosen)
        image, labels = image["image"], table[label]
        figures = accuracy(image[good], classes, labels[good], class_ids)
        for key, column in without.items():
            keep = good & ~table[column].astype(bool)
            kept = ~np.isin(class_ids, gone[column] if gone else always(labels[good], table[column][good]))
            fewer = accuracy(image[keep], classes[kept], labels[keep], class_ids[kept])
            figures.update({f"{key}/{figure}": value for figure, value in fewer.items()})
        return figures

    return evaluate
