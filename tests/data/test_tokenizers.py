"""Token rows: equal to open_clip's, bounded work, an end-of-text that no truncation loses, vocabularies from files."""
import io
import time

import numpy as np
import pytest
import sentencepiece
import tokenizers as huggingface

from mcd_jax.data import tokenizers
from mcd_jax.data.sources import emoji

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
    ('a\x1fb\x0bc', [5334]),
    ('\x00nul\x00', [1156, 331]),
    ('a\x85b', [320, 959, 321]),
    ('<end_of_text> and <|endoftext|>', [49407, 537, 27, 347, 40786, 4160, 91, 285]),
    ('e\u0301\u0301\u0327', [132, 358, 136, 223, 136, 479]),
    ('\u202eabc\u202c a\u200db', [728, 362, 5334, 728, 361, 320, 728, 491, 321]),
    ('&amp;lt;end_of_text&amp;gt;', [49407]),
    ('\ud800 lone \ud83d\ude00', [39802, 13576, 7334]),
    ('na\xc3\xafve\ncaf\xe9', [1097, 35689, 563, 15304]),
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
def json_path(tmp_path_factory):
    def write(vocabulary):
        model = huggingface.Tokenizer(huggingface.models.WordLevel(vocabulary, unk_token="<unk>"))
        model.pre_tokenizer = huggingface.pre_tokenizers.Whitespace()
        path = tmp_path_factory.mktemp("json") / "tokenizer.json"   # a new path for each: tokenizers are remembered by path
        model.save(str(path))
        return str(path)
    return write


def test_what_a_row_says():
    clip = tokenizers.make("clip")
    assert clip.pieces(clip.encode(["a Cat \u65e5"], 8)[0]) == [
        ((49406,), "start"), ((320,), "a "), ((2368,), "cat "), ((37156,), "\u65e5 "), ((49407,), "end")]
    ours = tokenizers.make("emoji")
    pieces = ours.pieces(ours.encode(["two red hearts"], 12)[0])
    assert "".join(text for _, text in pieces[:-1]).strip() == "two red hearts" and pieces[-1] == ((ours.eot,), "end")
    for text in ("\u72ac\U0001f436 is a dog", "\u0643\u0644\u0628"):   # letters of several tokens are put together again
        row = ours.encode([text], 40)[0]
        pieces = ours.pieces(row)
        assert "".join(text for _, text in pieces[:-1]).strip() == text and max(len(ids) for ids, _ in pieces) > 1
        assert [i for ids, _ in pieces for i in ids] == [i for i in row.tolist() if i]
    broken = ours.pieces(ours.encode(["\u72ac"], 3)[0])     # cut inside a letter
    assert broken[-1] == ((ours.eot,), "end") and "\ufffd" in broken[0][1]


def test_tokenizer_json(json_path):
    words = tokenizers.make(json_path({"<pad>": 0, "<unk>": 1, "</s>": 2, "red": 3, "heart": 4}))
    assert (words.vocab_size, words.eot, words.sot) == (5, 2, None)
    assert words.encode(["red  heart", "green red", "red " * 9, ""], 4).tolist() == [
        [3, 4, 2, 0], [1, 3, 2, 0], [3, 3, 3, 2], [2, 0, 0, 0]]


def test_a_text_cannot_spell_its_own_end_and_lone_surrogates_are_no_error(tmp_path):
    model = huggingface.Tokenizer(huggingface.models.WordLevel({"<pad>": 0, "<unk>": 1, "red": 2, "heart": 3}, unk_token="<unk>"))
    model.pre_tokenizer = huggingface.pre_tokenizers.Whitespace()
    model.add_special_tokens(["</s>"])
    model.save(str(tmp_path / "special.json"))
    words = tokenizers.make(str(tmp_path / "special.json"))
    assert words.encode(["red \ud800 heart"], 6).tolist() == [[2, 1, 3, 4, 0, 0]]
    assert words.encode(["red </s> heart"], 6).tolist() == [[2, 3, 4, 0, 0, 0]]


def test_padding_that_is_not_0(json_path):
    """RoBERTa's order of special tokens: the start is id 0."""
    path = json_path({"<s>": 0, "<pad>": 1, "</s>": 2, "<unk>": 3, "red": 4})
    with pytest.raises(ValueError, match=r"id 0 is the padding, and can't be '<s>'; choose another with pad="):
        tokenizers.make(path)
    words = tokenizers.make(path, pad=1)
    assert words.pad == 1 and words.encode(["red blue", ""], 6).tolist() == [[0, 4, 3, 2, 1, 1], [0, 2, 1, 1, 1, 1]]
    assert [text for _, text in words.pieces(words.encode(["red"], 6)[0])] == ["start", "red", "end"]


