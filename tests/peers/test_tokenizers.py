"""Token rows and cleaning equal open_clip's on every label and tag of the embedded set, in 28 languages, and on hostile strings."""
import numpy as np
import open_clip
from open_clip import tokenizer as theirs
import pytest

from mcd_jax.data import tokenizers
from mcd_jax.data.emoji import names as emoji_names
from mcd_jax.data.sources import emoji

HOSTILE = (
    "<|endoftext|> a", "<end_of_text>", "a<END_OF_TEXT>b", "<start_of_text> hi <|startoftext|>",
    "&amp;lt;end_of_text&amp;gt;", "it\u2019s", "'S 'LL 'Ve", "''s", "a'sb", "''''", "\u0130", "\u01c5", "\u1e9e", "\u0149",
    "\u0391\u03a3 \u0391\u03a3\u0392", "\x00a\x00b", "a\x1fb", "a\x0bb", "a\x0cb", "a\x85b", "\x1b[31mred\x1b[0m",
    "tab\there\nline\r\nline\u2028sep\u2029par", "a\u200db", "a\u200bb", "\ufeffabc\ufeff", "\u202eabc\u202c",
    "\u0634\u0644\u0627\u0645 \u200f", "\ufffc\ufffd", "&amp;amp;amp;", "&#0;", "&#x110000;", "&#xD800;", "&amp;" * 2000,
    "&lt;" * 3000, "\ud800 a", "\ud83d\ude00", "a\udcffb", "\U0001f468\u200d\U0001f469\u200d\U0001f467",
    "\U0001f3f4\U000e0067\U000e0062\U000e007f", "\U0001f600\ufe0f" * 300, "e\u0301\u0301\u0327", "Z\u0351\u036b\u0343" * 100,
    "\u0928\u093c\u092e\u094d", "\u2460\u2461", "\u00bd \u00b2 x\u00b2", "\u00aa\u00ba", "\uff21\uff42", "\u338f", "\ufb01",
    "na\u00c3\u00afve\ncaf\u00e9", "\u00e2\u20ac\u0153hi\n\u00c2\u00a0ho", "\u2026" * 5, "a_b__c", "!" * 300, "." * 10_000,
    "a" * 10_000, "word " * 2000, "\u00e9" * 10_000, "\u65e5\u672c" * 5000, " " * 10_000, "\n" * 9999 + "a",
    "\U0010ffff\ue000", "\x7f\x80\x9f", "1234567890" * 20)


@pytest.fixture(scope="module")
def strings():
    found = {text for row in emoji.concepts() for text in emoji.texts(row, ("label", "tags"), emoji_names.LANGUAGES)}
    assert len(found) > 100_000
    return sorted(found)


def different(captions, context):
    got = tokenizers.make("clip").encode(captions, context)
    want = open_clip.get_tokenizer("ViT-B-32")(captions, context_length=context).numpy()
    return [c[:60] for c, a, b in zip(captions, got, want) if not np.array_equal(a, b)]


def test_every_caption_of_the_embedded_set(strings):
    assert not different(strings, 77)


@pytest.mark.parametrize("context", [3, 8, 77])
def test_hostile_strings_and_where_rows_are_cut(context):
    assert not different([*HOSTILE, "a photo " * 37, "a photo " * 37 + "a", "a photo " * 38, "a photo " * 50], context)


def test_the_known_differences_are_what_the_docstring_says():
    """A letter by open_clip's Unicode only (case-folding of U+0345), and U+017F as the s of 's."""
    assert different(["a\u0345b", "x'\u017f y"], 77) == ["a\u0345b", "x'\u017f y"]
    beyond = "&#128514;" * 1000    # 75 tokens of eight faces each are 5,400 characters long
    assert different([beyond], 77) == [beyond[:60]] and not different(["\U0001f602" * 1000], 77)


@pytest.mark.parametrize("ours, mode", [(tokenizers.whitespace, "whitespace"), (tokenizers.clean, "lower"),
                                        (tokenizers.canonical, "canonicalize")])
def test_cleaning(strings, ours, mode):
    clean = theirs.get_clean_fn(mode)
    short = [text for text in HOSTILE if len(text) <= tokenizers.LIMIT]
    wrong = [text for text in [*strings[::23], *short, "A_b, (c)! \u00abd\u00bb 50% {e}"] if ours(text) != clean(text)]
    assert not wrong
