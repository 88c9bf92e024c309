"""Figures as functions of a move along the gap, and which move to take.

The paper takes the best move on the test set. Here it is chosen on other data, and the test set's own best (the oracle) is given
beside it: the best of many tries on the data that judges them is too good.
"""
from collections.abc import Callable, Sequence

import numpy as np

from mcd_jax.methods.gap import shift

LAMBDAS = tuple(round(float(v), 2) for v in np.arange(-0.75, 1.001, 0.05))


def curve(image: np.ndarray, text: np.ndarray, score: Callable, amounts: Sequence[float] = LAMBDAS, along: np.ndarray | None = None,
          form: str = "lambda") -> dict:
    """Figures after each move.

    Args:
      image: (n, D) unit rows; text: (m, D).
      score: (image, text), float32 unit rows -> {figure: float}.
      amounts, form: as `shift.move` takes them.
      along: (D,) the gap vector; None: that of these rows.

    Returns:
      {"amount": [...], "gap": [...] the signed distance recomputed after the move, "figures": {figure: [...]}}.
    """
    along = shift.vector(image, text) if along is None else along
    gaps, rows = [], []
    for amount in amounts:
        moved = shift.move(image, text, float(amount), along, form)
        gaps.append(shift.distance(*moved, along))
        rows.append(score(*(side.astype(np.float32) for side in moved)))
    names = dict.fromkeys(name for row in rows for name in row)
    return {"amount": [float(a) for a in amounts], "gap": gaps, "figures": {k: [row.get(k) for row in rows] for k in names}}


def best(found: dict, names: Sequence[str]) -> int:
    """The place in a `curve` at which the mean of the figures `names` is highest; of equals the smallest move."""
    values = np.mean([found["figures"][name] for name in names], axis=0)
    order = sorted(range(len(values)), key=lambda i: (-values[i], abs(found["amount"][i])))
    return order[0]


def compare(found: dict, place: int) -> dict:
    """{figure: {"default", "chosen", "oracle", "oracle_amount"}} of a `curve`: no move, the one at `place`, and the best there is.

    Raises:
      ValueError: the curve has no amount 0.
    """
    if 0.0 not in found["amount"]:
        raise ValueError(f"amounts {found['amount']} have no 0, which is the default")
    zero, result = found["amount"].index(0.0), {}
    for name, values in found["figures"].items():
        top = best(found, [name])
        result[name] = {"default": values[zero], "chosen": values[place], "oracle": values[top],
                        "oracle_amount": found["amount"][top]}
    return result
