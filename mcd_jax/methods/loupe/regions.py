"""Regions of an image: boxes with confidences from its tokens, and the tokens that a box covers.

A reconstruction of LOUPE's region generation (arXiv 2208.02515), which is known only as "YOLO-like": around the cell of every token
stand boxes of some fixed shapes (anchors), a small network gives each a confidence and, where geometry is learned, moves and scales
it; the M most confident are kept. A region is the tokens whose cells have their centre in the box. Boxes are (left, top, right,
bottom) as shares of the image's sides.
"""
from collections.abc import Callable, Sequence
import functools
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

STRETCH = 2.0   # a learned box is at most this many times larger or smaller than its anchor, on each axis


class Regions(NamedTuple):
    """init: (key) -> params; apply: (params, tokens (B, N, W)) -> dict of "boxes" (B, M, 4), "logit" (B, M), "cover" bool (B, M, N)
    and, with learned geometry, "soft" (B, M): the mean of the soft cover over the tokens of the region."""
    init: Callable[[jax.Array], dict]
    apply: Callable[..., dict]


class _Head(nn.Module):
    hidden: int
    anchors: int
    moved: bool

    @nn.compact
    def __call__(self, tokens):
        x = nn.LayerNorm(name="norm")(tokens)
        x = nn.gelu(nn.Dense(self.hidden, name="in")(x))
        logit = nn.Dense(self.anchors, name="confidence")(x)
        if not self.moved:
            return logit, None
        move = nn.Dense(4 * self.anchors, kernel_init=nn.initializers.normal(1e-3), name="box")(x)
        return logit, move.reshape(*move.shape[:-1], self.anchors, 4)


def make(tokens: tuple[int, int], hidden: int, anchors: Sequence[tuple[float, float]], count: int, moved: bool = False,
         softness: float = 0.5) -> Regions:
    """The region head of an image tower.

    Args:
      tokens: (N, W) of the tower's "tokens", N a square grid in row-major order.
      hidden: width of the two-layer network.
      anchors: ((width, height), ...), shares of the image.
      count: M, how many are kept.
      moved: whether the network moves its boxes; else they are the anchors, and only confidences learn.
      softness: width of the soft cover's edges, in cells.

    Raises:
      ValueError: tokens that are no square grid, or fewer boxes than are to be kept.
    """
    cells, width = tokens
    side = grid_side(cells)
    if count > cells * len(anchors) or count < 1:
        raise ValueError(f"config.objective.regions={count}: a grid of {cells} cells with {len(anchors)} anchors has "
                         f"{cells * len(anchors)} boxes, of which so many can't be kept")
    head = _Head(hidden, len(anchors), moved)
    centres, shapes = cell_centres(side), np.asarray(anchors, np.float32)

    def apply(params, x):
        logit, move = head.apply({"params": params}, x.astype(jnp.float32))
        logit = logit.reshape(len(x), -1)
        _, place = jax.lax.top_k(jax.lax.stop_gradient(logit), count)
        take = functools.partial(jnp.take_along_axis, indices=place, axis=1)
        cell, anchor = place // len(anchors), place % len(anchors)
        middle, size = jnp.asarray(centres)[cell], jnp.asarray(shapes)[anchor]
        if moved:
            move = jnp.take_along_axis(move.reshape(len(x), -1, 4), place[:, :, None], axis=1)
            middle = middle + (jax.nn.sigmoid(move[..., :2]) - 0.5) / side        # stays in its cell
            size = size * STRETCH ** jnp.tanh(move[..., 2:])
        boxes = jnp.concatenate([middle - size / 2, middle + size / 2], axis=-1)
        covered = cover(jax.lax.stop_gradient(boxes), side) | (cell[:, :, None] == jnp.arange(cells)[None, None])
        out = {"boxes": jnp.clip(boxes, 0.0, 1.0), "logit": take(logit), "cover": covered}
        if moved:
            weight = soft_cover(boxes, side, softness)
            out["soft"] = jnp.sum(weight * covered, axis=2) / jnp.sum(covered, axis=2)
        return out

    return Regions(init=lambda key: head.init(key, jnp.zeros((1, cells, width)))["params"], apply=apply)


def grid_side(cells: int) -> int:
    """Cells on the side of a square grid of so many.

    Raises:
      ValueError: it is no square.
    """
    side = round(cells ** 0.5)
    if side * side != cells:
        raise ValueError(f"config.model.image gives {cells} tokens, which is no square grid: regions need one")
    return side


def cell_centres(side: int) -> np.ndarray:
    """(side * side, 2) float32: (x, y) of the cells' centres, row-major, in (0, 1)."""
    line = (np.arange(side) + 0.5) / side
    y, x = np.meshgrid(line, line, indexing="ij")
    return np.stack([x.reshape(-1), y.reshape(-1)], axis=1).astype(np.float32)


def cover(boxes: jax.Array, side: int) -> jax.Array:
    """bool (..., side * side): the cells whose centre lies in the boxes (..., 4)."""
    centres, low, high = _corners(boxes, side)
    return jnp.all((centres >= low) & (centres <= high), axis=-1)


def soft_cover(boxes: jax.Array, side: int, softness: float) -> jax.Array:
    """(..., side * side) in (0, 1): how much the boxes cover each cell, by windows with sigmoid edges of `softness` cells."""
    centres, low, high = _corners(boxes, side)
    scale = side / softness
    return jnp.prod(jax.nn.sigmoid((centres - low) * scale) * jax.nn.sigmoid((high - centres) * scale), axis=-1)


def keep_cells(pixels: jax.Array, masks: jax.Array, mean: float) -> jax.Array:
    """Images (R, H, W, 3) with the cells that masks bool (R, S, N) leave out at the mean colour, which towers take as 0.

    mean: config.model.mean, one number or one per channel, of pixels in [0, 1].

    Returns:
      float32 (R, S, H, W, 3), in [0, 255].

    Raises:
      ValueError: cells that don't divide the image.
    """
    count, height, width, channels = pixels.shape
    side = grid_side(masks.shape[-1])
    if height % side or width % side:
        raise ValueError(f"images of {height}x{width} px can't be cut into the {side}x{side} cells of the image tower's tokens: "
                         "config.objective.masking='input' needs a size that they divide, or use 'tokens'")
    cells = pixels.astype(jnp.float32).reshape(count, 1, side, height // side, side, width // side, channels)
    grey = 255 * jnp.broadcast_to(jnp.asarray(mean, jnp.float32), (channels,)).reshape(1, 1, 1, 1, 1, 1, channels)
    seen = masks.reshape(count, -1, side, 1, side, 1, 1)
    return jnp.where(seen, cells, grey).reshape(count, -1, height, width, channels)


def _corners(boxes, side):
    """Cell centres (..., N, 2), and the boxes' first and last corners (..., 1, 2)."""
    centres = cell_centres(side)
    return jnp.asarray(centres.reshape(*[1] * (boxes.ndim - 1), *centres.shape)), boxes[..., None, :2], boxes[..., None, 2:]
