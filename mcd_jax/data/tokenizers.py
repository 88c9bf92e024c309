"""Text -> int32 token rows: CLIP's byte-pair encoding ("clip"), a tokenizer.json ("emoji" or a path), a sentencepiece *.model."""
import functools
import html
import pathlib
import re
import string
import unicodedata

import ftfy
import numpy as np

from mcd_jax.data.decode import Bad

LIMIT = 4096  # characters of a text that are looked at; CLIP's longest word that is one token has 24
_SHORT = 256  # characters up to which a text's row is remembered: of long ones the keys alone could take a gigabyte
_LETTER = 8      # most tokens that are shown as one letter
EMOJI = pathlib.Path(__file__).parent / "emoji" / "tokenizer.json"
_END = ("<|endoftext|>", "<eot>", "[EOT]", "</s>", "<eos>", "[EOS]", "[SEP]")
_START = ("<|startoftext|>", "<sot>", "[SOT]", "<s>", "<bos>", "[BOS]", "[CLS]")
_PUNCTUATION = str.maketrans("", "", string.punctuation)
_UTF16 = (b"\xff\xfe", b"\xfe\xff")   # how files in UTF-16 begin
_FILLERS = "\u034f\u115f\u1160\u17b4\u17b5\u2800\u3164\uffa0"   # letters and marks that are drawn as nothing
_LETTER_OR_DIGIT = re.compile(rf"[^\W_{_FILLERS}]")   # no cleaning takes these away


# ---- captions of an example ----


def captions(example, column, tokenizer=None):
    """The captions of an example that can be used, list of str; what was repaired goes to its "notes".

    Passed over are those that say nothing: `is_blank`, or of which `tokenizer` leaves no token ("..." without its punctuation).

    Raises:
      Bad: there is none, or something that is no text.
    """
    stored = example[column]
    texts = []
    for text in stored if isinstance(stored, (list, tuple)) else [stored]:
        if not isinstance(text, (str, bytes)):
            raise Bad("caption not text", f"column {column!r} holds {type(text).__name__}")
        if isinstance(text, bytes):
            try:
                text = text.decode("utf-8-sig")   # a mark of byte order that a file begins with is no letter of it
            except UnicodeDecodeError:
                example.setdefault("notes", set()).add("caption not UTF-8")
                text = text.decode("utf-16" if text[:2] in _UTF16 else "utf-8", errors="ignore")
        if len(text) > LIMIT:
            example.setdefault("notes", set()).add("caption cut")
            text = collapse(text)
        texts.append(text)
    said = [text for text in texts if not is_blank(text, tokenizer)]
    if not said:
        shown = ascii(texts[0][:40]) if texts else "no text"
        raise Bad("empty caption", f"column {column!r}" + (f" holds {shown}" if any(texts) else ""))
    return said


def is_blank(text, tokenizer=None):
    """Whether a text shows nothing once its HTML entities are read: blanks, control characters, marks of byte order or direction,
    letters of no width; or, where a tokenizer is given, whether that makes no token of it."""
    if "&" in text:
        text = html.unescape(html.unescape(text))
    if _LETTER_OR_DIGIT.search(text):
        return False
    shown = any((unicodedata.category(c)[0] not in "CZM" and c not in _FILLERS) or unicodedata.category(c) == "Co" for c in text)
    return not shown or (tokenizer is not None and not tokenizer.length(text))


# ---- cleaning ----


def collapse(text):
    """The text with every run of blanks made one space, cut to LIMIT characters (after at most 16 * LIMIT were read)."""
    return " ".join(text[:16 * LIMIT].split())[:LIMIT]


def plain(text):
    """`collapse`, and lone surrogates, which are no text, made U+FFFD."""
    text = collapse(text)
    try:
        text.encode()
    except UnicodeEncodeError:
        text = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text


def whitespace(text):
    """open_clip's cleaning without lower-casing: `ftfy.fix_text`, `html.unescape` twice, strip, collapse blanks."""
    return " ".join(_fix(text).split())


def clean(text):
    """open_clip's cleaning of CLIP's texts: `whitespace`, then lower-case."""
    return whitespace(text).lower()


def canonical(text):
    """SigLIP's cleaning, as in open_clip: `whitespace` with "_" made a blank, ASCII punctuation taken out, lower-case."""
    return " ".join(_fix(text).replace("_", " ").translate(_PUNCTUATION).lower().split())


