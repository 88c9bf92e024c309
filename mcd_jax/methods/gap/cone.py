"""The cone effect: how narrow the cone is that a network's outputs lie in (Liang et al., NeurIPS 2022, section 2).

Means are over all pairs of distinct rows; with `diagonal` over all pairs, rows with themselves too. The paper uses the former for
networks (figure 2a) and the latter for depth (figure 2b).
"""
from collections.abc import Sequence

import numpy as np

from mcd_jax.methods.gap.shift import unit

ACTIVATIONS = {
    "linear": lambda x: x,
    "relu": lambda x: np.maximum(x, 0),
    "leaky_relu": lambda x: np.where(x > 0, x, 0.01 * x),
    "sigmoid": lambda x: 1 / (1 + np.exp(-x)),
    "tanh": np.tanh,
}


def cosines(x: np.ndarray, diagonal: bool = False, bins: int = 0, chunk: int = 1024) -> dict:
    """Cosines of the pairs of rows of x (n, D), n >= 2.

    Args:
      diagonal: count each row's cosine with itself.
      bins: also count the cosines in so many equal bins of [-1, 1].

    Returns:
      {"mean", "min", "max"}, floats in [-1, 1]; with bins {"centers", "density"} too, lists whose density integrates to 1.
    """
    x = unit(x)
    n = len(x)
    if n < 2:
        raise ValueError(f"cosines of pairs need at least two rows, got {n}")
    edges = np.linspace(-1, 1, bins + 1) if bins else None
    total, lowest, highest, counts = 0.0, np.inf, -np.inf, np.zeros(bins)
    for start in range(0, n, chunk):
        block = x[start:start + chunk] @ x.T
        counted = diagonal | (np.arange(n)[None, :] != np.arange(start, start + len(block))[:, None])
        found = block[counted]
        total, lowest, highest = total + found.sum(), min(lowest, found.min()), max(highest, found.max())
        if bins:
            counts += np.histogram(np.clip(found, -1, 1), edges)[0]
    pairs = n * n if diagonal else n * (n - 1)
    result = {"mean": float(total / pairs), "min": float(lowest), "max": float(highest)}
    if bins:
        result |= {"centers": ((edges[1:] + edges[:-1]) / 2).tolist(), "density": (counts / pairs * bins / 2).tolist()}
    return result


def mean(x: np.ndarray, diagonal: bool = False) -> float:
    """The mean cosine alone, from the mean of the unit rows: no pair is formed."""
    x = unit(x)
    n, square = len(x), float(np.sum(np.mean(x, axis=0) ** 2))
    return square if diagonal else float((square * n * n - np.sum(x * x)) / (n * (n - 1)))


def depth(activation: str, layers: int = 12, rows: int = 1024, width: int = 512, seed: int = 0, bias: bool = True,
          diagonal: bool = True) -> dict:
    """Mean cosine of random inputs after 0, 1, ..., `layers` random layers: list of layers + 1 floats (figure 2b).

    Inputs are standard normal; a layer is activation(x W + b), W (width, width) and b from N(0, 1 / width).

    Args:
      activation: a name of `ACTIVATIONS`.

    Raises:
      ValueError: there is no such activation.
    """
    if activation not in ACTIVATIONS:
        raise ValueError(f"activation={activation!r} is none of {', '.join(ACTIVATIONS)}")
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((rows, width))
    found = [mean(x, diagonal)]
    for _ in range(layers):
        weight, offset = rng.standard_normal((width, width)), rng.standard_normal((1, width))
        x = ACTIVATIONS[activation](x @ weight * width ** -0.5 + (offset * width ** -0.5 if bias else 0.0))
        found.append(mean(x, diagonal))
    return found


def seeds(clouds: Sequence[np.ndarray]) -> dict:
    """Whether networks that differ only in the seed of their weights put the same inputs in different cones.

    Args:
      clouds: two or more (n, D) arrays of unit rows, of the same inputs under different seeds.

    Returns:
      {"distance": mean distance between the centers of two seeds, "inside": mean cosine of two inputs under one seed, "across": of
      two inputs under two seeds, "separated": share of rows that are nearest to the center of their own seed (1 / seeds by chance),
      "variance": share of the variance that the seed alone explains, Var over seeds of the mean row / Var of all rows (theorem 2)}.
    """
    clouds = np.stack([unit(cloud) for cloud in clouds])
    centers, count = clouds.mean(axis=1), len(clouds)
    if count < 2:
        raise ValueError(f"one needs two seeds to compare, got {count}")
    pairs = [(i, j) for i in range(count) for j in range(i)]
    squared = np.stack([np.sum((clouds - center[None, None]) ** 2, axis=-1) for center in centers], axis=-1)
    nearest = np.argmin(squared, axis=-1)
    middle = centers.mean(axis=0)
    return {
        "distance": float(np.mean([np.linalg.norm(centers[i] - centers[j]) for i, j in pairs])),
        "inside": float(np.mean([mean(cloud) for cloud in clouds])),
        "across": float(np.mean([centers[i] @ centers[j] for i, j in pairs])),
        "separated": float(np.mean(nearest == np.arange(count)[:, None])),
        "variance": float(np.mean(np.sum((centers - middle[None]) ** 2, axis=1))
                          / np.mean(np.sum((clouds - middle[None, None]) ** 2, axis=-1))),
    }
