"""Transformer blocks: pre-normalised ones, shared by the image and the text tower, and the parts that other kinds are built of.

Parameters of block i live at `block_i/...`; with `scan=True` all blocks are one stacked tree at `blocks/...` whose leaves have a
leading depth axis (`stacked` and `unstacked` convert). Parameters are float32 and activations have `dtype`; softmax and the
statistics of norms are float32.
"""
import dataclasses
import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from mcd_jax.sharding.constrain import gather_params, shard_batch

ACTIVATIONS = {
    "gelu": functools.partial(jax.nn.gelu, approximate=False),
    "gelu_tanh": functools.partial(jax.nn.gelu, approximate=True),
    "quick_gelu": lambda x: x * jax.nn.sigmoid(1.702 * x),  # OpenAI's CLIP
    "relu": jax.nn.relu,
}

REMAT = {  # what the backward pass keeps of each block, beside its input
    "none": None,
    "full": jax.checkpoint_policies.nothing_saveable,
    "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
}


class Attention(nn.Module):
    """Multi-head attention of queries (B, N, W) over keys and values (B, M, W); mask (B or 1, 1, N or 1, M) is True where seen.

    `weigh`, if given, is applied to the weights, float32 (B, heads, N, M), before they meet the values: dropout, for example.
    """
    num_heads: int
    dtype: Any = jnp.float32
    out_std: float | None = None
    project: bool = True  # False leaves the output projection out (CLIP's ResNet pools this way: its projection is the tower's)
    std: float | None = None  # of the kernels at the start; None: width ** -0.5

    @nn.compact
    def __call__(self, queries, keys, mask=None, weigh=None):
        width = queries.shape[-1]
        dense = functools.partial(nn.Dense, width, dtype=self.dtype)
        split = functools.partial(_split_heads, num_heads=self.num_heads)
        std = self.std or width ** -0.5
        init = nn.initializers.normal(std)
        q = split(dense(kernel_init=init, name="q")(queries))
        k = split(dense(kernel_init=init, name="k")(keys))
        v = split(dense(kernel_init=init, name="v")(keys))
        if weigh is None:
            x = jax.nn.dot_product_attention(q, k, v, mask=mask)  # float32 logits and softmax
        else:
            logits = jnp.einsum("bnhd,bmhd->bhnm", q, k, preferred_element_type=jnp.float32) * q.shape[-1] ** -0.5
            weights = jax.nn.softmax(logits if mask is None else jnp.where(mask, logits, jnp.finfo(jnp.float32).min))
            x = jnp.einsum("bhnm,bmhd->bnhd", weigh(weights).astype(v.dtype), v)
        x = x.reshape(*x.shape[:2], width)
        if not self.project:
            return x
        return dense(kernel_init=nn.initializers.normal(self.out_std or std), name="out")(x)


class Mlp(nn.Module):
    """Two dense layers with an activation between them: (..., W) -> (..., W)."""
    hidden: int
    act: str = "gelu"
    dtype: Any = jnp.float32
    out_std: float | None = None
    std: float | None = None  # of the kernels at the start; None: by the width

    @nn.compact
    def __call__(self, x):
        width = x.shape[-1]
        in_init = nn.initializers.normal(self.std or (2 * width) ** -0.5)
        h = nn.Dense(self.hidden, dtype=self.dtype, kernel_init=in_init, name="in")(x)
        h = ACTIVATIONS[self.act](h)
        out_init = nn.initializers.normal(self.out_std or self.std or self.hidden ** -0.5)
        return nn.Dense(width, dtype=self.dtype, kernel_init=out_init, name="out")(h)


class Block(nn.Module):
    """x (B, N, W) -> (x', x'). `gain` (B,) scales what the block adds: 1, or 0 and 1/(1-p) under drop path."""
    num_heads: int
    mlp_dim: int
    depth: int
    act: str = "gelu"
    eps: float = 1e-5
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x, gain, mask):
        norm = functools.partial(nn.LayerNorm, epsilon=self.eps, dtype=self.dtype)
        out_std = (2 * self.depth * x.shape[-1]) ** -0.5  # as GPT-2 and CLIP: the residual stream keeps its scale with depth
        y = norm(name="ln1")(x)
        h = x + Attention(self.num_heads, self.dtype, out_std, name="attn")(y, y, mask)
        h = h + Mlp(self.mlp_dim, self.act, self.dtype, out_std, name="mlp")(norm(name="ln2")(h))
        if gain is not None:
            h = x + gain.astype(x.dtype)[:, None, None] * (h - x)
        h = shard_batch(h)
        return h, h


def layer_of(layer, owner, name, dtype, remat, depth=0):
    """The module `layer` as one of `owner`'s, called `name`: rematerialised as `remat` says, and inside of that gathered.

    Its parameters come together when it is called, see `constrain.gather_params`; while they are made there are none yet.

    Args:
      depth: how many a scan makes of it, or 0: it is no scan's.
    """
    if not owner.is_initializing():
        path = "/".join((*owner.path, name))
        layer = nn.map_variables(layer, "params", functools.partial(gather_params, path=path, dtype=dtype, depth=depth))
    return layer if remat == "none" else nn.remat(layer, policy=REMAT[remat], prevent_cse=not depth)


