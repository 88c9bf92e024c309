"""The phrases of a caption as spans of its tokens: "caption('random')|phrases(12, 8, 'emoji')" beside a view "text".

Three ways: "chunks" are the runs of words between function words and punctuation, "words" every word that is no function word,
both for English and good enough for captions; "spacy" the noun chunks of a parser, which needs the `spacy` package and a model.
A caption that would have none of them is one phrase as a whole.
"""
import functools
import re

import numpy as np

from mcd_jax.data import tokenizers
from mcd_jax.data.ops.augmented import Op

HOW = ("chunks", "words", "spacy")
FUNCTION_WORDS = frozenset((
    "a", "about", "above", "across", "after", "against", "all", "along", "also", "am", "among", "an", "and", "any", "are",
    "around", "as", "at", "away", "be", "been", "before", "behind", "being", "below", "beneath", "beside", "between", "both",
    "but", "by", "can", "did", "do", "does", "down", "during", "each", "every", "for", "from", "had", "has", "have", "he",
    "her", "here", "him", "his", "i", "if", "in", "inside", "into", "is", "it", "its", "just", "like", "me", "more", "most",
    "my", "near", "next", "no", "not", "of", "off", "on", "onto", "or", "our", "out", "outside", "over", "own", "she", "so",
    "some", "such", "than", "that", "the", "their", "them", "then", "there", "these", "they", "this", "those", "through",
    "to", "together", "too", "toward", "towards", "under", "until", "up", "upon", "us", "very", "was", "we", "were", "what",
    "when", "where", "which", "while", "who", "whose", "will", "with", "within", "without", "would", "you", "your",
))
_WORD = re.compile(r"\w+(?:['\u2019]\w+)*")


def phrases(context, n, name="clip", how="chunks", clean="", pad=0, end=True, of="text", model="en_core_web_sm"):
    """Spans of the caption's tokens, int32 (n, 2): the first token of each phrase and the one after its last.

    Spans count in the rows that `tokenize(context, name, clean, pad, end)` makes, start token included. Phrases that don't fit into
    the row whole are cut at its end or left out; of more than n the first are taken; what is left over is (0, 0).

    Args:
      how: out of HOW. model: the parser's, for "spacy".
      of: the view that tokenizes the same caption. It must be made by the same operations before: its random numbers are shared.

    Raises:
      ValueError: an unknown `how`, no room for a phrase, or a parser that isn't installed.
    """
    tokenizer = tokenizers.make(name, clean, pad, end)
    tokenizer.encode([], context)
    if how not in HOW:
        raise ValueError(f"phrases: how={how!r} must be one of {', '.join(HOW)}")
    if isinstance(n, bool) or not isinstance(n, int) or n < 1:
        raise ValueError(f"phrases({context}, {n!r}): the number of phrases is at least 1")
    find = {"chunks": _chunks, "words": _words, "spacy": functools.partial(_noun_chunks, parser=_parser(model))
            if how == "spacy" else None}[how]

    @functools.lru_cache(maxsize=65536)
    def spans(text):
        return _token_spans(tokenizer, text, find(text), context, n)
    return Op(lambda text, _: spans(text[:tokenizers.LIMIT]), "text", "array", stream=f"view {of}", tokenizer=tokenizer)


def _chunks(text):
    """[(start, end), ...] in characters: runs of words with nothing but blanks or hyphens and no function word between."""
    found, last = [], None
    for word in _WORD.finditer(text):
        if word.group().lower() in FUNCTION_WORDS:
            last = None
            continue
        if last is not None and not text[last:word.start()].strip(" \t\n-\u2010\u2011"):
            found[-1] = found[-1][0], word.end()
        else:
            found.append(word.span())
        last = word.end()
    return found or _whole(text)


def _words(text):
    """[(start, end), ...] in characters: the words that are no function words."""
    return [word.span() for word in _WORD.finditer(text) if word.group().lower() not in FUNCTION_WORDS] or _whole(text)


def _noun_chunks(text, parser):
    """[(start, end), ...] in characters: the noun chunks of a spaCy pipeline, without the function words that lead them."""
    found = []
    for chunk in parser(text).noun_chunks:
        inside = [span for span in _chunks(chunk.text) if chunk.text[slice(*span)].lower() not in FUNCTION_WORDS]
        if inside:
            found.append((chunk.start_char + inside[0][0], chunk.start_char + inside[-1][1]))
    return found or _whole(text)


def _token_spans(tokenizer, text, found, context, n):
    """int32 (n, 2), read-only, see `phrases`. found: spans in characters, in order.

    The tokens up to a word's end are as many as those of the text cut there, because tokenizers cut at words first.
    """
    head, room = int(tokenizer.sot is not None), context - 1
    rows = np.zeros((n, 2), np.int32)
    count = 0
    for start, end in found:
        first = head + tokenizer.length(text[:start])
        last = min(head + tokenizer.length(text[:end]), room)
        if first >= room or count == n:
            break
        if last > first:
            rows[count] = first, last
            count += 1
    rows.flags.writeable = False
    return rows


def _whole(text):
    stripped = text.strip()
    start = text.find(stripped)
    return [(start, start + len(stripped))] if stripped else []


@functools.cache
def _parser(model):
    try:
        import spacy
    except ModuleNotFoundError as error:
        raise ValueError("phrases(how='spacy') needs the spacy package: pip install spacy, or how='chunks' without it") from error
    try:
        return spacy.load(model, exclude=("ner", "lemmatizer"))
    except OSError as error:
        raise ValueError(f"phrases(how='spacy') needs spaCy's model {model!r}: python -m spacy download {model}") from error