def _fix(text):
    """A text of more than LIMIT characters is collapsed and cut first; a shorter one is cleaned exactly as open_clip does."""
    text = text if len(text) <= LIMIT else collapse(text)
    return html.unescape(html.unescape(ftfy.fix_text(text)))


CLEAN = {"plain": plain, "whitespace": whitespace, "lower": clean, "canonical": canonical}


# ---- rows ----


class Tokenizer:
    """Token rows [start?] ids... end, then padding. Rows are cut so that `end` is always there, or the padding that stands for it.

    Attributes:
      vocab_size: int, ids are below it.
      eot: int id of end-of-text; causal towers pool at its first position.
      sot: int id of start-of-text, or None where rows begin without one.
      pad: int id of the padding, 0 unless asked for.
    """

    def __init__(self, ids, text, vocab_size, eot, sot=None, pad=0, end=True):
        """ids: fn(str) -> list of int, without start and end. text: fn(list of int) -> str, its inverse. end: see `make`."""
        self._ids = ids
        self._text = text
        self.vocab_size = vocab_size
        self.eot = eot
        self.sot = sot
        self.pad = pad
        self._last = eot if end else pad
        self._remembered = functools.lru_cache(maxsize=65536)(self._row)

    def row(self, text, context):
        """int32 (context,), read-only. Of short texts 65,536 rows are remembered, 46 MiB at 77 tokens: captions come again."""
        return (self._remembered if len(text) <= _SHORT else self._row)(text, context)

    def length(self, text):
        """How many tokens a text has, without start and end."""
        return len(self._ids(text))

    def _row(self, text, context):
        head = [] if self.sot is None else [self.sot]
        ids = self._ids(text)[:context - 1 - len(head)]
        row = np.full(context, self.pad, np.int32)
        row[:len(head) + len(ids) + 1] = [*head, *ids, self._last]
        row.flags.writeable = False
        return row

    def encode(self, texts, context):
        """Token rows of many texts.

        Args:
          texts: list of n str. Of one longer than LIMIT only the first LIMIT characters count, once blanks are collapsed.
          context: row length in tokens, at least 3.

        Returns:
          int32 (n, context).

        Raises:
          ValueError: `context` is too short for start, one token and end.
          TypeError: `texts` is one str, which would be read letter by letter.
        """
        if isinstance(texts, (str, bytes)):
            raise TypeError("encode takes a list of texts; wrap a single one as [text]")
        if context < 3:
            raise ValueError(f"context {context} has no room for start, one token and end: use 3 or more")
        rows = np.zeros((len(texts), context), np.int32)
        for row, text in zip(rows, texts):
            row[:] = self.row(text, context)
        return rows

    def decoded(self, row):
        """The text of a row (n,) of ids, without start, end and padding; what stands after the end is left out."""
        ids = []
        for i in map(int, row):
            if i == self.eot:
                break
            if i not in (self.sot, self.pad):
                ids.append(i)
        return self._text(ids).strip()

    def pieces(self, row):
        """What a row (context,) says: [(ids, their text)] without the padding; several ids where only together they are letters."""
        ids = [int(i) for i in row]
        while ids and ids[-1] == self.pad:
            ids.pop()
        if self.pad == self.eot and len(ids) < len(row):
            ids.append(self.eot)
        named, found, open_ids = {self.sot: "start", self.eot: "end"}, [], ()
        for i in ids:
            if i in named:
                found += [(open_ids, self._text(list(open_ids)))] if open_ids else []
                found.append(((i,), named[i]))
                open_ids = ()
                continue
            open_ids += (i,)
            text = self._text(list(open_ids))
            if not text.endswith("\ufffd") or len(open_ids) == _LETTER:
                found.append((open_ids, text))
                open_ids = ()
        return found


