"""One embedding of an image with a text: a sum of their embeddings, or the text tower reading the image's tokens.

"raw_sum" and "unit_sum" need no parameters: unit(image_raw + text_raw), as UniIR's score fusion, where the longer vector weighs
more; unit(unit(image) + unit(text)), where both weigh the same. "tower" is VISTA's way (`FlagOpen/FlagEmbedding`,
research/visual_bge/visual_bge/modeling.py, `encode_mm`): the image's tokens, projected, stand in the text after its first token,
and the text tower, with its own weights, reads both in another pass. Unlike VISTA, which also embeds an image alone by reading it
with an empty text, an image alone is embedded by its own tower.
"""
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from mcd_jax.models.towers import unit

KINDS = ("raw_sum", "unit_sum", "tower")


class Fusion(NamedTuple):
    """init: (key) -> {"proj": {"kernel", "bias"}, "position"}; apply: (params, image tokens (b, P, W)) -> what `Text` takes."""
    init: Callable[[jax.Array], dict]
    apply: Callable[..., dict]


def add(image: jax.Array, text: jax.Array, kind: str) -> jax.Array:
    """The fused raw embedding (b, D) float32 of two embeddings, raw for "raw_sum" and of any length for "unit_sum"."""
    if kind == "raw_sum":
        return image.astype(jnp.float32) + text.astype(jnp.float32)
    return unit(image) + unit(text)


def make(tokens: tuple[int, int], text_width: int) -> Fusion:
    """The projection of an image's tokens for a text tower.

    Args:
      tokens: (P, W) of the image tower's "tokens".
      text_width: width of the text tower.

    The text tower's own positions go on through the image, as in VISTA; "position" (P, text_width) follows its table, for a table
    that is as long as its longest text (BERT's is longer, and then the last rows of these stay unused). Projected tokens start at
    the length of embedded words.
    """
    count, width = tokens

    def init(key):
        k_kernel, k_position = jax.random.split(key)
        return {"proj": {"kernel": jax.random.normal(k_kernel, (width, text_width)) * 0.02 * width ** -0.5,
                         "bias": jnp.zeros((text_width,))},
                "position": jax.random.normal(k_position, (count, text_width)) * 0.01}

    def apply(params, x):
        kernel, bias = (params["proj"][name].astype(x.dtype) for name in ("kernel", "bias"))
        return {"tokens": x @ kernel + bias[None, None], "position": params["position"]}

    return Fusion(init, apply)
