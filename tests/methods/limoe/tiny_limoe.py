"""LIMoE at the size of a toy: one tower for both modalities."""
from cases import Case, slow_clip
import numpy as np

SHARED = dict(width=8, depth=2, num_heads=2, mlp_dim=16, patch_size=8, experts=dict(num=4, group_size=1))


def slow_spread(total):
    """Entropy of the average token, from a sum of probabilities (E,)."""
    p = np.asarray(total, np.float64) / np.sum(total)
    return -sum(x * np.log(x) for x in p if x > 0)


def slow_variation(total):
    total = np.asarray(total, np.float64)
    return np.mean((total - total.mean()) ** 2) / total.mean() ** 2


def over_layers(fn, *values):
    """Mean over layers of fn of the batch's sums, (E,) or (), for values (B, layers, ...)."""
    values = [np.asarray(value, np.float64) for value in values]
    return np.mean([fn(*(value[:, layer].sum(0) for value in values)) for layer in range(values[0].shape[1])])


SLOW_ROUTING = {
    "local_text": lambda out: over_layers(lambda x: x / np.sum(out["text/count"]), out["text/entropy"]),
    "global_text": lambda out: over_layers(lambda x: max(0.0, np.log(4.0) - slow_spread(x)), out["text/probability"]),
    "global_image": lambda out: over_layers(lambda x: max(0.0, np.log(3.9) - slow_spread(x)), out["image/probability"]),
    "importance": lambda out: over_layers(lambda x, y: slow_variation(x + y), out["image/probability"], out["text/probability"]),
    "load": lambda out: over_layers(lambda x, y: slow_variation(x + y), out["image/win"], out["text/win"]),
    "z": lambda out: np.mean([over_layers(lambda x, n=n: x / np.sum(out[f"{n}/count"]), out[f"{n}/squared_lse"])
                              for n in ("image", "text")])}
CASES = {"limoe": Case((4.11736, 165.50081, 0.0633, 13.66891), {"clip": slow_clip, **SLOW_ROUTING},
                       dict(least_image=3.9, least_text=4.0, statistics="batch"), dict(shared=SHARED), every_mesh=True,
                       mesh="2 fsdp x 2 expert", lockable=False)}   # one tower for both can't be locked by half
