"""Zero-shot classification with prompt ensembles: an image's class is the nearest class embedding.

A class has one or more names (several languages, synonyms); every name goes into every template. The unit embeddings of these
prompts are averaged and the mean made unit again, as SLIP's eval_zeroshot.py does; where tokens are compared (`similarity`), an
image's similarities with the prompts are averaged, as FILIP does. An instance of `config.evals.zeroshot` says:

  set        a published set (`classes.known`): its names, templates and source in TFDS, each of which the keys below replace
  source     source spec of the images;  where {column: value or list} keeps some of its rows;  n at most so many, evenly spaced
  views      pipe of "image"
  label      integer column with the class of an image; with `set` a column of class names (default: "text"), which are matched by
             name; integers need `labels`, the list of class names with label 0 first, or "set" where they count as the set does
  names      list of names, class 0 first, each a string or a list of strings; or a source spec: every text of every row that
             `names_where` keeps is a name of the class in that row's `label` column
  templates  ("{}", "a drawing of {}"): "{}" is where the name goes; unused where the view of "text" is a stored embedding and each
             row that names a class has that of its text
  tokenizer, context   how the prompts become tokens, as in the pipe op tokenize(context, tokenizer); or a pipe of "text" in views
  without    {"no_flags": "flag"}: once more without the images whose column is true, and without the classes for which it always is
             (in the rows that give the names, else in the images)
  similarity  see `evals.similarity`

Figures: top1, top5, mean_per_class (top-1 recall averaged over the classes that occur), chance_top1, images, classes; "bad", the
number of images that can't be read and are left out, when there are any; with `set` also accuracy, the one of top1 and
mean_per_class that the literature reports for it. Classes whose prompts are the same (ImageNet
has two "missile" and two "sunglasses") can't be told apart: the first of them is taken, as an argmax does.
"""
import collections
from typing import NamedTuple

from absl import logging
import numpy as np

from mcd_jax.config.keys import Key
from mcd_jax.data import pipeline
from mcd_jax.evals import classes as classes_lib
from mcd_jax.evals import rows
from mcd_jax.evals import similarity as similarity_lib

KEYS = {
    "set": Key("str | None", None, "a published set: its names, templates and source in TFDS, each of which the other keys "
               "replace"),
    "source": Key("source | None", None, "of the images"),
    "where": Key("dict | None", None, "rows that are kept: {column: a value or several}"),
    "n": Key("int | None", None, "at most so many images, evenly spaced; left out: all"),
    "views": Key("map of str", {}, "pipe of image; left out: as in training, without randomness"),
    "label": Key("str | None", None, "integer column with the class of an image; with `set` a column of class names, text if "
                 "left out"),
    "labels": Key("str | tuple | None", None, "what integers mean where there is a `set`: class names, label 0 first, or \"set\""),
    "names": Key("tuple | source | None", None, "class names, class 0 first, each a string or several; or a source, whose texts "
                 "are names"),
    "names_where": Key("dict | None", None, "rows of that source that are kept"),
    "templates": Key("tuple", ("{}",), "prompts; {} is where the name goes"),
    "tokenizer": Key("str | None", None, "of the prompts; left out: that of the view of text"),
    "context": Key("int | None", None, "tokens of a prompt"),
    "without": Key("dict | None", None, "{a name: a column}: once more without the images whose column is true, and the classes "
                   "for which it always is"),
    "similarity": similarity_lib.KEY,
}


def class_embeddings(prompt_embeddings, prompt_class, n_classes):
    """Per-prompt unit rows (P, D) with their class (P,) -> unit class rows (n_classes, D): mean, then made unit."""
    prompts = prompt_embeddings / np.maximum(np.linalg.norm(prompt_embeddings, axis=1, keepdims=True), 1e-12)
    total = np.zeros((n_classes, prompts.shape[1]), np.float32)
    np.add.at(total, prompt_class, prompts)
    total /= np.bincount(prompt_class, minlength=n_classes)[:, None]
    return total / np.maximum(np.linalg.norm(total, axis=1, keepdims=True), 1e-12)


class Prompts(NamedTuple):
    """Classes whose prompts are compared one by one: `similarity.Tokens` of the prompts, and the class of each (P,)."""
    tokens: similarity_lib.Tokens
    owner: np.ndarray


def scores(image, classes):
    """Similarities (n, C) of images with classes, as `collect` of `parts` gives both."""
    return similarity_lib.grouped(image, *classes) if isinstance(classes, Prompts) else similarity_lib.scores(image, classes)


