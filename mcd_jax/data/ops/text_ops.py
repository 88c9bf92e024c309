"""Text operations that pipe strings name: "caption('random')|delete_words(.1)|swap_words(1)|tokenize(77)".

After `captions(n)` the text is a list of n, each of which an operation changes by itself. The operations on words are those of EDA
(Wei and Zou, arXiv 1901.11196), for synonyms with a list of one's own; EDA's insertion of synonyms isn't there. A word is what
stands between blanks, so a language written without blanks keeps its texts whole.
"""
import json
import pathlib
import random

import numpy as np

from mcd_jax.data import tokenizers
from mcd_jax.data.ops.augmented import Op

# ---- reading the example ----


def caption(which="random", column="text"):
    """One caption of a text column (str, UTF-8 bytes, or a list of them): a "random" one or the "first".

    Empty ones are passed over, also those that cleaning leaves empty ("&nbsp;", a mark of byte order, or "..." before a tokenizer
    that takes punctuation out); with none left the example is bad ("empty caption"). Bytes that are not UTF-8 are left out, and
    only the first `tokenizers.LIMIT` characters are kept; both are noted and counted.
    """
    if which not in ("random", "first"):
        raise ValueError(f"caption({which!r}): use 'random' or 'first'")

    def run(texts, draws):
        return texts[int(draws[0] * len(texts))] if which == "random" else texts[0]
    return _reading(run, column)


def captions(n, which="first", column="text"):
    """n captions of a text column, for rows of (n, context) tokens: all of them, from the beginning again where there are fewer.

    Of more than n it takes the "first" n, or n "random" ones in random order. Which are passed over: see `caption`.
    """
    if isinstance(n, bool) or not isinstance(n, int) or n < 1:
        raise ValueError(f"captions({n!r}): the number of captions is at least 1")
    if which not in ("random", "first"):
        raise ValueError(f"captions({n}, {which!r}): use 'random' or 'first'")

    def run(texts, draws):
        if which == "random":
            texts = _shuffled(texts, draws[0])
        return [texts[i % len(texts)] for i in range(n)]
    return _reading(run, column)


def _reading(run, column, tokenizer=None):
    """The op run(usable captions, draws). They are remembered with the example, which may be kept from epoch to epoch."""
    name = "captions", column, tokenizer

    def read(example, draws):
        texts = example.get(name)
        if texts is None:
            texts = example[name] = tokenizers.captions(example, column, tokenizer)
        return run(texts, draws)
    return Op(read, "example", "text", draws=1, column=column, with_tokenizer=lambda following: _reading(run, column, following))


def tokenize(context, name="clip", clean="", pad=0, end=True):
    """Token ids, int32 (context,), after `captions(n)` (n, context): see `tokenizers.make` for the other arguments.

    First in a pipe it reads `caption("random")`.
    """
    tokenizer = tokenizers.make(name, clean, pad, end)
    tokenizer.encode([], context)  # refuses a context that is too short

    def run(text, _):
        return tokenizer.row(text, context) if isinstance(text, str) else tokenizer.encode(text, context)
    return Op(run, "text", "array", tokens=(tokenizer, context), tokenizer=tokenizer)


# ---- words ----


def delete_words(p):
    """Takes each word out with probability `p`; of a text that would lose all with a letter or digit, one of those stays."""
    return _words(_deletion(p, "delete_words"))


def swap_words(n):
    """Exchanges two random words, `n` times. A text of one word stays as it is."""
    return _words(_swaps(n, "swap_words"))


def replace_words(synonyms, n=1):
    """Replaces `n` random words that have synonyms by one of them, wherever in the text they stand.

    synonyms: path of a JSON file, {"word": ["synonym", ...], ...}, words in lower case; of some words at most n are there.
    """
    return _words(_replacement(synonyms, n, "replace_words"))


def eda(swaps=1, p=0.1, synonyms="", n=1):
    """One of EDA's changes, for each text: `swap_words(swaps)`, `delete_words(p)` or, by a file, `replace_words(synonyms, n)`.

    DeCLIP changes its second caption so, with a word list (WordNet) for synonyms; none comes with this package, and without one
    the other two changes share its part.
    """
    changes = [_swaps(swaps, "eda"), _deletion(p, "eda"), *([_replacement(synonyms, n, "eda")] if synonyms else [])]
    return _words(lambda words, generator: changes[int(generator.random() * len(changes))](words, generator))


def text_stream(name):
    """Gives this view the random numbers of stream `name`: text views of one stream take the same `caption('random')`.

    It comes behind the caption, and what follows draws numbers of its own. Views of one stream need equally many numbers, rounded
    up to four.
    """
    return Op(lambda text, _: text, "text", "text", stream=f"stream {name}")


def _deletion(p, op):
    if not 0 <= p <= 1:
        raise ValueError(f"{op}: {p} is not in [0, 1]")

    def change(words, generator):
        kept = [word for word in words if generator.random() >= p]
        if kept and (any(map(_says_something, kept)) or not any(map(_says_something, words))):
            return kept
        some = list(filter(_says_something, words)) or words
        return [some[int(generator.random() * len(some))]]
    return change


def _swaps(n, op):
    _check_count(n, op, "swaps")

    def change(words, generator):
        for _ in range(n if len(words) > 1 else 0):
            a, b = int(generator.random() * len(words)), int(generator.random() * (len(words) - 1))
            b += b >= a
            words[a], words[b] = words[b], words[a]
        return words
    return change


def _replacement(synonyms, n, op):
    _check_count(n, op, "replaced words")
    table = json.loads(pathlib.Path(synonyms).read_text(encoding="utf-8"))
    lists = table.values() if isinstance(table, dict) else [None]
    if not all(isinstance(some, list) and all(isinstance(word, str) for word in some) for some in lists):
        raise ValueError(f"{op}: {synonyms} must hold an object of words with a list of synonyms each")

    def change(words, generator):
        known = sorted({word for word in words if table.get(word.lower())})
        for word in _shuffled(known, generator.random())[:n]:
            choice = table[word.lower()]
            new = choice[int(generator.random() * len(choice))]
            words = [new if w == word else w for w in words]
        return words
    return change


def _check_count(n, op, what):
    if isinstance(n, bool) or not isinstance(n, int) or n < 0:
        raise ValueError(f"{op}({n!r}): the number of {what} is a whole number of at least 0")


def _words(change):
    """Texts have any number of words: the one draw of the op begins a stream of as many random numbers as they need."""
    def run(text, draws):
        generator = _stream(draws[0])
        if isinstance(text, str):
            return _changed(text, change, generator)
        return [_changed(one, change, generator) for one in text]
    return Op(run, "text", "text", draws=1)


def _says_something(word):
    return any(map(str.isalnum, word))


def _changed(text, change, generator):
    words = text.split()
    return " ".join(change(words, generator)) if words else text


def _shuffled(texts, draw):
    generator = _stream(draw)
    return [texts[i] for i in np.argsort([generator.random() for _ in texts], kind="stable")]


def _stream(draw):
    """`.random()` of the result is the same on every version of Python."""
    return random.Random(int(draw * 2 ** 53))
