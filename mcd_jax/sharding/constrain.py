"""Where activations and parameters lie on the mesh inside models: by config.sharding, one layer whole at a time.

The rules are ambient, as the mesh is (`jax.set_mesh`): who builds an objective puts its functions under them (`under_rules`), who
applies a network says where its parameters stand (`params_at`), and a layer asks by the path of its own. Without rules only experts
are taken to be split; what no rule matches is left to the compiler.
"""
from collections.abc import Callable, Sequence
import contextlib
import contextvars
from functools import partial, wraps
from typing import Any

import jax
from jax.sharding import PartitionSpec

from mcd_jax.sharding import mesh as mesh_lib
from mcd_jax.sharding import rules as rules_lib

_RULES = contextvars.ContextVar("rules", default=(("(.*/)?experts/.*", "expert"), (".*", "replicate")))
_ROOT = contextvars.ContextVar("root", default="")


def under_rules(rules: Sequence, fn: Callable) -> Callable:
    """`fn` as a function that is traced with the rules of config.sharding in force, pairs of (regex, rule)."""
    @wraps(fn)
    def ruled(*args, **kwargs):
        with _set(_RULES, tuple(rules)):
            return fn(*args, **kwargs)
    return ruled


def params_at(path: str) -> contextlib.AbstractContextManager:
    """Context: the network that is applied within has its parameters at `path`, such as "image", of the model's."""
    return _set(_ROOT, path)


@contextlib.contextmanager
def _set(variable, value):
    token = variable.set(value)
    try:
        yield
    finally:
        variable.reset(token)


def shard_batch(x: jax.Array) -> jax.Array:
    """x with its first axis split over the batch axes of the ambient mesh (`jax.set_mesh`); the others are left to the compiler.

    Axes that a surrounding `shard_map` made manual are left out. Without a mesh, or when the first axis can't be split evenly,
    it is x itself.
    """
    axes, devices = mesh_lib.ambient_batch_axes()
    if not axes or x.shape[0] % devices:
        return x
    free = [PartitionSpec.UNCONSTRAINED] * (x.ndim - 1)
    return jax.lax.with_sharding_constraint(x, PartitionSpec(axes, *free))


def placement(path: str, shape: Sequence[int], ends: bool = False) -> tuple[PartitionSpec, PartitionSpec]:
    """(stored, used): the PartitionSpecs of a parameter by the ambient rules and mesh, of axes with several devices.

    While it is used it is whole over the axes that carry the batch; over tensor, and over expert if it is of experts, it stays as
    it is stored.

    Args:
      path: from the model's root, such as "image/block_0/mlp/in/kernel"; with `ends` it may begin earlier, as in memory.
      shape: of the whole array.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return PartitionSpec(), PartitionSpec()
    rule = rules_lib.first(_RULES.get(), path, ends)
    spec = mesh_lib.fitting_spec("replicate" if rule is None else rule, shape, mesh)
    stored = mesh_lib.on_axes(spec, [axis for axis, size in mesh.shape.items() if size > 1])
    return stored, mesh_lib.on_axes(stored, ("tensor", "expert") if "experts" in path.split("/") else ("tensor",))


def rooted(path: str) -> str:
    """The path from the model's root of a parameter that the network which is being applied has at `path`."""
    return "/".join(filter(None, (_ROOT.get(), path)))


def gather_params(params: Any, path: str, dtype: Any, depth: int = 0) -> Any:
    """A layer's parameters (a tree of float32) brought together from where the rules have put them, matrices already in `dtype`.

    Called inside the layer, and inside what is rematerialised: one layer at a time is whole, and travels in the compute dtype. Its
    gradient goes back to the pieces as a sum that is scattered, where a plain constraint would make every device hold all of it.
    Parameters that the rules leave whole, and all inside a `shard_map` over the batch axes, are returned as they are. Experts, and
    what lies on the axis tensor, stay on their devices.

    Args:
      params: {"params": those of one layer}, a linen module's variables.
      path: of the layer within the network, such as "block_0".
      depth: how many layers a scan runs over, whose parameters are stored as one stack; 0: this layer's alone.
    """
    if not mesh_lib.ambient_batch_axes()[0]:
        return params

    def gather(keys, x):
        where, shape = rooted(f"{path}/{rules_lib.name(keys[1:])}"), (depth, *x.shape) if depth else x.shape
        stored, used = (PartitionSpec(*spec[bool(depth):]) for spec in placement(where, shape))
        return x if stored == used else _gather(x, stored, used, dtype if x.ndim > 1 else x.dtype)
    return jax.tree_util.tree_map_with_path(gather, params)


@partial(jax.custom_vjp, nondiff_argnums=(1, 2, 3))
def _gather(x, stored, used, dtype):
    return jax.lax.with_sharding_constraint(x.astype(dtype), used)


def _gather_backward(stored, used, dtype, _, gradient):
    return (jax.lax.with_sharding_constraint(gradient, stored).astype("float32"),)


_gather.defvjp(lambda x, stored, used, dtype: (_gather(x, stored, used, dtype), None), _gather_backward)
