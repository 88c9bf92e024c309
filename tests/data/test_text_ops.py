"""Text operations: which captions, words deleted and exchanged, and rows of several captions."""
import collections
import itertools

import numpy as np
import pytest
from scipy import stats

from mcd_jax.data import decode, tokenizers
from mcd_jax.data.ops import text_ops
from mcd_jax.data.views import Views

RNG = np.random.default_rng(0)
WORDS = ["a", "photo", "of", "seven", "small", "red", "hearts", "on", "fire"]


def results(op, value, count=4000):
    """What `op` makes of `value` for many draws."""
    return [op.run(value, draws) for draws in RNG.random((count, op.draws)).tolist()]


def subsequence(short, long):
    rest = iter(long)
    return all(word in rest for word in short)


# ---- words ----


@pytest.mark.parametrize("p", [0.0, 0.1, 0.5, 1.0])
def test_each_word_is_deleted_with_probability_p_and_the_others_keep_their_order(p):
    got = [result.split() for result in results(text_ops.delete_words(p), " ".join(WORDS))]
    assert all(words and subsequence(words, WORDS) for words in got)
    survivors = collections.Counter(itertools.chain.from_iterable(got))
    last = p ** len(WORDS)   # all would go: one of them stays
    for word in WORDS:
        expected = (1 - p) + last / len(WORDS)
        assert stats.binomtest(survivors[word], len(got), min(expected, 1)).pvalue > 1e-4, word
    if 0 < p < 1:   # independent of each other
        table = np.array([[word in words for word in WORDS] for words in got], float)
        assert np.abs(np.corrcoef(table.T) - np.eye(len(WORDS))).max() < 0.08


def test_at_least_one_word_stays():
    assert set(results(text_ops.delete_words(1.0), "red  heart", 200)) == {"red", "heart"}
    assert set(results(text_ops.delete_words(1.0), "heart", 20)) == {"heart"}
    assert text_ops.delete_words(1.0).run(" ", [0.3]) == " "


def test_swaps_exchange_two_words_each_pair_as_often_as_any_other():
    got = collections.Counter(results(text_ops.swap_words(1), "a b c d"))
    swapped = []
    for i, j in itertools.combinations(range(4), 2):
        words = list("abcd")
        words[i], words[j] = words[j], words[i]
        swapped.append(" ".join(words))
    assert set(got) == set(swapped) and stats.chisquare([got[words] for words in swapped]).pvalue > 1e-4
    many = results(text_ops.swap_words(5), " ".join(WORDS), 300)
    assert all(sorted(words.split()) == sorted(WORDS) for words in many) and len(set(many)) > 250
    assert set(results(text_ops.swap_words(0), "a b", 5)) == {"a b"} and set(results(text_ops.swap_words(3), "heart",
                                                                                     5)) == {"heart"}
    assert set(results(text_ops.swap_words(2), "a b", 5)) == {"a b"} and set(results(text_ops.swap_words(1), "a b", 5)) == {"b a"}


def test_words_are_replaced_by_synonyms_wherever_they_stand(tmp_path):
    table = tmp_path / "synonyms.json"
    table.write_text('{"red": ["scarlet", "crimson"], "dog": ["hound"], "none": []}')
    got = collections.Counter(results(text_ops.replace_words(str(table)), "Red dog none red Red"))
    assert set(got) == {"scarlet dog none red scarlet", "crimson dog none red crimson", "Red hound none red Red",
                        "Red dog none scarlet Red", "Red dog none crimson Red"}
    assert stats.binomtest(got["Red hound none red Red"], 4000, 1 / 3).pvalue > 1e-4
    assert set(results(text_ops.replace_words(str(table), 5), "dog dog cat", 20)) == {"hound hound cat"}
    table.write_text('{"red": "scarlet"}')
    with pytest.raises(ValueError, match=r"synonyms\.json must hold an object of words with a list of synonyms each"):
        text_ops.replace_words(str(table))


