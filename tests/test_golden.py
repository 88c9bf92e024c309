"""One step of every method, pinned: a change of any figure must be meant.

The pinned figures are this code's own, so they only show that nothing moved; that the losses are right is shown beside them by slow
formulas in numpy, on the same embeddings. When a change is meant, the failure message prints the new row.
"""
import jax
import numpy as np
import pytest
import slow_hashing
import tiny

from mcd_jax import step as step_lib

GOLDEN = {
    "clip": (2.78435, 146.79958, 0.06058, 12.94974),
    "siglip": (9.66278, 139.35451, 0.06058, 16.36142),
    "slip": (8.29516, 211.11763, 0.06405, 15.68711),
    "mcd": (4.79418, 205.18817, 0.06016, 13.1097),
    "gcl": (7.97567, 74.25021, 0.06057, 12.95069),
    "m2mix": (2.88622, 146.93076, 0.06059, 13.21975),
    "vl_sae": (1.90918, 2.56316, 0.01877, 4.05131),
    "ahlr": (3.67126, 22.48045, 0.06565, 22.89402),
    "dchmt": (13.5428, 121.16456, 0.11165, 91.0928),
    "dsph": (2.77245, 16.82995, 0.06277, 15.11276),
    "albef": (12.33409, 150.28381, 0.06543, 12.36553),
    "answering": (9.9425, 3.5607, 0.04773, 13.61646),
    "judging": (1.09865, 0.06202, 0.05228, 13.00641),
    "assigning": (1.09082, 0.40015, 0.06861, 13.00475),
    "limoe": (4.11736, 165.50081, 0.0633, 13.66891),
    "loupe": (10.4752, 236.32008, 0.15531, 26.80206),
    "mcd+gcl": (12.08123, 325.53549, 0.06013, 13.10981),
}


@pytest.mark.parametrize("method", tiny.MOST)
def test_one_step_is_pinned(method):
    objective, tx, weights, state, batch = tiny.build(method)
    state, first = jax.jit(step_lib.make_step(objective, tx, weights))(state, batch)
    got = tuple(round(float(first[k]), 5) for k in ("loss", "grad_norm", "update_norm", "param_norm"))
    np.testing.assert_allclose(got, GOLDEN[method], rtol=2e-3, err_msg=f'"{method}": {got},')


def cross_entropy(logits):
    """Mean of -log softmax at the diagonal, row by row, in float64."""
    return np.mean([-(row[i] - np.log(np.sum(np.exp(row - row.max()))) - row.max()) for i, row in enumerate(logits)])


def slow_clip(out):
    logits = float(out["scale"]) * np.asarray(out["image"], np.float64) @ np.asarray(out["text"], np.float64).T
    return (cross_entropy(logits) + cross_entropy(logits.T)) / 2


def slow_siglip(out):
    image, text = np.asarray(out["image"], np.float64), np.asarray(out["text"], np.float64)
    total = 0.0
    for i, x in enumerate(image):
        for j, y in enumerate(text):
            label = 1 if i == j else -1
            total += np.log1p(np.exp(-label * (float(out["scale"]) * x @ y + float(out["bias"]))))
    return total / len(image)


def slow_ssl(out):
    views = [np.asarray(out[k], np.float64) for k in ("view1", "view2")]
    z = np.concatenate([v / np.linalg.norm(v, axis=1, keepdims=True) for v in views])
    n, total = len(views[0]), 0.0
    for i in range(2 * n):
        others = [j for j in range(2 * n) if j != i]
        scores = np.exp([z[i] @ z[j] / 0.1 for j in others])
        total -= np.log(scores[others.index((i + n) % (2 * n))] / scores.sum())
    return total / (2 * n)


def slow_misalignment(out):
    def ratio(prefix):
        text, augmented, image = (np.asarray(out[prefix + k], np.float64) for k in ("text", "augmented", "image"))
        return [np.log(np.sum((t - a) ** 2) + 1e-6) - np.log(np.sum((t - o) ** 2) + 1e-6)
                for t, a, o in zip(text, augmented, image)]
    return np.mean((np.array(ratio("")) - np.array(ratio("teacher/"))) ** 2)


