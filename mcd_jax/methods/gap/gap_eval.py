"""Geometry of the two modalities: alignment, uniformity and the gap between them.

With unit embeddings x_i (image) and y_i (its text), n pairs:

  alignment        mean ||x_i - y_i||^2, in [0, 4]; lower = pairs are closer (Wang and Isola, ICML 2020, alpha = 2)
  uniformity_*     log mean_{i<j} exp(-2 ||x_i - x_j||^2), at most 0; lower = more spread, 0 = all in one point
                   (Wang and Isola, t = 2, their sign), of the images, of the texts, and of both together
  distance         ||mean x_i - mean y_i||, in [0, 2]: the modality gap (Liang et al., NeurIPS 2022, section 4)
  norm_image/text  lengths of those two means: the gap also shrinks when the clouds widen, so read them beside it
  pair_cosine      mean x_i . y_i; other_cosine is the mean over i != j
  cone_image/text  mean cosine of two different images, of two different texts: how narrow each cloud is (section 2)
  lowest_image/text  the smallest of these cosines

Moving along the gap, losses and untrained weights: `mcd-jax analyze gap`.

Instance: source, views (pipes of "image" and "text"), optional n (at most so many rows, evenly spaced), where.
"""
import numpy as np

from mcd_jax.config.keys import NEEDED, Key
from mcd_jax.evals import rows
from mcd_jax.methods.gap import cone, shift

KEYS = {
    "source": Key("source", NEEDED, "of pairs"),
    "views": Key("map of str", {}, "pipes of image and text; left out: as in training, without randomness"),
    "n": Key("int | None", None, "at most so many rows, evenly spaced; left out: all"),
    "where": Key("dict | None", None, "rows that are kept: {column: a value or several}"),
}


def alignment(x, y):
    """Mean squared distance of pairs of (n, D) unit rows: (), lower is better.

    Oh, So et al. (NeurIPS 2023) print another one with the opposite sign, minus `relative_alignment` with the texts as x.
    """
    return float(np.mean(np.sum((x - y) ** 2, axis=1)))


def relative_alignment(x, y, chunk=1024):
    """Mean of ||x_i - y_i||^2 - min_{j != i} ||x_i - y_j||^2 of (n, D) unit rows, n >= 2: (); lower is better.

    Source: `rel_lalign_torch` in loss.py of the code released with Oh, So et al. (NeurIPS 2023), called with the texts as x.
    """
    x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)
    if len(x) < 2:
        raise ValueError(f"relative alignment needs at least two pairs, got {len(x)}")
    total = 0.0
    for start in range(0, len(x), chunk):
        block = x[start:start + chunk]
        squared = np.sum(block ** 2, axis=1)[:, None] + np.sum(y ** 2, axis=1)[None, :] - 2.0 * block @ y.T
        own = np.arange(len(block)), np.arange(start, start + len(block))
        pairs = squared[own]
        squared[own] = np.inf
        total += np.sum(pairs - np.min(squared, axis=1))
    return float(total / len(x))


def uniformity(x, t=2.0, chunk=1024):
    """log mean_{i<j} exp(-t ||x_i - x_j||^2) of (n, D) unit rows, n >= 2: (), at most 0, lower is better.

    The sign of Wang and Isola. Oh, So et al. (NeurIPS 2023) print its negative, higher is better, over both modalities together:
    minus `uniformity_both` (as remembered of the paper). Their released code has Wang and Isola's sign, and takes the images twice.
    """
    x = np.asarray(x, np.float64)
    if len(x) < 2:
        raise ValueError(f"uniformity needs at least two rows, got {len(x)}")
    total = 0.0
    for start in range(0, len(x), chunk):
        block = x[start:start + chunk]
        squared = np.sum(block ** 2, axis=1)[:, None] + np.sum(x ** 2, axis=1)[None, :] - 2.0 * block @ x.T
        later = np.arange(len(x))[None, :] > np.arange(start, start + len(block))[:, None]
        total += np.sum(np.exp(-t * np.maximum(squared, 0.0)) * later)
    return float(np.log(total / (len(x) * (len(x) - 1) / 2)))


def figures(x, y):
    """All of the module's figures for (n, D) unit image rows x and text rows y."""
    x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)
    mean_x, mean_y, pairs, n = x.mean(axis=0), y.mean(axis=0), float(np.mean(np.sum(x * y, axis=1))), len(x)
    everything = float(mean_x @ mean_y)  # mean cosine over all n * n pairs
    image, text = cone.cosines(x), cone.cosines(y)
    return {"alignment": alignment(x, y), "uniformity_image": uniformity(x), "uniformity_text": uniformity(y),
            "uniformity_both": uniformity(np.concatenate([x, y])), "distance": shift.distance(x, y),
            "norm_image": float(np.linalg.norm(mean_x)), "norm_text": float(np.linalg.norm(mean_y)),
            "pair_cosine": pairs, "other_cosine": (everything * n - pairs) / (n - 1),
            "cone_image": image["mean"], "cone_text": text["mean"], "lowest_image": image["min"], "lowest_text": text["min"]}


def make(config, name):
    """fn(embed, state) -> the figures of the module docstring."""
    collect, score = parts(config, name)
    return lambda embed, state: score(*collect(embed, state))


def parts(config, name):
    """The two halves of `make`: collect(embed, state) -> (image (n, D), text (n, D), rest), pairs of unit rows; score of these."""
    instance = f"gap.{name}"
    where = dict(config.get("where") or {})
    source = rows.open_source(config["source"], where, instance)
    views = rows.pick(config["views"], ["image", "text"], instance)

    def collect(embed, state):
        chosen = rows.sample(source, where, config.get("n"), instance)
        out, good = rows.encode(embed, state, source, views, ["image", "text"], config.get("batch_size", 256), indices=chosen)
        return out["image"][good], out["text"][good], {"good": good}

    return collect, lambda image, text, rest: rows.with_bad(figures(image, text), *rest.values())
