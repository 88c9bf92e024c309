"""Transformer blocks over one or several sequences with the same weights; the MLP of some is a mixture of experts.

Each sequence attends to itself alone. In a mixture the tokens of all sequences of a row stand in one queue, the first sequence
first, and compete for the same places. A network sees nothing but tokens: it isn't told which sequence they are of (LIMoE,
arXiv 2206.02770, section 2).
"""
import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from mcd_jax.models import moe
from mcd_jax.models.transformer import Attention, Mlp, layer_of, run_blocks
from mcd_jax.sharding.constrain import shard_batch


class MixedBlock(nn.Module):
    """parts, a tuple of (B, N_i, W), and keys, one for each group or None -> (parts', what the router did or None)."""
    num_heads: int
    mlp_dim: int
    depth: int
    experts: Any                 # moe.Options, or None for a plain MLP
    act: str = "gelu"
    eps: float = 1e-5
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, parts, keys, masks):
        norm = functools.partial(nn.LayerNorm, epsilon=self.eps, dtype=self.dtype)
        ln1, ln2 = norm(name="ln1"), norm(name="ln2")
        out_std = (2 * self.depth * parts[0].shape[-1]) ** -0.5
        attend = Attention(self.num_heads, self.dtype, out_std, name="attn")
        seen = [ln1(x) for x in parts]
        parts = [x + attend(y, y, mask) for x, y, mask in zip(parts, seen, masks, strict=True)]
        if self.experts is None:
            mlp = Mlp(self.mlp_dim, self.act, self.dtype, out_std, name="mlp")
            return tuple(shard_batch(x + mlp(ln2(x))) for x in parts), None
        sizes = tuple(x.shape[1] for x in parts)
        mixture = moe.Mixture(self.experts, self.mlp_dim, self.act, self.dtype, out_std, name="moe")
        y, report = mixture(jnp.concatenate([ln2(x) for x in parts], axis=1), sizes, keys)
        ends = [sum(sizes[:i]) for i in range(1, len(sizes))]
        return tuple(shard_batch(x + given) for x, given in zip(parts, jnp.split(y, ends, axis=1), strict=True)), report


def run_mixed(parts, keys, *, owner, depth, num_heads, mlp_dim, act, eps, dtype, remat, experts, masks=None):
    """Applies `depth` blocks, named block_i, inside the calling module's scope.

    Args:
      owner: the calling module.
      parts: tuple of (B, N_i, W) activations. masks: for each None or bool (B or 1, 1, N_i or 1, N_i).
      keys: typed keys (G,), one for each group of consecutive rows in training; None in evaluation.
      experts: moe.Options, or None: no block has a mixture.

    Returns:
      The last activations, and a dict of what the routers did, (B, layers, modalities, ...), empty without mixtures.
    """
    block = functools.partial(layer_of, MixedBlock, owner, dtype=dtype, remat=remat)
    mixtures = moe.mixture_layers(experts, depth) if experts else ()
    options = {"num_heads": num_heads, "mlp_dim": mlp_dim, "depth": depth, "act": act, "eps": eps, "dtype": dtype}
    reports = []
    for i in range(depth):
        mine = None if keys is None else jax.vmap(jax.random.fold_in, (0, None))(keys, i)
        name = f"block_{i}"
        parts, report = block(name)(**options, experts=experts if i in mixtures else None, name=name)(
            parts, mine, masks or (None,) * len(parts))
        if report is not None:
            reports.append(report)
    return parts, {name: jnp.stack([report[name] for report in reports], axis=1) for name in (reports[0] if reports else ())}


def run_either(x, keys, *, experts, scan=False, mask=None, gain=None, **options):
    """`run_blocks` of one sequence, or, with experts, `run_mixed`: (x, {"routing": sums of the row's tokens, (B, layers, ...)})."""
    if experts is None:
        return run_blocks(x, scan=scan, mask=mask, gain=gain, **options)
    (x,), routing = run_mixed((x,), keys, experts=experts, masks=(mask,), **options)
    return x, {"routing": jax.tree.map(lambda value: value[:, :, 0], routing)}
