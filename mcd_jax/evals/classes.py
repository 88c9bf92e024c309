"""Class names and prompt templates of published sets: `sets/<name>.json`, origin and licences in `sets/NOTICE.md`.

A file holds

  title      for people
  figure     what the literature reports of the set: "top1" or "mean_per_class"
  tfds       {"dataset", "test", "train", "validation"}: the data set in TFDS and its splits; absent where TFDS has none
  templates  prompts with "{}" where the class name goes
  classes    {name in the data set: name in the prompts}. The first is TFDS's label name (a WordNet id for ImageNet)
  like       another set, which gives what is missing

Labels are matched by name, never by number: TFDS, folders and prompt lists each have an order of their own.
"""
import functools
import json
import pathlib
import re
from typing import NamedTuple

import numpy as np

_SETS = pathlib.Path(__file__).parent / "sets"


class ClassSet(NamedTuple):
    name: str
    title: str
    figure: str
    templates: tuple
    stored: tuple       # class names of the data set
    prompted: tuple     # the same classes, as the prompts name them
    tfds: dict


def known():
    """Names of the sets, sorted."""
    return sorted(path.stem for path in _SETS.glob("*.json"))


@functools.cache
def read(name):
    """The `ClassSet` called `name`.

    Raises:
      ValueError: there is none; the message lists what there is.
    """
    if name not in known():
        raise ValueError(f"no class set {name!r}: there are {', '.join(known())}; names of your own go into `names`")
    own = json.loads((_SETS / f"{name}.json").read_text(encoding="utf-8"))
    if "like" in own:
        own = {**json.loads((_SETS / f"{own['like']}.json").read_text(encoding="utf-8")), **own}
    return ClassSet(name, own["title"], own["figure"], tuple(own["templates"]), tuple(own["classes"]),
                    tuple(own["classes"].values()), own.get("tfds", {}))


def source(name, part="test", **more):
    """The TFDS source spec of a set's "test", "train" or "validation" part, its class name as text.

    Args:
      more: further keys of the spec, such as data_dir.

    Raises:
      ValueError: TFDS doesn't have the set, or the set has no such part.
    """
    where = read(name).tfds
    if not where:
        raise ValueError(f"the set {name!r} is not in TFDS: give a source, such as "
                         "dict(name='image_folder', path=...) with a folder for each class")
    if part not in where:
        raise ValueError(f"the set {name!r} has no {part} part: it has {', '.join(k for k in where if k != 'dataset')}")
    return dict(name="tfds", dataset=where["dataset"], split=where[part], columns=dict(text="label"), **more)


def fold(text):
    """A name for comparison: lower case, letters and digits only ("F/A-18" and "F_A-18" are the same)."""
    text = text.decode("utf-8", "replace") if isinstance(text, bytes) else str(text)
    return re.sub(r"[\W_]+", "", text.lower())


@functools.cache
def _places(name):
    """{folded name: class}, over the stored names and those prompt names that only one class has."""
    chosen = read(name)
    prompted = [fold(n) for n in chosen.prompted]
    once = {n: i for i, n in enumerate(prompted) if prompted.count(n) == 1}
    return {**once, **{fold(n): i for i, n in enumerate(chosen.stored)}}


def numbers(name, values, labels=None):
    """The classes of stored labels.

    Args:
      name: the set.
      values: (n,) str or bytes, names of classes; or integers with `labels`.
      labels: what integers mean: a list of class names, label 0 first, or "set" where they count in the set's own order.

    Returns:
      int64 (n,), places in the set's `stored`.

    Raises:
      ValueError: integers without `labels`, or a name that is no class of the set.
    """
    values = np.asarray(values)
    places, total = _places(name), len(read(name).stored)
    if values.dtype.kind in "iu":
        if labels is None:
            raise ValueError("holds integers, whose order can't be known: name the column with the class name ('text' or "
                             "'class_name'), or give `labels`, the list of class names, label 0 first ('set': the set's order)")
        order = np.arange(total) if isinstance(labels, str) and labels == "set" else numbers(name, list(labels))
        if len(values) and (values.min() < 0 or values.max() >= len(order)):
            raise ValueError(f"holds label {values.min() if values.min() < 0 else values.max()}, but `labels` names {len(order)}")
        return order[values]
    names, inverse = np.unique(values, return_inverse=True)
    unknown = [str(n) for n in names if fold(n) not in places]
    if unknown:
        raise ValueError(f"holds {', '.join(map(repr, unknown[:5]))}{' ...' if len(unknown) > 5 else ''}: no class of the set "
                         f"{name!r}, which has {', '.join(map(repr, read(name).stored[:5]))} ...")
    return np.array([places[fold(n)] for n in names], np.int64)[inverse.reshape(-1)]


def stored_numbers(name, values, labels, column, instance):
    """`numbers` of a source's column; an error names the evaluation and the column."""
    try:
        return numbers(name, values, labels)
    except ValueError as error:
        raise ValueError(f"config.evals.{instance}: column {column!r} {error}") from error
