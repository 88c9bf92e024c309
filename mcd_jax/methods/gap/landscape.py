"""The contrastive loss as a function of the gap and of the temperature (Liang et al., NeurIPS 2022, section 3).

The loss is the symmetric one, 1/2 [CE over rows + CE over columns] of scale * x @ y.T, with scale = 1 / temperature. (The paper's
notebook transposes twice and so shows the rows alone: `rows_only`.)
"""
from collections.abc import Sequence

import numpy as np

from mcd_jax.methods.gap import shift

SCALES = (100.0, 50.0, 30.0, 20.0, 10.0, 1.0)
AZIMUTHS = (-20.0, 0.0, 20.0, 40.0, 60.0, 80.0)


def contrastive(cosines: np.ndarray, scale: float, rows_only: bool = False) -> np.ndarray:
    """Loss of (..., N, N) cosines of image rows and text columns whose diagonal matches: (...)."""
    logits = scale * np.asarray(cosines, np.float64)
    own = np.einsum("...ii->...i", logits)

    def against(axis):
        top = logits.max(axis=axis, keepdims=True)
        log_sum = np.log(np.sum(np.exp(logits - top), axis=axis)) + np.squeeze(top, axis)
        return np.mean(log_sum - own, axis=-1)

    return against(-1) if rows_only else (against(-1) + against(-2)) / 2


def batch_losses(x: np.ndarray, y: np.ndarray, scales: Sequence[float], size: int = 50, rows_only: bool = False) -> list[float]:
    """Mean loss over batches of `size` consecutive pairs of unit rows x, y (n, D): list with one float per scale.

    Rows after the last full batch are left out, as in the paper; fewer than `size` rows are one batch.
    """
    size = min(size, len(x))
    count = len(x) // size
    x, y = (np.asarray(v, np.float64)[:count * size].reshape(count, size, -1) for v in (x, y))
    cosines = x @ y.swapaxes(1, 2)
    return [float(np.mean(contrastive(cosines, scale, rows_only))) for scale in scales]


def landscape(x: np.ndarray, y: np.ndarray, amounts: Sequence[float], scales: Sequence[float] = SCALES, form: str = "delta",
              size: int = 50, along: np.ndarray | None = None, rows_only: bool = False) -> dict:
    """The loss after each move along the gap.

    Args:
      x, y: (n, D) unit rows, pairs.
      amounts, form: moves, as `shift.move` takes them.
      scales: logit scales, 1 / temperature.
      size: pairs per batch.
      along: (D,) the gap vector; None: that of x and y.

    Returns:
      {"amount": [...], "gap": [...] the signed distance after the rows are made unit again, "scales": [...],
       "loss": one list per scale, "best": per scale the gap with the lowest loss}.
    """
    along = shift.vector(x, y) if along is None else along
    gaps, losses = [], []
    for amount in amounts:
        moved = shift.move(x, y, float(amount), along, form)
        gaps.append(shift.distance(*moved, along))
        losses.append(batch_losses(*moved, scales, size, rows_only))
    losses = np.transpose(losses)
    return {"amount": [float(a) for a in amounts], "gap": gaps, "scales": [float(s) for s in scales],
            "loss": losses.tolist(), "best": [gaps[i] for i in np.argmin(losses, axis=1)]}


def sphere(elevations: Sequence[float], scales: Sequence[float] = (1.0, 5.0, 35.0, 50.0, 100.0), mismatched: bool = True) -> dict:
    """The paper's simulation: six images on the equator of the unit sphere, their texts on the same meridians, raised.

    Args:
      elevations: angles of the texts above the equator, in degrees.
      mismatched: the first two texts are swapped, as if wrongly labelled.

    Returns:
      {"elevation": [...], "scales": [...], "loss": one list per scale}.
    """
    around = np.radians(AZIMUTHS)
    image = np.stack([np.cos(around), np.sin(around), np.zeros_like(around)], axis=1)
    order = [1, 0, 2, 3, 4, 5] if mismatched else [0, 1, 2, 3, 4, 5]
    up = np.radians(np.asarray(elevations, np.float64))[:, None]
    around = np.broadcast_to(around[order][None], (len(up), 6))
    text = np.stack([np.cos(around) * np.cos(up), np.sin(around) * np.cos(up), np.broadcast_to(np.sin(up), around.shape)], axis=-1)
    cosines = np.einsum("id,ejd->eij", image, text)
    return {"elevation": [float(e) for e in elevations], "scales": [float(s) for s in scales],
            "loss": [contrastive(cosines, scale).tolist() for scale in scales]}
