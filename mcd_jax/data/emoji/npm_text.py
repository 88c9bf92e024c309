"""Reads the concepts and their text from the npm package emojibase-data. Only the builder needs this."""

import json
import os

from mcd_jax.data.emoji import drawing, families, names


def read(npm, language):
    """{concept: entry of emojibase-data} for one language; raises FileNotFoundError naming the missing file."""
    path = os.path.join(npm, "emojibase-data", language, "data.json")
    if not os.path.isfile(path):
        raise FileNotFoundError(f"no text in {language!r} at {path}; give the folder that holds the npm packages")
    with open(path, encoding="utf-8") as file:
        return {families.concept_key(entry["hexcode"]): entry for entry in json.load(file)}


def concepts(npm):
    """The concepts that all four vendors draw, in Unicode's order, as records of the config "concepts"."""
    entries = {language: read(npm, language) for language in names.LANGUAGES}
    drawn = set.intersection(*(set(drawing.files(npm, vendor)) for vendor in names.VENDORS))
    english = {key: entry for key, entry in entries["en"].items() if key in drawn and "group" in entry}
    order = sorted(english, key=lambda key: english[key]["order"])
    splits = families.assign_splits({key: english[key]["group"] for key in order})
    return [{
        "concept": key,
        "concept_id": number,
        "family": families.family(key),
        "group": names.GROUPS[english[key]["group"]],
        "subgroup": names.SUBGROUPS[english[key]["subgroup"]],
        "flag": english[key]["group"] == names.FLAGS,
        "split": splits[key],
        "labels": {language: entries[language][key]["label"] for language in names.LANGUAGES},
        "tags": {language: entries[language][key].get("tags", []) for language in names.LANGUAGES},
    } for number, key in enumerate(order)]