def run_blocks(x, *, owner, depth, num_heads, mlp_dim, act, eps, dtype, scan, remat, mask=None, gain=None, layer=Block, inputs=()):
    """Applies `depth` blocks inside the calling module's scope.

    Args:
      owner: the calling module.
      x: (B, N, W) activations.
      mask: None or bool (B or 1, 1, N or 1, N), True where attention may look.
      gain: None or float32 (depth, B), see `path_gain`.
      layer: the module of one block, with the fields of `Block`, called as layer(x, gain, mask, *inputs) -> (x', x').
      inputs: what all blocks get beside x, such as the tokens that they cross-attend to and their mask.

    Returns:
      The last activations and a dict "block_i" -> activations after block i.
    """
    block = functools.partial(layer_of, layer, owner, dtype=dtype, remat=remat)
    options = {"num_heads": num_heads, "mlp_dim": mlp_dim, "depth": depth, "act": act, "eps": eps, "dtype": dtype}
    if scan:
        layers = nn.scan(block("blocks", depth=depth), variable_axes={"params": 0}, split_rngs={"params": True}, length=depth,
                         in_axes=(0, nn.broadcast, *(nn.broadcast for _ in inputs)))
        x, after = layers(**options, name="blocks")(x, gain, mask, *inputs)
        return x, {f"block_{i}": after[i] for i in range(depth)}
    outputs = {}
    for i in range(depth):
        name = f"block_{i}"
        x, outputs[name] = block(name)(**options, name=name)(x, None if gain is None else gain[i], mask, *inputs)
    return x, outputs


def path_gain(path_noise, rate, depth):
    """Per-block gains (depth, B) of stochastic depth (Huang et al. 2016), or None.

    Block i is dropped for an example whose uniform number is below `rate * i / (depth - 1)`, else what it adds is divided by the
    probability to keep it, so that the expectation over the noise is the block itself. The numbers come from the caller, drawn for
    the whole batch: the result depends neither on microbatches nor on the mesh.
    """
    if path_noise is None or rate == 0:
        return None
    if path_noise.shape[1:] != (depth,):
        raise ValueError(f"path_noise has shape {path_noise.shape}; drop path over {depth} blocks needs (batch, {depth})")
    rates = rate * jnp.arange(depth) / max(depth - 1, 1)
    return jnp.where(path_noise >= rates[None], 1 / (1 - rates)[None], 0.0).T


MEANINGS = {   # of the options that many towers have, where they have no other
    "width": "numbers in a token", "depth": "blocks", "mlp_dim": "width inside the MLPs; 4 * width where only the width is given",
    "num_heads": "of attention, which divide the width", "patch_size": "pixels of a patch's side",
    "act": f"activation: {' | '.join(ACTIVATIONS)}", "eps": "of the normalisation",
    "drop_path": "share of examples for which the last block is left out in training; less of the blocks before it",
    "scan": "compile one block, not each: faster to compile, the parameters are stacked",
    "remat": f"what is computed again in the backward pass: {' | '.join(REMAT)}", "widths": "channels of each stage",
    "depths": "blocks of each stage", "heads": "of attention, in each stage", "window": "tokens of a window's side",
    "mlp_ratio": "width inside the MLPs as a multiple of the width", "features": "numbers that come out, before the projection",
    "mask_patch": "pixels of the side of the patches that masking keeps or leaves out", "stem_width": "channels of the stem",
    "experts": "some blocks have a mixture of experts in place of their MLP: its options; None: no block has",
    "stem_patch": "pixels of the side, and stride, of the patch stem",
}


def build(what, module, options, **given):
    """A linen module from `options`, the mapping at config.`what`, and what the caller gives.

    Raises:
      ValueError: an option that the module doesn't have or that the caller gives, or one of the wrong type.
    """
    known = {f.name: f.default for f in dataclasses.fields(module) if f.name not in ("parent", "name", *given)}
    for name, value in options.items():
        if name not in known:
            raise ValueError(f"config.{what} has no key {name!r}; {module.__name__} has {', '.join(sorted(known))}")
        kinds = (int, float) if isinstance(known[name], float) else type(known[name])
        if not isinstance(value, kinds) or isinstance(value, bool) != isinstance(known[name], bool):
            raise ValueError(f"config.{what}.{name}={value!r} should be a value like {known[name]!r}")
    return module(**options, **given)


def check(what, tower, least_depth=1):
    """Refuses a tower that can't be built: `what` is its config key, and the sentence names the option."""
    if tower.width < 1 or tower.depth < least_depth or tower.num_heads < 1 or tower.width % tower.num_heads:
        raise ValueError(f"config.{what}: width={tower.width} must be a multiple of num_heads={tower.num_heads}, "
                         f"and depth={tower.depth} at least {least_depth}")
    choose(what, "act", tower.act, ACTIVATIONS)
    choose(what, "remat", tower.remat, REMAT)
    if not 0 <= tower.drop_path < 1:
        raise ValueError(f"config.{what}: drop_path={tower.drop_path} must be in [0, 1)")


def choose(what, name, value, options):
    """Raises a ValueError that lists `options` unless `value` is one of them."""
    if value not in options:
        raise ValueError(f"config.{what}.{name}={value!r} is not one of {', '.join(map(repr, options))}")


def stacked(params):
    """A tower's unrolled parameters (`block_0/...`, `block_1/...`) as those of a tower with scan=True (`blocks/...`)."""
    names = sorted((k for k in params if k.startswith("block_")), key=lambda k: int(k[len("block_"):]))
    rest = {k: v for k, v in params.items() if k not in names}
    return {**rest, "blocks": jax.tree.map(lambda *leaves: jnp.stack(leaves), *[params[k] for k in names])}


def unstacked(params):
    """The inverse of `stacked`."""
    rest = {k: v for k, v in params.items() if k != "blocks"}
    depth = len(jax.tree.leaves(params["blocks"])[0])
    return {**rest, **{f"block_{i}": jax.tree.map(lambda leaf, i=i: leaf[i], params["blocks"]) for i in range(depth)}}


def _split_heads(x, num_heads):
    return x.reshape(*x.shape[:2], num_heads, x.shape[-1] // num_heads)
