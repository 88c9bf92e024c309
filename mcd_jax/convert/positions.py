"""Position embeddings of a square grid for another image size, as the code that a checkpoint comes from makes them.

open_clip (transformer.py, resize_pos_embed) and timm: torch's bicubic, antialiased. Hugging Face (interpolate_pos_encoding) and
ALBEF (models/vit.py, interpolate_pos_embed): torch's bicubic with align_corners=False, whose kernel has a=-0.75 and isn't widened
where the grid gets smaller. big_vision (models/vit.py, resample_posemb): `scipy.ndimage.zoom` of order 1, which lays the corners of
both grids on each other.
"""
import jax
import numpy as np

WAYS = {"antialiased": "bicubic with antialiasing, as open_clip and timm do",
        "bicubic": "bicubic without antialiasing, as Hugging Face and ALBEF do",
        "linear": "linear with the corners kept (scipy.ndimage.zoom), as big_vision does"}


def interpolated(position, count, way="antialiased"):
    """Position embeddings (prefix + g * g, W) of a square grid as float32 (count, W) of another; a class token's stays as it is.

    Args:
      way: a name of WAYS.

    Raises:
      ValueError: one of the grids isn't square.
    """
    prefix = 0 if round(len(position) ** 0.5) ** 2 == len(position) else 1
    old, new = round((len(position) - prefix) ** 0.5), round((count - prefix) ** 0.5)
    if old * old + prefix != len(position) or new * new + prefix != count:
        raise ValueError(f"{len(position)} position embeddings are no square grid that could become {count}")
    grid = np.asarray(position[prefix:], np.float32).reshape(old, old, -1)
    if way == "antialiased":
        grid = np.asarray(jax.image.resize(grid, (new, new, grid.shape[-1]), "cubic", antialias=True))
    elif way == "bicubic":
        matrix = _bicubic(old, new)
        grid = np.einsum("yi,xj,ijc->yxc", matrix, matrix, grid)
    else:
        from scipy import ndimage
        grid = ndimage.zoom(grid, (new / old, new / old, 1), order=1)
    return np.concatenate([position[:prefix], grid.reshape(new * new, -1).astype(np.float32)])


def _bicubic(old, new, a=-0.75):
    """The matrix (new, old) of torch's bicubic interpolation along one axis; what lies beyond an edge is its last value."""
    matrix = np.zeros((new, old))
    for i in range(new):
        place = (i + 0.5) * old / new - 0.5
        left = int(np.floor(place))
        for j in range(left - 1, left + 3):
            t = abs(place - j)
            weight = ((a + 2) * t ** 3 - (a + 3) * t ** 2 + 1 if t <= 1 else
                      a * t ** 3 - 5 * a * t ** 2 + 8 * a * t - 4 * a if t < 2 else 0.0)
            matrix[i, min(max(j, 0), old - 1)] += weight
    return matrix
