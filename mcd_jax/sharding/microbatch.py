"""Exact microbatching of an encoder: the loss sees the whole batch, the encoder k slices one after another."""
from functools import partial

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from mcd_jax.sharding import constrain
from mcd_jax.sharding import mesh as mesh_lib
from mcd_jax.sharding import rules as rules_lib

KEPT = "kept"   # jax.ad_checkpoint.checkpoint_name of values that the backward pass reads rather than computes again


def microbatched(f, k, group_size=1):
    """f over k slices of the rows, with the values and gradients of one call.

    f(params, memory, rows, keys) -> {"rows": tree, "sums": tree}; either may be missing. It treats each group of
    `group_size` consecutive rows by itself: "rows" leaves have one entry per row and are concatenated again, "sums"
    leaves are sums over rows or groups and are added up.

    The result is called as g(params, memory, rows, key=None), with rows a tree of (B, ...) arrays. Given a key, f
    gets typed random keys, one per group of its slice, each folded from `key` and the group's number in the global
    batch: what is drawn depends neither on k nor on the mesh. Without one it gets None.

    k = 1 is one plain call. Else a loop over the slices stores only what f returns, and what it named KEPT where the
    gradient needs it, and recomputes the rest (`jax.checkpoint`): GradCache (Gao et al. 2021) for any loss. Under an
    ambient mesh (`jax.set_mesh`) each device loops over its own rows; parameters and memory are gathered, but for experts that are
    split (`constrain.placement`), and cast to device-varying before the loop, so that their gradients are summed once, after it.

    Raises:
      ValueError: the rows of a device do not divide into k slices of whole groups.
    """
    def whole(params, memory, rows, key=None):
        return _each(f(params, memory, rows, _keys(key, rows, group_size)))
    if k == 1:
        return whole

    def loop(params, memory, rows, keys):
        def split(x):
            return x.reshape(k, x.shape[0] // k, *x.shape[1:])
        policy = jax.checkpoint_policies.save_only_these_names(KEPT)
        each = jax.checkpoint(lambda part: f(params, memory, *part), policy=policy)
        out = jax.lax.map(each, jax.tree.map(split, (rows, keys)))
        return _each(out, lambda x: x.reshape(-1, *x.shape[2:]), lambda x: jnp.sum(x, axis=0))

    def local(axes, held, params, memory, rows, keys):
        def vary(path, x):
            others = tuple(axis for axis in axes if axis not in held[rules_lib.name(path)])
            return jax.lax.pcast(x, others, to="varying") if others else x
        varying = jax.tree_util.tree_map_with_path(vary, (params, memory))
        return _each(loop(*varying, rows, keys), sums=lambda x: jax.lax.psum(x, axes))

    def sliced(params, memory, rows, key=None):
        axes, devices = mesh_lib.ambient_batch_axes()
        size = jax.tree.leaves(rows)[0].shape[0]
        if size % (devices * k * group_size):
            raise ValueError(f"a batch of {size} rows on {devices} devices does not divide into {k} microbatches"
                             + (f" of whole groups of {group_size}" if group_size > 1 else ""))
        keys = _keys(key, rows, group_size)
        if devices == 1:
            return loop(params, memory, rows, keys)
        split, one = PartitionSpec(axes), PartitionSpec()
        held = {path: mesh_lib.on_axes(constrain.placement(path, x.shape, ends=True)[1], axes)
                for path, x in rules_lib.paths((params, memory)).items()}
        specs = jax.tree.unflatten(jax.tree.structure((params, memory)), held.values())
        return jax.shard_map(partial(local, axes, held), in_specs=(*specs, split, split), axis_names=set(axes),
                             out_specs={"rows": split, "sums": one})(params, memory, rows, keys)
    return sliced


def _keys(key, rows, group_size):
    """Typed keys (groups,), or None."""
    if key is None:
        return None
    groups = jax.tree.leaves(rows)[0].shape[0] // group_size
    return jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(groups))


def _each(out, rows=lambda x: x, sums=lambda x: x):
    if not set(out) <= {"rows", "sums"}:
        raise ValueError(f"a microbatched function returns a dict of 'rows' and 'sums', not of {sorted(out)}")
    return {"rows": jax.tree.map(rows, out.get("rows", {})), "sums": jax.tree.map(sums, out.get("sums", {}))}
