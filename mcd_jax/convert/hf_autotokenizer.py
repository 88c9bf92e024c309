"""A tokenizer of ours as files of Hugging Face's `transformers`: AutoTokenizer gives the same ids, with no code of ours.

"clip" and tokenizer.json files become a tokenizer.json whose first step is our cleaning; a sentencepiece model stays a file, read
by SiglipTokenizer, which knows one cleaning only (a part of "canonical").

What a tokenizer.json can't do, and what is therefore different: the parts of cleaning that look at a whole text, which are ftfy's
repair of wrongly decoded text and HTML entities beyond the commonest (they matter for "clip" and for clean="whitespace", "lower"
and "canonical"; "plain" has neither); the limit of `tokenizers.LIMIT` characters; "<start_of_text>" in a caption of "clip".
Captions with such parts should be cleaned by `ftfy.fix_text` and `html.unescape` first.
"""
import functools
import pathlib
import shutil
import string

from mcd_jax.convert import files, hf_tokenizer

SENTENCEPIECE = (".model", ".spm")
NOTE = "mcd_jax_tokenizer"   # key of tokenizer_config.json under which the import finds what was exported; transformers keeps it

START, END = "<|startoftext|>", "<|endoftext|>"   # what Hugging Face calls the last two ids of CLIP's vocabulary
_BLANK = "[\t-\r\x1c-\x20\x85\xa0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000]+"   # what str.split() takes for blanks
_ENTITIES = {"&lt;": "<", "&gt;": ">", "&quot;": '"', "&apos;": "'", "&#39;": "'", "&nbsp;": " ", "&amp;": "&"}
_WORDS = "'s|'t|'re|'ve|'m|'ll|'d|[\\p{L}]+|[\\p{N}]|[^\\s\\p{L}\\p{N}]+"   # CLIP's pattern (openai/CLIP, clip/simple_tokenizer.py)


def write(folder, tokens, masked):
    """Writes tokenizer.json (or spiece.model) and tokenizer_config.json. Returns notes.

    Args:
      folder: existing folder.
      tokens: `runs.Tokens`.
      masked: whether the text tower may be given the mask of what is padding: False for a tower that reads its padding.

    Raises:
      ValueError: a tokenizer or cleaning that transformers has no class for.
    """
    folder, path, notes = pathlib.Path(folder), pathlib.Path(tokens.name), []
    if path.suffix in SENTENCEPIECE:
        names = _sentencepiece(folder, path, tokens, masked)
        notes.append("SiglipTokenizer takes out ASCII punctuation but repairs nothing first: texts with curly quotes, fullwidth "
                     "forms, HTML entities or '_' get other ids than in training unless they are cleaned by tokenizers.canonical")
    else:
        model, names = _model(tokens)
        model.save(str(folder / "tokenizer.json"))
        notes += _inexact(tokens)
    inputs = ["input_ids", "attention_mask"] if masked else ["input_ids"]
    files.save_json(folder / "tokenizer_config.json", {
        "model_max_length": tokens.context, "model_input_names": inputs, "padding_side": "right", "truncation_side": "right",
        "clean_up_tokenization_spaces": False, **names,
        NOTE: {key: value for key, value in tokens._asdict().items() if key != "context"}})
    return notes


def write_alone(folder, tokens):
    """Writes tokenizer.json whose `encode_batch` gives whole rows, with the `tokenizers` package alone. Returns notes.

    A sentencepiece model becomes tokenizer.model: its ids, the end of text, cut and padded are the reader's to do.
    """
    folder, path = pathlib.Path(folder), pathlib.Path(tokens.name)
    if path.suffix in SENTENCEPIECE:
        shutil.copyfile(path, folder / "tokenizer.model")
        return [f"texts are cleaned ({tokens.cleaning}), encoded by tokenizer.model (sentencepiece), cut to {tokens.context - 1}, "
                f"ended and padded by hand"]
    model, _ = _model(tokens)
    model.enable_truncation(tokens.context)
    model.enable_padding(length=tokens.context, pad_id=tokens.pad, pad_token=model.id_to_token(tokens.pad))
    model.save(str(folder / "tokenizer.json"))
    return _inexact(tokens)


