"""What every two-tower method shares: the towers of a config, their rows of randomness, the embedding head, common metrics."""
import jax
import jax.numpy as jnp

from mcd_jax.losses import contrastive
from mcd_jax.models import towers as towers_lib


def towers_of(config):
    """The `Towers` of a resolved config (`config.model.inputs` holds what the data pipeline decides)."""
    model = config.model.to_dict()
    return towers_lib.make({k: v for k, v in model.items() if k != "inputs"}, **model["inputs"])


def live(config, *terms):
    """Whether any of the terms has a weight other than the constant 0, so that its part of the forward pass is worth building."""
    return any(config.objective.weights.get(term, 0.0) != 0 for term in terms)


def path_noise(towers, key, batch, *names):
    """Rows of uniforms for drop path, drawn for the whole batch so that they don't depend on microbatches or mesh.

    Args:
      towers: `Towers`; a tower without drop path gets no rows.
      key: random key.
      batch: global rows B.
      names: views of the image tower, in a fixed order; the text tower's rows are named "text".

    Returns:
      dict "<name>/noise" -> f32 (B, depth).
    """
    depths = {name: towers.path_depth["image"] for name in names} | {"text": towers.path_depth["text"]}
    return {f"{name}/noise": jax.random.uniform(jax.random.fold_in(key, i), (batch, depth))
            for i, (name, depth) in enumerate(depths.items()) if depth}


def embed_head(towers):
    """The head "embed": unit `image`, `text` and raw `image_raw`, `text_raw` of the modalities in the batch, each f32 (B, D)."""
    def embed(params, memory, batch):
        out = {}
        if "image" in batch:
            encoded = towers.image(params, batch["image"])
            out |= {"image": encoded["z"], "image_raw": encoded["raw"]}
        if "text" in batch:
            encoded = towers.text(params, batch["text"])
            out |= {"text": encoded["z"], "text_raw": encoded["raw"]}
        return out
    return embed


def metrics(form):
    """The metrics of every two-tower method; `form` as the contrastive losses take it."""
    return {"logit_scale": lambda out: out["scale"],
            "accuracy": lambda out: contrastive.accuracy(out["image"], out["text"], form)}


def mean_over_views(fn, views):
    """Mean of `fn(view)` over a tuple of views, f32 ()."""
    return jnp.mean(jnp.stack([fn(view) for view in views]))
