"""Linear probe: a linear classifier on frozen features of the image tower, as CLIP (Radford et al. 2021, appendix A.3) does it.

An instance of `config.evals.probe` says:

  set        a published set (`classes.known`): its parts in TFDS and its class names, each replaced by the keys below
  train, validation, source   source specs: the classifier is fitted on train, C chosen on validation, the figures taken on source.
             Without validation a share of train is held out for the choice (`share`, 0.1 of each class, evenly spaced)
  where, n   keep some rows of all three ({column: value or list}), and at most n of each, evenly spaced
  label      column with the class, of any type; with `set` a column of class names (default: "text"); `labels` as in zeroshot
  views      pipe of "image"
  features   "pooled" (default, as CLIP: what the projection to the embedding reads), "image_raw" (the embedding before it is made
             unit), "image", or "pixels": the view itself in [0, 1] without the network
  solver     "lbfgs": logistic regression, min |W|^2 / 2 + C * sum of cross entropies, the bias free (scikit-learn's C)
             "ridge": least squares on one-hot targets, min |W|^2 / 2 + C / 2 * sum of squared errors, in closed form
  C          a number, or None (default): the best on validation among 97 from 1e-6 to 1e6, 8 per decade, found as CLIP does by
             halving the step around the best from every 16th on (15 fits); then fitted again on train and validation together
  max_iter   of L-BFGS, 1000

Figures: top1, mean_per_class (recall averaged over the classes that occur), chance_top1 (one over the classes), log10_C, classes,
images, train_images, iterations (of the last fit; ridge: 0); "bad", the images of all parts that can't be read and are left out,
when there are any; with `set` also accuracy, the one that the literature reports.
Everything is deterministic and done in float64 on the host; on several processes each does it all, on the same features. A line
on stderr says when C was chosen at an end of its range, or L-BFGS stopped at max_iter before it was done.
"""
from typing import NamedTuple

import numpy as np
from scipy import optimize, special

from mcd_jax.config.keys import Key
from mcd_jax.evals import classes as classes_lib
from mcd_jax.evals import rows
from mcd_jax.run import console

KEYS = {
    "set": Key("str | None", None, "a published set: its parts in TFDS and its class names, each replaced by the other keys"),
    "source": Key("source | None", None, "where figures are taken"),
    "train": Key("source | None", None, "what the classifier is fitted on"),
    "validation": Key("source | None", None, "what C is chosen on; left out: a share of train"),
    "share": Key("float", 0.1, "that share, of each class, evenly spaced"),
    "where": Key("dict | None", None, "rows that are kept: {column: a value or several}"),
    "n": Key("int | None", None, "at most so many images of each, evenly spaced; left out: all"),
    "label": Key("str | None", None, "column with the class; with `set` a column of class names, text if left out"),
    "labels": Key("str | tuple | None", None, "as in zeroshot"),
    "views": Key("map of str", {}, "pipe of image; left out: as in training, without randomness"),
    "features": Key("str", "pooled", "pooled: what the projection reads, as CLIP | image_raw: the embedding before it is "
                    "made unit | image | pixels: the view itself, without the network"),
    "solver": Key("str", "lbfgs", "lbfgs: logistic regression | ridge: least squares on one-hot targets"),
    "C": Key("int | float | None", None, "as scikit-learn's; None: the best on validation among 97 from 1e-6 to 1e6"),
    "max_iter": Key("int", 1000, "of L-BFGS"),
}
FEATURES = ("pooled", "image_raw", "image", "pixels")
GRID = 10.0 ** (np.arange(-48, 49) / 8)
_CHUNK = 16384


def logistic(x, y, classes, C, start=None, max_iter=1000):
    """Multinomial logistic regression by L-BFGS.

    Args:
      x: (n, D) features; y: (n,) int classes below `classes`.
      C: weight of the summed cross entropy against |W|^2 / 2.
      start: (D + 1, classes) where to begin, such as the weights of a neighbouring C; None: zeros.

    Returns:
      ((D + 1, classes) float64 weights, the bias in the last row; number of iterations; whether they ended before it was done).
    """
    n, d = x.shape
    # divided by C * n: the same optimum, and values near 1 whatever C is
    decay = 1.0 / (C * n)

    def objective(flat):
        w = flat.reshape(d + 1, classes)
        loss, gradient = 0.5 * decay * np.sum(w[:-1] ** 2), np.concatenate([decay * w[:-1], np.zeros((1, classes))])
        for i in range(0, n, _CHUNK):
            part, own = np.asarray(x[i:i + _CHUNK], np.float64), y[i:i + _CHUNK]
            logits = part @ w[:-1] + w[-1]
            normal = special.logsumexp(logits, axis=1, keepdims=True)
            loss += np.sum(normal[:, 0] - logits[np.arange(len(part)), own]) / n
            error = np.exp(logits - normal)
            error[np.arange(len(part)), own] -= 1.0
            gradient[:-1] += part.T @ error / n
            gradient[-1] += error.sum(axis=0) / n
        return loss, gradient.ravel()

    first = np.zeros((d + 1, classes)) if start is None else start
    found = optimize.minimize(objective, first.ravel(), jac=True, method="L-BFGS-B",
                              options=dict(maxiter=max_iter, maxfun=2 * max_iter, maxcor=10, gtol=1e-8, ftol=1e-12))
    return found.x.reshape(d + 1, classes), int(found.nit), found.status == 1