def _inexact(tokens):
    return [] if tokens.cleaning == "plain" else [
        f"texts were cleaned ({tokens.cleaning}); the tokenizer here does that letter by letter. Texts with HTML entities beyond "
        "the commonest, or wrongly decoded ones, need ftfy.fix_text and html.unescape first"]


def _sentencepiece(folder, path, tokens, masked):
    if tokens.cleaning != "canonical" or masked:
        raise ValueError(f"tokenizer {path} with clean={tokens.cleaning!r}: transformers reads sentencepiece files of a SigLIP "
                         "model only (SiglipTokenizer), and cleans by clean='canonical'; use a tokenizer.json")
    import sentencepiece
    shutil.copyfile(path, folder / "spiece.model")
    model = sentencepiece.SentencePieceProcessor(model_file=str(path))
    return {"tokenizer_class": "SiglipTokenizer", "do_lower_case": True, "eos_token": model.id_to_piece(model.eos_id()),
            "pad_token": model.id_to_piece(tokens.pad), "unk_token": model.id_to_piece(model.unk_id())}


def _model(tokens):
    """(a Tokenizer of the `tokenizers` package with our cleaning and our rows, what tokenizer_config.json says of it)."""
    import tokenizers
    from tokenizers import normalizers, processors
    clip, mine = tokens.name == "clip", tokens.make()
    model = _clip() if clip else tokenizers.Tokenizer.from_file(str(hf_tokenizer.path_of(tokens)))
    names = {key: model.id_to_token(i) for key, i in (("bos_token", mine.sot), ("eos_token", mine.eot), ("pad_token", mine.pad))
             if i is not None}
    steps = cleaning(tokens.cleaning)
    special = {added.content for added in model.get_added_tokens_decoder().values() if added.special}
    own = special <= set(names.values())
    if own and not clip:   # a text that spells out such a token loses it, and its neighbours stay apart: as in ours
        steps += [step for token in sorted(special) for step in _without(token)]
    model.normalizer = normalizers.Sequence([*steps, *([model.normalizer] if model.normalizer else [])])
    around = [*(["bos_token"] if mine.sot is not None else []), "eos_token" if tokens.end else "pad_token"]
    sequence = [*(names[key] for key in around[:-1]), "$A", names[around[-1]]]
    ids = [(names[key], model.token_to_id(names[key])) for key in around]
    model.post_processor = processors.TemplateProcessing(single=" ".join(sequence), special_tokens=ids)
    model.no_truncation()
    model.no_padding()
    return model, {"tokenizer_class": "PreTrainedTokenizerFast", "split_special_tokens": own, **names}


def _without(token):
    from tokenizers import Regex, normalizers
    quoted = "".join("\\" + c if c in string.punctuation else c for c in token)
    return [normalizers.Replace(Regex(f"{quoted}(?=\\S)"), " "), normalizers.Replace(Regex(quoted), "")]


def cleaning(clean):
    """`tokenizers.CLEAN[clean]` as normalizers of the `tokenizers` package, as far as those can (see the module)."""
    from tokenizers import Regex, normalizers
    collapse = [normalizers.Replace(Regex(_BLANK), " "), normalizers.Strip()]
    if clean == "plain":
        return collapse
    steps = _fixes()
    if clean == "canonical":
        steps += [normalizers.Replace("_", " "), normalizers.Replace(Regex("[!-/:-@\\[-`{-~]"), "")]
    if clean in ("lower", "canonical"):   # the package lowers letter by letter; Python knows the sigma at a word's end
        steps += [normalizers.Replace(Regex("(?<=\\p{L})\u03a3(?!\\p{L})"), "\u03c2"), normalizers.Lowercase()]
    return steps + collapse


