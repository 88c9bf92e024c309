"""The gap between two modalities, and moving along it (Liang et al., NeurIPS 2022, "Mind the Gap", sections 2 and 4).

x (n, D) are unit image rows, y (m, D) unit text rows; they need not be pairs. The gap vector is the difference of the two means,
which are not made unit, so its length also shrinks when a cloud widens: read it beside the lengths of the means.

Three parametrisations of the same move are in use (`FORMS`); each is followed by making the rows unit again:
  "lambda"   x - a G, y + a G with G the gap vector: a = 1/2 closes it before the rows are made unit. The paper's text
  "delta"    x - a/2 u, y + a/2 u with u = G / |G|: a = 2 |G| lambda. The paper's code for the loss landscape and zero-shot
  "images"   x - a u, y as it is. The paper's code for the fairness table
"""
import numpy as np

from mcd_jax.evals import entries

FORMS = ("lambda", "delta", "images")


def unit(x: np.ndarray) -> np.ndarray:
    """Rows of (n, D) scaled to length 1, float64; a zero row stays zero."""
    return entries.unit(x, np.float64)


def vector(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Mean of x (n, D) minus mean of y (m, D): (D,)."""
    return np.mean(x, axis=0, dtype=np.float64) - np.mean(y, axis=0, dtype=np.float64)


def distance(x: np.ndarray, y: np.ndarray, along: np.ndarray | None = None) -> float:
    """Length of the gap vector, in [0, 2] for unit rows; negative where the gap points against `along` (D,), if that is given.

    With `along` the gap vector before a move, the sign says whether the move went past the closed gap to the other side.
    """
    gap = vector(x, y)
    return float(np.linalg.norm(gap)) * (-1.0 if along is not None and float(gap @ along) < 0 else 1.0)


def move(x: np.ndarray, y: np.ndarray, amount: float, along: np.ndarray, form: str = "lambda",
         normalise: bool = True) -> tuple[np.ndarray, np.ndarray]:
    """Both clouds moved by `amount` along the gap vector: (x', y'), float64.

    Args:
      x, y: (n, D), (m, D) unit rows.
      amount: 0 changes nothing; above 0 narrows the gap, below 0 widens it.
      along: (D,) the gap vector, `vector` of these rows or of others (a reference set).
      form: one of `FORMS`.
      normalise: make the rows unit again. False shows the move alone.

    Raises:
      ValueError: an unknown form, or a gap of length 0 where its direction is asked for.
    """
    x, y, along = (np.asarray(v, np.float64) for v in (x, y, along))
    if form not in FORMS:
        raise ValueError(f"form={form!r} is none of {', '.join(FORMS)}")
    step = amount * (along if form == "lambda" else _direction(along) * (0.5 if form == "delta" else 1.0))
    if amount == 0:
        return x, y
    x, y = x - step[None], y if form == "images" else y + step[None]
    return (unit(x), y if form == "images" else unit(y)) if normalise else (x, y)


def rotation(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """The orthogonal matrix W (D, D) that brings the rows y @ W.T nearest to x (orthogonal Procrustes); rows are pairs.

    W = U V.T with U S V.T the singular value decomposition of x.T @ y (the paper's amended initialisation).
    """
    u, _, vt = np.linalg.svd(np.asarray(x, np.float64).T @ np.asarray(y, np.float64))
    return u @ vt


def _direction(along):
    length = np.linalg.norm(along)
    if length == 0:
        raise ValueError("the gap vector has length 0: there is no direction to move in")
    return along / length
