"""Sparse codes as concepts: which units live, what their images and texts have in common, and retrieval by codes.

For objectives with a head "concepts", which gives image_codes and text_codes (n, H) with zeros where a unit does not fire. An
instance of `config.evals.concepts` says:

  source    pairs;  views  pipes of "image" and "text";  n  at most so many rows, evenly spaced
  top       images and captions that stand for a concept (10);  sample  concepts that the similarities are taken over (100)
  features  a source of stored embeddings of the same rows by another encoder, which then judges; without it the run's own judges
  retrieval  True (default): also retrieval by codes;  match, ks, without  as in `retrieval`
  alpha     weight of the codes' cosine beside the embeddings' in the retrieval called "both" (1.0)

Figures: units, dead (units that no image and no text fires), fires (units per row), mse/image and mse/text of the decoders and
explained/... (share of the variance), pair_cosine and random_cosine of codes, and over `sample` random concepts that have both
images and texts

  intra        mean cosine of a concept's mean image feature with its mean text feature (higher is better)
  inter        the same across two concepts, mean over both orders (lower is better)
  inter_upper  as the released evaluation of VL-SAE has it: only the image of the earlier concept with the text of the later

Means are taken over features before normalisation. Captions that occur more than once count once.
"""
import numpy as np

from mcd_jax.config.keys import NEEDED, Key
from mcd_jax.evals import retrieval, rows

HEADS = ("embed", "concepts")
KEYS = {
    "source": Key("source", NEEDED, "of pairs"),
    "views": Key("map of str", {}, "pipes of image and text; left out: as in training, without randomness"),
    "n": Key("int | None", None, "at most so many rows, evenly spaced; left out: all"),
    "top": Key("int", 10, "images and captions that stand for a concept"),
    "sample": Key("int", 100, "concepts that the similarities are taken over"),
    "features": Key("source | None", None, "stored embeddings of the same rows by another encoder, which then judges; left out: "
                    "the run's own"),
    "retrieval": Key("bool", True, "also retrieval by codes"),
    "match": retrieval.KEYS["match"],
    "ks": Key("tuple", (1, 5, 10), "the k of R@k"),
    "without": retrieval.KEYS["without"],
    "alpha": Key("float", 1.0, "weight of the codes' cosine beside the embeddings' in the retrieval called both"),
}
SEED = 42   # of the released sample of concepts


def top_rows(codes, count):
    """For each unit the rows that fire it most, best first: list of H int arrays of at most `count` rows; equal codes by row."""
    order = np.argsort(-codes, axis=0, kind="stable")[:count]
    fired = np.take_along_axis(codes, order, axis=0) > 0
    return [order[fired[:, i], i] for i in range(codes.shape[1])]


def mean_activation(image, text):
    """(H,): half the mean code over images plus half that over texts, zeros included."""
    return (image.mean(0) + text.mean(0)) / 2


def similarities(image_features, text_features, image_rows, text_rows):
    """Intra- and inter-similarity of concepts.

    Args:
      image_features, text_features: (n, D), (m, D) before normalisation.
      image_rows, text_rows: lists of C int arrays, the rows of each concept; none is empty.

    Returns:
      {"intra", "inter", "inter_upper"} floats; the latter two NaN for a single concept.
    """
    image = _unit(np.stack([image_features[own].mean(0) for own in image_rows]))
    text = _unit(np.stack([text_features[own].mean(0) for own in text_rows]))
    table, count = image @ text.T, len(image)
    apart = ~np.eye(count, dtype=bool)
    return {"intra": float(np.mean(np.diag(table))),
            "inter": float(np.mean(table[apart])) if count > 1 else float("nan"),
            "inter_upper": float(np.mean(table[np.triu_indices(count, 1)])) if count > 1 else float("nan")}


def sampled(image_rows, text_rows, count):
    """At most `count` random concepts that have images and texts, int array."""
    alive = np.array([i for i, (x, y) in enumerate(zip(image_rows, text_rows)) if len(x) and len(y)], np.int64)
    return np.random.RandomState(SEED).permutation(alive)[:count]


def distinct(texts):
    """Rows of the first occurrence of each caption, int array."""
    first = {}
    for i, text in enumerate(texts):
        first.setdefault(caption(text), i)
    return np.array(list(first.values()), np.int64)


def caption(text):
    """The first caption of a row as str; "" where there is none."""
    text = text if isinstance(text, (str, bytes)) else next(iter(text), "")
    return text.decode(errors="replace") if isinstance(text, bytes) else str(text)


def explain(image, text, mean, count=10):
    """The concepts by which a pair belongs together: score_i = image_i * text_i / mean_i, best first.

    Args:
      image, text: (H,) codes of an image and a caption; for one alone give None for the other: image_i / mean_i.
      mean: (H,) of `mean_activation`; a unit of mean 0 scores 0.

    Returns:
      [(unit, score)], only scores above 0.
    """
    code = image * text if image is not None and text is not None else image if text is None else text
    score = np.where(mean > 0, code / np.where(mean > 0, mean, 1.0), 0.0)
    best = np.argsort(-score, kind="stable")[:count]
    return [(int(i), float(score[i])) for i in best if score[i] > 0]


