"""What the parts of `detect` share: the result, and which of several files are kept apart for validation."""
from collections.abc import Callable, Sequence
import glob
import os
import re
from typing import NamedTuple

from mcd_jax.data.storage.stores import is_local

PARTS = {"train": "train", "training": "train", "val": "validation", "valid": "validation", "validation": "validation",
         "dev": "validation", "test": "test", "testing": "test"}


class Found(NamedTuple):
    """What lies at a path.

    Attributes:
      kind: what it is, for people.
      spec: of the source of all examples, or of those to train on where the data set keeps others apart.
      held_out: spec of those that the data set keeps apart for validation; None where it keeps none.
      columns: which stored column serves as image, text and key, for people.
      several: whether an example may have several captions.
      classes: names of the classes, label 0 first, where they stand for captions; else ().
      label: the column with a class's number.
      notes: sentences on what was seen beside.
    """
    kind: str
    spec: dict
    held_out: dict | None = None
    columns: str = ""
    several: bool = False
    classes: tuple = ()
    label: str = "label"
    notes: tuple = ()


def parts(names: Sequence[str], basename: Callable[[str], str] = os.path.basename) -> tuple[Sequence[str], Sequence[str], str]:
    """Files by the word for a part in their names: (those to train on, those kept for validation or (), a sentence or "").

    Where not all names have such a word, or none is of either kind, all are to train on.
    """
    own = {name: PARTS.get(_word(basename(name))) for name in names}
    sets = {part: [name for name in names if own[name] == part] for part in ("train", "validation", "test")}
    if None in own.values() or not sets["train"] or not (sets["validation"] or sets["test"]):
        return names, (), ""
    kept = "validation" if sets["validation"] else "test"
    rest = f"; the {len(sets['test']):,} called test are left alone" if kept == "validation" and sets["test"] else ""
    return sets["train"], sets[kept], f"{len(sets[kept]):,} of {len(names):,} are called {kept} and held out for it{rest}"


def _word(name):
    """The word for a part that a name begins or, without its ending, ends with: "train-00000.parquet", "captions_val2017.json"."""
    words = "|".join(sorted(PARTS, key=len, reverse=True))
    found = re.match(rf"({words})(?![a-z])|.*[-_.]({words})\d*(?:\.[a-z_]+)?$", name.lower())
    return found and (found[1] or found[2])


def joined(urls: Sequence[str]) -> str | list[str]:
    """`path` of a source: one url; a pattern if it stands for just these files of this machine; else the list of them."""
    if len(urls) == 1:
        return urls[0]
    folder, ending = os.path.dirname(urls[0]), os.path.splitext(urls[0])[1]
    pattern = os.path.join(folder, f"*{ending}")
    plain = is_local(pattern) and glob.escape(folder) == folder and "{" not in folder
    return pattern if plain and sorted(glob.glob(pattern)) == sorted(urls) else list(urls)


def mixed(path: str, one: str, other: str, name: str) -> ValueError:
    """The ValueError for a folder with two kinds of things; `name`: what to name in its place."""
    return ValueError(f"data={path} holds {one} and {other}, and which of them is the data set can't be told: name it, such as "
                      f"data={os.path.join(path, name)}, or move the other away")