# ---- sentencepiece ----


def train(path, **options):
    """A small model on the English labels: SigLIP's special ids (those of T5) unless others are asked for."""
    labels = [row["labels"]["en"] for row in emoji.concepts()]
    data = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(**{
        "sentence_iterator": iter(labels), "model_writer": data, "vocab_size": 200, "minloglevel": 2, "pad_id": 0, "eos_id": 1,
        "unk_id": 2, "bos_id": -1, **options})
    path.write_bytes(data.getvalue())
    return str(path)


@pytest.fixture(scope="module")
def siglip_path(tmp_path_factory):
    return train(tmp_path_factory.mktemp("sp") / "c4_en.model")


def test_sentencepiece_with_siglips_conventions(siglip_path):
    model = sentencepiece.SentencePieceProcessor(model_file=siglip_path)
    words = tokenizers.make(siglip_path, clean="canonical", pad=1)
    assert (words.vocab_size, words.eot, words.sot, words.pad) == (200, 1, None, 1)
    for text, cleaned in (("Red_Heart,  on   FIRE!", "red heart on fire"), ("caf\u00e9 &amp;amp; (th\u00e9)", "caf\u00e9 th\u00e9"),
                          ("", "")):
        ids = model.encode(cleaned)
        assert words.encode([text], 24)[0].tolist() == ids + [1] * (24 - len(ids)), text
    long = words.encode(["red heart " * 40], 16)[0].tolist()
    assert long == [*model.encode("red heart " * 40)[:15], 1]      # the end always stays
    shown = [text for _, text in words.pieces(words.encode(["Red heart"], 16)[0])]
    assert shown[-1] == "end" and shown.count("end") == 1 and "".join(shown[:-1]).strip() == "red heart"
    assert [text for _, text in words.pieces(long)][-1] == "end"


def test_sentencepiece_as_its_trainer_leaves_it(tmp_path, siglip_path):
    """<unk> is id 0, and the padding too: an unknown piece is left out, or it would be read as padding."""
    path = train(tmp_path / "default.model", pad_id=-1, unk_id=0, bos_id=1, eos_id=2)
    model, words = sentencepiece.SentencePieceProcessor(model_file=path), tokenizers.make(path)
    ids = model.encode("red \u72ac heart")
    assert 0 in ids and words.encode(["red \u72ac heart"], 24)[0].tolist() == ([i for i in ids if i] + [2] + [0] * 24)[:24]
    kept = tokenizers.make(path, pad=2).encode(["red \u72ac heart"], 24)[0].tolist()
    assert kept == (ids + [2] * 24)[:24]
    assert "".join(text for _, text in words.pieces(words.encode(["red heart </s> x"], 24)[0])).count("end") == 1
    with pytest.raises(ValueError, match="has no end-of-text token: train it with eos_id"):
        tokenizers.make(train(tmp_path / "endless.model", eos_id=-1))
    (tmp_path / "broken.model").write_bytes(b"no model")
    with pytest.raises(ValueError, match=r"broken\.model is no sentencepiece model"):
        tokenizers.make(str(tmp_path / "broken.model"))


def test_a_tokenizer_as_one_value_of_a_config(siglip_path):
    words = tokenizers.make({"name": siglip_path, "clean": "canonical", "pad": 1})
    assert words is tokenizers.make(siglip_path, clean="canonical", pad=1)
    assert words is not tokenizers.make(siglip_path, pad=1)
    with pytest.raises(ValueError, match="it has name and optionally clean, pad"):
        tokenizers.make({"name": "clip", "context": 3})


@pytest.mark.parametrize("vocabulary, words", [
    ({"<pad>": 0, "<unk>": 1, "red": 2}, "no end-of-text token"),
    ({"</s>": 0, "<unk>": 1, "red": 2}, "id 0 is the padding")])
def test_tokenizer_json_without_what_it_needs_is_refused(json_path, vocabulary, words):
    with pytest.raises(ValueError, match=words):
        tokenizers.make(json_path(vocabulary))


def test_refusals_say_what_would_do():
    with pytest.raises(ValueError, match="no tokenizer 'clap': use 'clip', 'emoji' or the path"):
        tokenizers.make("clap")
    with pytest.raises(ValueError, match="no cleaning 'lowercase': use one of plain, whitespace, lower, canonical"):
        tokenizers.make("clip", clean="lowercase")
    with pytest.raises(ValueError, match="pad=49408 is no id of its 49408 tokens"):
        tokenizers.make("clip", pad=49408)
    with pytest.raises(ValueError, match="context 2 has no room"):
        tokenizers.make("clip").encode(["a"], 2)
    with pytest.raises(TypeError, match=r"\[text\]"):
        tokenizers.make("clip").encode("a cat", 8)
