"""The device mesh, which rows of the batch live where, and regex rules that place parameters on it.

Axes, outermost first: slice (over the data-centre network), data, fsdp, expert, tensor. All but tensor carry the batch.
"""
import math

import jax
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
import numpy as np

from mcd_jax.sharding import rules as rules_lib

AXES = ("slice", "data", "fsdp", "expert", "tensor")
BATCH_AXES = AXES[:-1]


def make(config, devices=None):
    """The mesh of `config.mesh`: axis -> size, absent axes are 1 and one axis may be -1, which takes what is left.

    Args:
      config: mapping with keys out of AXES and int values.
      devices: the devices to use, all of them; None: every device of every process.

    Raises:
      ValueError: an unknown axis, or sizes that do not multiply out to the number of devices.
    """
    devices = jax.devices() if devices is None else list(devices)
    given = dict(config.items())
    for axis, size in given.items():
        if axis not in AXES:
            raise ValueError(f"unknown key config.mesh.{axis}: the axes are {', '.join(AXES)}")
        if isinstance(size, bool) or not isinstance(size, int) or (size < 1 and size != -1):
            raise ValueError(f"config.mesh.{axis}={size!r} must be a whole number from 1, or -1 for what is left")
    sizes = {axis: given.get(axis, 1) for axis in AXES}
    free = [axis for axis in AXES if sizes[axis] == -1]
    fixed = math.prod(size for size in sizes.values() if size != -1)
    text = " x ".join(f"{axis} {size}" for axis, size in sizes.items() if size not in (1, -1)) or "1"
    count = len(devices)
    if len(free) > 1:
        raise ValueError(f"config.mesh: {' and '.join(free)} are both -1; only one axis can take what is left")
    if free and count % fixed:
        fitting = ", ".join(str(n) for n in range(1, count + 1) if count % n == 0)
        raise ValueError(f"config.mesh: {text} = {fixed} does not divide the {count} devices: beside {free[0]}=-1 the "
                         f"other axes must multiply to one of {fitting}")
    if not free and fixed != count:
        raise ValueError(f"config.mesh: {text} = {fixed}, but there are {count} devices: the axes must multiply to "
                         f"{count}, or one of them be -1")
    if free:
        sizes[free[0]] = count // fixed
    shape, types = tuple(sizes.values()), (AxisType.Auto,) * len(AXES)
    if len({getattr(d, "slice_index", None) for d in devices}) == sizes["slice"] > 1:
        inner, outer = (1, *shape[1:]), (shape[0],) + (1,) * (len(AXES) - 1)
        grid = mesh_utils.create_hybrid_device_mesh(inner, outer, devices, allow_split_physical_axes=True)
        return Mesh(grid, AXES, axis_types=types)
    grid = mesh_utils.create_device_mesh(shape, devices, allow_split_physical_axes=True)
    return Mesh(grid, AXES, axis_types=types)


def batch_devices(mesh):
    """Into how many parts the batch is split."""
    return math.prod(mesh.shape[axis] for axis in BATCH_AXES)


def ambient_batch_axes():
    """(axes, devices): the axes of the ambient mesh that carry the batch, have several devices, and are the compiler's to place.

    () and 1 without a mesh, and inside a `shard_map` over them.
    """
    mesh = jax.sharding.get_abstract_mesh()
    axes = tuple(axis for axis, kind in zip(mesh.axis_names, mesh.axis_types, strict=True)
                 if axis in BATCH_AXES and kind == AxisType.Auto and mesh.shape[axis] > 1)
    return axes, math.prod(mesh.shape[axis] for axis in axes)


def on_axes(place, axes):
    """What a PartitionSpec says of `axes`, without the others."""
    def kept(entry):
        some = tuple(axis for axis in ((entry,) if isinstance(entry, str) else entry or ()) if axis in axes)
        return some[0] if len(some) == 1 else some or None
    entries = [kept(entry) for entry in place]
    while entries and entries[-1] is None:
        entries.pop()
    return PartitionSpec(*entries)


def batch_sharding(mesh):
    """Sharding of arrays whose first axis is the global batch."""
    return NamedSharding(mesh, PartitionSpec(BATCH_AXES))


def check_batch(batch_size, mesh, microbatches=1, group_size=1):
    """Refuses a global batch that devices and microbatches can't share in whole groups.

    Raises:
      ValueError: with the nearest sizes that would fit.
    """
    parts, group = batch_devices(mesh), group_size or 1
    unit = parts * microbatches * group
    if batch_size % unit:
        below, above = batch_size // unit * unit, -(-batch_size // unit) * unit
        why = f"{parts} batch devices x {microbatches} microbatches" + (f" x groups of {group}" if group > 1 else "")
        raise ValueError(f"config.batch_size={batch_size} is not divisible by {why} = {unit}; "
                         f"{f'{below} or ' if below else ''}{above} would fit")


def local_rows(batch_size, mesh):
    """Sorted global row numbers, int64 (n,), that this process's devices hold of a batch of `batch_size` rows."""
    indices = batch_sharding(mesh).addressable_devices_indices_map((batch_size,)).values()
    return np.unique(np.concatenate([np.arange(batch_size)[index] for index in indices]))