@pytest.mark.parametrize("with_synonyms", [False, True])
def test_eda_draws_one_of_its_changes_for_each_text(with_synonyms, tmp_path):
    table = tmp_path / "synonyms.json"
    table.write_text('{"a": ["x"]}')
    got = collections.Counter(results(text_ops.eda(1, 1.0, str(table) if with_synonyms else ""), "a b c"))
    kinds = {"deleted": {"a", "b", "c"}, "swapped": {"b a c", "c b a", "a c b"}, "replaced": {"x b c"} if with_synonyms else set()}
    assert set(got) == set.union(*kinds.values())
    count = [sum(got[text] for text in kind) for kind in kinds.values() if kind]
    assert stats.chisquare(count).pvalue > 1e-4
    assert text_ops.eda().draws == 1 and text_ops.eda().run("a b c", [0.3]) == text_ops.eda().run("a b c", [0.3])


def test_views_of_one_stream_take_the_same_caption():
    views = Views({"text": "caption|text_stream('pair')|tokenize(8,'emoji')", "other": "caption|tokenize(8,'emoji')",
                   "changed": "caption|text_stream('pair')|eda(1, 0.0)|tokenize(8,'emoji')"})
    draws, same = views.draws(0, range(64)), 0
    for j in range(64):
        row = views({"text": ["red heart", "blue sky"]}, {name: numbers[j] for name, numbers in draws.items()})
        assert sorted(row["text"]) == sorted(row["changed"])
        same += (row["text"] == row["other"]).all()
    assert 16 < same < 48


def test_the_result_is_a_function_of_the_draw():
    """Python's own generator, seeded by the draw: these values hold on every version."""
    import random
    draw, line = 0.3, " ".join(WORDS)
    generator = random.Random(int(draw * 2 ** 53))
    expected = [word for word in WORDS if generator.random() >= 0.4]
    assert text_ops.delete_words(0.4).run(line, [draw]).split() == expected
    assert text_ops.swap_words(2).run(line, [draw]) == text_ops.swap_words(2).run(line, [draw]) != text_ops.swap_words(2).run(line,
                                                                                                                              [0.31])


def test_bytes_in_the_thousands_and_odd_blanks_are_no_trouble():
    giant = "word\u3000" * 800 + "\ud800 end"
    assert 300 < len(text_ops.delete_words(0.5).run(giant, [0.5]).split()) < 500
    assert len(text_ops.swap_words(50).run(giant, [0.9]).split()) == 802


# ---- captions ----


def test_captions_are_repeated_cyclically_or_the_first_n():
    three = {"text": ["one", "", b"two", " ", "three"], "key": "k"}
    run = text_ops.captions(2).run
    assert run(dict(three), [0.9]) == ["one", "two"]
    assert text_ops.captions(7).run(dict(three), [0.0]) == ["one", "two", "three", "one", "two", "three", "one"]
    assert text_ops.captions(3).run({"text": "alone"}, [0.5]) == ["alone"] * 3
    orders = collections.Counter(tuple(text_ops.captions(2, "random").run(dict(three), [u])) for u in RNG.random(3000))
    expected = list(itertools.permutations(["one", "two", "three"], 2))
    assert set(orders) == set(expected) and stats.chisquare(list(orders.values())).pvalue > 1e-4
    with pytest.raises(decode.Bad, match="empty caption"):
        text_ops.captions(2).run({"text": ["", b"\n"]}, [0.5])


NOTHING = ["", " \t\n", "&nbsp;", "&amp;nbsp; &#8203;", "\ufeff", "\u200b\u200d", "\x00\x1f", "\u202e\u202c", "\u3164 \u2800",
           "\ufe0f", "\ud83d", b"\xef\xbb\xbf", b"\xff\xfe", "\u00ad"]
SOMETHING = ["a", "7", "\u4eba", "\U0001f600", "\u2605", "\u05e9\u200f", "a\x00", b"\xef\xbb\xbfa",
             "\x1b[31mred"]
PUNCTUATION = ["&amp;", "&", "...", "_", "&quot;&quot;", "!?", " - "]


@pytest.mark.parametrize("clean, name", [("lower", "clip"), ("canonical", "clip"), ("whitespace", "emoji"), ("plain", "emoji"),
                                         ("canonical", "emoji")])
