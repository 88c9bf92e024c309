"""Emoji by four vendors: 1,852 concepts, 7,408 drawings, text in 28 languages, inside the package (see README.md)."""

from mcd_jax.data.emoji.names import (
    CONCEPT_SPLITS,
    GROUPS,
    HELD_OUT_VENDOR,
    LANGUAGES,
    PREPARED,
    SPLITS,
    SUBGROUPS,
    TOKENIZER,
    TRAINING_VENDORS,
    VENDORS,
)
from mcd_jax.data.emoji.source import CAPTIONS, Emoji, concepts, make, texts

__all__ = ["CAPTIONS", "CONCEPT_SPLITS", "GROUPS", "HELD_OUT_VENDOR", "LANGUAGES", "PREPARED", "SPLITS", "SUBGROUPS",
           "TOKENIZER", "TRAINING_VENDORS", "VENDORS", "Emoji", "concepts", "make", "texts"]