def _fixes():
    """ftfy.fix_text with its default settings and html.unescape, letter by letter, by ftfy's own tables."""
    from ftfy import chardata
    from tokenizers import Regex, normalizers
    steps = [normalizers.Replace(entity, text) for _ in range(3) for entity, text in _ENTITIES.items()]
    table = {**{code: bytes([code]).decode("sloppy-windows-1252") for code in range(0x80, 0xa0)},
             **chardata.LIGATURES, **chardata.WIDTH_MAP}
    table = {code: text for code, text in table.items() if text != chr(code)}
    steps += [normalizers.Replace(chr(code), text) for code, text in table.items()]
    steps += [normalizers.Replace(Regex(pattern.pattern), quote)
              for pattern, quote in ((chardata.DOUBLE_QUOTE_RE, '"'), (chardata.SINGLE_QUOTE_RE, "'"))]
    steps += [normalizers.Replace(Regex("\r\n?|[\u2028\u2029\x85]"), "\n"),
              normalizers.Replace(Regex("\x1b\\[[0-9;]*[a-zA-Z]"), "")]
    steps += [normalizers.Replace(chr(code), "") for code in chardata.CONTROL_CHARS]
    return [*steps, normalizers.NFC()]


def _clip():
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers
    vocab, merges = clip_vocabulary()
    model = Tokenizer(models.BPE(vocab=vocab, merges=merges, end_of_word_suffix="</w>", continuing_subword_prefix=""))
    model.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Split(Regex(_WORDS), behavior="removed", invert=True),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    model.decoder = decoders.Sequence([decoders.Replace("</w>", "\u0120"), decoders.ByteLevel()])
    model.add_special_tokens([AddedToken(token, normalized=False, special=True) for token in (START, END)])
    return model


@functools.cache
def clip_vocabulary():
    """CLIP's byte-pair encoding out of the package that knows it: ({token: id}, [(left, right)] in the order of their rank).

    Tokens are written in GPT-2's alphabet of 256 printable letters, "</w>" ends a word. The package tells only the text of ids. A
    token that is a part of a letter gets bytes before and after it until together they are text. And what a merge joined is
    what the earlier merges leave of its token.
    """
    import instant_clip_tokenizer
    known = instant_clip_tokenizer.Tokenizer()
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    order = printable + [i for i in range(256) if i not in printable]
    letters = {byte: chr(byte if byte in printable else 256 + order.index(byte) - len(printable)) for byte in order}
    ids = {byte: i for i, byte in enumerate(order)}
    before = [b"", b"\xc3", b"\xe1", b"\xe1\x80", b"\xf1", b"\xf1\x80", b"\xf1\x80\x80"]
    after = [bytes(tail) for n in range(4) for first in (0x80, 0x90, 0xa0) for tail in [(first, 0x80, 0x80)[:n]]]

    def token(i):
        for head in before:
            for tail in after:
                text = known.decode([*(ids[b] for b in head), i, *(ids[b] for b in tail)])
                if "\ufffd" not in text:
                    return written(text, len(head), len(tail))
        return written(known.decode([i]), 0, 0)   # this letter itself: what stands for bytes that are no text

    def written(text, head, tail):
        data = text.removesuffix(" ").encode()
        return "".join(letters[b] for b in data[head:len(data) - tail]) + "</w>" * text.endswith(" ")

    first = [letters[byte] for byte in order]
    tokens = [*first, *(letter + "</w>" for letter in first), *(token(i) for i in range(512, known.start_of_text()))]
    ranks, merges = {}, []
    for whole in tokens[512:]:
        parts = list(whole.removesuffix("</w>"))
        if whole.endswith("</w>"):
            parts[-1] += "</w>"
        while len(parts) > 2:
            at = min(range(len(parts) - 1), key=lambda k: ranks.get((parts[k], parts[k + 1]), len(tokens)))
            parts[at:at + 2] = [parts[at] + parts[at + 1]]
        ranks[tuple(parts)] = len(merges)
        merges.append(tuple(parts))
    return {name: i for i, name in enumerate([*tokens, START, END])}, merges
