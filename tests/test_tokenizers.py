"""Token rows: equal to open_clip's, bounded work, and an end-of-text that no truncation loses."""
import time

import numpy as np
import pytest
import tokenizers as huggingface

from mcd_jax.data import tokenizers

# ids between start and end, made by open_clip 3.3.0's SimpleTokenizer
OPEN_CLIP = [
    ('a photo of a cat',
     [320, 1125, 539, 320, 2368]),
    ('Hello,   WORLD!!',
     [3306, 267, 1002, 748]),
    ('na\xefve caf\xe9 \u2014 \u201cquotes\u201d',
     [1097, 35689, 563, 15304, 2005, 257, 5808, 257]),
    ("it's the dog's 3 bones, isn't it?",
     [585, 568, 518, 1929, 568, 274, 9476, 267, 2923, 713, 585, 286]),
    ('',
     []),
    ('&amp;lt;b&amp;gt; &amp;amp; fish',
     [283, 321, 285, 261, 2759]),
    ('\u65e5\u672c\u8a9e \u306e\u30c6\u30ad\u30b9\u30c8',
     [39121, 44353, 34002, 508, 21575, 2429, 228, 47121, 32421, 486]),
    ('\U0001f468\u200d\U0001f469\u200d\U0001f467 family \U0001f1ef\U0001f1f5',
     [25023, 26304, 964, 356, 1315, 26527]),
    ('\xe2\u20ac\u0153mojibake\xe2\u20ac\x9d',
     [257, 617, 3252, 11878, 257]),
    ("don't_stop snake_case 12345",
     [847, 713, 318, 1691, 8798, 318, 2068, 272, 273, 274, 275, 276]),
    ('\xdcn\xefc\xf6d\xe9 \xc5NGSTR\xd6M \u0130stanbul',
     [6522, 77, 35689, 66, 7255, 67, 4166, 23176, 10352, 807, 7255, 332, 328, 16384, 11231]),
    ('\ufb01ne ligature \xbd',
     [3797, 19915, 4490, 33613]),
    ('line\u2028sep\xa0nbsp',
     [1148, 10434, 6459, 4393]),
    ('\u041f\u0440\u0438\u0432\u0435\u0442 \u043c\u0438\u0440',
     [26302, 16370, 29503, 110, 22176, 141, 480, 38018, 16701, 141, 478]),
    ('\u0645\u0631\u062d\u0628\u0627 \u0628\u0627\u0644\u0639\u0627\u0644\u0645',
     [12986, 10948, 25722, 16378, 22625, 16378, 12973, 18843, 12973, 29945]),
]


@pytest.mark.parametrize("text, ids", OPEN_CLIP)
def test_clip_ids_are_those_of_open_clip(text, ids):
    row = tokenizers.make("clip").encode([text], 77)[0]
    assert row.tolist() == [49406, *ids, 49407] + [0] * (75 - len(ids))


def test_clip_vocabulary_and_truncation_keeps_the_end():
    clip = tokenizers.make("clip")
    assert (clip.vocab_size, clip.sot, clip.eot, clip.pad) == (49408, 49406, 49407, 0)
    rows = clip.encode(["a photo " * 50, "a b c d e f", "a b"], 6)
    assert rows.dtype == np.int32 and rows.shape == (3, 6)
    assert rows[0].tolist() == [49406, 320, 1125, 320, 1125, 49407]
    assert (rows[:2, -1] == clip.eot).all() and (rows[2] == clip.eot).sum() == 1 and rows[2, 4] == 0


def test_work_is_bounded_for_giant_texts():
    clip = tokenizers.make("clip")
    start = time.process_time()
    rows = clip.encode(["x" * 3_000_000, " " * 3_000_000 + "late", "&amp;\u00e9\u201c" * 500_000, "a" * 10_000], 77)
    assert time.process_time() - start < 1.0
    assert rows[1].tolist() == clip.encode([""], 77)[0].tolist()
    text = "word " * 5000
    assert tokenizers.collapse(text) == text[:tokenizers.LIMIT]
    assert tokenizers.collapse(" a \n\t b\u00a0c ") == "a b c"


@pytest.fixture
def json_path(tmp_path):
    def write(vocabulary):
        model = huggingface.Tokenizer(huggingface.models.WordLevel(vocabulary, unk_token="<unk>"))
        model.pre_tokenizer = huggingface.pre_tokenizers.Whitespace()
        path = tmp_path / "tokenizer.json"
        model.save(str(path))
        return str(path)
    return write


def test_tokenizer_json(json_path):
    words = tokenizers.make(json_path({"<pad>": 0, "<unk>": 1, "</s>": 2, "red": 3, "heart": 4}))
    assert (words.vocab_size, words.eot, words.sot) == (5, 2, None)
    assert words.encode(["red  heart", "green red", "red " * 9, ""], 4).tolist() == [
        [3, 4, 2, 0], [1, 3, 2, 0], [3, 3, 3, 2], [2, 0, 0, 0]]


@pytest.mark.parametrize("vocabulary, words", [
    ({"<pad>": 0, "<unk>": 1, "red": 2}, "no end-of-text token"),
    ({"</s>": 0, "<unk>": 1, "red": 2}, "id 0 is the padding")])
def test_tokenizer_json_without_what_it_needs_is_refused(json_path, vocabulary, words):
    tokenizers.make.cache_clear()
    with pytest.raises(ValueError, match=words):
        tokenizers.make(json_path(vocabulary))
    tokenizers.make.cache_clear()


def test_refusals_say_what_would_do():
    with pytest.raises(ValueError, match="no tokenizer 'clap': use 'clip', 'emoji' or the path"):
        tokenizers.make("clap")
    with pytest.raises(ValueError, match="context 2 has no room"):
        tokenizers.make("clip").encode(["a"], 2)
    with pytest.raises(TypeError, match=r"\[text\]"):
        tokenizers.make("clip").encode("a cat", 8)