def to_global(batch, mesh):
    """Global arrays (B, ...) from a dict of this process's numpy rows (n, ...), in the order of `local_rows`.

    Raises:
      ValueError: the n rows are not as many for each device that this process feeds.
    """
    parts, sharding = batch_devices(mesh), batch_sharding(mesh)
    held, n = len(local_rows(parts, mesh)), len(next(iter(batch.values())))
    if n % held or any(len(x) != n for x in batch.values()):
        lengths = ", ".join(f"{key} {len(x)}" for key, x in batch.items())
        raise ValueError(f"rows of a batch must all be a multiple of this process's {held} parts: {lengths}")
    size = n // held * parts
    rows = local_rows(size, mesh)

    def place(x):
        def shard(index):
            start, stop, _ = index[0].indices(size)
            first = int(np.searchsorted(rows, start))
            return x[first:first + stop - start]
        return jax.make_array_from_callback((size, *x.shape[1:]), sharding, shard)
    return {key: place(x) for key, x in batch.items()}


def spec(rule, shape, mesh, path=""):
    """The PartitionSpec of an array of `shape` by one rule.

    Args:
      rule: "replicate"; "fsdp": the largest dimension that the axis fsdp divides is split over it, if there is one;
        "expert": the first dimension, which counts experts, over the axis expert, and of the others one as by "fsdp";
        or a tuple that names None, an axis or a tuple of axes for each leading dimension.

    Raises:
      ValueError: no such rule, axis or dimension, or a dimension that the axes do not divide.
    """
    if rule == "replicate":
        return PartitionSpec()
    if rule == "fsdp":
        n = mesh.shape.get("fsdp", 1)   # no axis at all where there is no ambient mesh
        fitting = [i for i, size in enumerate(shape) if n > 1 and size and size % n == 0]
        best = max(fitting, key=lambda i: shape[i], default=None)
        return PartitionSpec() if best is None else PartitionSpec(*[None] * best, "fsdp")
    where = f"config.sharding: {rule!r} for {path} {tuple(shape)}"
    if rule == "expert":
        rule = ("expert", *spec("fsdp", shape[1:], mesh))
    if not isinstance(rule, (tuple, list)):
        raise ValueError(f"{where} must be 'replicate', 'fsdp', 'expert' or a tuple of axes and None")
    if len(rule) > len(shape):
        raise ValueError(f"{where} names {len(rule)} dimensions of {len(shape)}")
    entries = []
    for size, entry in zip(shape, rule, strict=False):
        axes = () if entry is None else (entry,) if isinstance(entry, str) else tuple(entry)
        for axis in axes:
            if axis not in AXES:
                raise ValueError(f"{where} names axis {axis!r}: the axes are {', '.join(AXES)}")
        parts = math.prod(mesh.shape.get(axis, 1) for axis in axes)
        if size % parts:
            raise ValueError(f"{where}: {entry!r} has {parts} devices, which do not divide {size}")
        entries.append(axes[0] if len(axes) == 1 else axes or None)
    return PartitionSpec(*entries)


def fitting_spec(rule, shape, mesh):
    """`spec`, or that of a whole array where the rule doesn't fit the shape."""
    try:
        return spec(rule, shape, mesh)
    except ValueError:
        return PartitionSpec()


def shardings(state, rules, mesh):
    """A tree of NamedShardings like `state`.

    Parameters follow the first matching rule, and all must match one. A leaf elsewhere whose path ends in that of a
    parameter (moments, a teacher, an average) follows the parameter's rule; any other follows the first rule that
    matches its path or an end of it ("memory/queue/image", "queue/image", "image"), or is replicated. A tuple that
    doesn't fit such a leaf replicates it too.

    Args:
      state: a tree with a field `params`, of arrays or their shapes.
      rules: pairs of (regex, rule), see `spec`.

    Raises:
      ValueError: a parameter without a rule, or a rule that doesn't fit it.
    """
    of_param = rules_lib.match(rules, state.params, "config.sharding", allow_unused=True)

    def place(path, leaf):
        parts = rules_lib.name(path).split("/")
        ends = ["/".join(parts[i:]) for i in range(len(parts))]
        if parts[0] == "params":
            return NamedSharding(mesh, spec(of_param[ends[1]], leaf.shape, mesh, ends[1]))
        rule = next((of_param[end] for end in ends if end in of_param), None)
        if rule is None:
            rule = rules_lib.first(rules, "/".join(parts), ends=True)
        return NamedSharding(mesh, fitting_spec(rule or "replicate", leaf.shape, mesh))
    return jax.tree_util.tree_map_with_path(place, state)


def table(params, rules, mesh):
    """(text of one line per parameter with shape, type, placement and bytes per device, one line of the totals)."""
    of_param = rules_lib.match(rules, params, "config.sharding", allow_unused=True)
    lines, here, everywhere = [("parameter", "shape", "type", "placement", "bytes/device")], 0, 0
    for path, leaf in rules_lib.paths(params).items():
        place = spec(of_param[path], leaf.shape, mesh, path)
        shape = NamedSharding(mesh, place).shard_shape(leaf.shape)
        size = math.prod(shape) * leaf.dtype.itemsize
        here, everywhere = here + size, everywhere + math.prod(leaf.shape) * leaf.dtype.itemsize
        where = " ".join("+".join(e) if isinstance(e, tuple) else e or "-" for e in place) or "replicated"
        lines.append((path, "x".join(map(str, leaf.shape)) or "()", str(leaf.dtype), where, f"{size:,}"))
    widths = [max(len(line[i]) for line in lines) for i in range(5)]
    rows = ["  ".join([*map(str.ljust, line[:4], widths), line[4].rjust(widths[4])]) for line in lines]
    axes = " x ".join(f"{axis} {size}" for axis, size in mesh.shape.items() if size > 1) or "1 device"
    count = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(params))
    return "\n".join(rows), f"{count:,} parameters on mesh {axes}: {here:,} of their {everywhere:,} bytes on each device"
