"""Through which models say how activations lie on the mesh, and when split parameters come together."""
from functools import partial

import jax
from jax.sharding import PartitionSpec

from mcd_jax import mesh as mesh_lib


def shard_batch(x):
    """x with its first axis split over the batch axes of the ambient mesh (`jax.set_mesh`); the others are left to the compiler.

    Axes that a surrounding `shard_map` made manual are left out. Without a mesh, or when the first axis can't be split evenly,
    it is x itself.
    """
    axes, devices = mesh_lib.ambient_batch_axes()
    if not axes or x.shape[0] % devices:
        return x
    free = [PartitionSpec.UNCONSTRAINED] * (x.ndim - 1)
    return jax.lax.with_sharding_constraint(x, PartitionSpec(axes, *free))


def gather_params(params, dtype):
    """A layer's parameters (a tree of float32) brought together from the axis fsdp, matrices already in `dtype`.

    Called inside the layer, and inside what is rematerialised: one layer at a time is whole, and travels in the compute dtype. Its
    gradient goes back to the pieces as a sum that is scattered, where a plain constraint would make every device hold all of it.
    Without an axis fsdp, under tensor parallelism, or inside a `shard_map`, it is `params` itself. Experts stay on their devices.
    """
    mesh = jax.sharding.get_abstract_mesh()
    axes, _ = mesh_lib.ambient_batch_axes()
    if "fsdp" not in axes or mesh.shape["tensor"] > 1:
        return params

    def gather(path, x):
        whole = mesh_lib.held_spec(path, axes)
        spec = mesh_lib.spec("expert" if whole else "fsdp", x.shape, mesh)
        return x if spec == whole else _gather(x, spec, whole, dtype if x.ndim > 1 else x.dtype)
    return jax.tree_util.tree_map_with_path(gather, params)


@partial(jax.custom_vjp, nondiff_argnums=(1, 2, 3))
def _gather(x, spec, whole, dtype):
    return jax.lax.with_sharding_constraint(x.astype(dtype), whole)


def _gather_backward(spec, whole, dtype, _, gradient):
    return (jax.lax.with_sharding_constraint(gradient, spec).astype("float32"),)


_gather.defvjp(lambda x, spec, whole, dtype: (_gather(x, spec, whole, dtype), None), _gather_backward)