def slow_gcl(out):
    """SupCon's L_out over the 3N embeddings with the pair as label: two positives for each anchor, itself left out."""
    names, scale = ("image", "text", "fused"), float(out["scale"])
    rows = [(k, np.asarray(out[name][k], np.float64)) for name in names for k in range(len(out["image"]))]
    total = 0.0
    for i, (pair, anchor) in enumerate(rows):
        logits = [scale * anchor @ z for j, (_, z) in enumerate(rows) if j != i]
        labels = [k for j, (k, _) in enumerate(rows) if j != i]
        below = np.log(np.sum(np.exp(np.array(logits) - max(logits)))) + max(logits)
        total += sum(below - v for v, k in zip(logits, labels) if k == pair) / 2
    return total / len(rows)


def slow_m2(out):
    image, text = np.asarray(out["image"], np.float64), np.asarray(out["text"], np.float64)
    lam, scale, total = float(out["mix/m2"]), float(out["m2/scale"]), 0.0
    theta = np.arccos(np.sum(image * text, axis=1))[:, None]
    mixed = (np.sin(lam * theta) * image + np.sin((1 - lam) * theta) * text) / np.sin(theta)
    for i in range(len(image)):
        for anchor in (image[i], text[i]):
            positive = np.exp(scale * image[i] @ text[i])
            negatives = sum(np.exp(scale * anchor @ mixed[j]) for j in range(len(image)) if j != i)
            total -= np.log(positive / (positive + negatives))
    return total / len(image) / 2


def slow_reconstruction(kind):
    """Mean squared difference, number by number; tests/test_vl_sae.py has what leads to the decoded rows."""
    def slow(out):
        found, want = (np.asarray(out[key], np.float64) for key in (f"{kind}/decoded", kind))
        return sum((a - b) ** 2 for x, y in zip(found, want) for a, b in zip(x, y)) / want.size
    return slow


def slow_entropies(out):
    """(hard, soft): mean cross-entropies of both directions with the own key and the teacher's distribution, keys: batch, queue."""
    hard, soft, scale, teacher = 0.0, 0.0, float(out["scale"]), jax.tree.map(np.float64, out["keep"])
    for one, other in (("image", "text"), ("text", "image")):
        keys = np.concatenate([teacher[other], *np.asarray(out["memory"]["queue"][other], np.float64)])
        for i, x in enumerate(np.asarray(out[one], np.float64)):
            p, q = (np.exp(scale * keys @ z) / np.sum(np.exp(scale * keys @ z)) for z in (x, teacher[one][i]))
            hard, soft = hard - np.log(p[i]) / 2, soft - np.sum(q * np.log(p)) / 2
    return hard / len(teacher["image"]), soft / len(teacher["image"])


def slow_itm(out):
    rows = [(row, label) for three in np.asarray(out["itm"], np.float64) for row, label in zip(three, (1, 0, 0), strict=True)]
    return np.mean([np.log(np.exp(row).sum()) - row[label] for row, label in rows])


def slow_words(out, name):
    """Of the sums over each row's masked words, whose own slow form is in test_albef.py."""
    return np.sum(out[f"mlm/{name}"]) / np.sum(out["mlm/count"])


def slow_answers(out, name):
    """Of the sums over each answer's words, whose own slow form is in test_answering.py."""
    sums, weights = np.asarray(out[f"answer/{name}"], np.float64), np.asarray(out["weights"], np.float64)
    return sum(w * x for row, own in zip(sums, weights) for x, w in zip(row, own)) / len(sums)


def slow_class(out, target=None):
    """Cross-entropy of a few classes with the label, or with other distributions over them."""
    logits = np.asarray(out["logits"], np.float64)
    rows = np.eye(logits.shape[1])[np.asarray(out["label"])] if target is None else np.asarray(out[target], np.float64)
    return np.mean([-sum(y * (x - np.log(np.sum(np.exp(row)))) for x, y in zip(row, own)) for row, own in zip(logits, rows)])


def slow_spread(total):
    """Entropy of the average token, from a sum of probabilities (E,)."""
    p = np.asarray(total, np.float64) / np.sum(total)
    return -sum(x * np.log(x) for x in p if x > 0)


def slow_variation(total):
    total = np.asarray(total, np.float64)
    return np.mean((total - total.mean()) ** 2) / total.mean() ** 2


def over_layers(fn, *values):
    """Mean over layers of fn of the batch's sums, (E,) or (), for values (B, layers, ...)."""
    values = [np.asarray(value, np.float64) for value in values]
    return np.mean([fn(*(value[:, layer].sum(0) for value in values)) for layer in range(values[0].shape[1])])


