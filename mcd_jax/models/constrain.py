"""The one helper through which models say how activations lie on the mesh."""
import math

import jax
from jax.sharding import AxisType, PartitionSpec

from mcd_jax.mesh import BATCH_AXES


def shard_batch(x):
    """x with its first axis split over the batch axes of the ambient mesh (`jax.set_mesh`); the others are left to the compiler.

    Axes that a surrounding `shard_map` made manual are left out. Without a mesh, or when the first axis can't be split evenly,
    it is x itself.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return x
    axes = tuple(axis for axis, kind in zip(mesh.axis_names, mesh.axis_types, strict=True)
                 if axis in BATCH_AXES and kind == AxisType.Auto and mesh.shape[axis] > 1)
    if not axes or x.shape[0] % math.prod(mesh.shape[axis] for axis in axes):
        return x
    free = [PartitionSpec.UNCONSTRAINED] * (x.ndim - 1)
    return jax.lax.with_sharding_constraint(x, PartitionSpec(axes, *free))
