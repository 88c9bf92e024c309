"""Tables between our parameters and a foreign checkpoint's arrays, read in both directions.

A table is a list of rows: paths of ours, names of theirs, and a `Transform` between the arrays. `{i}` in a row stands for the
number of a block, and the row is repeated for each block that our parameters have. A name of theirs without `{i}` beside a path of
ours with it holds all blocks stacked on a leading axis. Every array on both sides must be covered by a row, or named by one that
says why it is left out; whatever else is missing, left over or of another shape is refused, all of it in one error.

Our parameters are always named as those of an unrolled tower (`image/block_3/...`); stacked ones (`image/blocks/...`, a tower with
scan=True) are cut apart first and put together again.
"""
from collections.abc import Callable
import re
from typing import NamedTuple

import ml_dtypes
import numpy as np

FLOATS = ("float32", "float16", "bfloat16")   # what a foreign parameter may be: float32 holds each of them exactly


class Transform(NamedTuple):
    """What happens to the arrays of a row. Shapes follow from the functions, which must work for any dtype.

    name: for messages.
    ours: (*arrays of theirs) -> list of arrays, one for each path of ours.
    theirs: (*arrays of ours) -> list of arrays, one for each name of theirs.
    """
    name: str
    ours: Callable
    theirs: Callable


class Row(NamedTuple):
    """One line of a table; make it with `row`, `constant` or `filled`."""
    ours: tuple
    theirs: tuple
    transform: Transform
    why: str = ""          # of what is left out
    value: object = None   # array that stands in for what is left out, of theirs ("constant") or of ours ("filled")
    kind: str = "both"     # both | constant | filled


def row(ours, theirs, transform=None):
    """Arrays `ours` (path or tuple of paths) are `theirs` (name or tuple of names) under `transform` (default: the same)."""
    return Row(_tuple(ours), _tuple(theirs), transform or same)


def constant(beside, theirs, value, why):
    """An array of theirs that we don't have: left out when read (and it may be absent), written as `value`.

    beside: path of ours (with `{i}` if theirs has it) that decides whether it is written; why: the reason, for people.
    """
    return Row(_tuple(beside), _tuple(theirs), same, why, np.asarray(value), "constant")


def filled(ours, value, why):
    """A parameter of ours that they don't have: `value` (a number) everywhere when read; refused when written unless it is that."""
    return Row(_tuple(ours), (), same, why, value, "filled")


# ---- transforms ------------------------------------------------------------------------------------------------------------------

def _pure(name, ours, theirs):
    """A transform of one array into one."""
    return Transform(name, lambda x: [ours(x)], lambda x: [theirs(x)])


def _rank(x, rank):
    if x.ndim != rank:
        raise ValueError(f"it has {x.ndim} axes, not {rank}")
    return x


same = _pure("same", lambda x: x, lambda x: x)
transpose = _pure("transpose", lambda x: _rank(x, 2).T, lambda x: _rank(x, 2).T)          # (out, in) <-> (in, out)
conv = _pure("conv", lambda x: _rank(x, 4).transpose(2, 3, 1, 0), lambda x: _rank(x, 4).transpose(3, 2, 0, 1))   # OIHW <-> HWIO
first = _pure("first", lambda x: _only(x, 0), lambda x: x[None])                          # (1, ...) <-> (...)
scalar = _pure("scalar", lambda x: x.reshape(()), lambda x: x.reshape(1))                 # (1,) <-> ()


def _only(x, axis):
    if x.ndim == 0 or x.shape[axis] != 1:
        raise ValueError(f"axis {axis} should be 1")
    return x[(slice(None),) * axis + (0,)]


def _patch_side(rows, channels=3):
    side = round((rows / channels) ** 0.5)
    if side * side * channels != rows:
        raise ValueError(f"{rows} inputs are no square patch of {channels} channels")
    return side


# a patch embedding: their convolution's kernel <-> our matrix (p * p * 3, W), rows in the order (y, x, channel)
patch_oihw = _pure("patch", lambda x: _rank(x, 4).transpose(2, 3, 1, 0).reshape(-1, x.shape[0]),
                   lambda x: x.reshape(_patch_side(len(x)), _patch_side(len(x)), 3, -1).transpose(3, 2, 0, 1))
patch_hwio = _pure("patch", lambda x: _rank(x, 4).reshape(-1, x.shape[3]),
                   lambda x: x.reshape(_patch_side(len(x)), _patch_side(len(x)), 3, -1))


def fused(parts):
    """One (parts * out, in) matrix of theirs <-> `parts` (in, out) kernels of ours: torch's in_proj_weight, timm's qkv and kv."""
    return Transform(f"fused({parts})", lambda x: [y.T for y in np.split(_rank(x, 2), parts)],
                     lambda *ys: [np.concatenate([y.T for y in ys])])


def fused_bias(parts):
    """One (parts * out,) vector of theirs <-> `parts` (out,) biases of ours."""
    return Transform(f"fused_bias({parts})", lambda x: np.split(_rank(x, 1), parts), lambda *ys: [np.concatenate(ys)])