def accuracy(image, classes, labels, class_ids, twins=None):
    """Figures for image rows (n, D) with `labels` (n,) against class rows (C, D) that stand for `class_ids` (C,).

    A class that ties with the true one counts as nearer. twins (C,): classes with equal numbers have the same prompts; the first
    of them counts as nearer than the others, whatever their scores.

    Raises:
      ValueError: an image's label is not among `class_ids`.
    """
    return _figures(scores(image, classes), labels, class_ids, twins)


def _figures(scores, labels, class_ids, twins):
    """`accuracy` of scores (n, C)."""
    order = np.argsort(class_ids)
    place = np.searchsorted(class_ids[order], labels)
    found = order[np.minimum(place, len(order) - 1)]
    if not np.array_equal(class_ids[found], labels):
        raise ValueError(f"label {labels[class_ids[found] != labels][0]} of an image has no class name")
    own = scores[np.arange(len(scores)), found][:, None]
    nearer = ~(scores < own)  # so is the true class itself: rank 1 = nearest
    if twins is not None:
        same = twins[found][:, None] == twins[None, :]
        nearer = np.where(same, np.arange(len(class_ids))[None, :] <= found[:, None], nearer)
    rank = np.sum(nearer, axis=1)
    per_class = [np.mean(rank[labels == c] <= 1) for c in np.unique(labels)]
    return {"top1": float(np.mean(rank <= 1)), "top5": float(np.mean(rank <= 5)), "mean_per_class": float(np.mean(per_class)),
            "chance_top1": 1.0 / len(class_ids), "images": float(len(scores)), "classes": float(len(class_ids))}


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
        text = texts[index] if isinstance(texts[index], (list, tuple, np.ndarray)) else [texts[index]]
        bucket = names.setdefault(int(table[label][index]), {})
        bucket.update((t.decode() if isinstance(t, bytes) else t, None) for t in text if isinstance(t, (str, bytes)))
    return ({c: list(bucket) for c, bucket in sorted(names.items())},
            {column: always(table[label][keep], table[column][keep]) for column in columns})


def same_prompts(names, template, view, size):
    """(C,) int: the first class whose prompts are those of class i: equal names, or such that the tokenizer makes equal.

    Args:
      names: [[name, ...], ...] of the classes. view: `pipeline.Views` of "text", None where there are no prompts.
    """
    folded = [tuple(" ".join(name.casefold().split()) for name in own) for own in names]
    count, first = collections.Counter(folded), {}

    def prompts(own, alike):
        if view is None or count[alike] == 1 or not all(alike):
            return tuple(own)
        return rows.tokens(rows.Texts([template.replace("{}", name) for name in own]), view, None, size).tobytes()
    return np.array([first.setdefault(prompts(own, alike), i) for i, (own, alike) in enumerate(zip(names, folded))])


def stored_names(source, label, where, class_ids, instance):
    """[(class, row)] of the first row of each class and text, in a source whose text view is a stored embedding."""
    table = rows.columns(source, {*where, label, "text"}, ragged=("text",))
    texts = table.pop("text")
    keep, first = rows.select(table, where, instance), {}
    for index in np.flatnonzero(keep):
        text = texts[index] if isinstance(texts[index], (str, bytes)) else tuple(texts[index])
        first.setdefault((int(table[label][index]), text), int(index))
    place = {int(c): i for i, c in enumerate(class_ids)}
    return sorted((place[c], index) for (c, _), index in first.items())


def always(labels, column):
    """The classes that occur and whose rows all have a true `column`, sorted."""
    column = np.asarray(column, bool)
    return np.setdiff1d(labels[column], labels[~column])


def figures_of(settings) -> list[str]:
    """The names of the figures of an instance with these settings."""
    names = ["top1", "top5", "mean_per_class", "chance_top1", "images", "classes"]
    own = ["accuracy"] if settings.get("set") else []
    return [*names, *own, *(f"{label}/{name}" for label in settings.get("without") or () for name in names), "bad"]


def make(config, name):
    """fn(embed, state) -> {"top1": ..., "no_flags/top1": ...}; `config`: see the module.

    Raises:
      ValueError: a template without "{}", or a class without a name.
    """
    collect, score = parts(config, name, config.get("similarity", "auto"))
    return lambda embed, state: score(*collect(embed, state))


