"""The fixed names of the embedded data set: vendors, languages, groups, splits, files."""

import os

HERE = os.path.dirname(os.path.abspath(__file__))
PREPARED = os.path.join(HERE, "prepared")
TOKENIZER = os.path.join(HERE, "tokenizer.json")
VERSION = "1.0.0"

TRAINING_VENDORS = ("google", "twitter", "fluent")
HELD_OUT_VENDOR = "openmoji"
VENDORS = (*TRAINING_VENDORS, HELD_OUT_VENDOR)
CONCEPT_SPLITS = ("train", "validation", "test")
SPLITS = (*CONCEPT_SPLITS, *(f"{HELD_OUT_VENDOR}_{split}" for split in CONCEPT_SPLITS))

LANGUAGES = ("bn", "da", "de", "en", "en-gb", "es", "es-mx", "et", "fi", "fr", "hi", "hu", "it", "ja", "ko", "lt",
             "ms", "nb", "nl", "pl", "pt", "ru", "sv", "th", "uk", "vi", "zh", "zh-hant")

# Unicode's groups; "component" (skin tones, hair) has no concept of its own here, so nine are in use.
GROUPS = ("smileys-emotion", "people-body", "component", "animals-nature", "food-drink", "travel-places",
          "activities", "objects", "symbols", "flags")
FLAGS = GROUPS.index("flags")

SUBGROUPS = (
    "face-smiling", "face-affection", "face-tongue", "face-hand", "face-neutral-skeptical", "face-sleepy",
    "face-unwell", "face-hat", "face-glasses", "face-concerned", "face-negative", "face-costume", "cat-face",
    "monkey-face", "heart", "emotion", "hand-fingers-open", "hand-fingers-partial", "hand-single-finger",
    "hand-fingers-closed", "hands", "hand-prop", "body-parts", "person", "person-gesture", "person-role",
    "person-fantasy", "person-activity", "person-sport", "person-resting", "family", "person-symbol",
    "skin-tone", "hair-style", "animal-mammal", "animal-bird", "animal-amphibian", "animal-reptile",
    "animal-marine", "animal-bug", "plant-flower", "plant-other", "food-fruit", "food-vegetable",
    "food-prepared", "food-asian", "food-sweet", "drink", "dishware", "place-map", "place-geographic",
    "place-building", "place-religious", "place-other", "transport-ground", "transport-water",
    "transport-air", "hotel", "time", "sky-weather", "event", "award-medal", "sport", "game", "arts-crafts",
    "clothing", "sound", "music", "musical-instrument", "phone", "computer", "light-video", "book-paper",
    "money", "mail", "writing", "office", "lock", "tool", "science", "medical", "household", "other-object",
    "transport-sign", "warning", "arrow", "religion", "zodiac", "av-symbol", "gender", "math", "punctuation",
    "currency", "other-symbol", "keycap", "alphanum", "geometric", "flag", "country-flag", "subdivision-flag",
)