def test_a_caption_that_says_nothing_once_it_is_cleaned_is_missing(clean, name):
    tokenize = f"tokenize(8, {name!r}, {clean!r})"
    view = Views({"text": f"caption('first')|{tokenize}", "all": f"captions(2)|{tokenize}"})
    draws = {"text": [0.0] * 4, "all": [0.0] * 4}
    missing = NOTHING + PUNCTUATION * (clean == "canonical")
    for text in missing:
        with pytest.raises(decode.Bad, match="empty caption: column 'text'"):
            view({"text": text}, draws)
        got = view({"text": [text, "red heart", text]}, draws)   # passed over
        expected = view({"text": "red heart"}, draws)
        assert got["text"].tolist() == expected["text"].tolist() and got["all"].tolist() == expected["all"].tolist()
    for text in SOMETHING + PUNCTUATION * (clean != "canonical"):
        row = view({"text": text}, draws)["text"]
        assert len(tokenizers.make(name, clean).pieces(row)) > (2 if name == "clip" else 1), text


def test_a_mark_of_byte_order_is_no_letter_and_utf16_is_read():
    example = {"text": [b"\xef\xbb\xbfred heart", "red heart".encode("utf-16")]}
    assert tokenizers.captions(example, "text") == ["red heart"] * 2 and example["notes"] == {"caption not UTF-8"}


def test_deleting_words_leaves_one_with_a_letter():
    for draw in RNG.random(200):
        assert any(map(str.isalnum, text_ops.delete_words(0.7).run("... dog -- ! cat ?", [draw])))
    assert text_ops.delete_words(1.0).run("... !", [0.9]) in ("...", "!")


def test_rows_of_several_captions_in_a_batch():
    views = Views({"text": "captions(4)|tokenize(8,'emoji')", "changed": "captions(2,'random')|delete_words(.5)|tokenize(8)"})
    examples = [{"text": ["red heart", "a heart that is red"], "key": "a"}, {"text": "fire", "key": "b"}]
    draws = views.draws(0, [0, 1])
    rows = [views(example, {name: numbers[j] for name, numbers in draws.items()}) for j, example in enumerate(examples)]
    batch = views.collate(rows)
    assert batch["text"].shape == (2, 4, 8) and batch["changed"].shape == (2, 2, 8) and batch["text"].dtype == np.int32
    encode = tokenizers.make("emoji").encode
    np.testing.assert_array_equal(batch["text"][0], encode(["red heart", "a heart that is red"] * 2, 8))
    np.testing.assert_array_equal(batch["text"][1], encode(["fire"] * 4, 8))
    assert views.tokens["text"][1] == 8


def test_each_caption_of_a_row_is_changed_by_itself():
    got = results(text_ops.delete_words(0.5), ["a b c d e f"] * 2, 200)
    assert sum(first != second for first, second in got) > 150


def test_short_captions_reach_the_tokenizer_as_they_are_stored():
    """open_clip drops these control characters, so a blank in their place would be another text."""
    example = {"text": "a\x1fb\x0bc"}
    row = Views({"text": "caption|tokenize(8)"})(example, {"text": [0.0] * 4})["text"]
    assert row.tolist() == [49406, 5334, 49407, 0, 0, 0, 0, 0]


def test_draws_of_the_ops_that_were_there_before_are_unchanged():
    """More or fewer would give every later op of a view other random numbers."""
    assert [op.draws for op in (text_ops.caption(), text_ops.caption("first"), text_ops.tokenize(8))] == [1, 1, 0]


@pytest.mark.parametrize("spec, words", [
    ("caption|delete_words(1.5)|tokenize(8)", r"delete_words: 1.5 is not in \[0, 1\]"),
    ("caption|swap_words(.5)|tokenize(8)", "the number of swaps is a whole number"),
    ("caption|eda(-1)|tokenize(8)", r"eda\(-1\): the number of swaps is a whole number"),
    ("caption|eda(1, 2)|tokenize(8)", r"eda: 2 is not in \[0, 1\]"),
    ("captions(0)|tokenize(8)", "the number of captions is at least 1"),
    ("captions(2,'last')|tokenize(8)", "use 'random' or 'first'"),
    ("caption('last')|tokenize(8)", "use 'random' or 'first'"),
    ("caption|delete_words(.1)", "ends with a text, which no batch can carry"),
    ("decode|delete_words(.1)", "works on a text, but gets an image"),
    ("caption|tokenize(8,clean='upper')", "no cleaning 'upper'")])
def test_refusals(spec, words):
    with pytest.raises(ValueError, match=words):
        Views({"text": spec})
