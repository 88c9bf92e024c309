"""Does the network know how far an augmentation has taken an image from its caption?

The predicted misalignment of an augmented view v' of image v with caption w is read off the embeddings alone:

  r = log(D(w, v') + eps) - log(D(w, v) + eps),   D(a, b) = |a - b|^2 of unit vectors, 0 = no further from the caption than before

(token by token, where `similarity` says so: 2 less the similarities of both directions), and compared with the severity that the
pipeline reports for the view. n images x kinds of augmentation x levels. Figures, over all views and again per kind as
"<kind>/...":

  spearman            rank correlation of r with severity over all views of all images
  spearman_per_image  the same within one image, averaged over the images (0 for an image whose r are all equal)
  ordered             share of pairs of views of one image with different severity that r puts in the right order; ties count half
  mean, positive      mean r, and the share of views with r > 0
  mean@<level>        mean r of a kind at one level
  pixel/...           the first three for the root mean square pixel distance to the untouched view in place of r
  bad                 images that can't be read and are left out, when there are any

Instance: source, where, n (images, evenly spaced), views (pipes of "image", the untouched view, and of "text"), kinds, levels
(rising), augmented (a pipe with "{kind}" and "{level}" in it, such as "decode|resize(64)|severity('{kind}', {level})"), eps,
similarity (see `evals.similarity`).
"""
import numpy as np
from scipy import stats

from mcd_jax.config.keys import NEEDED, Key
from mcd_jax.data import pipeline
from mcd_jax.evals import rows
from mcd_jax.evals import similarity as similarity_lib

KEYS = {
    "source": Key("source", NEEDED, "of pairs"),
    "where": Key("dict | None", None, "rows that are kept: {column: a value or several}"),
    "n": Key("int | None", 256, "images, evenly spaced"),
    "views": Key("map of str", {}, "pipes of image (the untouched view) and text; left out: as in training, without randomness"),
    "kinds": Key("tuple", NEEDED, "of augmentation"),
    "levels": Key("tuple", NEEDED, "of each, rising"),
    "augmented": Key("str", NEEDED, "a pipe with {kind} and {level} in it: \"decode|resize(64)|severity('{kind}', {level})\""),
    "eps": Key("float", 1e-6, "keeps the logarithm finite"),
    "similarity": similarity_lib.KEY,
}


def predicted(text, augmented, original, eps=1e-6):
    """r of the module docstring: unit rows text (n, D), augmented (n, V, D), original (n, D) -> (n, V) float64."""
    text, augmented, original = (np.asarray(x, np.float64) for x in (text, augmented, original))
    far = np.sum((text[:, None] - augmented) ** 2, axis=-1)
    near = np.sum((text - original) ** 2, axis=-1)
    return np.log(far + eps) - np.log(near + eps)[:, None]


def log_ratios(embed, state, texts, looks, eps=1e-6):
    """r (n, V - 1) of views of images, looks uint8 (n, V, H, W, 3), the first of which is untouched, and tokens of texts (n, L)."""
    seen = similarity_lib.rows_of(embed(state, {"image": looks.reshape(-1, *looks.shape[2:])}), "image")
    words = similarity_lib.rows_of(embed(state, {"text": texts}), "text")
    if isinstance(words, similarity_lib.Tokens):
        far = np.log(similarity_lib.distances(words, seen) + eps)
        return far[:, 1:] - far[:, :1]
    seen = seen.reshape(*looks.shape[:2], -1)
    return predicted(words, seen[:, 1:], seen[:, 0], eps)


def spearman(x, y):
    """Rank correlation along the last axis, ties by mean rank: (..., n), (..., n) -> (...); 0 where one side is constant."""
    x, y = (stats.rankdata(v, axis=-1) for v in (x, y))
    x, y = (v - v.mean(axis=-1, keepdims=True) for v in (x, y))
    scale = np.sqrt(np.sum(x ** 2, axis=-1) * np.sum(y ** 2, axis=-1))
    return np.where(scale > 0, np.sum(x * y, axis=-1) / np.where(scale > 0, scale, 1.0), 0.0)


