"""Phrases of captions as spans of tokens, in what the tokenizer gives and beside the view of the text."""
import sys
import types

import numpy as np
import pytest

from mcd_jax.data import pipeline, tokenizers
from mcd_jax.methods.loupe import phrases_op

CAPTIONS = {
    "grinning face: cheerful, happy": ["grinning face", "cheerful", "happy"],
    "A man's red hat on the big dog": ["man's red hat", "big dog"],
    "flag: Côte d'Ivoire": ["flag", "côte d'ivoire"],
    "the of": ["the of"],
    "E-mail  symbol": ["e-mail symbol"],
}


def said(tokenizer, row, spans):
    """The texts of the spans, without blanks."""
    parts = [tokenizer.pieces(row[first:last]) for first, last in spans if last > first]
    return ["".join(text for _, text in part).replace(" ", "") for part in parts]


@pytest.mark.parametrize("name", ["emoji", "clip"])
@pytest.mark.parametrize("caption", CAPTIONS)
def test_spans_are_the_tokens_of_the_phrases(name, caption):
    tokenizer = tokenizers.make(name)
    spans = phrases_op.phrases(24, 4, name).run(caption, [])
    assert spans.shape == (4, 2) and spans.dtype == np.int32
    assert said(tokenizer, tokenizer.row(caption, 24), spans) == [text.replace(" ", "") for text in CAPTIONS[caption]]


def test_words_are_phrases_of_their_own():
    tokenizer, caption = tokenizers.make("emoji"), "the cat face, a happy dog"
    spans = phrases_op.phrases(24, 8, "emoji", how="words").run(caption, [])
    assert said(tokenizer, tokenizer.row(caption, 24), spans) == ["cat", "face", "happy", "dog"]


def test_what_does_not_fit_is_cut_or_left_out():
    op = phrases_op.phrases(6, 4, "clip")
    assert op.run("red apple, green pear, blue plum", []).tolist() == [[1, 3], [4, 5], [0, 0], [0, 0]]
    assert phrases_op.phrases(24, 2, "clip").run("apple, pear, plum", []).tolist() == [[1, 2], [3, 4]]


class Captions:
    """Rows of three captions each."""

    def __len__(self):
        return 40

    def __getitem__(self, index):
        return {"text": ["cat, dog", "dog, red cat, bird", "the big blue fish"], "key": str(index)}


def test_both_views_are_of_the_same_random_caption():
    views = dict(text="caption('random')|tokenize(12, 'emoji')", phrases="caption('random')|phrases(12, 4, 'emoji')")
    batch = next(pipeline.sequential(Captions(), views, 40, seed=3))
    tokenizer, seen = tokenizers.make("emoji"), set()
    for row, spans in zip(batch["text"], batch["phrases"]):
        parts = said(tokenizer, row, spans)
        assert parts in (["cat", "dog"], ["dog", "redcat", "bird"], ["bigbluefish"])
        assert "".join(parts) == "".join(text for _, text in tokenizer.pieces(row) if text != "end").translate(
            str.maketrans("", "", " ,")).replace("the", "")
        seen.add(len(parts))
    assert seen == {1, 2, 3}


@pytest.mark.parametrize("call, words", [
    (lambda: phrases_op.phrases(12, 0), "number of phrases is at least 1"),
    (lambda: phrases_op.phrases(12, 4, how="nouns"), "how='nouns' must be one of chunks, words, spacy"),
    (lambda: phrases_op.phrases(2, 4), "context 2 has no room"),
])
def test_what_makes_no_sense_is_refused(call, words):
    with pytest.raises(ValueError, match=words):
        call()


def test_a_parser_that_is_not_there_is_named(monkeypatch):
    phrases_op._parser.cache_clear()
    monkeypatch.setitem(sys.modules, "spacy", None)
    with pytest.raises(ValueError, match=r"needs the spacy package: pip install spacy, or how='chunks'"):
        phrases_op.phrases(12, 4, "emoji", how="spacy")


def test_a_parser_gives_its_noun_chunks(monkeypatch):
    """A stand-in with the parts of spaCy's interface that are used."""
    def parse(text):
        spans = [("the red hat", 0), ("a dog", text.index("a dog"))]
        return types.SimpleNamespace(noun_chunks=[types.SimpleNamespace(text=part, start_char=at) for part, at in spans])
    phrases_op._parser.cache_clear()
    monkeypatch.setitem(sys.modules, "spacy", types.SimpleNamespace(load=lambda model, exclude: parse))
    tokenizer, caption = tokenizers.make("emoji"), "the red hat worn by a dog"
    spans = phrases_op.phrases(24, 4, "emoji", how="spacy", model="stand-in").run(caption, [])
    phrases_op._parser.cache_clear()
    assert said(tokenizer, tokenizer.row(caption, 24), spans) == ["redhat", "dog"]