SLOW_ROUTING = {
    "local_text": lambda out: over_layers(lambda x: x / np.sum(out["text/count"]), out["text/entropy"]),
    "global_text": lambda out: over_layers(lambda x: max(0.0, np.log(4.0) - slow_spread(x)), out["text/probability"]),
    "global_image": lambda out: over_layers(lambda x: max(0.0, np.log(3.9) - slow_spread(x)), out["image/probability"]),
    "importance": lambda out: over_layers(lambda x, y: slow_variation(x + y), out["image/probability"], out["text/probability"]),
    "load": lambda out: over_layers(lambda x, y: slow_variation(x + y), out["image/win"], out["text/win"]),
    "z": lambda out: np.mean([over_layers(lambda x, n=n: x / np.sum(out[f"{n}/count"]), out[f"{n}/squared_lse"])
                              for n in ("image", "text")])}
def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def slow_token(out):
    """Binary cross-entropy of region confidences and interactions scaled to [0, 1] over the regions of an image that have one."""
    losses = []
    for logits, labels, known in zip(*(np.asarray(out[f"token/{k}"], np.float64) for k in ("logit", "label", "known"))):
        there = [float(label) for label, k in zip(labels, known) if k]
        for logit, label, k in zip(logits, labels, known):
            if k:
                wanted = (label - min(there)) / (max(there) - min(there)) if max(there) > min(there) else 0.5
                losses.append(-wanted * np.log(sigmoid(logit)) - (1 - wanted) * np.log(1 - sigmoid(logit)))
    return np.mean(losses)


def slow_semantics(out):
    """Cross-entropy of each region's softmax over the phrases and of its interactions with them, over the number of phrases."""
    losses = []
    for scores, labels, there in zip(*(np.asarray(out[f"pair/{k}"], float) for k in ("scores", "label", "phrases"))):
        here = np.flatnonzero(there)
        for row, label in zip(scores, labels.reshape(scores.shape)):
            share, weight = (np.exp(x[here] / t) / np.exp(x[here] / t).sum() for x, t in ((row, 1), (label, 0.5)))
            losses.append(-sum(w * np.log(a) for w, a in zip(weight, share)) / len(here))
    return np.mean(losses)


def slow_unsil(out):
    total = 0.0
    for level in ("token", "pair"):
        parts = (np.asarray(out[f"{level}/{part}"], np.float64).ravel() for part in ("estimate", "sigma", "value", "played"))
        total += np.mean([(e - v) ** 2 / s + s for e, s, v, played in zip(*parts) if played])
    return total


SLOW = {**slow_hashing.of_terms(), **SLOW_ROUTING,
        "token": slow_token, "semantics": slow_semantics, "unsil": slow_unsil,
        "image": slow_reconstruction("image"), "text": slow_reconstruction("text"),
        "itc": lambda out: slow_entropies(out)[0], "itc_distill": lambda out: -np.subtract(*slow_entropies(out)), "itm": slow_itm,
        "answer": lambda out: slow_answers(out, "hard"),
        "answer_distill": lambda out: slow_answers(out, "soft") - slow_answers(out, "hard"),
        "mlm": lambda out: slow_words(out, "hard"), "mlm_distill": lambda out: slow_words(out, "soft") - slow_words(out, "hard"),
        "label": slow_class, "label_distill": lambda out: slow_class(out, "soft") - slow_class(out), "assign": slow_class,
        "gcl": slow_gcl, "m2": slow_m2, "clip": slow_clip, "siglip": slow_siglip, "ssl": slow_ssl,
        "misalignment": slow_misalignment}


@pytest.mark.parametrize("method", [pytest.param(name, marks=pytest.mark.full if name == "judging" else ())
                                    for name in tiny.METHODS])
def test_every_term_equals_a_slow_formula(method):
    objective, _, weights, state, batch = tiny.build(method)
    memory = jax.tree.map(lambda x: 1.05 * x + 0.01, state.memory)   # a teacher that differs from its student
    out = jax.jit(objective.forward)(state.params, memory, batch, jax.random.key(3), state.step)
    live = [name for name, weight in weights.items() if weight]
    assert live
    for name in live:
        composed, _, term = name.rpartition("/")
        of_method = {**(out[composed] if composed else out), "memory": memory}
        np.testing.assert_allclose(float(objective.terms[name](out)), SLOW[term](of_method), rtol=2e-4, atol=2e-7, err_msg=name)
