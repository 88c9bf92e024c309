"""LOUPE at the size of a toy."""
from cases import Case, slow_clip
import numpy as np


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


CASES = {"loupe": Case(
    (10.4752, 236.32008, 0.15531, 26.80206),
    {"clip": slow_clip, "token": slow_token, "semantics": slow_semantics, "unsil": slow_unsil},
    dict(regions=2, project="own", anchors=((0.6, 1.2), (1.2, 1.2)), hidden=8, masking="tokens", samples=4, first=0, token_quota=1,
         pair_quota=3, estimator_width=8, estimator_depth=1, estimator_heads=2), slow=True, layers=("estimator",))}