def joined(unit, codes, alpha):
    """Rows whose inner products are cos(embeddings) + alpha * cos(codes): (n, D + H), or `unit` itself for alpha 0."""
    return unit if alpha == 0 else np.concatenate([unit, np.float32(alpha) ** 0.5 * _unit(codes)], axis=1)


def gather(config, instance, embed, state, source=None):
    """Embeddings and codes of an instance.

    Returns:
      {"index" (n,) source rows, "texts" their captions, and the outputs of both heads: image, image_raw, image_codes, ... (n, .)}.
    """
    source = source or rows.open_source(config["source"], (), instance)
    chosen = rows.sample(source, {}, config.get("n"), instance)
    found, good = {}, np.ones(len(chosen), bool)
    for key in ("image", "text"):
        view = rows.pick(config["views"], [key], instance)
        values, usable = rows.encode(embed, state, source, view, [key], config.get("batch_size", 256), indices=chosen)
        found |= values
        good &= usable
    chosen = chosen[good]
    texts = rows.columns(source, ["text"], chosen, ragged=("text",))["text"]
    return {**{key: value[good] for key, value in found.items()}, "index": chosen, "texts": [caption(t) for t in texts]}


def judged(config, found, instance):
    """(image features, text features) of the gathered rows: of config.features, or the run's own.

    Raises:
      ValueError: the stored rows are not those of the source.
    """
    if not config.get("features"):
        return found["image_raw"], found["text_raw"]
    stored = rows.open_source(config["features"], ("image_embedding", "text_embedding"), instance)
    if len(stored) <= found["index"].max():
        raise ValueError(f"config.evals.{instance}.features has {len(stored)} rows: it must be of the same rows as the source")
    table = rows.columns(stored, ["image_embedding", "text_embedding", "text"], found["index"], ragged=("text",))
    if [caption(t) for t in table["text"]] != found["texts"]:
        raise ValueError(f"config.evals.{instance}.features: its captions are not those of the source, row by row")
    return table["image_embedding"].astype(np.float32), table["text_embedding"].astype(np.float32)


def figures(found, features, top=10, sample=100):
    """The figures of the module's docstring but for retrieval; arguments as `gather` and `judged` give them."""
    image, text = found["image_codes"], found["text_codes"]
    result = {"units": float(image.shape[1]), "dead": float(np.sum((image.max(0) <= 0) & (text.max(0) <= 0))),
              "fires": float((np.mean(np.sum(image > 0, 1)) + np.mean(np.sum(text > 0, 1))) / 2)}
    for key in ("image", "text"):
        target, error = found[f"{key}_target"], np.mean((found[f"{key}_decoded"] - found[f"{key}_target"]) ** 2)
        result |= {f"mse/{key}": float(error), f"explained/{key}": float(1 - error / max(np.mean((target - target.mean(0)) ** 2),
                                                                                     1e-12))}
    x, y = _unit(image), _unit(text)
    result |= {"pair_cosine": float(np.mean(np.sum(x * y, 1))),
               "random_cosine": float(np.mean(np.sum(x * np.roll(y, len(y) // 2 or 1, 0), 1)))}
    first = distinct(found["texts"])
    image_rows, text_rows = top_rows(image, top), [first[own] for own in top_rows(text[first], top)]
    chosen = sampled(image_rows, text_rows, sample)
    if len(chosen):
        result |= similarities(*features, [image_rows[i] for i in chosen], [text_rows[i] for i in chosen])
    return result


def make(config, name):
    """fn(embed, state) -> {"dead": ..., "intra": ..., "codes/text_to_image/R@1": ...}; `config`: see the module."""
    instance, alpha = f"concepts.{name}", config.get("alpha", 1.0)
    if not isinstance(alpha, (int, float)) or alpha < 0:
        raise ValueError(f"config.evals.{instance}.alpha={alpha!r} must be a number of at least 0")
    match, without = config.get("match"), dict(config.get("without") or {})
    source = rows.open_source(config["source"], {*without.values(), *([match] if match else [])}, instance)
    rows.pick(config["views"], ["image", "text"], instance)

    def run(embed, state):
        found = gather(config, instance, embed, state, source)
        result = figures(found, judged(config, found, instance), config.get("top", 10), config.get("sample", 100))
        if not config.get("retrieval", True):
            return result
        table = rows.columns(source, {*without.values(), *([match] if match else [])}, found["index"])
        ids = table[match] if match else found["index"]
        _, first = np.unique(ids, return_index=True)
        asks = np.ones(len(ids), bool)
        for kind, how in (("embedding", 0.0), ("codes", None), ("both", alpha)):
            sides = [(_unit(found[f"{m}_codes"]) if how is None else joined(found[m], found[f"{m}_codes"], how)) for m in
                     ("image", "text")]
            sides = retrieval.Side(sides[0], ids, asks), retrieval.Side(sides[1], ids, asks).only(first)
            result |= {f"{kind}/{k}": v for k, v in retrieval.both_ways(*sides, tuple(config.get("ks", (1, 5, 10)))).items()}
            for label, column in without.items():
                kept = ~table[column].astype(bool)
                fewer = retrieval.both_ways(sides[0].only(kept), sides[1].only(kept[first]), tuple(config.get("ks", (1, 5, 10))))
                result |= {f"{label}/{kind}/{k}": v for k, v in fewer.items()}
        return result

    return run


def _unit(x):
    return x / np.maximum(np.linalg.norm(x, axis=-1, keepdims=True), 1e-12)
