"""The hashing losses once more, pair by pair in float64: what the tests compare with."""
import math

import numpy as np


def cosine(a, b):
    return float(a @ b / np.linalg.norm(a) / np.linalg.norm(b))


def supervised(x, y, labels, temperature):
    total = 0.0
    for a, b in ((x, y), (y, x)):
        for i in range(len(a)):
            t = np.array([cosine(a[i], b[k]) / temperature for k in range(len(b))])
            log = t - np.log(np.sum(np.exp(t)))
            positive = [j for j in range(len(b)) if j == i or np.any(labels[i] & labels[j])]
            total -= np.mean(log[positive]) / len(a) / 2
    return total


def distances(x, y, labels, theta):
    far, total = math.sqrt(x.shape[1] * theta), 0.0
    for i, a in enumerate(x.astype(np.float64)):
        for j, b in enumerate(y.astype(np.float64)):
            d, s = np.linalg.norm(a - b), float(np.any(labels[i] & labels[j]))
            total += (s * d) ** 2 + ((1 - s) * (far - min(d, far))) ** 2
    return total / len(x) / len(y)


def proxies(u, points, labels, th):
    own = [1 - cosine(u[i], points[c]) for i, c in np.argwhere(labels == 1)]
    other = [max(0.0, cosine(u[i], points[c]) - th) for i, c in np.argwhere(labels == 0)]
    return np.mean(own) + np.mean(other)


def apart(x, y, labels, th):
    several = [i for i in range(len(x)) if labels[i].sum() > 1]
    pairs = [(i, j) for i in several for j in several if not np.any(labels[i] & labels[j])]
    return np.mean([max(0.0, cosine(x[i], y[j]) - th) for i, j in pairs]) if pairs else 0.0


def quantise(codes):
    """Squared distance of each number from its sign, +1 at 0."""
    return np.mean([(v - (1 if v >= 0 else -1)) ** 2 for v in np.asarray(codes, np.float64).ravel()])


def of_terms():
    """term -> fn(out of a method's forward pass) -> float, for the table of every method's terms."""
    arrays = lambda out, *names: [np.asarray(out[name], np.float64) for name in names]
    both = lambda fn: lambda out: sum(fn(own) for own in arrays(out, "image", "text"))
    distance = lambda a, b: lambda out: distances(*arrays(out, a, b), np.asarray(out["labels"]), 0.5)
    kinds = (("image", "image"), ("text", "text"), ("image", "text"))
    return {
        "hash": lambda out: supervised(*arrays(out, "image", "text"), np.asarray(out["labels"]), 0.2),
        "auxiliary": lambda out: supervised(*arrays(out, "auxiliary/image", "auxiliary/text"), np.asarray(out["labels"]), 0.2),
        "guide": lambda out: sum(np.mean((u - q) ** 2) for u, q in (arrays(out, n, f"auxiliary/{n}") for n in ("image", "text"))),
        "quantise": both(quantise),
        "inter": distance("image", "text"), "intra_image": distance("image", "image"), "intra_text": distance("text", "text"),
        "proxy": lambda out: sum(proxies(u, np.asarray(out["proxies"], np.float64), np.asarray(out["labels"]), 0.1)
                                 for u in arrays(out, "image", "text")),
        "apart": lambda out: sum(apart(*arrays(out, *pair), np.asarray(out["labels"]), 0.1) for pair in kinds),
    }