def ordered(r, severity):
    """Share of same-row pairs with different severity in the right order, ties of r count half: (n, V), (n, V) -> ()."""
    rise, above = np.sign(r[:, :, None] - r[:, None]), severity[:, :, None] > severity[:, None]
    if not above.any():
        raise ValueError("no two views of an image differ in severity: give at least two levels")
    return float(np.mean(0.5 + 0.5 * rise[above]))


def ranking(r, severity):
    """The first three figures for (n, V) predictions and severities."""
    return {"spearman": float(spearman(r.ravel(), severity.ravel())),
            "spearman_per_image": float(np.mean(spearman(r, severity))), "ordered": ordered(r, severity)}


def figures(r, pixel, severity, kinds, levels):
    """All figures for r, pixel distance and severity of shape (n, kinds * levels), level running fastest."""
    out = {}
    for i, kind in enumerate((None, *kinds)):
        views = slice(None) if kind is None else slice((i - 1) * len(levels), i * len(levels))
        own = {**ranking(r[:, views], severity[:, views]), "mean": float(np.mean(r[:, views])),
               "positive": float(np.mean(r[:, views] > 0))}
        own.update({f"pixel/{k}": v for k, v in ranking(pixel[:, views], severity[:, views]).items()})
        if kind is not None:
            own.update({f"mean@{level:g}": float(m) for level, m in zip(levels, np.mean(r[:, views], axis=0))})
        out.update({key if kind is None else f"{kind}/{key}": value for key, value in own.items()})
    return out


def views(config, instance):
    """`pipeline.Views` of one pass: "image", "text" and "v0", "v1", ... in the order of kinds and levels; and their number.

    Raises:
      ValueError: `augmented` lacks a placeholder, a view is missing, or there are fewer than two levels.
    """
    template, pipes, levels = config["augmented"], dict(config["views"]), list(config["levels"])
    rows.pick(pipes, ["image", "text"], instance)
    for field in ("{kind}", "{level}"):
        if field not in template:
            raise ValueError(f"config.evals.{instance}.augmented={template!r} has no {field}")
    if len(levels) < 2:
        raise ValueError(f"config.evals.{instance}.levels={levels} needs at least two levels to compare")
    made = [template.replace("{kind}", kind).replace("{level}", f"{level:g}") for kind in config["kinds"] for level in levels]
    compiled = {"image": pipes["image"], "text": pipes["text"], **{f"v{i}": pipe for i, pipe in enumerate(made)}}
    return pipeline.Views(compiled), len(made)


def measure(embed, state, source, compiled, count, batch_size, indices, eps=1e-6):
    """(r, pixel, severity), each (n, count): one pass over the usable rows of `indices` with the result of `views`."""
    names, parts = [f"v{i}" for i in range(count)], []
    for batch in pipeline.sequential(source, compiled, batch_size, seed=0, indices=indices):
        looks = np.stack([batch["image"], *(batch[name] for name in names)], axis=1)
        r = log_ratios(embed, state, batch["text"], looks, eps)
        pixel = [np.sqrt(np.mean((batch[name].astype(np.float32) - batch["image"]) ** 2, axis=(1, 2, 3))) for name in names]
        severity = [batch[f"{name}/misalignment"] for name in names]
        parts.append(tuple(part[~batch["bad"]] for part in (r, np.stack(pixel, 1), np.stack(severity, 1))))
    return tuple(np.concatenate(part) for part in zip(*parts))


def make(config, name):
    """fn(embed, state) -> the figures of the module docstring."""
    instance = f"misalignment.{name}"
    where = dict(config.get("where") or {})
    source = rows.open_source(config["source"], where, instance)
    compiled, count = views(config, instance)
    similarity = config.get("similarity", "auto")
    similarity_lib.check(similarity, instance)

    def evaluate(embed, state):
        chosen = rows.sample(source, where, config.get("n", 256), instance)
        embed = similarity_lib.using(embed, similarity, instance)
        measured = measure(embed, state, source, compiled, count, config.get("batch_size", 64), chosen, config.get("eps", 1e-6))
        return rows.with_bad(figures(*measured, list(config["kinds"]), list(config["levels"])),
                             np.arange(len(chosen)) < len(measured[0]))

    return evaluate