def parts(config, name, similarity="pooled"):
    """The two halves of `make`, for who changes the embeddings in between. similarity: in place of the config's.

    Returns:
      collect(embed, state) -> (image (n, D), classes (C, D), rest): unit rows that can be used, and what else the figures need;
      score(image, classes, rest) -> the figures.
    """
    instance = f"zeroshot.{name}"
    similarity_lib.check(similarity, instance)
    chosen = classes_lib.read(config["set"]) if config.get("set") else None
    if chosen:
        config = {"label": "text", "names": chosen.prompted, "templates": chosen.templates, **config,
                  "source": config.get("source") or classes_lib.source(chosen.name)}
    label = config["label"]
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
    views, tokens = rows.pick(config["views"], ["image"], instance), prompt_view(config, instance)
    class_ids = np.array(sorted(names))
    twins = same_prompts([names[c] for c in class_ids], templates[0], tokens, size)
    if twice := [i for i, first in enumerate(twins) if first < i and gone is None and not chosen]:
        one, other = (names[class_ids[i]][0] for i in (twins[twice[0]], twice[0]))
        logging.warning("config.evals.%s: %d of the %d classes have the same prompts as one before them (%r and %r), which is "
                        "taken for them: names say them apart", instance, len(twice), len(class_ids), one, other)
    if tokens is None:   # the embeddings of the names are stored beside them
        asked, places = texts, stored_names(texts, label, names_where, class_ids, instance)
        tokens = rows.pick(config["views"], ["text"], instance)
        prompts, owner = [(i, names[class_ids[i]][0]) for i, _ in places], np.array([i for i, _ in places])
        places = [place for _, place in places]
    else:
        prompts = [(i, t.replace("{}", n)) for i, c in enumerate(class_ids) for n in names[c] for t in templates]
        asked, places, owner = rows.Texts(p for _, p in prompts), None, np.array([i for i, _ in prompts])

    def collect(embed, state):
        embed = similarity_lib.using(embed, similarity, instance)
        texts, usable = rows.encode(embed, state, asked, tokens, ["text"], size, indices=places)
        rows.refuse_empty(usable, [prompt for _, prompt in prompts], instance)
        found = similarity_lib.rows_of(texts, "text")
        classes = (Prompts(found, owner) if isinstance(found, similarity_lib.Tokens) else
                   class_embeddings(found, owner, len(class_ids)))

        used = rows.sample(source, where, config.get("n"), instance)
        table = rows.columns(source, {label, *without.values()}, indices=used)
        labels = table[label]
        if chosen:
            labels = classes_lib.stored_numbers(chosen.name, labels, config.get("labels"), label, instance)
        image, good = rows.encode(embed, state, source, views, ["image"], size, indices=used)
        more = {"image": {key: value[good] for key, value in image.items()}, "text": texts, "prompt_class": owner,
                "rows": used[good], "good": good}
        stored = {column: values[good] for column, values in {**table, label: labels}.items()}
        return similarity_lib.rows_of(image, "image")[good], classes, {"": more, **stored}

    def score(image, classes, rest):
        labels, found = rest[label], scores(image, classes)
        figures = _figures(found, labels, class_ids, twins)
        if chosen:
            figures["accuracy"] = figures[chosen.figure]
        for key, column in without.items():
            flagged = rest[column].astype(bool)
            kept = ~np.isin(class_ids, gone[column] if gone else always(labels, flagged))
            fewer = _figures(found[~flagged][:, kept], labels[~flagged], class_ids[kept], twins[kept])
            figures.update({f"{key}/{figure}": value for figure, value in fewer.items()})
        return rows.with_bad(figures, rest[""]["good"])

    return collect, score


def prompt_view(config, instance):
    """`pipeline.Views` of "text" for the prompts; None where the names' own rows hold their embeddings (column('text_embedding')).

    Raises:
      ValueError: stored embeddings for names that are no source.
    """
    if "tokenizer" not in config and str(config["views"].get("text", "")).startswith("column("):
        if not hasattr(config["names"], "items"):
            raise ValueError(f"config.evals.{instance}: stored embeddings have no text tower for prompts: let `names` be a source "
                             "whose rows hold their embeddings")
        return None
    if "tokenizer" not in config and "text" in config["views"]:
        return rows.pick(config["views"], ["text"], instance)
    return pipeline.Views({"text": f"caption('first')|tokenize({config['context']!r}, {config['tokenizer']!r})"})
