"""Trains the embedded byte-level BPE on the training concepts' labels and tags: python -m ...emoji.train_tokenizer"""

from mcd_jax.data.emoji import names
from mcd_jax.data.sources import emoji

VOCABULARY = 8192
PAD, END = "<pad>", "<eot>"
ENGLISH_WEIGHT = 8  # English is what most runs train on, so its words are worth more merges


def corpus(concepts):
    """Labels and tags of the training concepts, English repeated ENGLISH_WEIGHT times: list of str."""
    lines = []
    for row in concepts:
        if row["split"] != "train":
            continue
        for language in names.LANGUAGES:
            times = ENGLISH_WEIGHT if language == "en" else 1
            lines += [row["labels"][language], *row["tags"][language]] * times
    return lines


def train(lines, vocabulary=VOCABULARY):
    """A `tokenizers.Tokenizer`: NFKC, lower case, byte-level BPE; id 0 pads, id 1 ends a text. Deterministic."""
    import tokenizers
    from tokenizers import decoders, models, normalizers, pre_tokenizers, trainers

    tokenizer = tokenizers.Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()])
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.train_from_iterator(lines, trainers.BpeTrainer(
        vocab_size=vocabulary, special_tokens=[PAD, END], show_progress=False,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet())))
    return tokenizer


def main():
    train(corpus(emoji.concepts())).save(names.TOKENIZER, pretty=False)


if __name__ == "__main__":
    main()