def heads_out(heads):
    """flax's DenseGeneral to heads: kernel (in, H, out / H) or bias (H, out / H) of theirs <-> (in, out) or (out,) of ours."""
    return _pure(f"heads_out({heads})", lambda x: x.reshape(*x.shape[:-2], x.shape[-2] * x.shape[-1]),
                 lambda x: x.reshape(*x.shape[:-1], heads, x.shape[-1] // heads))


def heads_in(heads):
    """flax's DenseGeneral from heads: kernel (H, in / H, out) of theirs <-> (in, out) of ours."""
    return _pure(f"heads_in({heads})", lambda x: _rank(x, 3).reshape(-1, x.shape[-1]),
                 lambda x: x.reshape(heads, x.shape[0] // heads, x.shape[1]))


# ---- reading and writing ---------------------------------------------------------------------------------------------------------

def read(rows, theirs, abstract, where="the checkpoint"):
    """Our parameters out of a foreign checkpoint.

    Args:
      rows: the table.
      theirs: name -> numpy array.
      abstract: our parameter tree (nested dicts of anything with shape; stacked or unrolled): what the model has.
      where: the name of the checkpoint in messages.

    Returns:
      The tree of `abstract` as float32 numpy arrays.

    Raises:
      ValueError: everything that is missing, unexpected, or of the wrong shape or dtype, on both sides, listed.
    """
    stacked = flat(abstract)
    shapes = {path: tuple(x.shape) for path, x in _unstacked(stacked, lambda x: np.broadcast_to(np.int8(0), x.shape)).items()}
    found, used, wrong = {}, set(), []
    for line in _lines(rows, shapes):
        if line.kind == "constant":
            used.update(line.theirs)
            continue
        if line.kind == "filled":
            found[line.ours[0]] = np.full(shapes[line.ours[0]], line.value, np.float32)
            continue
        used.update(line.theirs)
        missing = [f"missing: {name} (for {', '.join(_short(line.ours))})" for name in line.theirs if name not in theirs]
        wrong += missing
        if not missing:
            arrays = [np.asarray(theirs[name]) for name in line.theirs]
            problems = _unfit(line, arrays, [shapes[path] for path in line.ours])
            wrong += problems
            if not problems:
                ours = line.transform.ours(*arrays)
                found.update({path: _float32(x) for path, x in zip(line.ours, ours, strict=True)})
    wrong += [f"unexpected: {name} {_describe(theirs[name])}" for name in sorted(theirs.keys() - used)]
    covered = {path for line in _lines(rows, shapes) if line.kind != "constant" for path in line.ours}
    wrong += [f"not in the table: our {path} {shape}" for path, shape in shapes.items() if path not in covered]
    _refuse(wrong, f"{where} does not fit this model")
    return nested(_stacked(found, stacked))


def write(rows, params, dtype="float32"):
    """A foreign checkpoint's arrays out of our parameters: the inverse of `read`.

    Args:
      rows: the table.
      params: our parameter tree (nested dicts of arrays; stacked or unrolled).
      dtype: of floating-point arrays: "float32" | "bfloat16" | "float16".

    Returns:
      dict name -> contiguous numpy array.

    Raises:
      ValueError: our parameters that no row covers, that can't be written, or that two rows would write, listed.
    """
    ours = _unstacked({path: np.asarray(x) for path, x in flat(params).items()}, lambda x: x)
    result, wrong, covered = {}, [], set()
    for line in _lines(rows, {path: x.shape for path, x in ours.items()}):
        if line.kind == "constant":
            written = {name: line.value for name in line.theirs}
        else:
            covered.update(line.ours)
            if line.kind == "filled":
                if np.any(ours[line.ours[0]] != line.value):
                    wrong.append(f"can't be written: our {line.ours[0]} is not {line.value} everywhere, and {line.why}")
                continue
            arrays = line.transform.theirs(*[ours[path] for path in line.ours])
            written = dict(zip(line.theirs, [np.ascontiguousarray(x).reshape(x.shape).astype(dtype_of(dtype)) for x in arrays],
                               strict=True))
        wrong += [f"written twice: {name}" for name in written if name in result]
        result.update(written)
    wrong += [f"not in the table: our {path} {x.shape}" for path, x in ours.items() if path not in covered]
    _refuse(wrong, "these parameters can't be written in this format")
    return result


def left_out(rows):
    """[(name, reason)] of what a table leaves out on either side."""
    return [(name, line.why) for line in rows if line.kind != "both"
            for name in (line.theirs if line.kind == "constant" else line.ours)]


def grouped(left_out):
    """[(name, reason)] with the names of one reason in one line: ("a, b and 14 more", reason)."""
    reasons = {}
    for name, why in left_out:
        reasons.setdefault(why, []).append(name)
    return [(", ".join(names[:2]) + (f" and {len(names) - 2} more" if len(names) > 2 else ""), why)
            for why, names in reasons.items()]


def dtype_of(name):
    """numpy's dtype "float32" | "float16" | "bfloat16"."""
    if name not in FLOATS:
        raise ValueError(f"dtype {name!r} is not one of {', '.join(FLOATS)}")
    return np.dtype(ml_dtypes.bfloat16 if name == "bfloat16" else name)


def _lines(rows, shapes):
    """The rows with `{i}` replaced, for the paths that our parameters have; stacked arrays of theirs as one line of all blocks."""
    for line in rows:
        if not any("{i}" in path for path in line.ours):
            if any(path in shapes for path in line.ours):
                yield line
            continue
        pattern = re.compile(re.escape(line.ours[0]).replace(re.escape("{i}"), r"(\d+)") + r"\Z")
        numbers = sorted(int(m[1]) for m in map(pattern.match, shapes) if m)
        each = [line._replace(ours=_number(line.ours, i), theirs=_number(line.theirs, i)) for i in numbers]
        if line.kind != "both" or any("{i}" in name for name in line.theirs):
            yield from each
        elif each:
            yield line._replace(ours=sum((one.ours for one in each), ()), transform=_blocks(line.transform, len(each)))


def _blocks(transform, count):
    """The transform of `count` blocks whose arrays of theirs are stacked on a leading axis."""
    def ours(*stacks):
        if any(len(x) != count for x in stacks):
            raise ValueError(f"it holds {len(stacks[0])} blocks, not {count}")
        return [y for i in range(count) for y in transform.ours(*[x[i] for x in stacks])]

    def theirs(*arrays):
        width = len(arrays) // count
        blocks = [transform.theirs(*arrays[i * width:(i + 1) * width]) for i in range(count)]
        return [np.stack(xs) for xs in zip(*blocks, strict=True)]

    return Transform(f"{count} x {transform.name}", ours, theirs)


def _unfit(line, arrays, shapes):
    """What is wrong with their arrays of one line: shapes and dtypes beside those that our shapes ask for."""
    want = [x.shape for x in line.transform.theirs(*[np.broadcast_to(np.int8(0), shape) for shape in shapes])]
    pairs = list(zip(line.theirs, arrays, want, strict=True))
    return ([f"wrong shape: {name} is {x.shape}, this model needs {shape}" for name, x, shape in pairs if x.shape != shape] +
            [f"wrong dtype: {name} is {x.dtype}, it should be one of {', '.join(FLOATS)}" for name, x, _ in pairs
             if x.dtype.name not in FLOATS])


_SAID = 12   # mismatches that a message lists


def _refuse(wrong, what):
    if wrong:
        raise ValueError(f"{what} ({len(wrong)} mismatch{'es' if len(wrong) > 1 else ''}): " + "; ".join(wrong[:_SAID])
                         + (f"; and {len(wrong) - _SAID} more" if len(wrong) > _SAID else ""))


def _describe(x):
    x = np.asarray(x)
    return f"{x.dtype} {x.shape}"


def _float32(x):
    return np.ascontiguousarray(x).reshape(x.shape).astype(np.float32)


def _short(paths):
    return paths if len(paths) <= 3 else (*paths[:2], f"... {len(paths) - 2} more")


def _number(names, i):
    return tuple(name.replace("{i}", str(i)) for name in names)


def _tuple(names):
    return (names,) if isinstance(names, str) else tuple(names)


# ---- trees -----------------------------------------------------------------------------------------------------------------------

def flat(tree, prefix=""):
    """{"image/block_0/ln1/scale": leaf} of nested dicts."""
    if not hasattr(tree, "items"):
        return {prefix: tree}
    return {path: leaf for key, value in tree.items() for path, leaf in flat(value, f"{prefix}/{key}" if prefix else key).items()}


def nested(leaves):
    """The inverse of `flat`."""
    tree = {}
    for path, leaf in leaves.items():
        *parents, last = path.split("/")
        node = tree
        for key in parents:
            node = node.setdefault(key, {})
        node[last] = leaf
    return tree


def stacked(tower):
    """A tower's unrolled parameters as those of a tower with scan=True: `transformer.stacked` for numpy arrays."""
    names = sorted((k for k in tower if k.startswith("block_")), key=lambda k: int(k[len("block_"):]))
    parts = [flat(tower[name]) for name in names]
    blocks = nested({path: np.stack([part[path] for part in parts]) for path in parts[0]})
    return {**{k: v for k, v in tower.items() if k not in names}, "blocks": blocks}


_STACK = re.compile(r"(.*/|)blocks/(.*)")


def _unstacked(leaves, array):
    """Leaves of stacked blocks cut apart: ".../blocks/x" (depth, ...) -> ".../block_<i>/x"."""
    result = {}
    for path, leaf in leaves.items():
        x, match = array(leaf), _STACK.fullmatch(path)
        result |= {f"{match[1]}block_{i}/{match[2]}": x[i] for i in range(len(x))} if match else {path: x}
    return result


def _stacked(found, like):
    """The inverse of `_unstacked`, for the paths of `like`."""
    result = {}
    for path, leaf in like.items():
        match = _STACK.fullmatch(path)
        result[path] = np.stack([found[f"{match[1]}block_{i}/{match[2]}"] for i in range(leaf.shape[0])]) if match else found[path]
    return result
