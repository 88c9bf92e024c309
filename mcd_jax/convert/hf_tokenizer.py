"""Our tokenizers as the files that Hugging Face's AutoTokenizer reads: the same ids, padded and cut in the same way.

Cleaning is not part of them: who reads the files must clean texts as the training did. One difference stays: a caption that spells
out a special token ("<eot>") gets that token from AutoTokenizer, while ours leaves it out.
"""
import json
import pathlib

from mcd_jax.convert import files
from mcd_jax.data import tokenizers
from mcd_jax.run import atomic, small_files


def path_of(tokens):
    """The tokenizer.json of `runs.Tokens`.

    Raises:
      ValueError: it has none ("clip", or a sentencepiece model).
    """
    path = tokenizers.EMOJI if tokens.name == "emoji" else pathlib.Path(tokens.name)
    if path.suffix != ".json":
        raise ValueError(f"the tokenizer {tokens.name!r} is no tokenizer.json, so it can't be put beside the weights; "
                         "a sentencepiece model has to be converted to one first, and trained with")
    return path


def write(tokens, folder):
    """Writes tokenizer.json and tokenizer_config.json of `runs.Tokens` into `folder`.

    Raises:
      ValueError: a tokenizer without a tokenizer.json, or one whose padding is an ordinary token.
    """
    path, folder = path_of(tokens), pathlib.Path(folder)
    ours = tokens.make()
    stored = small_files.read(path)
    special = {token["id"]: token["content"] for token in stored["added_tokens"] if token["special"]}
    names = {"eos_token": ours.eot, "pad_token": ours.pad, **({} if ours.sot is None else {"bos_token": ours.sot}),
             **({} if tokens.end else {"sep_token": ours.eot})}   # the end, which who reads them has to take out
    wrong = [f"{name[:-len('_token')]} is id {number}" for name, number in names.items() if number not in special]
    if wrong:
        raise ValueError(f"tokenizer {tokens.name!r}: {', '.join(wrong)}, which is no special token in {path}, so texts that hold "
                         "it would be read differently")
    pieces = [] if ours.sot is None else [ours.sot]
    template = [*({"SpecialToken": {"id": special[i], "type_id": 0}} for i in pieces), {"Sequence": {"id": "A", "type_id": 0}},
                {"SpecialToken": {"id": special[ours.eot], "type_id": 0}}]
    stored["post_processor"] = {
        "type": "TemplateProcessing", "single": template,
        "pair": [*template, {"Sequence": {"id": "B", "type_id": 1}}, {"SpecialToken": {"id": special[ours.eot], "type_id": 1}}],
        "special_tokens": {special[i]: {"id": special[i], "ids": [i], "tokens": [special[i]]} for i in {*pieces, ours.eot}}}
    stored["padding"] = stored["truncation"] = None
    atomic.write_text(folder / "tokenizer.json", json.dumps(stored, ensure_ascii=False) + "\n")
    files.save_json(folder / "tokenizer_config.json", {
        "tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": tokens.context, "padding_side": "right",
        "truncation_side": "right", "clean_up_tokenization_spaces": False,
        **{name: special[number] for name, number in names.items()}})


def read(folder):
    """(path of tokenizer.json, id of the padding) of a folder of theirs, or None where there is none.

    Raises:
      ValueError: its padding token isn't in the vocabulary.
    """
    folder = pathlib.Path(folder)
    path = folder / "tokenizer.json"
    if not path.is_file():
        return None
    stored = small_files.read(path)
    pad = None
    for name in ("tokenizer_config.json", "special_tokens_map.json"):
        if pad is None and (folder / name).is_file():
            pad = small_files.read(folder / name).get("pad_token")
    pad = pad["content"] if isinstance(pad, dict) else pad
    if pad is None:
        return path, 0
    vocabulary = {token["content"]: token["id"] for token in stored["added_tokens"]}
    entries = stored["model"].get("vocab", {})   # word -> id, or [word, score] in the order of ids
    vocabulary |= {w: i for i, (w, _) in enumerate(entries)} if isinstance(entries, list) else entries
    if pad not in vocabulary:
        raise ValueError(f"{folder}: the padding token {pad!r} is not in the vocabulary of {path.name}")
    return path, vocabulary[pad]