class Ridge:
    """Least squares on one-hot targets with a free bias; one eigendecomposition serves every C."""

    def __init__(self, x, y, classes):
        """x: (n, D) features; y: (n,) int classes below `classes`."""
        x = np.asarray(x, np.float64)
        targets = np.eye(classes)[y]
        self._mean, self._level = x.mean(axis=0), targets.mean(axis=0)
        centred = x - self._mean
        self._values, self._vectors = np.linalg.eigh(centred.T @ centred)
        self._right = self._vectors.T @ (centred.T @ (targets - self._level))

    def weights(self, C):
        """(D + 1, classes) float64, the bias in the last row."""
        w = self._vectors @ (self._right / (np.maximum(self._values, 0.0) + 1.0 / C)[:, None])
        return np.concatenate([w, (self._level - self._mean @ w)[None]])


class Fit(NamedTuple):
    """What `fit` gives."""
    weights: np.ndarray   # (D + 1, classes) float64, the bias in the last row
    C: float
    iterations: int       # of the last fit of L-BFGS; ridge: 0
    stopped: int          # fits, those that chose C among them, that ended at max_iter
    fits: int


def scores(x, weights):
    """(n, classes) of features (n, D) and weights (D + 1, classes)."""
    return np.asarray(x, np.float64) @ weights[:-1] + weights[-1]


def accuracy(values, y):
    """top1 and mean_per_class of scores (n, classes) for classes y (n,); the first of equal scores is taken."""
    right = np.argmax(values, axis=1) == y
    return {"top1": float(np.mean(right)), "mean_per_class": float(np.mean([np.mean(right[y == c]) for c in np.unique(y)]))}


def choose(score, count=97, step=16):
    """CLIP's search: the best of every `step`-th of `count` places, then with half the step around the best until it is 1.

    Args:
      score: place -> figure, higher is better; asked once for each place.

    Returns:
      int place; of equal ones the lowest (the strongest regularisation).
    """
    known = {place: score(place) for place in range(0, count, step)}
    while True:
        best = max(known, key=lambda place: (known[place], -place))
        step //= 2
        if step < 1:
            return best
        for place in (best - step, best + step):
            if 0 <= place < count and place not in known:
                known[place] = score(place)


def held_out(y, share):
    """(n,) bool: `share` of each class, evenly spaced in the order of the rows, at least one where a class has two."""
    mask = np.zeros(len(y), bool)
    for c in np.unique(y):
        own = np.flatnonzero(y == c)
        count = min(len(own) - 1, max(1, round(share * len(own))))
        if count > 0:
            mask[own[np.linspace(0, len(own) - 1, count + 2)[1:-1].round().astype(int)]] = True
    return mask


def fit(x, y, classes, solver, C, max_iter=1000, validation=None):
    """A `Fit` on (x, y) with the number C; or with C chosen on validation = (x, y), then on both.

    Args:
      solver: "lbfgs" or "ridge".
    """
    stopped, fits = 0, 0

    def solve(x, y, C, start=None):
        nonlocal stopped, fits
        weights, iterations, early = logistic(x, y, classes, C, start, max_iter)
        stopped, fits = stopped + early, fits + 1
        return weights, iterations

    if C is None:
        vx, vy = validation
        ridge, start = Ridge(x, y, classes) if solver == "ridge" else None, None

        def score(place):
            nonlocal start
            if ridge:
                weights = ridge.weights(GRID[place])
            else:
                weights, _ = solve(x, y, GRID[place], start)
                start = weights
            return accuracy(scores(vx, weights), vy)["top1"]
        C = float(GRID[choose(score)])
        x, y = np.concatenate([x, vx]), np.concatenate([y, vy])
    if solver == "ridge":
        return Fit(Ridge(x, y, classes).weights(C), C, 0, 0, 0)
    weights, iterations = solve(x, y, C)
    return Fit(weights, C, iterations, stopped, fits)


