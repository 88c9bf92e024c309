"""Questions about the embedded drawings, made from their labels, groups and tags (see mcd_jax.data.sources):

    dict(name="questions", split="train", kinds=("subgroup", "either", "tag", "group", "name"), seed=0)

  subgroup   is this a fruit?                   yes | no
  tag        is it about sweet?                 yes | no
  either     fruit or bird?                     fruit | bird
  group      which group is this?               one of the 9 groups
  name       what is this?                      the label

Drawings are paired at random, with another subgroup (another concept, for tags) in each pair; both are asked about both sides of
the pair. So every question of the first three kinds comes as often with either answer: who doesn't look at the drawing is right in
half of them, whatever he learned. What "group" and "name" ask has no such balance, and figures of who always says the commonest
answer stand beside those of a model. A concept of another split is in no pair.

Columns: those of the emoji source, and text (the question), key, question_type, answer (str), answers and choices (a list of it),
weights float32 (1,).
"""
import re

import numpy as np

from mcd_jax.config.keys import Key
from mcd_jax.data.emoji import names
from mcd_jax.data.sources import emoji as emoji
from mcd_jax.data.sources.columns import position

KINDS = ("subgroup", "tag", "either", "group", "name")
KEYS = {
    "split": emoji.KEYS["split"],
    "vendors": emoji.KEYS["vendors"],
    "kinds": Key("tuple", KINDS, "of questions"),
    "seed": Key("int", 0, "of how drawings are paired"),
}
GROUPS = dict(zip(names.GROUPS, ("smileys", "people", "parts", "animals and plants", "food and drink", "travel and places",
                                 "activities", "objects", "symbols", "flags"), strict=True))
# what one drawing of a subgroup is called; subgroups without a word of their own aren't asked about
WORDS = {
    "heart": "a heart", "person-role": "a worker", "person-sport": "an athlete", "family": "a family",
    "hand-fingers-open": "an open hand", "hand-single-finger": "a pointing finger", "body-parts": "a body part",
    "animal-mammal": "a mammal", "animal-bird": "a bird", "animal-reptile": "a reptile", "animal-marine": "a sea animal",
    "animal-bug": "a bug", "plant-flower": "a flower", "plant-other": "a plant", "food-fruit": "a fruit",
    "food-vegetable": "a vegetable", "food-prepared": "a meal", "food-asian": "asian food", "food-sweet": "a dessert",
    "drink": "a drink", "dishware": "dishware", "place-building": "a building", "place-religious": "a temple",
    "place-geographic": "a landscape", "transport-ground": "a land vehicle", "transport-water": "a ship",
    "transport-air": "an aircraft", "time": "a clock", "sky-weather": "weather", "event": "a celebration",
    "award-medal": "an award", "sport": "a sport", "game": "a game", "clothing": "clothing", "music": "music",
    "musical-instrument": "an instrument", "computer": "a computer", "light-video": "a camera",
    "book-paper": "paper", "money": "money", "mail": "mail", "writing": "a writing tool", "office": "office supplies",
    "lock": "a lock", "tool": "a tool", "household": "a home item", "transport-sign": "a traffic sign", "arrow": "an arrow",
    "religion": "a religious sign", "zodiac": "a zodiac sign", "geometric": "a geometric shape", "keycap": "a keycap",
    "country-flag": "a flag", "face-smiling": "a smiling face", "cat-face": "a cat face",
}


def make(spec):
    """The source of a spec; see the module.

    spec: split, and optionally kinds (all), seed (0) and what the emoji source takes: vendors, languages other than English aren't
      asked in.

    Raises:
      ValueError: a key or value that doesn't exist.
    """
    own = {"kinds", "seed"}
    kinds = tuple(spec.get("kinds", KINDS))
    if unknown := [kind for kind in kinds if kind not in KINDS] or not kinds:
        raise ValueError(f"data.source.kinds: {unknown if kinds else 'nothing'} is not possible; choose from {', '.join(KINDS)}")
    if "captions" in spec or "languages" in spec:
        raise ValueError("data.source has no captions and languages for the questions source: it asks in English")
    rest = {key: value for key, value in spec.items() if key not in own}
    return Questions(emoji.make({**rest, "name": "emoji"}), kinds, spec.get("seed", 0))


