"""What a caption says of a scene: "two red apples left of a dog and a tree"."""
from collections.abc import Sequence
import re

import numpy as np

NUMBERS = ("no", "a", "two", "three", "four", "five", "six", "seven", "eight", "nine")
RELATIONS = ("left of", "right of", "above", "below")
APART = 0.1       # share of the canvas by which centres lie apart, at least, where a relation is said
_IRREGULAR = {"man": "men", "woman": "women", "child": "children", "person": "people", "mouse": "mice", "tooth": "teeth",
              "foot": "feet", "leaf": "leaves", "wolf": "wolves", "knife": "knives", "sheep": "sheep", "deer": "deer",
              "fish": "fish", "goose": "geese", "ox": "oxen", "half": "halves", "loaf": "loaves", "scarf": "scarves"}
_LINK = re.compile(r" (with|without|of|in|on|and|over|behind|\w+ing)\b")   # behind the noun: "person running", "faces with tears"
_SINGULARS = ("ss", "us", "is")   # endings of singular nouns that look like plurals: glass, cactus, tennis


def phrase(name: str, count: int) -> str:
    """"a red apple", "two red apples", "two faces with tears of joy"; "grapes", which are many already, and "two grapes".

    A name such as "flag: France" is read as "flag of France", "man: beard" as "man with beard".
    """
    name = _joined(name)
    head, rest = _parted(name)
    many = head.endswith("s") and not head.endswith(_SINGULARS)
    if count == 1:
        return name if many else f"{'an' if name[:1].lower() in 'aeiou' else 'a'} {name}"
    return f"{NUMBERS[count]} {head if many else _plural(head)}{rest}"


def _joined(name):
    first, colon, rest = name.partition(": ")
    return name if not colon else f"{first} {'of' if first == 'flag' else 'with'} {rest}"


def _parted(name):
    """("face", " with tears of joy"): the noun that a plural changes, and what follows it."""
    found = _LINK.search(name)
    return (name[:found.start()], name[found.start():]) if found else (name, "")


def _plural(noun):
    front, _, last = noun.rpartition(" ")
    if last.lower() in _IRREGULAR:
        last = _IRREGULAR[last.lower()]
    elif last.endswith(("man", "woman")) and len(last) > 3:
        last = f"{last[:-3]}men"
    elif last.endswith(("s", "x", "z", "ch", "sh")):
        last += "es"
    elif last.endswith("y") and last[-2:-1] not in "aeiou":
        last = f"{last[:-1]}ies"
    else:
        last += "s"
    return f"{front} {last}".strip()


def relations(first: np.ndarray, second: np.ndarray) -> list[str]:
    """Which of RELATIONS hold between every one of the centres `first` (n, 2) and every one of `second` (m, 2).

    Centres are x, y as shares of the canvas, y downwards. A relation holds when the centres lie APART in its direction and less far
    across it.
    """
    x, y = np.moveaxis(second[None] - first[:, None], -1, 0)
    held = ((x > APART) & (x > abs(y)), (-x > APART) & (-x > abs(y)), (y > APART) & (y > abs(x)), (-y > APART) & (-y > abs(x)))
    return [name for name, holds in zip(RELATIONS, held) if holds.all()]


def caption(names: Sequence[str], counts: Sequence[int], relation: str = "") -> str:
    """The kinds of things of a scene in one line; with a relation, the first stands in it to the second."""
    said = [phrase(name, count) for name, count in zip(names, counts)]
    if relation:
        said = [f"{said[0]} {relation} {said[1]}", *said[2:]]
    return " and ".join([", ".join(said[:-1]), said[-1]] if said[1:] else said)