def make(name, clean="", pad=0, end=True):
    """The tokenizer `name`.

    Args:
      name: "clip" (CLIP's 49,408 ids, equal to open_clip's SimpleTokenizer), "emoji" (the embedded 28-language vocabulary), the
        path of a tokenizer.json of the `tokenizers` package, or of a sentencepiece model (*.model or *.spm; needs the
        `sentencepiece` package). Also a mapping with name and the other arguments, for where a config has one value.
      clean: what is done to a text first: "plain" (blanks collapsed), "whitespace", "lower" or "canonical", see the functions.
        Default: "lower" for "clip", else "plain".
      pad: the id that fills a row. The towers take it from here. SigLIP's C4 vocabulary needs clean="canonical", pad=1 (its end
        of text, as in `big_vision`) and a tower with pad_mask=False, pool="last".
      end: False puts the padding where the end of text would stand, as CLIPA's texts have it.

    An id that stands for start, end or padding never comes from within a text, so unknown words of a vocabulary that has
    `<unk>` at the id of the padding are left out, and "</s>" in a caption does not end it. The exception is "clip", which reads
    "<start_of_text>" and "<end_of_text>" as open_clip does. sentencepiece rows have no start token, as SigLIP's.

    "clip" differs from open_clip only for U+0345, U+017F after an apostrophe, letters newer than Unicode 14 (it depends on either
    program's version which are letters), and texts whose first 75 tokens take up more than LIMIT characters.

    Raises:
      ValueError: no such file, unknown cleaning, or a vocabulary without end-of-text, or whose start or end is the padding.
    """
    if hasattr(name, "keys"):
        unknown = set(name) - {"name", "clean", "pad", "end"}
        if unknown or "name" not in name:
            raise ValueError(f"tokenizer {dict(name)!r}: it has name and optionally clean, pad, end")
        return make(**name)
    if clean and clean not in CLEAN:
        raise ValueError(f"no cleaning {clean!r}: use one of {', '.join(CLEAN)}")
    return _make(name, clean, pad, end)


@functools.cache
def _make(name, clean, pad, end):
    if name == "clip":
        import instant_clip_tokenizer
        model, fix = instant_clip_tokenizer.Tokenizer(), CLEAN[clean or "lower"]
        ids = lambda text: model.encode(fix(text))
        result = Tokenizer(ids, model.decode, 49408, model.end_of_text(), model.start_of_text(), pad, end)
    else:
        path = EMOJI if name == "emoji" else pathlib.Path(name)
        if not path.is_file():
            raise ValueError(f"no tokenizer {name!r}: use 'clip', 'emoji' or the path of a tokenizer.json or sentencepiece *.model")
        result = (_sentencepiece if path.suffix in (".model", ".spm") else _json)(path, CLEAN[clean or "plain"], pad, end)
    if isinstance(pad, bool) or not isinstance(pad, int) or not 0 <= pad < result.vocab_size:
        raise ValueError(f"tokenizer {name!r}: pad={pad!r} is no id of its {result.vocab_size} tokens")
    if pad == result.sot or pad == result.eot == 0:
        raise ValueError(f"{name}: id {pad} is the padding, and can't be {result._text([pad]) or 'start or end of text'!r}; "
                         "choose another with pad=...")
    return result


def _json(path, fix, pad, end):
    import tokenizers
    try:
        model = tokenizers.Tokenizer.from_file(str(path))
    except Exception as error:  # the package raises nothing more precise
        raise ValueError(f"{path} is no tokenizer.json: {error}") from error
    model.no_truncation()
    model.no_padding()
    eot, sot = (next((i for i in map(model.token_to_id, names) if i is not None), None) for names in (_END, _START))
    if eot is None:
        raise ValueError(f"{path} has no end-of-text token: its vocabulary needs one of {', '.join(_END)}")
    added = model.encode("").ids   # by its own post-processor, where it has one: that leaves the start token of some out (Gemma's)
    sot = sot if sot in added or not added else None
    special = {eot, sot, pad}
    ids = lambda text: [i for i in model.encode(fix(text), add_special_tokens=False).ids if i not in special]
    return Tokenizer(ids, lambda ids: model.decode(ids, skip_special_tokens=False), model.get_vocab_size(), eot, sot, pad, end)


def _sentencepiece(path, fix, pad, end):
    try:
        import sentencepiece
    except ModuleNotFoundError as error:
        raise ValueError(f"tokenizer {path}: reading it needs the sentencepiece package: pip install sentencepiece") from error
    try:
        model = sentencepiece.SentencePieceProcessor(model_file=str(path))
    except (RuntimeError, OSError) as error:
        raise ValueError(f"{path} is no sentencepiece model: {error}") from error
    eot = model.eos_id()
    if eot < 0:
        raise ValueError(f"{path} has no end-of-text token: train it with eos_id")
    special = {eot, pad}
    ids = lambda text: [i for i in model.encode(fix(text)) if i not in special]
    text = lambda ids: "".join(map(model.id_to_piece, ids)).replace("\u2581", " ")
    return Tokenizer(ids, text, model.get_piece_size(), eot, None, pad, end)