class Questions:
    """See the module. Rows are in the order of kinds, pairs at random; item i is the same for every reader."""

    def __init__(self, drawings, kinds, seed):
        self._drawings = drawings
        rows = [drawings.about(i) for i in range(len(drawings))]
        self._rows = []
        for kind in kinds:
            rng = np.random.default_rng([seed, KINDS.index(kind)])
            self._rows += [(kind, *row) for row in ASK[kind](rows, rng)]

    def __len__(self):
        return len(self._rows)

    def __getitem__(self, index):
        kind, drawing, question, answer = self._rows[position(index, len(self))]
        row = self._drawings[drawing]
        return {**row, "text": question, "key": f"{row['key']}/{question}", **_answer(kind, answer)}

    def column(self, name):
        """The values of one column for all rows; no drawing is read for those that belong to the questions."""
        own = {"text": 2, "answer": 3, "question_type": 0}
        if name in own:
            return [row[own[name]] for row in self._rows]
        if name == "answers":
            return [[row[3]] for row in self._rows]
        return [self[i][name] for i in range(len(self))]


def _answer(kind, answer):
    return {"question_type": kind, "answer": answer, "answers": [answer], "choices": [answer], "weights": np.ones(1, np.float32)}


def matching(values, fits, rng, tries=1000):
    """Pairs (i, j) of all positions of `values` (but one, where their number is odd) with fits(values[i], values[j]).

    A random matching whose pairs that don't fit exchange partners with random others; what still doesn't fit is left out.
    """
    order = rng.permutation(len(values))
    pairs = [list(pair) for pair in zip(order[::2], order[1::2])]
    for pair in pairs:
        for _ in range(tries):
            if fits(values[pair[0]], values[pair[1]]):
                break
            other = pairs[int(rng.integers(len(pairs)))]
            swapped = (pair[0], other[1]), (other[0], pair[1])
            if other is not pair and all(fits(values[i], values[j]) for i, j in swapped):
                pair[1], other[1] = other[1], pair[1]
    return [(int(i), int(j)) for i, j in pairs if fits(values[i], values[j])]


def _named(rows):
    """(positions of the rows whose subgroup has words, these words)."""
    words = [WORDS.get(names.SUBGROUPS[row["subgroup"]]) for row in rows]
    kept = [i for i, word in enumerate(words) if word]
    return kept, [words[i] for i in kept]


def _subgroup(rows, rng):
    kept, of = _named(rows)
    for i, j in matching(of, lambda a, b: a != b, rng):
        for asked in (i, j):
            yield from ((kept[seen], f"is this {of[asked]}?", "yes" if of[seen] == of[asked] else "no") for seen in (i, j))


def _either(rows, rng):
    kept, of = _named(rows)
    for i, j in matching(of, lambda a, b: a != b, rng):
        first, second = sorted(map(_bare, (of[i], of[j])))
        yield from ((kept[seen], f"{first} or {second}?", _bare(of[seen])) for seen in (i, j))


def _bare(words):
    """Without the article."""
    return re.sub(r"^an? ", "", words)


def _tag(rows, rng):
    words = [{tag.lower() for tag in row["tags"]} for row in rows]
    said = [own | set(row["label"].lower().split()) for own, row in zip(words, rows)]
    kept = [i for i, own in enumerate(words) if own]
    chosen = {i: sorted(words[i])[int(rng.integers(len(words[i])))] for i in kept}
    for a, b in matching(kept, lambda i, j: chosen[i] not in said[j] and chosen[j] not in said[i], rng):
        i, j = kept[a], kept[b]
        for asked in (i, j):
            yield from ((seen, f"is it about {chosen[asked]}?", "yes" if seen == asked else "no") for seen in (i, j))


def _group(rows, rng):
    yield from ((i, "which group is this?", GROUPS[names.GROUPS[row["group"]]]) for i, row in enumerate(rows))


def _name(rows, rng):
    yield from ((i, "what is this?", row["label"]) for i, row in enumerate(rows))


ASK = {"subgroup": _subgroup, "tag": _tag, "either": _either, "group": _group, "name": _name}