def doubts(fitted, chosen, max_iter=1000):
    """What speaks against a `Fit`, a list of sentences; chosen: whether its C was."""
    said, ends = [], {float(GRID[0]): "smallest", float(GRID[-1]): "largest"}
    if chosen and fitted.C in ends:
        said.append(f"the best C found, {fitted.C:g}, is the {ends[fitted.C]} of those tried: a better one may lie outside, or "
                    "validation can't tell them apart; C sets a number of your own")
    if fitted.stopped:
        said.append(f"{fitted.stopped} of {fitted.fits} fits stopped at max_iter={max_iter} before they were done: the figures are "
                    "those of unfinished classifiers; raise max_iter")
    return said


def pixels(state, batch):
    """The view itself as features, with values in [0, 1]."""
    return {"pixels": batch["image"].reshape(len(batch["image"]), -1).astype(np.float32) / 255.0}


def make(config, name):
    """fn(embed, state) -> the figures of the module docstring.

    Raises:
      ValueError: an unknown solver, feature or set, a share outside (0, 1), or labels that don't fit.
    """
    instance = f"probe.{name}"
    chosen = classes_lib.read(config["set"]) if config.get("set") else None
    label, where = config.get("label", "text") if chosen else config["label"], dict(config.get("where") or {})
    solver, wanted, share = (config.get(key, KEYS[key].default) for key in ("solver", "features", "share"))
    for key, value, allowed in (("solver", solver, ("lbfgs", "ridge")), ("features", wanted, FEATURES)):
        if value not in allowed:
            raise ValueError(f"config.evals.{instance}.{key}={value!r} must be one of {', '.join(allowed)}")
    if not 0 < share < 1:
        raise ValueError(f"config.evals.{instance}.share={share!r} must lie between 0 and 1")
    specs = {"train": config.get("train"), "validation": config.get("validation"), "test": config.get("source")}
    if chosen:
        own = {part: classes_lib.source(chosen.name, part) for part in specs if part in chosen.tfds and not specs["train"]}
        specs = {part: spec or own.get(part) for part, spec in specs.items()}
    for key, part in (("train", "train"), ("source", "test")):
        if not specs[part]:
            raise KeyError(key)
    sources = {part: rows.open_source(spec, {*where, label}, instance) for part, spec in specs.items() if spec}
    views, C, max_iter = rows.pick(config["views"], ["image"], instance), config.get("C"), config.get("max_iter", 1000)

    def read(embed, state, part):
        used = rows.sample(sources[part], where, config.get("n"), instance)
        values = rows.columns(sources[part], [label], indices=used)[label]
        if chosen:
            values = classes_lib.stored_numbers(chosen.name, values, config.get("labels"), label, instance)
        given, key = _features(embed, wanted)
        out, good = rows.encode(given, state, sources[part], views, ["image"], config.get("batch_size", 256), indices=used)
        return out[key][good], values[good], good

    def evaluate(embed, state):
        parts = {part: read(embed, state, part) for part in sources}
        readable = [good for *_, good in parts.values()]
        names = np.arange(len(chosen.stored)) if chosen else np.unique(parts["train"][1])
        parts = {part: (x, _places(names, values, part, instance)) for part, (x, values, _) in parts.items()}
        (x, y), validation = parts["train"], parts.get("validation")
        if validation is None and C is None:
            out = held_out(y, share)
            (x, y), validation = (x[~out], y[~out]), (x[out], y[out])
        elif validation is not None and C is not None:
            x, y = np.concatenate([x, validation[0]]), np.concatenate([y, validation[1]])
        fitted = fit(x, y, len(names), solver, C, max_iter, validation)
        for doubt in doubts(fitted, C is None, max_iter):
            console.say(f"{instance.replace('.', '/')}: {doubt}")
        tx, ty = parts["test"]
        figures = {**accuracy(scores(tx, fitted.weights), ty), "chance_top1": 1.0 / len(names),
                   "log10_C": float(np.log10(fitted.C)), "classes": float(len(names)), "images": float(len(ty)),
                   "iterations": float(fitted.iterations),
                   "train_images": float(len(y) + (len(validation[1]) if C is None else 0))}
        return rows.with_bad({**figures, "accuracy": figures[chosen.figure]} if chosen else figures, *readable)

    return evaluate


def _features(embed, wanted):
    """(what embeds, the key of its features). An objective of one's own without the head "pooled" has none before its embedding."""
    if wanted == "pixels":
        return pixels, "pixels"
    if wanted == "pooled" and "pooled" in getattr(embed, "heads", ()):
        return embed.head("pooled"), "image_pooled"
    return embed, "image_raw" if wanted == "pooled" else wanted


def _places(names, values, part, instance):
    """Where each of `values` stands in the sorted `names`; one that isn't there is refused."""
    place = np.minimum(np.searchsorted(names, values), len(names) - 1)
    if not np.array_equal(names[place], values):
        raise ValueError(f"config.evals.{instance}: the {part} rows have the class {values[names[place] != values].tolist()[0]!r}, "
                         "which no training row has")
    return place
