"""Text -> int32 token rows. Two kinds: CLIP's byte-pair encoding ("clip") and any tokenizer.json ("emoji" or a path)."""
import functools
import html
import pathlib

import ftfy
import numpy as np

LIMIT = 4096  # characters of a text that are looked at: 50 tokens of CLIP's longest words at 77 tokens of context
_EMOJI = pathlib.Path(__file__).parent / "emoji" / "tokenizer.json"
_END = ("<|endoftext|>", "<eot>", "[EOT]", "</s>", "<eos>", "[EOS]", "[SEP]")
_START = ("<|startoftext|>", "<sot>", "[SOT]", "<s>", "<bos>", "[BOS]", "[CLS]")


def collapse(text):
    """The text with every run of blanks made one space, cut to LIMIT characters (after at most 16 * LIMIT were read)."""
    return " ".join(text[:16 * LIMIT].split())[:LIMIT]


def clean(text):
    """open_clip's cleaning: `ftfy.fix_text`, `html.unescape` twice, strip, collapse blanks, lower-case."""
    text = html.unescape(html.unescape(ftfy.fix_text(text)))
    return " ".join(text.strip().split()).strip().lower()


class Tokenizer:
    """Token rows [start?] ids... end, padded with 0. Rows are cut so that `end` is always there.

    Attributes:
      vocab_size: int, ids are below it.
      eot: int id of end-of-text; causal towers pool at its first position.
      sot: int id of start-of-text, or None where the vocabulary has none.
      pad: 0.
    """
    pad = 0

    def __init__(self, ids, vocab_size, eot, sot):
        self._ids = ids
        self.vocab_size = vocab_size
        self.eot = eot
        self.sot = sot
        self.row = functools.lru_cache(maxsize=65536)(self._row)

    def _row(self, text, context):
        """int32 (context,), read-only and remembered: captions repeat from epoch to epoch."""
        head = [] if self.sot is None else [self.sot]
        ids = self._ids(collapse(text))[:context - 1 - len(head)]
        row = np.zeros(context, np.int32)
        row[:len(head) + len(ids) + 1] = [*head, *ids, self.eot]
        row.flags.writeable = False
        return row

    def encode(self, texts, context):
        """Token rows of many texts.

        Args:
          texts: list of n str. Only the first LIMIT characters count, once blanks are collapsed.
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


@functools.cache
def make(name):
    """The tokenizer `name`.

    Args:
      name: "clip" (CLIP's 49,408 ids, equal to open_clip's SimpleTokenizer), "emoji" (the embedded 28-language
        vocabulary), or the path of a tokenizer.json of the `tokenizers` package whose id 0 is the padding.

    Raises:
      ValueError: no such file, or a vocabulary without an end-of-text token or with a word at id 0.
    """
    if name == "clip":
        import instant_clip_tokenizer
        clip = instant_clip_tokenizer.Tokenizer()
        return Tokenizer(lambda text: clip.encode(clean(text)), 49408, clip.end_of_text(), clip.start_of_text())
    path = _EMOJI if name == "emoji" else pathlib.Path(name)
    if not path.is_file():
        raise ValueError(f"no tokenizer {name!r}: use 'clip', 'emoji' or the path of a tokenizer.json")
    import tokenizers
    model = tokenizers.Tokenizer.from_file(str(path))
    model.no_truncation()
    model.no_padding()
    eot, sot = (next((i for i in map(model.token_to_id, names) if i is not None), None) for names in (_END, _START))
    if eot is None:
        raise ValueError(f"{path} has no end-of-text token: its vocabulary needs one of {', '.join(_END)}")
    if 0 in (eot, sot):
        raise ValueError(f"{path}: id 0 is the padding, and can't be {model.id_to_token(0)!r}")
    return Tokenizer(lambda text: model.encode(text, add_special_tokens=False).ids, model.get_vocab_size(), eot, sot)
