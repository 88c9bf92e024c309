"""A tower whose inputs are embeddings already: what `mcd-jax embed` stored, read by the pipe column('image_embedding').

It has no parameters, so heads on top of it train at the cost of the heads alone, by any objective of two towers:

    config.model = dict(image=dict(name="stored", width=512, proj="none"), text=dict(name="stored", width=512, proj="none"),
                        embed_dim=512)
    config.data.views = dict(image="column('image_embedding')", text="column('text_embedding')")

With proj="linear" a projection of the stored rows is trained, as on any tower.
"""
import flax.linen as nn
import jax.numpy as jnp

from mcd_jax.models import transformer


class Stored(nn.Module):
    """x (B, width) float32 -> {"pooled": x, "tokens" (B, 1, width)}, in float32 whatever the compute dtype is."""
    width: int = 0

    takes_rows = True    # its inputs are rows of numbers, not pixels or token ids
    path_depth = 0

    @nn.compact
    def __call__(self, x, keep_ids=None, path_noise=None):
        if x.ndim != 2 or x.shape[-1] != self.width or not jnp.issubdtype(x.dtype, jnp.floating):
            raise ValueError(f"a tower of stored embeddings of width {self.width} was given {x.dtype} {x.shape}: set its width to "
                             "that of the column that config.data.views names")
        if keep_ids is not None:
            raise ValueError("stored embeddings have no patches to leave out: keep all of them")
        x = x.astype(jnp.float32)
        return {"pooled": x, "tokens": x[:, None]}

    def num_patches(self, shape):
        return 1


TOWER = Stored   # its fields are keys of config.model


def make(options, **_):
    """The tower of `config.model.image` or `.text`; options: width, of the stored rows.

    Raises:
      ValueError: no width, or another option.
    """
    tower = transformer.build("model", Stored, options)
    if tower.width < 1:
        raise ValueError(f"config.model: a tower of stored embeddings needs their width: width={tower.width}")
    return tower
